"""float32 to codes: the step that stands before every layer. Each value is compared with the formula of docs/arithmetic.md."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import shapes
from benchmarks.operands import require_equal
from soniq_kernels import packing

SHAPES = [(128, 4096), (784, 1152), (1, 16384)]
TINY = [(3, 70), (1, 9)]
WIDTHS = ["W1A1", "W4A4", "W8A8", shapes.MIXED]


def codes_by_numpy(x, plan, scale):
    """int(clamp(x * r + z, 0, cmax)), each step rounded to float32."""
    grids = [segment.a for segment in plan.segments]
    index = plan.segment_of()
    r = np.array([g.r_numerator for g in grids], np.float32)[index] / scale
    z, largest = (np.array(values, np.float32)[index] for values in ([g.z for g in grids], [g.cmax for g in grids]))
    return np.clip(x * r + z, np.float32(0), largest).astype(np.uint8)


@pytest.mark.parametrize("scale", [2.0, "per_row"])
@pytest.mark.parametrize("widths", WIDTHS)
def test_quantize(timed, shape, widths, scale):
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    plan = shapes.plan(widths, shape[1])
    by_row = np.abs(x).max(axis=1, keepdims=True) * plan.widest_activation.dynamic_factor
    expected = codes_by_numpy(x, plan, by_row if scale == "per_row" else np.float32(scale))
    require_equal(packing.quantize_activations(x, plan, scale).codes(), expected, f"{widths} {shape} {scale}")
    timed(lambda: packing.quantize_activations(x, plan, scale), bytes_read=x.nbytes)
