"""Grids, segments and plans: how many bits each channel has, and which integers its codes stand for.

Terms are those of docs/arithmetic.md: a *code* c is an unsigned integer of p bits, its *level* is alpha * c + beta, its
value level * 2**exponent * scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core

GRIDS = ("bipolar", "unsigned", "signed", "ternary")
MAX_OFFSET = 1023
# With |shift| <= 6 every product of a scale in [2**-100, 2**100] and a power of two of the contract is a normal float32.
MAX_SHIFT = 6
_MAX_FORMATS = 64  # of one plan that are kept


@dataclass(frozen=True)
class Grid:
    """The integers that the codes of one operand stand for.

    Args:
        kind: "bipolar" (odd levels, no zero), "unsigned", "signed" or "ternary".
        bits: 1 to 8; "signed" needs 2, "ternary" has 2.
        offset: added to every level (asymmetric activations), at most 1023 either way.
        shift: added to the exponent (a segment whose best scale is a power of two away), at most 6 either way.
    """

    kind: str
    bits: int
    offset: int = 0
    shift: int = 0

    def __post_init__(self) -> None:
        if self.kind not in GRIDS:
            raise ValueError(f"grid is {self.kind!r}, expected one of {', '.join(GRIDS)}")
        least = {"signed": 2, "ternary": 2}.get(self.kind, 1)
        most = 2 if self.kind == "ternary" else 8
        object.__setattr__(self, "bits", _arrays.integer(self.bits, f"bits of a {self.kind} grid", least, most))
        object.__setattr__(self, "offset", _arrays.integer(self.offset, "offset", -MAX_OFFSET, MAX_OFFSET))
        object.__setattr__(self, "shift", _arrays.integer(self.shift, "shift", -MAX_SHIFT, MAX_SHIFT))

    @property
    def cmax(self) -> int:
        """The largest code."""
        return 2 if self.kind == "ternary" else 2**self.bits - 1

    @property
    def alpha(self) -> int:
        """Step between levels."""
        return 2 if self.kind == "bipolar" else 1

    @property
    def beta(self) -> int:
        """Level of code 0."""
        base = {"bipolar": -(2**self.bits - 1), "unsigned": 0, "signed": -(2 ** (self.bits - 1)), "ternary": -1}
        return base[self.kind] + self.offset

    @property
    def exponent(self) -> int:
        """e: a value is level * 2**e * scale."""
        return (0 if self.kind == "ternary" else 1 - self.bits) + self.shift

    @property
    def min_level(self) -> int:
        """Level of code 0."""
        return self.beta

    @property
    def max_level(self) -> int:
        """Level of the largest code."""
        return self.alpha * self.cmax + self.beta

    @property
    def max_magnitude(self) -> int:
        """The largest absolute level."""
        return max(abs(self.min_level), abs(self.max_level))

    def levels(self, codes: NDArray[np.uint8]) -> NDArray[np.int32]:
        """int32 levels of uint8 codes, same shape."""
        return self.alpha * codes.astype(np.int32) + self.beta

    @property
    def r_numerator(self) -> float:
        """The quantizer's r times the scale: a power of two."""
        exponent = {"bipolar": self.bits - 2, "ternary": 0}.get(self.kind, self.bits - 1)
        return float(2.0 ** (exponent - self.shift))

    @property
    def z(self) -> float:
        """The quantizer's z: code = int(clamp(x * r + z, 0, cmax))."""
        half = 2 ** (self.bits - 1)
        if self.kind == "bipolar":
            return half - self.offset / 2
        return {"unsigned": 0.5, "signed": half + 0.5, "ternary": 1.5}[self.kind] - self.offset

    def quantizer(self, scale: float) -> tuple[np.float32, np.float32]:
        """(r, z) as float32 for one scale; r is one division of a power of two."""
        return np.float32(self.r_numerator) / np.float32(scale), np.float32(self.z)

    @property
    def dynamic_factor(self) -> np.float32:
        """What the largest |x| is multiplied by to give a per-row scale: it then lies within the range of the grid."""
        if self.kind == "bipolar":
            return np.float32(0.5)
        largest = self.max_level * 2.0**self.exponent
        if largest <= 0:
            raise ValueError(f'{self} has no level above 0, so "per_row" scales cannot fit it; give a scale instead')
        return np.float32(1 / largest)


@dataclass(frozen=True)
class Segment:
    """Channels that share a weight grid `w` and an activation grid `a`."""

    w: Grid
    a: Grid
    channels: int

    @property
    def exponent(self) -> int:
        """e_s = e_w + e_a."""
        return self.w.exponent + self.a.exponent


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """Which of one or two segments each channel of a tensor belongs to, and the order they are stored in: [low | high].

    Make one with `Plan.uniform`, `Plan.mixed` or `Plan.of_segments`. Plans are immutable and compare by value.

    Attributes:
        channels: channels of the tensor.
        segments: one or two `Segment`, the low one first.
        permutation: int64 [channels]; stored position j holds original channel permutation[j].
    """

    segments: tuple[Segment, ...]
    permutation: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.permutation.flags.writeable = False

    # Cached: what every call asks of its plan.
    @cached_property
    def channels(self) -> int:
        return int(self.permutation.size)

    # ---- making ----------------------------------------------------------------------------------------------------
    @classmethod
    def uniform(
        cls,
        channels: int,
        w_bits: int,
        a_bits: int,
        w_grid: str = "bipolar",
        a_grid: str = "unsigned",
        offset: int = 0,
        shift: int = 0,
        w_offset: int = 0,
        w_shift: int = 0,
    ) -> Plan:
        """Every channel alike. `offset` and `shift` are the activation grid's."""
        count = _arrays.integer(channels, "channels", 1, 2**31 - 1)
        w, a = Grid(w_grid, w_bits, w_offset, w_shift), Grid(a_grid, a_bits, offset, shift)
        return cls((Segment(w, a, count),), np.arange(count))

    @classmethod
    def mixed(
        cls,
        bits: Any = None,
        *,
        w_bits: Any = None,
        a_bits: Any = None,
        w_grid: str = "bipolar",
        a_grid: str = "unsigned",
        offset: int | tuple[int, int] = 0,
        shift: int | tuple[int, int] = 0,
        w_offset: int | tuple[int, int] = 0,
        w_shift: int | tuple[int, int] = 0,
    ) -> Plan:
        """One of at most two widths for each channel.

        Args:
            bits: int [channels], for weights and activations alike; or give `w_bits` and `a_bits`, int [channels] each.
            offset, shift: of the activation grids, an int or a pair (low, high); `w_offset`, `w_shift`: of the weights'.

        Raises:
            ValueError: more than two distinct (w_bits, a_bits) pairs, bits outside 1..8, lengths that differ.
        """
        w, a = _bits_of("w_bits", w_bits, bits), _bits_of("a_bits", a_bits, bits)
        if w.shape != a.shape:
            raise ValueError(f"w_bits has {w.size} channels and a_bits {a.size}; both describe the same channels")
        pairs = sorted({(int(p), int(q)) for p, q in zip(w, a, strict=True)}, key=_low_first)
        if len(pairs) > 2:
            raise ValueError(
                f"bits has {len(pairs)} distinct precisions {pairs} as (w_bits, a_bits), a plan has at most two; "
                f"round the channels to two of them"
            )
        index = np.array([pairs.index((int(p), int(q))) for p, q in zip(w, a, strict=True)])
        knobs = [
            _pair(k, n) for k, n in ((w_offset, "w_offset"), (w_shift, "w_shift"), (offset, "offset"), (shift, "shift"))
        ]
        grids = [
            (Grid(w_grid, p, knobs[0][i], knobs[1][i]), Grid(a_grid, q, knobs[2][i], knobs[3][i]))
            for i, (p, q) in enumerate(pairs)
        ]
        return cls.of_segments(index, grids)

    @classmethod
    def of_segments(cls, segment_index: Any, grids: Sequence[tuple[Grid, Grid]]) -> Plan:
        """The general form: int [channels] of indices into one or two (weight grid, activation grid) pairs."""
        index = _integers(segment_index, "segment_index")
        for pair in grids:
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(g, Grid) for g in pair)):
                raise TypeError(f"grids holds {pair!r}, expected pairs (weight Grid, activation Grid)")
        if len(grids) not in (1, 2):
            raise ValueError(f"got {len(grids)} grid pairs, a plan has one or two segments")
        if index.min() < 0 or index.max() >= len(grids):
            raise ValueError(f"segment_index has values in [{index.min()}, {index.max()}] for {len(grids)} grid pairs")
        used = sorted(np.unique(index), key=lambda i: _low_first((grids[i][0].bits, grids[i][1].bits)))
        if len(used) == 2 and grids[used[0]] == grids[used[1]]:
            used, index = used[:1], np.full_like(index, used[0])
        order = np.concatenate([np.flatnonzero(index == i) for i in used])
        segments = tuple(Segment(grids[i][0], grids[i][1], int((index == i).sum())) for i in used)
        return cls(segments, order.astype(np.int64))

    # ---- asking ----------------------------------------------------------------------------------------------------
    def segment_of(self) -> NDArray[np.int64]:
        """int64 [channels]: index of each original channel's segment."""
        index = np.empty(self.channels, np.int64)
        index[self.permutation] = np.repeat(np.arange(len(self.segments)), [s.channels for s in self.segments])
        return index

    @cached_property
    def exponent(self) -> int:
        """E: integer results count in units of 2**E."""
        return min(s.exponent for s in self.segments)

    @cached_property
    def position(self) -> NDArray[np.int32]:
        """int32 [channels]: where each original channel is stored; the inverse of `permutation`."""
        inverse = np.empty(self.channels, np.int32)
        inverse[self.permutation] = np.arange(self.channels)
        return inverse

    @cached_property
    def quantizer(self) -> _core.Quantizer:
        """How the core turns floats of this tensor into codes."""
        segments = [
            (first, s.channels, s.a.r_numerator, s.a.z, float(s.a.cmax))
            for first, s in zip(self.first_channels, self.segments, strict=True)
        ]
        return _core.Quantizer(self.channels, [] if self.in_order else self.permutation.tolist(), segments)

    def tensor_format(self, scale: np.float32, *joined: Any) -> _core.TensorFormat:
        """How the core reads and writes codes of this tensor with this scale; made once for each scale. joined: the grid of both
        segments (_joined.py)."""
        formats: dict[Any, _core.TensorFormat] = self.__dict__.setdefault("_formats", {})
        key = (scale, *joined)
        if key not in formats:
            if len(formats) >= _MAX_FORMATS:
                formats.clear()
            grids = [(s.a.alpha, s.a.beta, 2.0**s.a.exponent, s.a.r_numerator, s.a.z, s.a.cmax) for s in self.segments]
            formats[key] = _core.TensorFormat(self.segment_of().tolist(), grids, float(scale), *joined)
        return formats[key]

    @property
    def in_order(self) -> bool:
        """True where channels are stored in their original order."""
        return len(self.segments) == 1

    @property
    def first_channels(self) -> list[int]:
        """Stored position at which each segment begins."""
        return [sum(s.channels for s in self.segments[:i]) for i in range(len(self.segments))]

    @cached_property
    def widest_activation(self) -> Grid:
        """The activation grid that per-row scales fit: most bits, then the larger range."""
        return max((s.a for s in self.segments), key=lambda g: (g.bits, g.max_level * 2.0**g.exponent))

    def same_activations(self, other: Plan) -> bool:
        """Whether codes quantized for this plan can be read by weights packed for the other."""
        if self is other:
            return True
        mine, theirs = ([(s.a, s.channels) for s in p.segments] for p in (self, other))
        return mine == theirs and bool(np.array_equal(self.permutation, other.permutation))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self.segments == other.segments and bool(np.array_equal(self.permutation, other.permutation))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.segments, self.permutation.tobytes()))

    def __repr__(self) -> str:
        parts = " + ".join(f"{s.channels} x w{s.w.bits}a{s.a.bits} ({s.w.kind}, {s.a.kind})" for s in self.segments)
        return f"Plan({self.channels} channels: {parts})"


def _low_first(pair: tuple[int, int]) -> tuple[int, int]:
    return pair[0] * pair[1], pair[0]


def _integers(values: Any, name: str) -> NDArray[np.int64]:
    array = _arrays.as_numpy(values, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers, one per channel")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected one integer per channel")
    return array.astype(np.int64)


def _bits_of(name: str, own: Any, shared: Any) -> NDArray[np.int64]:
    if (own is None) == (shared is None):
        raise ValueError(
            f"give either bits for both operands, or w_bits and a_bits; {name} is {'missing' if own is None else 'given twice'}"
        )
    array = _integers(shared if own is None else own, "bits" if own is None else name)
    if array.min() < 1 or array.max() > 8:
        raise ValueError(f"{name} has values in [{array.min()}, {array.max()}], expected 1 to 8")
    return array


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} has {len(value)} values, expected an int or a pair (low, high)")
        return value[0], value[1]
    return value, value
