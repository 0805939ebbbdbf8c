"""A packed network as the list of operations that `soniq_kernels.network` runs without torch."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable

from torch import fx, nn

from soniq_kernels import network, tensors

from .layouts import CHANGES
from .nodes import LEAVES, op_of
from .packed_layers import PackedConv1d, PackedConv2d, PackedLayer
from .tracing import submodules, trace

Names = str | list[str]


def network_of(packed: nn.Module) -> network.Network:
    """The network that `convert` made, for NumPy: the same layers, the same bits; float32 images are NCHW, as in torch.

    Raises ValueError if it computes something on float32 that torch alone can, and names it; Untraceable (a ValueError) if
    torch.fx cannot trace it.
    """
    return _Export(packed).network()


class _Export(fx.Interpreter):
    """Walks the graph with names of tensors in place of tensors. known: {name: codes, or None for float32}."""

    def __init__(self, packed: nn.Module):
        super().__init__(packed, graph=trace(packed, LEAVES))
        self.nodes: list[network.Node] = []
        self.known: dict[str, tensors.Codes | None] = {}
        self.layers, self.inputs = {}, []
        self.modules_by_name = submodules(packed)

    def network(self) -> network.Network:
        result = self.run(enable_io_processing=False)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        return network.Network(self.nodes, self.layers, self.known, self.inputs, outputs, self._layout())

    def _layout(self) -> str:
        lines = any(isinstance(module, PackedConv1d) for module in self.modules_by_name.values())
        return "NCL" if lines else "NCHW"

    def run_node(self, node: fx.Node) -> Names:
        self.node = node
        return super().run_node(node)

    def placeholder(self, target, args, kwargs) -> str:
        self.inputs.append(target)
        self.known[target] = None
        return target

    def call_module(self, target, args, kwargs) -> Names:
        module = self.modules_by_name[target]
        if not isinstance(module, PackedLayer):
            return self._float(args)
        self.layers[target] = module.packed_weights()
        return self._layer(target, module, *args, **kwargs)

    def call_function(self, target, args, kwargs) -> Names:
        if target in CHANGES:  # the network knows the layout of what comes and goes
            return args[0]
        if target is operator.getitem and isinstance(args[0], list):
            return args[0][args[1]]
        name = str(target).removeprefix("soniq.").removesuffix(".default")
        return _OPS[name](self, *args) if name in _OPS else self._float(args)

    def call_method(self, target, args, kwargs) -> Names:
        return self._float(args)

    # --- nodes

    def _add(self, op: str, inputs: list[str], outs: list[tensors.Codes | None], **fields) -> list[str]:
        names = [self.node.name if len(outs) == 1 else f"{self.node.name}.{i}" for i in range(len(outs))]
        self.known |= dict(zip(names, outs, strict=True))
        self.nodes.append(network.Node(op, tuple(inputs), tuple(names), **fields))
        return names

    def _layer(
        self,
        target: str,
        module: PackedLayer,
        x: str,
        x_codes="",
        outs="",
        residual=None,
        residual_codes="",
        activation="null",
    ) -> Names:
        if getattr(module, "pixels", 1) > 1 and self.known[x] is None:
            raise ValueError(f"{target} reads a flattened image as float32, which torch alone can order as codes are")
        if module.input_factor is not None:
            raise ValueError(f"{target} multiplies the channels of its float32 input, which torch alone can")
        place = {}
        if isinstance(module, PackedConv2d):
            place = {"stride": module.place.stride, "padding": module.place.padding, "dilation": module.place.dilation}
        epilogue = {"layer": target, "residual": residual, "activation": _activation(activation)}
        written = tensors.parse_all(outs) if outs else [None]
        names = self._add("conv2d" if place else "linear", [x], written, **place, **epilogue)
        return names if outs else names[0]

    def _float(self, args) -> str:
        op = op_of(self.node, self.modules_by_name)
        if op.kind == "activation":
            return self._add("requantize", [args[0]], [None], activation=_named(op.activation))[0]
        if op.kind in ("same", "passed"):
            return args[0]
        raise ValueError(f"{self.node.format_node()} computes on float32, which torch alone can; use qat.load")

    def _quantize(self, x: str, outs: str) -> list[str]:
        return self._add("quantize", [x], tensors.parse_all(outs))

    def _sum(self, a: str, a_codes: str, b: str, b_codes: str, outs: str, activation: str) -> list[str]:
        return self._add("add", [a, b], tensors.parse_all(outs), activation=_activation(activation))

    def _max_pool(self, x: str, x_codes: str, kernel, stride, padding) -> str:
        places = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding)}
        return self._add("max_pool2d", [x], [tensors.parse(x_codes)], **places)[0]

    def _avg_pool(self, x: str, x_codes: str, kernel, stride, outs: str) -> list[str]:
        return self._add("avg_pool2d", [x], tensors.parse_all(outs), kernel=tuple(kernel), stride=tuple(stride))

    def _global_avg_pool(self, x: str, x_codes: str, outs: str) -> list[str]:
        return self._add("global_avg_pool", [x], tensors.parse_all(outs))

    def _flatten(self, x: str, x_codes: str) -> str:
        return self._add("flatten", [x], [self._read_as()])[0]

    def _read_as(self) -> tensors.Codes | None:
        """What the node's result is, as its reader says it."""
        reader = next(iter(self.node.users))
        return tensors.parse(reader.kwargs["x_codes"])

    def _concat(self, xs: list[str], xs_codes: str, outs: str) -> list[str]:
        return self._add("concat", xs, tensors.parse_all(outs))


_OPS: dict[str, Callable[..., Names]] = {
    "quantize_codes": _Export._quantize,
    "add_codes": _Export._sum,
    "max_pool2d_codes": _Export._max_pool,
    "avg_pool2d_codes": _Export._avg_pool,
    "global_avg_pool_codes": _Export._global_avg_pool,
    "flatten_codes": _Export._flatten,
    "concat_codes": _Export._concat,
}


def _activation(text: str) -> object:
    found = json.loads(text)
    return tuple(found) if isinstance(found, list) else found


def _named(activation: tuple) -> object:
    return activation[0] if len(activation) == 1 else activation
