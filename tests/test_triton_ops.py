"""Operations between layers on codes of a GPU, and whole networks of them, beside the CPU's with ==."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

import cases
from soniq_kernels import gemm, network, ops, packing
from soniq_kernels.network import Node
from soniq_kernels.triton_kernels import ops as gpu_ops
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from triton_cases import DEVICE, Grid, gpu, numpy, oracle, two_segments

TENSORS = {
    "bytes": (Grid("bipolar", 8, 3),),
    "unsigned": (Grid("unsigned", 8, -3, 1),),
    "signed": (Grid("signed", 5, 2),),
    "mixed": (Grid("bipolar", 2, 1), Grid("unsigned", 6, 0, -2)),
    "wide": (Grid("unsigned", 1, 7, 2), Grid("bipolar", 8, -9, -1)),
}
ONE = Grid("bipolar", 1)


def plan_of(rng, name, channels):
    grids = TENSORS[name]
    if len(grids) == 1:
        return cases.package_plan(oracle.uniform(channels, ONE, grids[0]))
    low = max(1, channels // 3)
    return cases.package_plan(two_segments(rng, low, channels - low, ((ONE, grids[0]), (Grid("bipolar", 2), grids[1]))))


def tensor(rng, name, shape, scale=0.11):
    """Random codes on the CPU."""
    plan = plan_of(rng, name, shape[-1])
    most = np.array([s.a.cmax for s in plan.segments])[plan.segment_of()]
    return packing.Activations.from_codes(rng.integers(0, most + 1, shape).astype(np.uint8), plan, scale)


def on_gpu(x, groups=1):
    return torch.from_numpy(x).to(DEVICE) if isinstance(x, np.ndarray) else gpu.from_host(x, DEVICE, groups)


def same(got, expected, case=None):
    """Floats by their bits; codes with everything that the GPU derives from them."""
    for one, other in zip(*(y if isinstance(y, list) else [y] for y in (got, expected)), strict=True):
        if isinstance(other, np.ndarray):
            cases.assert_same_bits(numpy(one), other, case)
            continue
        again = gpu.from_host(other, DEVICE, one.groups)
        assert isinstance(one, DeviceActivations) and one.plan == other.plan and tuple(one.shape) == other.shape, case
        cases.assert_same(numpy(one.data), numpy(again.data), case)
        cases.assert_same_bits(numpy(one.scale), numpy(again.scale), case)
        cases.assert_same(numpy(one.sums), numpy(again.sums), case)


FACTORS = {
    "a": list(TENSORS), "b": ["nothing", "float", "bytes", "wide"], "channels": [1, 7, 300],
    "activation": [None, "relu", "relu6", ("hardtanh", -0.3, 0.7)], "first": [None, "bytes", "mixed", "wide"],
    "second": ["nothing", "unsigned", "mixed"], "scales": ["one", "per row"], "groups": [0, 1],
}  # fmt: skip


def test_add_and_requantize():
    """Every two values of every two factors: operands, channels, activation, layouts, one or two outputs."""
    for index, case in enumerate(cases.pairwise(FACTORS)):
        rng = np.random.default_rng(index)
        shape = (
            5,
            max(2, case["channels"]) if "mixed" in case.values() or "wide" in case.values() else case["channels"],
        )
        a = tensor(
            rng, case["a"], shape, 0.11 if case["scales"] == "one" else rng.uniform(0.1, 2, 5).astype(np.float32)
        )
        names = [case["first"]] + ([] if case["second"] == "nothing" else [case["second"]])
        outs = [None if name is None else (plan_of(rng, name, shape[1]), 0.2 + i) for i, name in enumerate(names)]
        groups = case["groups"]
        with np.errstate(all="ignore"):
            if case["b"] == "nothing":
                expected = ops.requantize(a, outs, case["activation"])
                got = gpu_ops.requantize(on_gpu(a, groups), outs, case["activation"], groups)
            else:
                b = oracle.values_near(rng, shape, 0.5) if case["b"] == "float" else tensor(rng, case["b"], shape, 0.07)
                expected = ops.add(a, b, case["activation"], outs)
                got = gpu_ops.add(on_gpu(b, groups), on_gpu(a, groups), case["activation"], outs, groups)
        same(got, expected, case)


def test_floats_become_codes_for_several_readers(rng):
    x, outs = (
        oracle.values_near(rng, (2, 3, 40), 0.4),
        [(plan_of(rng, name, 40), 0.4) for name in ("bytes", "mixed", "signed")],
    )
    with np.errstate(all="ignore"):
        same(gpu_ops.requantize(on_gpu(x), outs), ops.requantize(x, outs, check_finite=False))
    a = tensor(rng, "wide", (2, 40))
    same(gpu_ops.dequantize(on_gpu(a)), ops.dequantize(a))


@pytest.mark.parametrize("path", ["vector", "tensor_core"])
def test_tensors_side_by_side_are_read_as_they_lie(rng, path):
    """One pass writes two tensors into rows of one memory; a layer reads either."""
    x, plan = rng.normal(size=(3, 40)).astype(np.float32), plan_of(rng, "mixed", 40)
    packed = packing.quantize_weights(rng.normal(size=(9, 40)).astype(np.float32), plan)
    _, codes = gpu_ops.requantize(on_gpu(x), [(plan_of(rng, "bytes", 40), 0.4), (plan, 0.3)])
    assert not codes.data.is_contiguous()
    with gpu.use(path):
        got = gpu.linear(codes, gpu.to_device(packed, DEVICE))
    cases.assert_same_bits(numpy(got), gemm.linear(ops.requantize(x, (plan, 0.3)), packed))


@pytest.mark.parametrize(("name", "groups"), [("bytes", 3), ("wide", 1), ("mixed", 0)])
def test_pooling(rng, name, groups):
    x = tensor(rng, name, (2, 4, 5, 9), rng.uniform(0.1, 2, 2).astype(np.float32))
    there = on_gpu(x, groups)
    for kernel, stride, padding in [((3, 2), (2, 1), (1, 2, 0, 1)), (2, None, 0)]:
        same(gpu_ops.max_pool2d(there, kernel, stride, padding), ops.max_pool2d(x, kernel, stride, padding))
    outs = [(plan_of(rng, "mixed", 9), 0.3), None]
    same(gpu_ops.avg_pool2d(there, (3, 2), (2, 1), outs, min(groups, 1)), ops.avg_pool2d(x, (3, 2), (2, 1), outs))
    same(gpu_ops.global_avg_pool(there), ops.global_avg_pool(x))


@pytest.mark.parametrize(("name", "groups"), [("bytes", 1), ("wide", 0), ("mixed", 1)])
def test_flatten_and_concat(rng, name, groups):
    x, y = tensor(rng, name, (2, 3, 2, 9)), tensor(rng, "signed", (2, 3, 2, 4))
    same(gpu_ops.flatten(on_gpu(x, groups)), ops.flatten(x))
    outs = [(plan_of(rng, "wide", 13), 0.2), None]
    same(gpu_ops.concat([on_gpu(x, groups), on_gpu(y, groups)], outs, groups), ops.concat([x, y], outs))


def test_wrong_calls_are_named(rng):
    a = on_gpu(tensor(rng, "signed", (2, 8)))
    for call, message in [
        (lambda: gpu_ops.add(torch.zeros(2, 8), torch.zeros(2, 8)), "are both no DeviceActivations"),
        (lambda: gpu_ops.add(a, torch.zeros(2, 7, device=DEVICE)), "add wants the same shape"),
        (lambda: gpu_ops.max_pool2d(a, 2), "expected NHWC"),
        (lambda: gpu_ops.requantize(a, [(a.plan, 0.1)] * 5), "5 tensors of codes"),
        (lambda: gpu_ops.requantize(a, (packing.Plan.uniform(7, 2, 2), 0.1)), "a plan of 7 channels"),
        (lambda: gpu_ops.requantize(a, (a.plan, "per_row")), "expected one float in"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            call()


# ---- networks ------------------------------------------------------------------------------------------------------------
CODES = {"x8": ("bytes", 3, 1.0), "a8": ("bytes", 12, 0.9), "a": ("mixed", 12, 0.8), "b": ("mixed", 12, 0.7), "p": ("mixed", 12, 0.7),
         "c": ("wide", 24, 0.5), "s": ("signed", 24, 0.4)}  # fmt: skip
NODES = [
    Node("quantize", ("x",), ("x8",)),
    Node("conv2d", ("x8",), ("a8", "a"), layer="first", activation="relu", padding=1),
    Node("conv2d", ("a",), ("b",), layer="grouped", activation="relu6", padding=(1, 1)),
    Node("conv2d", ("b",), ("f",), layer="one", residual="a8"),
    Node("relu", ("f",), ("g",)),
    Node("add", ("a8", "g"), ("p0",), activation=("hardtanh", -1.0, 1.5)),
    Node("max_pool2d", ("p0",), ("p",), kernel=(2, 2)),
    Node("requantize", ("p",), ("q",)),
    Node("concat", ("p", "q"), ("c",)),
    Node("avg_pool2d", ("c",), ("s",), kernel=2, stride=2),
    Node("flatten", ("s",), ("t",)),
    Node("linear", ("t",), ("y",), layer="last"),
]


def whole_network(rng, layout="NHWC"):
    codes = {name: (plan_of(rng, grids, channels), scale) for name, (grids, channels, scale) in CODES.items()}
    codes |= {"p": codes["b"], "p0": codes["b"], "q": codes["a8"]}
    codes["t"] = ops.flattened(codes["s"][0], 1), codes["s"][1]
    plan = lambda name: codes[name][0]  # noqa: E731

    def packed(name, *shape):
        most = np.array([s.w.cmax for s in plan(name).segments])
        scale, bias = (rng.normal(size=(2, shape[0])) * 0.1).astype(np.float32)
        return packing.pack(rng.integers(0, most.min() + 1, shape).astype(np.uint8), plan(name), scale, bias)

    layers = {
        "first": packed("x8", 12, 3, 3, 3), "grouped": packed("a", 12, 3, 3, 6), "one": packed("b", 12, 1, 1, 12),
        "last": packed("t", 5, 24),
    }  # fmt: skip
    tensors = {"x": None, "f": None, "g": None, "y": None, **codes}
    return network.Network(NODES, layers, tensors, outputs=("y", "p"), layout=layout)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_whole_network(rng, layout):
    """Every kind of node, a tensor for two readers, groups: all outputs bit for bit those of the CPU."""
    net = whole_network(rng, layout)
    there = net.to(DEVICE)
    for batch in (1, 2) if layout == "NHWC" else (1,):
        x = rng.normal(size=(batch, 4, 4, 3) if layout == "NHWC" else (batch, 3, 4, 4)).astype(np.float32)
        for got, expected in zip(there(on_gpu(x)), net(x), strict=True):
            assert numpy(got).dtype == expected.dtype
            cases.assert_same(numpy(got).view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))
    with pytest.raises(ValueError, match="takes 1 inputs"):
        there()
