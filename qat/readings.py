"""How every tensor of a packed network will be read: the pass backwards of `lower`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import fx, nn

from soniq_kernels import tensors
from soniq_kernels.activations import PER_ROW
from soniq_kernels.packing import Plan

from .edges import QuantEdge
from .exactness import Pair
from .nodes import Activation, Op
from .packed_layers import PackedConv1d, PackedConv2d
from .placement import fusable_layer, layer_behind, source


class Format(NamedTuple):
    """Codes of a tensor: the grid, the scale, and of every channel (one entry: of all) the bits of the weights that read it
    and its own, since channels are stored as the layer sorts them.

    pixels: how often the channels repeat, in a flattened image.
    """

    kind: str
    bits: tuple[Pair, ...]
    scale: float
    pixels: int = 1

    @classmethod
    def of(cls, kind: str, bits: Sequence[Pair], scale: float, pixels: int = 1) -> Format:
        bits = tuple(bits) if len(set(bits)) > 1 else (bits[0],)
        return cls(kind, bits, float(scale), pixels)

    def codes(self, channels: int) -> tensors.Codes:
        """As the kernels say it, of a tensor with so many channels, all pixels counted."""
        w_bits, a_bits = np.resize(np.array(self.bits), (channels, 2)).T
        plan = Plan.mixed(w_bits=w_bits, a_bits=a_bits, a_grid=self.kind)
        return tensors.Codes(plan, np.float32(self.scale))

    def part(self, start: int, channels: int) -> Format:
        bits = self.bits if len(self.bits) == 1 else self.bits[start : start + channels]
        return Format.of(self.kind, bits, self.scale)


class Reading(NamedTuple):
    """How a tensor is read: through an activation function or none, a batch norm or none, as codes or (None) as float32."""

    activation: Activation | None
    format: Format | None
    norm: str | None = None


FLOATS = Reading(None, None)


class Readings:
    """The pass backwards.

    of: how every tensor is read. as_is: nodes that stay what they are, on float32. spilled: tensors whose readers want
    different activation functions, so that they are written as float32. fused: {layer: the sum in its epilogue}.
    """

    def __init__(self, ops: Mapping[fx.Node, Op], modules: Mapping[str, nn.Module]):
        self.ops, self.modules = ops, modules
        self.of: dict[fx.Node, list[Reading]] = {node: [] for node in ops}
        self.as_is: dict[fx.Node, str] = {}
        self.spilled: set[fx.Node] = set()
        self.fused: dict[fx.Node, fx.Node] = {}
        self.layout, self.channels = _layouts(ops, modules), _channels(ops, modules)
        for node in reversed(ops):
            getattr(self, f"_{ops[node].kind}", self._stays)(node, ops[node])

    def _want(self, tensor: fx.Node, *readings: Reading) -> None:
        self.of[tensor] += [r for r in readings if r not in self.of[tensor]]

    def _stays(self, node: fx.Node, op: Op, why: str = "has no form on codes") -> None:
        if op.kind != "input":
            self.as_is[node] = why
        for read in op.inputs:
            self._want(read, FLOATS)

    def _output(self, node: fx.Node, op: Op) -> None:
        for read in op.inputs:
            self._want(read, FLOATS)

    def _layer(self, node: fx.Node, op: Op) -> None:
        layer = self.modules[node.target]
        fits = self.layout[op.inputs[0]] in (None, _layout_of(layer))
        self._want(op.inputs[0], Reading(None, format_of(layer)) if fits else FLOATS)
        self._written(node)

    def _edge(self, node: fx.Node, op: Op) -> None:
        self._want(op.inputs[0], Reading(None, format_of(self.modules[node.target])))

    def _average(self, node: fx.Node, op: Op) -> None:
        if self.layout[op.inputs[0]] != "image":
            return self._stays(node, op)
        self._want(op.inputs[0], Reading(None, format_of(self.modules[node.target].edge)))
        self._written(node, activations=False)

    def _mean(self, node: fx.Node, op: Op) -> None:
        self._stays(node, op, "averages float32")

    def _add(self, node: fx.Node, op: Op) -> None:
        edges = [tensor for tensor in op.inputs if self.ops[source(tensor, self.ops)].kind == "edge"]
        rest = [tensor for tensor in op.inputs if tensor not in edges]
        layer = fusable_layer(rest[0], self.ops) if len(rest) == 1 else None
        layouts = {self.layout[tensor] for tensor in op.inputs}
        known = None not in layouts and None not in [self.channels[tensor] for tensor in op.inputs]
        if (rest and layer is None) or not known or len(layouts) > 1:
            return self._stays(node, op, "adds float32")
        if layer is not None:
            self.fused[layer] = node
        for edge in edges:
            self._want(edge, Reading(None, format_of(self.modules[source(edge, self.ops).target])))
        self._written(node)

    def _written(self, node: fx.Node, activations: bool = True) -> None:
        """One epilogue writes everything that is wanted, if all of it goes through one activation function."""
        wanted = {(reading.activation, reading.norm) for reading in self.of[node]}
        if len(wanted) > 1 or (wanted - {(None, None)} and not activations):
            self.spilled.add(node)

    def _activation(self, node: fx.Node, op: Op) -> None:
        wanted = self.of[node]
        if any(r.format is None or r.activation is not None for r in wanted):
            return self._stays(node, op, "its result is read as float32")
        self._want(op.inputs[0], *(r._replace(activation=op.activation) for r in wanted))

    def _norm(self, node: fx.Node, op: Op) -> None:
        wanted, layer = self.of[node], layer_behind(op.inputs[0], self.ops)
        if layer is None or any(r.format is None or r.activation is not None for r in wanted):
            return self._stays(node, op, "its result is read as float32")
        self._want(op.inputs[0], *(r._replace(norm=node.target) for r in wanted))

    def _same(self, node: fx.Node, op: Op) -> None:
        self._want(op.inputs[0], *self.of[node])

    _passed = _same

    def _max_pool(self, node: fx.Node, op: Op) -> None:
        if self.layout[op.inputs[0]] != op.layout or FLOATS in self.of[node]:
            return self._stays(node, op, "its result is read as float32")
        self._want(op.inputs[0], *self.of[node])

    def _flatten(self, node: fx.Node, op: Op) -> None:
        if self.layout[op.inputs[0]] != "image" or FLOATS in self.of[node]:
            return self._stays(node, op, "its result is read as float32")
        self._want(op.inputs[0], *(r._replace(format=r.format._replace(pixels=1)) for r in self.of[node]))

    def _concat(self, node: fx.Node, op: Op) -> None:
        sizes = [self.channels[read] for read in op.inputs]
        if {self.layout[read] for read in op.inputs} != {"image"} or None in sizes or FLOATS in self.of[node]:
            return self._stays(node, op, "its result is read as float32")
        for reading in self.of[node]:
            for read, part in zip(op.inputs, self.parts(op, reading), strict=True):
                self._want(read, part)

    def parts(self, op: Op, reading: Reading) -> list[Reading]:
        """How each tensor of a concatenation is read, where the whole is read like this."""
        sizes = [self.channels[read] for read in op.inputs]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [reading._replace(format=reading.format.part(*place)) for place in zip(starts, sizes, strict=True)]


def format_of(module: nn.Module) -> Format | None:
    """The codes that a packed layer or an edge reads; None of a layer that has float32 to do with: a scale for each row, a factor of each channel."""
    if isinstance(module, QuantEdge):
        return Format.of(module.kind, [(module.widths[0],) * 2], float(module.scale()))
    weights = module.packed_weights()
    if weights.activation_scale == PER_ROW or module.input_factor is not None:
        return None
    segments, index = weights.plan.segments, weights.plan.segment_of()
    bits = [(segments[i].w.bits, segments[i].a.bits) for i in index.tolist()]
    pixels = getattr(module, "pixels", 1)
    return Format.of(segments[0].a.kind, bits[: len(bits) // pixels], float(weights.activation_scale), pixels)


def _layout_of(layer: nn.Module) -> str:
    if isinstance(layer, PackedConv1d):
        return "line"
    return "image" if isinstance(layer, PackedConv2d) else "rows"


def _layouts(ops: Mapping[fx.Node, Op], modules: Mapping[str, nn.Module]) -> dict[fx.Node, str | None]:
    """ "image": NCHW in torch, NHWC as codes. "line": NCL in torch, NHWC of height 1 as codes. "rows": channels last in both. None: not known."""
    found: dict[fx.Node, str | None] = {}
    for node, op in ops.items():
        match op.kind:
            case "layer":
                found[node] = _layout_of(modules[node.target])
            case "average":
                found[node] = "rows" if modules[node.target].flat else "image"
            case "flatten":
                found[node] = "rows"
            case "input" | "output" | "other" | "mean":
                found[node] = None
            case _:
                found[node] = found[op.inputs[0]]
    return found


def _channels(ops: Mapping[fx.Node, Op], modules: Mapping[str, nn.Module]) -> dict[fx.Node, int | None]:
    """Channels of every tensor, where they are known."""
    found: dict[fx.Node, int | None] = {}
    for node, op in ops.items():
        read = [found[tensor] for tensor in op.inputs]
        match op.kind:
            case "layer":
                found[node] = modules[node.target].outputs
            case "concat":
                found[node] = None if None in read else sum(read)
            case "flatten" | "input" | "other" | "output":
                found[node] = None
            case _:
                found[node] = next((size for size in read if size is not None), None)
    return found
