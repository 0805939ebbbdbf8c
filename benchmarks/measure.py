"""One suite, measured: everybody in turns in the same run, medians, and ratios over the best INT8 peer."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rich.progress import Progress, TaskID

from benchmarks import shapes
from benchmarks.contenders import Contender, Made
from benchmarks.operands import Operands
from benchmarks.peers import TABLES, Unavailable
from benchmarks.shapes import Shape
from benchmarks.suites import Suite
from benchmarks.worker import Worker, quiet_threads

WARM = 2  # turns before those that count
FEWEST = 5  # turns of a contender that has used up its time

Run = Callable[[int], list[float]]  # seconds of so many calls
Make = Callable[[Contender, Shape], tuple[Run, str]]  # (run, kernel)
Say = Callable[[str], None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """How long to measure, and what to leave out: empty lists leave nothing out."""

    rounds: int = 25
    seconds: float = 5.0  # of one contender at one shape
    shapes: list[Shape] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    widths: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return not (self.shapes or self.peers or self.widths)

    def narrowed(self, suite: Suite) -> Suite:
        """The suite on these shapes."""
        return replace(suite, shapes=self.shapes) if self.shapes else suite

    def wants(self, contender: Contender) -> bool:
        """Whether the lists name it; peers may be named in part."""
        if contender.kind == "ours":
            return not self.widths or contender.what in self.widths
        return not self.peers or any(part.lower() in contender.what.lower() for part in self.peers)


def run(suite: Suite, options: Options, progress: Progress) -> tuple[Rows, list[str]]:
    """(rows, why some contenders were left out)."""
    suite = options.narrowed(suite)
    rows: Rows = []
    left_out: dict[str, None] = {}
    task = progress.add_task(suite.name, total=len(suite.shapes))
    with _makers(suite) as make:
        for shape in suite.shapes:
            say = partial(_say, progress, task, f"{suite.name}: {shapes.text(shape)}")
            rows += _measure(suite, shape, options, make, left_out, say)
            progress.advance(task)
    return rows, list(left_out)


def _say(progress: Progress, task: TaskID, where: str, what: str) -> None:
    progress.update(task, description=f"{where}, {what}")


def _measure(suite: Suite, shape: Shape, options: Options, make: Make, left_out: dict[str, None], say: Say) -> Rows:
    """A function of its own, so that a shape's memory is free before the next one's is taken."""
    runs: dict[Contender, Run] = {}
    kernels: dict[Contender, str] = {}
    for contender in filter(options.wants, suite.contenders(shape)):
        say(f"making {contender.name}")
        try:
            runs[contender], kernels[contender] = make(contender, shape)
        except Unavailable as reason:
            left_out[f"{contender.name}: {reason}"] = None
    say(f"timing {len(runs)} contenders")
    return _rows(shape, take_turns(runs, suite.turn(shape), options), kernels)


def take_turns(runs: dict[Contender, Run], turn: tuple[int, int], options: Options) -> dict[Contender, list[float]]:
    """Seconds of every counted call. All in every round, in another order each time; a slow one stops early."""
    times: dict[Contender, list[float]] = {contender: [] for contender in runs}
    order, shuffle, (before, counted) = list(runs), random.Random(0).shuffle, turn
    for number in range(WARM + options.rounds):
        shuffle(order)
        for contender in order:
            mine = times[contender]
            if len(mine) >= FEWEST * counted and sum(mine) > options.seconds:
                continue
            measured = runs[contender](before + counted)[before:]
            if number >= WARM:
                mine += measured
    return times


# ---- making them ---------------------------------------------------------------------------------------------------
@contextmanager
def _makers(suite: Suite) -> Iterator[Make]:
    """How contenders are made: here, or in processes that end with the suite."""
    if not suite.processes:
        yield _make_here()
        return
    with ExitStack() as stack:
        yield _make_in_processes(suite, stack)


def _make_here() -> Make:
    latest: list[tuple[Shape, Operands]] = []

    def make(contender: Contender, shape: Shape) -> tuple[Run, str]:
        if not latest or latest[0][0] != shape:
            latest[:] = [(shape, Operands.random(shape))]
        made = Made(contender, latest[0][1])
        return made.run, made.kernel

    return make


def _make_in_processes(suite: Suite, stack: ExitStack) -> Make:
    """A process for each peer and number of threads, and one for all of ours; they live on from shape to shape."""
    workers: dict[tuple[str, int], Worker] = {}
    made: dict[Worker, int] = {}
    latest: list[Shape] = []

    def make(contender: Contender, shape: Shape) -> tuple[Run, str]:
        if latest != [shape]:
            for worker in workers.values():
                worker.drop()
                made[worker] = 0
            latest[:] = [shape]
        key = ("ours" if contender.kind == "ours" else contender.what, contender.threads)
        if key not in workers:
            workers[key] = stack.enter_context(Worker(_environment(suite, contender)))
        worker = workers[key]
        kernel, index = worker.make(contender, shape), made.get(worker, 0)
        made[worker] = index + 1
        return lambda calls: worker.run(index, calls), kernel

    return make


def _environment(suite: Suite, contender: Contender) -> dict[str, str]:
    special = {"SONIQ_ISA": contender.tier} if contender.kind == "ours" else suite.environment
    return quiet_threads(contender.threads) | special


# ---- rows ----------------------------------------------------------------------------------------------------------
def _rows(shape: Shape, times: dict[Contender, list[float]], kernels: dict[Contender, str]) -> Rows:
    """One row for each contender; `ratio` is its speed over the best INT8 peer on as many threads, None without one."""
    seconds = {contender: statistics.median(measured) for contender, measured in times.items()}
    rows = []
    for c, s in seconds.items():
        int8 = [t for other, t in seconds.items() if other.kind == "int8" and other.threads == c.threads]
        rows.append({
            "shape": list(shape), "name": c.name, "kind": c.kind, "widths": c.what if c.kind == "ours" else "",
            "w_bits": _weight_bits(c), "tier": c.tier, "threads": c.threads, "kernel": kernels[c],
            "int8_peer": c.kind == "int8", "seconds": s, "fastest": min(times[c]), "calls": len(times[c]),
            "gmac_per_s": shape[0] * shape[1] * shape[2] / s / 1e9, "ratio": min(int8) / s if int8 else None,
        })  # fmt: skip
    return rows


def _weight_bits(c: Contender) -> float:
    """Average bits of a weight, block scales aside."""
    if c.kind == "ours":
        return round(sum(share * w for share, w, _ in shapes.parts(c.what)), 3)
    return TABLES[c.kind][c.what].bits
