"""The float32 operands of one shape, and the answers that every contender is held to before it is timed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import Shape
from soniq_kernels import packing

Floats = NDArray[np.float32]
MOST_RANDOM = 2**24  # weights that are drawn; larger matrices repeat their first rows, a multiple of eight


@dataclass(frozen=True)
class Operands:
    """x float32 [M, K] and w float32 [N, K]; w is `block` again and again, so that a large one is made in no time and its
    whole answer follows from that of the block."""

    x: Floats
    block: Floats
    repeats: int

    @classmethod
    def random(cls, shape: Shape, seed: int = 0) -> Operands:
        """Normal values, the same for every process that asks."""
        m, n, k = shape
        rows = n
        while rows * k > MOST_RANDOM and rows % 16 == 0:
            rows //= 2
        rng = np.random.default_rng(seed)
        x, block = (rng.standard_normal((count, k), dtype=np.float32) for count in (m, rows))
        return cls(x, block, n // rows)

    @property
    def w(self) -> Floats:
        """float32 [N, K], made anew at every call: who needs it for long keeps it."""
        return self.spread(self.block)

    def spread(self, rows: NDArray[Any]) -> NDArray[Any]:
        """What belongs to the block's rows, for every row of w."""
        return rows if self.repeats == 1 else np.tile(rows, (self.repeats, *[1] * (rows.ndim - 1)))

    def per_channel(self) -> tuple[NDArray[np.int8], Floats]:
        """(codes int8 [N, K], scales float32 [N]): weights as INT8 libraries take them, symmetric per output."""
        scales = (np.abs(self.block).max(axis=1) / 127).astype(np.float32)
        codes = np.clip(np.rint(self.block / scales[:, None]), -127, 127).astype(np.int8)
        return self.spread(codes), self.spread(scales)

    @cached_property
    def exact(self) -> Floats:
        """float32 [M, block's rows], the product without quantization."""
        return self.x @ self.block.T

    def error_of(self, y: Floats) -> float:
        """Mean |y - exact| over mean |exact| of a whole answer [M, N]; 1.4 is what unrelated numbers have."""
        by_block = y.reshape(y.shape[0], self.repeats, -1) - self.exact[:, None]
        return float(np.abs(by_block).mean() / np.abs(self.exact).mean())


def integers(x: packing.Activations, w_codes: NDArray[np.uint8], plan: packing.Plan) -> NDArray[np.int64]:
    """int64 [M, N], sums of products of levels in units of 2**plan.exponent, by NumPy.

    Products and partial sums are integers far below 2**53, so float64 holds each of them exactly, in any order.
    """
    index, x_codes = plan.segment_of(), x.codes()
    total = np.zeros((x.shape[0], w_codes.shape[0]))
    for i, segment in enumerate(plan.segments):
        a, w = segment.a.levels(x_codes[:, index == i]), segment.w.levels(w_codes[:, index == i])
        total += 2.0 ** (segment.exponent - plan.exponent) * (a.astype(np.float64) @ w.astype(np.float64).T)
    return total.astype(np.int64)


def require_equal(got: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    """Raises AssertionError unless every value is the same."""
    if not np.array_equal(got, expected):
        raise AssertionError(f"{what}: {np.count_nonzero(got != expected)} of {got.size} values differ from NumPy's")
