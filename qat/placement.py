"""Where a traced network needs quantizers beside those of its layers, and which layers read one tensor.

Between two quantized layers every tensor shall be codes. Most of it needs nothing new: activation functions join the layer
in front of them, and maximum, flattening and concatenation do not change codes. A sum or a mean of codes needs to know the
codes' values: there `place` puts a QuantEdge, whose precision is fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from .nodes import Op, op_of
from .tracing import submodules

CARRIES_ROWS = ("activation", "same", "passed")
# Codes in, codes out: no quantizer of their own.
CARRIES = ("activation", "max_pool", "flatten", "concat", "same", "passed", "norm")


@dataclass
class Placement:
    """The sums and means of a network that convert can compute on codes.

    operands: {a sum: {operand that needs a quantizer: the tensor that it hands on, which gets it}}.
    means: average pools, each with a quantizer of its own.
    """

    operands: dict[fx.Node, dict[fx.Node, fx.Node]] = field(default_factory=dict)
    means: list[fx.Node] = field(default_factory=list)

    def names(self) -> dict[str, object]:
        """The same by the names of the nodes: what a file keeps."""
        operands = {
            total.name: {read.name: root.name for read, root in tensors.items()}
            for total, tensors in self.operands.items()
        }
        return {"sums": operands, "means": [mean.name for mean in self.means]}

    @classmethod
    def of_names(cls, names: dict, graph: fx.Graph) -> Placement:
        """The inverse of `names`, in another trace of the same forward. Raises KeyError for a name that is not there."""
        nodes = {node.name: node for node in graph.nodes}
        operands = {
            nodes[total]: {nodes[read]: nodes[root] for read, root in tensors.items()}
            for total, tensors in names["sums"].items()
        }
        return cls(operands, [nodes[name] for name in names["means"]])

    def summed(self, graph: fx.Graph) -> list[fx.Node]:
        """Every tensor that a sum reads through a quantizer, once, in the order of execution."""
        found = {root for tensors in self.operands.values() for root in tensors.values()}
        return [node for node in graph.nodes if node in found]


def ops_of(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, Op]:
    """What every node is, in the order of execution."""
    modules = submodules(model)
    return {node: op_of(node, modules) for node in graph.nodes}


def ops_of_float(
    graph: fx.Graph, model: nn.Module, taken: Collection[nn.Module], gone: Collection[nn.Module]
) -> dict[fx.Node, Op]:
    """The same before layers are swapped: `taken` will be quantized, `gone` (batch norms) will be part of them."""
    modules, ops = submodules(model), ops_of(graph, model)
    for node in ops:
        module = modules.get(node.target) if node.op == "call_module" else None
        if module in gone or module in taken:
            ops[node] = Op("passed" if module in gone else "layer", tuple(node.all_input_nodes))
    return ops


def norms_behind(ops: dict[fx.Node, Op], modules: Mapping[str, nn.Module]) -> dict[fx.Node, nn.BatchNorm2d]:
    """Batch norms that alone read what a layer and an activation function make; `ops` says so from now on."""
    calls = Counter(node.target for node in ops if node.op == "call_module")
    found = {}
    for node in ops:
        module = modules.get(node.target) if node.op == "call_module" else None
        reads = node.all_input_nodes
        if type(module) is nn.BatchNorm2d and calls[node.target] == 1 and len(reads) == 1 and has_statistics(module):
            layer = layer_behind(reads[0], ops)
            if layer is not None and calls[layer.target] == 1:
                found[node], ops[node] = module, Op("norm", (reads[0],))
    return found


def has_statistics(norm: nn.Module) -> bool:
    """Fixed float32 statistics, and nothing attached to the module."""
    mean = norm.running_mean
    hooks = norm._forward_hooks or norm._forward_pre_hooks
    return mean is not None and mean.dtype == torch.float32 and not hooks


def layer_behind(tensor: fx.Node, ops: Mapping[fx.Node, Op]) -> fx.Node | None:
    """The layer that an activation function alone reads, whose result alone `tensor` is; None for any other origin."""
    activations = 0
    while len(tensor.users) == 1:
        op = ops[tensor]
        if op.kind == "layer":
            return tensor if activations == 1 else None
        if op.kind not in ("activation", "same", "passed"):
            return None
        activations += op.kind == "activation"
        tensor = op.inputs[0]
    return None


def place(ops: Mapping[fx.Node, Op], shapes: Mapping[fx.Node, torch.Size]) -> Placement:
    """Which sums and means become sums and means of codes; shapes: of every tensor, on an example."""
    found, in_codes, read_as = Placement(), _can_be_codes(ops), {node: set() for node in ops}
    for node in reversed(ops):
        op, wanted = ops[node], set(read_as[node])
        if op.kind == "add" and node in in_codes and wanted == {"codes"} and _same_shape(op.inputs, shapes):
            found.operands[node] = {read: source(read, ops) for read in _operands(op, ops)}
        elif op.kind == "mean" and op.inputs[0] in in_codes and window_of(op, shapes[op.inputs[0]]) is not None:
            found.means.append(node)
            wanted = {"codes"}
        elif op.kind == "layer":
            wanted = {"codes"}
        elif op.kind not in CARRIES:
            wanted = {"floats"}
        for read in op.inputs:
            read_as[read] |= wanted
    found.means.reverse()
    return found


def _can_be_codes(ops: Mapping[fx.Node, Op]) -> set[fx.Node]:
    """Tensors that come from a quantized layer by operations on codes."""
    found: set[fx.Node] = set()
    for node, op in ops.items():
        inputs = [read in found for read in op.inputs]
        carried = op.kind in (*CARRIES, "mean", "average", "edge") and all(inputs)
        if op.kind == "layer" or carried or (op.kind == "add" and any(inputs)):
            found.add(node)
    return found


def _same_shape(tensors: tuple[fx.Node, ...], shapes: Mapping[fx.Node, torch.Size]) -> bool:
    return len({shapes.get(tensor) for tensor in tensors}) == 1


def _operands(op: Op, ops: Mapping[fx.Node, Op]) -> list[fx.Node]:
    """The operands of a sum that need a quantizer: all but one that a layer computes for this sum alone.

    That layer adds in its epilogue, in float32. If there are two of them, it is the one that runs last.
    """
    order = list(ops)
    alone = [tensor for tensor in op.inputs if fusable_layer(tensor, ops) is not None]
    if not alone or len(set(op.inputs)) == 1:
        return list(op.inputs)
    last = max(alone, key=order.index)
    return [tensor for tensor in op.inputs if tensor is not last]


def fusable_layer(tensor: fx.Node, ops: Mapping[fx.Node, Op]) -> fx.Node | None:
    """The layer whose output is `tensor`, if nothing else reads it."""
    while len(tensor.users) == 1:
        op = ops[tensor]
        if op.kind == "layer":
            return tensor
        if op.kind not in ("same", "passed"):
            return None
        tensor = op.inputs[0]
    return None


def source(tensor: fx.Node, ops: Mapping[fx.Node, Op]) -> fx.Node:
    """The node that made a tensor which others only hand on."""
    return through(tensor, ops, ("same",))


def through(tensor: fx.Node, ops: Mapping[fx.Node, Op], kinds: Collection[str]) -> fx.Node:
    """Back from a tensor past all operations of these kinds."""
    while ops[tensor].kind in kinds:
        tensor = ops[tensor].inputs[0]
    return tensor


def window_of(op: Op, shape: torch.Size | None) -> tuple[tuple[int, int] | None, tuple[int, int] | None] | None:
    """(kernel, stride) of an average pool on a tensor of this shape, (None, None) for the whole image; None: not even parts."""
    if shape is None or len(shape) != 4:
        return None
    if op.window is not None:
        return op.window[:2]
    if op.parts == (1, 1):
        return None, None
    if any(size % parts for size, parts in zip(shape[2:], op.parts, strict=True)):
        return None
    kernel = tuple(size // parts for size, parts in zip(shape[2:], op.parts, strict=True))
    return kernel, kernel


# --- into the graph ----------------------------------------------------------------------------------------------


def insert(graph: fx.Graph, placement: Placement, prefix: str) -> None:
    """Call the quantizers `<prefix><name of the tensor>` and the pools `<prefix><name of the pool>` in a traced graph."""
    made: dict[fx.Node, fx.Node] = {}
    for root in placement.summed(graph):
        with graph.inserting_after(root):
            made[root] = graph.call_module(f"{prefix}{root.name}", (root,))
    for total, tensors in placement.operands.items():
        total.args = tuple(made[tensors[arg]] if arg in tensors else arg for arg in total.args)
    for mean in placement.means:
        with graph.inserting_before(mean):
            pool = graph.call_module(f"{prefix}{mean.name}", (mean.all_input_nodes[0],))
        mean.replace_all_uses_with(pool)
        graph.erase_node(mean)


# --- layers that read one tensor ---------------------------------------------------------------------------------


def readers(ops: Mapping[fx.Node, Op]) -> dict[fx.Node, list[str]]:
    """{tensor: names of the layers that read it}, in the order of execution; layers that run more than once are left out."""
    calls = [node for node, op in ops.items() if op.kind == "layer"]
    targets = [node.target for node in calls]
    found: dict[fx.Node, list[str]] = {}
    for node in calls:
        if targets.count(node.target) == 1:
            found.setdefault(source(ops[node].inputs[0], ops), []).append(node.target)
    return found


def pixels_of(ops: Mapping[fx.Node, Op], shapes: Mapping[fx.Node, torch.Size]) -> dict[str, int]:
    """{name of a Linear that reads a flattened image: the image's pixels}."""
    found = {}
    for node, op in ops.items():
        flat = ops[through(op.inputs[0], ops, CARRIES_ROWS)] if op.kind == "layer" else None
        if flat is not None and flat.kind == "flatten":
            shape = shapes.get(flat.inputs[0], ())
            if len(shape) == 4 and shape[2] * shape[3] > 1:
                found[node.target] = shape[2] * shape[3]
    return found
