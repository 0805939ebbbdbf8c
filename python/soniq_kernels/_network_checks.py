"""What must hold of a network before it runs: names, the order of nodes, and what each tensor is. Shapes are checked when they are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from soniq_kernels import ops
from soniq_kernels._layers import MAX_SINKS, activation_of
from soniq_kernels.tensors import Codes
from soniq_kernels.weights import PackedWeights

if TYPE_CHECKING:
    from soniq_kernels.network import Network, Node

LAYOUTS = ("NHWC", "NCHW", "NCL")
_PLACE = frozenset({"stride", "padding", "dilation"})
_EPILOGUE = frozenset({"layer", "residual", "activation"})
# op -> the attributes that it may have, besides its inputs and outputs
OPS: dict[str, frozenset[str]] = {
    "quantize": frozenset(),
    "requantize": frozenset({"activation"}),
    "relu": frozenset(),
    "relu6": frozenset(),
    "conv2d": _EPILOGUE | _PLACE,
    "linear": _EPILOGUE,
    "add": frozenset({"activation"}),
    "max_pool2d": frozenset({"kernel", "stride", "padding"}),
    "avg_pool2d": frozenset({"kernel", "stride"}),
    "global_avg_pool": frozenset(),
    "flatten": frozenset(),
    "concat": frozenset(),
}
ATTRIBUTES = ("layer", "residual", "activation", "kernel", "stride", "padding", "dilation")
_ONE_OUTPUT = ("max_pool2d", "flatten")
_NAME = re.compile(r"[^\x00-\x1f]{1,1000}")


def check(net: Network) -> None:
    """Raises ValueError that says what does not fit, and at which node."""
    if net.layout not in LAYOUTS:
        raise ValueError(f"layout is {net.layout!r}, expected one of {', '.join(LAYOUTS)}")
    _check_ends(net)
    known = set(net.inputs)
    for index, node in enumerate(net.nodes):
        try:
            _check_names(net, node, known)
            _check_node(node, net.layers, net.tensors)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{in_words(index, node)}: {error}") from None
        known.update(node.outputs)
    missing = [name for name in net.outputs if name not in known]
    if missing:
        raise ValueError(f"the outputs {missing} are written by no node")


def in_words(index: int, node: Node) -> str:
    """Which node an error is about."""
    return f"node {index} ({node.op} -> {', '.join(map(str, node.outputs))})"


def _check_ends(net: Network) -> None:
    for what, names in (("inputs", net.inputs), ("outputs", net.outputs)):
        if not names or len(set(names)) != len(names):
            raise ValueError(f"the {what} are {list(names)}, expected one or more names, each once")
    for name in (*net.tensors, *net.layers):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a tensor or layer; expected text without control characters")
    unknown = [name for name in net.inputs if name not in net.tensors]
    if unknown:
        raise ValueError(f"the inputs {unknown} are not among the tensors")


def _check_names(net: Network, node: Node, known: set[str]) -> None:
    if node.op not in OPS:
        raise ValueError(f"there is no such operation; there are {', '.join(OPS)}")
    odd = [name for name in ATTRIBUTES if getattr(node, name) is not None and name not in OPS[node.op]]
    if odd:
        raise ValueError(
            f"it has {', '.join(odd)}, and {node.op} has {', '.join(sorted(OPS[node.op])) or 'no attributes'}"
        )
    wanted = {"add": 2, "concat": max(1, len(node.inputs))}.get(node.op, 1)
    if len(node.inputs) != wanted:
        raise ValueError(f"it reads {len(node.inputs)} tensors, expected {wanted}")
    for name in node.reads:
        if name not in known:
            raise ValueError(f"it reads {name!r}, which is no input and which no node before it writes")
    for name in node.outputs:
        if name in known or node.outputs.count(name) > 1:
            raise ValueError(f"it writes {name!r}, which is written already")
        if name not in net.tensors:
            raise ValueError(f"it writes {name!r}, which is not among the tensors")


def _check_node(node: Node, layers: Mapping[str, PackedWeights], tensors: Mapping[str, Codes | None]) -> None:
    x, outs = [tensors[name] for name in node.inputs], [tensors[name] for name in node.outputs]
    codes = sum(out is not None for out in outs)
    if not outs or codes > MAX_SINKS or len(outs) - codes > 1 or (node.op in _ONE_OUTPUT and len(outs) > 1):
        most = "one" if node.op in _ONE_OUTPUT else f"float32 once and codes {MAX_SINKS} times at most"
        raise ValueError(f"it writes {len(outs)} tensors, {codes} of them codes; expected {most}")
    activation_of(node.activation)
    _CHECKS.get(node.op, _same_channels)(node, layers, tensors, x, outs)


def _same_channels(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    channels = {t.plan.channels for t in (*x, *outs) if t is not None}
    if len(channels) > 1:
        raise ValueError(f"its tensors have {sorted(channels)} channels, expected the same for all")


def _quantize(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    if x[0] is not None or None in outs:
        raise ValueError("it reads float32 and writes codes; use requantize for anything else")
    _same_channels(node, layers, tensors, x, outs)


def _add(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    if x == [None, None]:
        raise ValueError("both operands are float32, one must be codes; quantize the other one's producer")
    _same_channels(node, layers, tensors, x, outs)


def _layer(node: Node, layers: Mapping[str, PackedWeights], tensors: Any, x: list[Any], outs: list[Any]) -> None:
    if node.layer is None or node.layer not in layers:
        raise ValueError(f"its layer is {node.layer!r}, which is not among {sorted(layers)}")
    packed = layers[node.layer]
    if node.op == "linear" and len(packed.shape) != 2:
        raise ValueError(f"layer {node.layer} has weights of shape {packed.shape}, a convolution's")
    if x[0] is None and packed.activation_scale is None:
        raise ValueError(f"it reads float32 and layer {node.layer} has no activation_scale; quantize in front of it")
    if x[0] is not None and not x[0].plan.same_activations(packed.plan):
        raise ValueError(f"it reads codes of {x[0].plan}, and layer {node.layer} is packed for {packed.plan}")
    residual = None if node.residual is None else tensors[node.residual]
    for t in (*outs, residual):
        if t is not None and t.plan.channels != packed.out_channels:
            raise ValueError(
                f"layer {node.layer} has {packed.out_channels} outputs, and a tensor that it writes or adds {t.plan.channels}"
            )


def _codes_only(x: list[Any]) -> None:
    if None in x:
        raise ValueError("it reads float32, expected codes; quantize in front of it")


def _max_pool(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    _codes_only(x)
    _require_kernel(node)
    _require_same(x[0], outs[0])


def _avg_pool(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    _codes_only(x)
    if node.op == "avg_pool2d":
        _require_kernel(node)
    _same_channels(node, layers, tensors, x, outs)


def _require_kernel(node: Node) -> None:
    if node.kernel is None:
        raise ValueError("it has no kernel; give (height, width)")


def _require_same(x: Codes, out: Codes | None) -> None:
    if out is None or not x.plan.same_activations(out.plan) or x.scale != out.scale:
        raise ValueError(f"it moves codes of {x} and writes {out}; both must be alike")


def _flatten(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    if x[0] is None and outs[0] is None:
        return
    _codes_only([x[0], outs[0]])
    pixels, rest = divmod(outs[0].plan.channels, x[0].plan.channels)
    if rest:
        raise ValueError(f"{x[0].plan.channels} channels do not make {outs[0].plan.channels} columns")
    _require_same(Codes(ops.flattened(x[0].plan, pixels), x[0].scale), outs[0])


def _concat(node: Node, layers: Any, tensors: Any, x: list[Any], outs: list[Any]) -> None:
    _codes_only(x)
    channels = sum(t.plan.channels for t in x)
    if any(out is not None and out.plan.channels != channels for out in outs):
        raise ValueError(f"its inputs have {channels} channels together, and it writes another number of them")


_CHECKS: dict[str, Any] = {
    "quantize": _quantize,
    "add": _add,
    "conv2d": _layer,
    "linear": _layer,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "global_avg_pool": _avg_pool,
    "flatten": _flatten,
    "concat": _concat,
}
