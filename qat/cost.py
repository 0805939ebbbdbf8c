"""What bits cost on this machine: the time of products at a pair of widths, from the table that the kernels are chosen by.

`soniq calibrate` measures the table; docs/planner.md describes it.
"""

from __future__ import annotations

from typing import Literal

from soniq_kernels import isa, planner

from .layers import QuantLayer

Cost = Literal["bits", "time"]
LEAST_SAVING = 0.01  # of a channel's time: where the low precision saves nothing, its bits still count a little
_K = 1024  # any: a product's time does not depend on it


def product_ns(w_bits: int, a_bits: int, outputs: int, rows: int) -> float:
    """ns of one product of a layer with so many outputs in a call of so many rows, by the kernel that would be chosen.

    outputs: of one group. rows: of the matrix product, the output pixels of a convolution.
    Raises ValueError on the tier "reference", which has nothing to choose from.
    """
    return planner.choose(isa.active(), w_bits, a_bits, rows, outputs, _K).ns / (rows * outputs * _K)


def relative_time(w_bits: int, a_bits: int, outputs: int, rows: int) -> float:
    """Time of a product over its time with 8-bit weights and 8-bit activations, in the same layer."""
    return product_ns(w_bits, a_bits, outputs, rows) / product_ns(8, 8, outputs, rows)


def bit_cost(layer: QuantLayer, cost: Cost = "bits") -> int:
    """What one more bit of an input channel of this layer costs, beside the other layers.

    "bits": its weights. "time": picoseconds of one sample, a bit's share of what the palette's low level saves.
    Raises ValueError for another name.
    """
    if cost == "bits":
        return layer.weights_per_channel
    if cost != "time":
        raise ValueError(f"cost is {cost!r}, expected 'bits' or 'time'")
    low, high = layer.palette
    outputs = len(layer.weight) // layer.groups
    products = layer.weights_per_channel * layer.rows
    slow, fast = (products * product_ns(bits, bits, outputs, layer.rows) for bits in (high, low))
    saving = 0.0 if _is_depthwise(layer) else slow - fast
    return max(1, round(1000 * max(saving, LEAST_SAVING * slow) / (high - low)))


def _is_depthwise(layer: QuantLayer) -> bool:
    """Its kernel works on levels of 16 bits, whatever the precision."""
    return layer.groups == layer.channels == len(layer.weight) > 1
