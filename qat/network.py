"""What prepare learns about a network as a whole: its graph, which layers read one tensor, where quantizers are missing."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .edges import QuantAvgPool2d, QuantEdge
from .nodes import Op
from .observe import Seen, frozen
from .placement import insert, norms_behind, ops_of_float, pixels_of, place, readers, source, window_of
from .tensors import fit_input
from .tracing import VIEW, Untraceable, give_forward, submodules, trace

EDGES = "soniq_edges"  # where the quantizers of edges live in the model
PREFIX = f"{EDGES}.at_"  # of the name of the node that one belongs to


@dataclass
class Network:
    """A traced float model. Without a graph: why not.

    readers: {tensor: names of the layers that read it}; pixels: {Linear: pixels of the flattened image it reads}.
    norms: batch norms behind activation functions, which layers can take into their epilogue.
    """

    untraced: str = ""
    graph: fx.Graph | None = None
    ops: Mapping[fx.Node, Op] = field(default_factory=dict)
    shapes: Mapping[fx.Node, torch.Size] = field(default_factory=dict)
    seen: Mapping[fx.Node, Seen] = field(default_factory=dict)
    readers: Mapping[fx.Node, list[str]] = field(default_factory=dict)
    pixels: Mapping[str, int] = field(default_factory=dict)
    norms: list[nn.BatchNorm2d] = field(default_factory=list)


def study(
    model: nn.Module, taken: Collection[nn.Module], folded: Collection[nn.Module], example_input: object, result: object
) -> Network:
    """Trace a float model; `result` is what it computes of the example, which the graph has to compute too."""
    try:
        graph = trace(model)
        ops = ops_of_float(graph, model, taken, folded)
        norms = list(norms_behind(ops, submodules(model)).values())
        run = _Run(model, graph, _tensors_of_edges(ops))
        with frozen(model), torch.no_grad():
            _refuse_other_result(run.run(*_arguments(model, example_input), enable_io_processing=False), result)
    except Untraceable as reason:
        return Network(untraced=str(reason))
    return Network("", graph, ops, run.shapes, run.seen, readers(ops), pixels_of(ops, run.shapes), norms)


def add_edges(model: nn.Module, network: Network, bits: int) -> None:
    """Put quantizers where sums and means read codes, in place; the model's forward becomes its graph if there are any."""
    if network.graph is None:
        return
    placement = place(network.ops, network.shapes)
    views = any(node.meta.get(VIEW) for node in network.graph.nodes)
    if not (placement.operands or placement.means or views):
        return
    holder = nn.Module()
    for tensor in placement.summed(network.graph):
        holder.add_module(f"at_{tensor.name}", _edge(network, tensor, bits))
    for mean in placement.means:
        read = network.ops[mean].inputs[0]
        kernel, stride = window_of(network.ops[mean], network.shapes[read]) or (None, None)
        pool = QuantAvgPool2d(_edge(network, source(read, network.ops), bits), kernel, stride, network.ops[mean].flat)
        holder.add_module(f"at_{mean.name}", pool)
    model.add_module(EDGES, holder.to(next(model.parameters()).device).train(model.training))
    model.soniq_placement = placement.names()
    insert(network.graph, placement, PREFIX)
    give_forward(model, network.graph)


def _edge(network: Network, tensor: fx.Node, bits: int) -> QuantEdge:
    seen = network.seen[tensor]
    edge = QuantEdge(bits, "unsigned" if seen.smallest >= 0 else "bipolar")
    fit_input(edge, bits, seen)
    return edge


# --- one run of the graph ----------------------------------------------------------------------------------------


def _tensors_of_edges(ops: Mapping[fx.Node, Op]) -> set[fx.Node]:
    """Everything that might get a quantizer: what sums and means read."""
    return {source(read, ops) for op in ops.values() if op.kind in ("add", "mean") for read in op.inputs}


class _Run(fx.Interpreter):
    """Runs a graph once and keeps the shape of every tensor and what those asked for look like."""

    def __init__(self, model: nn.Module, graph: fx.Graph, wanted: Collection[fx.Node]):
        super().__init__(model, graph=graph)
        self.wanted, self.shapes, self.seen = wanted, {}, {}

    def run_node(self, node: fx.Node) -> object:
        try:
            value = super().run_node(node)
        except Exception as error:
            raise Untraceable(f"its traced forward fails: {type(error).__name__}: {error}") from error
        if isinstance(value, Tensor):
            self.shapes[node] = value.shape
            if node in self.wanted:
                self.seen[node] = Seen(order=len(self.seen))
                self.seen[node].record(value)
        return value


def _arguments(model: nn.Module, example_input: object) -> list[object]:
    """The example, in the order of the forward's parameters."""
    keywords = dict(example_input) if isinstance(example_input, Mapping) else {}
    positions = () if keywords else example_input if isinstance(example_input, (tuple, list)) else (example_input,)
    bound = inspect.signature(model.forward).bind(*positions, **keywords)
    bound.apply_defaults()
    if bound.kwargs:
        raise Untraceable("its forward takes keyword-only or any number of arguments")
    return list(bound.args)


def _refuse_other_result(got: object, expected: object) -> None:
    pairs = list(zip(tree_leaves(got), tree_leaves(expected), strict=False))
    same = len(tree_leaves(got)) == len(tree_leaves(expected)) and all(_equal(*pair) for pair in pairs)
    if not same:
        raise Untraceable("its traced forward computes something else")


def _equal(a: object, b: object) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) and isinstance(b, Tensor) else True
