"""`python -m benchmarks.gpu`: checks every GPU path bit for bit, then times it beside its peers, on this machine's GPU.

One command, under eight minutes, no network. Writes benchmarks/results/<gpu>.json, .md and .png. Without a GPU it says what is
needed and exits with 2; `--dry-run` runs all of it on the CPU at tiny shapes, times nothing and says so. docs/gpu_benchmark.md.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import shapes
from benchmarks.shapes import Shape

RESULTS = Path(__file__).parent / "results"
LAYERS = [(8192, 8192), (4096, 4096), (11008, 4096), (28672, 8192)]  # (N, K), the one with targets first
BATCHES = [1, 16, 256, 4096, 4, 64, 1024]  # those with targets first: what time does not allow is left out at the end
TINY_LAYERS, TINY_BATCHES = [(128, 96)], [1, 3]
NO_GPU = 2
ROUNDS = 9

Row = dict[str, Any]
Say = Callable[[str], None]
console = Console()
if not console.is_terminal:
    console = Console(width=140)


def points(tiny: bool) -> list[Shape]:
    """Every (M, N, K), the most wanted first."""
    layers, batches = (TINY_LAYERS, TINY_BATCHES) if tiny else (LAYERS, BATCHES)
    return [(m, n, k) for n, k in layers for m in batches]


class Deadline:
    """How much of the time is left."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def seconds(self) -> float:
        return self.end - time.monotonic()


# ---- timing --------------------------------------------------------------------------------------------------------
def measure_shape(gpu: Any, shape: Shape, left_out: dict[str, None], errors: list[str], say: Say) -> list[Row]:
    """All contenders at one shape, in turns; who cannot run is named in left_out, what of ours fails in errors."""
    from benchmarks import gpu_contenders as who
    from benchmarks.peers import Unavailable

    layer, ready, runs = who.Layer(shape, gpu), {}, {}
    for contender in who.contenders(shape):
        say(f"{shapes.text(shape)}, making {contender.name}")
        try:
            made = who.make(contender, layer)
            runs[contender], ready[contender] = gpu.prepare(made.calls), made
        except Unavailable as reason:
            left_out[f"{contender.name}: {reason}"] = None
        except Exception as error:  # the others are measured all the same; one of ours makes the run fail in the end
            what = f"{contender.name} at {shapes.text(shape)}: {type(error).__name__}: {error}"
            errors.append(what) if contender.kind == "ours" else left_out.setdefault(what)
    say(f"{shapes.text(shape)}, timing {len(runs)}")
    times = take_turns(gpu, runs)
    rows = [row(contender, shape, ready[contender], times[contender]) for contender in runs]
    add_ratios(rows)
    return rows


def take_turns(gpu: Any, runs: dict[Any, Callable[[], Any]]) -> dict[Any, list[float]]:
    """Seconds of every replay that counts: all contenders in every round, so that a clock that drifts slows all of them."""
    times: dict[Any, list[float]] = {contender: [] for contender in runs}
    for number in range(ROUNDS + 2 if gpu.measured else 1):
        for contender in runs if number % 2 else reversed(runs):
            seconds = gpu.seconds(runs[contender])
            if number >= 2 or not gpu.measured:
                times[contender].append(seconds)
    return times


def row(contender: Any, shape: Shape, made: Any, times: list[float]) -> Row:
    """One line of the results; seconds are None where nothing was measured."""
    calls, median = len(made.calls), statistics.median(times)
    seconds = None if math.isnan(median) else median / calls
    m, n, k = shape
    return {
        "shape": list(shape), "name": contender.name, "kind": contender.kind, "tier": contender.tier,
        "widths": contender.what if contender.kind == "ours" else "", "stage": made.stage, "kernel": made.kernel,
        "copies": calls, "rounds": len(times), "seconds": seconds, "fastest": seconds and min(times) / calls,
        "tmac_per_s": seconds and m * n * k / seconds / 1e12, "weight_bytes": made.weight_bytes,
        "weight_gb_per_s": seconds and made.weight_bytes / seconds / 1e9, "ratio": None,
    }  # fmt: skip


BASELINE = "cuBLAS FP16"


def add_ratios(rows: list[Row]) -> None:
    """Speed over cuBLAS FP16 of the same run and shape."""
    base = next((r["seconds"] for r in rows if r["name"] == BASELINE), None)
    for r in rows:
        r["ratio"] = base / r["seconds"] if base and r["seconds"] else None


# ---- the whole run -------------------------------------------------------------------------------------------------
def run_all(gpu: Any, minutes: float, command: str, progress: Progress, save: Callable[[Row], None]) -> Row:
    """Checks, ceilings, then shapes until the time is up; `save` gets the result after every shape."""
    from benchmarks import gpu_ceilings, gpu_checks, gpu_convolutions, gpu_machine, gpu_targets

    deadline, wanted, left_out = Deadline(minutes), points(gpu.tiny), dict[str, None]()
    task = progress.add_task("starting", total=len(wanted) + 3)
    say = lambda what: progress.update(task, description=what)  # noqa: E731
    result: Row = {
        "suite": slug(gpu.name), "title": f"GPU kernels on {gpu.name}", "measured": gpu.measured,
        "machine": gpu_machine.machine(gpu, command), "checks": gpu_checks.run(gpu, minutes / 4, say), "errors": [],
    }  # fmt: skip
    progress.advance(task)
    result |= {"ceilings": gpu_ceilings.measure(gpu, say), "launches": launches(gpu, say)}
    result |= {"rows": [], "convolutions": [], "targets": [], "left_out": []}
    progress.advance(task)
    for shape in wanted:
        if deadline.seconds() < 60 and not gpu.tiny:
            left_out[f"everything at {shapes.text(shape)}: out of time"] = None
        else:
            result["rows"] += measure_shape(gpu, shape, left_out, result["errors"], say)
            gpu.free()
        result |= {"left_out": list(left_out), "targets": gpu_targets.judge(result["rows"])}
        save(result)
        progress.advance(task)
    result["convolutions"] = gpu_convolutions.measure(gpu, deadline, left_out, result["errors"], say)
    result["machine"]["clocks_after"] = gpu.clocks()
    return result | {"left_out": list(left_out)}


def launches(gpu: Any, say: Say) -> list[Row]:
    """What a call costs the host, quantization included, at a size where the GPU has nothing to do."""
    from benchmarks import gpu_contenders as who
    from benchmarks.contenders import Contender
    from benchmarks.peers import Unavailable

    say("host time of a call")
    layer, found = who.Layer((1, 64, 64) if gpu.tiny else (1, 256, 256), gpu), []
    for contender in (
        Contender("float", BASELINE),
        Contender("ours", "W4A8", "triton"),
        Contender("ours", "W1A1", "b1"),
    ):
        try:
            seconds = gpu.host_seconds(who.make(contender, layer).calls[0])
        except Unavailable as reason:
            found.append({"name": contender.name, "microseconds": None, "note": str(reason)})
            continue
        found.append(
            {"name": contender.name, "microseconds": None if math.isnan(seconds) else 1e6 * seconds, "note": ""}
        )
    return found


def slug(name: str) -> str:
    """A file's name from a GPU's: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


Minutes = Annotated[float, typer.Option(help="Most minutes; what does not fit is named as left out.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Everything on the CPU at tiny shapes; nothing is timed.")]
Out = Annotated[Path | None, typer.Option(help="Folder; benchmarks/results, or a new temporary one for a dry run.")]


def main(minutes: Minutes = 7.5, dry_run: Dry = False, out: Out = None) -> None:
    """Check the GPU kernels bit for bit, time them beside their peers, write the results."""
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from benchmarks import gpu_machine, gpu_pages

    try:
        gpu = gpu_machine.DryGpu() if dry_run else gpu_machine.Gpu()
    except gpu_machine.NoGpu as missing:
        console.print(f"{missing}.", NEEDS, sep="\n", markup=False, highlight=False)
        raise typer.Exit(NO_GPU) from None
    place = out or (Path(tempfile.mkdtemp(prefix="soniq-gpu-")) if dry_run else RESULTS)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        result = run_all(gpu, minutes, _command(), progress, lambda part: gpu_pages.write_json(part, place))
    gpu_pages.write(result, place)
    for table in gpu_pages.terminal(result):
        console.print(table)
    console.print(f"{place / result['suite']}.md, .json and .png", highlight=False)
    if wrong := failures(result):
        console.print(*wrong, sep="\n", markup=False, highlight=False)
        raise typer.Exit(1)


def failures(result: Row) -> list[str]:
    """What was wrong: answers that differ from the CPU's, and what of ours did not run."""
    differ = [
        f"{c['path']} differs from the CPU in {c['differ']} of {c['cases']} cases, first {c['first']}"
        for c in result["checks"]
        if c["differ"]
    ]
    unseen = [f"{c['path']} was not checked at all" for c in result["checks"] if not c["cases"] and not c["left_out"]]
    return differ + unseen + list(result["errors"])


NEEDS = (
    "To measure, this needs: an NVIDIA GPU of compute capability 8.0 or higher with its driver; torch with CUDA, triton, cupy and "
    "numpy (pip install soniq_kernels[gpu]); a C compiler for Triton (gcc).\n"
    "python -m benchmarks.gpu --dry-run exercises everything else on the CPU and times nothing."
)


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])


if __name__ == "__main__":
    typer.run(main)
