"""Convolution: S for every pair of widths and every geometry, then grids that padding must not leak into."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import conv, gemm, isa, packing, planner

F32 = np.float32


class Geometry(NamedTuple):
    """One convolution's sizes; padding is (top, bottom, left, right)."""

    size: tuple[int, int]
    taps: tuple[int, int]
    inputs: int
    outputs: int
    batch: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """Shape of the weights, OHWI."""
        return (self.outputs, *self.taps, self.inputs // self.groups)

    @property
    def input(self) -> tuple[int, int, int, int]:
        """Shape of the input, NHWC."""
        return (self.batch, *self.size, self.inputs)

    @property
    def steps(self) -> dict:
        """The keywords of conv2d."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


GEOMETRIES = {
    "1x1": Geometry((5, 7), (1, 1), 33, 17, batch=2),
    "1x1 strided": Geometry((5, 6), (1, 1), 8, 5, stride=(2, 3)),
    "1x1 padded": Geometry((3, 2), (1, 1), 5, 4, padding=(1, 0, 2, 1)),
    "3x3 same": Geometry((6, 5), (3, 3), 16, 16, batch=2, padding=(1, 1, 1, 1)),
    "3x3 valid, odd": Geometry((7, 9), (3, 3), 3, 7),
    "3x3 stride 2": Geometry((7, 8), (3, 3), 5, 33, stride=(2, 2), padding=(1, 1, 1, 1)),
    "asymmetric padding": Geometry((4, 5), (3, 2), 7, 3, padding=(0, 2, 3, 1)),
    "dilated": Geometry((8, 7), (3, 3), 4, 5, padding=(2, 2, 3, 3), dilation=(2, 3)),
    "taps in padding only": Geometry((2, 3), (3, 3), 5, 4, padding=(5, 4, 4, 6)),
    "dilation beyond the input": Geometry((3, 3), (3, 3), 5, 4, padding=(4, 4, 4, 4), dilation=(4, 4)),
    "7x7": Geometry((9, 8), (7, 7), 3, 9, stride=(2, 2), padding=(3, 3, 3, 3)),
    "7x7, stride 3": Geometry((11, 8), (7, 7), 3, 9, batch=2, stride=(3, 2), padding=(3, 3, 3, 2)),
    "3x3, eight channels": Geometry((5, 7), (3, 3), 8, 9, batch=2, padding=(1, 1, 1, 1)),
    "7x7 on a smaller input": Geometry((3, 5), (7, 7), 2, 3, padding=(3, 3, 3, 3)),
    "few channels, dilated down": Geometry((9, 8), (3, 3), 3, 9, stride=(2, 1), padding=(2, 1, 1, 1), dilation=(2, 1)),
    "nine channels, 5x2": Geometry((8, 9), (5, 2), 9, 20, batch=2, stride=(3, 2), padding=(2, 2, 0, 1)),
    "a column": Geometry((41, 1), (3, 1), 18, 9, batch=2, padding=(1, 1, 0, 0)),
    "1x7": Geometry((3, 9), (1, 7), 6, 5, padding=(0, 0, 3, 3)),
    "groups": Geometry((5, 5), (3, 3), 12, 18, padding=(1, 1, 1, 1), groups=3),
    "grouped 1x1": Geometry((3, 4), (1, 1), 10, 4, groups=2),
    "depthwise": Geometry((6, 7), (3, 3), 35, 35, padding=(1, 1, 1, 1), groups=35),
    "depthwise, wide": Geometry((9, 7), (3, 3), 131, 131, batch=2, padding=(1, 1, 1, 1), groups=131),
    "depthwise, stride 2": Geometry((9, 8), (3, 3), 67, 67, stride=(2, 2), padding=(1, 1, 0, 1), groups=67),
    "depthwise, dilated": Geometry((6, 8), (3, 3), 40, 40, padding=(2, 0, 3, 2), dilation=(2, 3), groups=40),
    "depthwise, 5x5": Geometry((7, 6), (5, 5), 70, 70, padding=(2, 2, 2, 2), groups=70),
    "depthwise, 7x7 on a smaller input": Geometry((3, 5), (7, 7), 33, 33, padding=(3, 3, 3, 3), groups=33),
    "depthwise, in padding only": Geometry((2, 3), (2, 3), 34, 34, padding=(5, 4, 4, 6), groups=34),
    "depthwise, two each": Geometry((5, 5), (3, 3), 9, 18, stride=(2, 1), padding=(0, 1, 1, 2), groups=9),
    "one pixel": Geometry((1, 1), (1, 1), 1, 1),
    "wide": Geometry((2, 33), (3, 3), 65, 20, padding=(1, 1, 1, 1)),
    "tiles": Geometry((13, 9), (3, 3), 32, 40, padding=(1, 1, 1, 1)),
    "large": Geometry((9, 11), (3, 3), 131, 67, padding=(1, 0, 0, 1)),
}


def operands(rng: np.random.Generator, geometry: Geometry, layout: Layout):
    """Input and weight codes of one convolution."""
    return cases.x_codes(rng, geometry.input, layout), cases.w_codes(rng, geometry.weights, layout)


def check(x: np.ndarray, w: np.ndarray, layout: Layout, geometry: Geometry, expected: np.ndarray, case: object) -> None:
    """conv2d_int32 of these codes against the oracle's accumulators."""
    plan = cases.package_plan(layout)
    got = conv.conv2d_int32(cases.activations(x, plan), cases.pack_unit(w, plan), **geometry.steps)
    assert got.dtype == np.int32
    cases.assert_same(got, expected, case)


@functools.cache
def sums_case(w_bits: int, a_bits: int, name: str):
    """Codes and S of one geometry at one pair of widths."""
    geometry = GEOMETRIES[name]
    layout = cases.sums_layout(geometry.inputs, w_bits, a_bits)
    x, w = operands(np.random.default_rng([w_bits, a_bits]), geometry, layout)
    return x, w, layout, oracle.conv2d(x, w, layout, **geometry.steps)


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
def test_sums(tier, w_bits, a_bits):
    """S of every geometry in the list."""
    for name, geometry in GEOMETRIES.items():
        x, w, layout, sums = sums_case(w_bits, a_bits, name)
        check(x, w, layout, geometry, sums, name)


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
def test_all_max_codes(tier, w_bits, a_bits):
    """The largest sums of a geometry with many channels, the corners with fewer taps included."""
    geometry = Geometry((3, 3), (3, 3), 403, 3, padding=(1, 1, 1, 1))
    layout = cases.sums_layout(geometry.inputs, w_bits, a_bits)
    x, w = np.full(geometry.input, 2**a_bits - 1, np.uint8), np.full(geometry.weights, 2**w_bits - 1, np.uint8)
    taps = np.outer([2, 3, 2], [2, 3, 2])
    sums = np.repeat((taps * 403 * (2**w_bits - 1) * (2**a_bits - 1))[None, :, :, None], 3, axis=3)
    check(x, w, layout, geometry, sums, "all max")


def test_largest_k(tier):
    """K is taps times channels of a group: 3669 * 9 = 33,021 at 8x8 bits; one channel more is refused."""
    grid = Grid("bipolar", 8)
    geometry = Geometry((3, 3), (3, 3), 2 * 3669, 2, padding=(1, 1, 1, 1), groups=2)
    layout = oracle.uniform(geometry.inputs, grid, grid)
    x, w = np.full(geometry.input, 255, np.uint8), np.zeros(geometry.weights, np.uint8)
    taps = np.outer([2, 3, 2], [2, 3, 2])
    sums = np.repeat((taps * 3669 * -(255**2))[None, :, :, None], 2, axis=3)
    check(x, w, layout, geometry, sums, "all max against all min")
    with pytest.raises(ValueError, match=r"33,?030"):
        cases.pack_unit(np.zeros((1, 3, 3, 3670), np.uint8), cases.package_plan(oracle.uniform(3670, grid, grid)))


# ---- grids and segments: padded taps count nothing -----------------------------------------------------------------------

FACTORS = {
    "geometry": list(GEOMETRIES),
    "w": [Grid("bipolar", 1), Grid("bipolar", 5), Grid("unsigned", 3, -4), Grid("signed", 8, 0, 1), Grid("ternary", 2)],
    "a": [
        Grid("bipolar", 2),
        Grid("bipolar", 8, 9),
        Grid("unsigned", 4, -6, 1),
        Grid("signed", 3),
        Grid("ternary", 2, 1),
    ],
    "other": [
        None,
        (Grid("bipolar", 1), Grid("bipolar", 1)),
        (Grid("signed", 4, 1), Grid("unsigned", 6, 7, -1)),
        (Grid("bipolar", 8), Grid("bipolar", 7)),
    ],
    "own_channels": ["one", "half", "all but one", "all"],
}


def layout_of(case: cases.Case) -> Layout:
    """The layout of one case; the two pairs' channels are interleaved at random, so groups differ."""
    channels = GEOMETRIES[case["geometry"]].inputs
    own = {"one": 1, "half": (channels + 1) // 2, "all but one": channels - 1, "all": channels}[case["own_channels"]]
    if case["other"] is None:
        return oracle.uniform(channels, case["w"], case["a"])
    order = np.random.default_rng(channels).permutation(channels)
    return Layout(tuple(int(s) for s in order >= own), ((case["w"], case["a"]), case["other"]))


def fits(case: cases.Case) -> bool:
    """Whether the sums of the case stay within int32."""
    geometry = GEOMETRIES[case["geometry"]]
    return oracle.bound(layout_of(case), np.prod(geometry.taps), geometry.groups) <= oracle.INT32_MAX


@functools.cache
def pairwise_cases() -> list:
    """Covering array and random cases with operands and the oracle's results, shared by the tiers."""
    return [with_result(case) for case in cases.pairwise(FACTORS, fits) + cases.sampled(FACTORS, 100, fits)]


def with_result(case: cases.Case):
    """A case with its operands and accumulators."""
    geometry, layout = GEOMETRIES[case["geometry"]], layout_of(case)
    x, w = operands(np.random.default_rng(7), geometry, layout)
    return case, x, w, layout, geometry, oracle.conv2d(x, w, layout, **geometry.steps)


def test_pairs_of_everything(tier, full):
    """Geometry, grids with offsets and shifts, and segments, pairwise (--full: crossed)."""
    every = map(with_result, cases.cross(FACTORS, fits)) if full else pairwise_cases()
    for case, x, w, layout, geometry, expected in every:
        check(x, w, layout, geometry, expected, case)


@pytest.mark.parametrize("low", [1, 3, 61, 62, 63])
def test_segments_of_every_size(tier, low, rng):
    """Families pad a pixel's channels: those of a segment may come to as many as the layer has, and are still not all of them."""
    pairs = (Grid("bipolar", 1), Grid("bipolar", 1)), (Grid("bipolar", 4), Grid("bipolar", 4))
    layout = Layout(tuple(int(c >= low) for c in range(64)), pairs)
    geometry = Geometry((4, 5), (3, 3), 64, 6, batch=2, padding=(1, 1, 1, 1))
    x, w = operands(rng, geometry, layout)
    expected = oracle.conv2d(x, w, layout, **geometry.steps)
    for family in planner.FAMILIES:
        with planner.use(family):
            check(x, w, layout, geometry, expected, (low, family))


def test_output_of_padding_only_is_zero(tier):
    """A position that sees no input has the sum of nothing, though no bipolar code is zero."""
    layout = oracle.uniform(3, Grid("bipolar", 2), Grid("bipolar", 2, 5))
    geometry = Geometry((1, 1), (1, 1), 3, 2, padding=(1, 0, 0, 1))
    x, w = np.full(geometry.input, 3, np.uint8), np.full(geometry.weights, 3, np.uint8)
    one = 3 * 3 * (3 + 5)
    check(x, w, layout, geometry, np.array([[[[0, 0], [0, 0]], [[one, one], [0, 0]]]]), "corner")


# ---- forms of the arguments ---------------------------------------------------------------------------------------------


def test_short_forms_of_the_arguments(tier, rng):
    """An int, a pair, and for padding four numbers: the same thing."""
    layout = oracle.uniform(4, Grid("bipolar", 3), Grid("bipolar", 3))
    geometry = Geometry((7, 8), (3, 3), 4, 3, stride=(2, 2), padding=(1, 1, 2, 2), dilation=(2, 2))
    x, w = operands(rng, geometry, layout)
    plan = cases.package_plan(layout)
    acts, packed = cases.activations(x, plan), cases.pack_unit(w, plan)
    expected = oracle.conv2d(x, w, layout, **geometry.steps)
    cases.assert_same(conv.conv2d_int32(acts, packed, stride=2, padding=(1, 2), dilation=2), expected)
    cases.assert_same(conv.conv2d_int32(acts, packed, 2, (1, 1, 2, 2), (2, 2)), expected)
    cases.assert_same(conv.conv2d_int32(acts, packed), oracle.conv2d(x, w, layout))


def test_one_tap_is_gemm(tier, rng):
    """A 1x1 convolution and the matrix product of the same codes."""
    layout = Layout(
        (0, 1, 1, 0, 1), ((Grid("bipolar", 2), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("bipolar", 4)))
    )
    x, w = cases.x_codes(rng, (2, 3, 4, 5), layout), cases.w_codes(rng, (6, 5), layout)
    plan = cases.package_plan(layout)
    acts = cases.activations(x, plan)
    product = gemm.matmul(acts, cases.pack_unit(w, plan))
    cases.assert_same(conv.conv2d_int32(acts, cases.pack_unit(w[:, None, None], plan)), np.asarray(product))


def test_float_input_is_quantized_on_the_way_in(tier, rng):
    """float32 NHWC with the packed weights' activation scale, also one scale per image."""
    layout = oracle.uniform(5, Grid("bipolar", 3), Grid("bipolar", 4))
    geometry = Geometry((4, 4), (3, 3), 5, 6, batch=2, padding=(1, 1, 1, 1))
    _, w = operands(rng, geometry, layout)
    x = oracle.values_near(rng, geometry.input, 0.3)
    for scale in (0.3, "per_row"):
        packed = packing.pack(w, cases.package_plan(layout), np.ones(6, F32), activation_scale=scale)
        factor = F32(0.3) if scale == 0.3 else oracle.row_scale(x, layout, (1, 2, 3))[:, None, None, None]
        codes = oracle.quantize(x, Grid("bipolar", 4), factor)
        got = conv.conv2d_int32(x, packed, **geometry.steps)
        cases.assert_same(got, oracle.conv2d(codes, w, layout, **geometry.steps), scale)


def test_no_images(tier):
    """A batch of nothing gives nothing."""
    plan = packing.Plan.uniform(3, w_bits=2, a_bits=2)
    packed = cases.pack_unit(np.zeros((4, 3, 3, 3), np.uint8), plan)
    acts = cases.activations(np.zeros((0, 5, 5, 3), np.uint8), plan)
    assert conv.conv2d_int32(acts, packed).shape == (0, 3, 3, 4)


@given(st.data())
def test_any_geometry(data):
    """Random sizes, strides, padding, dilation, groups and widths, under every tier."""
    small = lambda low, high: st.integers(low, high)  # noqa: E731
    groups = data.draw(small(1, 4))
    geometry = Geometry(
        size=data.draw(st.tuples(small(1, 7), small(1, 7))),
        taps=data.draw(st.tuples(small(1, 4), small(1, 4))),
        inputs=groups * data.draw(small(1, 18)),
        outputs=groups * data.draw(small(1, 18)),
        batch=data.draw(small(1, 2)),
        stride=data.draw(st.tuples(small(1, 3), small(1, 3))),
        padding=data.draw(st.tuples(*[small(0, 4)] * 4)),
        dilation=data.draw(st.tuples(small(1, 3), small(1, 3))),
        groups=groups,
    )
    before, after = geometry.padding[::2], geometry.padding[1::2]
    sizes = zip(geometry.size, geometry.taps, geometry.stride, before, after, geometry.dilation, strict=True)
    assume(all(oracle.output_size(*axis) > 0 for axis in sizes))
    bits = data.draw(st.tuples(small(1, 8), small(1, 8)))
    other = (Grid("signed", 3), Grid("unsigned", 2)) if bits != (3, 2) else (Grid("ternary", 2), Grid("ternary", 2))
    pairs = ((Grid("bipolar", bits[0]), Grid("bipolar", bits[1])), other)
    channels = data.draw(st.lists(small(0, 1), min_size=geometry.inputs, max_size=geometry.inputs))
    layout = Layout(tuple(channels), pairs)
    x, w = operands(np.random.default_rng(1), geometry, layout)
    expected = oracle.conv2d(x, w, layout, **geometry.steps)
    for name in isa.available():
        with isa.use(name), cases.threads(data.draw(small(1, 3))):
            check(x, w, layout, geometry, expected, (name, geometry))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("height", [2, 3, 4, 9])
def test_lines_of_one_position(tier, rng, size, height):
    """Few positions, one a line: as one run they and what lies between them may be so few that another kernel takes them."""
    layout, outputs = oracle.uniform(64, Grid("bipolar", 4), Grid("bipolar", 4)), 40
    x = cases.random_codes(rng, (1, height + size - 1, size, 64), layout.segment, oracle.a_grids(layout))
    w = cases.w_codes(rng, (outputs, size, size, 64), layout)
    scale, plan = cases.random_scale(rng, outputs), cases.package_plan(oracle.uniform(outputs, *layout.pairs[0]))
    packed = packing.pack(w, cases.package_plan(layout), scale)
    y = oracle.epilogue(oracle.conv2d(x, w, layout), F32(1), oracle.total_exponent(layout), oracle.Epilogue(scale))
    step = F32(np.abs(y).mean())
    got = conv.conv2d(cases.activations(x, cases.package_plan(layout)), packed, out=(plan, step))
    expected = oracle.quantize_channels(y, (0,) * outputs, oracle.a_grids(layout), step)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(got.codes(), expected)
