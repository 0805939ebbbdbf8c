"""From a traced network of packed layers to one whose tensors between them are codes.

Backwards through the graph, every tensor learns how it will be read: as float32, or as codes of a reader's format, with an
activation function in front (a `Reading`). What makes the tensor then writes all of these in its epilogue, each once. A
maximum, a flattening and a concatenation hand readings on to what they read, since they do the same to codes as to values.

What has no form on codes stays as it is, on float32, and so does everything that it reads: `Lowered.floats` says where.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from soniq_kernels import tensors
from soniq_kernels.packing import Plan

from .between import between, name_of
from .edges import QuantAvgPool2d, QuantEdge
from .nodes import Activation, Op
from .packed_layers import PackedConv2d
from .placement import fusable_layer, layer_behind, ops_of, source
from .tracing import submodules


class Format(NamedTuple):
    """Codes of a tensor: the bits of every channel (one entry: of all), the grid, the scale.

    pixels: how often the channels repeat, in a flattened image.
    """

    kind: str
    bits: tuple[int, ...]
    scale: float
    pixels: int = 1

    @classmethod
    def of(cls, kind: str, bits: Sequence[int], scale: float, pixels: int = 1) -> Format:
        bits = tuple(bits) if len(set(bits)) > 1 else (bits[0],)
        return cls(kind, bits, float(scale), pixels)

    def codes(self, channels: int) -> tensors.Codes:
        """As the kernels say it, of a tensor with so many channels, all pixels counted."""
        bits = np.resize(np.array(self.bits), channels)
        return tensors.Codes(Plan.mixed(bits, a_grid=self.kind), np.float32(self.scale))

    def part(self, start: int, channels: int) -> Format:
        bits = self.bits if len(self.bits) == 1 else self.bits[start : start + channels]
        return Format.of(self.kind, bits, self.scale)


class Reading(NamedTuple):
    """How a tensor is read: through an activation function or none, a batch norm or none, as codes or (None) as float32."""

    activation: Activation | None
    format: Format | None
    norm: str | None = None


FLOATS = Reading(None, None)
MOST_OUTS = 4  # tensors that one pass writes


@dataclass
class Lowered:
    """graph: of the packed network. floats: what stayed float32 inside of it, and why. codes: how many tensors are codes."""

    graph: fx.Graph
    floats: list[str] = field(default_factory=list)
    codes: int = 0


def lower(model: nn.Module, graph: fx.Graph) -> Lowered:
    """The packed form of `graph`, the forward of `model`, whose layers and edges are packed already."""
    ops, modules = ops_of(graph, model), submodules(model)
    return _Emission(_Readings(ops, modules)).run()


class _Readings:
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
        fits = self.layout[op.inputs[0]] in (None, "image" if isinstance(layer, PackedConv2d) else "rows")
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
        if self.layout[op.inputs[0]] != "image" or FLOATS in self.of[node]:
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


def format_of(module: nn.Module) -> Format:
    """The codes that a packed layer or an edge reads."""
    if isinstance(module, QuantEdge):
        return Format.of(module.kind, module.widths, float(module.scale()))
    weights = module.packed_weights()
    segments, index = weights.plan.segments, weights.plan.segment_of()
    bits = np.array([segment.a.bits for segment in segments])[index]
    pixels = getattr(module, "pixels", 1)
    return Format.of(segments[0].a.kind, bits[: len(bits) // pixels].tolist(), float(weights.activation_scale), pixels)


def _layouts(ops: Mapping[fx.Node, Op], modules: Mapping[str, nn.Module]) -> dict[fx.Node, str | None]:
    """ "image": NCHW in torch, NHWC as codes. "rows": channels last in both. None: not known."""
    found: dict[fx.Node, str | None] = {}
    for node, op in ops.items():
        match op.kind:
            case "layer":
                found[node] = "image" if isinstance(modules[node.target], PackedConv2d) else "rows"
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


# --- forwards: the new graph -------------------------------------------------------------------------------------


class _Emission:
    """The pass forwards. made: {(tensor, reading): its codes in the new graph}; floats: {tensor: its float32 value}."""

    def __init__(self, readings: _Readings):
        self.readings, self.ops, self.modules = readings, readings.ops, readings.modules
        self.graph = fx.Graph()
        self.made: dict[tuple[fx.Node, Reading], fx.Node] = {}
        self.floats: dict[fx.Node, fx.Node] = {}

    def run(self) -> Lowered:
        for node, op in self.ops.items():
            if node in self.readings.as_is:
                self.floats[node] = self.graph.node_copy(node, self._float)
            else:
                getattr(self, f"_{op.kind}")(node, op)
        return Lowered(self.graph, self._reasons(), len(self.made))

    def _reasons(self) -> list[str]:
        """Every place between layers where codes had to become float32."""
        readings, layers = self.readings, [node for node, op in self.ops.items() if op.kind == "layer"]
        inside = between(self.ops, layers)
        reasons = [f"{name_of(node, self.modules)} {why}" for node, why in readings.as_is.items() if node in inside]
        mixed = [name_of(node, self.modules) for node in readings.spilled if node in inside]
        return reasons[::-1] + [f"{name} is read through different activation functions" for name in mixed]

    # --- values

    def _float(self, node: fx.Node) -> fx.Node:
        """A tensor as float32, laid out as torch does."""
        if node not in self.floats:
            self.floats[node] = self._float(self.ops[node].inputs[0])  # only handed on
        return self.floats[node]

    def _value(self, node: fx.Node, reading: Reading) -> tuple[fx.Node, bool]:
        """(a tensor as it is read, whether it is codes); where it is there as float32 only, float32 in torch's layout."""
        if (node, reading) in self.made:
            return self.made[node, reading], True
        op = self.ops[node]
        if node not in self.floats and op.kind in ("same", "passed"):
            return self._value(op.inputs[0], reading)
        if node not in self.floats and op.kind == "activation":
            return self._value(op.inputs[0], reading._replace(activation=op.activation))
        if node not in self.floats and op.kind == "norm":
            return self._value(op.inputs[0], reading._replace(norm=node.target))
        y = self._float(node)
        return y if reading.activation is None else self._activated(y, reading.activation), False

    def _activated(self, y: fx.Node, activation: Activation) -> fx.Node:
        function = {"relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh}[activation[0]]
        return self.graph.call_function(function, (y, *activation[1:]))

    def _codes(self, node: fx.Node, reading: Reading) -> fx.Node:
        """A tensor as codes: quantized here if what made it wrote float32."""
        y, is_codes = self._value(node, reading)
        if not is_codes:
            outs = tensors.describe_all([reading.format.codes(self.readings.channels[node])])
            y = self._call(torch.ops.soniq.quantize_codes, self._last(y, node), outs)
            y = self.made[node, reading] = self._item(y, 0)
        return y

    def _text(self, node: fx.Node, reading: Reading) -> str:
        return tensors.describe(reading.format.codes(self.readings.channels[node]))

    def _last(self, y: fx.Node, node: fx.Node) -> fx.Node:
        """Float32 with channels last."""
        return self.graph.call_method("permute", (y, 0, 2, 3, 1)) if self.readings.layout[node] == "image" else y

    def _call(self, function, *args) -> fx.Node:
        return self.graph.call_function(function, args)

    def _item(self, y: fx.Node, i: int) -> fx.Node:
        return self.graph.call_function(operator.getitem, (y, i))

    # --- what writes tensors

    def _write(self, node: fx.Node, call: Callable[[str, str], fx.Node]) -> None:
        """Everything that is wanted of a tensor. call: (outs, activation as JSON) -> list of tensors in the new graph."""
        wanted = [FLOATS] if node in self.readings.spilled else self.readings.of[node]
        for start in range(0, len(wanted), MOST_OUTS):  # more of them take another pass
            some = wanted[start : start + MOST_OUTS]
            outs = [None if r.format is None else r.format.codes(self.readings.channels[node]) for r in some]
            y = call(tensors.describe_all(outs), _json(wanted[0].activation))
            for i, reading in enumerate(some):
                self._keep(node, reading, self._item(y, i))

    def _keep(self, node: fx.Node, reading: Reading, y: fx.Node) -> None:
        flat = self.ops[node].kind == "average" and self.modules[node.target].flat
        if reading.format is not None:
            self.made[node, reading] = (
                self._call(torch.ops.soniq.flatten_codes, y, self._text(node, reading)) if flat else y
            )
        elif flat:
            self.floats[node] = self.graph.call_method("flatten", (y, 1))
        else:
            image = self.readings.layout[node] == "image"
            self.floats[node] = self.graph.call_method("permute", (y, 0, 3, 1, 2)) if image else y

    def _layer(self, node: fx.Node, op: Op) -> None:
        if node not in self.readings.fused:
            self._run_layer(node, node, {})

    def _run_layer(self, layer: fx.Node, result: fx.Node, residual: dict[str, object]) -> None:
        """A layer whose epilogue ends in the tensor `result`."""
        module, read = self.modules[layer.target], self.ops[layer].inputs[0]
        reading = Reading(None, format_of(module))
        x, is_codes = self._value(read, reading) if reading in self.readings.of[read] else (self._float(read), False)
        if not is_codes and not residual and self.readings.of[result] == [FLOATS]:
            self.floats[result] = self.graph.call_module(layer.target, (x,))
            return
        norm = next((r.norm for r in self.readings.of[result]), None)
        if norm is not None:
            module.take(self.modules[norm])
        text = tensors.describe(reading.format.codes(module.channels) if is_codes else None)

        def call(outs: str, activation: str) -> fx.Node:
            epilogue = {"x_codes": text, "outs": outs, "activation": activation, **residual}
            return self.graph.call_module(layer.target, (x,), epilogue)

        self._write(result, call)

    def _add(self, node: fx.Node, op: Op) -> None:
        edges = [t for t in op.inputs if self.ops[source(t, self.ops)].kind == "edge"]
        readings = [Reading(None, format_of(self.modules[source(t, self.ops).target])) for t in edges]
        added = [(self._codes(t, r), self._text(t, r)) for t, r in zip(edges, readings, strict=True)]
        layer = next((layer for layer, total in self.readings.fused.items() if total is node), None)
        if layer is not None:
            self._run_layer(layer, node, {"residual": added[0][0], "residual_codes": added[0][1]})
        else:
            (a, a_text), (b, b_text) = added
            self._write(node, lambda outs, act: self._call(torch.ops.soniq.add_codes, a, a_text, b, b_text, outs, act))

    def _average(self, node: fx.Node, op: Op) -> None:
        pool, read = self.modules[node.target], op.inputs[0]
        reading = Reading(None, format_of(pool.edge))
        x, text = self._codes(read, reading), self._text(read, reading)
        self._write(node, lambda outs, act: self._averaged(pool, x, text, outs, act))

    def _averaged(self, pool: QuantAvgPool2d, x: fx.Node, text: str, outs: str, _: str) -> fx.Node:
        ops = torch.ops.soniq
        if pool.kernel is not None:
            return self._call(ops.avg_pool2d_codes, x, text, list(pool.kernel), list(pool.stride or pool.kernel), outs)
        return self._call(ops.global_avg_pool_codes, x, text, outs)

    # --- what hands codes on

    def _edge(self, node: fx.Node, op: Op) -> None:
        own = Reading(None, format_of(self.modules[node.target]))
        if self.readings.of[node] == [own]:
            self.made[node, own] = self._codes(op.inputs[0], own)
        else:  # nothing that adds codes
            self.floats[node] = self.graph.node_copy(node, self._float)

    def _activation(self, node: fx.Node, op: Op) -> None:
        pass  # in the epilogue of what it reads

    _same = _passed = _norm = _activation

    def _max_pool(self, node: fx.Node, op: Op) -> None:
        kernel, stride, padding = op.window or ((1, 1), (1, 1), (0, 0))
        for reading in self.readings.of[node]:
            x, text = self._codes(op.inputs[0], reading), self._text(op.inputs[0], reading)
            places = [list(kernel), list(stride), [padding[0], padding[0], padding[1], padding[1]]]
            self.made[node, reading] = self._call(torch.ops.soniq.max_pool2d_codes, x, text, *places)

    def _flatten(self, node: fx.Node, op: Op) -> None:
        for reading in self.readings.of[node]:
            inner = reading._replace(format=reading.format._replace(pixels=1))
            x, text = self._codes(op.inputs[0], inner), self._text(op.inputs[0], inner)
            self.made[node, reading] = self._call(torch.ops.soniq.flatten_codes, x, text)

    def _concat(self, node: fx.Node, op: Op) -> None:
        for reading in self.readings.of[node]:
            parts = self.readings.parts(op, reading)
            xs = [self._codes(tensor, part) for tensor, part in zip(op.inputs, parts, strict=True)]
            described = [p.format.codes(self.readings.channels[t]) for t, p in zip(op.inputs, parts, strict=True)]
            outs = tensors.describe_all([reading.format.codes(self.readings.channels[node])])
            y = self._call(torch.ops.soniq.concat_codes, xs, tensors.describe_all(described), outs)
            self.made[node, reading] = self._item(y, 0)

    def _input(self, node: fx.Node, op: Op) -> None:
        self.floats[node] = self.graph.node_copy(node)

    def _output(self, node: fx.Node, op: Op) -> None:
        self.graph.node_copy(node, self._float)


def _json(activation: Activation | None) -> str:
    """An activation function as the ops take it: null, "relu", ["hardtanh", low, high]."""
    return json.dumps(activation[0] if activation is not None and len(activation) == 1 else activation)
