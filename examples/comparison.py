"""Tables and pictures of finished runs: what is there, what is missing, and which goals it meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from runs import Store, markdown, mean_and_error

SEEDS = (0, 1, 2)
MARKERS = {"soniq": "o-", "uniform": "s--", "random": "x", "magnitude": "+", "wide": "^", "tied": "v"}
Rows = dict[str, list[dict[str, Any]]]


def by_recipe(results: Sequence[dict[str, Any]], recipes: Sequence[str]) -> Rows:
    """{recipe: its runs}, in the order of `recipes`, also where there is none."""
    return {name: sorted((r for r in results if r["recipe"] == name), key=lambda r: r["seed"]) for name in recipes}


def table(rows: Rows, measure: str) -> str:
    """A line a recipe: mean and standard error over its seeds; the difference to FP32 is that of equal seeds."""
    lines = [["recipe", "inner bits", "of activations", "network bits", "smaller by", measure, "minus FP32", "seeds", "products µs", "measured µs",
              "outputs", "mismatches"]]  # fmt: skip
    for name, found in rows.items():
        if not found:
            lines.append([name, *["missing"] * (len(lines[0]) - 1)])
            continue
        lines.append([
            name, _average(found, "inner_bits"), _activations(found[0]), _average(found, "network_bits"), _average(found, "compression") + "x",
            spread(mean_and_error([r[measure] for r in found])), spread(to_float(rows, name, measure), "+"), ", ".join(str(r["seed"]) for r in found),
            _average(found, "planner_us"), _average(found, "measured_us"), *_mismatches(found),
        ])  # fmt: skip
    return markdown(lines)


def _average(found: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in found if key in r]
    return f"{np.mean(values):.2f}" if values else ""


def _activations(run: dict[str, Any]) -> str:
    """Bits of the inner layers' activations; the levels of the two, low first."""
    levels = run.get("a_palette") or run.get("palette", [])
    return " or ".join(str(bits) for bits in sorted(set(levels)))


def spread(found: tuple[float, float] | None, sign: str = "") -> str:
    """A mean and its standard error, which one value does not have."""
    if found is None:
        return "missing"
    return f"{found[0]:{sign}.3f}" + (f" ± {found[1]:.3f}" if np.isfinite(found[1]) else "")


def _mismatches(found: list[dict[str, Any]]) -> tuple[str, str]:
    """Values compared, and those that differ, in this process and in a new one."""
    checks = [r for r in found if "layers" in r]
    if not checks:
        return "", ""
    compared = sum(r["layers"]["values"] + r["network"]["values"] + r["new_process"]["outputs"] for r in checks)
    different = sum(
        r["layers"]["different"] + r["network"]["different"] + r["new_process"]["different"]
        + r["new_process"]["layer_batches_different"] for r in checks
    )  # fmt: skip
    return f"{compared:,}", f"{different:,}"


def curve(rows: Rows, family: str, measure: str, along: str = "inner_bits") -> np.ndarray:
    """[points, 3]: bits (or another key), mean and standard error, in rising order."""
    points = [
        (np.mean([r[along] for r in found]), *mean_and_error([r[measure] for r in found]))
        for name, found in rows.items()
        if name.split("-")[0] == family and found and all(along in r for r in found)
    ]
    return np.array(sorted(points)).reshape(-1, 3)


def above(rows: Rows, measure: str, along: str) -> list[tuple[float, float, float]]:
    """(bits or time, by how much SONIQ lies above the uniform networks there, standard error), by linear interpolation.

    Points outside of the uniform curve are left out.
    """
    ours, theirs = curve(rows, "soniq", measure, along), curve(rows, "uniform", measure, along)
    found = []
    for at, mean, error in ours:
        if len(theirs) and theirs[0, 0] <= at <= theirs[-1, 0]:
            other, other_error = (np.interp(at, theirs[:, 0], theirs[:, i]) for i in (1, 2))
            found.append((float(at), float(mean - other), float(np.hypot(error, other_error))))
    return found


def to_float(rows: Rows, recipe: str, measure: str) -> tuple[float, float] | None:
    """Mean and standard error of what a recipe has more than FP32 of the same seed."""
    base = {r["seed"]: r[measure] for r in rows.get("fp32", [])}
    paired = [r[measure] - base[r["seed"]] for r in rows.get(recipe, []) if r["seed"] in base]
    return mean_and_error(paired) if paired else None


def verdict(found: tuple[float, float] | None, limit: float, better: int = 1) -> str:
    """The difference, and whether it keeps the limit; better: 1 where more is better, -1 where less is."""
    if found is None:
        return "missing"
    return f"{spread(found, '+')}: {'yes' if better * (found[0] - limit) >= 0 else 'no'}"


def picture(rows: Rows, measure: str, file: Path) -> None:
    """Mean and standard error over inner bits and over time."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, along, label in zip(axes, ("inner_bits", "planner_us"), ("average bits of the inner layers",
                                  "measured cost of all products, µs a sample"), strict=True):  # fmt: skip
        for family, marker in MARKERS.items():
            points = curve(rows, family, measure, along)
            if len(points):
                axis.errorbar(*points[:, :2].T, yerr=np.nan_to_num(points[:, 2]), fmt=marker, label=family, capsize=3)
        if rows.get("fp32"):
            axis.axhline(mean_and_error([r[measure] for r in rows["fp32"]])[0], color="gray", label="fp32")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(measure)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def write_tables(
    store: Store, recipes: Sequence[str], measure: str, goals: Callable[[Rows], Sequence[tuple[str, str]]]
) -> list[Path]:
    """results.md and results.png beside the results; the two paths. goals: lines of (goal, what was found)."""
    results, times = store.all(), store.times()
    timed = [run | ({"measured_us": times[run["recipe"]]} if run["recipe"] in times else {}) for run in results]
    rows = by_recipe(timed, recipes)
    folder = store.results / store.name
    folder.mkdir(parents=True, exist_ok=True)
    picture(rows, measure, folder / "results.png")
    missing = len(SEEDS) * len(rows) - sum(r["seed"] in SEEDS for found in rows.values() for r in found)
    parts = [
        f"# {store.name}",
        "What the recipes are: [docs/experiments.md](../../../docs/experiments.md). A figure without an error is of one seed; "
        f"{missing} of {len(SEEDS) * len(rows)} runs are missing.",
        table(rows, measure),
        markdown([["goal", "found"], *goals(rows)]),
        "![over bits and over time](results.png)",
        _made_by(results),
    ]
    page = folder / "results.md"
    page.write_text("\n\n".join(parts) + "\n")
    return [page, folder / "results.png"]


def _made_by(results: Sequence[dict[str, Any]]) -> str:
    machines = {tuple(r["machine"][key] for key in ("processor", "isa", "torch", "threads")) for r in results}
    text = [f"{cpu}, {isa}, torch {torch}, {threads} thread(s)" for cpu, isa, torch, threads in sorted(machines)]
    minutes = sum(r["cpu_seconds"] for r in results) / 60
    return (
        f"Machine: {'; '.join(text)}. {minutes:.0f} CPU minutes of training in all; each run's command is in its file."
    )
