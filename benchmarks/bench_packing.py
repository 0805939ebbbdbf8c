"""What stands before the first call: packing codes into the portable form, reading a file, building a tier's panels.

`--benchmark-json` and `--benchmark-verbose` show the bytes: portable, panels, and what float32 would take.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import shapes
from benchmarks.operands import integers, require_equal
from soniq_kernels import gemm, packing

SHAPES = [(1024, 1024), (4096, 4096)]  # outputs, input channels
TINY = [(24, 70)]
WIDTHS = ["W1A4", "W2A4", "W4A4", "W8A8", shapes.MIXED]


def operands(shape, widths):
    """(plan, uint8 codes, packed weights that gave them back)."""
    plan = shapes.plan(widths, shape[1])
    w = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    codes = packing.quantize_weights(w, plan).codes()
    packed = packing.pack(codes, plan, 1.0, activation_scale=2.0)
    require_equal(packed.codes(), codes, f"{widths} {shape}")
    return plan, codes, packed


@pytest.mark.parametrize("widths", WIDTHS)
def test_pack(timed, shape, widths):
    plan, codes, packed = operands(shape, widths)
    timed(lambda: packing.pack(codes, plan, 1.0), portable_bytes=packed.nbytes, float32_bytes=4 * codes.size)


@pytest.mark.parametrize("widths", WIDTHS)
def test_load(timed, tmp_path, shape, widths):
    _, codes, packed = operands(shape, widths)
    path = tmp_path / "layer.safetensors"
    packed.save(path)
    require_equal(packing.load(path).codes(), codes, f"{widths} {shape}")
    timed(lambda: packing.load(path), file_bytes=path.stat().st_size, float32_bytes=4 * codes.size)


@pytest.mark.parametrize("widths", WIDTHS)
def test_build_panels(timed, shape, widths):
    plan, codes, packed = operands(shape, widths)
    x = np.random.default_rng(1).standard_normal((4, shape[1]), dtype=np.float32)
    rows = packing.quantize_activations(x, plan, 2.0)
    require_equal(gemm.matmul(rows, packed), integers(rows, codes, plan), f"{widths} {shape}")
    fresh = lambda: packing.PackedWeights(plan, codes.shape, packed.planes, packed.scale).layer()  # noqa: E731
    timed(fresh, panel_bytes=fresh().panel_bytes, float32_bytes=4 * codes.size)
