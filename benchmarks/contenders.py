"""Who is timed: one of ours or one peer, by name, so that another process can make it too."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import ours, peers
from benchmarks.operands import Operands
from soniq_kernels import isa


@dataclass(frozen=True)
class Contender:
    """`what` is a peer's name, or our widths ("W1A4"); `tier` is empty for a peer."""

    kind: str  # "ours", or a table of peers: "int8", "float", "lowbit"
    what: str
    tier: str = ""
    threads: int = 1

    @property
    def name(self) -> str:
        """As rows call it."""
        return f"{self.what} {self.tier}".strip()

    def as_dict(self) -> dict[str, Any]:
        """What `Contender(**...)` takes."""
        return asdict(self)


class Made:
    """A contender that is ready, its answer checked.

    Raises:
        peers.Unavailable: what a peer lacks.
        AssertionError: a wrong answer.
    """

    def __init__(self, contender: Contender, operands: Operands) -> None:
        c = contender
        self.kernel = ""
        if c.kind == "ours":
            self._call, self.kernel = ours.linear(operands, c.what, c.tier, c.threads)
        else:
            self._call = peers.linear(operands, c.kind, c.what, c.threads)
        self._tier = c.tier

    def run(self, calls: int) -> list[float]:
        """Seconds of each of so many calls in a row."""
        with isa.use(self._tier) if self._tier else nullcontext():
            return [self._seconds() for _ in range(calls)]

    def _seconds(self) -> float:
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start
