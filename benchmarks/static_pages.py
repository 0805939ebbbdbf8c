"""Static throughput as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NAME = "neon_static"
BITS = range(1, 9)
ABOUT = """\
**Static, not measured:** cycles that llvm-mca computes for the machine code of an inner loop in its steady state. It knows the
instructions' latencies and units from a model of each processor, and nothing of caches, of the loops around or of clocks.
Beside each loop is its rate over that of a plain INT8 loop (benchmarks/static_peers.cpp): same compiler, flags and model."""


LOOPS = "MAC a cycle; popcount: divided by w_bits * a_bits, lut and lut5: by w_bits. In brackets over"


def write(result: Row, out: Path) -> None:
    """neon_static.json, .csv and .md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_text(as_json(result))
    (out / f"{NAME}.csv").write_text(as_csv(result))
    (out / f"{NAME}.md").write_text(as_markdown(result))


def as_json(result: Row) -> str:
    """One line for each loop, pair of widths and aim."""
    parts = (
        f' "{key}": [\n  ' + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        if isinstance(value, list)
        else f' "{key}": {json.dumps(value)}'
        for key, value in result.items()
    )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def lines_of(machine: Row) -> list[str]:
    """Compiler, llvm-mca, flags, date and command."""
    return [
        f"{', '.join(machine['compilers'])}, {machine['llvm']}, {machine['date']}, `{machine['command']}`",
        *(f"{tier}: `{flags}`" for tier, flags in machine["flags"].items()),
    ]


def as_csv(result: Row) -> str:
    """One line a loop and processor."""
    columns = ["tier", "cpu", "family", "form", "rows", "bits", "products", "instructions", "cycles", "rate"]
    forms = sorted({form for row in result["loops"] for form in row["over"]})
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in ("static, not measured", *lines_of(result["machine"])))
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*columns, *(f"over_{form}" for form in forms)])
    for row in result["loops"]:
        lines.writerow([*(row[column] for column in columns), *(row["over"].get(form, "") for form in forms)])
    return text.getvalue()


def as_markdown(result: Row) -> str:
    """The page: aims, every loop, every pair of widths."""
    text = [
        "# Static throughput of the loops that are not timed here",
        "",
        ABOUT,
        "",
        "  \n".join(lines_of(result["machine"])),
        "",
    ]
    text += [*_models(result["models"]), ""]
    text += ["## Aims over INT8 SDOT", "", *table(aims(result["aims"])), ""]
    for tier in dict.fromkeys(row["tier"] for row in result["loops"]):
        rows = [row for row in result["loops"] if row["tier"] == tier]
        text += [f"## Inner loops of {tier}", "", f"{LOOPS} {result['int8'][tier].upper()}.", ""]
        text += [
            *table(_loops(rows, result["int8"][tier])),
            "",
            "One turn of the largest tiles:",
            "",
            *table(_mixes(rows)),
            "",
        ]
    for tier, cpu in dict.fromkeys((pair["tier"], pair["cpu"]) for pair in result["pairs"]):
        pairs = [pair for pair in result["pairs"] if (pair["tier"], pair["cpu"]) == (tier, cpu)]
        text += [
            f"## Pairs of widths, the fastest family: {tier} on {cpu}",
            "",
            *table(_pairs(pairs, result["int8"][tier])),
            "",
        ]
    return "\n".join(text).rstrip() + "\n"


def _models(models: dict[str, str]) -> list[str]:
    names = ", ".join(f"{cpu}: {model}" for cpu, model in models.items())
    return [f"Models that this llvm-mca has for the processors: {names}."]


def table(cells: list[list[str]]) -> list[str]:
    head, *body = cells
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def aims(judged: list[Row]) -> list[list[str]]:
    cells = [["", "processor", "tier", "family", "MAC a cycle", "over SDOT", "aim", "verdict"]]
    for row in sorted(judged, key=lambda row: (row["w_bits"], row["a_bits"])):
        widths, reached = f"W{row['w_bits']}A{row['a_bits']}", f"{row['reached']:.2f}x"
        what = [widths, row["cpu"], row["tier"], row["family"], f"{row['rate']:.0f}"]
        cells.append([*what, reached, f"{row['aim']:.1f}x", row["verdict"]])
    return cells


def _name(row: Row) -> str:
    return " ".join(filter(None, (row["family"], row["form"], f"W{row['bits']}" if row["bits"] else "")))


def _loops(rows: list[Row], int8: str) -> list[list[str]]:
    cpus = list(dict.fromkeys(row["cpu"] for row in rows))
    by = {(_name(row), row["rows"], row["cpu"]): row for row in rows}
    cells = [["loop", "rows", *cpus]]
    for name, count in sorted(
        {(name, count) for name, count, _ in by}, key=lambda at: (not at[0].startswith("int8"), at)
    ):
        cells.append([name, str(count or ""), *(_rate(by[name, count, cpu], int8) for cpu in cpus)])
    return cells


def _rate(row: Row, int8: str) -> str:
    over = row["over"].get(int8)
    return f"{row['rate']:.1f}" if row["family"] == "int8" else f"{row['rate']:.1f} ({over:.2f}x)"


def _mixes(rows: list[Row]) -> list[list[str]]:
    largest = {_name(row): row for row in sorted(rows, key=lambda row: row["rows"])}
    cells = [["loop", "MAC", "instructions"]]
    for name, row in sorted(largest.items(), key=lambda at: (at[1]["family"] != "int8", at[0])):
        mix = ", ".join(f"{times} {instruction}" for instruction, times in row["counts"].items())
        cells.append([name, str(row["products"]), mix])
    return cells


def _pairs(pairs: list[Row], int8: str) -> list[list[str]]:
    by = {(pair["w_bits"], pair["a_bits"]): f"{pair['over'][int8]:.2f}x {pair['family']}" for pair in pairs}
    head = [f"over {int8.upper()}", *(f"A{a}" for a in BITS)]
    return [head, *([f"W{w}", *(by[w, a] for a in BITS)] for w in BITS)]
