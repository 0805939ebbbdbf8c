"""The picture of a report: bits per channel, bytes and time of every layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from soniq_kernels._optional import require

if TYPE_CHECKING:
    from .report import Report


def plot(report: Report, path: str | Path) -> None:
    """Write a picture (by the ending of `path`: png, svg, pdf) with three panels and one bar a layer."""
    require("matplotlib", extra="demo")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.5 + 0.3 * len(report.layers)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    names = [layer.name for layer in report.layers]
    _bits(left, report, names)
    middle.barh(names, [4 * layer.weights for layer in report.layers], color="0.85", label="float32")
    middle.barh(names, [layer.bytes for layer in report.layers], color="tab:blue", label="packed")
    middle.set(title=f"bytes, {report.average_bits:.2f} bits a weight", xscale="log")
    middle.legend()
    right.barh(names, [layer.time or 0.0 for layer in report.layers], color="tab:green")
    right.axvline(1.0, color="0.5", linestyle=":")
    right.set(title="time of the products, 1 at 8 bits")
    left.invert_yaxis()
    figure.suptitle(report.headline)
    figure.savefig(path, dpi=150)


def _bits(axes: Any, report: Report, names: list[str]) -> None:
    """Shares of the input channels at each precision, side by side."""
    from matplotlib import colormaps

    every = sorted({bits for layer in report.layers for bits in layer.channels}, key=str)
    start = [0.0] * len(names)
    for i, bits in enumerate(every):
        share = [layer.channels.get(bits, 0) / max(sum(layer.channels.values()), 1) for layer in report.layers]
        label = f"{bits} bits" if isinstance(bits, int) else bits
        axes.barh(names, share, left=start, label=label, color=colormaps["viridis"](i / max(len(every) - 1, 1)))
        start = [a + b for a, b in zip(start, share, strict=True)]
    axes.set(title="input channels at each precision", xlim=(0, 1))
    if every:
        axes.legend()
