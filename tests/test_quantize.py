"""Float activations into codes: every grid, static scales and one scale per row or image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import isa, packing

F32 = np.float32
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 257]
SCALES = [1.0, 0.37, 3.3, 2.0**-100, 2.0**-60, 2.0**100]
KINDS = [("bipolar", 1), ("unsigned", 1), ("signed", 2)]
GRIDS = [Grid(kind, bits) for kind, least in KINDS for bits in range(least, 9)] + [Grid("ternary", 2)]
W_GRID = Grid("bipolar", 2)


def quantized_codes(x: np.ndarray, layout: Layout, scale) -> np.ndarray:
    """The oracle's codes; scale is a number or an array that broadcasts against x."""
    return oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), F32(scale))


@pytest.mark.parametrize("base", GRIDS, ids=str)
def test_static_scale(tier, rng, base):
    """Every grid and width, moved and unmoved, at ordinary and extreme scales, over every kind of tail."""
    for n, size in enumerate(SIZES):
        offset, shift = [(0, 0), (5, 1), (-7, -2), (1023, 6), (-1023, -6)][n % 5]
        grid, scale = base._replace(offset=offset, shift=shift), SCALES[n % len(SCALES)]
        layout = oracle.uniform(size, W_GRID, grid)
        x = oracle.values_near(rng, (3, size), scale)
        acts = packing.quantize_activations(x, cases.package_plan(layout), scale)
        cases.assert_same(acts.codes(), quantized_codes(x, layout, scale), (grid, scale, size))


@pytest.mark.parametrize("bits", [(1, 8), (2, 4), (8, 3), (4, 4)], ids=str)
def test_two_segments(tier, rng, bits):
    """Each channel on its segment's grid; codes() in original order, stored in the plan's."""
    pairs = ((Grid("bipolar", 1), Grid("bipolar", bits[0], 2, -1)), (Grid("bipolar", 5), Grid("unsigned", bits[1], -3)))
    for size in (2, 3, 17, 64, 131):
        layout = Layout((0, *(int(s) for s in rng.integers(0, 2, size - 2)), 1), pairs)
        plan, x = cases.package_plan(layout), oracle.values_near(rng, (5, size), 0.3)
        acts = packing.quantize_activations(x, plan, 0.3)
        expected = quantized_codes(x, layout, 0.3)
        cases.assert_same(acts.codes(), expected, size)
        cases.assert_same(acts.stored, expected[:, plan.permutation], size)
        dequantized = oracle.dequantize(expected, layout.segment, oracle.a_grids(layout), F32(0.3))
        cases.assert_same_bits(acts.dequantize(), dequantized, size)


def test_scale_and_shape_are_kept(rng):
    """A static scale is a float32 scalar array; any number of leading dimensions."""
    plan = packing.Plan.uniform(6, w_bits=2, a_bits=4)
    for shape in [(6,), (3, 6), (2, 3, 6), (2, 3, 4, 6), (2, 1, 3, 1, 6)]:
        x = rng.normal(size=shape).astype(F32)
        acts = packing.quantize_activations(x, plan, 0.3)
        assert acts.shape == shape
        assert acts.plan == plan
        assert acts.stored.shape == shape
        cases.assert_same_bits(acts.scale, np.array(0.3, F32))
        cases.assert_same(acts.codes(), oracle.quantize(x, Grid("unsigned", 4), F32(0.3)))


@pytest.mark.parametrize("grid", [*GRIDS, Grid("unsigned", 4, 3, -2), Grid("signed", 8, 9, 1)], ids=str)
def test_scale_per_row(tier, rng, grid):
    """amax/2 or amax over the largest value; rows of zeros and of tiny numbers included."""
    if oracle.level(grid, oracle.cmax(grid)) <= 0:
        pytest.skip("the grid has no positive value")
    for size in (1, 5, 16, 33, 129):
        layout = oracle.uniform(size, W_GRID, grid)
        x = (rng.normal(size=(9, size)) * 10.0 ** rng.integers(-3, 4, (9, 1))).astype(F32)
        x[3], x[4], x[5] = 0, -0.0, 1e-42
        x[6, -1] = 3e38
        check_per_row(x, layout, axes=-1)


@pytest.mark.parametrize(("low", "high"), [((2, "bipolar"), (4, "unsigned")), ((3, "unsigned"), (8, "bipolar"))])
def test_scale_per_row_of_two_segments(tier, rng, low, high):
    """The widest activation grid sets the rule; amax runs over both segments."""
    pairs = ((Grid("bipolar", 1), Grid(low[1], low[0])), (Grid("bipolar", 4), Grid(high[1], high[0], 1, -1)))
    for size in (2, 17, 66):
        layout = Layout((1, *(int(s) for s in rng.integers(0, 2, size - 2)), 0), pairs)
        check_per_row(rng.normal(size=(7, size)).astype(F32), layout, axes=-1)


def test_scale_per_row_with_equal_widths(tier, rng):
    """Two segments of the same activation bits: the one with the larger value sets the rule."""
    pairs = ((Grid("bipolar", 2), Grid("unsigned", 4)), (Grid("bipolar", 4), Grid("unsigned", 4, 0, 2)))
    check_per_row(rng.normal(size=(7, 11)).astype(F32), Layout(tuple([0, 1] * 5 + [1]), pairs), axes=-1)


def check_per_row(x: np.ndarray, layout: Layout, axes) -> None:
    """Scales and codes of one scale per row (or image) against the oracle."""
    acts = packing.quantize_activations(x, cases.package_plan(layout), "per_row")
    scale = oracle.row_scale(x, layout, axes)
    cases.assert_same_bits(acts.scale, scale)
    column = scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim))
    cases.assert_same(acts.codes(), quantized_codes(x, layout, column))
    dequantized = oracle.dequantize(acts.codes(), layout.segment, oracle.a_grids(layout), column)
    cases.assert_same_bits(acts.dequantize(), dequantized)


def test_scale_per_row_of_higher_rank(tier, rng):
    """[..., K] has one scale per row; NHWC one per image."""
    layout = oracle.uniform(5, W_GRID, Grid("unsigned", 4))
    check_per_row(rng.normal(size=(5,)).astype(F32), layout, axes=-1)
    check_per_row(rng.normal(size=(2, 3, 5)).astype(F32), layout, axes=-1)
    check_per_row(rng.normal(size=(3, 4, 2, 5)).astype(F32), layout, axes=(1, 2, 3))


def test_non_finite_without_check(tier):
    """check_finite=False: NaN gives code 0 and is ignored in amax, infinities clamp."""
    x = np.array([[np.nan, 1.0, -2.0], [np.inf, 1.0, -1.0], [-np.inf, np.nan, 0.0], [np.nan] * 3], F32)
    for grid in (Grid("bipolar", 3), Grid("unsigned", 8), Grid("signed", 4), Grid("ternary", 2)):
        layout = oracle.uniform(3, W_GRID, grid)
        plan = cases.package_plan(layout)
        acts = packing.quantize_activations(x, plan, 0.5, check_finite=False)
        cases.assert_same(acts.codes(), quantized_codes(x, layout, 0.5), grid)
        acts = packing.quantize_activations(x, plan, "per_row", check_finite=False)
        scale = oracle.row_scale(x, layout, -1)
        cases.assert_same_bits(acts.scale, scale, grid)
        cases.assert_same(acts.codes(), quantized_codes(x, layout, scale[:, None]), grid)


def test_codes_as_they_are(tier, rng):
    """from_codes keeps the codes and finds their place in the stored order."""
    pairs = ((Grid("bipolar", 2), Grid("bipolar", 2)), (Grid("bipolar", 8), Grid("bipolar", 8)))
    layout = Layout(tuple(int(s) for s in rng.integers(0, 2, 37)), pairs)
    plan, codes = cases.package_plan(layout), cases.x_codes(rng, (2, 3, 37), layout)
    acts = packing.Activations.from_codes(codes, plan, 0.25)
    cases.assert_same(acts.codes(), codes)
    cases.assert_same(acts.stored, codes[..., plan.permutation])
    cases.assert_same_bits(acts.scale, np.array(0.25, F32))


def test_values_of_codes_come_back(tier):
    """Every code of every grid survives dequantize and quantize."""
    for grid in GRIDS:
        codes = np.arange(oracle.cmax(grid) + 1, dtype=np.uint8)[None]
        plan = cases.package_plan(oracle.uniform(codes.size, W_GRID, grid))
        for scale in SCALES:
            acts = packing.Activations.from_codes(codes, plan, scale)
            again = packing.quantize_activations(acts.dequantize(), plan, scale)
            cases.assert_same(again.codes(), codes, (grid, scale))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=70), st.sampled_from(GRIDS), st.floats(2.0**-30, 2.0**30, width=32))
def test_any_float(values, grid, scale):
    """Any finite float32 at any scale, under every tier."""
    x = np.array([values], F32)
    layout = oracle.uniform(x.size, W_GRID, grid)
    for name in isa.available():
        with isa.use(name):
            acts = packing.quantize_activations(x, cases.package_plan(layout), scale)
            cases.assert_same(acts.codes(), quantized_codes(x, layout, scale), name)


def test_every_exponent(tier):
    """Bit patterns from all over float32, denormals included, without and with a scale that is no power of two."""
    x = np.arange(0, 2**32, 2**32 // 9973, dtype=np.uint64).astype(np.uint32).view(F32)
    x = x[np.isfinite(x)][None]
    for grid in (Grid("bipolar", 8), Grid("unsigned", 4), Grid("signed", 3), Grid("ternary", 2)):
        layout = oracle.uniform(x.size, W_GRID, grid)
        for scale in (1.0, 0.7, 2.0**-100):
            acts = packing.quantize_activations(x, cases.package_plan(layout), scale)
            cases.assert_same(acts.codes(), quantized_codes(x, layout, scale), (grid, scale))
