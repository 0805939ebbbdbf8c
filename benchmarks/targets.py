"""What the project set out to reach, as data, and the verdict on a run.

A target is a ratio at one shape and pair of widths: `least` is what counts as reached, `aim` the ceiling of the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import shapes
from benchmarks.shapes import MIXED, Shape

BEST_TIER = "avx512_vbmi"  # VNNI, VBMI and VPOPCNTDQ: the targets of gemm, gemv and threads are for such a core
OVER_INT8 = "speed over the best INT8"
TWO_THREADS = "two threads over one"

# (at least, ceiling of the method) over the best INT8.
GEMM = {
    "W1A1": (4.6, 5.5), "W1A2": (3.4, 4.8), "W1A4": (2.7, 3.1), "W2A2": (1.8, 2.4), "W2A4": (1.35, 1.6), "W3A3": (1.15, 1.5),
    "W3A4": (1.0, 1.1), "W4A4": (1.0, 1.05), "W4A8": (1.0, 1.05), "W8A8": (1.0, 1.05), MIXED: (1.9, 2.2),
}  # fmt: skip
FLOORS = {"W4A4": 0.95, "W4A8": 0.95, "W8A8": 0.95}
# Where K and N are small, quantizing the activations and the epilogue weigh more.
SHARES = {(784, 128, 1152): 0.7}
# A byte of INT8 weights is 8, 4 or 2 weights of fewer bits: memory allows no more.
GEMV_DRAM = {"W1": (7.3, 8.0), "W2": (3.7, 4.0), "W4": (1.9, 2.0)}
GEMV_L3 = {"W1A4": 4.0, "W1A8": 2.5, "W2A4": 2.5, "W2A8": 2.5, "W4A4": 1.5, "W4A8": 1.5}
AVX2 = {"W1A1": 5.0, "W1A2": 5.0, "W1A4": 4.0, "W2A2": 2.5, "W4A4": 1.4, "W8A8": 0.7}
SCALING = 1.85
# AMX multiplies bytes faster than any other unit multiplies bits, theirs and ours alike: what fewer bits still save is reading
# weights. No width may lose; one row, which is all reading, has the targets of memory.
AMX_LEAST = 1.0


@dataclass(frozen=True)
class Target:
    """`least`, `aim` and `floor` are ratios of what `measure` says."""

    shape: Shape
    widths: str
    tier: str
    least: float
    aim: float | None = None
    floor: float | None = None
    measure: str = OVER_INT8

    def verdict(self, reached: float) -> str:
        """ "ok" or "missed", on the two decimals that pages print."""
        if round(reached, 2) >= self.least:
            return "ok"
        if self.floor is None:
            return "missed"
        return f"missed, {'above' if round(reached, 2) >= self.floor else 'below'} the floor of {self.floor:.2f}"


def of(suite: str) -> list[Target]:
    """The targets of a suite; some have none."""
    return {"gemm": _gemm, "gemv": _gemv, "avx2": _avx2, "threads": _threads}.get(suite, list)()


def _gemm() -> list[Target]:
    tables = [
        Target(shape, widths, BEST_TIER, round(least * share, 3), round(aim * share, 3), _floor(widths, share))
        for shape, share in ((shape, SHARES.get(shape, 1.0)) for shape in shapes.GEMM)
        for widths, (least, aim) in GEMM.items()
    ]
    return tables + [Target(shape, widths, "amx", AMX_LEAST) for shape in shapes.GEMM for widths in GEMM]


def _floor(widths: str, share: float) -> float | None:
    return round(FLOORS[widths] * share, 3) if widths in FLOORS else None


def _gemv() -> list[Target]:
    dram, l3 = shapes.GEMV
    return [
        target
        for tier in (BEST_TIER, "amx")
        for target in (
            *(Target(dram, w + a, tier, *limits) for w, limits in GEMV_DRAM.items() for a in ("A4", "A8")),
            *(Target(l3, widths, tier, least) for widths, least in GEMV_L3.items()),
        )
    ]


def _avx2() -> list[Target]:
    return [
        Target(shape, widths, "avx2", round(least * SHARES.get(shape, 1.0), 3))
        for shape in shapes.GEMM
        for widths, least in AVX2.items()
    ]


def _threads() -> list[Target]:
    return [
        Target(shape, widths, tier, SCALING, 2.0, measure=TWO_THREADS)
        for tier in (BEST_TIER, "amx")
        for shape in shapes.GEMM
        for widths in shapes.WIDTHS
    ]


def judge(suite: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target of the suite that this run measured: what was to be reached, what was, and the verdict.

    Only those of the tier that came first, the best one: others have been measured beside what outdoes them.
    """
    seconds = {(tuple(r["shape"]), r["widths"], r["tier"], r["threads"]): r for r in rows if r["kind"] == "ours"}
    best = next((tier for _, _, tier, _ in seconds), None)
    judged = []
    for target in (target for target in of(suite) if target.tier == best):
        one, two = (seconds.get((target.shape, target.widths, target.tier, threads)) for threads in (1, 2))
        reached = _reached(target, one, two)
        if reached is not None:
            judged.append(_judged(target, reached))
    return judged


def _reached(target: Target, one: dict[str, Any] | None, two: dict[str, Any] | None) -> float | None:
    if target.measure == OVER_INT8:
        return one["ratio"] if one else None
    return one["seconds"] / two["seconds"] if one and two else None


def _judged(target: Target, reached: float) -> dict[str, Any]:
    return {
        "shape": list(target.shape), "widths": target.widths, "tier": target.tier, "measure": target.measure,
        "reached": reached, "least": target.least, "aim": target.aim, "floor": target.floor,
        "verdict": target.verdict(reached),
    }  # fmt: skip
