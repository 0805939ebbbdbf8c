"""Packed weights as a GPU reads them: bytes of several codes each, "planar inside a block", so that unpacking is mask and shift.

K is cut into slices of L codes (L = 64, or 32 for layers of few channels); in a convolution a slice lies within one tap. Each
code is cut into parts of 4, 2 and 1 bits (5 = 4 + 1, 7 = 4 + 2 + 1; 8 bits are one part), and a byte row of L bytes packs the
same part of 8/b consecutive slices:

    byte row of 2-bit parts, L bytes      byte j = | slice 3, code j | slice 2, code j | slice 1, code j | slice 0, code j |
                                                    bits 7..6           5..4              3..2              1..0

A block is the fewest slices that fill whole byte rows of every part: 8 where there is a 1-bit part, 4 for 2 and 6 bits, 2 for 4,
1 for 8. So a row of weights takes exactly its bits, and `(bytes >> shift) & mask` of a contiguous run of bytes is a contiguous
run of codes, the left operand of one dot.

PN outputs are stored together:        panel[group][n // PN][block][byte row][n % PN][byte]

which makes a tile of PN x L bytes contiguous. The same panels serve the vector path (4 bytes are one dp4a operand).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
from numpy.typing import NDArray

from soniq_kernels.triton_kernels.layout import byte_beta, row_layout, zero_point
from soniq_kernels.weights import PackedWeights

INT32_MAX = 2**31 - 1


@triton.constexpr_function
def parts_of(bits: int) -> tuple[int, ...]:
    """The widths that a code is cut into, the lowest bits first."""
    return (8,) if bits == 8 else tuple(b for b in (4, 2, 1) if bits & b)


@triton.constexpr_function
def slices_of(bits: int) -> int:
    """Slices in a block."""
    return 8 // parts_of(bits)[-1]


@triton.constexpr_function
def rows_of(bits: int) -> int:
    """Byte rows in a block."""
    return slices_of(bits) * bits // 8


@dataclass(frozen=True)
class SegmentShape:
    """The sizes of one segment's panels.

    Attributes:
        bits: of a weight code. slice: L, codes in a slice. slices_per_tap. blocks: in a row of weights.
        factor: log2 of what this segment's sums of products of bytes count in the accumulator.
        row_factor: what its sum of activation bytes counts in the accumulator.
    """

    bits: int
    slice: int
    slices_per_tap: int
    blocks: int
    factor: int
    row_factor: int


@dataclass(frozen=True)
class Panels:
    """The weights of a layer as NumPy arrays, ready to be copied to a GPU.

    Attributes:
        shapes: per segment. arrays: per segment, uint8 [groups, n blocks, blocks * byte rows, PN, L].
        panel_outputs: PN. group_outputs: outputs of a group.
        tap_sums: per segment int64 [outputs, taps], the sum of weight bytes; tap_counts: per segment int64 [groups], channels.
        saturates: whether a sum of products of bytes may leave int32 on the way to a result that does not.
    """

    shapes: tuple[SegmentShape, ...]
    arrays: tuple[NDArray[np.uint8], ...]
    panel_outputs: int
    group_outputs: int
    tap_sums: tuple[NDArray[np.int64], ...]
    tap_counts: tuple[NDArray[np.int64], ...]
    saturates: bool


def build(packed: PackedWeights) -> Panels:
    """The panels of `packed`, which must still have its portable copy."""
    plan, groups, layout = packed.plan, packed.groups, row_layout(packed.plan, packed.groups)
    taps = packed.kernel_size[0] * packed.kernel_size[1]
    each = packed.out_channels // groups
    codes = packed.codes().reshape(groups, each, taps, -1)
    panel_outputs = min(64, max(16, 1 << (each - 1).bit_length()))
    index = plan.segment_of().reshape(groups, -1)
    shapes, arrays, sums, counts = [], [], [], []
    for s, segment in enumerate(plan.segments):
        size = 64 if layout.padded[s] >= 64 else 32
        per_tap = -(-layout.padded[s] // size)
        bits = segment.w.bits
        blocks = -(-taps * per_tap // slices_of(bits))
        own = np.zeros((groups, each, taps, per_tap * size), np.uint8)
        for g in range(groups):
            channels = np.flatnonzero(index[g] == s)
            own[g, :, :, : channels.size] = codes[g][..., channels] - np.uint8(zero_point(segment.w))
        sums.append(own.view(np.int8).sum(axis=-1, dtype=np.int64).reshape(-1, taps))
        counts.append((index == s).sum(axis=1))
        scale = segment.exponent - plan.exponent
        factor = scale + int(np.log2(segment.w.alpha * segment.a.alpha))
        row_factor = (1 << scale) * byte_beta(segment.w) * segment.a.alpha
        shapes.append(SegmentShape(bits, size, per_tap, blocks, factor, row_factor))
        arrays.append(_pack(own.reshape(groups, each, -1), shapes[-1], panel_outputs))
    return Panels(
        tuple(shapes), tuple(arrays), panel_outputs, each, tuple(sums), tuple(counts), _saturates(packed, shapes)
    )


def _pack(codes: NDArray[np.uint8], shape: SegmentShape, panel_outputs: int) -> NDArray[np.uint8]:
    """Codes [groups, outputs, slices * L] -> [groups, n blocks, blocks * byte rows, PN, L]."""
    groups, outputs, k = codes.shape
    n_blocks, per_block = -(-outputs // panel_outputs), slices_of(shape.bits)
    full = np.zeros((groups, n_blocks * panel_outputs, shape.blocks * per_block * shape.slice), np.uint8)
    full[:, :outputs, :k] = codes
    full = full.reshape(groups, n_blocks, panel_outputs, shape.blocks, per_block, shape.slice)
    rows, low = [], 0
    for width in parts_of(shape.bits):
        part = ((full >> low) & ((1 << width) - 1)).reshape(*full.shape[:4], -1, 8 // width, shape.slice)
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        rows.append(np.bitwise_or.reduce(part << shifts, axis=-2))
        low += width
    stacked = np.concatenate(rows, axis=4)  # [groups, n block, PN, block, byte row, L]
    return np.ascontiguousarray(stacked.transpose(0, 1, 3, 4, 2, 5)).reshape(
        groups, n_blocks, -1, panel_outputs, shape.slice
    )


def _saturates(packed: PackedWeights, shapes: list[SegmentShape]) -> bool:
    """Small int8 matrix instructions clamp to int32 instead of wrapping: may any sum on the way leave the range?"""
    taps = packed.kernel_size[0] * packed.kernel_size[1]
    index = packed.plan.segment_of().reshape(packed.groups, -1)
    least = min(shape.factor for shape in shapes)
    largest = 0
    for s, (segment, shape) in enumerate(zip(packed.plan.segments, shapes, strict=True)):
        k = taps * int((index == s).sum(axis=1).max())
        largest += k * _largest_byte(segment.w) * _largest_byte(segment.a) << (shape.factor - least)
    return largest > INT32_MAX


def _largest_byte(grid: Any) -> int:
    return 128 if grid.bits == 8 else grid.cmax


def column_terms(packed: PackedWeights, panels: Panels, taps: NDArray[np.bool_]) -> NDArray[np.int32]:
    """What does not depend on activations, over the given taps: int32 [classes, outputs] for bool [classes, taps].

    sum over segments of 2^(e_s - E) * (alpha_w * beta_a' * sum of weight bytes + K_s * beta_w' * beta_a'), modulo 2^32.
    """
    total = np.zeros((len(taps), packed.out_channels), np.int64)
    for segment, sums, counts in zip(packed.plan.segments, panels.tap_sums, panels.tap_counts, strict=True):
        beta_w, beta_a = byte_beta(segment.w), byte_beta(segment.a)
        k = taps.sum(axis=1)[:, None] * np.repeat(counts, panels.group_outputs)
        w = taps.astype(np.int64) @ sums.T
        total += (segment.w.alpha * beta_a * w + k * (beta_w * beta_a)) << (segment.exponent - packed.exponent)
    return total.astype(np.uint64).astype(np.uint32).view(np.int32)
