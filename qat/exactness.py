"""What the bits of a layer imply: exponents, the largest sum, and the float type that holds every sum exactly."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from soniq_kernels.packing import Grid

from .geometry import along_weight

WEIGHT_GRID = "bipolar"
FLOAT32_EXACT = 2**24
INT32_MAX = 2**31 - 1


Pair = tuple[int, int]  # bits of the weights, bits of the activations


def segment_exponent(pair: Pair, kind: str, w_kind: str = WEIGHT_GRID) -> int:
    """e_s: the power of two that a product of a weight level and an activation level carries."""
    return Grid(w_kind, pair[0]).exponent + Grid(kind, pair[1]).exponent


def result_exponent(pairs: Collection[Pair], kind: str, w_kind: str = WEIGHT_GRID) -> int:
    """E: the smallest e_s of the precisions that are there; the integer result counts in units of 2^E."""
    return min(segment_exponent(pair, kind, w_kind) for pair in pairs)


def accumulator_bound(pairs: Sequence[Pair], kind: str, taps: int, groups: int, w_kind: str = WEIGHT_GRID) -> int:
    """The largest |acc| any input and any weights can give; `pairs` has one entry for every input channel."""
    there = set(pairs)
    lowest, per_group = result_exponent(there, kind, w_kind), len(pairs) // groups
    cost = {p: taps * _largest_product(p, kind, w_kind) << (segment_exponent(p, kind, w_kind) - lowest) for p in there}
    return max(sum(cost[p] for p in pairs[start : start + per_group]) for start in range(0, len(pairs), per_group))


def _largest_product(pair: Pair, kind: str, w_kind: str) -> int:
    weight, activation = Grid(w_kind, pair[0]), Grid(kind, pair[1])
    return weight.max_level * max(abs(activation.min_level), activation.max_level)


def segment_factor(bits: tuple[Tensor, Tensor], weight: Tensor, kind: str, pairs: Sequence[Pair]) -> Tensor | None:
    """2^(e_s - E) along the weight: brings every segment to the units of the result. None where all are 1.

    bits: of the weights and of the activations, int64 [input channels] each.
    """
    if len(pairs) == 1:
        return None
    lowest = result_exponent(pairs, kind)
    factors = torch.ones(9, 9)
    for pair in pairs:
        factors[pair] = 2.0 ** (segment_exponent(pair, kind) - lowest)
    return along_weight(factors.to(bits[0].device)[bits], weight)


def float32_is_exact(device: torch.device) -> bool:
    """False while the user allows TF32 or bfloat16 inside float32 products on this kind of device."""
    cpu, gpu = torch.backends.mkldnn, torch.backends.cuda
    try:
        settings = (
            (cpu.matmul.fp32_precision, cpu.conv.fp32_precision)
            if device.type == "cpu"
            else (gpu.matmul.fp32_precision,)
        )
    except AttributeError:  # torch before 2.9 has one setting for all
        return torch.get_float32_matmul_precision() == "highest"
    return all(setting in ("none", "ieee") for setting in settings)
