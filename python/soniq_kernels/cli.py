"""The `soniq` command: what this machine can run and how fast, and whether a saved model is right on it.

typer and rich are imported here and nowhere else in the package; `import soniq_kernels` does not need them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np

try:
    import typer
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
except ModuleNotFoundError as missing:
    raise SystemExit(f"soniq: this command needs {missing.name}; run: python -m pip install typer rich") from None

import soniq_kernels
from soniq_kernels import _calibrate, _core, _costs, isa, planner
from soniq_kernels._checks import check_layer
from soniq_kernels._networks import load_layers
from soniq_kernels.network import load_network

app = typer.Typer(
    help="Low-bit kernels: what this machine can run and how fast, and whether a saved model is right on it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
LIBRARIES = ("numpy", "safetensors", "torch", "triton", "cupy-cuda12x", "cupy-cuda13x")


def main() -> None:
    """Entry point of the `soniq` script."""
    app()


# ---- soniq info ------------------------------------------------------------------------------------------------------


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show the processor, the tiers that are built and usable here, their kernels, threads, costs and versions."""
    facts = machine_facts()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = _console()
    console.print(f"[bold]soniq_kernels {facts['versions']['soniq_kernels']}[/] on {facts['cpu']['name']}")
    console.print(f"threads: {facts['threads']} (processors this process may use: {facts['cpu']['usable']})")
    table = Table("tier", "usable", "kernels of its own; the tier above serves the rest")
    for tier in facts["tiers"]:
        name = f"[bold]{tier['name']} (active)[/]" if tier["active"] else tier["name"]
        table.add_row(name, "yes" if tier["usable"] else "no", _kernels_in_words(tier["kernels"]))
    console.print(table)
    console.print(f"kernels are chosen by: {_costs_in_words(facts['costs'])}", highlight=False)
    console.print("versions: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))


def machine_facts() -> dict[str, Any]:
    """What `soniq info --json` prints."""
    usable, active, kernels = isa.available(), isa.active(), sorted(_core.kernel_counts())
    return {
        "cpu": {"name": _core.cpu_name(), "architecture": platform.machine(), "usable": _usable_processors()},
        "tiers": [
            {
                "name": tier,
                "usable": tier in usable,
                "active": tier == active,
                "kernels": [kernel.partition(".")[2] for kernel in kernels if kernel.startswith(tier + ".")],
            }
            for tier in isa.built()
        ],
        "threads": soniq_kernels.get_num_threads(),
        "costs": cost_facts(),
        "versions": _versions(),
    }


def cost_facts() -> dict[str, Any]:
    """The table that the planner reads, and [least, most] ns a weight of building panels; "error" if it is damaged."""
    try:
        table = planner.table()
    except ValueError as wrong:
        return {"error": str(wrong)}
    packing: dict[str, list[float]] = {}
    for families in table.tiers.get(isa.active(), {}).values():
        for family, cost in families.items():
            packing.setdefault(family, []).append(cost.pack_ns_per_weight)
    return {
        "path": str(table.path), "origin": table.origin, "date": table.date, "tiers": list(table.tiers),
        "pack_ns_per_weight": {family: [min(ns), max(ns)] for family, ns in packing.items()},
    }  # fmt: skip


def _costs_in_words(facts: dict[str, Any]) -> str:
    if "error" in facts:
        return facts["error"]
    words = f"{facts['origin']} ({facts['path']})"
    packing = [f"{family} {least:g}-{most:g}" for family, (least, most) in facts["pack_ns_per_weight"].items()]
    return words + (f"; building panels takes, in ns a weight: {', '.join(packing)}" if packing else "")


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that are installed; nothing is imported for it."""
    versions = {"soniq_kernels": soniq_kernels.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


def _kernels_in_words(kernels: list[str]) -> str:
    """ "dot.byte.tile1", "dot.byte.tile2", "quantize" -> "dot (2), quantize"."""
    families: dict[str, int] = {}
    for kernel in kernels:
        family = kernel.partition(".")[0]
        families[family] = families.get(family, 0) + 1
    return ", ".join(family if count == 1 else f"{family} ({count})" for family, count in families.items())


# ---- soniq calibrate -------------------------------------------------------------------------------------------------


class Tiers(str, Enum):
    """Which tiers `soniq calibrate` measures."""

    active = "active"
    all = "all"


@app.command()
def calibrate(
    out: Annotated[Path | None, typer.Option(help="The file to write; this machine's own by default.")] = None,
    tiers: Annotated[
        Tiers, typer.Option(help="Measure the active tier, or every tier of this machine.")
    ] = Tiers.active,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter turns: some seconds, and more noise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how fast each kernel family is here, on one thread, and write the table that kernels are chosen by.

    The file is $SONIQ_COSTS if that is set, else soniq/costs.json in the user's folder of configurations. Let the machine
    do nothing else meanwhile.
    """
    path = _target(out)
    names = [name for name in isa.available() if _core.candidates(name, 8, 8)]
    if tiers is Tiers.active:
        names = [name for name in names if name == isa.active()]
    if not names:
        raise typer.BadParameter(f"the tier {isa.active()} has no kernels to choose from; force another one or none")
    command = "soniq calibrate" + (" --tiers all" if tiers is Tiers.all else "") + (" --quick" if quick else "")
    table = _measured(path, names, _calibrate.QUICK if quick else _calibrate.THOROUGH, command)
    _costs.write(table)
    planner.reload()
    if as_json:
        print(json.dumps(_costs.as_json(table), indent=1))
        return
    console = _console()
    for rows, n in ((1, 512), (128, 512), (128, 64)):
        console.print(_chosen(table, names[-1], rows, n))
    console.print(_reader(path), highlight=False)


def _target(out: Path | None) -> Path:
    """The file to write, whose folder is made before anything is measured."""
    try:
        path = (_costs.user_path() if out is None else out).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise typer.BadParameter(f"the file has no folder ({wrong}); name another with --out") from None
    return path


def _measured(path: Path, tiers: list[str], effort: _calibrate.Effort, command: str) -> _costs.Table:
    """The table, with a bar of progress beside the output."""
    versions = {"soniq_kernels": soniq_kernels.__version__}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"measuring {', '.join(tiers)}", total=_calibrate.steps(tiers, effort))
        return _calibrate.measure(path, tiers, effort, command, versions, lambda: progress.advance(bar))


def _chosen(table: _costs.Table, tier: str, rows: int, n: int) -> Table:
    """The fastest family for every pair of widths, and how much faster than dot it is."""
    shown = Table(
        "", *(f"A{a}" for a in range(1, 9)), title=f"{tier}, M = {rows}, N = {n}: the fastest family, beside dot"
    )
    pairs = table.tiers[tier]
    for w in range(1, 9):
        shown.add_row(f"W{w}", *(_fastest(pairs.get((w, a), {}), rows, n) for a in range(1, 9)))
    return shown


def _fastest(costs: dict[str, _costs.Cost], rows: int, n: int) -> str:
    ns = {family: cost.ns(rows, n, 1) for family, cost in costs.items()}
    best = min(ns, key=ns.__getitem__, default="")
    return best if best in ("", "dot") else f"{best} {ns['dot'] / ns[best]:.2f}x"


def _reader(path: Path) -> str:
    readers = 'gemm and conv choose their kernels by it, qat.bit_penalty(cost="time") weighs bits by it'
    if path == _costs.user_path().resolve():
        return f"wrote {path}: from now on {readers}"
    return f"wrote {path}: with SONIQ_COSTS={path} in the environment {readers}"


# ---- soniq tune ------------------------------------------------------------------------------------------------------


@app.command()
def tune(
    out: Annotated[Path | None, typer.Option(help="The file to write; this GPU's own by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes of layers: some minutes.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Without a GPU: tiny layers in Triton's interpreter; nothing is timed or written."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure which paths and tiles are fastest on this GPU, and write the table that the GPU kernels are chosen by.

    The file is $SONIQ_GPU_TABLE if that is set, else soniq/gpu-<name>.json in the user's folder of configurations. Let the GPU
    do nothing else meanwhile.
    """
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    try:
        import torch

        from soniq_kernels.triton_kernels import choice, launch
        from soniq_kernels.triton_kernels import tune as tuner
    except ImportError as missing:
        raise SystemExit(f"soniq tune: {missing}") from None
    if dry_run:
        return _tune_dry(tuner)
    if not torch.cuda.is_available():
        raise SystemExit(
            "soniq tune: torch sees no GPU; this command measures an NVIDIA GPU of compute capability 8.0 or higher"
        )
    launch.require_usable(torch.device("cuda"))
    name = choice.gpu_name(torch.device("cuda"))
    path = out or Path(os.environ.get("SONIQ_GPU_TABLE") or choice.user_path(name))
    with Progress(console=Console(stderr=True)) as progress:
        work = tuner.jobs(quick)
        bar = progress.add_task(f"measuring {name}", total=len(work))
        table = tuner.measure("cuda", work, advance=lambda: progress.advance(bar))
    tuner.write(table, path)
    if as_json:
        print(json.dumps(table, indent=1))
    else:
        _console().print(f"wrote {path}: from now on the GPU kernels are chosen by it on {name}", highlight=False)


def _tune_dry(tuner: Any) -> None:
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("dry run on the CPU", total=len(tuner.jobs(tiny=True)))
        table = tuner.dry_run(lambda: progress.advance(bar))
    _console().print(
        f"dry run: the candidates of {len(table['choices'])} layers gave the same integers. Nothing was timed and no table was written; "
        "on a machine with an NVIDIA GPU run soniq tune",
        highlight=False,
    )


# ---- soniq run -------------------------------------------------------------------------------------------------------


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A network saved by soniq_kernels.", exists=True, dir_okay=False)],
    shape: Annotated[
        str, typer.Option(help="Of the input, as 1,224,224,3; in the layout that the network has.")
    ] = "1,224,224,3",
    profile: Annotated[bool, typer.Option("--profile", help="How long every node takes.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Runs of which the profile is the median.")] = 20,
) -> None:
    """Run a saved network on random input, and show which kernel serves each node."""
    try:
        net = load_network(file)
        sizes = [int(size) for size in shape.split(",")]
        inputs = [_random_input(net.tensors[name], sizes) for name in net.inputs]
        found = net.explain(*inputs, profile=profile, runs=runs)
    except ValueError as wrong:
        _console().print(f"[bold red]FAIL[/] {wrong}", highlight=False)
        raise typer.Exit(1) from None
    print(found)


def _random_input(codes: Any, sizes: list[int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    if codes is None:
        return rng.standard_normal(sizes, dtype=np.float32)
    return rng.integers(0, 1 + min(s.a.cmax for s in codes.plan.segments), sizes, np.uint8)


# ---- soniq verify ----------------------------------------------------------------------------------------------------


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A model saved by soniq_kernels.", exists=True, dir_okay=False)],
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check a saved model: its format, its integer sums, and every tier of this machine against the reference.

    Exit code 0 if all is well, 1 if anything is not.
    """
    report = file_report(file, seed)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    raise typer.Exit(0 if report["passed"] else 1)


def file_report(file: Path, seed: int = 0) -> dict[str, Any]:
    """What `soniq verify --json` prints. "error" is set if the file could not be read, and there are no layers then."""
    report: dict[str, Any] = {"file": str(file), "passed": False, "error": None, "layers": []}
    try:
        layers = load_layers(file)
    except ValueError as wrong:
        report["error"] = str(wrong)
        return report
    for name, packed in layers.items():
        checks = check_layer(packed, seed)
        report["layers"].append(
            {
                "name": name,
                "shape": list(packed.shape),
                "bits": [[segment.w.bits, segment.a.bits, segment.channels] for segment in packed.plan.segments],
                "bytes": packed.nbytes,
                "passed": all(check.passed for check in checks),
                "checks": [vars(check) for check in checks],
            }
        )
    report["passed"] = all(layer["passed"] for layer in report["layers"])
    return report


def _print_report(report: dict[str, Any]) -> None:
    console = _console()
    if report["error"]:
        console.print(f"[bold red]FAIL[/] format: {report['error']}", highlight=False)
        return
    names = [check["name"] for check in report["layers"][0]["checks"]]
    table = Table("layer", "weights", "bits (w x a: channels)", "format", *names)
    for layer in report["layers"]:
        bits = ", ".join(f"{w} x {a}: {channels}" for w, a, channels in layer["bits"])
        shape = " x ".join(map(str, layer["shape"]))
        table.add_row(layer["name"], shape, bits, _mark(True), *(_mark(check["passed"]) for check in layer["checks"]))
    console.print(table)
    for layer in report["layers"]:
        for check in layer["checks"]:
            if not check["passed"]:
                console.print(f"[bold red]FAIL[/] {layer['name']}, {check['name']}: {check['detail']}", highlight=False)
    if report["passed"]:
        console.print("[green]all passed[/]: every tier of this machine gives the bits of the reference")


def _mark(passed: bool) -> str:
    return "[green]pass[/]" if passed else "[bold red]FAIL[/]"


def _console() -> Console:
    """A console that does not fold tables when the output is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160)
