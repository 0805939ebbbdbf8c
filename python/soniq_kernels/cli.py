"""The `soniq` command: what this machine can run, and whether a saved model is right on it.

typer and rich are imported here and nowhere else in the package; `import soniq_kernels` does not need them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as missing:
    raise SystemExit(f"soniq: this command needs {missing.name}; run: python -m pip install typer rich") from None

import soniq_kernels
from soniq_kernels import _core, isa
from soniq_kernels._checks import check_layer
from soniq_kernels._networks import load_layers

app = typer.Typer(
    help="Low-bit kernels: what this machine can run, and whether a saved model is right on it.",
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
    """Show the processor, the tiers that are built and usable here, their kernels, threads and versions."""
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
        "versions": _versions(),
    }


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
