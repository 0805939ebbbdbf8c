"""Winograd's form of 3 x 3 convolutions: taken where bytes hold what it makes of weights and codes, and the oracle's integers."""

from __future__ import annotations

import numpy as np
import pytest

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import _core, conv, packing, planner

F32 = np.float32
# Whose products take signed weights, and are not those of matrix registers.
TIERS = ("avx2", "avxvnni", "avx512", "avx512_vbmi")
INPUTS, OUTPUTS = 32, 40  # more than a panel


@pytest.fixture(autouse=True)
def dot():
    """Only the dot family has this form; narrow codes might take another one."""
    with planner.use("dot"):
        yield


def taken() -> int:
    """How often a panel's sums were made so, on all tiers."""
    return sum(runs for name, runs in _core.kernel_counts().items() if name.endswith("winograd.sums"))


def fits(tier: str, w_bits: int, a_bits: int) -> bool:
    """Whether random operands of these widths do: nine levels stay below 128, and AVX2 adds two products in 16 bits."""
    return tier in TIERS and w_bits <= 4 and a_bits <= (5 if tier == "avx2" else 6)


def check(x, w, layout: Layout, takes: bool, case: object = "", **place) -> None:
    """conv2d_int32 of these codes against the oracle, and whether it took the form."""
    plan, before = cases.package_plan(layout), taken()
    got = conv.conv2d_int32(cases.activations(x, plan), cases.pack_unit(w, plan), **place)
    cases.assert_same(got, oracle.conv2d(x, w, layout, **place), case)
    assert (taken() > before) == takes, case


def operands(rng, layout: Layout, size=(13, 9), batch=1, outputs=OUTPUTS):
    """Random codes of an image and of 3 x 3 taps."""
    x = cases.x_codes(rng, (batch, *size, layout.channels), layout)
    return x, cases.w_codes(rng, (outputs, 3, 3, layout.channels), layout)


@pytest.mark.parametrize("w_bits", range(1, 8))
@pytest.mark.parametrize("a_bits", range(1, 9))
def test_every_width(tier, rng, w_bits, a_bits):
    """Odd heights and widths leave half a tile. From five bits on some kernel's sum is no byte, and all go the other way."""
    layout = oracle.uniform(INPUTS, Grid("bipolar", w_bits), Grid("unsigned", a_bits))
    check(*operands(rng, layout), layout, fits(tier, w_bits, a_bits), padding=(1, 1, 1, 1))


@pytest.mark.parametrize("level", [1, 13, 14, 15])
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_sums(tier, level, sign):
    """Nine levels of 14 or 15 are more than a byte holds: those weights are multiplied as they are, and others to the last bit."""
    code = (sign * level + 15) // 2 if level % 2 else None
    layout = oracle.uniform(64, Grid("bipolar", 4), Grid("unsigned", 5))
    w = np.full((3, 3, 3, 64), 15 if code is None else code, np.uint8)
    if code is None:  # levels of 15 and 13 in turns
        w[..., 1::2] = 14
        w = w if sign > 0 else 15 - w
    x = np.full((1, 12, 11, 64), 31, np.uint8)
    check(x, w, layout, tier in TIERS and level <= 13, padding=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("size", "padding", "takes"),
    [
        ((14, 8), (1, 1, 1, 1), True),  # 28 tiles
        ((13, 8), (1, 1, 1, 1), True),
        ((12, 8), (1, 1, 1, 1), False),  # too few
        ((1, 90), (1, 1, 1, 1), False),  # half empty
        ((9, 12), (2, 0, 3, 1), True),
        ((9, 12), (0, 3, 0, 4), True),
        ((2, 2), (6, 7, 5, 8), True),  # most of it padding
        ((60, 58), (1, 1, 1, 1), True),  # several blocks of lines, and a line is several pieces
    ],
)
def test_every_size(tier, rng, size, padding, takes):
    """Padding of any amount on any side, and images whose tiles do not come out even."""
    layout = oracle.uniform(INPUTS, Grid("bipolar", 3), Grid("bipolar", 4))
    for count in (1, 3):
        with cases.threads(count):
            check(*operands(rng, layout, size, 2, 33), layout, takes and tier in TIERS, count, padding=padding)


@pytest.mark.parametrize("place", [{"stride": (2, 1)}, {"stride": (1, 2)}, {"dilation": (2, 1)}, {"dilation": (1, 2)}])
def test_taps_apart(tier, rng, place):
    """The form is for neighbours, one apart."""
    layout = oracle.uniform(INPUTS, Grid("bipolar", 2), Grid("bipolar", 2))
    check(*operands(rng, layout, (24, 20)), layout, False, padding=(1, 1, 1, 1), **place)


@pytest.mark.parametrize(("low", "takes"), [(16, True), (32, True), (24, False), (64, True)])
@pytest.mark.parametrize("widths", [((1, 2), (4, 4)), ((4, 4), (3, 1))])
def test_two_segments(tier, rng, low, widths, takes):
    """Both segments' sums are added before they become outputs, shifted against each other. AVX2 takes 32 codes a step."""
    pairs = tuple((Grid("bipolar", w), Grid("unsigned", a, shift=s)) for (w, a), s in zip(widths, (0, 2), strict=True))
    layout = Layout(tuple(int(c >= low) for c in rng.permutation(64)), pairs)
    whole_steps = low % 32 == 0 or tier != "avx2"
    check(*operands(rng, layout), layout, takes and whole_steps and tier in TIERS, padding=(1, 1, 1, 1))


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_offsets_of_two_segments(tier, rng, shift):
    """What pixels have added is no multiple of four, as the sums are: of two segments it must not come to one more."""
    pairs = (Grid("unsigned", 2), Grid("unsigned", 1)), (Grid("unsigned", 3), Grid("unsigned", 2, shift=shift))
    layout = Layout(tuple(int(c >= 32) for c in range(64)), pairs)
    for _ in range(8):
        check(*operands(rng, layout, outputs=3), layout, tier in TIERS, padding=(1, 1, 1, 1))


@pytest.mark.parametrize("sinks", [1, 2])
def test_codes_of_two_segments(tier, rng, sinks):
    """What leaves the epilogue, of one segment or of two, whose codes are put in their places."""
    layout = oracle.uniform(INPUTS, Grid("bipolar", 4), Grid("bipolar", 4))
    x, w = operands(rng, layout, outputs=150)
    pairs = [(Grid("bipolar", 4), Grid("bipolar", 4)), (Grid("bipolar", 2), Grid("unsigned", 2))][:sinks]
    to = Layout(tuple(int(s) for s in rng.integers(0, sinks, 150)), tuple(pairs))
    scale, bias = cases.random_scale(rng, 150), rng.normal(size=150).astype(F32)
    packed = packing.pack(w, cases.package_plan(layout), scale, bias)
    acc, before = oracle.conv2d(x, w, layout, padding=(1, 1, 1, 1)), taken()
    y = oracle.epilogue(acc, F32(1), oracle.total_exponent(layout), oracle.Epilogue(scale, bias))
    step = F32(np.abs(y).mean())
    got = conv.conv2d(
        cases.activations(x, cases.package_plan(layout)), packed, padding=1, out=(cases.package_plan(to), step)
    )
    assert (taken() > before) == (tier in TIERS)
    np.testing.assert_array_equal(got.codes(), oracle.quantize_channels(y, to.segment, oracle.a_grids(to), step))


def test_explained(tier):
    """The kernel's name says it, and why."""
    plan = cases.package_plan(oracle.uniform(INPUTS, Grid("bipolar", 4), Grid("bipolar", 4)))
    packed = cases.pack_unit(np.full((8, 3, 3, INPUTS), 7, np.uint8), plan)
    x = np.zeros((1, 20, 20, INPUTS), F32)
    there, not_there = conv.explain(x, packed, padding=1), conv.explain(x, packed, 2)
    assert there.kernel.endswith(", winograd") == (tier in TIERS)
    assert ("16 times for 2 x 2 outputs" in there.reason) == (tier in TIERS)
    assert "winograd" not in not_there.kernel
