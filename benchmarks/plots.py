"""Pictures of a result: bars of speed with target and ceiling, and the roofline of the machine it was measured on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks import pages, probes, shapes
from benchmarks.shapes import Shape

Row = dict[str, Any]
COLORS = {"int8": "#444444", "float": "#b0b0b0", "lowbit": "#e08a1e", "ours": "#1f77b4", "other tier": "#9ecae1"}
LABELS = {
    "int8": "INT8 of others",
    "float": "floating point",
    "lowbit": "low-bit kernels of others",
    "ours": "soniq_kernels",
    "other tier": "soniq_kernels, lower tiers",
}
AT_LEAST, CEILING = "#d62728", "#2ca02c"


def write(result: dict[str, Any], out: Path, name: str) -> list[str]:
    """name.png, and name-roofline.png for the suites of one thread and shapes of all kinds; returns their names."""
    speed_up(result).savefig(out / f"{name}.png", dpi=110)
    files = [f"{name}.png"]
    if result["suite"] in ("gemm", "gemv") and result["machine"].get("dram_gb_per_s"):
        roofline(result).savefig(out / f"{name}-roofline.png", dpi=110)
        files.append(f"{name}-roofline.png")
    plt.close("all")
    return files


# ---- bars ----------------------------------------------------------------------------------------------------------
Bar = tuple[str, float, str]  # (label, speed over the best INT8, color)
Panel = tuple[str, list[Bar], dict[str, Row]]  # (title, bars, {label: target})


def speed_up(result: dict[str, Any]) -> Figure:
    """A panel for each shape and number of threads, or for each network."""
    panels = _network_panels(result) if result["suite"] == "networks" else _shape_panels(result)
    figure, grid = _grid(len(panels), max((len(bars) for _, bars, _ in panels), default=1))
    for axes, panel in zip(grid, panels, strict=False):
        _draw_bars(axes, *panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if panels:
        colors = {color for _, bars, _ in panels for *_, color in bars}
        _legend(figure, colors, any(marks for *_, marks in panels))
    figure.suptitle(f"{result['title']}: speed over the best INT8 of the run")
    _sign(figure, result)
    return figure


def _grid(panels: int, bars: int) -> tuple[Figure, list[Axes]]:
    """Two panels a line, as high as their bars need."""
    columns = min(2, max(1, panels))
    lines = -(-max(1, panels) // columns)
    size = (8 * columns + 1.5, 1.2 + lines * (0.9 + 0.19 * bars))
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(grid.flat)


def _shape_panels(result: dict[str, Any]) -> list[Panel]:
    """One for every shape and number of threads."""
    rows, panels = result["rows"], list[Panel]()
    threads = sorted({r["threads"] for r in rows})
    for shape in pages.shapes_of(rows):
        for count in threads:
            mine = [r for r in rows if tuple(r["shape"]) == shape and r["threads"] == count]
            bars = [(r["name"], r["ratio"] or 0.0, COLORS[_kind(r, rows)]) for r in pages.in_order(mine)]
            marks = _marks(result, shape) if count == 1 else {}
            panels.append((_title(shape, count, len(threads) > 1), bars, marks))
    return panels


def _title(shape: Shape, threads: int, several: bool) -> str:
    return shapes.text(shape) + (f", {threads} thread{'s' * (threads > 1)}" if several else "")


def _marks(result: dict[str, Any], shape: Shape) -> dict[str, Row]:
    mine = [t for t in result["targets"] if tuple(t["shape"]) == shape and "INT8" in t["measure"]]
    return {f"{t['widths']} {t['tier']}": t for t in mine}


def _network_panels(result: dict[str, Any]) -> list[Panel]:
    kinds = {r["name"]: r for r in result["rows"]}
    panels: list[Panel] = []
    for network, total in pages.network_totals(result["rows"]).items():
        bars = [
            (name, total[pages.BEST_INT8] / seconds, COLORS[kinds[name]["kind"]])
            for name, seconds in total.items()
            if name in kinds and pages.BEST_INT8 in total
        ]
        panels.append((network, bars, {}))
    return panels


def _kind(row: Row, rows: list[Row]) -> str:
    """Its kind; the tier that is measured first is the best one."""
    best = next((r["tier"] for r in rows if r["kind"] == "ours"), "")
    return "other tier" if row["kind"] == "ours" and row["tier"] != best else str(row["kind"])


def _draw_bars(axes: Axes, title: str, bars: list[Bar], marks: dict[str, Row]) -> None:
    """A figure at the end of each bar; target and ceiling as short upright lines."""
    axes.barh(range(len(bars)), [b[1] for b in bars], color=[b[2] for b in bars], height=0.72)
    for at, (label, value, _) in enumerate(bars):
        mark = marks.get(label, {})
        for key, color in (("least", AT_LEAST), ("aim", CEILING)):
            if mark.get(key):
                axes.plot([mark[key]] * 2, [at - 0.45, at + 0.45], color=color, linewidth=1.8)
        axes.annotate(
            f"{value:.2f}", (value, at), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(bars)), [b[0] for b in bars], fontsize=7)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.25)


def _legend(figure: Figure, used: set[str], marked: bool) -> None:
    """What colors and marks mean, beside the panels."""
    handles: list[Any] = [Patch(color=COLORS[kind], label=LABELS[kind]) for kind in COLORS if COLORS[kind] in used]
    if marked:
        handles += [
            Line2D([], [], color=AT_LEAST, label="target: at least"),
            Line2D([], [], color=CEILING, label="ceiling of the method"),
        ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)


def _sign(figure: Figure, result: dict[str, Any]) -> None:
    """Where and how it was measured, at the foot."""
    lines = [_wrapped(line) for line in pages.machine_lines(result["machine"])]
    figure.supxlabel("\n".join(lines), fontsize=6, x=0.01, ha="left")


def _wrapped(line: str, width: int = 210) -> str:
    words, lines = line.split(" "), [""]
    for word in words:
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
    return "\n".join(lines)


# ---- roofline ------------------------------------------------------------------------------------------------------
def roofline(result: dict[str, Any]) -> Figure:
    """GMAC/s over products per byte, under what memory and the instructions allow."""
    rows = [r for r in result["rows"] if r["threads"] == 1]
    x, y = [_intensity(r) for r in rows], [r["gmac_per_s"] for r in rows]
    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    axes.set(
        xscale="log", yscale="log", xlim=(min(x) / 1.5, max(x) * 1.5), ylim=(min(y) / 1.5, max(y) * 3),
        xlabel="products per byte of weights, inputs and outputs", ylabel="GMAC/s", title=f"{result['title']}: roofline",
    )  # fmt: skip
    _draw_limits(axes, result["machine"])
    for shape, marker in zip(pages.shapes_of(rows), itertools.cycle("osD^vP*X"), strict=False):
        _draw_points(axes, [r for r in rows if tuple(r["shape"]) == shape], marker, shapes.text(shape))
    for kind in COLORS:
        if any(_kind(r, rows) == kind for r in rows):
            axes.scatter([], [], color=COLORS[kind], label=LABELS[kind])
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, loc="lower right")
    _sign(figure, result)
    return figure


def _draw_points(axes: Axes, rows: list[Row], marker: str, label: str) -> None:
    axes.scatter(
        [_intensity(r) for r in rows], [r["gmac_per_s"] for r in rows], marker=marker, s=28, zorder=3,
        color=[COLORS[_kind(r, rows)] for r in rows], edgecolors="white", linewidths=0.4,
    )  # fmt: skip
    axes.scatter([], [], marker=marker, color="gray", label=label)


def _intensity(row: Row) -> float:
    """Products over the bytes that have to be read or written at least once: packed weights, float32 in and out."""
    m, n, k = row["shape"]
    return float(m * n * k / (n * k * row["w_bits"] / 8 + 4 * m * (k + n)))


def _draw_limits(axes: Axes, machine: dict[str, Any]) -> None:
    """Slopes: bandwidth measured in the run. Levels: products a cycle (csrc/README.md) times the clock measured in the run."""
    left, right = axes.get_xlim()
    for key, label, style in (("dram_gb_per_s", "memory", "-"), ("cache_gb_per_s", "cache", ":")):
        ends = [left * machine[key], right * machine[key]]
        axes.plot([left, right], ends, f"k{style}", linewidth=1, label=f"{label}, {machine[key]:.0f} GB/s")
    for label, per_cycle in probes.ceilings(machine["tiers"]).items():
        level = per_cycle * (machine["gigahertz"] or 0)
        if level:
            axes.axhline(level, color=CEILING, linewidth=0.9, linestyle="--")
            side, shift, align = (right, -4, "right") if label.startswith("AVX2") else (left, 4, "left")
            axes.annotate(
                f"{label}: {level:.0f}", (side, level), xytext=(shift, 2), textcoords="offset points", fontsize=7, ha=align
            )  # fmt: skip
            axes.set_ylim(top=max(axes.get_ylim()[1], level * 1.6))
