"""Grids, plans, and the way of codes into packed weights and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import conv, gemm, isa, packing

F32 = np.float32
KINDS = [("bipolar", 1), ("unsigned", 1), ("signed", 2)]
GRIDS = [Grid(kind, bits) for kind, least in KINDS for bits in range(least, 9)] + [Grid("ternary", 2)]
TWO_PAIRS = ((Grid("bipolar", 2), Grid("unsigned", 3)), (Grid("bipolar", 6), Grid("unsigned", 5)))


# ---- grids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", GRIDS, ids=str)
def test_grid_properties(base):
    """alpha, beta, exponent, ends and quantizer of every grid, moved and unmoved."""
    for offset, shift in [(0, 0), (7, 2), (-9, -1), (1023, 6), (-1023, -6)]:
        grid = base._replace(offset=offset, shift=shift)
        packed = cases.package_grid(grid)
        levels = packed.alpha * np.arange(packed.cmax + 1) + packed.beta
        cases.assert_same(levels, oracle.levels(grid), grid)
        assert packed.exponent == oracle.exponent(grid)
        assert (packed.min_level, packed.max_level) == (levels[0], levels[-1])


@pytest.mark.parametrize("base", GRIDS, ids=str)
def test_grid_quantizer(base):
    """r and z, at ordinary and extreme scales."""
    for offset, shift in [(0, 0), (7, 2), (-1023, -6)]:
        grid = base._replace(offset=offset, shift=shift)
        for scale in (1.0, 0.37, 3.1, 2.0**-100, 2.0**100):
            r, z = cases.package_grid(grid).quantizer(scale)
            cases.assert_same_bits(np.array([r, z], F32), np.array(oracle.quantizer(grid, scale), F32), (grid, scale))


# ---- plans --------------------------------------------------------------------------------------------------------------


def check_plan(plan: packing.Plan, layout: Layout, low_first: list[int]) -> None:
    """The plan's segments are the layout's used pairs in the given order; the permutation is stable inside each."""
    expected = [layout.pairs[s] for s in low_first]
    shown = [(segment.w, segment.a) for segment in plan.segments]
    assert shown == [(cases.package_grid(w), cases.package_grid(a)) for w, a in expected]
    where = [np.flatnonzero(np.array(layout.segment) == s) for s in low_first]
    assert [segment.channels for segment in plan.segments] == [len(w) for w in where]
    cases.assert_same(plan.permutation, np.concatenate(where))
    cases.assert_same(plan.segment_of(), np.array([low_first.index(s) for s in layout.segment]))
    assert plan.exponent == oracle.total_exponent(layout)
    assert plan.channels == layout.channels


@pytest.mark.parametrize(
    ("first", "second", "low_first"),
    [
        ((2, 2), (4, 4), [0, 1]),
        ((4, 4), (2, 2), [1, 0]),
        ((1, 8), (3, 2), [1, 0]),
        ((4, 1), (1, 4), [1, 0]),
        ((2, 8), (4, 4), [0, 1]),
    ],
)
def test_low_segment_has_the_smaller_product(first, second, low_first):
    """Smaller w_bits*a_bits first; a tie goes to the smaller w_bits."""
    pairs = tuple((Grid("bipolar", w), Grid("unsigned", a)) for w, a in (first, second))
    layout = Layout((0, 1, 1, 0, 1, 0, 0), pairs)
    check_plan(cases.package_plan(layout), layout, low_first)


@pytest.mark.parametrize("only", [0, 1])
def test_pair_without_channels_vanishes(only):
    """Two pairs given, one of them empty: a uniform plan."""
    layout = Layout((only,) * 5, TWO_PAIRS)
    plan = cases.package_plan(layout)
    check_plan(plan, layout, [only])
    assert plan == cases.package_plan(Layout((0,) * 5, (TWO_PAIRS[only],)))


def test_uniform_is_the_general_form():
    """Plan.uniform names its arguments as the general form spells them."""
    plan = packing.Plan.uniform(
        9, w_bits=3, a_bits=5, w_grid="signed", a_grid="bipolar", offset=4, shift=-1, w_offset=-2, w_shift=3
    )
    layout = oracle.uniform(9, Grid("signed", 3, -2, 3), Grid("bipolar", 5, 4, -1))
    check_plan(plan, layout, [0])
    assert plan == cases.package_plan(layout)
    assert hash(plan) == hash(cases.package_plan(layout))


def test_defaults_of_uniform():
    """Bipolar weights, unsigned activations."""
    plan = packing.Plan.uniform(3, w_bits=2, a_bits=4)
    check_plan(plan, oracle.uniform(3, Grid("bipolar", 2), Grid("unsigned", 4)), [0])


def test_mixed_is_the_general_form():
    """Plan.mixed from one vector of bits, from two, and with a pair (low, high) for a knob."""
    bits = np.array([4, 2, 2, 4, 2])
    layout = Layout(
        (1, 0, 0, 1, 0), ((Grid("bipolar", 2), Grid("unsigned", 2)), (Grid("bipolar", 4), Grid("unsigned", 4)))
    )
    check_plan(packing.Plan.mixed(bits), layout, [0, 1])
    assert packing.Plan.mixed(w_bits=bits, a_bits=bits) == packing.Plan.mixed(bits)
    a_bits = np.array([8, 3, 3, 8, 3])
    plan = packing.Plan.mixed(w_bits=bits, a_bits=a_bits, offset=(1, -2), shift=3, w_offset=5, w_shift=(0, -1))
    low = (Grid("bipolar", 2, 5, 0), Grid("unsigned", 3, 1, 3))
    high = (Grid("bipolar", 4, 5, -1), Grid("unsigned", 8, -2, 3))
    check_plan(plan, layout._replace(pairs=(low, high)), [0, 1])


def test_mixed_of_one_value_is_uniform():
    """One distinct precision: one segment, equal to Plan.uniform."""
    assert packing.Plan.mixed(np.full(6, 3)) == packing.Plan.uniform(6, w_bits=3, a_bits=3)


def test_plans_compare_by_value():
    """Equal when everything is equal, and usable as keys."""
    plan = packing.Plan.mixed(np.array([2, 4, 4]))
    assert plan == packing.Plan.mixed(np.array([2, 4, 4]))
    assert len({plan, packing.Plan.mixed(np.array([2, 4, 4]))}) == 1
    assert plan != packing.Plan.mixed(np.array([4, 2, 4]))
    assert plan != packing.Plan.mixed(np.array([2, 4, 4]), offset=1)


def test_plans_are_immutable():
    """Neither attributes nor the permutation can be written."""
    plan = packing.Plan.mixed(np.array([4, 2, 4]))
    with pytest.raises(AttributeError):
        plan.channels = 4
    with pytest.raises(ValueError):
        plan.permutation[0] = 0


# ---- packing ------------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1), (3, 1), (1, 7), (5, 9), (17, 63), (8, 64), (3, 65), (33, 130)]
CONV_SHAPES = [(1, 1, 1, 1), (4, 3, 3, 5), (6, 1, 7, 2), (2, 5, 2, 33)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_survive_packing(tier, rng, grid):
    """codes() returns what pack took, any width, any shape."""
    for shape in SHAPES + CONV_SHAPES:
        layout = oracle.uniform(shape[-1], grid, Grid("unsigned", 4))
        codes = cases.w_codes(rng, shape, layout)
        packed = cases.pack_unit(codes, cases.package_plan(layout))
        cases.assert_same(packed.codes(), codes, shape)
        assert packed.codes().dtype == np.uint8
        assert packed.shape == shape
        assert packed.out_channels == shape[0]


@pytest.mark.parametrize("shape", [(7, 11), (1, 2), (6, 3, 2, 11), (4, 1, 1, 5)], ids=str)
def test_codes_of_two_segments_survive_packing(tier, rng, shape):
    """Original channel order comes back, also from a segment of one channel."""
    for segment in ([1, *[0] * (shape[-1] - 1)], [0, *[1] * (shape[-1] - 1)], list(np.arange(shape[-1]) % 2)):
        layout = Layout(tuple(int(s) for s in segment), TWO_PAIRS)
        codes = cases.w_codes(rng, shape, layout)
        cases.assert_same(cases.pack_unit(codes, cases.package_plan(layout)).codes(), codes, segment)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_codes_of_groups_survive_packing(tier, rng, groups):
    """Each group has its own mixture of the two segments; depthwise included."""
    layout = Layout((1, 0, 0, 1, 1, 0), TWO_PAIRS)
    codes = cases.w_codes(rng, (12, 3, 3, 6 // groups), layout)
    packed = cases.pack_unit(codes, cases.package_plan(layout))
    cases.assert_same(packed.codes(), codes)
    assert packed.groups == groups


def test_one_tier_reads_what_another_packed(rng):
    """Packed weights belong to no tier: pack, codes() and matmul each under its own."""
    layout = Layout(tuple(int(s) for s in rng.integers(0, 2, 67)), TWO_PAIRS)
    plan = cases.package_plan(layout)
    w, x = cases.w_codes(rng, (19, 67), layout), cases.x_codes(rng, (5, 67), layout)
    for writer in isa.available():
        with isa.use(writer):
            packed, acts = cases.pack_unit(w, plan), cases.activations(x, plan)
        for reader in isa.available():
            with isa.use(reader):
                cases.assert_same(packed.codes(), w, (writer, reader))
                cases.assert_same(gemm.matmul(acts, packed), oracle.matmul(x, w, layout), (writer, reader))


def test_dequantize(rng):
    """level * (2^e * scale), one rounding."""
    pairs = ((Grid("signed", 2, 3, 1), Grid("unsigned", 3)), (Grid("bipolar", 6, -5), Grid("unsigned", 5)))
    layout = Layout((0, 1, 1, 0, 1), pairs)
    codes, scale = cases.w_codes(rng, (6, 5), layout), cases.random_scale(rng, 6)
    packed = packing.pack(codes, cases.package_plan(layout), scale)
    expected = oracle.dequantize(codes, layout.segment, oracle.w_grids(layout), scale[:, None])
    cases.assert_same_bits(packed.dequantize(), expected)


def test_dequantize_of_groups(rng):
    """Weights OHWI whose groups mix the segments differently."""
    layout = Layout((1, 0, 0, 1), TWO_PAIRS)
    codes, scale = cases.w_codes(rng, (4, 2, 3, 2), layout), cases.random_scale(rng, 4)
    packed = packing.pack(codes, cases.package_plan(layout), scale)
    column = scale[:, None, None, None]
    parts = zip(np.split(codes, 2), np.split(column, 2), [(1, 0), (0, 1)], strict=True)
    expected = [oracle.dequantize(c, segment, oracle.w_grids(layout), s) for c, s, segment in parts]
    cases.assert_same_bits(packed.dequantize(), np.concatenate(expected))


def test_attributes_are_what_was_packed(rng):
    """Scales and biases keep their bits."""
    scale, bias, post_scale, post_bias = rng.normal(size=(4, 5)).astype(F32)
    plan = packing.Plan.uniform(3, w_bits=2, a_bits=2)
    packed = packing.pack(
        np.zeros((5, 3), np.uint8), plan, scale, bias, activation_scale=0.3, post_scale=post_scale, post_bias=post_bias
    )
    for got, expected in [(packed.scale, scale), (packed.bias, bias), (packed.post_scale, post_scale)]:
        cases.assert_same_bits(got, expected)
    cases.assert_same_bits(packed.post_bias, post_bias)
    assert packed.plan == plan
    assert F32(packed.activation_scale) == F32(0.3)
    assert packed.exponent == plan.exponent


def test_portable_size_is_bits_times_weights():
    """A plane costs one bit a weight and nothing more."""
    size = [
        cases.pack_unit(np.zeros((16, 72), np.uint8), packing.Plan.uniform(72, w_bits=p, a_bits=8)).nbytes
        for p in range(1, 9)
    ]
    assert np.diff(size).tolist() == [16 * 72 // 8] * 7


def test_packing_copies_its_input(rng):
    """Writing to the caller's arrays afterwards changes nothing."""
    codes, scale = rng.integers(0, 4, (5, 9)).astype(np.uint8), np.ones(5, F32)
    packed = packing.pack(codes, packing.Plan.uniform(9, w_bits=2, a_bits=2), scale)
    before = codes.copy()
    codes[:], scale[:] = 0, 7
    cases.assert_same(packed.codes(), before)
    cases.assert_same_bits(packed.scale, np.ones(5, F32))


def test_without_portable_copy(rng):
    """drop_portable keeps the kernels' panels; what needs the planes says that they are gone."""
    layout = oracle.uniform(9, Grid("bipolar", 2), Grid("bipolar", 2))
    plan = cases.package_plan(layout)
    w, x = cases.w_codes(rng, (5, 9), layout), cases.x_codes(rng, (3, 9), layout)
    packed = cases.pack_unit(w, plan)
    packed.drop_portable()
    cases.assert_same(gemm.matmul(cases.activations(x, plan), packed), oracle.matmul(x, w, layout))
    for call in (
        packed.codes,
        packed.dequantize,
        lambda: packed.at_bits(1),
        lambda: packed.save("nowhere.safetensors"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"(?i)portable|dropped"):
            call()


@given(st.data())
def test_any_shape_survives(data):
    """Random shapes, widths and segment patterns, under every tier."""
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 90)))
    bits = data.draw(st.tuples(*[st.integers(1, 8)] * 4).filter(lambda b: b[:2] != b[2:]))
    pairs = tuple((Grid("bipolar", w), Grid("unsigned", a)) for w, a in (bits[:2], bits[2:]))
    layout = Layout(tuple(data.draw(st.lists(st.integers(0, 1), min_size=shape[1], max_size=shape[1]))), pairs)
    codes = cases.w_codes(np.random.default_rng(shape), shape, layout)
    for name in isa.available():
        with isa.use(name):
            cases.assert_same(cases.pack_unit(codes, cases.package_plan(layout)).codes(), codes, name)


# ---- fewer bits from one file -------------------------------------------------------------------------------------------


def test_at_bits(tier, rng):
    """min(q, p) bits per segment: high bits of each code, same scale, and kernels that agree with it."""
    pairs = ((Grid("bipolar", 3), Grid("unsigned", 2)), (Grid("bipolar", 8, 0, -1), Grid("unsigned", 4)))
    layout = Layout((0, 1, 1, 0, 1, 0, 0), pairs)
    w, x, scale = cases.w_codes(rng, (6, 7), layout), cases.x_codes(rng, (4, 7), layout), cases.random_scale(rng, 6)
    packed = packing.pack(w, cases.package_plan(layout), scale)
    for q in range(1, 9):
        kept = [w_grid._replace(bits=min(q, w_grid.bits)) for w_grid in oracle.w_grids(layout)]
        fewer = Layout(layout.segment, tuple(zip(kept, oracle.a_grids(layout), strict=True)))
        drop = np.array([old.bits - new.bits for old, new in zip(oracle.w_grids(layout), kept, strict=True)])
        codes = w >> drop[list(layout.segment)].astype(np.uint8)
        part = packed.at_bits(q)
        cases.assert_same(part.codes(), codes, q)
        cases.assert_same_bits(part.scale, scale, q)
        cases.assert_same(gemm.matmul(cases.activations(x, part.plan), part), oracle.matmul(x, codes, fewer), q)
        assert part.exponent == oracle.total_exponent(fewer)


def test_at_bits_accepts_the_same_activations(rng):
    """The activation half of a plan belongs to the tensor: fewer weight bits read the same Activations."""
    layout = Layout((0, 1, 0), ((Grid("bipolar", 2), Grid("unsigned", 2)), (Grid("bipolar", 5), Grid("unsigned", 4))))
    w, x = cases.w_codes(rng, (3, 3), layout), cases.x_codes(rng, (2, 3), layout)
    packed = cases.pack_unit(w, cases.package_plan(layout))
    fewer = Layout(
        layout.segment, ((Grid("bipolar", 2), Grid("unsigned", 2)), (Grid("bipolar", 3), Grid("unsigned", 4)))
    )
    expected = oracle.matmul(x, w >> np.array([0, 2, 0], np.uint8), fewer)
    cases.assert_same(gemm.matmul(cases.activations(x, packed.plan), packed.at_bits(3)), expected)


def test_at_bits_takes_the_scale_of_that_width(rng):
    """scales_at_bits holds one vector per width; other widths keep the full scale."""
    codes, scale, two = rng.integers(0, 256, (4, 5)).astype(np.uint8), *rng.normal(size=(2, 4)).astype(F32)
    packed = packing.pack(codes, packing.Plan.uniform(5, w_bits=8, a_bits=8), scale, scales_at_bits={2: two})
    cases.assert_same_bits(packed.at_bits(2).scale, two)
    cases.assert_same_bits(packed.at_bits(3).scale, scale)
    cases.assert_same_bits(packed.scale, scale)


def test_at_bits_of_some_channels(tier, rng):
    """Only those channels lose planes; scale and bias lie between the widths, by the share of the channels of a group."""
    full, two = rng.normal(size=(2, 2, 6)).astype(F32)
    layout = Layout((0,) * 8, ((Grid("bipolar", 8), Grid("unsigned", 4)),))
    w, x = cases.w_codes(rng, (6, 1, 1, 4), layout), cases.x_codes(rng, (1, 2, 2, 8), layout)  # two groups
    packed = packing.pack(
        w, cases.package_plan(layout), full[0], full[1], scales_at_bits={2: two[0]}, biases_at_bits={2: two[1]}
    )
    low = np.array([True, False, False, False, True, True, False, True])
    part = packed.at_bits(2, low)
    share = np.repeat([0.25, 0.75], 3)
    for got, (a, b) in zip((part.scale, part.bias), zip(full, two, strict=True), strict=True):
        cases.assert_same_bits(got, (a.astype(np.float64) * (1 - share) + b.astype(np.float64) * share).astype(F32))
    codes = w >> (6 * np.where(np.arange(6)[:, None] < 3, low[:4], low[4:])).astype(np.uint8)[:, None, None]
    cases.assert_same(part.codes(), codes)
    fewer = Layout(tuple(1 - low.astype(int)), ((Grid("bipolar", 2), layout.pairs[0][1]), layout.pairs[0]))
    cases.assert_same(conv.conv2d_int32(cases.activations(x, part.plan), part), oracle.conv2d(x, codes, fewer))
    none = packed.at_bits(2, np.zeros(8, bool))
    cases.assert_same_bits(none.scale, packed.scale)
    cases.assert_same(none.codes(), w)


@pytest.mark.parametrize(
    "grid", [Grid("unsigned", 4), Grid("signed", 4), Grid("ternary", 2), Grid("bipolar", 4, 1)], ids=str
)
def test_at_bits_refuses_other_grids(grid):
    """Dropping planes is rounding on the bipolar grid without offset only."""
    plan = cases.package_plan(oracle.uniform(3, grid, Grid("unsigned", 4)))
    with pytest.raises(ValueError, match=r"(?i)bipolar"):
        cases.pack_unit(np.zeros((2, 3), np.uint8), plan).at_bits(1)


# ---- float weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [*GRIDS, Grid("bipolar", 4, 3, 1), Grid("signed", 4, -2, -2)], ids=str)
def test_quantize_weights_at_a_given_scale(rng, grid):
    """Codes by the one quantizer, one scale per output channel."""
    layout = oracle.uniform(13, grid, Grid("unsigned", 4))
    w, scale = oracle.values_near(rng, (7, 13), 0.1), (np.abs(rng.normal(size=7)) * 0.1 + 0.01).astype(F32)
    packed = packing.quantize_weights(w, cases.package_plan(layout), scale)
    cases.assert_same(packed.codes(), oracle.quantize_weights(w, layout, scale))
    cases.assert_same_bits(packed.scale, scale)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 2, 5), (10, 3, 3, 1)], ids=str)
def test_quantize_weights_of_two_segments(rng, shape):
    """Each channel on its segment's grid, for matrices, convolutions and depthwise; a scalar scale serves all outputs."""
    layout = Layout((1, 0, 0, 1, 0), TWO_PAIRS)
    w = oracle.values_near(rng, shape, 0.1)
    packed = packing.quantize_weights(w, cases.package_plan(layout), 0.1)
    scale = np.full(shape[0], 0.1, F32)
    cases.assert_same(packed.codes(), oracle.quantize_weights(w, layout, scale))
    cases.assert_same_bits(packed.scale, scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_default_weight_scale(rng, grid):
    """amax/2 on the bipolar grid, amax over the largest level value elsewhere, 1 for a channel of zeros."""
    if oracle.level(grid, oracle.cmax(grid)) <= 0:
        pytest.skip("the grid has no positive value")
    layout = oracle.uniform(9, grid, Grid("unsigned", 4))
    w = rng.normal(size=(6, 9)).astype(F32)
    w[2] = 0
    packed = packing.quantize_weights(w, cases.package_plan(layout))
    amax = np.abs(w).max(axis=1)
    largest = F32(oracle.level(grid, oracle.cmax(grid)) * 2.0 ** oracle.exponent(grid))
    scale = np.where(amax == 0, F32(1), amax / (F32(2) if grid.kind == "bipolar" else largest))
    cases.assert_same_bits(packed.scale, scale)
    cases.assert_same(packed.codes(), oracle.quantize_weights(w, layout, scale))
