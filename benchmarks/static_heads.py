"""The static figures in the heads of the NEON kernel files, written from the results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parents[1] / "csrc" / "kernels"
FIRST = "// Static, MAC a cycle"
# {file: (tier, INT8 loops to stand beside, family and form of each column, rows of each column)}
HEADS: dict[str, tuple[str, tuple[str, ...], dict[tuple[str, str], tuple[int, ...]]]] = {
    "neon/dot.h": ("neon", ("smull", "sdot"), dict.fromkeys((("dot", f) for f in ("bytes", "words", "pairs")), (4,))),
    "neon/lut.h": ("neon", ("smull", "sdot"), {("lut", ""): (1, 2, 3, 4)}),
    "neon/popcount.h": ("neon", ("smull", "sdot"), {("popcount", "cnt"): (1, 2, 3, 4)}),
    "neon_dotprod/dot.h": ("neon_dotprod", ("sdot",), {("dot", "udot"): (1, 2, 4, 8)}),
    "neon_dotprod/lut5.h": (
        "neon_dotprod", ("sdot",), {("lut5", "runs of 6"): (1, 2, 3), ("lut5", "runs of 3"): (3,)},
    ),
    "neon_dotprod/popcount.h": ("neon_dotprod", ("sdot",), {("popcount", "cnt + udot"): (1, 2, 3, 4)}),
    "neon_i8mm/dot.h": ("neon_i8mm", ("sdot", "smmla"), {("dot", "ummla"): (1, 2, 4, 8)}),
}  # fmt: skip


def block(name: str, result: dict[str, Any]) -> list[str]:
    """The lines of one file: a processor each, a column each kernel, the INT8 loops last."""
    tier, int8, kernels = HEADS[name]
    rate = {(r["tier"], r["cpu"], r["family"], r["form"], r["rows"]): r["rate"] for r in result["loops"]}
    peer = {(r["cpu"], r["form"]): r["rate"] for r in result["loops"] if r["family"] == "int8"}
    columns = [(family, form, rows) for (family, form), counts in kernels.items() for rows in counts]
    cells = _titles(columns, int8)
    for cpu in dict.fromkeys(r["cpu"] for r in result["loops"] if r["tier"] == tier):
        ours = [_digits(rate[(tier, cpu, *column)]) for column in columns]
        cells.append([_title(cpu), *ours, *(_digits(peer.get((cpu, form))) for form in int8)])
    return [f"{FIRST} (benchmarks/results/neon_static.md), beside plain INT8 loops:", *map(_line, cells)]


def _titles(columns: list[tuple[str, str, int]], int8: tuple[str, ...]) -> list[list[str]]:
    """Forms, rows, or both: what differs among the columns."""
    peers = [form.upper() for form in int8]
    forms, rows = [form for _, form, _ in columns], [str(rows) for *_, rows in columns]
    if len(set(forms)) == 1:
        return [["rows", *rows, *peers]]
    return [[f"{rows[0]} rows", *forms, *peers]] if len(set(rows)) == 1 else [["", *forms, *peers], ["rows", *rows]]


def _digits(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"


def _title(cpu: str) -> str:
    name, model = cpu.split("-")
    return f"{name.title()}-{model.upper()}" if name == "cortex" else f"{name.title()} {model.upper()}"


def _line(cells: list[str]) -> str:
    head, *rest = cells
    wide = 12 if any(" of " in cell for cell in rest) else 8
    return f"//   {head:<14}{''.join(f'{cell:<{wide}}' for cell in rest)}".rstrip()


def in_text(text: str, lines: list[str]) -> str:
    """The text of a kernel file with these lines in place of its block: from FIRST to the last indented line."""
    old = text.split("\n")
    start = next(i for i, line in enumerate(old) if line.startswith(FIRST))
    end = start + 1
    while old[end].startswith("//   "):
        end += 1
    return "\n".join([*old[:start], *lines, *old[end:]])


def write(result: dict[str, Any], folder: Path = KERNELS) -> None:
    """All heads."""
    for name in HEADS:
        path = folder / name
        path.write_text(in_text(path.read_text(), block(name, result)))
