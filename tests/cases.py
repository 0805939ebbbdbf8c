"""What the tests share: bit-exact comparison, oracle layouts as package plans, random operands, covering arrays."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

import oracle
import soniq_kernels
from oracle import Grid, Layout
from soniq_kernels import _core, packing

F32 = np.float32
WIDTHS = [(w_bits, a_bits) for w_bits in range(1, 9) for a_bits in range(1, 9)]


# ---- comparison ---------------------------------------------------------------------------------------------------------


def as_bits(array: np.ndarray) -> np.ndarray:
    """float32 as uint32 bit patterns, every NaN as one: which NaN an operation returns is the processor's choice."""
    array = np.ascontiguousarray(array)
    assert array.dtype == F32, f"float32 expected, got {array.dtype}"
    return np.where(np.isnan(array), np.uint32(0x7FC00000), array.view(np.uint32))


def assert_same(got: Any, expected: np.ndarray, case: object = "") -> None:
    """Integers: same shape and the same values."""
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{case}: shape {got.shape}, expected {expected.shape}"
    assert np.issubdtype(got.dtype, np.integer), f"{case}: {got.dtype} is no integer type"
    report_difference(got, expected, got, expected, case)


def assert_same_bits(got: Any, expected: np.ndarray, case: object = "") -> None:
    """float32: same shape and the same bit patterns, so -0 and +0 differ."""
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{case}: shape {got.shape}, expected {expected.shape}"
    report_difference(as_bits(got), as_bits(expected), got, expected, case)


def report_difference(got_keys, expected_keys, got, expected, case: object) -> None:
    """Fail with the first index that differs and both values there."""
    different = np.argwhere(got_keys != expected_keys)
    if len(different):
        first = tuple(int(i) for i in different[0])
        shown = f"got {got[first]!r}, expected {expected[first]!r}"
        raise AssertionError(f"{case}: {len(different)} of {got.size} differ, first at {first}: {shown}")


# ---- oracle description -> package objects ------------------------------------------------------------------------------


def package_grid(grid: Grid) -> packing.Grid:
    """The package's grid of the same name."""
    return packing.Grid(grid.kind, grid.bits, offset=grid.offset, shift=grid.shift)


def package_plan(layout: Layout) -> packing.Plan:
    """The package's plan of an oracle layout."""
    grids = [(package_grid(w), package_grid(a)) for w, a in layout.pairs]
    return packing.Plan.of_segments(np.array(layout.segment), grids)


def sums_layout(channels: int, w_bits: int, a_bits: int) -> Layout:
    """Unsigned grids on both sides: level = code, so the accumulators are S itself."""
    return oracle.uniform(channels, Grid("unsigned", w_bits), Grid("unsigned", a_bits))


def activations(codes: np.ndarray, plan: packing.Plan, scale: Any = 1.0) -> packing.Activations:
    """Activations of codes in original channel order."""
    return packing.Activations.from_codes(codes, plan, scale)


def pack_unit(codes: np.ndarray, plan: packing.Plan) -> packing.PackedWeights:
    """Packed weights with scale 1, for tests that look at integers only."""
    return packing.pack(codes, plan, np.ones(codes.shape[0], F32))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads inside the block, for the smallest call too."""
    before = soniq_kernels.get_num_threads()
    soniq_kernels.set_num_threads(count)
    _core.set_work_per_thread(1)
    try:
        yield
    finally:
        _core.set_work_per_thread(2**20)
        soniq_kernels.set_num_threads(before)


# ---- random operands ----------------------------------------------------------------------------------------------------


def random_codes(rng: np.random.Generator, shape: Sequence[int], segment, grids: Sequence[Grid]) -> np.ndarray:
    """Codes [..., C]; both ends of each grid's range appear more often than chance would have them."""
    tops = np.array([oracle.cmax(grid) for grid in grids])[np.asarray(segment)]
    codes = rng.integers(0, tops + 1, size=shape)
    pick = rng.random(shape)
    codes = np.where(pick < 0.1, 0, np.where(pick > 0.9, tops, codes))
    return codes.astype(np.uint8)


def x_codes(rng: np.random.Generator, shape: Sequence[int], layout: Layout) -> np.ndarray:
    """Activation codes of a layout, shape [..., channels]."""
    return random_codes(rng, shape, layout.segment, oracle.a_grids(layout))


def w_codes(rng: np.random.Generator, shape: Sequence[int], layout: Layout) -> np.ndarray:
    """Weight codes [N, K] or OHWI, each group of outputs on the grids of its own channels."""
    groups = layout.channels // shape[-1]
    part = (shape[0] // groups, *shape[1:])
    segments = np.reshape(layout.segment, (groups, -1))
    return np.concatenate([random_codes(rng, part, segment, oracle.w_grids(layout)) for segment in segments])


def random_scale(rng: np.random.Generator, n: int) -> np.ndarray:
    """float32 weight scales [n] of either sign, with an odd mantissa; some are zero."""
    scale = (rng.normal(size=n) * 0.05).astype(F32)
    scale[rng.random(n) < 0.05] = 0
    return scale


# ---- covering arrays ----------------------------------------------------------------------------------------------------

Case = dict[str, Any]


def cross(factors: dict[str, Sequence[Any]], valid: Callable[[Case], bool] = lambda _: True) -> Iterable[Case]:
    """Every combination of the factors' values that is valid."""
    for values in itertools.product(*factors.values()):
        case = dict(zip(factors, values, strict=True))
        if valid(case):
            yield case


def pairs_of(row: Sequence[int]) -> set[tuple[int, int, int, int]]:
    """The pairs (factor, factor, value index, value index) that one row of value indices covers."""
    return {(i, j, row[i], row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def pairwise(factors: dict[str, Sequence[Any]], valid: Callable[[Case], bool] = lambda _: True) -> list[Case]:
    """A short list of cases in which every pair of values of two factors occurs (unless no valid case holds it).

    Greedy and deterministic: take a pair not covered yet, complete it at random a few dozen times, keep the valid row that
    covers most new pairs.
    """
    rng = random.Random(1)
    names, values = list(factors), list(factors.values())
    sizes = [len(v) for v in values]
    as_case = lambda row: {n: v[i] for n, v, i in zip(names, values, row, strict=True)}  # noqa: E731
    open_pairs = dict.fromkeys(
        (i, j, a, b)
        for i, j in itertools.combinations(range(len(names)), 2)
        for a in range(sizes[i])
        for b in range(sizes[j])
    )
    cases = []
    while open_pairs:
        pair = next(iter(open_pairs))
        rows = [row for row in completions(rng, pair, sizes, 60) if valid(as_case(row))]
        del open_pairs[pair]
        if rows:
            best = max(rows, key=lambda row: sum(p in open_pairs for p in pairs_of(row)))
            cases.append(as_case(best))
            for covered in pairs_of(best):
                open_pairs.pop(covered, None)
    return cases


def sampled(
    factors: dict[str, Sequence[Any]], count: int, valid: Callable[[Case], bool] = lambda _: True
) -> list[Case]:
    """That many valid cases at random, always the same ones: for what takes three values together to go wrong."""
    rng = random.Random(2)
    cases: list[Case] = []
    while len(cases) < count:
        case = {name: rng.choice(values) for name, values in factors.items()}
        if valid(case):
            cases.append(case)
    return cases


def completions(rng: random.Random, pair, sizes: Sequence[int], count: int) -> Iterable[list[int]]:
    """Random rows of value indices that hold the given pair."""
    i, j, a, b = pair
    for _ in range(count):
        row = [rng.randrange(size) for size in sizes]
        row[i], row[j] = a, b
        yield row
