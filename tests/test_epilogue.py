"""The float32 steps behind the accumulators, every one and in every pairing, compared as bit patterns."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import oracle
from oracle import Epilogue, Grid, Layout
from soniq_kernels import conv, gemm, isa, packing

F32 = np.float32
LAYERS = {
    "uniform": ((Grid("bipolar", 2), Grid("unsigned", 4)),),
    "moved": ((Grid("signed", 4, 3, -1), Grid("bipolar", 3, -2, 2)),),
    "mixed": ((Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("unsigned", 8, 5))),
}
OUTPUTS = {
    "bipolar": (Grid("bipolar", 4),),
    "unsigned": (Grid("unsigned", 8, -3, 1),),
    "signed": (Grid("signed", 5, 2),),
    "ternary": (Grid("ternary", 2, 0, -1),),
    "mixed": (Grid("bipolar", 2, 1), Grid("unsigned", 6, 0, -2)),
}
W_GRIDS = (Grid("bipolar", 1), Grid("bipolar", 2))  # the weight half of a plan that only describes a tensor
FACTORS = {
    "op": ["linear", "conv2d"],
    "layer": list(LAYERS),
    "a_scale": [0.3, 2.0**-45, 2.0**60, "per_row"],
    "w_scale": ["ordinary", "tiny", "huge"],
    "bias": [False, True],
    "residual": [None, "float", "bipolar", "unsigned", "mixed"],
    "activation": [None, "relu", "relu6", ("hardtanh", -0.3, 0.7)],
    "post_scale": [False, True],
    "post_bias": [False, True],
    "out": [None, *OUTPUTS],
    "also": ["nothing", "nothing", None, *OUTPUTS],
    "n": [1, 2, 15, 16, 33, 130],
}


class Prepared(NamedTuple):
    """One case: what the package gets and what it must give."""

    x: Any
    packed: packing.PackedWeights
    keywords: dict
    outs: list[tuple[Layout, float] | None]
    expected: np.ndarray  # float32, whatever becomes codes


def tensor_layout(name: str, channels: int) -> Layout:
    """The layout of an output or residual tensor; two grids alternate in no simple pattern."""
    grids = OUTPUTS[name]
    segment = np.random.default_rng(channels).integers(0, len(grids), channels)
    return Layout(tuple(int(s) for s in segment), tuple(zip(W_GRIDS, grids, strict=False)))


def weight_scale(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    """float32 [n]: outputs around 1, denormal outputs, or outputs that overflow."""
    factor = {"ordinary": 1.0, "tiny": 2.0**-88, "huge": 2.0**98}[kind]
    return (cases.random_scale(rng, n) * F32(factor)).astype(F32)


def optional_steps(rng: np.random.Generator, case: cases.Case) -> dict:
    """The vectors of the steps that the case has."""
    vectors = {}
    for name, spread in [("bias", 1.0), ("post_scale", 0.5), ("post_bias", 2.0)]:
        vectors[name] = (rng.normal(size=case["n"]) * spread).astype(F32) if case[name] else None
    return vectors


def residual_of(rng: np.random.Generator, case: cases.Case, shape):
    """(what the package gets, what is added): float32, or codes with their plan."""
    name = case["residual"]
    if name is None:
        return None, None
    if name == "float":
        values = oracle.values_near(rng, shape, 0.5)
        return values, values
    layout = tensor_layout(name, case["n"])
    codes = cases.x_codes(rng, shape, layout)
    added = oracle.dequantize(codes, layout.segment, oracle.a_grids(layout), F32(0.11))
    return cases.activations(codes, cases.package_plan(layout), 0.11), added


def layer_input(rng: np.random.Generator, case: cases.Case, layout: Layout, shape):
    """(x for the package, its codes, its scale shaped to broadcast against the output)."""
    if case["a_scale"] != "per_row":
        codes = cases.x_codes(rng, shape, layout)
        return cases.activations(codes, cases.package_plan(layout), case["a_scale"]), codes, F32(case["a_scale"])
    x = rng.normal(size=shape).astype(F32)
    scale = oracle.row_scale(x, layout, -1 if len(shape) == 2 else (1, 2, 3))
    scale = scale.reshape(-1, *[1] * (len(shape) - 1))
    return x, oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), scale), scale


def accumulators(case: cases.Case, codes: np.ndarray, w: np.ndarray, layout: Layout) -> np.ndarray:
    """The oracle's integers of the case's operation."""
    if case["op"] == "linear":
        return oracle.matmul(codes, w, layout)
    return oracle.conv2d(codes, w, layout, padding=(1, 1, 1, 1))


@functools.cache
def prepare(index: int) -> Prepared:
    """The operands and the expected output of one case of the covering array."""
    return prepare_case(pairwise_cases()[index])


def prepare_case(case: cases.Case) -> Prepared:
    """The operands and the expected output of one case."""
    rng = np.random.default_rng(case["n"])
    k, n = 19, case["n"]
    pairs = LAYERS[case["layer"]]
    layout = Layout(tuple(int(s) for s in rng.integers(0, len(pairs), k)), pairs)
    x_shape, w_shape, y_shape = (
        ((5, k), (n, k), (5, n)) if case["op"] == "linear" else ((2, 3, 2, k), (n, 3, 3, k), (2, 3, 2, n))
    )
    x, codes, a_scale = layer_input(rng, case, layout, x_shape)
    w, w_scale = cases.w_codes(rng, w_shape, layout), weight_scale(rng, case["w_scale"], n)
    vectors = optional_steps(rng, case)
    residual, added = residual_of(rng, case, y_shape)
    steps = Epilogue(w_scale, residual=added, activation=case["activation"], **vectors)
    expected = oracle.epilogue(accumulators(case, codes, w, layout), a_scale, oracle.total_exponent(layout), steps)
    keywords = {"residual": residual, "activation": case["activation"]}
    if case["op"] == "conv2d":
        keywords["padding"] = 1
    names = [case["out"]] + ([] if case["also"] == "nothing" else [case["also"]])
    outs = [None if name is None else (tensor_layout(name, n), 0.21 + i) for i, name in enumerate(names)]
    wanted = [None if out is None else (cases.package_plan(out[0]), out[1]) for out in outs]
    keywords["out"] = wanted[0] if len(wanted) == 1 else wanted
    packed = packing.pack(w, cases.package_plan(layout), w_scale, activation_scale="per_row", **vectors)
    return Prepared(x, packed, keywords, outs, expected)


@functools.cache
def pairwise_cases() -> list[cases.Case]:
    """Covering arrays of FACTORS, one for float32 outputs and one for codes, and random cases beside them."""
    floats, codes = FACTORS | {"out": [None]}, FACTORS | {"out": list(OUTPUTS)}
    return cases.pairwise(floats) + cases.pairwise(codes) + cases.sampled(floats, 150) + cases.sampled(codes, 100)


def check(prepared: Prepared, op: str, case: object) -> None:
    """Run one case; codes come out as Activations of the plan and scale that were asked for, a list as a list."""
    call = {"linear": gemm.linear, "conv2d": conv.conv2d}[op]
    got = call(prepared.x, prepared.packed, **prepared.keywords)
    got = [got] if len(prepared.outs) == 1 else got
    for y, out in zip(got, prepared.outs, strict=True):
        if out is None:
            cases.assert_same_bits(y, prepared.expected, case)
            continue
        layout, scale = out
        assert isinstance(y, packing.Activations)
        assert y.plan == cases.package_plan(layout)
        cases.assert_same_bits(y.scale, np.array(scale, F32), case)
        codes = oracle.quantize_channels(prepared.expected, layout.segment, oracle.a_grids(layout), F32(scale))
        cases.assert_same(y.codes(), codes, case)


def test_pairs_of_steps(tier):
    """Every two values of every two factors."""
    for index, case in enumerate(pairwise_cases()):
        check(prepare(index), case["op"], case)


def test_cross_of_steps(tier, full):
    """Every combination of steps (--full), at one size and scale for each."""
    if not full:
        pytest.skip("the full cross runs with --full")
    fixed = {"n": [17], "layer": ["mixed"], "w_scale": ["ordinary", "tiny"], "a_scale": [0.3, "per_row"]}
    for case in cases.cross(FACTORS | fixed | {"also": ["nothing", "mixed"]}):
        check(prepare_case(case), case["op"], case)


# ---- single steps, where the pairing may miss a corner ------------------------------------------------------------------


def identity_layer(n: int, **steps):
    """Weights of one channel and level 1: acc[m, n] is the level of x[m]."""
    plan = packing.Plan.uniform(1, w_bits=1, a_bits=8, w_grid="unsigned", a_grid="bipolar")
    return plan, packing.pack(np.ones((n, 1), np.uint8), plan, np.ones(n, F32), **steps)


def rising_input(plan: packing.Plan) -> packing.Activations:
    """256 rows, levels -255 ... 255, scale so that acc * a_scale is the level itself."""
    return cases.activations(np.arange(256, dtype=np.uint8)[:, None], plan, 2.0**7)


LEVELS = np.arange(-255, 256, 2, dtype=np.int64)[:, None]


def special_residual(n: int) -> np.ndarray:
    """float32 [256, n] with every kind of float32 in it."""
    patterns = np.arange(256 * n, dtype=np.uint64) * (2**32 // (256 * n) + 1) % 2**32
    return patterns.astype(np.uint32).view(F32).reshape(256, n)


@pytest.mark.parametrize(
    "activation", [None, "relu", "relu6", ("hardtanh", -1.0, 1.0), ("hardtanh", 0.0, 0.0)], ids=str
)
def test_special_values_through_activations(tier, activation):
    """NaN, infinities, denormals and zeros of both signs enter by the residual, with check_finite=False."""
    plan, packed = identity_layer(37)
    residual = special_residual(37)
    y = gemm.linear(rising_input(plan), packed, residual=residual, activation=activation, check_finite=False)
    steps = Epilogue(np.ones(37, F32), residual=residual, activation=activation)
    cases.assert_same_bits(y, oracle.epilogue(LEVELS * np.ones((1, 37), np.int64), 1.0, 0, steps))


def test_special_values_into_codes(tier):
    """The one quantizer at the end of the epilogue: NaN is code 0, infinities are the ends."""
    plan, packed = identity_layer(37)
    residual = special_residual(37)
    steps = Epilogue(np.ones(37, F32), residual=residual)
    y = oracle.epilogue(LEVELS * np.ones((1, 37), np.int64), 1.0, 0, steps)
    for grid in (Grid("bipolar", 3, 1), Grid("unsigned", 8), Grid("signed", 4, 0, -2), Grid("ternary", 2)):
        out = cases.package_plan(oracle.uniform(37, W_GRIDS[0], grid))
        got = gemm.linear(rising_input(plan), packed, residual=residual, out=(out, 0.7), check_finite=False)
        cases.assert_same(got.codes(), oracle.quantize(y, grid, F32(0.7)), grid)


def test_large_accumulators_round_to_nearest_even(tier):
    """int32 -> float32 beyond 2^24: ties to even, both signs."""
    grid = Grid("unsigned", 8, 1023)
    layout = oracle.uniform(1200, Grid("bipolar", 8), grid)
    rng = np.random.default_rng(3)
    x, w = cases.x_codes(rng, (65, 1200), layout), cases.w_codes(rng, (33, 1200), layout)
    w[::2], w[1::2] = w[::2] | 0x80, w[1::2] & 0x7F
    acc = oracle.matmul(x, w, layout)
    assert np.abs(acc).max() > 2**26
    packed = packing.pack(w, cases.package_plan(layout), np.ones(33, F32))
    y = gemm.linear(cases.activations(x, packed.plan, 1.0), packed)
    cases.assert_same_bits(y, oracle.epilogue(acc, 1.0, oracle.total_exponent(layout), Epilogue(np.ones(33, F32))))


def test_denormal_results_are_kept(tier):
    """No flush to zero: products below 2^-126 and sums of denormals keep their bits."""
    plan, packed = identity_layer(5)
    packed = packing.pack(np.ones((5, 1), np.uint8), plan, np.full(5, 2.0**-40, F32), np.full(5, 1e-44, F32))
    acts = cases.activations(np.arange(256, dtype=np.uint8)[:, None], plan, 2.0**-93)
    y = gemm.linear(acts, packed)
    steps = Epilogue(np.full(5, 2.0**-40, F32), bias=np.full(5, 1e-44, F32))
    expected = oracle.epilogue(LEVELS * np.ones((1, 5), np.int64), F32(2.0**-93), -7, steps)
    assert np.all(np.abs(expected) < 2.0**-126)
    assert np.all(expected != 0)
    cases.assert_same_bits(y, expected)


def test_signs_of_zero(tier):
    """0 * negative scale is -0, and only an existing bias turns it into +0."""
    layout = oracle.uniform(2, Grid("bipolar", 1), Grid("bipolar", 1))
    w, x = np.array([[0, 1], [0, 1]], np.uint8), np.array([[1, 1]], np.uint8)
    scale, zero = np.array([1, -1], F32), np.zeros(2, F32)
    plan = cases.package_plan(layout)
    acts = cases.activations(x, plan)
    cases.assert_same_bits(gemm.linear(acts, packing.pack(w, plan, scale)), np.array([[0.0, -0.0]], F32))
    cases.assert_same_bits(gemm.linear(acts, packing.pack(w, plan, scale, zero)), np.array([[0.0, 0.0]], F32))
    cases.assert_same_bits(gemm.linear(acts, packing.pack(w, plan, scale, -zero)), np.array([[0.0, -0.0]], F32))


def test_products_and_sums_are_not_fused(tier, rng):
    """Scales and biases chosen so that a fused multiply-add gives other bits in most outputs."""
    n = 64
    scale, bias = rng.normal(size=(2, n)).astype(F32)
    layout = oracle.uniform(9, Grid("bipolar", 4), Grid("unsigned", 4))
    x, w = cases.x_codes(rng, (17, 9), layout), cases.w_codes(rng, (n, 9), layout)
    steps = Epilogue(scale, bias, post_scale=bias, post_bias=scale)
    plan, acc = cases.package_plan(layout), oracle.matmul(x, w, layout)
    expected = oracle.epilogue(acc, F32(0.3), -6, steps)
    t = (acc.astype(F32) * (F32(0.3) * F32(2.0**-6))).astype(np.float64)
    fused = (t * scale.astype(np.float64) + bias.astype(np.float64)).astype(F32)
    separate = oracle.epilogue(acc, F32(0.3), -6, Epilogue(scale, bias))
    assert np.any(cases.as_bits(fused) != cases.as_bits(separate))
    packed = packing.pack(w, plan, scale, bias, post_scale=bias, post_bias=scale)
    cases.assert_same_bits(gemm.linear(cases.activations(x, plan, 0.3), packed), expected)


def test_codes_feed_the_next_layer(tier, rng):
    """Codes out of one layer go into the next without a float in between: two layers, one plan between them."""
    inner = Layout(
        (0, 1, 1, 0, 1, 0, 0), ((Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("bipolar", 4)))
    )
    first = oracle.uniform(5, Grid("bipolar", 2), Grid("bipolar", 8))
    x, w1, w2 = cases.x_codes(rng, (6, 5), first), cases.w_codes(rng, (7, 5), first), cases.w_codes(rng, (3, 7), inner)
    s1, s2 = cases.random_scale(rng, 7), cases.random_scale(rng, 3)
    hidden = oracle.epilogue(oracle.matmul(x, w1, first), F32(1), oracle.total_exponent(first), Epilogue(s1))
    codes = oracle.quantize_channels(hidden, inner.segment, oracle.a_grids(inner), F32(0.05))
    acc = oracle.matmul(codes, w2, inner)
    expected = oracle.epilogue(acc, F32(0.05), oracle.total_exponent(inner), Epilogue(s2))
    plan, inner_plan = cases.package_plan(first), cases.package_plan(inner)
    middle = gemm.linear(cases.activations(x, plan), packing.pack(w1, plan, s1), out=(inner_plan, 0.05))
    cases.assert_same_bits(gemm.linear(middle, packing.pack(w2, inner_plan, s2)), expected)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (2, 1, 4, 7)], ids=str)
def test_leading_dimensions(tier, rng, shape):
    """Input, residual and output share everything before the channels, for floats and for codes."""
    layout = oracle.uniform(7, Grid("bipolar", 3), Grid("unsigned", 5))
    out = cases.package_plan(oracle.uniform(5, W_GRIDS[0], Grid("bipolar", 4)))
    x, w, scale = cases.x_codes(rng, shape, layout), cases.w_codes(rng, (5, 7), layout), cases.random_scale(rng, 5)
    residual = rng.normal(size=(*shape[:-1], 5)).astype(F32)
    acts = cases.activations(x, cases.package_plan(layout))
    packed = packing.pack(w, acts.plan, scale)
    expected = oracle.epilogue(oracle.matmul(x, w, layout), 1.0, -6, Epilogue(scale, residual=residual))
    cases.assert_same_bits(gemm.linear(acts, packed, residual=residual), expected)
    coded = gemm.linear(acts, packed, residual=residual, out=(out, 0.1))
    cases.assert_same(coded.codes(), oracle.quantize(expected, Grid("bipolar", 4), 0.1))
    cases.assert_same_bits(
        gemm.linear(acts, packed, residual=coded), gemm.linear(acts, packed, residual=coded.dequantize())
    )


def test_residual_codes_with_a_scale_per_row(tier, rng):
    """Each row of residual codes has its own scale; added right, or refused."""
    plan, packed = identity_layer(9)
    residual = packing.quantize_activations(
        rng.normal(size=(256, 9)).astype(F32), packing.Plan.uniform(9, 1, 6), "per_row"
    )
    expected = gemm.linear(rising_input(plan), packed, residual=residual.dequantize())
    try:
        got = gemm.linear(rising_input(plan), packed, residual=residual)
    except ValueError:
        return
    cases.assert_same_bits(got, expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_any_scales(seed, m, n):
    """Scales and biases of any magnitude, under every tier."""
    rng = np.random.default_rng(seed)
    layout = oracle.uniform(7, Grid("bipolar", 3), Grid("unsigned", 5))
    x, w = cases.x_codes(rng, (m, 7), layout), cases.w_codes(rng, (n, 7), layout)
    w_scale, bias = (rng.normal(size=(2, n)) * 2.0 ** rng.integers(-90, 90, (2, n))).astype(F32)
    a_scale = F32(2.0 ** rng.uniform(-99, 99))
    expected = oracle.epilogue(oracle.matmul(x, w, layout), a_scale, -6, Epilogue(w_scale, bias))
    plan = cases.package_plan(layout)
    for name in isa.available():
        with isa.use(name), cases.threads(1 + seed % 3):
            y = gemm.linear(cases.activations(x, plan, a_scale), packing.pack(w, plan, w_scale, bias))
            cases.assert_same_bits(y, expected, name)
