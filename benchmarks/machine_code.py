"""Inner loops in compiled code, and the cycles that llvm-mca computes for them. Nothing is run and nothing is timed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Turns that llvm-mca simulates: the difference of two runs is the steady state, without the way into it.
FEW_TURNS, MANY_TURNS = 100, 400


@dataclass(frozen=True)
class Loop:
    """The instructions of one turn of a loop, its backward branch included, without addresses."""

    function: str
    instructions: tuple[str, ...]

    def counts(self) -> Counter[str]:
        """How often every mnemonic occurs in a turn, the most frequent first."""
        return Counter(dict(Counter(map(mnemonic, self.instructions)).most_common()))


@dataclass(frozen=True)
class _Line:
    address: int
    text: str

    @property
    def target(self) -> int | None:
        """Where a branch goes; None for everything else."""
        found = re.fullmatch(r"(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s+(?:.*\s)?(0x[0-9a-f]+)", self.text)
        return int(found[1], 16) if found else None


def mnemonic(instruction: str) -> str:
    """Its name without operands and without the encoding that x86 prints before it."""
    return instruction.removeprefix("{vex}").split(maxsplit=1)[0]


OLDEST_LLVM = 17  # the first with a model of Neoverse N1


def tools() -> dict[str, str]:
    """The newest llvm-mca and the llvm-objdump of the same version; RuntimeError where they are not installed, or too old to
    know the instructions and the processors."""
    folders = sorted(Path("/usr/lib").glob("llvm-*/bin"), key=lambda p: int(re.sub(r"\D", "", p.parent.name) or 0))
    for folder in [*map(str, reversed(folders)), None]:
        found = {name: shutil.which(name, path=folder) for name in ("llvm-mca", "llvm-objdump")}
        if all(found.values()) and _major(str(found["llvm-mca"])) >= OLDEST_LLVM:
            return {name: str(path) for name, path in found.items()}
    raise RuntimeError(
        f"not installed: llvm-mca and llvm-objdump of LLVM {OLDEST_LLVM} or newer; sudo apt install llvm-19, or llvm where that is new enough"
    )


def _major(program: str) -> int:
    """Of its version; 0 where that is unknown."""
    first = version(program).split(".")[0]
    return int(first) if first.isdecimal() else 0


def version(program: str) -> str:
    """The first number with dots that `program --version` prints."""
    found = re.search(r"\d+\.\d+[.\d]*", run([program, "--version"]))
    return found[0] if found else "unknown"


def run(command: list[str], given: str | None = None, folder: Path | None = None) -> str:
    """Its standard output; RuntimeError with what it said if it failed."""
    done = subprocess.run(command, input=given, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return done.stdout


def inner_loops(objdump: str, compiled: Path) -> dict[str, list[Loop]]:
    """{demangled function: its innermost loops} of an object file."""
    text = run([objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(compiled)])
    return {name: loops_of(name, lines) for name, lines in _functions(text).items()}


def _functions(text: str) -> dict[str, list[_Line]]:
    functions: dict[str, list[_Line]] = {}
    lines: list[_Line] = []
    for row in text.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.*)>:", row):
            lines = functions.setdefault(head[1], [])
        elif found := re.fullmatch(r"\s*([0-9a-f]+):\s+(\S.*)", row):
            instruction = re.sub(r"\s*(//|#\s|<).*", "", found[2])  # comments, and the name of a branch's target
            lines.append(_Line(int(found[1], 16), re.sub(r"\s+", " ", instruction)))
    return functions


def loops_of(name: str, lines: list[_Line]) -> list[Loop]:
    """Backward branches that have no other backward branch between their target and themselves."""
    start = lines[0].address if lines else 0
    back = [
        (line.target, line.address)
        for line in lines
        if line.target is not None and start <= line.target <= line.address
    ]
    inner = [(a, b) for a, b in back if not any((c, d) != (a, b) and a <= c and d <= b for c, d in back)]
    return [Loop(name, tuple(line.text for line in lines if a <= line.address <= b)) for a, b in inner]


def straight(loop: Loop) -> bool:
    """Whether every instruction runs in every turn: nothing branches but the end."""
    return all(_Line(0, text).target is None for text in loop.instructions[:-1])


def cycles(mca: str, triple: str, cpu: str, loops: list[Loop]) -> tuple[list[float], str]:
    """Cycles of a turn of each loop on a processor, and the scheduling model that llvm-mca has for it."""
    few, model = _simulate(mca, triple, cpu, loops, FEW_TURNS)
    many, _ = _simulate(mca, triple, cpu, loops, MANY_TURNS)
    return [(m - f) / (MANY_TURNS - FEW_TURNS) for f, m in zip(few, many, strict=True)], model


def _simulate(mca: str, triple: str, cpu: str, loops: list[Loop], turns: int) -> tuple[list[int], str]:
    regions = [
        "\n".join((f"# LLVM-MCA-BEGIN r{i}", *loop.instructions, f"# LLVM-MCA-END r{i}"))
        for i, loop in enumerate(loops)
    ]
    options = [f"-mtriple={triple}", f"-mcpu={cpu}", f"-iterations={turns}", "-json"]
    found = json.loads(run([mca, *options, "-"], "\n".join(regions) + "\n"))
    totals = {region["Name"]: region["SummaryView"]["TotalCycles"] for region in found["CodeRegions"]}
    return [totals[f"r{i}"] for i in range(len(loops))], _model(found["TargetInfo"]["Resources"])


def _model(resources: list[str]) -> str:
    """Units are named after the processor that was modelled: N1UnitV0, A57UnitX, ADLPPort00."""
    names = {match[1] for name in resources if (match := re.match(r"(\w+?)(?:Unit|Port)", name))}
    return names.pop() if len(names) == 1 else resources[0]
