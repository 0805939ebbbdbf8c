"""Static throughput: loops are found in machine code, and what stands in documents and heads is what the results file says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

for package in ("rich", "typer"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parents[1]
DISASSEMBLY = """
0000000000000100 <two loops(int)>:
     100:      \tmov\tx5, #0xab             // =171
     104:      \tcmp\tx5, x6
     108:      \tb.eq\t0x120 <two loops(int)+0x20>
     10c:      \tldp\tq0, q1, [x0]
     110:      \tudot\tv2.4s, v0.16b, v1.4b[0]
     114:      \tb.ne\t0x110 <two loops(int)+0x10>
     118:      \tcbnz\tw3, 0x10c <two loops(int)+0xc>
     11c:      \tb\t0x80 <elsewhere(int)>
     120:      \ttbz\tw1, #0x0, 0x120 <two loops(int)+0x20>
"""


@pytest.fixture
def importable(monkeypatch):
    """The repository's root is on the path for one test only: other tests make sure that its folders are not importable."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def result() -> dict:
    """The results file."""
    return json.loads((ROOT / "benchmarks/results/neon_static.json").read_text())


def test_inner_loops_of_a_disassembly(importable):
    """Loops around others are left out, and so are branches forward and out of the function."""
    from benchmarks import machine_code

    ((name, lines),) = machine_code._functions(DISASSEMBLY).items()
    first, second = machine_code.loops_of(name, lines)
    assert name == "two loops(int)" and lines[0].text == "mov x5, #0xab"
    assert first.instructions == ("udot v2.4s, v0.16b, v1.4b[0]", "b.ne 0x110")
    assert first.counts() == {"udot": 1, "b.ne": 1} and machine_code.straight(first)
    assert second.instructions == ("tbz w1, #0x0, 0x120",)
    around = machine_code.Loop(name, tuple(line.text for line in lines[3:7]))
    assert not machine_code.straight(around)


def test_every_loop_of_a_tier(importable, tmp_path):
    """Compiled with the flags of CMake: every tile is found and makes the products of its shape; a processor has cycles for it."""
    from benchmarks import machine_code, static_throughput

    tier = next(tier for tier in static_throughput.TIERS if tier.name == "neon_dotprod")
    try:
        mca = machine_code.tools()["llvm-mca"]
        compiled = static_throughput.build("aarch64", [tier], tmp_path)["neon_dotprod"]
    except RuntimeError as error:
        if str(error).startswith("not installed"):
            pytest.skip(str(error))
        raise
    assert "-march=armv8.2-a+dotprod" in compiled["flags"] and "-O3" in compiled["flags"]
    kernels = static_throughput.kernels_of(compiled["loops"])
    found = {(k["family"], k["run"], k["rows"]): k["products"] for k, _ in kernels}
    expected = {("dot", 0, rows): rows * 8 * 16 for rows in range(1, 9)}  # columns x codes of a turn
    expected |= {("popcount", 0, rows): rows * 8 * 64 for rows in range(1, 5)}
    expected |= {("lut", 0, rows): rows * 32 * 32 for rows in range(1, 5)}
    expected |= {("lut5", run, rows): rows * 32 * 5 * run for run in (3, 6) for rows in range(1, 4)}
    assert found == expected | {("int8", 0, 0): 8 * 8 * 16}
    loops = [loop for kernel, loop in kernels if kernel["rows"] in (0, 8)]
    cycles, model = machine_code.cycles(mca, tier.triple, "neoverse-n1", loops)
    assert (
        model == "N1" and len(cycles) == 2 and all(turn >= 32 for turn in cycles)
    )  # two pipes, 64 products of registers


def test_missing_tools_are_named(importable, monkeypatch, tmp_path):
    """The message says what to install; a program that fails is quoted."""
    from benchmarks import machine_code, static_throughput

    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(RuntimeError, match="not installed: llvm-mca"):
        machine_code.tools()
    with pytest.raises(RuntimeError, match="not installed: cmake"):
        static_throughput._configure("aarch64", tmp_path)
    with pytest.raises(RuntimeError, match="failed"):
        machine_code.run(["false"])


def test_pages_and_heads_are_the_results_file(importable, result):
    """Markdown, CSV and the heads of the kernel files say what the JSON says; no cell is typed by hand."""
    from benchmarks import static_heads, static_pages

    assert (ROOT / "benchmarks/results/neon_static.md").read_text() == static_pages.as_markdown(result)
    assert (ROOT / "benchmarks/results/neon_static.csv").read_text() == static_pages.as_csv(result)
    for name in static_heads.HEADS:
        text = (static_heads.KERNELS / name).read_text()
        assert text == static_heads.in_text(text, static_heads.block(name, result)), name


def test_aims_are_judged(result):
    """Every aim on every processor that has it, with a verdict that follows from its numbers."""
    judged = result["aims"]
    assert {(a["cpu"], a["w_bits"], a["a_bits"]) for a in judged} == {
        (cpu, 1, a_bits) for cpu in ("neoverse-n1", "neoverse-v1", "cortex-a76") for a_bits in (1, 2)
    }
    for aim in judged:
        sdot = next(r["rate"] for r in result["loops"] if r["form"] == "sdot" and r["cpu"] == aim["cpu"])
        assert aim["reached"] == round(aim["rate"] / sdot, 2)
        assert aim["verdict"] == ("ok" if aim["reached"] >= aim["aim"] else "missed")
