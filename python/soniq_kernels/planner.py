"""Which kernel family multiplies a segment: the one that the table of costs says is fastest. docs/planner.md.

    time = M * K * (prepare / taps + N / products_per_ns)          taps: that share a prepared pixel, 1 in a GEMM

Two segments can also be "joined": one product by dot, of wider codes (_joined.py).

`soniq calibrate` measures the table on a machine; `SONIQ_FAMILY=lut` or `planner.use("lut")` forces a family. The result
is the same whatever is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from soniq_kernels import _arrays, _core, _costs
from soniq_kernels._costs import ROWS, Cost, Table, rows_class

__all__ = ["FAMILIES", "ROWS", "Choice", "choose", "choose_segments", "reload", "rows_class", "table", "use"]

FAMILIES = ("dot", "popcount", "lut", "lut5", "lut6", "joined")
NOMINAL_GHZ = 3.0  # turns products a cycle into a time where nothing was measured
JOIN_NS = 0.08  # of a code that a call joins, in a pass over all of them
WINOGRAD = 0.72  # of dot's time for 3 x 3 taps, where 16 products are in place of 36 (docs/planner.md)
WINOGRAD_ROWS = ROWS[-1]  # at least: the class of rows in which 28 tiles of four are
WINOGRAD_BITS = {"avx2": 5, "avxvnni": 6, "avx512": 6}  # of activations, by the tier whose dot it is; weights have 4
SECOND_NS = 0.5  # of a sum that a second segment adds to, beside the products: it is read and written once more


@dataclass(frozen=True)
class Choice:
    """What multiplies one segment, and why.

    Attributes:
        family: of the kernel. tier: whose kernel it is, the one asked for or one below it.
        estimates: {family: ns on one thread} of every family that serves the widths, fastest first.
        measured: whether the estimates are from a table; else they are ceilings of the inner loops.
        reason: one sentence.
    """

    family: str
    tier: str
    estimates: dict[str, float]
    measured: bool
    reason: str

    @property
    def ns(self) -> float:
        """The estimate of the family that was chosen."""
        return self.estimates[self.family]

    def kept(self, family: str, tier: str) -> Choice:
        """`family` in place of this choice, whose panels are not there and cannot be built."""
        if family == self.family:
            return self
        why = f"{family}: its panels were kept by drop_portable(), which left no way to build those of {self.family}"
        return replace(self, family=family, tier=tier, reason=why)


class _Settings:
    """The family forced, and by whom. A new object whenever anything changes that a choice depends on."""

    def __init__(self, forced: str | None, source: str = "") -> None:
        self.forced, self.source = forced, source


settings = _Settings(None)
_tables: list[Table] | None = None


# ---- the table -------------------------------------------------------------------------------------------------------
def table() -> Table:
    """The table in use: that of this machine, else of those that ship the one of its processor's maker. Read at its first use.

    Raises:
        ValueError: this machine's table is damaged; the message names the file and what to do.
    """
    return _read_tables()[0]


def reload() -> None:
    """Forgets what was read: the next call reads the files again and chooses anew."""
    global _tables, settings
    _tables = None
    settings = _Settings(settings.forced, settings.source)


def _read_tables() -> list[Table]:
    """By rank: a tier that this machine's table lacks has the numbers that ship."""
    global _tables
    if _tables is None:
        own = _costs.of_this_machine()
        _tables = ([] if own is None else [own]) + _costs.shipped_for(_core.cpu_name())
    return _tables


def _costs_of(tier: str, w_bits: int, a_bits: int, families: list[str]) -> tuple[dict[str, Cost], str] | None:
    """The costs of all these families and where they are from; None if any was not measured."""
    for source in _read_tables():
        if tier in source.tiers:
            costs = source.tiers[tier].get((w_bits, a_bits), {})
            return (costs, source.origin) if set(families) <= set(costs) else None
    return None


# ---- choosing --------------------------------------------------------------------------------------------------------
def choose(
    tier: str, w_bits: int, a_bits: int, rows: int, n: int, k: float, taps: int = 1, neighbours: bool = False
) -> Choice:
    """The family for a product of codes [rows, k] x [k, n] on a tier of `isa.available()`; a segment is chosen by itself.

    Args:
        rows: M of the call, planned for as `rows_class(rows)`. n, k: of a group of the layer. taps: that read each
            prepared code, where a convolution shares its pixels. neighbours: they are 3 x 3 of them, of positions one apart.

    Raises:
        ValueError: a tier without families to choose from ("reference"), or bits outside 1..8.
    """
    w, a = _arrays.integer(w_bits, "w_bits", 1, 8), _arrays.integer(a_bits, "a_bits", 1, 8)
    candidates = _core.candidates(tier, w, a)
    if not candidates:
        raise ValueError(f"the tier {tier} has no kernel families to choose from; take another one of isa.available()")
    times, source, measured = _times(tier, w, a, candidates, rows, n, k, taps, neighbours)
    estimates = dict(sorted(times.items(), key=lambda item: (item[1], FAMILIES.index(item[0]))))
    family, why = _decide(estimates)
    reason = f"{family} for W{w}A{a}{why} at M = {rows}, N = {n}, K = {k:g} ({source})"
    return Choice(family, {f: t for f, t, *_ in candidates}[family], estimates, measured, reason)


def choose_segments(
    tier: str,
    widths: Sequence[tuple[int, int]],
    rows: int,
    n: int,
    k: Sequence[float],
    taps: int = 1,
    joined: tuple[int, int] | None = None,
    neighbours: bool = False,
) -> tuple[Choice, ...]:
    """`choose` for each segment of a layer, or all joined where that takes less time.

    Args:
        widths, k: (w_bits, a_bits) and K of each segment. joined: the widths of all in one, None if there are none.
    """
    apart = tuple(choose(tier, w, a, rows, n, k_s, taps, neighbours) for (w, a), k_s in zip(widths, k, strict=True))
    if joined is None:
        return apart
    candidates = [candidate for candidate in _core.candidates(tier, *joined) if candidate[0] == "dot"]
    times, source, _ = _times(tier, *joined, candidates, rows, n, sum(k), taps, neighbours)
    choices = [_with_joined(c, times["dot"] * k_s / sum(k)) for c, k_s in zip(apart, k, strict=True)]
    more = joining_ns(choices, rows, n) + JOIN_NS * rows * sum(k) / taps
    forced = settings.forced == "joined"
    if not forced and (more >= 0 or settings.forced is not None):
        return tuple(choices)
    how = f", forced by {settings.source}: {_in_words(more)} more" if forced else f": {_in_words(-more)} less"
    reason = (
        f"joined as one segment of W{joined[0]}A{joined[1]}{how} than {' + '.join(c.family for c in apart)} "
        f"at M = {rows}, N = {n}, K = {sum(k):g} ({source})"
    )
    return tuple(replace(c, family="joined", tier=candidates[0][1], reason=reason) for c in choices)


def joining_ns(choices: Sequence[Choice], rows: int, n: int) -> float:
    """What the products of codes that are joined already take more than those of two segments; negative where it is less."""
    together = sum(c.estimates["joined"] for c in choices)
    apart = sum(min(ns for family, ns in c.estimates.items() if family != "joined") for c in choices)
    return together - apart - SECOND_NS * rows * n


def _with_joined(choice: Choice, ns: float) -> Choice:
    """`choice` with the estimate of its part of a joined product."""
    return replace(choice, estimates=dict(sorted({**choice.estimates, "joined": ns}.items(), key=lambda item: item[1])))


def _times(
    tier: str,
    w: int,
    a: int,
    candidates: list[tuple[str, str, int, float]],
    rows: int,
    n: int,
    k: float,
    taps: int,
    neighbours: bool,
) -> tuple[dict[str, float], str, bool]:
    """({family: ns}, where the numbers are from, whether they were measured)."""
    found = _costs_of(tier, w, a, [family for family, *_ in candidates])
    if found is None:
        times = {f: rows * k * (prepare / taps + n / rate) / NOMINAL_GHZ for f, _, rate, prepare in candidates}
        source = f"ceilings of the inner loops; the table has no numbers for {tier}, `soniq calibrate` measures them"
    else:
        times, source = {family: found[0][family].ns(rows, n, k, taps) for family, *_ in candidates}, found[1]
    dot = next((tier for family, tier, *_ in candidates if family == "dot"), "")
    if neighbours and rows >= WINOGRAD_ROWS and w <= 4 and a <= WINOGRAD_BITS.get(dot, 0) and k % (9 * 16) == 0:
        times["dot"] *= WINOGRAD
    times = {family: _from_afar_ns(family, ns, n * k * w / 8) for family, ns in times.items()}
    return times, source, found is not None


def _from_afar_ns(family: str, ns: float, weight_bytes: float) -> float:
    """The time with weights that have to come first. dot and popcount multiply what has arrived while the next weights are on
    their way; tables come through the same L2 and hold them up, on some processors. A table of five or six weights is read by
    a byte for each plane."""
    arrive = table().arrival_ns(weight_bytes * 8 / {"lut6": 6, "lut5": 5}.get(family, 8))
    held_up = table().tables_from_afar * (ns + arrive) if family.startswith("lut") and arrive else 0.0
    return max(ns, arrive, held_up)


def _decide(estimates: dict[str, float]) -> tuple[str, str]:
    """(family, why): the one that is forced if it is among them, else the fastest."""
    forced, by = settings.forced, ""
    family = next(iter(estimates))
    if forced in estimates:
        family, by = forced, f", forced by {settings.source}"
    elif forced is not None:
        by = f" ({forced}, forced by {settings.source}, does not serve them)"
    others = [other for other in estimates if other != family]
    if not others:
        return family, f"{by}: {_in_words(estimates[family])}, and no other family serves these widths,"
    return family, f"{by}: {_in_words(estimates[family])} against {_in_words(estimates[others[0]])} for {others[0]}"


def _in_words(ns: float) -> str:
    for unit, size in (("ms", 1e6), ("us", 1e3)):
        if ns >= 0.1 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


# ---- forcing ---------------------------------------------------------------------------------------------------------
class use:
    """Forces a kernel family for the whole process, at once; as a context manager, until the end of the block.

    Widths that the family does not serve go on with the planner's choice, and `gemm.explain` says so.

    Args:
        name: one of FAMILIES, or None for the planner's choice.

    Raises:
        ValueError: an unknown family; the message lists the names.
    """

    def __init__(self, name: str | None) -> None:
        _require_known(name, "planner.use")
        self._previous = settings
        self.name = name
        _force(name, "planner.use")

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_: object) -> None:
        _force(self._previous.forced, self._previous.source)

    def __repr__(self) -> str:
        return f"planner.use({self.name!r})"


def _force(name: str | None, source: str) -> None:
    global settings
    settings = _Settings(name, source)


def _require_known(name: object, source: str) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"{source} got {name!r}, expected the name of a kernel family: {', '.join(FAMILIES)}")
    if name not in FAMILIES:
        raise ValueError(f"{source} got {name!r}, which is no kernel family; there are: {', '.join(FAMILIES)}")


def _use_environment() -> None:
    name = os.environ.get("SONIQ_FAMILY")
    if name:
        _require_known(name, "SONIQ_FAMILY")
        _force(name, "SONIQ_FAMILY")


_use_environment()
