"""Codes from one layout of rows to another: for a layer of other groups, from and to stored order, an image into one row.

Byte j of a new row is byte source[j] of the old one, or 0 for padding, with the bits of flips[j] turned: 128 where codes of 8 bits
change between uint8 and signed bytes. A program takes some rows of one part (group and segment, layout.py), and sums its bytes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl

from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels.launch import launch
from soniq_kernels.triton_kernels.layout import channel_zeros, row_layout

CHUNK = 4096


@triton.jit
def move_kernel(
    x, x_stride, rows, source, flips, spans, data, row_bytes, sums, parts,
    SUMS: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    ok = row < rows
    start = tl.load(spans + 2 * part)
    width = tl.load(spans + 2 * part + 1)
    total = tl.zeros((BR,), tl.int32)
    for first in range(0, width, BK):
        at = first + tl.arange(0, BK)
        inside = at < width
        channel = tl.load(source + start + at, mask=inside, other=-1)
        real = (inside & (channel >= 0))[None, :] & ok[:, None]
        byte = tl.load(x + row.to(tl.int64)[:, None] * x_stride + channel[None, :], mask=real, other=0)
        byte = byte ^ tl.load(flips + start + at, mask=inside, other=0)[None, :]
        to = data + row.to(tl.int64)[:, None] * row_bytes + (start + at)[None, :]
        tl.store(to, byte, mask=inside[None, :] & ok[:, None])
        total += tl.sum(byte.to(tl.int8, bitcast=True).to(tl.int32), axis=1)
    if SUMS:
        tl.store(sums + row * parts + part, total, mask=ok)


# ---- host --------------------------------------------------------------------------------------------------------------
Rows = tuple[
    torch.Tensor, torch.Tensor
]  # int8 [rows, row bytes] and int32 [rows, parts]; uint8 [rows, channels] where groups are 0


def relaid(x: torch.Tensor, plan: Plan, old: int | None, new: int) -> Rows:
    """Rows for other groups. `old` None: uint8 codes [rows, channels] in the original order of channels."""
    return _moved(x, plan, new, _tables(plan, old, new, x.device))


def in_original_order(x: torch.Tensor, plan: Plan, old: int) -> torch.Tensor:
    """uint8 [rows, channels] in the original order of channels."""
    data = torch.empty((x.shape[0], plan.channels), dtype=torch.uint8, device=x.device)
    _launch(x, _original_tables(plan, old, x.device), data, data, 1)
    return data


def flattened(x: torch.Tensor, images: int, plan: Plan, groups: int, flat: Plan) -> Rows:
    """Rows of pixels, those of an image after each other, to rows of images with the plan `flat`."""
    pixels = x.shape[0] // max(1, images)
    whole = x.as_strided((images, pixels * x.stride(0)), (pixels * x.stride(0), 1))
    return _moved(whole, flat, groups, _flat_tables(plan, groups, flat, pixels, x.stride(0), x.device))


def _moved(x: torch.Tensor, plan: Plan, groups: int, tables: tuple[torch.Tensor, ...]) -> Rows:
    layout, rows, dtype = row_layout(plan, groups), x.shape[0], torch.int8 if groups else torch.uint8
    data = torch.empty((rows, layout.row_bytes), dtype=dtype, device=x.device)
    parts = max(1, groups) * len(layout.first)
    sums = torch.empty((rows, parts if groups else 0), dtype=torch.int32, device=x.device)
    _launch(x, tables, data, sums, parts)
    return data, sums


def _launch(
    x: torch.Tensor, tables: tuple[torch.Tensor, ...], data: torch.Tensor, sums: torch.Tensor, parts: int
) -> None:
    rows, width = data.shape
    chunk = min(CHUNK, max(32, triton.next_power_of_2(width // parts)))
    block_rows = max(1, min(8, CHUNK // chunk, triton.next_power_of_2(max(1, rows))))
    launch(
        move_kernel, (-(-rows // block_rows), parts),
        (x.view(torch.uint8), x.stride(0), rows, *tables, data.view(torch.uint8), width, sums, parts),
        dict(SUMS=int(sums.dtype == torch.int32 and sums.numel() > 0), BR=block_rows, BK=chunk), num_warps=4,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _tables(plan: Plan, old: int | None, new: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """(source, flips, spans) of `relaid`."""
    layout = row_layout(plan, new)
    position = np.arange(plan.channels) if old is None else row_layout(plan, old).position
    flips = channel_zeros(plan, old or 0) ^ channel_zeros(plan, new)
    return _uploaded(layout.source, position, flips, _spans(plan, new), device)


@lru_cache(maxsize=1024)
def _original_tables(plan: Plan, old: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    every = np.arange(plan.channels)
    return _uploaded(every, row_layout(plan, old).position, channel_zeros(plan, old), [(0, plan.channels)], device)


@lru_cache(maxsize=1024)
def _flat_tables(
    plan: Plan, groups: int, flat: Plan, pixels: int, stride: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Column p * channels + c of the flat row is channel c of pixel p."""
    position = (np.arange(pixels)[:, None] * stride + row_layout(plan, groups).position).reshape(-1)
    return _uploaded(row_layout(flat, groups).source, position, np.zeros_like(position), _spans(flat, groups), device)


@lru_cache(maxsize=1024)
def spans(plan: Plan, groups: int, device: torch.device) -> torch.Tensor:
    """int32 [parts, 2]: first byte and bytes of every part of a row."""
    return torch.tensor(_spans(plan, groups), dtype=torch.int32, device=device)


def _spans(plan: Plan, groups: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of every part."""
    layout = row_layout(plan, groups)
    return [
        (group * layout.group_bytes + first, width)
        for group in range(max(1, groups))
        for first, width in zip(layout.first, layout.padded, strict=True)
    ]


def _uploaded(
    source: np.ndarray, position: np.ndarray, flips: np.ndarray, spans: list[tuple[int, int]], device: torch.device
) -> tuple[torch.Tensor, ...]:
    """`source` names the channel of each new byte, -1 for padding; `position` and `flips` are those of channels in the old row."""
    real = source >= 0
    tables = (
        np.where(real, position[source], -1).astype(np.int32),
        np.where(real, flips[source], 0).astype(np.uint8),
        np.array(spans, np.int32),
    )
    return tuple(torch.from_numpy(table).to(device) for table in tables)
