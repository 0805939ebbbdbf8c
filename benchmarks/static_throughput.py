"""`python -m benchmarks.static_throughput`: products a cycle of the inner loops of tiers that cannot be timed here.

Static: compiled as CMake compiles them, read as machine code, and put through llvm-mca's model of a processor, beside a plain
INT8 loop that was compiled in the same way. No instruction is executed, and memory is as if everything were in L1.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks import machine_code, static_heads, static_pages
from benchmarks.machine_code import Loop

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BITS = range(1, 9)
Row = dict[str, Any]


@dataclass(frozen=True)
class Tier:
    """A folder of csrc/kernels, its INT8 loop, the processors it is judged on, and the tier that serves what it lacks."""

    name: str
    int8: str
    cpus: tuple[str, ...]
    below: str = ""
    machine: str = "aarch64"

    @property
    def triple(self) -> str:
        """As llvm-mca names the target."""
        return f"{self.machine}-linux-gnu"


TIERS = [
    Tier("neon", "smull", ("cortex-a53", "cortex-a72", "neoverse-n1", "neoverse-v1", "cortex-a76")),
    Tier("neon_dotprod", "sdot", ("neoverse-n1", "neoverse-v1", "cortex-a76", "neoverse-n2", "neoverse-v2")),
    Tier("neon_i8mm", "smmla", ("neoverse-v1", "neoverse-n2", "neoverse-v2"), below="neon_dotprod"),
    Tier("avxvnni", "vpdpbusd", ("alderlake",), machine="x86_64"),
]
# What the project set out to reach on processors with the dot product extension: {(w_bits, a_bits): times INT8 SDOT}.
AIMS = {(1, 1): 2.5, (1, 2): 2.0}
AIMS_CPUS = ("neoverse-n1", "neoverse-v1", "cortex-a76")

# Products of one instruction, by family. One cnt counts the bits of a register, one tbl finds 16 sums of four or of five.
PRODUCTS = {
    "popcount": {"cnt": 128},
    "lut": {"tbl": 64},
    "lut5": {"tbl": 80},
    "dot": {"udot": 16, "ummla": 32, "mul": 16, "mla": 16, "vpdpbusd": 32}
    | dict.fromkeys(("umull", "umull2", "umlal", "umlal2"), 8),
    "int8": {"sdot": 16, "smmla": 32, "vpdpbusd": 32} | dict.fromkeys(("smull", "smull2", "smlal", "smlal2"), 8),
}
FORMS = {"NeonDot": ("bytes", "words", "pairs"), "NeonDotprodDot": ("udot",), "AvxVnniDot": ("vnni",)}
# Demangled names of the functions that hold an inner loop.
KERNELS = {
    r"popcount_tile_neon<.*(?P<vocabulary>Counts), (?P<rows>\d+)>": "popcount",
    r"lut_tile_neon<(?P<rows>\d+)>": "lut",
    r"lut5_tile_neon<(?P<run>\d+), (?P<rows>\d+)>": "lut5",
    r"dot_tile<.*::(?P<vocabulary>\w+), (?P<form>\d+), (?P<rows>\d+)>": "dot",
    r"dot_few<.*::(?P<vocabulary>\w+), (?P<form>\d+), (?P<bits>\d+), (?P<rows>\d+)>": "dot",
    r"NeonI8mmDot::tile<(?P<rows>\d+)>": "dot",
    r"^int8_(?P<instruction>\w+)": "int8",
}


# ---- compile -------------------------------------------------------------------------------------------------------
def build(machine: str, tiers: list[Tier], folder: Path) -> dict[str, dict[str, Any]]:
    """{tier: its compiler, flags, and the inner loops of its kernels and of its INT8 loop}, compiled for a machine."""
    folder.mkdir(parents=True, exist_ok=True)
    machine_code.run(_configure(machine, folder))
    commands = {Path(entry["file"]): entry for entry in json.loads((folder / "compile_commands.json").read_text())}
    return {
        tier.name: _compile(commands[ROOT / "csrc" / "kernels" / tier.name / "table.cpp"], tier, folder)
        for tier in tiers
    }


def _configure(machine: str, folder: Path) -> list[str]:
    beside = Path(sys.executable).parent
    cmake, ninja = (shutil.which(name) or shutil.which(name, path=beside) for name in ("cmake", "ninja"))
    if cmake is None:
        raise RuntimeError("not installed: cmake; sudo apt install cmake")
    command = [cmake, "-S", str(ROOT), "-B", str(folder), "-DSONIQ_PYTHON=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    if machine == platform.machine():
        return command
    compiler = shutil.which(f"{machine}-linux-gnu-g++")
    if compiler is None:
        raise RuntimeError(f"not installed: {machine}-linux-gnu-g++; sudo apt install g++-{machine}-linux-gnu")
    command += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    return command


def _compile(entry: dict[str, str], tier: Tier, folder: Path) -> dict[str, Any]:
    """The tier's table and the INT8 loops, with the very same command."""
    command = shlex.split(entry["command"])
    at, source = command.index("-o"), command.index(entry["file"])
    loops: dict[str, list[Loop]] = {}
    for file in (Path(entry["file"]), Path(__file__).parent / "static_peers.cpp"):
        compiled = folder / f"{tier.name}-{file.stem}.o"
        command[at + 1], command[source] = str(compiled), str(file)
        machine_code.run(command, folder=Path(entry["directory"]))
        loops |= machine_code.inner_loops(machine_code.tools()["llvm-objdump"], compiled)
    flags = [flag for flag in command[1:at] if flag.startswith(("-m", "-O", "-f", "-std"))]
    compiler = next(part for part in command if re.search(r"\+\+(-\d+)?$", part))
    return {"compiler": f"{Path(compiler).name} {machine_code.version(compiler)}", "flags": flags, "loops": loops}


# ---- find the loops ------------------------------------------------------------------------------------------------
def kernels_of(loops: dict[str, list[Loop]]) -> list[tuple[Row, Loop]]:
    """What every kernel is (family, form, rows, products of a turn) and its inner loop: the one with the most products."""
    found = []
    for function, inner in loops.items():
        for pattern, family in KERNELS.items():
            if match := re.search(pattern, function):
                loop = max(inner, key=lambda loop: products_of(family, loop), default=None)
                if loop is None or not products_of(family, loop) or not machine_code.straight(loop):
                    raise RuntimeError(f"{function}: no straight inner loop that multiplies, but {inner}")
                found.append((_kernel(family, match.groupdict(), loop), loop))
    return found


def products_of(family: str, loop: Loop) -> int:
    """Products of a turn, from the instructions that make them."""
    return sum(PRODUCTS[family].get(name, 0) * times for name, times in loop.counts().items())


def _kernel(family: str, match: dict[str, str], loop: Loop) -> Row:
    rows, products = int(match.get("rows", 0)), products_of(family, loop)
    counts = loop.counts()
    form = match.get("instruction") or FORMS.get(match.get("vocabulary", ""), ("",))[int(match.get("form", 0))]
    if "ummla" in counts:  # an odd row is paired with itself
        form, products = "ummla", products * rows // (rows + rows % 2)
    if family == "popcount":
        form = "cnt + udot" if "udot" in counts else "cnt"
    if "run" in match:
        form = f"runs of {match['run']}"
    return {
        "family": family, "form": form, "rows": rows, "bits": int(match.get("bits", 0)), "run": int(match.get("run", 0)),
        "products": products, "instructions": len(loop.instructions), "counts": dict(counts),
    }  # fmt: skip


# ---- cycles --------------------------------------------------------------------------------------------------------
def measure(tiers: list[Tier], folder: Path, progress: Progress) -> dict[str, Any]:
    """Everything that the results file holds."""
    rows: list[Row] = []
    compiled: dict[str, dict[str, Any]] = {}
    for machine in dict.fromkeys(tier.machine for tier in tiers):
        compiled |= build(machine, [tier for tier in tiers if tier.machine == machine], folder / machine)
    mca = machine_code.tools()["llvm-mca"]
    models: dict[str, str] = {}
    for tier in progress.track(tiers, description="llvm-mca"):
        kernels = kernels_of(compiled[tier.name]["loops"])
        for cpu in tier.cpus:
            cycles, models[cpu] = machine_code.cycles(mca, tier.triple, cpu, [loop for _, loop in kernels])
            rows += [
                {"tier": tier.name, "cpu": cpu, **kernel, "cycles": turn, "rate": round(kernel["products"] / turn, 2)}
                for (kernel, _), turn in zip(kernels, cycles, strict=True)
            ]
    rows = [_beside_int8(row, rows) for row in rows]
    # What avxvnni lacks is avx2's, which is timed.
    pairs = [p for tier in tiers if tier.machine == "aarch64" for cpu in tier.cpus for p in pairs_of(tier, cpu, rows)]
    int8 = {tier.name: tier.int8 for tier in tiers}
    about = {"machine": _machine(compiled, mca), "models": models, "int8": int8}
    return {**about, "aims": aims(pairs), "loops": rows, "pairs": pairs}


def _beside_int8(row: Row, rows: list[Row]) -> Row:
    """Divided by the rate of each INT8 loop on the same processor."""
    over = {
        r["form"]: round(row["rate"] / r["rate"], 2) for r in rows if r["family"] == "int8" and r["cpu"] == row["cpu"]
    }
    return {**row, "over": over}


def _machine(compiled: dict[str, dict[str, Any]], mca: str) -> Row:
    return {
        "compilers": sorted({found["compiler"] for found in compiled.values()}),
        "llvm": f"llvm-mca {machine_code.version(mca)}",
        "flags": {name: " ".join(found["flags"]) for name, found in compiled.items()},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.static_throughput", *sys.argv[1:]]),
    }  # fmt: skip


# ---- pairs of widths -----------------------------------------------------------------------------------------------
def pairs_of(tier: Tier, cpu: str, rows: list[Row]) -> list[Row]:
    """Of every pair of widths the family with the most products a cycle, on full tiles."""
    mine = [r for r in rows if r["cpu"] == cpu and r["tier"] in (tier.name, tier.below) and not r["bits"]]
    full = {
        (r["family"], r["form"], r["run"]): r for r in sorted(mine, key=lambda r: (r["tier"] == tier.name, r["rows"]))
    }
    int8 = {r["form"]: r["rate"] for r in rows if r["cpu"] == cpu and r["family"] == "int8"}
    found = []
    for w, a in ((w, a) for w in BITS for a in BITS):
        rates = {name: rate for name, rate in rates_of(tier, full, w, a).items() if rate}
        best = max(rates, key=lambda name: rates[name])
        found.append({
            "tier": tier.name, "cpu": cpu, "w_bits": w, "a_bits": a, "family": best, "rate": round(rates[best], 2),
            "over": {form: round(rates[best] / rate, 2) for form, rate in int8.items()},
            "rates": {name: round(rate, 2) for name, rate in rates.items()},
        })  # fmt: skip
    return found


def rates_of(tier: Tier, full: dict[tuple[str, str, int], Row], w: int, a: int) -> dict[str, float]:
    """Products a cycle by family, 0 where it does not serve the widths: what candidates() in csrc/pack.cpp compares."""

    def rate(family: str, run: int = 0) -> float:
        return max((r["rate"] for (name, _, runs), r in full.items() if (name, runs) == (family, run)), default=0.0)

    def tables(bits: int) -> float:  # of five activations
        return {2: rate("lut5", 6), 3: rate("lut5", 6), 4: rate("lut5", 3)}.get(bits, 0.0)

    parts = 1 if a <= 6 else 2  # wider activations are looked up in two parts
    return {
        "dot": full["dot", dot_form(tier, w, a), 0]["rate"],
        "popcount": rate("popcount") / (w * a) if a <= 2 else 0.0,
        "lut": rate("lut") / w / parts,
        "lut5": (tables(a) if parts == 1 else tables(4) / 2) / w,
    }


def dot_form(tier: Tier, w: int, a: int) -> str:
    """Which form is exact: `form` in the tier's dot.h."""
    product = (2**w - 1) * (2**a - 1)
    base = "bytes" if product <= 63 else "words" if product <= 8191 else "pairs"
    return {"neon": base, "neon_dotprod": "udot", "neon_i8mm": "ummla"}[tier.name]


def aims(pairs: list[Row]) -> list[Row]:
    """What was to be reached on processors with the dot product extension, what is, and the verdict."""
    judged = []
    for pair in pairs:
        aim = AIMS.get((pair["w_bits"], pair["a_bits"]))
        if aim and pair["tier"] != "neon" and pair["cpu"] in AIMS_CPUS:
            reached = pair["over"]["sdot"]
            judged.append({**pair, "reached": reached, "aim": aim, "verdict": "ok" if reached >= aim else "missed"})
    return judged


# ---- the command ---------------------------------------------------------------------------------------------------
def usable() -> list[Tier]:
    """Tiers that can be compiled here: x86 only on x86."""
    return [tier for tier in TIERS if tier.machine in ("aarch64", platform.machine())]


Out = Annotated[
    Path, typer.Option(help="Folder; with benchmarks/results the heads of the kernel files are written too.")
]


def main(out: Out = RESULTS) -> None:
    """Compute products a cycle of the inner loops that cannot be timed here and write them down."""
    console = Console(width=None if os.isatty(1) else 140)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            result = measure(usable(), ROOT / "out" / "static", progress)
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from None
    static_pages.write(result, out)
    if out == RESULTS:
        static_heads.write(result)
    console.print("\n".join(static_pages.table(static_pages.aims(result["aims"]))))
    console.print(f"{out / static_pages.NAME}.json, .csv and .md")


if __name__ == "__main__":
    typer.run(main)
