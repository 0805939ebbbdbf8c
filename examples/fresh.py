"""Load a saved network in a process of its own and write what it computes: python examples/fresh.py module:function file inputs batch answers

Nothing of the training is here: the architecture as plain torch, and the file. `runs.evidence` compares the answers with the emulation.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np
import runs
import torch

from soniq_kernels import qat
from soniq_kernels.qat.convert import UNFUSED


def main(factory: str, file: str, inputs: str, batch: str, answers: str) -> None:
    """Write the digests of every layer's outputs and the network's outputs, {name: array}, to `answers`.

    The network runs as it ships; its layers once more one by one, as float32 between them can only then be seen.
    """
    module, function = factory.split(":")
    network = qat.load(file, getattr(importlib.import_module(module), function)())
    samples, size = torch.from_numpy(np.load(inputs)), int(batch)
    found = runs.digests(network, getattr(network, UNFUSED, network), samples, size)
    with torch.no_grad():
        found["outputs"] = torch.cat([network(part) for part in samples.split(size)]).contiguous().numpy()
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
