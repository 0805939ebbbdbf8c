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


def segment_exponent(bits: int, kind: str) -> int:
    """e_s: the power of two that a product of a weight level and an activation level carries."""
    return Grid(WEIGHT_GRID, bits).exponent + Grid(kind, bits).exponent


def result_exponent(widths: Collection[int], kind: str) -> int:
    """E: the smallest e_s of the precisions that are there; the integer result counts in units of 2^E."""
    return min(segment_exponent(bits, kind) for bits in widths)


def accumulator_bound(bits: Sequence[int], kind: str, taps: int, groups: int) -> int:
    """The largest |acc| any input and any weights can give; `bits` has one entry for every input channel."""
    lowest, per_group = result_exponent(set(bits), kind), len(bits) // groups
    cost = {p: taps * _largest_product(p, kind) << (segment_exponent(p, kind) - lowest) for p in set(bits)}
    return max(sum(cost[p] for p in bits[start : start + per_group]) for start in range(0, len(bits), per_group))


def _largest_product(bits: int, kind: str) -> int:
    weight, activation = Grid(WEIGHT_GRID, bits), Grid(kind, bits)
    return weight.max_level * max(abs(activation.min_level), activation.max_level)


def segment_factor(bits: Tensor, weight: Tensor, kind: str, widths: Sequence[int]) -> Tensor | None:
    """2^(e_s - E) along the weight: brings every segment to the units of the result. None where all are 1."""
    if len(widths) == 1:
        return None
    lowest = result_exponent(widths, kind)
    factors = [1.0] * 9
    for p in widths:
        factors[p] = 2.0 ** (segment_exponent(p, kind) - lowest)
    return along_weight(torch.tensor(factors, device=bits.device)[bits], weight)


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
