"""The benchmarks run: every suite once on tiny shapes, the report with all its files, and targets that name real rows."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "pytest_benchmark", "matplotlib", "rich", "typer"):
    pytest.importorskip(package)

from soniq_kernels import isa

ROOT = Path(__file__).resolve().parents[1]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in the repository's root."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=600, check=False)


def report(out: Path, *arguments: object) -> dict:
    """The result of one suite on one tiny shape."""
    done = run("benchmarks.report", "--out", out, "--rounds", 1, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.json")
    return json.loads(file.read_text())


def test_every_benchmark_runs_once():
    """Each checks its answer first; peers that are not installed are skipped."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").glob("bench_*.py"))
    assert len(files) == 4
    done = run("pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "--tiny", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_networks(tmp_path):
    """A whole network at every pair of widths, ours equal to the emulation; peers that are not installed are left out."""
    done = run("benchmarks.networks", "--network", "ResNet-20", "--batch", 1, "--rounds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "cnns.json").read_text())
    names = {row["name"]: row for row in result["rows"]}
    assert {"1x1", "2x2", "4x4", "FP32 (torch)"} <= set(names) and all(row["seconds"] > 0 for row in names.values())
    assert all(name in (tmp_path / "cnns.md").read_text() for name in names)


def test_without_amx(importable):
    """A refused unit is no tier; the command says that it was."""
    code = "from benchmarks import probes; from soniq_kernels import isa; print(isa.available(), probes.command('m'))"
    done = run("benchmarks.without_amx", sys.executable, "-c", code)
    if "takes no filter" in done.stderr:
        pytest.skip("seccomp filters are not allowed here")
    assert done.returncode == 0, done.stderr
    assert "amx'" not in done.stdout and "benchmarks.without_amx python -m m" in done.stdout, done.stdout
    assert "expected one" in run("benchmarks.without_amx").stderr


def test_report_writes_all_its_files(tmp_path):
    """JSON, CSV, Markdown and pictures with every contender, wherever it was measured."""
    result = report(tmp_path, "--suite", "gemm", "--shape", "6x48x64", "--peer", "torch", "--seconds", 1)
    names = {row["name"] for row in result["rows"]}
    assert {"oneDNN (torch)", "FP32 (torch)", f"W1A4 {isa.active()}", f"80% W1A4 + 20% W4A4 {isa.active()}"} <= names
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in result["rows"])
    for fact in ("cpu", "flags", "threads", "versions", "date", "command"):
        assert result["machine"][fact]
    page = (tmp_path / "gemm.md").read_text()
    assert all(f"| {name} |" in page for name in names) and result["machine"]["command"] in page
    table = [line for line in (tmp_path / "gemm.csv").read_text().splitlines() if not line.startswith("#")]
    assert [line["name"] for line in csv.DictReader(table)] == [row["name"] for row in result["rows"]]
    for picture in result["pictures"]:
        assert (tmp_path / picture).stat().st_size > 10_000
        assert f"]({picture})" in page


@pytest.mark.skipif("avx2" not in isa.available(), reason="the suite is about AVX2")
def test_contenders_in_processes(tmp_path):
    """Ours and a peer live in processes of their own, and ours is held to the tier."""
    peer = ("--peer", "oneDNN", "--widths", "W2A2", "--widths", "W4A4")
    result = report(tmp_path, "--suite", "avx2", "--shape", "5x24x70", *peer)
    assert {row["name"] for row in result["rows"]} == {"oneDNN (torch)", "W2A2 avx2", "W4A4 avx2"}
    assert all(row["kernel"].startswith("avx2.") for row in result["rows"] if row["kind"] == "ours")


@pytest.fixture
def importable(monkeypatch):
    """The repository's root is on the path for one test only: other tests make sure that its folders are not importable."""
    monkeypatch.syspath_prepend(ROOT)


def test_networks_add_up(importable):
    """A network's figure is the sum of its layers; a network that was not measured whole has none."""
    from benchmarks import pages, shapes

    row = {"name": "somebody", "kind": "int8", "threads": 1, "tier": "", "seconds": 2.0}
    rows = [{**row, "shape": list(layer.shape)} for layer in shapes.NETWORKS["MiniLM-L6"]]
    assert pages.network_totals(rows) == {"MiniLM-L6": {pages.BEST_INT8: 72.0, "somebody": 72.0}}
    assert pages.network_totals(rows[1:]) == {}


def test_peak_memory_of_a_process(importable, tmp_path):
    """A page judges by OpenVINO's peak; a process that loads more has a higher one, whatever its parent had."""
    from benchmarks import memory

    np.save(tmp_path / "small.npy", np.zeros(1000, np.float32))
    np.save(tmp_path / "large.npy", np.ones(10_000_000, np.float32))
    small, large = (memory.peak("", tmp_path / name, tmp_path / name) for name in ("small.npy", "large.npy"))
    assert large - small > 30_000_000
    machine = json.loads((ROOT / "benchmarks/results/memory.json").read_text())["machine"]
    rows = [
        {"network": "n", "name": name, "file_bytes": 1, "peak_bytes": peak}
        for name, peak in ((memory.OPENVINO, 100), ("1x1", 25), ("4x4", 26))
    ]
    page = memory.page({"machine": machine, "rows": rows})
    assert "| 1x1 | 0.0 | 0.0 | 25%, ok |" in page and "26%, missed" in page


def test_targets_name_rows_that_are_measured(importable):
    """A target that no suite measures would never be judged."""
    from benchmarks import shapes, suites, targets

    count = 0
    for name, suite in suites.SUITES.items():
        for target in targets.of(name):
            count += 1
            measured = {widths for widths, _ in suite.ours(target.shape)}
            assert target.shape in suite.shapes and target.widths in measured, f"{name}: {target}"
    # gemm, gemv and threads for two tiers each, avx2
    assert count == 2 * (4 * len(shapes.WIDTHS) + 12 + 4 * len(shapes.WIDTHS)) + 4 * 6


def test_verdicts(importable):
    """On the two decimals that pages print; a floor is told from a miss."""
    from benchmarks.targets import BEST_TIER, Target

    target = Target((1, 1, 1), "W4A4", BEST_TIER, 1.0, floor=0.95)
    verdicts = [target.verdict(ratio) for ratio in (1.2, 0.996, 0.97, 0.9)]
    assert verdicts == ["ok", "ok", "missed, above the floor of 0.95", "missed, below the floor of 0.95"]
    assert Target((1, 1, 1), "W1A1", BEST_TIER, 4.6).verdict(4.59) == "missed"


def test_threads_are_judged_by_their_own_rows(importable):
    """Two threads over one, of the same shape and widths; without both there is no verdict."""
    from benchmarks import targets

    row = {"shape": [128, 4096, 4096], "kind": "ours", "widths": "W1A4", "tier": targets.BEST_TIER, "ratio": 3.0}
    rows = [{**row, "threads": 1, "seconds": 3.8}, {**row, "threads": 2, "seconds": 2.0}]
    (judged,) = targets.judge("threads", rows)
    assert (judged["reached"], judged["least"], judged["verdict"]) == (1.9, 1.85, "ok")
    assert targets.judge("threads", rows[:1]) == []
    assert [t["reached"] for t in targets.judge("gemm", rows[:1])] == [3.0]


def test_bad_options(importable):
    """What came and what was expected."""
    import typer
    from benchmarks import report as command

    with pytest.raises(typer.BadParameter, match="got suite gemms, expected gemm, cold, gemv"):
        command._names(["gemm", "gemms"])
    with pytest.raises(typer.BadParameter, match="got shape '128x4096', expected M x N x K"):
        command._shape("128x4096")
    assert command._names(["all"]) == ["gemm", "cold", "gemv", "networks", "avx2", "avx512", "threads", "lowbit"]


def test_a_wrong_answer_is_not_timed(importable):
    """The checks can fail: of ours by one in one value, of a peer by noise that its bits do not explain."""
    import numpy as np
    from benchmarks import operands, peers

    with pytest.raises(AssertionError, match="1 of 6 values differ"):
        operands.require_equal(np.arange(6), np.array([0, 1, 2, 3, 4, 6]), "ours")
    small = operands.Operands.random((4, 8, 64))
    off = peers.Peer(lambda given, _: lambda: given.exact * np.float32(1.1), 8)
    peers.INT8["off"] = off
    try:
        with pytest.raises(AssertionError, match="off is off by 10.0%"):
            peers.linear(small, "int8", "off", 1)
    finally:
        del peers.INT8["off"]


def test_worker_protocol(importable):
    """Lines in, lines out: a contender made and run, one that cannot be had, and a fresh start."""
    from benchmarks import worker
    from benchmarks.contenders import Contender

    ours, odd = Contender("ours", "W2A2", "reference"), Contender("lowbit", "llama.cpp Q8_0")  # blocks of 32, if at all
    asked = [{"make": c.as_dict(), "shape": [2, 3, 70]} for c in (odd, ours)] + [{"run": 2, "index": 0}, {"drop": True}]
    answers = io.StringIO()
    worker.serve(io.StringIO("".join(json.dumps(question) + "\n" for question in asked)), answers)
    refused, made, ran, dropped = map(json.loads, answers.getvalue().splitlines())
    assert (
        refused["unavailable"] and made["kernel"].startswith("reference") and len(ran["seconds"]) == 2 and dropped == {}
    )
    with worker.Worker({}) as child, pytest.raises(RuntimeError, match="ended with code 1"):
        child.run(0, 1)  # nothing was made: the child fails, and the parent says so


def test_large_weights_repeat_their_first_rows(importable, monkeypatch):
    """Built from a block, packed without being packed in full, and still checked whole."""
    from benchmarks import operands, ours

    monkeypatch.setattr(operands, "MOST_RANDOM", 1000)
    large = operands.Operands.random((3, 64, 72))
    assert large.repeats == 8 and large.w.shape == (64, 72)
    for widths in ("W3A4", "80% W1A4 + 20% W4A4"):
        call, _ = ours.linear(large, widths, isa.active(), 1)
        assert call().shape == (3, 64)
