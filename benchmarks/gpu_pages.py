"""A GPU result as JSON, Markdown, PNG and tables for the terminal. What was not measured says so; losses stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

from benchmarks import pages, plots, shapes
from benchmarks.gpu_contenders import FAULTS

Row = dict[str, Any]
NOT_MEASURED = "not measured"
DRY = (
    "**Nothing on this page was measured.** It is a dry run on a CPU: tiny shapes, Triton's interpreter and the CUDA emulator. It "
    "shows that the answers are right and that a run on a GPU writes all its files."
)
ABOUT = (
    "FP16 in, float32 out for ours, quantization of the activations included; weights are prepacked. Times are medians of replays of "
    "CUDA graphs in which copies of the weights, three times the L2 cache together, take turns; contenders alternate. The ratio is "
    "the speed over cuBLAS FP16 of the same run and shape; below 1.00x we lose. Ours is checked whole against the CPU, bit for bit."
)


def write_json(result: dict[str, Any], out: Path) -> None:
    """<gpu>.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result['suite']}.json").write_text(json.dumps(result, indent=1) + "\n")


def write(result: dict[str, Any], out: Path) -> None:
    """<gpu>.json, .md and .png."""
    write_json(result, out)
    name = result["suite"]
    speed_up(result).savefig(out / f"{name}.png", dpi=110)
    plt.close("all")
    (out / f"{name}.md").write_text(as_markdown(result))


def as_markdown(result: dict[str, Any]) -> str:
    """The page that benchmarks/results/ shows."""
    lines = [f"# {result['title']}", "", "  \n".join(machine_lines(result["machine"])), ""]
    lines += [ABOUT if result["measured"] else DRY, "", f"![]({result['suite']}.png)", ""]
    for heading, cells in tables(result):
        lines += [f"## {heading}", "", *pages._table(cells), ""]
    notes = [f"{name}: {fault}" for name, fault in FAULTS.items()]
    for heading, items in (
        ("Errors", result["errors"]),
        ("What peers leave to the caller", notes),
        ("Left out", result["left_out"]),
    ):
        if items:
            lines += [f"## {heading}", "", *(f"- {item}" for item in items), ""]
    return "\n".join(lines).rstrip() + "\n"


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """GPU, driver, clocks, versions, date and command."""
    gpu = [machine["gpu"]]
    for key, label in (("compute_capability", "compute capability"), ("processors", "multiprocessors"), ("memory_gib", "GiB"),
                       ("l2_mib", "MiB of L2"), ("cuda", "CUDA")):  # fmt: skip
        if machine.get(key):
            gpu.append(
                f"{label} {machine[key]}" if key in ("compute_capability", "cuda") else f"{machine[key]} {label}"
            )
    clocks = [
        f"nvidia-smi {when}: {', '.join(f'{name} {value}' for name, value in machine[f'clocks_{when}'].items())}"
        for when in ("before", "after")
        if machine.get(f"clocks_{when}")
    ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [f"{', '.join(gpu)}, {machine['date']}, `{machine['command']}`", *clocks, f"Versions: {versions}"]


# ---- tables: (heading, [header, row, ...]) -------------------------------------------------------------------------
def tables(result: dict[str, Any]) -> list[tuple[str, pages.Cells]]:
    """Answers first, then ceilings, targets, every shape, convolutions."""
    found = [
        ("Answers", checks(result["checks"])),
        ("Ceilings, measured in the run", ceilings(result["ceilings"])),
        ("Host time of a call, 1 x 256 x 256", launches(result["launches"])),
        ("Targets on an H200: speed over cuBLAS FP16", targets(result["targets"])),
        *(
            (f"M x N x K = {shapes.text(shape)}", of_shape(result["rows"], shape))
            for shape in pages.shapes_of(result["rows"])
        ),
        (f"ResNet-50's convolutions, {batch_of(result['convolutions'])} images", convolutions(result["convolutions"])),
    ]
    return [(heading, cells) for heading, cells in found if len(cells) > 1]


def checks(found: list[Row]) -> pages.Cells:
    """What was compared with the CPU and whether it was the same."""
    cells = [["path", "cases", "differ from the CPU", "note"]]
    return cells + [[c["path"], str(c["cases"]), str(c["differ"]), c["first"] or c["left_out"]] for c in found]


def ceilings(found: dict[str, Row]) -> pages.Cells:
    cells = [["", "", "how"]]
    return cells + [[name, number(c["value"], f".0f {c['unit']}"), c["how"]] for name, c in found.items()]


def launches(found: list[Row]) -> pages.Cells:
    cells = [["", "us", "note"]]
    return cells + [[r["name"], number(r["microseconds"], ".1f"), r["note"]] for r in found]


def targets(found: list[Row]) -> pages.Cells:
    cells = [["M x N x K", "", "reached", "by", "at least", "aim", "verdict"]]
    for t in found:
        limits = [f"{t['least']:.2f}x", f"{t['aim']:.2f}x"]
        cells.append(
            [shapes.text(tuple(t["shape"])), t["widths"], number(t["reached"], ".2fx"), t["by"], *limits, t["verdict"]]
        )
    return cells


def of_shape(rows: list[Row], shape: shapes.Shape) -> pages.Cells:
    cells = [["", "what is timed", "kernel", "us", "TMAC/s", "weights, GB/s", "over cuBLAS FP16"]]
    order = ["float", "int8", "lowbit", "ours"]
    for r in sorted((r for r in rows if tuple(r["shape"]) == shape), key=lambda r: order.index(r["kind"])):
        cells.append([
            r["name"], "the whole call" if r["stage"] == "whole" else "the product alone", r["kernel"],
            number(r["seconds"] and 1e6 * r["seconds"], ".2f"), number(r["tmac_per_s"], ".1f"),
            number(r["weight_gb_per_s"], ".0f"), number(r["ratio"], ".2fx"),
        ])  # fmt: skip
    return cells


def batch_of(rows: list[Row]) -> int:
    return int(rows[0]["batch"]) if rows else 0


def convolutions(rows: list[Row]) -> pages.Cells:
    cells = [["image, filter/stride, outputs", "", "us", "TMAC/s", "over cuDNN FP16"]]
    for r in rows:
        figures = [
            number(r["seconds"] and 1e6 * r["seconds"], ".2f"),
            number(r["tmac_per_s"], ".1f"),
            number(r["ratio"], ".2fx"),
        ]
        cells.append([r["convolution"], r["name"], *figures])
    return cells


def number(value: float | None, form: str) -> str:
    """The value in a format that may end with a unit; "not measured" without one."""
    if value is None or value != value:
        return NOT_MEASURED
    digits = form.index("f") + 1
    return f"{value:{form[:digits]}}{form[digits:]}"


def terminal(result: dict[str, Any]) -> list[Table]:
    """The same tables, for rich."""
    shown = []
    for heading, (head, *body) in tables(result):
        table = Table(*head, title=heading, title_justify="left")
        for cells in body:
            table.add_row(*cells, style="yellow" if cells[-1] == "missed" else None)
        shown.append(table)
    return shown


# ---- picture -------------------------------------------------------------------------------------------------------
def speed_up(result: dict[str, Any]) -> plt.Figure:
    """A panel for every shape, bars of speed over cuBLAS FP16, with targets; empty panels where nothing was measured."""
    found = pages.shapes_of(result["rows"])
    bars = {shape: _bars(result["rows"], shape) for shape in found}
    figure, grid = plots._grid(len(found), max((len(b) for b in bars.values()), default=1))
    for axes, shape in zip(grid, found, strict=False):
        plots._draw_bars(axes, shapes.text(shape), bars[shape], _marks(result["targets"], shape))
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    title = f"{result['title']}: speed over cuBLAS FP16"
    figure.suptitle(
        title if result["measured"] else f"{title} - dry run, NOT MEASURED",
        color="black" if result["measured"] else "red",
    )
    figure.supxlabel("\n".join(map(plots._wrapped, machine_lines(result["machine"]))), fontsize=6, x=0.01, ha="left")
    return figure


def _bars(rows: list[Row], shape: shapes.Shape) -> list[plots.Bar]:
    order = ["float", "int8", "lowbit", "ours"]
    mine = sorted((r for r in rows if tuple(r["shape"]) == shape), key=lambda r: order.index(r["kind"]))
    return [(r["name"], r["ratio"] or 0.0, plots.COLORS[r["kind"]]) for r in mine]


def _marks(found: list[Row], shape: shapes.Shape) -> dict[str, Row]:
    """Targets, on whichever of ours reached them."""
    return {t["by"]: t for t in found if tuple(t["shape"]) == shape and t["by"]}
