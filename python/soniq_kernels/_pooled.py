"""Which convolutions of a network write only what a max pooling behind them leaves (csrc/pooling.cpp)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from soniq_kernels.weights import PackedWeights

if TYPE_CHECKING:
    from soniq_kernels.network import Network, Node


class Pooled(NamedTuple):
    """A network without the poolings that its convolutions do, and these.

    Attributes:
        net: the nodes that are left. numbers: of these among all nodes.
        poolings: {first tensor that a convolution writes then: (number, pooling)}.
    """

    net: Network
    numbers: list[int]
    poolings: dict[str, tuple[int, Node]]


def pooled(net: Network) -> Pooled:
    """Every convolution that can do the poolings behind it does."""
    found = {node.outputs: pools for node in net.nodes if (pools := _poolings_of(net, node))}
    done = [pool for pools in found.values() for pool in pools]
    numbers = [number for number, node in enumerate(net.nodes) if node not in done]
    view = copy.copy(net)
    view.nodes = tuple(_with_pooling(net.nodes[number], found.get(net.nodes[number].outputs)) for number in numbers)
    poolings = {pools[0].outputs[0]: (net.nodes.index(pools[0]), pools[0]) for pools in found.values()}
    return Pooled(view, numbers, poolings)


def _with_pooling(node: Node, pools: list[Node] | None) -> Node:
    return replace(node, outputs=tuple(pool.outputs[0] for pool in pools)) if pools else node


def _poolings_of(net: Network, node: Node) -> list[Node] | None:
    """One for each tensor that a convolution writes, all alike, if nobody else reads these; None otherwise."""
    if node.op != "conv2d" or node.residual is not None or not _has_one_scale(net, node):
        return None
    pools = []
    for name in node.outputs:
        readers = [reader for reader in net.nodes if name in reader.reads]
        if net.tensors[name] is None or name in net.outputs or [r.op for r in readers] != ["max_pool2d"]:
            return None
        pools.append(readers[0])
    alike = {(str(pool.kernel), str(pool.stride), str(pool.padding)) for pool in pools}
    return pools if len(alike) == 1 else None


def _has_one_scale(net: Network, node: Node) -> bool:
    """Of the activations, and not one for each row."""
    packed: PackedWeights = net.layers[node.layer or ""]
    return net.tensors[node.inputs[0]] is not None or not isinstance(packed.activation_scale, str)
