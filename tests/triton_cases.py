"""What the tests of the GPU kernels share. Without a GPU they run in Triton's interpreter (conftest.py), with one, on it."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; pip install soniq_kernels[gpu]")
pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import packing
from soniq_kernels import triton_kernels as gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
A_SCALE = 0.37


def two_segments(rng: np.random.Generator, low: int, high: int, pairs) -> Layout:
    """A layout of low + high channels in random order."""
    segment = rng.permutation([0] * low + [1] * high)
    return Layout(tuple(int(s) for s in segment), pairs)


def layer(rng: np.random.Generator, layout: Layout, shape: tuple[int, ...], **options) -> packing.PackedWeights:
    """Random packed weights; scales of either sign, some zero."""
    n = shape[0]
    plan = cases.package_plan(layout)
    return packing.pack(cases.w_codes(rng, shape, layout), plan, cases.random_scale(rng, n), **options)


def on_gpu(packed: packing.PackedWeights, x: packing.Activations):
    """Both operands on the GPU."""
    return gpu.to_device(packed, DEVICE), gpu.from_host(x, DEVICE, packed.groups)


def numpy(tensor) -> np.ndarray:
    return tensor.cpu().numpy()


__all__ = [
    "A_SCALE",
    "DEVICE",
    "INTERPRETED",
    "Grid",
    "Layout",
    "gpu",
    "layer",
    "numpy",
    "on_gpu",
    "oracle",
    "two_segments",
]
