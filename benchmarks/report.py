"""`python -m benchmarks.report`: our GEMM beside the best INT8 of others, on this machine, in one run.

Peers and ours take turns, call by call, so that a machine whose speed drifts slows all of them; each figure is the median of
many turns, and speed is quoted as a ratio. Every row starts from float32 activations and ends in float32; weights are
prepacked on both sides. Before a row is timed its answer is checked: ours with == against NumPy integers, others' within
their quantization error. Peers that run on all threads each spin a pool of their own, so this report times one thread.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import peers, shapes
from soniq_kernels import __version__, _core, gemm, isa, packing, set_num_threads

RESULTS = Path(__file__).parent / "results"
A_SCALE = 2.0
Shape = tuple[int, int, int]


def ours(x: peers.Floats, w: peers.Floats, w_bits: int, a_bits: int) -> tuple[Callable[[], Any], str]:
    """(call, kernel) after the answer has been compared with NumPy's integers."""
    plan = packing.Plan.uniform(w.shape[1], w_bits, a_bits, a_grid="bipolar")
    packed = packing.quantize_weights(w, plan, activation_scale=A_SCALE)
    codes = packing.quantize_activations(x, plan, A_SCALE)
    rows = slice(0, 4)
    levels_a = plan.segments[0].a.levels(codes.codes()[rows]).astype(np.int64)
    levels_w = plan.segments[0].w.levels(packed.codes()).astype(np.int64)
    if not np.array_equal(gemm.matmul(codes, packed)[rows], levels_a @ levels_w.T):
        raise AssertionError(f"W{w_bits}A{a_bits} {x.shape} x {w.shape}: the integers differ from NumPy's")
    why = gemm.explain(codes, packed)
    return lambda: gemm.linear(x, packed), why.kernel


def others(x: peers.Floats, w: peers.Floats, table: dict[str, peers.Peer]) -> dict[str, Callable[[], Any]]:
    """The peers that are installed, each within the error of 8 bits of the float32 product."""
    exact, calls = x @ w.T, {}
    for name, make in table.items():
        try:
            call = make(x, w, 1)
        except ImportError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        error = np.abs(call() - exact).mean() / np.abs(exact).mean()
        if not error < 0.05:
            raise AssertionError(f"{name} is off by {error:.1%} on {x.shape} x {w.shape}")
        calls[name] = call
    return calls


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 2:  # warm
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def measure(shape: Shape, tiers: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row per contender at one shape; `ratio` is the speed over the best INT8 peer of the run."""
    m, n, k = shape
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
    int8, floats = others(x, w, peers.INT8), others(x, w, peers.FLOAT)
    calls, kernels = {**int8, **floats}, {}
    for tier in tiers:
        for w_bits, a_bits in shapes.WIDTHS:
            name = f"W{w_bits}A{a_bits} {tier}"
            with isa.use(tier):
                calls[name], kernels[name] = ours(x, w, w_bits, a_bits)
            calls[name] = _on(tier, calls[name])
    seconds = take_turns(calls, rounds)
    best = min(seconds[name] for name in int8)
    return [
        {
            "shape": list(shape), "name": name, "kernel": kernels.get(name, ""), "int8_peer": name in int8,
            "seconds": s, "gmac_per_s": m * n * k / s / 1e9, "ratio": best / s,
        }
        for name, s in seconds.items()
    ]  # fmt: skip


def _on(tier: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def forced() -> Any:
        with isa.use(tier):
            return call()

    return forced


def machine(command: str) -> dict[str, Any]:
    """What a reader needs to judge or repeat the figures."""
    versions = {"soniq_kernels": __version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "onnxruntime", "openvino"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except ImportError:
            versions[name] = "not installed"
    return {
        "cpu": _core.cpu_name(), "cores": os.cpu_count(), "threads": 1, "tiers": isa.available(), "versions": versions,
        "date": datetime.date.today().isoformat(), "command": command,
    }  # fmt: skip


def table_of(rows: list[dict[str, Any]], shape: Shape) -> list[tuple[str, str, str]]:
    """(name, GMAC/s, ratio) at one shape, peers first."""
    mine = [r for r in rows if tuple(r["shape"]) == shape]
    order = sorted(mine, key=lambda r: (bool(r["kernel"]), not r["int8_peer"]))
    return [(r["name"], f"{r['gmac_per_s']:.0f}", f"{r['ratio']:.2f}x") for r in order]


def markdown(result: dict[str, Any]) -> str:
    """The report as a page."""
    m = result["machine"]
    lines = [
        "# GEMM beside INT8", "",
        f"{m['cpu']}, one thread, {m['date']}, " + ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + f", `{m['command']}`.",
        "Float32 in, float32 out, quantization of the activations included; the ratio is over the best INT8 peer of the run.", "",
    ]  # fmt: skip
    for shape in dict.fromkeys(tuple(r["shape"]) for r in result["rows"]):
        lines += [f"## M x N x K = {' x '.join(map(str, shape))}", "", "| | GMAC/s | over best INT8 |", "|---|---|---|"]
        lines += [f"| {a} | {b} | {c} |" for a, b, c in table_of(result["rows"], shape)] + [""]
    return "\n".join(lines)


def main(
    rounds: Annotated[int, typer.Option(help="Turns of each contender after two to warm up.")] = 25,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    name: Annotated[str, typer.Option(help="Stem of the result files.")] = "gemm",
) -> None:
    """Time our GEMM beside the best INT8 of others and write JSON and Markdown."""
    set_num_threads(1)
    todo = [*shapes.GEMM, *shapes.GEMV]
    rows = [row for shape in track(todo, "timing") for row in measure(shape, _tiers(), rounds)]
    result = {"machine": machine(" ".join(["python -m benchmarks.report", *sys.argv[1:]])), "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown(result))
    table = Table("M x N x K", "", "GMAC/s", "over best INT8")
    for shape in todo:
        for row in table_of(rows, shape):
            table.add_row(" x ".join(map(str, shape)), *row)
    Console().print(table)


def _tiers() -> list[str]:
    """The tiers whose kernels differ: one that serves everything from below would repeat its row."""
    counts = _core.kernel_counts()
    return [t for t in isa.available() if any(k.startswith(f"{t}.") and ".tile" in k for k in counts)]


if __name__ == "__main__":
    typer.run(main)
