"""Measures this machine: every kernel family at every pair of widths, on one thread. `soniq calibrate` is its command.

Two sizes of N give the two unknowns of time = M * K * (prepare + N / rate), once the time of an empty call is taken off:

    rate = M * K * (N2 - N1) / (t2 - t1)          prepare = t1 / (M * K) - N1 / rate

N counts in whole steps of the kernel's inner loop. Each time is the fastest of several turns in several sweeps over all
kernels: other work on the machine can only add to a time, and lasts longer than a turn.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from soniq_kernels import _core, get_num_threads, isa, set_num_threads
from soniq_kernels._costs import FAR, ROWS, ZEN4_TABLES, Cost, Pairs, Table
from soniq_kernels.plans import Grid
from soniq_kernels.weights import BuiltLayer, _grid_tuple

# K by class of rows: a 3x3 convolution of 128 channels; single rows are worth choosing for where weights are many.
K = {1: 4096, 8: 1152, 128: 1152}
OUTPUTS = (64, 512)
WIDTHS = list(itertools.product(range(1, 9), range(1, 9)))


@dataclass(frozen=True)
class Effort:
    """Sweeps over all kernels, turns of a kernel in each, and the least time of a turn."""

    sweeps: int
    turns: int
    turn_ns: float


THOROUGH, QUICK = Effort(5, 2, 4e5), Effort(2, 2, 1e5)


def measure(
    path: Path, tiers: list[str], effort: Effort, command: str, versions: dict[str, str], done: Callable[[], object]
) -> Table:
    """The table of these tiers, each of which must have kernel families. `done` is called `steps` times."""
    threads = get_num_threads()
    set_num_threads(1)
    try:
        measured = {tier: _measure_tier(tier, effort, done) for tier in tiers}
        reads = tuple(_rounded(_read_rate(tiers[-1], 4 * size, effort)) for size in FAR)
        tables = _rounded(_tables_from_afar(tiers[-1], measured[tiers[-1]], reads[0], effort))
    finally:
        set_num_threads(threads)
    return Table(path, _core.cpu_name(), date.today().isoformat(), command, versions, measured, reads, tables)


def steps(tiers: list[str], effort: Effort) -> int:
    """Pairs of widths that are measured, in all sweeps."""
    return len(tiers) * len(WIDTHS) * effort.sweeps


Times = dict[Any, float]
Calls = dict[Any, Callable[[], object]]


@dataclass
class Measured:
    """One pair of widths of a tier: the least ns so far of calls (family, rows, n), and of building panels (family)."""

    calls: Times = field(default_factory=dict)
    packing: Times = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)


def _measure_tier(tier: str, effort: Effort, done: Callable[[], object]) -> Pairs:
    found = {widths: Measured() for widths in WIDTHS}
    with isa.use(tier):
        empty = _empty_call(tier, effort)
        for _ in range(effort.sweeps):
            for widths, measured in found.items():
                _sweep(tier, *widths, measured, effort)
                done()
    return {widths: _costs(measured, empty) for widths, measured in found.items()}


def _sweep(tier: str, w_bits: int, a_bits: int, measured: Measured, effort: Effort) -> None:
    families = [family for family, *_ in _core.candidates(tier, w_bits, a_bits)]
    layers = {
        (family, n, k): _build(tier, family, n, k, w_bits, a_bits)
        for family in families for n in OUTPUTS for k in set(K.values())
    }  # fmt: skip
    calls = {
        (family, rows, n): _call(layers[family, n, K[rows]].layer, rows, n, K[rows], a_bits)
        for family in families for rows in ROWS for n in OUTPUTS
    }  # fmt: skip
    _keep_least(measured.calls, _fastest(calls, effort))
    for family in families:
        built = layers[family, OUTPUTS[-1], K[128]]
        measured.columns[family] = built.layer.tile[1]
        _keep_least(measured.packing, {family: built.pack_seconds * 1e9})


def _read_rate(tier: str, size: int, effort: Effort) -> float:
    """Bytes a ns of weights of so many bytes: what one row takes of 8-bit ones."""
    return size / _one_row_ns(tier, "dot", size // K[1], 8, 8, effort)


def _tables_from_afar(tier: str, pairs: Pairs, read_rate: float, effort: Effort) -> float:
    """Of the sum of reading 1-bit weights and looking up near ones, what looking up those that lie far away takes."""
    size = 4 * FAR[0]
    n, near = size * 8 // K[1], pairs.get((1, 4), {}).get("lut")
    if near is None:
        return ZEN4_TABLES
    return _one_row_ns(tier, "lut", n, 1, 4, effort) / (near.ns(1, n, K[1]) + size / read_rate)


def _one_row_ns(tier: str, family: str, n: int, w_bits: int, a_bits: int, effort: Effort) -> float:
    call = _call(_build(tier, family, n, K[1], w_bits, a_bits).layer, 1, n, K[1], a_bits)
    return min(_fastest({family: call}, effort)[family] for _ in range(effort.sweeps))


def _keep_least(times: Times, new: Times) -> None:
    for case, ns in new.items():
        times[case] = min(ns, times.get(case, ns))


def _costs(measured: Measured, empty_ns: float) -> dict[str, Cost]:
    costs = {}
    for family, columns in measured.columns.items():
        per_code = [[(measured.calls[family, rows, n] - empty_ns) / (rows * K[rows]) for n in OUTPUTS] for rows in ROWS]
        rates, prepare = zip(*(_solve(few, many, columns) for few, many in per_code), strict=True)
        pack = measured.packing[family] / (OUTPUTS[-1] * K[128])
        costs[family] = Cost(columns, tuple(map(_rounded, rates)), tuple(map(_rounded, prepare)), _rounded(pack))
    return costs


def _solve(short: float, long: float, columns: int) -> tuple[float, float]:
    """(products a ns, ns to prepare a code) from the ns a code for few and for many outputs.

    Where noise made a time impossible, all of it counts as products.
    """
    few, many = (-(-n // columns) * columns for n in OUTPUTS)
    slope = (long - short) / (many - few)
    if slope <= 0 or short < slope * few:
        return many / max(long, 1e-6), 0.0
    return 1 / slope, short - slope * few


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


# ---- calls -----------------------------------------------------------------------------------------------------------
def _build(tier: str, family: str, n: int, k: int, w_bits: int, a_bits: int) -> BuiltLayer:
    """A linear layer of random codes."""
    grids = _grid_tuple(Grid("unsigned", w_bits)), _grid_tuple(Grid("unsigned", a_bits))
    codes = np.random.default_rng(n).integers(0, 2**w_bits, n * k, np.uint8)
    began = time.perf_counter()
    layer = _core.Layer(n, 1, 1, 1, k, [(*grids, [0, k])], [codes], tier, [family])
    return BuiltLayer(layer, time.perf_counter() - began, (family,))


def _call(layer: _core.Layer, rows: int, n: int, k: int, a_bits: int) -> Callable[[], object]:
    """The layer on codes, from where Python is done with it, to float32."""
    x = np.random.default_rng(rows).integers(0, 2**a_bits, (rows, k), np.uint8)
    y, ones = np.empty((rows, n), np.float32), np.ones(n, np.float32)
    geometry, output = _core.Geometry(), _core.Output()
    geometry.batch = output.rows_per_scale = rows
    output.results, output.w_scale, output.activation_scale = _core.Results(y, []), ones, ones

    def run(alive: object = (y, ones)) -> None:  # the core has pointers only
        layer.run(x, geometry, output)

    return run


def _empty_call(tier: str, effort: Effort) -> float:
    """ns of a call without work, Python's part of it included."""
    call = _call(_build(tier, "dot", 1, 1, 8, 8).layer, 1, 1, 1, 8)
    return min(_fastest({"empty": call}, effort)["empty"] for _ in range(5 * effort.sweeps))


def _fastest(calls: Calls, effort: Effort) -> Times:
    """ns of each call in its fastest turn; calls take turns, so that a bad moment does not hit all turns of one."""
    counts = {case: _count(call, effort.turn_ns) for case, call in calls.items()}
    best: Times = {}
    for _ in range(effort.turns):
        _keep_least(best, {case: _turn(call, counts[case]) for case, call in calls.items()})
    return best


def _count(call: Callable[[], object], turn_ns: float) -> int:
    """Calls that fill a turn."""
    _turn(call, 1)
    return max(1, int(turn_ns / _turn(call, 1)))


def _turn(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - began) / count
