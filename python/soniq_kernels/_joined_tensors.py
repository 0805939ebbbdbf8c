"""Which tensors of a network are joined: written as codes of one grid, in the original order of the channels (_joined.py).

Codes of two segments cost their writer a shuffle for every eight of them, and a reader of a residual as much; a layer that
multiplies them joined has to make them so first. A tensor between nodes can be written joined, if every layer that reads it
reads the same joined codes. Whether it should be is a question of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from soniq_kernels._joined import JoinedGrids

if TYPE_CHECKING:
    from soniq_kernels.network import Network, Node

APART_NS = 0.5  # of a code of two segments, to bring it to its place and to find it there
LAYERS = ("conv2d", "linear")
POOLS = ("avg_pool2d", "global_avg_pool")
OPS = (*LAYERS, *POOLS, "max_pool2d", "requantize", "relu", "relu6", "add", "concat")
MOST_SUMMED = 2**20  # codes of an average, so that a sum of their levels fits an int32

Shapes = Mapping[str, tuple[int, ...]]


def joined_tensors(
    net: Network, shapes: Shapes, joining_cost: Callable[[Node], float | None]
) -> dict[str, JoinedGrids]:
    """{tensor: the grids of the layers that read it} of all that should be joined.

    Args:
        shapes: of all tensors. joining_cost: ns that a layer takes more if it reads joined codes; None where it cannot.
    """
    found: dict[str, JoinedGrids] = {}
    for names in _pooled_together(net):
        layers = [node for node in net.nodes if node.op in LAYERS and node.inputs[0] in names]
        grids = _grids_of(net, layers)
        if grids is None or not all(_can_be(net, name, shapes) for name in names):
            continue
        costs = [joining_cost(node) for node in layers]
        saved = sum(APART_NS * math.prod(shapes[name]) for name in names)
        if None not in costs and sum(cost for cost in costs if cost is not None) < saved:
            found |= dict.fromkeys(names, grids)
    return found


def _pooled_together(net: Network) -> list[set[str]]:
    """Tensors, those together that maxima make of each other: the largest of some codes is a code like these."""
    groups = {name: {name} for name in net.tensors}
    for node in net.nodes:
        if node.op == "max_pool2d":
            both = groups[node.inputs[0]] | groups[node.outputs[0]]
            groups |= dict.fromkeys(both, both)
    return list({id(group): group for group in groups.values()}.values())


def _grids_of(net: Network, layers: list[Node]) -> JoinedGrids | None:
    """What all these layers read; None if they differ, or there is none."""
    grids = [net.layers[node.layer or ""].joined_grids for node in layers]
    if not grids or None in grids:
        return None
    alike = {(g.a, g.steps) for g in grids if g is not None}
    return grids[0] if len(alike) == 1 else None


def _can_be(net: Network, name: str, shapes: Shapes) -> bool:
    """Whether a tensor is of two segments, and everybody who writes or reads it knows joined codes."""
    codes = net.tensors[name]
    if codes is None or codes.plan.in_order or name in (*net.inputs, *net.outputs):
        return False
    users = [node for node in net.nodes if name in (*node.reads, *node.outputs)]
    summed = any(node.op in POOLS and math.prod(shapes[name][1:3]) > MOST_SUMMED for node in users)
    return all(node.op in OPS for node in users) and not summed
