"""A result as Markdown, CSV and tables for the terminal. A row where we lose stays in the table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from benchmarks import shapes
from benchmarks.shapes import Shape

Row = dict[str, Any]
COLUMNS = [
    "shape",
    "name",
    "kind",
    "w_bits",
    "tier",
    "threads",
    "kernel",
    "calls",
    "seconds",
    "fastest",
    "gmac_per_s",
    "ratio",
]


def write(result: dict[str, Any], out: Path, name: str) -> None:
    """name.json, name.csv and name.md."""
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.csv").write_text(as_csv(result))
    (out / f"{name}.md").write_text(as_markdown(result, name))


def as_csv(result: dict[str, Any]) -> str:
    """One line a row, after lines with # that say where it was measured."""
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in machine_lines(result["machine"]))
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for row in result["rows"]:
        lines.writerow([shapes.text(tuple(row["shape"])), *(row[column] for column in COLUMNS[1:])])
    return text.getvalue()


def as_markdown(result: dict[str, Any], name: str) -> str:
    """The page that `benchmarks/results/` shows."""
    lines = [f"# {result['title']}", "", *_paragraphs(result), ""]
    lines += [f"![]({picture})\n" for picture in result["pictures"]]
    for heading, table in tables(result):
        lines += [f"## {heading}", "", *_table(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def _paragraphs(result: dict[str, Any]) -> list[str]:
    about = f"Float32 in, float32 out, everybody's weights prepacked, quantization of the activations included. {result['about']} "
    about += "The ratio is the speed over the best INT8 peer of the same run, shape and number of threads; below 1.00x we lose."
    left_out = [f"Left out: {reason}." for reason in result["left_out"]]
    return ["  \n".join(machine_lines(result["machine"])), "", about, *(f"\n{line}" for line in left_out)]


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """Processor, flags, threads, versions, date and command."""
    threads = " and ".join(map(str, machine["threads"]))
    measured = [
        f"{machine[key]:.{digits}f} {unit}"
        for key, digits, unit in (
            ("gigahertz", 2, "GHz"), ("dram_gb_per_s", 0, "GB/s read from memory"), ("cache_gb_per_s", 0, "GB/s from cache"),
        )
        if machine.get(key)
    ]  # fmt: skip
    return [
        f"{machine['cpu']}, usable cores: {machine['cores']}, threads: {threads}, {machine['date']}, `{machine['command']}`",
        *([f"Measured in the run: {', '.join(measured)}"] if measured else []),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        *([f"Flags: {' '.join(machine['flags'])}"] if machine.get("flags") else []),
    ]


# ---- tables: (heading, [header, row, ...]) -------------------------------------------------------------------------
Cells = list[list[str]]


def tables(result: dict[str, Any]) -> list[tuple[str, Cells]]:
    """Targets first, then what a suite is for, then every row."""
    found = [
        (f"Targets: {result['targets'][0]['measure']}" if result["targets"] else "", targets(result)),
        ("Whole networks", networks(result["rows"]) if result["suite"] == "networks" else []),
        ("One thread and more", scaling(result["rows"])),
        ("Weights of as many bits", same_bits(result["rows"])),
        *(
            (f"M x N x K = {shapes.text(shape)}", of_shape(result["rows"], shape))
            for shape in shapes_of(result["rows"])
        ),
    ]
    return [(heading, cells) for heading, cells in found if len(cells) > 1]


def shapes_of(rows: list[Row]) -> list[Shape]:
    """Every shape once, in order."""
    return list(dict.fromkeys((r["shape"][0], r["shape"][1], r["shape"][2]) for r in rows))


def targets(result: dict[str, Any]) -> Cells:
    """What was to be reached and what was."""
    cells = [["M x N x K", "", "reached", "at least", "ceiling", "verdict"]]
    for t in result["targets"]:
        aim = f"{t['aim']:.2f}x" if t["aim"] else ""
        cells.append([shapes.text(tuple(t["shape"])), f"{t['widths']} {t['tier']}", f"{t['reached']:.2f}x",
                      f"{t['least']:.2f}x", aim, t["verdict"]])  # fmt: skip
    return cells


def of_shape(rows: list[Row], shape: Shape) -> Cells:
    """Everybody at one shape: peers first."""
    mine = in_order([r for r in rows if tuple(r["shape"]) == shape])
    several = len({r["threads"] for r in mine}) > 1
    cells = [["", *(["threads"] if several else []), "kernel", "ms", "GMAC/s", "over best INT8"]]
    for r in mine:
        threads = [str(r["threads"])] if several else []
        cells.append(
            [
                r["name"],
                *threads,
                r["kernel"],
                f"{1000 * r['seconds']:.3f}",
                f"{r['gmac_per_s']:.0f}",
                ratio(r["ratio"]),
            ]
        )
    return cells


def in_order(rows: list[Row]) -> list[Row]:
    """INT8, floats, low-bit peers, then ours with the best tier first; as measured within each."""
    kinds = ["int8", "float", "lowbit", "ours"]
    tiers = list(dict.fromkeys(r["tier"] for r in rows))
    return sorted(rows, key=lambda r: (r["threads"], kinds.index(r["kind"]), tiers.index(r["tier"])))


def ratio(value: float | None) -> str:
    """As "1.23x"; empty without an INT8 peer."""
    return "" if value is None else f"{value:.2f}x"


def networks(rows: list[Row]) -> Cells:
    """Milliseconds of all layers of a network, and the ratio over INT8 at its best in every layer."""
    totals = network_totals(rows)
    cells = [["", *(f"{name}, ms" for name in totals)]]
    for name in dict.fromkeys(name for total in totals.values() for name in total):
        cells.append([name, *(_total_text(total, name) for total in totals.values())])
    return cells


BEST_INT8 = "best INT8 of each layer"


def network_totals(rows: list[Row]) -> dict[str, dict[str, float]]:
    """{network: {name: seconds}} of who was measured at every layer."""
    seconds = {(tuple(r["shape"]), r["name"]): r["seconds"] for r in rows}
    for shape in shapes_of(rows):
        int8 = [r["seconds"] for r in rows if tuple(r["shape"]) == shape and r["kind"] == "int8"]
        if int8:
            seconds[shape, BEST_INT8] = min(int8)
    names = [BEST_INT8, *dict.fromkeys(r["name"] for r in in_order(rows))]
    totals = {
        network: {
            name: sum(layer.times * seconds[layer.shape, name] for layer in layers)
            for name in names
            if all((layer.shape, name) in seconds for layer in layers)
        }
        for network, layers in shapes.NETWORKS.items()
    }
    return {network: total for network, total in totals.items() if total}


def _total_text(total: dict[str, float], name: str) -> str:
    if name not in total:
        return ""
    over = f" ({total[BEST_INT8] / total[name]:.2f}x)" if BEST_INT8 in total else ""
    return f"{1000 * total[name]:.2f}{over}"


def scaling(rows: list[Row]) -> Cells:
    """Speed with more threads over one."""
    counts = sorted({r["threads"] for r in rows})
    by_key = {(tuple(r["shape"]), r["name"], r["threads"]): r["seconds"] for r in rows}
    cells = [["M x N x K", "", *(f"{t} over {counts[0]}" for t in counts[1:])]]
    for r in in_order([r for r in rows if r["threads"] == counts[0]]) if len(counts) > 1 else []:
        more = [by_key.get((tuple(r["shape"]), r["name"], t)) for t in counts[1:]]
        cells.append([shapes.text(tuple(r["shape"])), r["name"], *(ratio(s and r["seconds"] / s) for s in more)])
    return cells


def same_bits(rows: list[Row]) -> Cells:
    """Ours over the best low-bit peer whose weights have as many bits."""
    cells = [["M x N x K", "", "best low-bit peer", "GMAC/s", "ours, GMAC/s", "speed over it"]]
    for r in (r for r in rows if r["kind"] == "ours"):
        rivals = [p for p in rows if p["kind"] == "lowbit" and (p["shape"], p["w_bits"]) == (r["shape"], r["w_bits"])]
        if rivals:
            best = min(rivals, key=lambda p: float(p["seconds"]))
            speeds = [f"{best['gmac_per_s']:.0f}", f"{r['gmac_per_s']:.0f}", ratio(best["seconds"] / r["seconds"])]
            cells.append([shapes.text(tuple(r["shape"])), r["name"], best["name"], *speeds])
    return cells


def _table(cells: Cells) -> list[str]:
    head, *body = cells
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def terminal(result: dict[str, Any]) -> list[Table]:
    """The same tables, for rich."""
    shown = []
    for heading, (head, *body) in tables(result):
        table = Table(*(Column(text, no_wrap=True) for text in head), title=heading, title_justify="left")
        for row in body:
            table.add_row(*row, style=_style(row))
        shown.append(table)
    return shown


def _style(row: list[str]) -> str | None:
    return "yellow" if row[-1].startswith("missed") else None
