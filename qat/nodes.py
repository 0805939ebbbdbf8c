"""What a node of a traced network is to the kernels, however it was written: module, function or method."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from .edges import QuantAvgPool2d, QuantEdge
from .embeddings import PackedEmbedding, QuantEmbedding
from .layers import QuantLayer
from .norms import PackedNorm, QuantNorm
from .packed_layers import PackedLayer

Pair = tuple[int, int]
Activation = tuple[str | float, ...]  # ("relu",), ("relu6",) or ("hardtanh", low, high)

LEAVES = (QuantLayer, PackedLayer, QuantEdge, QuantAvgPool2d, QuantNorm, PackedNorm, QuantEmbedding, PackedEmbedding)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Op:
    """One node. kind: "layer", "edge", "average" (of codes), "activation", "add", "max_pool", "mean" (a float average pool),
    "flatten", "concat", "same", "passed", "norm" (batch norm behind an activation function), "input", "output" or "other".

    inputs: the tensors it reads. window: (kernel, stride, padding) of a pool; an average without one is of the whole image,
    or of each of `parts` (rows, columns) of it. layout: "line" of a 1-D pool, whose height is 1. flat: an average is [B, C] instead of [B, C, 1, 1].
    """

    kind: str
    inputs: tuple[fx.Node, ...] = ()
    activation: Activation | None = None
    window: tuple[Pair, Pair, Pair] | None = None
    parts: Pair = (1, 1)
    flat: bool = False
    layout: str = "image"


def op_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Op:
    """What `node` is. What has no form on codes is "other"."""
    if node.op == "placeholder":
        return Op("input")
    if node.op == "output":
        return Op("output", tuple(node.all_input_nodes))
    module = modules[node.target] if node.op == "call_module" else None
    found = _of_module(module, node) if module is not None else _of_call(node)
    return found or Op("other", tuple(node.all_input_nodes))


def _first(node: fx.Node) -> tuple[fx.Node, ...]:
    """The one tensor that a node reads; nothing if it is given in another way."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return (first,) if isinstance(first, fx.Node) else ()


# --- modules -----------------------------------------------------------------------------------------------------


def _of_module(module: nn.Module, node: fx.Node) -> Op | None:
    read = _first(node)
    if not read or len(node.all_input_nodes) != 1:
        return None
    for kind, types in (
        ("layer", (QuantLayer, PackedLayer)),
        ("edge", QuantEdge),
        ("average", QuantAvgPool2d),
        ("passed", DROPOUTS),
        ("norm", (QuantNorm, PackedNorm)),
    ):
        if isinstance(module, types):
            return Op(kind, read)
    matcher = _MODULES.get(type(module))
    return None if matcher is None else matcher(module, read)


def _activation_module(module: nn.Module, read) -> Op:
    kind = {nn.ReLU: ("relu",), nn.ReLU6: ("relu6",)}.get(type(module))
    return Op("activation", read, kind or ("hardtanh", float(module.min_val), float(module.max_val)))


def _max_pool_module(module: nn.MaxPool1d | nn.MaxPool2d, read) -> Op | None:
    return (_max_pool_line if isinstance(module, nn.MaxPool1d) else _max_pool)(
        read,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        module.return_indices,
    )


def _avg_pool_module(module: nn.AvgPool2d, read) -> Op | None:
    return _avg_pool(
        read,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        divisor_override=module.divisor_override,
    )


def _adaptive_module(module: nn.AdaptiveAvgPool2d, read) -> Op | None:
    return _adaptive(read, module.output_size)


def _flatten_module(module: nn.Flatten, read) -> Op | None:
    return Op("flatten", read) if (module.start_dim, module.end_dim) == (1, -1) else None


_MODULES: dict[type, Callable[..., Op | None]] = {
    nn.ReLU: _activation_module,
    nn.ReLU6: _activation_module,
    nn.Hardtanh: _activation_module,
    nn.MaxPool1d: _max_pool_module,
    nn.MaxPool2d: _max_pool_module,
    nn.AvgPool2d: _avg_pool_module,
    nn.AdaptiveAvgPool2d: _adaptive_module,
    nn.Flatten: _flatten_module,
    nn.Identity: lambda module, read: Op("same", read),
}


# --- functions and methods ---------------------------------------------------------------------------------------


def _of_call(node: fx.Node) -> Op | None:
    matcher = _METHODS.get(node.target) if node.op == "call_method" else _FUNCTIONS.get(node.target)
    if node.op not in ("call_function", "call_method") or matcher is None:
        return None
    try:
        return matcher(*node.args, **{name: value for name, value in node.kwargs.items() if name != "inplace"})
    except TypeError:  # arguments that the matcher does not know
        return None


def _activation(*kind: str) -> Callable[..., Op]:
    return lambda input: Op("activation", (input,), kind)


def _hardtanh(input, min_val=-1.0, max_val=1.0) -> Op:
    return Op("activation", (input,), ("hardtanh", float(min_val), float(max_val)))


def _add(input, other, *, alpha=1) -> Op | None:
    tensors = isinstance(input, fx.Node) and isinstance(other, fx.Node)
    return Op("add", (input, other)) if tensors and alpha == 1 else None


def _max_pool_call(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Op | None:
    return _max_pool((input,), kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool(read, kernel, stride, padding, dilation, ceil_mode, return_indices) -> Op | None:
    if _pair(dilation) != (1, 1) or ceil_mode or return_indices:
        return None
    return Op("max_pool", read, window=(_pair(kernel), _pair(kernel if stride is None else stride), _pair(padding)))


def _max_pool_line_call(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Op | None:
    return _max_pool_line((input,), kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool_line(read, kernel, stride, padding, dilation, ceil_mode, return_indices) -> Op | None:
    """As an image of height 1."""
    kernel, stride, padding, dilation = (
        value[0] if isinstance(value, (tuple, list)) else value
        for value in (kernel, kernel if stride is None else stride, padding, dilation)
    )
    found = _max_pool(read, (1, kernel), (1, stride), (0, padding), dilation, ceil_mode, return_indices)
    return None if found is None else replace(found, layout="line")


def _avg_pool_call(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    return _avg_pool((input,), kernel_size, stride, padding, ceil_mode, divisor_override)


def _avg_pool(read, kernel, stride, padding, ceil_mode, divisor_override) -> Op | None:
    if _pair(padding) != (0, 0) or ceil_mode or divisor_override is not None:
        return None
    return Op("mean", read, window=(_pair(kernel), _pair(kernel if stride in (None, ()) else stride), (0, 0)))


def _adaptive(read, output_size) -> Op | None:
    parts = _pair(output_size)
    return Op("mean", read, parts=parts) if all(isinstance(size, int) for size in parts) else None


def _mean(input, dim=None, keepdim=False) -> Op | None:
    dims = {d % 4 for d in dim} if isinstance(dim, (tuple, list)) else set()
    return Op("mean", (input,), flat=not keepdim) if dims == {2, 3} else None


def _concat(tensors, dim=0) -> Op | None:
    return Op("concat", tuple(tensors)) if dim in (1, -3) and all(isinstance(t, fx.Node) for t in tensors) else None


def _flatten(input, start_dim=0, end_dim=-1) -> Op | None:
    return Op("flatten", (input,)) if (start_dim, end_dim) == (1, -1) else None


def _same(input, *_) -> Op:
    return Op("same", (input,))


def _pair(value) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


_FUNCTIONS: dict[object, Callable[..., Op | None]] = {
    F.relu: _activation("relu"), torch.relu: _activation("relu"), torch.relu_: _activation("relu"),
    F.relu6: _activation("relu6"), F.hardtanh: _hardtanh,
    operator.add: _add, operator.iadd: _add, torch.add: _add,
    F.max_pool1d: _max_pool_line_call, F.max_pool2d: _max_pool_call, F.avg_pool2d: _avg_pool_call,
    F.adaptive_avg_pool2d: lambda input, output_size: _adaptive((input,), output_size),
    torch.mean: _mean, torch.cat: _concat, torch.concat: _concat, torch.flatten: _flatten,
}  # fmt: skip

_METHODS: dict[object, Callable[..., Op | None]] = {
    "relu": _activation("relu"), "relu_": _activation("relu"), "add": _add, "add_": _add, "mean": _mean,
    "flatten": _flatten, "contiguous": _same,
}  # fmt: skip
