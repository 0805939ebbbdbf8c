"""Operations between layers against the oracle: every pair of grids, two segments on either side, every tier, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import ops, packing, tensors

F32 = np.float32
W_GRIDS = (Grid("bipolar", 1), Grid("bipolar", 2))  # the weight half of a plan that only describes a tensor
TENSORS = {
    "bipolar": (Grid("bipolar", 4),),
    "bytes": (Grid("bipolar", 8, 3),),
    "unsigned": (Grid("unsigned", 8, -3, 1),),
    "signed": (Grid("signed", 5, 2),),
    "ternary": (Grid("ternary", 2, 0, -1),),
    "mixed": (Grid("bipolar", 2, 1), Grid("unsigned", 6, 0, -2)),
    "far apart": (Grid("unsigned", 1, 1023, 6), Grid("bipolar", 8, -1023, -6)),
}
# About the ends of a run of 32, of eight at once, and of a chunk of 256.
CHANNELS = [1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 255, 256, 257, 300]
ACTIVATIONS = [None, "relu", "relu6", ("hardtanh", -0.3, 0.7)]


def layout_of(name: str, channels: int, seed: int = 0) -> Layout:
    """A tensor's layout; two grids alternate in no simple pattern, and both are there if there is room."""
    grids = TENSORS[name]
    segment = np.random.default_rng([channels, seed]).integers(0, len(grids), channels)
    segment[:1], segment[-1:] = 0, len(grids) - 1
    return Layout(tuple(int(s) for s in segment), tuple(zip(W_GRIDS, grids, strict=False)))


def tensor(rng, name: str, shape, scale=0.11, seed: int = 0):
    """(Activations, their codes, layout) of random codes."""
    layout = layout_of(name, shape[-1], seed)
    codes = cases.x_codes(rng, shape, layout)
    return cases.activations(codes, cases.package_plan(layout), scale), codes, layout


def values(codes: np.ndarray, layout: Layout, scale) -> np.ndarray:
    """What the codes mean, float32."""
    return oracle.dequantize(codes, layout.segment, oracle.a_grids(layout), F32(scale))


def quantized(y: np.ndarray, layout: Layout, scale) -> np.ndarray:
    """The codes of float32 values."""
    return oracle.quantize_channels(y, layout.segment, oracle.a_grids(layout), F32(scale))


def check_outs(got: list, y: np.ndarray, outs: list, case: object) -> None:
    """What an operation gives for a list of (name, layout, scale) or None."""
    for one, out in zip(got, outs, strict=True):
        if out is None:
            cases.assert_same_bits(one, y, case)
        else:
            layout, scale = out
            assert isinstance(one, packing.Activations)
            assert one.plan == cases.package_plan(layout)
            cases.assert_same_bits(one.scale, np.array(scale, F32), case)
            cases.assert_same(one.codes(), quantized(y, layout, scale), case)


def as_out(outs: list) -> list:
    """`outs` as the package takes them."""
    return [None if out is None else (cases.package_plan(out[0]), out[1]) for out in outs]


FACTORS = {
    "a": list(TENSORS),
    "b": ["float", *TENSORS],
    "channels": CHANNELS,
    "activation": ACTIVATIONS,
    "first": [None, *TENSORS],
    "second": ["nothing", None, *TENSORS],
    "scales": ["one", "per row"],
}


def test_add(tier):
    """Every two values of every two factors: operands, channels, activation, one or two outputs."""
    for index, case in enumerate(cases.pairwise(FACTORS)):
        rng = np.random.default_rng(index)
        shape = (70 if index % 20 == 0 else 3, case["channels"])
        scale = 0.11 if case["scales"] == "one" else rng.uniform(0.1, 2, shape[0]).astype(F32)
        a, a_codes, a_layout = tensor(rng, case["a"], shape, scale)
        column = scale if case["scales"] == "one" else scale[:, None]
        if case["b"] == "float":
            b = b_values = oracle.values_near(rng, shape, 0.5)
        else:
            b, b_codes, b_layout = tensor(rng, case["b"], shape, 0.07, seed=1)
            b_values = values(b_codes, b_layout, 0.07)
        with np.errstate(all="ignore"):
            y = oracle.activate(values(a_codes, a_layout, column) + b_values, case["activation"])
        names = [case["first"]] + ([] if case["second"] == "nothing" else [case["second"]])
        outs = [None if n is None else (layout_of(n, shape[1], 2 + i), 0.21 + i) for i, n in enumerate(names)]
        check_outs(ops.add(a, b, case["activation"], as_out(outs)), y, outs, case)


def test_add_takes_either_order_and_any_rank(tier, rng):
    """float32 first or second; vectors, rows and images."""
    for shape in [(7,), (2, 7), (2, 3, 7), (2, 3, 4, 7)]:
        a, codes, layout = tensor(rng, "mixed", shape)
        x = rng.normal(size=shape).astype(F32)
        y = values(codes, layout, 0.11) + x
        cases.assert_same_bits(ops.add(a, x), y)
        cases.assert_same_bits(ops.add(x, a), y)
    assert ops.add(packing.Activations(a.stored[:0], a.plan, a.scale), x[:0]).shape == (0, 3, 4, 7)


def test_add_keeps_one_scale_an_image(tier, rng):
    """NHWC with a scale for each image."""
    scale = np.array([0.3, 0.7, 1.1], F32)
    a, codes, layout = tensor(rng, "mixed", (3, 4, 5, 9), scale)
    y = values(codes, layout, scale[:, None, None, None])
    cases.assert_same_bits(ops.dequantize(a), y)
    cases.assert_same_bits(ops.add(a, y), y + y)


def test_requantize(tier, rng):
    """The nearest codes of another plan; idempotent on its own."""
    for name in TENSORS:
        for other in TENSORS:
            x, codes, layout = tensor(rng, name, (5, 40))
            out = layout_of(other, 40, 1), 0.3
            (y,) = ops.requantize(x, as_out([out]), "relu")
            check_outs([y], oracle.activate(values(codes, layout, 0.11), "relu"), [out], (name, other))
        cases.assert_same(ops.requantize(x, (x.plan, 0.11)).codes(), codes, name)
        cases.assert_same_bits(ops.dequantize(x), values(codes, layout, 0.11), name)


def test_quantize_and_requantize_of_floats_agree(tier, rng):
    """float32 in, codes out, by the quantizer of inputs and by that of epilogues."""
    x = oracle.values_near(rng, (6, 50), 0.4)
    for name in TENSORS:
        plan = cases.package_plan(layout_of(name, 50))
        cases.assert_same(ops.requantize(x, (plan, 0.4)).codes(), ops.quantize(x, plan, 0.4).codes(), name)


# ---- pooling -------------------------------------------------------------------------------------------------------------
POOLS = {
    "kernel": [(1, 1), (2, 2), (3, 3), (3, 2), (5, 1)],
    "stride": [None, (1, 1), (2, 2), (3, 1)],
    "padding": [(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 0, 1)],
    "size": [(5, 5), (7, 6), (8, 11)],
    "channels": [1, 3, 16, 31, 32, 33, 100, 257],
    "tensor": list(TENSORS),
}


def fits(case: cases.Case) -> bool:
    """Padding less than the kernel."""
    (kh, kw), (top, bottom, left, right) = case["kernel"], case["padding"]
    return max(top, bottom) < kh and max(left, right) < kw


def test_max_pool(tier):
    """Windows of all kinds; codes are compared as they are stored."""
    for index, case in enumerate(cases.pairwise(POOLS, fits)):
        rng = np.random.default_rng(index)
        x, codes, _ = tensor(rng, case["tensor"], (2, *case["size"], case["channels"]))
        y = ops.max_pool2d(x, case["kernel"], case["stride"], case["padding"])
        expected = oracle.max_pool(codes, case["kernel"], case["stride"] or case["kernel"], case["padding"])
        cases.assert_same(y.codes(), expected, case)
        assert y.plan is x.plan and y.scale is x.scale


def test_avg_pool(tier):
    """float32 and codes of the means."""
    for index, case in enumerate(cases.pairwise(POOLS | {"padding": [(0, 0, 0, 0)], "scales": ["one", "per image"]})):
        rng = np.random.default_rng(index)
        scale = 0.11 if case["scales"] == "one" else rng.uniform(0.1, 2, 2).astype(F32)
        x, codes, layout = tensor(rng, case["tensor"], (2, *case["size"], case["channels"]), scale)
        grids, stride = oracle.a_grids(layout), case["stride"] or case["kernel"]
        y = oracle.avg_pool(codes, layout.segment, grids, F32(scale), case["kernel"], stride)
        outs = [None, (layout_of("mixed", case["channels"], 1), 0.2), (layout, 0.3)]
        check_outs(ops.avg_pool2d(x, case["kernel"], case["stride"], as_out(outs)), y, outs, case)


def test_global_avg_pool(tier, rng):
    """The whole image, square or not."""
    for size in [(1, 1), (7, 7), (3, 10)]:
        x, codes, layout = tensor(rng, "mixed", (3, *size, 65))
        y = oracle.avg_pool(codes, layout.segment, oracle.a_grids(layout), F32(0.11), size, size)
        cases.assert_same_bits(ops.global_avg_pool(x), y, size)
        assert y.shape == (3, 1, 1, 65)


def test_pooling_nothing(tier, rng):
    """A batch of no images."""
    x, _, _ = tensor(rng, "mixed", (1, 4, 4, 5))
    empty = packing.Activations(x.stored[:0], x.plan, x.scale)
    assert ops.max_pool2d(empty, 2).shape == (0, 2, 2, 5)
    assert ops.avg_pool2d(empty, 2).shape == (0, 2, 2, 5)


# ---- moving codes --------------------------------------------------------------------------------------------------------
def test_flatten(rng):
    """Columns in the order (h, w, c), and a linear layer behind it gives what it gives for torch's order."""
    for name in TENSORS:
        x, codes, _ = tensor(rng, name, (2, 3, 4, 5))
        y = ops.flatten(x)
        cases.assert_same(y.codes(), codes.reshape(2, -1), name)
        assert y.plan == ops.flattened(x.plan, 12)
        assert [s.a for s in y.plan.segments] == [s.a for s in x.plan.segments]


def test_concat_keeps_codes(rng):
    """One scale and two grids at most: the codes stay what they are."""
    shape = (2, 3, 4)
    for names in [("bipolar",), ("bipolar", "bipolar"), ("mixed", "mixed"), ("bipolar", "ternary", "bipolar")]:
        parts = [tensor(rng, name, (*shape, 5 + i), seed=i) for i, name in enumerate(names)]
        y = ops.concat([x for x, _, _ in parts])
        cases.assert_same(y.codes(), np.concatenate([codes for _, codes, _ in parts], -1), names)
        expected = np.concatenate([values(codes, layout, 0.11) for _, codes, layout in parts], -1)
        cases.assert_same_bits(ops.dequantize(y), expected, names)


def test_concat_of_segments_that_share_a_grid(rng):
    """Two segments of one tensor that differ in their weights alone become one."""
    a = packing.Grid("bipolar", 4)
    pairs = [(packing.Grid("bipolar", 1), a), (packing.Grid("bipolar", 2), a)]
    x = packing.Activations.from_codes(
        rng.integers(0, 16, (3, 6), np.uint8), packing.Plan.of_segments([1, 0, 1, 0, 1, 0], pairs), 0.5
    )
    assert len(x.plan.segments) == 2
    cases.assert_same(ops.concat([x, x]).codes(), np.concatenate([x.codes()] * 2, -1))


def test_concat_requantizes(tier, rng):
    """Other scales and grids than the result's, two results at once."""
    parts = [
        tensor(rng, name, (2, 3, 4, channels), 0.05 + i)
        for i, (name, channels) in enumerate([("bytes", 5), ("mixed", 33), ("ternary", 300)])
    ]
    y = np.concatenate([values(codes, layout, 0.05 + i) for i, (_, codes, layout) in enumerate(parts)], -1)
    outs = [(layout_of("mixed", 338, 9), 0.4), None, (layout_of("unsigned", 338), 0.6)]
    check_outs(ops.concat([x for x, _, _ in parts], as_out(outs)), y, outs, "concat")


@given(st.data())
def test_any_two_segments(data):
    """Random patterns of segments at random widths and offsets into a row: every code finds its place."""
    channels = data.draw(st.integers(1, 80))
    parts = data.draw(st.integers(1, 3))
    xs, expected = [], []
    for _ in range(parts):
        segment = np.array(data.draw(st.lists(st.integers(0, 1), min_size=channels, max_size=channels)))
        grids = [packing.Grid("bipolar", 8)] * 2 if set(segment) == {0, 1} else [packing.Grid("bipolar", 8)]
        plan = tensors.plan_of_tensor(segment if len(grids) == 2 else 0 * segment, grids)
        codes = np.random.default_rng(channels).integers(0, 256, (3, channels), np.uint8)
        xs.append(packing.Activations.from_codes(codes, plan, 1.0))
        expected.append(codes)
    whole = np.array(data.draw(st.lists(st.integers(0, 1), min_size=channels * parts, max_size=channels * parts)))
    grids = [packing.Grid("bipolar", 8)] * len(set(whole))
    out = tensors.plan_of_tensor(whole if len(grids) == 2 else 0 * whole, grids)
    cases.assert_same(ops.concat(xs, (out, 1.0)).codes(), np.concatenate(expected, -1))


# ---- what is refused -------------------------------------------------------------------------------------------------------
def test_errors(rng):
    """Messages say what came, what was expected and what to do."""
    x, _, _ = tensor(rng, "mixed", (2, 4, 4, 5))
    row, _, _ = tensor(rng, "mixed", (2, 5))
    floats = np.zeros((2, 4, 4, 5), F32)
    plan = packing.Plan.uniform(6, w_bits=1, a_bits=4)
    outs = [(x.plan, 1.0)] * 5
    for error, words, call in [
        (ValueError, "same shape", lambda: ops.add(x, floats[:1])),
        (TypeError, "quantize one of them", lambda: ops.add(floats, floats)),
        (ValueError, "finite", lambda: ops.add(x, floats + np.nan)),
        (ValueError, "activation", lambda: ops.add(x, x, "gelu")),
        (ValueError, "6 channels", lambda: ops.add(x, x, out=(plan, 1.0))),
        (TypeError, "expected .plan, scale.", lambda: ops.add(x, x, out=plan)),
        (ValueError, "4 of codes at most", lambda: ops.add(x, x, out=outs)),
        (ValueError, "one at least", lambda: ops.add(x, x, out=[])),
        (ValueError, "NHWC", lambda: ops.max_pool2d(row, 2)),
        (TypeError, "expected Activations", lambda: ops.max_pool2d(floats, 2)),
        (ValueError, "less than the kernel", lambda: ops.max_pool2d(x, 2, padding=2)),
        (ValueError, "kernel is 0", lambda: ops.max_pool2d(x, 0)),
        (ValueError, "pad", lambda: ops.max_pool2d(x, 5)),
        (ValueError, "without a pixel", lambda: ops.max_pool2d(packing.Activations(x.stored[:, :0], x.plan, x.scale), 2, 1, 1)),
        (ValueError, "NHWC", lambda: ops.global_avg_pool(row)),
        (ValueError, "NHWC", lambda: ops.flatten(row)),
        (ValueError, "nothing", lambda: ops.concat([])),
        (ValueError, "channels only", lambda: ops.concat([x, row])),
        (ValueError, "scales", lambda: ops.concat([x, packing.Activations(x.stored, x.plan, F32(2))])),
        (ValueError, "4 grids", lambda: ops.concat([x, tensor(rng, "far apart", (2, 4, 4, 5))[0]])),
        (TypeError, "expected Activations", lambda: ops.dequantize(floats)),
    ]:  # fmt: skip
        with pytest.raises(error, match=words):
            call()
