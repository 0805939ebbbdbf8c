"""What bits cost on this machine: the time of products at a pair of widths, from the table that the kernels are chosen by.

`soniq calibrate` measures the table; docs/planner.md describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _costs, isa, planner

from .blocks import Block, block_of, padded
from .exactness import Pair
from .layers import QuantLayer

Cost = Literal["bits", "time"]
LEAST_SAVING = 0.01  # of a channel's time: where the low precision saves nothing, its bits still count a little
_K = 1024  # any: a product's time does not depend on it


_machine: tuple[str, _costs.Pairs] | None = None  # tier and costs of another one than this


class machine:
    """Time is counted by another machine's table from here on; as a context manager, until the end of the block.

    tier: of that machine's kernels, such as "avx512_vbmi"; None: this machine again. table: the file that `soniq calibrate
    --out` wrote there; None: the first of the tables that ship which has the tier. Raises ValueError for a tier that the table
    does not have.
    """

    def __init__(self, tier: str | None, table: str | Path | None = None):
        global _machine
        found: dict[str, _costs.Pairs] = {}
        for source in [] if tier is None else _costs.shipped() if table is None else [_costs.read(table)]:
            found = source.tiers | found
        if tier is not None and tier not in found:
            raise ValueError(f"the table has no tier {tier}, it has {', '.join(found)}")
        self._before, _machine = _machine, None if tier is None else (tier, found[tier])

    def __enter__(self) -> machine:
        return self

    def __exit__(self, *_: object) -> None:
        global _machine
        _machine = self._before


class _Chosen(NamedTuple):
    """Who multiplies, and how long it takes."""

    family: str
    tier: str
    ns: float


def _chosen(w_bits: int, a_bits: int, outputs: int, rows: int) -> _Chosen:
    """For a product [rows, _K] x [_K, outputs]."""
    if _machine is not None:
        tier, costs = _machine
        times = {family: cost.ns(rows, outputs, _K) for family, cost in costs[w_bits, a_bits].items()}
        family = min(times, key=lambda each: times[each])
        return _Chosen(family, tier, times[family])
    choice = planner.choose(isa.active(), w_bits, a_bits, rows, outputs, _K)
    return _Chosen(choice.family, choice.tier, choice.ns)


def product_ns(w_bits: int, a_bits: int, outputs: int, rows: int) -> float:
    """ns of one product of a layer with so many outputs in a call of so many rows, by the kernel that would be chosen.

    outputs: of one group. rows: of the matrix product, the output pixels of a convolution.
    Raises ValueError on the tier "reference", which has nothing to choose from.
    """
    return _chosen(w_bits, a_bits, outputs, rows).ns / (rows * outputs * _K)


def _block(pair: Pair, outputs: int, rows: int) -> Block:
    if _machine is None and isa.active() == "reference":
        return block_of("reference", "reference")
    chosen = _chosen(*pair, outputs, rows)
    return block_of(chosen.family, chosen.tier)


def relative_time(w_bits: int, a_bits: int, outputs: int, rows: int) -> float:
    """Time of a product over its time with 8-bit weights and 8-bit activations, in the same layer."""
    return product_ns(w_bits, a_bits, outputs, rows) / product_ns(8, 8, outputs, rows)


def bit_cost(layer: QuantLayer, cost: Cost = "bits") -> int:
    """What one more bit of an input channel of this layer costs, beside the other layers.

    "bits": its weights. "time": picoseconds of one sample, a bit's share of what the palette's low level saves.
    Raises ValueError for another name.
    """
    _check(cost)
    if cost == "bits":
        return layer.weights_per_channel
    low, high = layer.palette
    outputs = len(layer.weight) // layer.groups
    products = layer.weights_per_channel * layer.rows
    pairs = zip((high, low), layer.input.a_palette[::-1], strict=True)
    slow, fast = (products * product_ns(*pair, outputs, layer.rows) for pair in pairs)
    saving = 0.0 if _is_depthwise(layer) else slow - fast
    return max(1, round(1000 * max(saving, LEAST_SAVING * slow) / (high - low)))


def layer_cost(layer: QuantLayer, low: Pair, high: Pair, cost: Cost = "bits") -> NDArray[np.float64]:
    """What the layer costs with 0, 1, ... all channels of its input at the pair `high`, the rest at `low`.

    "bits": of its weights, float64 [C + 1]. "time": picoseconds of one sample, what the kernels pad included.
    """
    _check(cost)
    if cost == "bits":
        count = np.arange(len(layer.input.bits) + 1) * float(layer.spread * layer.weights_per_channel)
        return low[0] * count[::-1] + high[0] * count
    products = layer.rows * layer.weights_per_channel * 1000  # of one channel
    outputs = len(layer.weight) // layer.groups
    if _is_depthwise(layer):
        return np.full(len(layer.input.bits) + 1, products * layer.channels * product_ns(8, 8, outputs, layer.rows))
    times = [product_ns(*pair, outputs, layer.rows) for pair in (low, high)]
    return products * sum(ns * each for ns, each in zip(times, _padded(layer, low, high), strict=True))


def padded_channels(layer: QuantLayer, low: Pair, high: Pair) -> NDArray[np.float64]:
    """Channels that the kernels compute where 0, 1, ... all channels of the input have the pair `high`: float64 [C + 1]."""
    return sum(_padded(layer, low, high))


def _padded(layer: QuantLayer, low: Pair, high: Pair) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same of the low and of the high segment."""
    outputs, shape = len(layer.weight) // layer.groups, layer.weight.shape
    count = np.arange(len(layer.input.bits) + 1) * layer.spread / layer.groups
    width = shape[-1] if len(shape) > 2 else 1
    blocks = (_block(pair, outputs, layer.rows) for pair in (low, high))
    parts = zip((count[::-1], count), blocks, strict=True)
    lower, upper = (layer.groups * padded(part, width, block) for part, block in parts)
    return lower, upper


class Shape(NamedTuple):
    """Of a layer's products. width: taps of a line of the kernel; outputs: of one group."""

    width: int
    groups: int
    outputs: int
    rows: int

    def computed(self, count: int, pair: Pair) -> float:
        """Channels that the kernels compute for a segment of `count`."""
        each = np.array(count / self.groups)
        return self.groups * float(padded(each, self.width, _block(pair, self.outputs, self.rows)))


def padding(pairs: Mapping[Pair, int], shape: Shape) -> float:
    """What the kernels compute beside the channels, as a share of the channels; pairs: {precisions: channels}."""
    channels = sum(pairs.values())
    if shape.groups == channels > 1:
        return 0.0  # depthwise
    return sum(shape.computed(count, pair) for pair, count in pairs.items()) / channels - 1


def time_of(pairs: Mapping[Pair, int], shape: Shape) -> float | None:
    """Time of the products over their time at 8 bits, what is padded included; None without a table to tell it."""
    channels = sum(pairs.values())
    if _machine is None and isa.active() == "reference":
        return None
    if shape.groups == channels > 1:
        return 1.0  # depthwise
    spent, full = (
        sum(shape.computed(n, pair) * product_ns(*pair, shape.outputs, shape.rows) for pair, n in each.items())
        for each in (pairs, {(8, 8): channels})
    )
    return spent / full


def _check(cost: str) -> None:
    if cost not in ("bits", "time"):
        raise ValueError(f"cost is {cost!r}, expected 'bits' or 'time'")


def _is_depthwise(layer: QuantLayer) -> bool:
    """Its kernel works on levels of 16 bits, whatever the precision."""
    return layer.groups == layer.channels == len(layer.weight) > 1
