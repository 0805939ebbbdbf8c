"""Tables and pictures of finished runs: what is there, what is missing, and which goals it meets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from runs import Store, markdown, mean_and_error

SEEDS = (0, 1, 2)
Rows = dict[str, list[dict[str, Any]]]


def by_recipe(results: Sequence[dict[str, Any]], recipes: Sequence[str]) -> Rows:
    """{recipe: its runs}, in the order of `recipes`, also where there is none."""
    return {name: sorted((r for r in results if r["recipe"] == name), key=lambda r: r["seed"]) for name in recipes}


def table(rows: Rows, measure: str) -> str:
    """A line a recipe: mean and standard error over its seeds; the difference to FP32 is that of equal seeds."""
    lines = [["recipe", "inner bits", "network bits", "smaller by", measure, "minus FP32", "seeds", "planner µs", "CPU µs",
              "outputs", "mismatches"]]  # fmt: skip
    base = {r["seed"]: r[measure] for r in rows.get("fp32", [])}
    for name, found in rows.items():
        if not found:
            lines.append([name, *["missing"] * (len(lines[0]) - 1)])
            continue
        paired = [r[measure] - base[r["seed"]] for r in found if r["seed"] in base]
        lines.append([
            name, _average(found, "inner_bits"), _average(found, "network_bits"), _average(found, "compression") + "x",
            _spread([r[measure] for r in found]), _spread(paired, "+"), ", ".join(str(r["seed"]) for r in found),
            _average(found, "planner_us"), _average(found, "packed_cpu_us"), *_mismatches(found),
        ])  # fmt: skip
    return markdown(lines)


def _average(found: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in found if key in r]
    return f"{np.mean(values):.2f}" if values else ""


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "missing"
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.3f}" + (f" ± {error:.3f}" if len(values) > 1 else "")


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
        if name.split("-")[0] == family and found
    ]
    return np.array(sorted(points)).reshape(-1, 3)


def below(rows: Rows, measure: str, along: str, better: int = 1) -> list[str]:
    """Where SONIQ lies below the uniform networks by more than one standard error of the difference, by linear interpolation.

    better: 1 where more is better, -1 where less is.
    """
    ours, theirs = curve(rows, "soniq", measure, along), curve(rows, "uniform", measure, along)
    if len(theirs) < 2:
        return ["missing"]
    found = []
    for at, mean, error in ours:
        if theirs[0, 0] <= at <= theirs[-1, 0]:
            other, other_error = (np.interp(at, theirs[:, 0], theirs[:, i]) for i in (1, 2))
            if better * (mean - other) < -np.hypot(error, other_error):
                found.append(f"{at:.2f}: {mean - other:+.3f}")
    return found


def picture(rows: Rows, measure: str, file: Path) -> None:
    """Mean and standard error over inner bits and over time."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, along, label in zip(axes, ("inner_bits", "planner_us"), ("average bits of the inner layers",
                                  "measured cost of all products, µs a sample"), strict=True):  # fmt: skip
        for family, marker in (("soniq", "o-"), ("uniform", "s--"), ("random", "x"), ("magnitude", "+")):
            points = curve(rows, family, measure, along)
            if len(points):
                axis.errorbar(*points[:, :2].T, yerr=np.nan_to_num(points[:, 2]), fmt=marker, label=family, capsize=3)
        if rows.get("fp32"):
            axis.axhline(mean_and_error([r[measure] for r in rows["fp32"]])[0], color="gray", label="fp32")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(measure)
    axes[0].legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def write_tables(
    store: Store, recipes: Sequence[str], measure: str, notes: Sequence[str] = (), goals=None
) -> list[Path]:
    """results.md and results.png beside the results; the two paths. goals: rows -> lines of (goal, figure)."""
    results = store.all()
    rows = by_recipe(results, recipes)
    folder = store.results / store.name
    folder.mkdir(parents=True, exist_ok=True)
    picture(rows, measure, folder / "results.png")
    lines = [f"# {store.name}", "", table(rows, measure), "", *notes]
    if goals is not None:
        lines += ["", markdown([["goal", "found"], *goals(rows)])]
    commands = sorted({r["command"] for r in results})
    machines = sorted(
        {f"{r['machine']['processor']}, {r['machine']['isa']}, torch {r['machine']['torch']}" for r in results}
    )
    cpu = sum(r["cpu_seconds"] for r in results)
    lines += ["", "![accuracy over bits and time](results.png)", "", f"Made by {'; '.join(f'`{c}`' for c in commands)} on "
              f"{'; '.join(machines)}; {cpu / 60:.0f} CPU minutes of training in all."]  # fmt: skip
    page = folder / "results.md"
    page.write_text("\n".join(lines) + "\n")
    return [page, folder / "results.png"]
