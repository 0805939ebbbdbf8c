"""What the examples of pretrained networks share: results, and the evidence that a packed network computes what was trained.

A result is one entry of examples/results/<name>.json, written as soon as it is there; a finished one is not run again.
As a program: load a saved network in a process of its own and write digests of all that its layers give,

    python examples/pretrained.py module:function network.safetensors batches.pt answers.json
"""

from __future__ import annotations

import hashlib
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soniq_kernels import isa, qat

HERE = Path(__file__).resolve().parent
RESULTS, SCRATCH = HERE / "results", HERE.parent / "out"


# --- results -------------------------------------------------------------------------------------------------------


class Results:
    """examples/results/<name>.json: {"machine": ..., "runs": {run: figures}}."""

    def __init__(self, name: str):
        self.name, self.file = name, RESULTS / f"{name}.json"
        self.found: dict[str, Any] = {"machine": machine(), "runs": {}}
        self._read()

    def _read(self) -> None:
        if self.file.is_file():
            self.found = json.loads(self.file.read_text())

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        return self.found["runs"]

    def keep(self, run: str, figures: Mapping[str, Any]) -> None:
        """Add figures to a run and write the file, in which another process may have added a run."""
        self._read()
        self.runs[run] = self.runs.get(run, {}) | dict(figures)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n")
        part.replace(self.file)

    def packed_file(self, run: str) -> Path:
        """Where the packed network of a run is kept, for timing."""
        SCRATCH.mkdir(exist_ok=True)
        return SCRATCH / f"{self.name}-{run}.safetensors"


def machine() -> dict[str, Any]:
    """What results were made on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return {"processor": models[0] if models else "?", "isa": isa.active(), "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d", time.gmtime())}  # fmt: skip


def sizes(model: nn.Module, float_bytes: int, packed: Path) -> dict[str, float]:
    """Average bits of the whole network (float weights as 32) and of its quantized layers; compression of the file."""
    report = qat.report(model)
    layers = [layer for layer in report.layers if layer.channels]
    weights = sum(layer.weights for layer in layers)
    inner = sum(layer.average_bits * layer.weights for layer in layers) / weights
    levels = [bits for layer in layers for bits, count in layer.channels.items() for _ in range(count)]
    return {
        "network_bits": round(report.average_bits, 3),
        "layer_bits": round(inner, 3),
        "compression": round(float_bytes / packed.stat().st_size, 2),
        "shares": {bits: round(levels.count(bits) / len(levels), 3) for bits in sorted(set(levels), key=str)},
    }


# --- evidence ------------------------------------------------------------------------------------------------------


def evidence(model: nn.Module, factory: str, batches: Sequence[Tensor], file: Path) -> dict[str, Any]:
    """Pack a frozen model into `file`, and count all outputs that differ from the emulation, here and in a new process.

    factory: "module:function" of this folder that makes a fresh float instance.
    """
    packed = qat.convert(model)
    values = different = 0
    for batch in batches:
        checks = qat.verify(model, packed, batch)
        values += sum(check.values for check in (*checks.layers, checks.outputs))
        different += sum(check.different for check in (*checks.layers, checks.outputs))
    qat.save(packed, file)
    with tempfile.TemporaryDirectory() as folder:
        layerwise, inputs, answers = (
            Path(folder) / name for name in ("network.safetensors", "batches.pt", "answers.json")
        )
        qat.save(qat.convert(model, codes=False), layerwise)
        torch.save(list(batches), inputs)
        got = {}
        for network in (layerwise, file):
            command = [sys.executable, str(HERE / "pretrained.py"), factory, str(network), str(inputs), str(answers)]
            subprocess.run(command, check=True)
            got[network] = json.loads(answers.read_text())
    expected = digests(model, batches)
    if set(expected) != set(got[layerwise]):
        raise AssertionError(f"the new process has layers {sorted(got[layerwise])}, expected {sorted(expected)}")
    pairs = [(expected[name][i], got[layerwise][name][i]) for name in expected for i in range(len(batches))]
    pairs += list(zip(expected["outputs"], got[file]["outputs"], strict=True))
    return {
        "values": values,
        "different": different,
        "new_process_digests": len(pairs),
        "new_process_different": sum(a != b for a, b in pairs),
    }


@torch.no_grad()
def digests(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, list[str]]:
    """{layer, or "outputs": SHA-256 of the bits of its results, one of each batch}."""
    found: dict[str, list[str]] = {}
    kinds = (qat.QuantLayer, qat.PackedLayer)
    layers = {name: module for name, module in model.eval().named_modules() if isinstance(module, kinds)}
    handles = [
        layer.register_forward_hook(lambda _, __, y, name=name: found.setdefault(name, []).append(_digest(y)))
        for name, layer in layers.items()
    ]
    outputs = [_digest(model(batch)) for batch in batches]
    for handle in handles:
        handle.remove()
    return found | {"outputs": outputs}


def _digest(y: Tensor | list[Tensor]) -> str:
    parts = y if isinstance(y, list) else [y]
    return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()


# --- time ----------------------------------------------------------------------------------------------------------


def medians(calls: Mapping[str, Callable[[], object]], seconds: float = 20.0) -> dict[str, float]:
    """Milliseconds of each call, the median of turns in which everybody runs once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(each[1:]), 3) for name, each in times.items()}


# --- pages ---------------------------------------------------------------------------------------------------------


def page(results: Results, title: str, columns: Mapping[str, str], note: str) -> None:
    """examples/results/<name>.md: a row for each run; columns: {heading: figure}."""
    head = ["", *columns]
    rows = [[run, *(_cell(figures.get(key)) for key in columns.values())] for run, figures in results.runs.items()]
    lines = [head, ["---"] + ["---:"] * len(columns), *rows]
    made = ", ".join(f"{key} {value}" for key, value in results.found["machine"].items())
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (RESULTS / f"{results.name}.md").write_text(f"# {title}\n\n{text}\n\n{note}\n\n{made}\n")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def main(factory: str, network: str, batches: str, answers: str) -> None:
    """The program: nothing of training is here, only the architecture in float, and the file."""
    module, function = factory.split(":")
    model = qat.load(network, getattr(importlib.import_module(module), function)())
    Path(answers).write_text(json.dumps(digests(model, torch.load(batches, weights_only=True))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
