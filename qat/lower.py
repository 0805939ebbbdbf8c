"""From a traced network of packed layers to one whose tensors between them are codes.

Backwards through the graph, every tensor learns how it will be read: as float32, or as codes of a reader's format, with an
activation function in front (a `Reading`). What makes the tensor then writes all of these in its epilogue, each once. A
maximum, a flattening and a concatenation hand readings on to what they read, since they do the same to codes as to values.

What has no form on codes stays as it is, on float32, and so does everything that it reads: `Lowered.floats` says where.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from soniq_kernels import tensors

from .between import between, name_of
from .edges import QuantAvgPool2d
from .layouts import FIRST, LAST
from .nodes import Activation, Op
from .placement import ops_of, source
from .readings import FLOATS, Reading, Readings, format_of
from .tracing import submodules

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
    return _Emission(Readings(ops, modules)).run()


class _Emission:
    """The pass forwards. made: {(tensor, reading): its codes in the new graph}; floats: {tensor: its float32 value}."""

    def __init__(self, readings: Readings):
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
        change = LAST.get(self.readings.layout[node])
        return y if change is None else self.graph.call_function(change, (y,))

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
            change = FIRST.get(self.readings.layout[node])
            self.floats[node] = y if change is None else self.graph.call_function(change, (y,))

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
