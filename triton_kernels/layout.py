"""How a row of activation codes lies in GPU memory, and which byte stands for a code.

A row (a pixel of an NHWC image) is cut into groups, a group into the segments of the plan, and each of these parts is padded
to 16 bytes, so that every part can be read 16 bytes at a time:

    | group 0: low ......0 | group 0: high ...00 | group 1: low ......0 | group 1: high ...00 |

Bytes are int8, since that is what int8 tensor cores and dp4a take. A code of 1 to 7 bits is its own byte; a code of 8 bits
becomes s = code - 128. With zero point z (128 or 0) the level of a byte is

    l = alpha * code + beta = alpha * s + (beta + alpha * z)

so the algebra of docs/arithmetic.md holds for bytes as it stands, with beta' = beta + alpha * z in the place of beta. Padding
is byte 0 in both operands and adds nothing to any sum of products of bytes.

Groups 0 name another layout, that of the tensors of codes that torch ops pass on: uint8 codes in the order of storage of their
plan, without padding. No product reads it; `DeviceActivations.laid_out_for` makes rows of one from rows of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from soniq_kernels.plans import Grid, Plan

ALIGN = 16


def zero_point(grid: Grid) -> int:
    """z: the byte of a code is code - z."""
    return 128 if grid.bits == 8 else 0


def byte_beta(grid: Grid) -> int:
    """beta': the level of byte 0."""
    return grid.beta + grid.alpha * zero_point(grid)


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Where each channel's byte is.

    Attributes:
        groups: of the layer that reads the row; 0: codes in stored order, without padding.
        first: byte at which each segment begins inside its group. padded: bytes of each segment in a group.
        group_bytes, row_bytes: of one group, of the row.
        source: int32 [row_bytes], the original channel of each byte, -1 for padding.
        position: int32 [channels], the byte of each original channel.
    """

    groups: int
    first: tuple[int, ...]
    padded: tuple[int, ...]
    group_bytes: int
    row_bytes: int
    source: NDArray[np.int32]
    position: NDArray[np.int32]


@lru_cache(maxsize=1024)
def row_layout(plan: Plan, groups: int = 1) -> RowLayout:
    """The layout of rows of `plan` for a layer of so many groups, or with 0 of codes in stored order."""
    if groups == 0:
        return _stored(plan)
    index = plan.segment_of().reshape(groups, -1)
    counts = [int((index == s).sum(axis=1).max()) for s in range(len(plan.segments))]
    padded = tuple(-(-count // ALIGN) * ALIGN for count in counts)
    first = tuple(int(sum(padded[:s])) for s in range(len(padded)))
    group_bytes = sum(padded)
    source = np.full((groups, group_bytes), -1, np.int32)
    for group, row in enumerate(index):
        for s, at in enumerate(first):
            channels = np.flatnonzero(row == s)
            source[group, at : at + channels.size] = channels + group * row.size
    source = source.ravel()
    position = np.empty(plan.channels, np.int32)
    position[source[source >= 0]] = np.flatnonzero(source >= 0)
    return RowLayout(groups, first, padded, group_bytes, groups * group_bytes, source, position)


def _stored(plan: Plan) -> RowLayout:
    counts, first = tuple(s.channels for s in plan.segments), tuple(plan.first_channels)
    return RowLayout(0, first, counts, plan.channels, plan.channels, plan.permutation.astype(np.int32), plan.position)


def channel_zeros(plan: Plan, groups: int = 1) -> NDArray[np.int32]:
    """int32 [channels]: the zero point of each original channel in rows of this layout."""
    return np.array([zero_point(s.a) if groups else 0 for s in plan.segments], np.int32)[plan.segment_of()]
