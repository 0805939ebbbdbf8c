"""Quantizing on the GPU: the codes, sums and scales of the CPU, for every grid, width, dtype and way of scaling."""

from __future__ import annotations

import numpy as np
import pytest

import cases
from soniq_kernels import packing
from triton_cases import DEVICE, Grid, gpu, numpy, oracle, two_segments

torch = pytest.importorskip("torch")


def same(x, plan, scale, groups=1):
    """Codes, scale and everything that the GPU derives from them, for values [..., C] that float32 holds."""
    with np.errstate(all="ignore"):
        got = gpu.quantize_activations(x.to(DEVICE), plan, scale, groups)
        expected = packing.quantize_activations(x.float().numpy(), plan, scale, check_finite=False)
    cases.assert_same(numpy(got.codes()), expected.codes())
    cases.assert_same_bits(numpy(got.scale), expected.scale.reshape(-1))
    again = gpu.from_host(expected, DEVICE, groups)
    cases.assert_same(numpy(got.data), numpy(again.data))
    cases.assert_same(numpy(got.sums), numpy(again.sums))
    cases.assert_same(got.cpu().stored, expected.stored)


def values(rng, shape, dtype=None):
    x = torch.from_numpy(oracle.values_near(rng, shape, 0.7)).to(dtype or torch.float32)
    x.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=x.dtype)[: x.numel()]
    return x


@pytest.mark.parametrize("kind", ["bipolar", "unsigned", "signed", "ternary"])
@pytest.mark.parametrize("scale", [0.7, "per_row"])
def test_grids_and_widths(rng, kind, scale):
    for bits in [2] if kind == "ternary" else range(2 if kind == "signed" else 1, 9):
        plan = cases.package_plan(oracle.uniform(37, Grid("bipolar", 2), Grid(kind, bits, -bits % 3, bits % 2)))
        same(values(rng, (5, 37)), plan, scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.7, "per_row"])
def test_dtypes_and_two_segments(rng, dtype, scale):
    pairs = ((Grid("bipolar", 2), Grid("unsigned", 3)), (Grid("bipolar", 4), Grid("bipolar", 8, 3)))
    plan = cases.package_plan(two_segments(rng, 40, 61, pairs))
    same(values(rng, (2, 3, 101), dtype), plan, scale)


@pytest.mark.parametrize("scale", [1e-30, "per_row"])
def test_images_and_groups(rng, scale):
    pairs = ((Grid("bipolar", 2), Grid("unsigned", 3)), (Grid("bipolar", 4), Grid("bipolar", 8)))
    plan = cases.package_plan(two_segments(rng, 20, 16, pairs))
    for groups in (1, 36):
        same(values(rng, (2, 3, 2, 36)), plan, scale, groups)
    same(torch.zeros(1, 2, 2, 36), plan, scale)


def test_one_scale_per_row(rng):
    plan = packing.Plan.uniform(20, 2, 4)
    scale = rng.uniform(0.1, 2, 6).astype(np.float32)
    got = gpu.quantize_activations(
        values(rng, (6, 20)).nan_to_num().to(DEVICE), plan, torch.from_numpy(scale).to(DEVICE)
    )
    assert np.array_equal(numpy(got.scale), scale)


def test_codes_survive_the_round_trip(rng):
    """from_host, from_codes, codes and cpu agree; a layout for other groups holds the same codes."""
    pairs = ((Grid("bipolar", 2), Grid("unsigned", 3)), (Grid("bipolar", 4), Grid("bipolar", 8)))
    layout = two_segments(rng, 20, 16, pairs)
    codes = cases.x_codes(rng, (3, 36), layout)
    x = cases.activations(codes, cases.package_plan(layout), 0.5)
    made = gpu.from_codes(torch.from_numpy(codes).to(DEVICE), x.plan, 0.5, groups=2)
    expected = gpu.from_host(x, DEVICE, 2)
    for got in (made, gpu.from_host(x, DEVICE).laid_out_for(2), made.laid_out_for(1).laid_out_for(2)):
        assert torch.equal(got.data, expected.data) and torch.equal(got.sums, expected.sums)


def test_wrong_input_is_named(rng):
    plan = packing.Plan.uniform(20, 2, 4)
    with pytest.raises(TypeError, match="x is torch.float64, expected torch.float32"):
        gpu.quantize_activations(torch.zeros(2, 20, dtype=torch.float64, device=DEVICE), plan, 1.0)
    with pytest.raises(ValueError, match="the plan has 20 channels"):
        gpu.quantize_activations(torch.zeros(2, 21, device=DEVICE), plan, 1.0)
    with pytest.raises(TypeError, match="x is a ndarray, expected a torch tensor"):
        gpu.quantize_activations(np.zeros((2, 20), np.float32), plan, 1.0)
    with pytest.raises(ValueError, match="scale is 0.0"):
        gpu.quantize_activations(torch.zeros(2, 20, device=DEVICE), plan, 0.0)
