"""What lies between the quantized layers of a network: where a packed one should hold codes and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .nodes import LEAVES
from .packed_layers import PackedLayer
from .tracing import submodules, trace


def float_tensors(packed: nn.Module, batch: Tensor) -> list[str]:
    """Names of the float32 tensors that run between the packed layers of a converted model, on one batch.

    Empty where convert has kept everything as codes. Raises Untraceable (a ValueError) for a model without a graph.
    """
    graph, modules = trace(packed, LEAVES), submodules(packed)
    layers = [n for n in graph.nodes if n.op == "call_module" and isinstance(modules[n.target], PackedLayer)]
    run = _Types(packed, graph)
    with torch.no_grad():
        run.run(batch)
    return [node.name for node in between(graph.nodes, layers) if node in run.floats]


def between(nodes: Iterable[fx.Node], layers: list[fx.Node]) -> list[fx.Node]:
    """Nodes whose result comes from one of the layers and goes into one, in the order of execution."""
    behind: set[fx.Node] = set()
    before: set[fx.Node] = set()
    nodes = list(nodes)
    for node in nodes:
        if node in layers or any(read in behind for read in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user in layers or user in before for user in node.users):
            before.add(node)
    return [node for node in nodes if node in behind and node in before]


def name_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """How a user knows an operation: "layer4.relu (ReLU)", "softmax"."""
    if node.op == "call_module":
        return f"{node.target} ({type(modules[node.target]).__name__})"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


class _Types(fx.Interpreter):
    """Runs a graph and remembers which nodes give float tensors."""

    def __init__(self, model: nn.Module, graph: fx.Graph):
        super().__init__(model, graph=graph)
        self.floats: set[fx.Node] = set()

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(value)):
            self.floats.add(node)
        return value
