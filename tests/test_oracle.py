"""The oracle against the plainest statement of each definition, on cases small enough to do by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import cases
import oracle
from oracle import Grid, Layout

F32 = np.float32
GRIDS = [
    *(Grid(kind, bits) for kind in ("bipolar", "unsigned") for bits in range(1, 9)),
    *(Grid("signed", bits) for bits in range(2, 9)),
    Grid("ternary", 2),
]
MOVED = [Grid(g.kind, g.bits, offset, shift) for g in GRIDS for offset, shift in [(0, 0), (5, 0), (-3, 2), (0, -4)]]


def values(grid: Grid) -> list[Fraction]:
    """The real values of a grid at scale 1, exact."""
    return [Fraction(int(n)) * Fraction(2) ** oracle.exponent(grid) for n in oracle.levels(grid)]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (Grid("bipolar", 1), [-1, 1]),
        (Grid("bipolar", 2), [-1.5, -0.5, 0.5, 1.5]),
        (Grid("unsigned", 2), [0, 0.5, 1, 1.5]),
        (Grid("signed", 2), [-1, -0.5, 0, 0.5]),
        (Grid("ternary", 2), [-1, 0, 1]),
        (Grid("unsigned", 1, offset=-1, shift=1), [-2, 0]),
    ],
)
def test_values_of_small_grids(grid, expected):
    """The table of grids, spelled out."""
    assert [float(v) for v in values(grid)] == expected


def test_pixels_are_the_bipolar_grid_of_eight_bits():
    """(2*pixel - 255)/128: images enter a first layer without loss."""
    assert values(Grid("bipolar", 8)) == [Fraction(2 * pixel - 255, 128) for pixel in range(256)]


@pytest.mark.parametrize("grid", MOVED, ids=str)
def test_quantizer_gives_the_nearest_value(grid):
    """At scale 1 and inputs of few bits the quantizer's float32 steps are exact, so the nearest value must come out."""
    table = np.array(values(grid), dtype=np.float64)
    inputs = table[len(table) // 2] + np.arange(-200, 201) / 8 * 2.0 ** oracle.exponent(grid)
    codes = oracle.quantize(inputs.astype(F32), grid, 1.0)
    distances = np.abs(inputs[:, None] - table)
    assert np.array_equal(distances[np.arange(len(inputs)), codes], distances.min(axis=1))


@pytest.mark.parametrize("grid", MOVED, ids=str)
def test_quantizer_is_idempotent(grid):
    """The value of a code quantizes to that code, at any scale."""
    codes = np.arange(oracle.cmax(grid) + 1, dtype=np.uint8)[:, None]
    for scale in (1.0, 0.37, 2.0**-100, 2.0**100):
        y = oracle.dequantize(codes, (0,), [grid], scale)
        cases.assert_same(oracle.quantize(y, grid, scale), codes, scale)


def test_bipolar_quantizer_nests(rng):
    """Dropping low bits of a code is quantizing to fewer bits."""
    y = oracle.values_near(rng, (2000,), 0.3)
    for p in range(1, 8):
        cases.assert_same(
            oracle.quantize(y, Grid("bipolar", 8), 0.3) >> (8 - p), oracle.quantize(y, Grid("bipolar", p), 0.3)
        )


def test_quantizer_of_special_values():
    """NaN gives code 0, infinities and huge values the ends."""
    y = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38], F32)
    for grid in GRIDS:
        assert oracle.quantize(y, grid, 2.0**-100).tolist() == [0, oracle.cmax(grid), 0, oracle.cmax(grid), 0]


def test_bounds_of_the_contract():
    """The figures of section 2.3."""
    bipolar = lambda bits: Grid("bipolar", bits)  # noqa: E731
    assert oracle.largest_k(bipolar(8), bipolar(8)) == 33_025
    assert oracle.largest_k(bipolar(4), bipolar(8)) == 561_433
    pairs = ((bipolar(1), bipolar(1)), (bipolar(8), bipolar(8)))
    assert oracle.bound(Layout((0, 0, 0, 1, 1), pairs)) == 16_384 * 3 + 65_025 * 2


def test_matmul_by_fractions(rng):
    """acc * 2^E is the exact sum of products of values, two segments, offsets and shifts included."""
    pairs = ((Grid("signed", 2, 1, 1), Grid("unsigned", 1, -2)), (Grid("bipolar", 5), Grid("bipolar", 3, 0, -2)))
    layout = Layout((0, 1, 1, 0, 1), pairs)
    x, w = cases.x_codes(rng, (4, 5), layout), cases.w_codes(rng, (3, 5), layout)
    acc = oracle.matmul(x, w, layout)
    for m, n in np.ndindex(4, 3):
        terms = [values(pairs[s][0])[w[n, k]] * values(pairs[s][1])[x[m, k]] for k, s in enumerate(layout.segment)]
        assert Fraction(int(acc[m, n])) * Fraction(2) ** oracle.total_exponent(layout) == sum(terms)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_by_scalar_loops(rng, groups):
    """Output by output, tap by tap, channel by channel; two segments that fall differently in each group."""
    pairs = ((Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("unsigned", 4, 3)))
    layout = Layout((0, 1, 1, 1), pairs)
    stride, padding, dilation = (2, 1), (1, 2, 0, 3), (1, 2)
    x, w = cases.x_codes(rng, (2, 5, 6, 4), layout), cases.w_codes(rng, (4, 3, 2, 4 // groups), layout)
    acc = oracle.conv2d(x, w, layout, stride, padding, dilation)
    assert acc.shape == (2, 3, 7, 4)
    for b, oy, ox, o in np.ndindex(acc.shape):
        assert acc[b, oy, ox, o] == one_output(
            x[b], w[o], layout, o // (4 // groups), (oy, ox), stride, padding, dilation
        )


def one_output(x, w, layout, group, position, stride, padding, dilation):
    """One accumulator of a convolution, in scalar arithmetic."""
    total = 0
    for ky, kx, c in np.ndindex(w.shape):
        iy = position[0] * stride[0] - padding[0] + ky * dilation[0]
        ix = position[1] * stride[1] - padding[2] + kx * dilation[1]
        if 0 <= iy < x.shape[0] and 0 <= ix < x.shape[1]:
            channel = group * w.shape[-1] + c
            w_grid, a_grid = layout.pairs[layout.segment[channel]]
            factor = 2 ** (oracle.exponent(w_grid) + oracle.exponent(a_grid) - oracle.total_exponent(layout))
            total += factor * oracle.level(w_grid, int(w[ky, kx, c])) * oracle.level(a_grid, int(x[iy, ix, channel]))
    return total


def test_convolution_of_one_tap_is_a_matrix_product(rng):
    """1x1 as GEMM."""
    layout = Layout((0, 1, 0), ((Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("bipolar", 4))))
    x, w = cases.x_codes(rng, (2, 3, 3, 3), layout), cases.w_codes(rng, (5, 1, 1, 3), layout)
    cases.assert_same(oracle.conv2d(x, w, layout), oracle.matmul(x, w[:, 0, 0], layout))


def test_activations_on_special_values():
    """Zero is +0 after relu, NaN falls to the low end, as the comparisons say."""
    y = np.array([-0.0, np.nan, -1.0, 7.0, np.inf], F32)
    cases.assert_same_bits(oracle.activate(y, "relu"), np.array([0.0, 0.0, 0.0, 7.0, np.inf], F32))
    cases.assert_same_bits(oracle.activate(y, "relu6"), np.array([0.0, 0.0, 0.0, 6.0, 6.0], F32))
    cases.assert_same_bits(oracle.activate(y, ("hardtanh", -0.5, 0.5)), np.array([-0.0, -0.5, -0.5, 0.5, 0.5], F32))


def test_epilogue_rounds_every_step():
    """A value where the order of steps and the rounding of each one show."""
    steps = oracle.Epilogue(w_scale=np.array([1 / 3], F32), bias=np.array([1e8], F32), post_scale=np.array([0.1], F32))
    y = oracle.epilogue(np.array([[2**24 + 1]]), 0.7, 0, steps)
    t = F32(F32(F32(2**24) * F32(0.7)) * F32(1 / 3))
    cases.assert_same_bits(y, np.array([[F32(F32(t + F32(1e8)) * F32(0.1))]], F32))


def test_row_scale():
    """amax/2 on the bipolar grid, amax over the largest value elsewhere, 2^-100 for a row of zeros."""
    x = np.array([[3.0, -6.0], [0.0, 0.0]], F32)
    bipolar = oracle.uniform(2, Grid("bipolar", 4), Grid("bipolar", 4))
    unsigned = oracle.uniform(2, Grid("bipolar", 4), Grid("unsigned", 4))
    cases.assert_same_bits(oracle.row_scale(x, bipolar, -1), np.array([3.0, 2.0**-100], F32))
    expected = np.array([F32(6) * (F32(1) / F32(1.875)), 2.0**-100], F32)
    cases.assert_same_bits(oracle.row_scale(x, unsigned, -1), expected)


def test_pairwise_covers_all_pairs():
    """The covering array holds every valid pair, and far fewer cases than the cross."""
    factors = {"a": range(4), "b": range(3), "c": range(5), "d": range(2)}
    valid = lambda case: not (case["a"] == 0 and case["b"] == 2)  # noqa: E731
    array = cases.pairwise(factors, valid)
    assert all(valid(case) for case in array)
    assert len(array) < 40
    wanted = {(x, y, case[x], case[y]) for case in cases.cross(factors, valid) for x in factors for y in factors}
    assert wanted == {(x, y, case[x], case[y]) for case in array for x in factors for y in factors}
