"""What the demo shows: one table and one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import BoundaryNorm
from rich.table import Table


@dataclass
class Entry:
    """One row: accuracies over the seeds, and what was measured on the network of the first seed."""

    name: str
    family: str
    accuracies: list[float] = field(default_factory=list)
    inner_bits: float = 32.0
    average_bits: float = 32.0
    bytes: int = 0
    identical: int = 0
    compared: int = 0
    seconds: dict[int, float] = field(default_factory=dict)
    kernel: str = ""
    isa: str = ""

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies)

    @property
    def spread(self) -> float:
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def table(entries: Sequence[Entry], float_bytes: int, title: str, caption: str) -> Table:
    """The one table: a column for every network, a row for every figure."""
    shown = Table(title=title, caption=caption, caption_justify="left")
    shown.add_column("")
    for e in entries:
        shown.add_column(e.name, justify="right")
    for heading, text in _rows(list(entries[0].seconds), float_bytes).items():
        shown.add_row(heading, *(text(e) for e in entries))
    return shown


def _rows(batches: list[int], float_bytes: int) -> dict[str, Callable[[Entry], str]]:
    times = {f"ms for {b} image{'s' * (b > 1)}": lambda e, b=b: f"{1000 * e.seconds[b]:.3f}" for b in batches}
    return {
        "accuracy, %": lambda e: f"{e.accuracy:.2f}" + (f" ± {e.spread:.2f}" if len(e.accuracies) > 1 else ""),
        "average bits, inner layers": lambda e: f"{e.inner_bits:.2f}",
        "average bits, all weights": lambda e: f"{e.average_bits:.2f}",
        "bytes": lambda e: f"{e.bytes:,}",
        "compression": lambda e: f"{float_bytes / e.bytes:.1f}x",
        "identical outputs": lambda e: f"{e.identical:,} of {e.compared:,}" if e.compared else "",
        **times,
        "kernel": lambda e: e.kernel,
        "ISA": lambda e: e.isa,
    }


def picture(entries: Sequence[Entry], bits: dict[str, list[int]], path: Path, title: str) -> None:
    """Left: accuracy against average bits of the inner layers. Right: the bits of every channel of every layer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    _draw_accuracy(left, entries)
    _draw_bits(figure, right, bits)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_accuracy(axes, entries: Sequence[Entry]) -> None:
    for e in entries:
        if e.family == "FP32":
            axes.axhline(e.accuracy, color="black", linestyle="--", linewidth=1, label="FP32")
            axes.axhspan(e.accuracy - e.spread, e.accuracy + e.spread, color="black", alpha=0.08, linewidth=0)
    for family, color, marker in (("uniform", "tab:blue", "o"), ("SONIQ", "tab:red", "s")):
        mine = sorted((e for e in entries if e.family == family), key=lambda e: e.inner_bits)
        axes.errorbar([e.inner_bits for e in mine], [e.accuracy for e in mine], yerr=[e.spread for e in mine],
                      color=color, marker=marker, linestyle="none", capsize=3, label=family)  # fmt: skip
        for e in mine:
            axes.annotate(e.name.split()[1], (e.inner_bits, e.accuracy), xytext=(6, 4), textcoords="offset points")
    seeds = len(entries[0].accuracies)
    axes.set(xlabel="average bits of the inner layers", ylabel=f"test accuracy, %, {seeds} seed{'s' * (seeds > 1)}")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_bits(figure, axes, bits: dict[str, list[int]]) -> None:
    colors = plt.get_cmap("viridis", 8)
    scale = BoundaryNorm([p + 0.5 for p in range(9)], 8)
    for row, channels in enumerate(bits.values()):
        image = axes.imshow([channels], aspect="auto", cmap=colors, norm=scale, extent=(0, 1, row + 0.4, row - 0.4))
    axes.set(yticks=range(len(bits)), yticklabels=[f"{name}\n{len(c)} channels" for name, c in bits.items()], xticks=[],
             xlim=(0, 1), ylim=(len(bits) - 0.5, -0.5), xlabel="input channels, in order", title="bits per channel")  # fmt: skip
    figure.colorbar(image, ax=axes, ticks=range(1, 9), label="bits")
