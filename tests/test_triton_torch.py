"""soniq::linear, soniq::conv2d and soniq::quantize of CUDA tensors: the same bits as on the CPU, and what torch asks of an op."""

from __future__ import annotations

import gc

import pytest

from soniq_kernels import packing
from triton_cases import DEVICE, INTERPRETED, gpu

torch = pytest.importorskip("torch")
import numpy as np
from torch.utils._pytree import tree_map

import test_torch_codes
from soniq_kernels import torch_ops
from soniq_kernels.triton_kernels import conv, move, ops, quantize, tensor_core, torch_cuda, vector

CHANNELS, OUTPUTS = 12, 6


def layer(rng, shape, scale=0.7):
    plan = packing.Plan.mixed(rng.permutation([2] * 7 + [4] * 5), a_grid="unsigned")
    w_scale, bias = rng.normal(size=(2, OUTPUTS)).astype(np.float32)
    packed = packing.pack(rng.integers(0, 4, shape).astype(np.uint8), plan, w_scale, bias=bias, activation_scale=scale)
    return torch_ops.weights_to_tensor(packed)


def floats(rng, *shape):
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


def same(got, expected):
    return torch.equal(got.cpu().contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


@pytest.mark.parametrize("scale", [0.7, "per_row"])
def test_linear(rng, scale):
    weights, x = layer(rng, (OUTPUTS, CHANNELS), scale), floats(rng, 2, 3, CHANNELS)
    got = torch_cuda.linear(x.to(DEVICE), weights.to(DEVICE), OUTPUTS)
    assert same(got, torch.ops.soniq.linear(x, weights, OUTPUTS))


def test_conv2d_and_quantize(rng):
    weights, x = layer(rng, (OUTPUTS, 3, 2, CHANNELS // 2)), floats(rng, 2, CHANNELS, 5, 4)
    how = OUTPUTS, [3, 2], [2, 1], [1, 0, 2, 1], [1, 1]
    expected = torch.ops.soniq.conv2d(x, weights, *how)
    on_gpu, x_gpu = weights.to(DEVICE), x.to(DEVICE)
    got = torch_cuda.conv2d(x_gpu, on_gpu, *how)
    assert same(got, expected) and got.is_contiguous(memory_format=torch.channels_last)
    codes = torch_cuda.quantize(x_gpu, on_gpu)
    assert torch.equal(codes.cpu(), torch.ops.soniq.quantize(x, weights))
    assert same(torch_cuda.conv2d(codes, on_gpu, *how), expected)


def test_layers_follow_and_do_not_outlive_their_tensor(rng):
    first, second = (layer(rng, (OUTPUTS, CHANNELS)).to(DEVICE).clone() for _ in range(2))
    built = torch_cuda.weights_of(first)
    assert torch_cuda.weights_of(first.detach()) is built
    first.copy_(second)  # what load_state_dict does
    assert not torch.equal(torch_cuda.weights_of(first).vectors, built.vectors)
    del first, second
    gc.collect()
    third = layer(rng, (OUTPUTS, CHANNELS)).to(DEVICE)
    torch_cuda.weights_of(third)
    assert sum(not reference.expired() for reference, _, _ in torch_cuda._built.values()) == len(torch_cuda._built)


def test_wrong_input_is_named(rng):
    weights = layer(rng, (OUTPUTS, CHANNELS), "per_row").to(DEVICE)
    with pytest.raises(ValueError, match="expected 2 dimensions and 7 outputs"):
        torch_cuda.linear(floats(rng, 2, CHANNELS).to(DEVICE), weights, 7)
    with pytest.raises(ValueError, match="codes need a layer with a fixed activation_scale"):
        torch_cuda.linear(torch.zeros(2, CHANNELS, dtype=torch.uint8, device=DEVICE), weights, OUTPUTS)


def test_cuda_tensors_reach_these_ops():
    """The dispatcher knows a CUDA kernel of every op, besides the general one."""
    names = [n for n, op in vars(torch_ops).items() if hasattr(op, "_opoverload") and not n.startswith("_")]
    assert len(names) >= 14
    for name in names:
        assert callable(getattr(torch_cuda, name))
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"soniq::{name}", "CUDA")


@pytest.mark.skipif(INTERPRETED, reason="no GPU here: CUDA graphs and opcheck of CUDA tensors need one")
def test_graph_and_opcheck(rng):
    weights, x = layer(rng, (OUTPUTS, CHANNELS)).cuda(), floats(rng, 3, CHANNELS).cuda()
    torch.library.opcheck(torch.ops.soniq.linear, (x, weights, OUTPUTS))
    expected = torch.ops.soniq.linear(x, weights, OUTPUTS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.soniq.linear(x, weights, OUTPUTS)
    for _ in range(3):
        graph.replay()
        assert torch.equal(y, expected)


def test_gpu_arrays_of_other_libraries_come_in_by_dlpack(rng):
    class Foreign:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    plan, x = packing.Plan.uniform(CHANNELS, 2, 4), floats(rng, 3, CHANNELS).to(DEVICE)
    assert torch.equal(
        gpu.quantize_activations(Foreign(x), plan, 0.7).data, gpu.quantize_activations(x, plan, 0.7).data
    )


@pytest.mark.parametrize("name", test_torch_codes.calls(test_torch_codes.Operands(np.random.default_rng(0))))
def test_ops_on_codes(name):
    """Every op on code tensors, as the CPU's test calls it."""
    op, args, keywords, expected = test_torch_codes.calls(test_torch_codes.Operands(np.random.default_rng(0)))[name]
    to = lambda x: x.to(DEVICE) if isinstance(x, torch.Tensor) else x  # noqa: E731
    args, keywords = tree_map(to, (args, keywords))
    got = getattr(torch_cuda, op._name)(*args, **keywords)
    alone = torch.library.custom_op(f"soniq_on_gpu::{op._name}", getattr(torch_cuda, op._name), mutates_args=())
    alone.register_fake(op._abstract_fn)
    torch.library.opcheck(alone, args, keywords, test_utils=("test_faketensor",))
    pairs = zip(got, expected, strict=True) if isinstance(expected, list) else [(got, expected)]
    for one, other in pairs:
        test_torch_codes.same(one.cpu(), other)


FORBIDDEN = [
    (torch, "tensor"), (torch, "as_tensor"), (torch, "from_numpy"), (torch.Tensor, "item"), (torch.Tensor, "cpu"),
    (torch.Tensor, "numpy"), (torch.Tensor, "tolist"), (torch.Tensor, "nonzero"), (torch.Tensor, "__bool__"),
]  # fmt: skip


def test_a_second_call_neither_copies_nor_waits(rng, monkeypatch):
    """What a CUDA graph cannot record. Kernels are left out of the second call; what the host does around them is all there."""
    weights, per_row = layer(rng, (OUTPUTS, CHANNELS)).to(DEVICE), layer(rng, (OUTPUTS, CHANNELS), "per_row").to(DEVICE)
    filters = layer(rng, (OUTPUTS, 3, 3, CHANNELS // 2)).to(DEVICE)
    x, image = floats(rng, 3, CHANNELS).to(DEVICE), floats(rng, 1, CHANNELS, 3, 3).to(DEVICE)
    codes = torch.zeros(1, CHANNELS, 3, 3, dtype=torch.uint8, device=DEVICE)
    place = OUTPUTS, [3, 3], [1, 1], [1] * 4, [1, 1]
    operands = test_torch_codes.calls(test_torch_codes.Operands(rng))
    calls = [
        lambda: torch_cuda.linear(x, weights, OUTPUTS),
        lambda: torch_cuda.linear(x, per_row, OUTPUTS),
        lambda: torch_cuda.conv2d(image, filters, *place),
        lambda: torch_cuda.conv2d(codes, filters, *place),
        lambda: torch_cuda.quantize(image, filters),
    ]
    for op, *given, _ in operands.values():
        args, keywords = tree_map(lambda a: a.to(DEVICE) if isinstance(a, torch.Tensor) else a, given)
        calls.append(lambda op=op, args=args, keywords=keywords: getattr(torch_cuda, op._name)(*args, **keywords))
    for module in (tensor_core, vector, conv, quantize, move, ops):
        monkeypatch.setattr(module, "launch", lambda *arguments, **options: None)
    for call in calls:
        call()
    for where, name in FORBIDDEN:
        monkeypatch.setattr(where, name, forbidden(name))
    for call in calls:
        call()


def forbidden(name):
    def call(*arguments, **options):
        raise AssertionError(f"{name} in a call that a CUDA graph may record")

    return call
