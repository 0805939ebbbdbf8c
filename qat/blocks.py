"""Kernel blocks: what the kernels compute of a segment, which is more than its channels.

A segment's run of codes (the channels of a Linear, the taps of one line of a convolution) is padded to whole steps of the
kernel's inner loop: 64 channels of a bit plane, 64 codes of a matrix register, else 32. A second segment pads a second time. This is an estimate:
convolutions with few channels make one run of all their lines, and products of bytes skip the end of a run (csrc/README.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Block(NamedTuple):
    """run: codes that a run is padded to; pixel: codes that a convolution's pixel is padded to."""

    run: int
    pixel: int


BYTES, PLANES, MATRICES = Block(32, 4), Block(64, 64), Block(64, 4)


def block_of(family: str, tier: str) -> Block:
    """The block of a kernel family of a tier."""
    if family == "reference":
        return Block(1, 1)
    if (family, tier) == ("dot", "amx"):
        return MATRICES
    return PLANES if family == "popcount" else BYTES


def padded(count: NDArray[np.float64], width: int, block: Block) -> NDArray[np.float64]:
    """Channels that are computed for segments of `count` each, where a line of the kernel has `width` taps."""
    pixel = _up(count, block.pixel) if width > 1 else count
    return _up(width * pixel, block.run) / width


def _up(count: NDArray[np.float64], unit: int) -> NDArray[np.float64]:
    return np.ceil(np.asarray(count, np.float64) / unit) * unit
