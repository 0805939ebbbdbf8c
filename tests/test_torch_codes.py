"""The torch ops on code tensors: the same bits as numpy, with fakes that agree, compiled and exported."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from soniq_kernels import conv, gemm, ops, packing, tensors, torch_ops

F32 = np.float32
CHANNELS, OUTPUTS = 12, 6


class Operands:
    """Code tensors, their descriptions, and the Activations that they are."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.plan = packing.Plan.mixed(rng.permutation([2] * 7 + [4] * 5), a_grid="unsigned")
        self.out = packing.Plan.mixed(rng.permutation([2] * 2 + [4] * 4), a_grid="bipolar")
        self.x = ops.quantize(rng.normal(size=(2, 6, 6, CHANNELS)).astype(F32), self.plan, 0.7)
        self.y = ops.quantize(rng.normal(size=(2, 6, 6, OUTPUTS)).astype(F32), self.out, 0.3)
        self.floats = rng.normal(size=(2, 6, 6, OUTPUTS)).astype(F32)
        self.filters = self.pack(rng, (OUTPUTS, 3, 3, CHANNELS))
        self.dense = self.pack(rng, (OUTPUTS, CHANNELS))
        self.outs = [(self.out, F32(0.4)), None, (packing.Plan.uniform(OUTPUTS, 8, 8), F32(0.5))]

    def pack(self, rng: np.random.Generator, shape) -> packing.PackedWeights:
        scale, bias = rng.normal(size=(2, OUTPUTS)).astype(F32)
        return packing.pack(rng.integers(0, 4, shape, np.uint8), self.plan, scale, bias=bias)


def tensor(x) -> torch.Tensor:
    """As torch ops take it."""
    return torch.from_numpy(x.stored if isinstance(x, packing.Activations) else x)


def calls(o: Operands) -> dict:
    """name -> (op, its arguments, its keywords, what numpy gives)."""
    x, y, f = tensor(o.x), tensor(o.y), torch.from_numpy(o.floats)
    xd, yd, fd, outs = (
        tensors.describe(o.x),
        tensors.describe(o.y),
        tensors.describe(None),
        tensors.describe_all(o.outs),
    )
    filters, dense = torch_ops.weights_to_tensor(o.filters), torch_ops.weights_to_tensor(o.dense)
    place = ([3, 3], [2, 1], [1, 1, 1, 0], [1, 1])
    tanh = ("hardtanh", -0.5, 1.0)
    row, rows = ops.quantize(np.ones((3, CHANNELS), F32), o.plan, 0.7), o.outs[:1]
    return {
        "quantize": (
            torch_ops.quantize_codes, (f, tensors.describe_all(o.outs[::2])), {},
            [ops.quantize(o.floats, *out) for out in o.outs[::2]],
        ),
        "dequantize": (torch_ops.dequantize_codes, (y, yd), {}, ops.dequantize(o.y)),
        "conv2d": (
            torch_ops.conv2d_codes, (x, xd, filters, OUTPUTS, *place, outs), {},
            conv.conv2d(o.x, o.filters, (2, 1), (1, 1, 1, 0), out=o.outs),
        ),
        "conv2d with a residual of codes": (
            torch_ops.conv2d_codes, (x, xd, filters, OUTPUTS, [3, 3], [1, 1], [1] * 4, [1, 1], outs),
            {"residual": y, "residual_codes": yd, "activation": json.dumps(tanh)},
            conv.conv2d(o.x, o.filters, padding=1, residual=o.y, activation=tanh, out=o.outs),
        ),
        "linear with a residual of floats": (
            torch_ops.linear_codes, (tensor(row), xd, dense, OUTPUTS, tensors.describe_all(rows)),
            {"residual": torch.ones(3, OUTPUTS), "residual_codes": fd, "activation": '"relu"'},
            gemm.linear(row, o.dense, np.ones((3, OUTPUTS), F32), "relu", rows),
        ),
        "add": (torch_ops.add_codes, (y, yd, y, yd, outs), {"activation": '"relu6"'}, ops.add(o.y, o.y, "relu6", o.outs)),
        "add of floats": (torch_ops.add_codes, (y, yd, f, fd, outs), {}, ops.add(o.y, o.floats, None, o.outs)),
        "max_pool2d": (
            torch_ops.max_pool2d_codes, (y, yd, [3, 2], [2, 2], [1, 1, 0, 1]), {},
            ops.max_pool2d(o.y, (3, 2), (2, 2), (1, 1, 0, 1)),
        ),
        "avg_pool2d": (torch_ops.avg_pool2d_codes, (y, yd, [2, 3], [2, 1], outs), {}, ops.avg_pool2d(o.y, (2, 3), (2, 1), o.outs)),
        "global_avg_pool": (torch_ops.global_avg_pool_codes, (y, yd, outs), {}, ops.global_avg_pool(o.y, o.outs)),
        "flatten": (torch_ops.flatten_codes, (y, yd), {}, ops.flatten(o.y)),
        "concat": (torch_ops.concat_codes, ([y, y], tensors.describe_all([o.y, o.y])), {}, [ops.concat([o.y, o.y])]),
        "concat requantized": (
            torch_ops.concat_codes, ([y, y], tensors.describe_all([o.y, o.y]), tensors.describe_all([(o.plan, F32(1)), None])), {},
            ops.concat([o.y, o.y], [(o.plan, F32(1)), None]),
        ),
        "requantize": (torch_ops.requantize_codes, (y, yd, outs), {}, ops.requantize(o.y, o.outs)),
    }  # fmt: skip


def same(got: torch.Tensor, expected) -> None:
    """The same bytes in the same shape, contiguous."""
    expected = tensor(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape and got.is_contiguous()
    assert got.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("name", calls(Operands(np.random.default_rng(0))))
def test_ops(name):
    """The bits of numpy, and torch's own check of schema, fake and aliasing."""
    op, args, keywords, expected = calls(Operands(np.random.default_rng(0)))[name]
    got = op(*args, **keywords)
    if isinstance(expected, list):
        assert isinstance(got, list) and len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other)
    else:
        same(got, expected)
    torch.library.opcheck(op, args, keywords)


def test_a_graph_of_them_exports(rng):
    """Codes from one op to the next, in a program that torch.export makes."""
    o = Operands(rng)
    xd, filters = tensors.describe(o.x), torch_ops.weights_to_tensor(o.filters)
    wanted = [(o.out, F32(0.4))]
    outs, yd = tensors.describe_all(wanted), tensors.describe(wanted[0])

    class Net(torch.nn.Module):
        def forward(self, x):
            (y,) = torch.ops.soniq.conv2d_codes(x, xd, filters, OUTPUTS, [3, 3], [1, 1], [1] * 4, [1, 1], outs)
            y = torch.ops.soniq.max_pool2d_codes(y, yd, [2, 2], [2, 2], [0] * 4)
            return torch.ops.soniq.dequantize_codes(y, yd)

    y = conv.conv2d(o.x, o.filters, padding=1, out=wanted[0])
    program = torch.export.export(Net(), (tensor(o.x),))
    same(program.module()(tensor(o.x)), ops.dequantize(ops.max_pool2d(y, 2)))


def test_descriptions(rng):
    """Text and back: grids in the order of storage, scales bit for bit; nonsense is refused."""
    o = Operands(rng)
    for plan, scale in [(o.plan, F32(0.1)), (o.out, F32(2.0**-100)), (packing.Plan.uniform(3, 8, 8), F32(1) / F32(3))]:
        codes = tensors.parse(tensors.describe((plan, scale)))
        assert codes is not None
        assert codes.scale.tobytes() == scale.tobytes() and codes.plan.same_activations(plan)
    assert tensors.parse(tensors.describe(None)) is None
    assert tensors.parse_all(tensors.describe_all([None, (o.plan, 1.0)]))[0] is None
    for text in [
        "",
        "[]",
        "{}",
        "null",
        '{"float": false}',
        '{"float": true, "scale": 1}',
        '{"codes": {}, "scale": "0x1p0"}',
    ]:
        with pytest.raises(ValueError, match="unusable"):
            tensors.parse(text)
    with pytest.raises(ValueError, match="one scale"):
        tensors.describe(packing.Activations(o.x.stored, o.plan, np.ones(2, F32)))


def test_wrong_input_is_named(rng):
    """A description that does not fit, another dtype."""
    o = Operands(rng)
    y, yd, fd = tensor(o.y), tensors.describe(o.y), tensors.describe(None)
    with pytest.raises(ValueError, match="x has shape .* its description 12 channels"):
        torch.ops.soniq.flatten_codes(y, tensors.describe(o.x))
    with pytest.raises(ValueError, match="described as float32"):
        torch.ops.soniq.flatten_codes(y, fd)
    with pytest.raises(TypeError, match="expected torch.uint8"):
        torch.ops.soniq.flatten_codes(y.int(), yd)
    with pytest.raises(TypeError, match="expected torch.float32"):
        torch.ops.soniq.add_codes(y, yd, y, fd, tensors.describe_all([None]))
