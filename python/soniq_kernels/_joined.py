"""Two segments as one: a grid for each operand that has the levels of both segments.

The integer result is sum_s 2**(e_s - E) sum_k l_w * l_a. The factor of a segment, a power of two, can be given to its weights and to
its activations in parts: 2**x * l_w and 2**y * l_a with x + y = e_s - E. Those levels, and the other segment's, are multiples of
one step from one lowest level, so they are codes of one grid:

    code' = (2**x * (alpha * code + beta) - lowest) / step = code << shift, plus a constant

Bipolar {1, 4} for both operands, x = 0, y = 6: weights of -1, 1 and -15, -13, ... 15 are 16 levels of step 2, so 4 bits still; activations of
-64, 64 and -15 ... 15 are levels of step 1 from -64 on, 129 of them, a byte. So a layer of one segment computes the same
integers: one pass over its sums, no padding between the segments, at the price of more bits of the operands. That is worth it
where the time hardly depends on the bits: byte products, and many rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _core
from soniq_kernels.activations import Activations
from soniq_kernels.plans import Grid, Plan

BITS = 8  # of a joined code, at most
GridTuple = tuple[int, int, int, int]  # bits, alpha, beta, exponent


@dataclass(frozen=True)
class JoinedGrid:
    """A grid of the levels of two, one of them times a power of two.

    Attributes:
        bits, alpha, beta: of the joined codes; level = alpha * code + beta.
        maps: of each segment, (shift, add): joined code = (code << shift) + add.
    """

    bits: int
    alpha: int
    beta: int
    maps: tuple[tuple[int, int], tuple[int, int]]

    @property
    def core(self) -> GridTuple:
        """As the core reads it. Its exponent does not matter: there is one segment."""
        return self.bits, self.alpha, self.beta, 0


@dataclass(frozen=True)
class JoinedGrids:
    """Of the weights and of the activations. steps: what a joined level of each segment's activations is worth, over the scale."""

    w: JoinedGrid
    a: JoinedGrid
    steps: tuple[float, float]

    @property
    def widths(self) -> tuple[int, int]:
        """(w_bits, a_bits)."""
        return self.w.bits, self.a.bits


def joined_grids(plan: Plan) -> JoinedGrids | None:
    """The grids of a plan whose two segments can be one, those with the fewest bits of the weights; None if there are none."""
    if len(plan.segments) != 2:
        return None
    exponents = [s.w.exponent + s.a.exponent for s in plan.segments]
    larger, factor = int(exponents[1] > exponents[0]), abs(exponents[1] - exponents[0])
    found = []
    for of_weights in range(factor + 1):
        w = _join([s.w for s in plan.segments], larger, of_weights)
        of_activations = factor - of_weights
        a = _join([s.a for s in plan.segments], larger, of_activations)
        low, high = (2.0 ** (s.a.exponent - of_activations * (i == larger)) for i, s in enumerate(plan.segments))
        if w and a:
            found.append(JoinedGrids(w, a, (low, high)))
    return min(found, key=lambda grids: (grids.w.bits, grids.a.bits), default=None)


def _join(grids: list[Grid], shifted: int, by: int) -> JoinedGrid | None:
    """The grids of two segments, levels of the segment `shifted` times 2**by; None if it takes more than BITS bits."""
    steps = [g.alpha << (by if i == shifted else 0) for i, g in enumerate(grids)]
    firsts = [g.beta << (by if i == shifted else 0) for i, g in enumerate(grids)]
    lasts = [first + step * g.cmax for first, step, g in zip(firsts, steps, grids, strict=True)]
    lowest = min(firsts)
    alpha = 1 if any(v % 2 for v in (*steps, firsts[0] - firsts[1])) else 2
    bits = ((max(lasts) - lowest) // alpha).bit_length()
    if bits > BITS:
        return None
    low, high = (((s // alpha).bit_length() - 1, (f - lowest) // alpha) for s, f in zip(steps, firsts, strict=True))
    return JoinedGrid(bits, alpha, lowest, (low, high))


def join_streams(streams: list[NDArray[np.uint8]], grid: JoinedGrid, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 codes of one segment, [output and tap, channel in stored order], from those of two.

    Of depthwise weights, [C, kh, kw, 1], outputs are channels: [channel in stored order, tap].
    """
    parts = [
        (stream << np.uint8(shift)) + np.uint8(add) for stream, (shift, add) in zip(streams, grid.maps, strict=True)
    ]
    if shape[-1] == 1:
        return np.concatenate(parts).reshape(shape[0], -1)
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)


class JoinedActivations(Activations):
    """Codes of a tensor inside a network, joined, and in the original order of the channels.

    Attributes:
        stored: uint8 [..., channels]. plan, scale: of the codes that these stand for.
        grids: those of the layers that read the tensor.
    """

    def __init__(self, stored: NDArray[np.uint8], plan: Plan, scale: np.float32, grids: JoinedGrids) -> None:
        super().__init__(stored, plan, scale)
        self.grids = grids

    def tensor_format(self, scale: np.float32) -> _core.TensorFormat:
        """How the core reads and writes these codes."""
        a = self.grids.a
        shifts, additions = zip(*a.maps, strict=True)
        return self.plan.tensor_format(scale, (a.alpha, a.beta, self.grids.steps, shifts, additions))
