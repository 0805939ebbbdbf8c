"""`python -m benchmarks.report`: our layers beside those of others, on this machine, in one run.

Every suite writes its results as JSON, CSV, Markdown and PNG into benchmarks/results/. Before anything is timed its answer
is checked: ours with == against NumPy, others' within what their bits explain. docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import measure, pages, plots, probes, shapes, targets
from benchmarks.suites import DEFAULT, SUITES, Suite

RESULTS = Path(__file__).parent / "results"
PARTS = RESULTS.parents[1] / "out" / "benchmarks"  # a run of some shapes or peers must not replace a whole one
console = Console()
if not console.is_terminal:
    console = Console(width=140)  # a file has no edge to wrap at


def result_of(suite: Suite, options: measure.Options) -> dict[str, Any]:
    """Everything that the results file holds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        rows, left_out = measure.run(suite, options, progress)
    return {
        "suite": suite.name, "title": suite.title, "about": suite.about, "machine": probes.machine(probes.command("benchmarks.report"), suite.threads()),
        "left_out": left_out, "targets": targets.judge(suite.name, rows), "rows": rows,
    }  # fmt: skip


def write(result: dict[str, Any], out: Path) -> None:
    """All files of one result, named after its suite."""
    out.mkdir(parents=True, exist_ok=True)
    result["pictures"] = plots.write(result, out, result["suite"])
    pages.write(result, out, result["suite"])


Texts = list[str] | None
Suites = Annotated[Texts, typer.Option(help=f"{', '.join(SUITES)} or all; may be repeated.")]
Rounds = Annotated[int, typer.Option(help="Turns of each contender after two to warm up.")]
Seconds = Annotated[float, typer.Option(help="A contender slower than that over all turns gets fewer, five at least.")]
Shapes = Annotated[Texts, typer.Option(help="Only this M x N x K, as 128x4096x4096; may be repeated.")]
Peers = Annotated[Texts, typer.Option(help="Only peers whose names contain this; may be repeated.")]
Widths = Annotated[Texts, typer.Option(help="Of ours only this, as W1A4; may be repeated.")]
Out = Annotated[Path | None, typer.Option(help="Folder; benchmarks/results, or out/benchmarks for a part of a suite.")]
Redraw = Annotated[bool, typer.Option("--redraw", help="Time nothing: make pages and pictures anew from the JSON.")]


def main(
    suite: Suites = None,
    rounds: Rounds = 25,
    seconds: Seconds = 5.0,
    shape: Shapes = None,
    peer: Peers = None,
    widths: Widths = None,
    out: Out = None,
    redraw: Redraw = False,
) -> None:
    """Time our layers beside those of others and write the results."""
    options = measure.Options(rounds, seconds, [_shape(text) for text in shape or []], peer or [], widths or [])
    place = out or (RESULTS if options.whole else PARTS)
    for name in _names(suite or DEFAULT):
        result = json.loads((place / f"{name}.json").read_text()) if redraw else result_of(SUITES[name], options)
        write(result, place)
        for table in pages.terminal(result):
            console.print(table)
        console.print(f"{place / name}.md, .csv, .json and {', '.join(result['pictures'])}")


def _names(wanted: list[str]) -> list[str]:
    unknown = set(wanted) - {*SUITES, "all"}
    if unknown:
        raise typer.BadParameter(f"got suite {', '.join(sorted(unknown))}, expected {', '.join(SUITES)} or all")
    return list(SUITES) if "all" in wanted else wanted


def _shape(text: str) -> shapes.Shape:
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"got shape {text!r}, expected M x N x K as 128x4096x4096")
    m, n, k = map(int, sizes)
    return m, n, k


if __name__ == "__main__":
    typer.run(main)
