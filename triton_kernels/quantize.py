"""Floats of a tensor on a GPU to rows of code bytes and their sums: the one quantizer of docs/arithmetic.md.

A program takes some rows and one part (group and segment, layout.py) of them: it gathers the part's channels, quantizes, writes
the bytes with their padding, and sums them. A "per_row" scale is found by the same program where a row has a scale of its own;
for images, where many programs share a scale, by `amax_kernel` before.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from soniq_kernels.activations import MAX_SCALE, MIN_SCALE, PER_ROW
from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels import epilogue
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, one_scale
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.launch import launch, require_usable
from soniq_kernels.triton_kernels.layout import row_layout, zero_point

GIVEN, OWN_ROW, MEASURED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # where a scale comes from
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CHUNK = 4096


@triton.jit
def magnitudes(x):
    """|x| as float32, 0 for NaN."""
    x = tl.abs(x.to(tl.float32))
    return tl.where(x == x, x, 0.0)


@triton.jit
def dynamic_scale(amax, factor):
    """clamp(amax * factor, 2^-100, 2^100)."""
    scale = amax * factor
    scale = tl.where(scale > 2.0**-100, scale, 2.0**-100)
    return tl.where(scale < 2.0**100, scale, 2.0**100)


@triton.jit
def amax_kernel(x, size, amax, CHUNK: tl.constexpr, ASM: tl.constexpr):
    """amax[i] = the largest of amax[i] and |x| of group i, of `size` values; non-negative floats are ordered as their bits are."""
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(x + tl.program_id(0).to(tl.int64) * size + at, mask=at < size, other=0.0)
    tl.atomic_max(amax + tl.program_id(0), tl.max(magnitudes(values), axis=0).to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def quantize_kernel(
    x, channels, rows, source, part_floats, part_ints, amax, factor, scale, rows_per_scale, data, row_bytes, sums, parts,
    SCALING: tl.constexpr, IN_ORDER: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    ok = row < rows
    x += row.to(tl.int64)[:, None] * channels
    if SCALING == GIVEN:
        own_scale = tl.load(scale + row // rows_per_scale, mask=ok, other=1.0)
    else:
        if SCALING == OWN_ROW:
            largest = tl.zeros((BR,), tl.float32)
            for first in range(0, channels, BK):
                at = first + tl.arange(0, BK)
                values = tl.load(x + at[None, :], mask=ok[:, None] & (at < channels)[None, :], other=0.0)
                largest = tl.maximum(largest, tl.max(magnitudes(values), axis=1))
        else:
            largest = tl.load(amax + row // rows_per_scale, mask=ok, other=0).to(tl.float32, bitcast=True)
        own_scale = dynamic_scale(largest, factor)
        if part == 0:
            tl.store(scale + row // rows_per_scale, own_scale, mask=ok & (row % rows_per_scale == 0))
    r = tl.div_rn(tl.zeros((BR,), tl.float32) + tl.load(part_floats + 3 * part), own_scale)
    z = tl.load(part_floats + 3 * part + 1)
    cmax = tl.load(part_floats + 3 * part + 2)
    start = tl.multiple_of(tl.load(part_ints + 3 * part), 16)
    width = tl.multiple_of(tl.load(part_ints + 3 * part + 1), 16)
    zero = tl.load(part_ints + 3 * part + 2)
    total = tl.zeros((BR,), tl.int32)
    for first in range(0, width, BK):
        at = first + tl.arange(0, BK)
        inside = at < width
        if IN_ORDER:
            channel = at
        else:
            channel = tl.load(source + start + at, mask=inside, other=-1)
        real = (inside & (channel >= 0) & (channel < channels))[None, :] & ok[:, None]
        values = tl.load(x + channel[None, :], mask=real, other=0.0).to(tl.float32)
        codes = epilogue.quantize(values, r[:, None], z, cmax) - zero
        codes = tl.where(real, codes, 0)
        total += tl.sum(codes, axis=1)
        to = data + row.to(tl.int64)[:, None] * row_bytes + (start + at)[None, :]
        tl.store(to, codes.to(tl.int8), mask=inside[None, :] & ok[:, None])
    tl.store(sums + row * parts + part, total, mask=ok)


# ---- host --------------------------------------------------------------------------------------------------------------


def quantize_activations(x: Any, plan: Plan, scale: Any, groups: int = 1) -> DeviceActivations:
    """Floats on a GPU to codes; the same codes as on the CPU for the same float32 values. Nothing is checked for being finite.

    Args:
        x: float32, float16 or bfloat16 [..., channels] or NHWC, a torch tensor or what torch.from_dlpack takes.
        plan: of the tensor. groups: of the layer that reads the codes.
        scale: a float; a float32 tensor, one per row or one per NHWC image; or "per_row": from the largest |x| of each of them.
    """
    x = checked(x, plan)
    require_usable(x.device)
    layout, rows = row_layout(plan, groups), math.prod(x.shape[:-1])
    scaling, scales = _scales(x, scale)
    data = torch.empty((rows, layout.row_bytes), dtype=torch.int8, device=x.device)
    sums = torch.empty((rows, groups * len(layout.first)), dtype=torch.int32, device=x.device)
    result = DeviceActivations(data, sums, tuple(x.shape), plan, scales, groups)
    if not rows:
        return result
    factor = float(plan.widest_activation.dynamic_factor) if scaling != GIVEN.value else 0.0
    amax = _amax(x, scales) if scaling == MEASURED.value else sums
    floats, ints, source = _tables(plan, groups, x.device)
    chunk = min(CHUNK, max(32, triton.next_power_of_2(max(layout.padded))))
    block_rows = max(1, min(8, CHUNK // chunk, triton.next_power_of_2(rows)))
    launch(
        quantize_kernel, (-(-rows // block_rows), sums.shape[1]),
        (x, plan.channels, rows, source, floats, ints, amax, factor, scales, result.rows_per_scale, data,
         layout.row_bytes, sums, sums.shape[1]),
        dict(SCALING=scaling, IN_ORDER=int(plan.in_order and groups == 1), BR=block_rows, BK=chunk), num_warps=8,
    )  # fmt: skip
    return result


def operand(x: Any, weights: DeviceWeights) -> DeviceActivations:
    """`x` as `weights` can read it: codes of its plan, laid out for its groups; floats are quantized here."""
    if isinstance(x, DeviceActivations):
        require_same_plan(x, weights)
        return x.laid_out_for(weights.groups)
    return quantize_activations(floats(x, weights), weights.plan, weights.activation_scale, weights.groups)


def require_same_plan(x: DeviceActivations, weights: DeviceWeights) -> None:
    if x.plan.channels != weights.plan.channels or not x.plan.same_activations(weights.plan):
        raise ValueError(
            f"x was quantized for {x.plan} but the weights are packed for {weights.plan}; quantize x with weights.plan"
        )


def floats(x: Any, weights: DeviceWeights) -> torch.Tensor:
    """A float tensor that `weights` have a scale for."""
    if weights.activation_scale is None:
        raise ValueError(
            "x is not quantized and the packed weights have no activation_scale; pass quantize_activations(x, "
            'weights.plan, scale), or pack with activation_scale="per_row"'
        )
    return checked(x, weights.plan)


def checked(x: Any, plan: Plan) -> torch.Tensor:
    """A float tensor of the plan's channels."""
    x = as_tensor(x, "x")
    if x.dtype not in FLOATS:
        raise TypeError(f"x is {x.dtype}, expected torch.float32, torch.float16 or torch.bfloat16")
    if x.dim() < 1 or x.shape[-1] != plan.channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)} but the plan has {plan.channels} channels, the last axis (NHWC)"
        )
    return x.contiguous()


def as_tensor(x: Any, name: str) -> torch.Tensor:
    """A torch tensor of the same memory."""
    if isinstance(x, torch.Tensor):
        return x.detach()
    if hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray):
        return torch.from_dlpack(x)
    raise TypeError(f"{name} is a {type(x).__name__}, expected a torch tensor or another array on the GPU")


def _scales(x: torch.Tensor, scale: Any) -> tuple[int, torch.Tensor]:
    """Where the scales come from, and the tensor that holds them."""
    each = x.shape[:1] if x.dim() == 4 else x.shape[:-1]
    if isinstance(scale, str):
        if scale != PER_ROW:
            raise ValueError(f'scale is {scale!r}, expected a float, a float32 tensor or "per_row"')
        own = torch.empty(math.prod(each), dtype=torch.float32, device=x.device)
        return (MEASURED if x.dim() == 4 else OWN_ROW).value, own
    if isinstance(scale, torch.Tensor):
        if scale.dtype != torch.float32 or scale.numel() not in (1, math.prod(each)):
            raise ValueError(f"scale is {scale.dtype} {tuple(scale.shape)}, expected torch.float32 () or {tuple(each)}")
        return GIVEN.value, scale.to(x.device).reshape(-1)
    if not MIN_SCALE <= np.float32(scale) <= MAX_SCALE:
        raise ValueError(f"scale is {scale}, expected a float in [2**-100, 2**100]")
    return GIVEN.value, one_scale(float(np.float32(scale)), x.device)


def _amax(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The bits of the largest |x| of each image, int32."""
    size = x.numel() // max(1, scales.numel())
    amax = torch.zeros(scales.numel(), dtype=torch.int32, device=x.device)
    launch(amax_kernel, (scales.numel(), -(-size // CHUNK)), (x, size, amax), dict(CHUNK=CHUNK))
    return amax


@lru_cache(maxsize=1024)
def _tables(plan: Plan, groups: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per part (r * scale, z, cmax) float32 and (first byte, bytes, zero point) int32; the channel of each byte."""
    layout, grids = row_layout(plan, groups), [s.a for s in plan.segments]
    floats = [(g.r_numerator, g.z, g.cmax) for _ in range(groups) for g in grids]
    ints = [
        (group * layout.group_bytes + layout.first[s], layout.padded[s], zero_point(g))
        for group in range(groups)
        for s, g in enumerate(grids)
    ]
    tables = np.array(floats, np.float32), np.array(ints, np.int32), layout.source
    return tuple(torch.from_numpy(table).to(device) for table in tables)
