"""Tables of costs: what kernels take for a product and for preparing a code, measured. docs/planner.md has the format.

Those in costs/ beside this module ship; `soniq calibrate` writes the one of a machine, which is read before them.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soniq_kernels import _core

FORMAT, VERSION = "soniq_kernels.costs", 1
SHIPPED = Path(__file__).with_name("costs")
ROWS = (1, 8, 128)  # the M that are measured
FAR = (1_000_000, 32_000_000)  # bytes of weights that a second-level cache, and any cache, does not hold
ZEN4_READS, ZEN4_TABLES = (1000.0, 24.0), 0.8  # of tables from before these were measured
AGAIN = "run `soniq calibrate` on this machine to write it anew, or delete it"


def rows_class(rows: int) -> int:
    """The M that a call of `rows` rows is planned for: its own up to 8, then the power of two at or below it up to 128."""
    return rows if rows <= 8 else 1 << (rows.bit_length() - 1) if rows < 128 else 128


@dataclass(frozen=True)
class Cost:
    """One kernel family at one pair of widths.

    Attributes:
        columns: outputs that one step of the inner loop makes; N counts in whole steps.
        products_per_ns, prepare_ns_per_code: at each M of ROWS. pack_ns_per_weight: of building the panels.
    """

    columns: int
    products_per_ns: tuple[float, ...]
    prepare_ns_per_code: tuple[float, ...]
    pack_ns_per_weight: float

    def ns(self, rows: int, n: int, k: float, taps: int = 1) -> float:
        """Of a product [rows, k] x [k, n] on one thread, where every code of `rows` is read by so many taps.

        From one measured M to the next the time grows evenly: a kernel pays for its panels, and then for every row.
        """
        m = max(1, rows_class(rows))
        i = 1 if m > ROWS[1] else 0
        low, high = (self._ns_measured(j, n, k, taps) for j in (i, i + 1))
        return (low + (high - low) * (m - ROWS[i]) / (ROWS[i + 1] - ROWS[i])) * rows / m

    def _ns_measured(self, i: int, n: int, k: float, taps: int) -> float:
        computed = -(-n // self.columns) * self.columns
        return ROWS[i] * k * (self.prepare_ns_per_code[i] / taps + computed / self.products_per_ns[i])


Pairs = dict[tuple[int, int], dict[str, Cost]]


@dataclass(frozen=True)
class Table:
    """Costs by tier, (w_bits, a_bits) and family, and where they come from.

    reads_per_ns: bytes of weights of each size of FAR that one core reads. tables_from_afar: what looking up such weights takes
    of the time to read them and the time to look up near ones: a half where one hides the other.
    """

    path: Path
    cpu: str
    date: str
    command: str
    versions: dict[str, str]
    tiers: dict[str, Pairs]
    reads_per_ns: tuple[float, ...] = ZEN4_READS
    tables_from_afar: float = ZEN4_TABLES

    def arrival_ns(self, weight_bytes: float) -> float:
        """Until weights have come from where they lie; 0 where a cache beside the core holds them."""
        rates = [rate for size, rate in zip(FAR, self.reads_per_ns, strict=True) if weight_bytes > size]
        return weight_bytes / rates[-1] if rates else 0.0

    @property
    def origin(self) -> str:
        """In words, for explanations."""
        where = f"table that ships, of {self.cpu}" if self.path.parent == SHIPPED else "table of this machine"
        return f"{where}, {self.date}"


# ---- files -----------------------------------------------------------------------------------------------------------
def user_path() -> Path:
    """Where this machine's table lies: $SONIQ_COSTS, else soniq/costs.json in the user's folder of configurations."""
    named = os.environ.get("SONIQ_COSTS")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "soniq" / "costs.json"


def shipped() -> list[Table]:
    """The tables inside the package, by name."""
    return [_table(json.loads(path.read_text(encoding="utf-8")), path) for path in sorted(SHIPPED.glob("*.json"))]


def shipped_for(cpu: str) -> list[Table]:
    """The same, those of the processor's maker first: an AVX-512 of Intel has other costs than one of AMD."""
    return sorted(shipped(), key=lambda table: table.cpu.split()[:1] != cpu.split()[:1])


def read(path: str | Path) -> Table:
    """Any machine's table. Raises ValueError for a damaged file, OSError for one that cannot be read."""
    try:
        return _table(json.loads(Path(path).read_text(encoding="utf-8")), Path(path))
    except (KeyError, TypeError, AttributeError, ValueError) as wrong:
        raise ValueError(
            f"{path} is no table of costs ({type(wrong).__name__}: {wrong}); `soniq calibrate --out` writes one"
        ) from None


def of_this_machine() -> Table | None:
    """The user's table; None where there is none that fits this machine, with a warning unless it was never made.

    Raises:
        ValueError: a file that is damaged.
    """
    try:
        path = user_path()
        content = json.loads(path.read_text(encoding="utf-8"))
        unfit = _why_unfit(content)
        if unfit is None:
            return _table(content, path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
        raise ValueError(f"{path} is damaged ({type(wrong).__name__}: {wrong}); {AGAIN}") from None
    except (FileNotFoundError, NotADirectoryError):
        unfit = "is not there" if os.environ.get("SONIQ_COSTS") else None
    except OSError as wrong:
        unfit = f"cannot be read ({wrong.strerror})"
    if unfit is not None:
        warnings.warn(f"{path} {unfit}; the table that ships is used: {AGAIN}", UserWarning, stacklevel=2)
    return None


def _why_unfit(content: Any) -> str | None:
    found = content.get("format"), content.get("version")
    if found != (FORMAT, VERSION):
        return f"has format {found[0]!r}, version {found[1]!r}, expected {FORMAT!r}, version {VERSION}"
    if content["cpu"] != _core.cpu_name():
        return f"was measured on {content['cpu']!r}, and this machine is {_core.cpu_name()!r}"
    return None


def write(table: Table) -> None:
    """To `table.path`, at once or not at all."""
    table.path.parent.mkdir(parents=True, exist_ok=True)
    part = table.path.with_name(table.path.name + ".part")
    part.write_text(_json(table), encoding="utf-8")
    part.replace(table.path)


# ---- JSON ------------------------------------------------------------------------------------------------------------
def _table(content: dict[str, Any], path: Path) -> Table:
    if tuple(content["rows"]) != ROWS:
        raise ValueError(f"rows are {content['rows']}, expected {list(ROWS)}")
    texts = [str(content[name]) for name in ("cpu", "date", "command")]
    tiers = {tier: _pairs(pairs) for tier, pairs in content["tiers"].items()}
    reads = tuple(map(float, content.get("reads_per_ns", ZEN4_READS)))
    tables = float(content.get("tables_from_afar", ZEN4_TABLES))
    if len(reads) != len(FAR) or not all(0 < number < math.inf for number in (*reads, tables)):
        raise ValueError(
            f"reads_per_ns {reads} and tables_from_afar {tables}, expected {len(FAR)} positive numbers and one"
        )
    return Table(path, texts[0], texts[1], texts[2], dict(content["versions"]), tiers, reads, tables)


def _pairs(pairs: dict[str, Any]) -> Pairs:
    result: Pairs = {}
    for name, families in pairs.items():
        w_bits, a_bits = map(int, name.split("x"))
        result[w_bits, a_bits] = {family: _cost(cost) for family, cost in families.items()}
    return result


def _cost(cost: dict[str, Any]) -> Cost:
    rates, prepare = (tuple(map(float, cost[name])) for name in ("products_per_ns", "prepare_ns_per_code"))
    columns, pack = int(cost["columns"]), float(cost["pack_ns_per_weight"])
    sizes_fit = len(rates) == len(prepare) == len(ROWS) and columns >= 1
    if (
        not sizes_fit
        or not all(0 < r < math.inf for r in rates)
        or not all(0 <= p < math.inf for p in (*prepare, pack))
    ):
        raise ValueError(f"impossible costs {cost}")
    return Cost(columns, rates, prepare, pack)


def as_json(table: Table) -> dict[str, Any]:
    """What the file says."""
    tiers = {
        tier: {f"{w}x{a}": {f: vars(cost) for f, cost in families.items()} for (w, a), families in pairs.items()}
        for tier, pairs in table.tiers.items()
    }
    return {
        "format": FORMAT, "version": VERSION, "cpu": table.cpu, "date": table.date, "command": table.command,
        "versions": table.versions, "rows": list(ROWS), "reads_per_ns": list(table.reads_per_ns),
        "tables_from_afar": table.tables_from_afar, "tiers": tiers,
    }  # fmt: skip


def _json(table: Table) -> str:
    """One line a pair of widths, so that two tables can be compared."""
    content = as_json(table)
    tiers = content.pop("tiers")
    blocks = [
        f"  {json.dumps(tier)}: {{\n"
        + ",\n".join(f"   {json.dumps(p)}: {json.dumps(f)}" for p, f in pairs.items())
        + "\n  }"
        for tier, pairs in tiers.items()
    ]
    head = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in content.items())
    return "{\n" + head + ' "tiers": {\n' + ",\n".join(blocks) + "\n }\n}\n"
