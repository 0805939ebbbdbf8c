"""Integer results of matmul: S for every pair of widths and every shape, then grids and segments."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import gemm, isa, packing

F32 = np.float32
ROWS = [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65]
OUTPUTS_AND_K = [(1, 1), (2, 1), (3, 2), (5, 3), (7, 33), (16, 64), (17, 63), (33, 65), (31, 129), (49, 257)]


@functools.cache
def sums_case(w_bits: int, a_bits: int, n: int, k: int):
    """Codes and S for the largest number of rows; fewer rows are its first rows."""
    rng = np.random.default_rng([w_bits, a_bits, n, k])
    layout = cases.sums_layout(k, w_bits, a_bits)
    x, w = cases.x_codes(rng, (max(ROWS), k), layout), cases.w_codes(rng, (n, k), layout)
    return layout, x, w, oracle.matmul(x, w, layout)


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
def test_sums(tier, w_bits, a_bits):
    """S of every shape in the list."""
    for n, k in OUTPUTS_AND_K:
        layout, x, w, sums = sums_case(w_bits, a_bits, n, k)
        plan = cases.package_plan(layout)
        packed = cases.pack_unit(w, plan)
        for m in ROWS:
            cases.assert_same(gemm.matmul(cases.activations(x[:m], plan), packed), sums[:m], (m, n, k))


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
def test_sums_of_two_segments(tier, w_bits, a_bits):
    """This pair of widths as one segment beside another, with one channel and with many."""
    other = (Grid("unsigned", 4), Grid("unsigned", 4)) if (w_bits, a_bits) != (4, 4) else (Grid("unsigned", 2),) * 2
    pairs = ((Grid("unsigned", w_bits), Grid("unsigned", a_bits)), other)
    rng = np.random.default_rng([w_bits, a_bits])
    for m, n, k, own in [(1, 17, 66, 1), (7, 33, 66, 65), (17, 7, 131, 64), (33, 16, 5, 3)]:
        layout = Layout(tuple(int(s) for s in rng.permutation(k) >= own), pairs)
        x, w = cases.x_codes(rng, (m, k), layout), cases.w_codes(rng, (n, k), layout)
        plan = cases.package_plan(layout)
        got = gemm.matmul(cases.activations(x, plan), cases.pack_unit(w, plan))
        cases.assert_same(got, oracle.matmul(x, w, layout), (m, n, k, own))


@functools.lru_cache(maxsize=1)
def large_case(w_bits: int, a_bits: int):
    """Codes and S beyond every block that a driver may cut a product into."""
    rng = np.random.default_rng([w_bits, a_bits])
    layout = cases.sums_layout(4099, w_bits, a_bits)
    x, w = cases.x_codes(rng, (131, 4099), layout), cases.w_codes(rng, (203, 4099), layout)
    sums = x.astype(np.float64) @ w.T.astype(np.float64)  # exact: all sums are below 2^53
    return layout, x, w, sums.astype(np.int64)


@pytest.mark.parametrize(("w_bits", "a_bits"), [(1, 1), (2, 8), (3, 4), (8, 3), (8, 8)])
def test_many_blocks(w_bits, a_bits):
    """A product larger than the caches, odd in every direction, under every tier."""
    layout, x, w, sums = large_case(w_bits, a_bits)
    plan = cases.package_plan(layout)
    packed = cases.pack_unit(w, plan)
    for name in isa.available():
        with isa.use(name):
            cases.assert_same(gemm.matmul(cases.activations(x, plan), packed), sums, name)


# ---- the ends of the range ----------------------------------------------------------------------------------------------


def extreme_codes(rows: int, k: int, grid: Grid) -> np.ndarray:
    """Rows of all-max and all-min codes in turn."""
    codes = np.zeros((rows, k), np.uint8)
    codes[::2] = oracle.cmax(grid)
    return codes


def check_extremes(k: int, w_grid: Grid, a_grid: Grid) -> None:
    """All-max and all-min rows of both operands, at this K."""
    x, w = extreme_codes(5, k, a_grid), extreme_codes(3, k, w_grid)
    plan = cases.package_plan(oracle.uniform(k, w_grid, a_grid))
    corner = oracle.matmul(x[:2, :1], w[:2, :1], oracle.uniform(1, w_grid, a_grid)) * k
    expected = np.tile(corner, (3, 2))[:5, :3]
    assert np.abs(expected).max() <= oracle.INT32_MAX
    cases.assert_same(gemm.matmul(cases.activations(x, plan), cases.pack_unit(w, plan)), expected, (k, w_grid, a_grid))


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
@pytest.mark.parametrize("kind", ["unsigned", "bipolar"])
def test_largest_sums(tier, full, kind, w_bits, a_bits):
    """The largest K the bound allows, or the largest that is handy: where partial sums of any width would overflow."""
    w_grid, a_grid = Grid(kind, w_bits), Grid(kind, a_bits)
    handy = 2_000_003 if full else 70_001
    check_extremes(min(oracle.largest_k(w_grid, a_grid), handy), w_grid, a_grid)


@pytest.mark.parametrize(
    ("w_grid", "a_grid"),
    [
        (Grid("bipolar", 8), Grid("bipolar", 8)),
        (Grid("bipolar", 4), Grid("bipolar", 8)),
        (Grid("bipolar", 8), Grid("unsigned", 5)),
        (Grid("signed", 8), Grid("signed", 8)),
        (Grid("unsigned", 1, 1023), Grid("unsigned", 1, 1023)),
        (Grid("bipolar", 8, -1023), Grid("bipolar", 8, -1023)),
        (Grid("ternary", 2, -1023), Grid("signed", 2, 1023)),
        (Grid("unsigned", 2, 1023), Grid("bipolar", 8)),
    ],
    ids=str,
)
def test_largest_k(tier, w_grid, a_grid):
    """At the bound itself the sums are exact; one channel more is refused by name."""
    k = oracle.largest_k(w_grid, a_grid)
    check_extremes(k, w_grid, a_grid)
    plan = cases.package_plan(oracle.uniform(k + 1, w_grid, a_grid))
    with pytest.raises(ValueError) as refusal:
        cases.pack_unit(np.zeros((1, k + 1), np.uint8), plan)
    message = str(refusal.value).replace(",", "")
    named = {int(number) for number in re.findall(r"\d+", message)}
    assert named >= {k + 1, k, w_grid.bits, a_grid.bits}, message


def test_largest_k_of_two_segments(tier):
    """{1, 8} bits: 16,384*K_low + 65,025*K_high fills int32 from both segments."""
    pairs = tuple((Grid("bipolar", p), Grid("bipolar", p)) for p in (1, 8))
    high = 20_000
    low = (oracle.INT32_MAX - 65_025 * high) // 16_384
    layout = Layout((1,) * high + (0,) * low, pairs)
    assert oracle.INT32_MAX - 16_384 < oracle.bound(layout) <= oracle.INT32_MAX
    top = np.array([1, 255], np.uint8)[list(layout.segment)]
    x, w = np.stack([top, 0 * top]), np.stack([top, 0 * top, top])
    plan = cases.package_plan(layout)
    got = gemm.matmul(cases.activations(x, plan), cases.pack_unit(w, plan))
    cases.assert_same(got, oracle.bound(layout) * np.array([[1, -1, 1], [-1, 1, -1]]))
    wider = Layout((*layout.segment, 0), pairs)
    with pytest.raises(ValueError, match=f"{low + 1}.*{high}"):
        cases.pack_unit(np.zeros((1, low + high + 1), np.uint8), cases.package_plan(wider))


# ---- grids, offsets, shifts, segments -----------------------------------------------------------------------------------

KINDS = ("bipolar", "unsigned", "signed", "ternary")
FACTORS = {
    "w_kind": KINDS,
    "a_kind": KINDS,
    "w_bits": range(1, 9),
    "a_bits": range(1, 9),
    "w_move": [(0, 0), (6, 0), (-9, 1), (1023, 0), (0, -2)],
    "a_move": [(0, 0), (5, 0), (-7, -1), (-1023, 0), (0, 2)],
    "other": [
        None,
        (Grid("bipolar", 1), Grid("unsigned", 2)),
        (Grid("signed", 4, 1), Grid("bipolar", 4, 0, -1)),
        (Grid("ternary", 2, 0, 1), Grid("unsigned", 8, -3)),
    ],
    "own_channels": ["none", "one", "half", "all but one", "all"],
    "m": [1, 2, 5, 17],
    "n": [1, 3, 16, 33],
    "k": [1, 2, 19, 64, 67],
}


def grid_of(kind: str, bits: int, move: tuple[int, int]) -> Grid:
    """The nearest grid that exists: ternary has 2 bits, signed at least 2."""
    bits = {"ternary": 2, "signed": max(2, bits)}.get(kind, bits)
    return Grid(kind, bits, *move)


def layout_of(case: cases.Case) -> Layout:
    """The layout of one case; channels of the two pairs interleave."""
    k = case["k"]
    own = {"none": 0, "one": 1, "half": (k + 1) // 2, "all but one": k - 1, "all": k}[case["own_channels"]]
    pair = (
        grid_of(case["w_kind"], case["w_bits"], case["w_move"]),
        grid_of(case["a_kind"], case["a_bits"], case["a_move"]),
    )
    if case["other"] is None:
        return oracle.uniform(k, *pair)
    order = np.random.default_rng(k).permutation(k)
    return Layout(tuple(int(s) for s in order >= own), (pair, case["other"]))


def fits(case: cases.Case) -> bool:
    """Whether the package may accept the case: distinct bit pairs, sums within int32."""
    layout = layout_of(case)
    precisions = {(layout.pairs[s][0].bits, layout.pairs[s][1].bits) for s in layout.used}
    return len(precisions) == len(layout.used) and oracle.bound(layout) <= oracle.INT32_MAX


FULL = FACTORS | {"w_bits": (1, 2, 3, 8), "a_bits": (1, 4, 8), "m": [5], "n": [3], "k": [19]}


def test_pairs_of_everything(tier, full):
    """Kinds, widths, offsets, shifts, segments and shapes, pairwise (--full: crossed)."""
    for case in cases.cross(FULL, fits) if full else pairwise_cases():
        layout = layout_of(case)
        rng = np.random.default_rng(case["k"])
        x, w = cases.x_codes(rng, (case["m"], case["k"]), layout), cases.w_codes(rng, (case["n"], case["k"]), layout)
        plan = cases.package_plan(layout)
        packed = cases.pack_unit(w, plan)
        cases.assert_same(gemm.matmul(cases.activations(x, plan), packed), oracle.matmul(x, w, layout), case)
        assert packed.exponent == oracle.total_exponent(layout), case


@functools.cache
def pairwise_cases() -> list[cases.Case]:
    """The covering array of FACTORS and random cases beside it, built once."""
    return cases.pairwise(FACTORS, fits) + cases.sampled(FACTORS, 200, fits)


# ---- shapes -------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_any_shape(data):
    """Random shapes, widths and segment patterns, under every tier."""
    m, n, k = (data.draw(st.integers(1, high)) for high in (40, 70, 150))
    bits = data.draw(st.tuples(*[st.integers(1, 8)] * 4))
    assume(bits[:2] != bits[2:])
    pairs = tuple((Grid("bipolar", w), Grid("unsigned", a)) for w, a in (bits[:2], bits[2:]))
    low = data.draw(st.integers(0, k))
    layout = Layout((0,) * low + (1,) * (k - low), pairs)
    rng = np.random.default_rng([m, n, k])
    x, w = cases.x_codes(rng, (m, k), layout), cases.w_codes(rng, (n, k), layout)
    plan, expected = cases.package_plan(layout), oracle.matmul(x, w, layout)
    for name in isa.available():
        with isa.use(name), cases.threads(data.draw(st.integers(1, 3))):
            cases.assert_same(gemm.matmul(cases.activations(x, plan), cases.pack_unit(w, plan)), expected, name)


@pytest.mark.parametrize("shape", [(9,), (1, 9), (2, 3, 9), (2, 1, 4, 9)], ids=str)
def test_leading_dimensions(tier, rng, shape):
    """Everything before K is kept."""
    layout = oracle.uniform(9, Grid("bipolar", 3), Grid("unsigned", 2))
    plan, w = cases.package_plan(layout), cases.w_codes(rng, (4, 9), layout)
    x = cases.x_codes(rng, shape, layout)
    got = gemm.matmul(cases.activations(x, plan), cases.pack_unit(w, plan))
    assert got.dtype == np.int32
    cases.assert_same(got, oracle.matmul(x, w, layout))


def test_float_input_is_quantized_on_the_way_in(tier, rng):
    """float32 x with the packed weights' activation scale equals quantize_activations first."""
    layout = oracle.uniform(33, Grid("bipolar", 3), Grid("unsigned", 4))
    plan, w = cases.package_plan(layout), cases.w_codes(rng, (5, 33), layout)
    x = oracle.values_near(rng, (7, 33), 0.3)
    for scale in (0.3, "per_row"):
        packed = packing.pack(w, plan, np.ones(5, F32), activation_scale=scale)
        factor = F32(0.3) if scale == 0.3 else oracle.row_scale(x, layout, -1)[:, None]
        codes = oracle.quantize(x, Grid("unsigned", 4), factor)
        cases.assert_same(gemm.matmul(x, packed), oracle.matmul(codes, w, layout), scale)


def test_layers_that_share_a_tensor(tier, rng):
    """Only the activation half of a plan must agree: one tensor, two weight widths."""
    a_grid = Grid("unsigned", 4)
    x = cases.random_codes(rng, (5, 21), (0,) * 21, [a_grid])
    acts = cases.activations(x, cases.package_plan(oracle.uniform(21, Grid("bipolar", 1), a_grid)))
    for w_grid in (Grid("bipolar", 1), Grid("signed", 8, 2, 1), Grid("ternary", 2)):
        layout = oracle.uniform(21, w_grid, a_grid)
        w = cases.w_codes(rng, (6, 21), layout)
        got = gemm.matmul(acts, cases.pack_unit(w, cases.package_plan(layout)))
        cases.assert_same(got, oracle.matmul(x, w, layout), w_grid)


def test_no_rows(tier):
    """A batch of nothing gives nothing."""
    plan = packing.Plan.uniform(9, w_bits=2, a_bits=2)
    packed = cases.pack_unit(np.zeros((4, 9), np.uint8), plan)
    assert gemm.matmul(cases.activations(np.zeros((0, 9), np.uint8), plan), packed).shape == (0, 4)


def test_explain_names_what_runs(tier, rng):
    """explain gives tier, family and reason; a fall-back to another tier has a reason."""
    layout = oracle.uniform(64, Grid("bipolar", 2), Grid("unsigned", 4))
    plan = cases.package_plan(layout)
    packed = cases.pack_unit(cases.w_codes(rng, (16, 64), layout), plan)
    explanation = gemm.explain(cases.activations(cases.x_codes(rng, (8, 64), layout), plan), packed)
    assert explanation.isa in isa.available()
    assert explanation.family
    assert explanation.isa in str(explanation)
    assert explanation.family in str(explanation)
    assert explanation.isa == isa.active() or explanation.reason
