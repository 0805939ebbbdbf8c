"""`python -m benchmarks.gpu` without a GPU: it says what it needs, its dry run writes every file, and its judgements hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "triton", "matplotlib", "rich", "typer"):
    pytest.importorskip(package)

import torch

from cuda_emulator import harness

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in the repository's root."""
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def importable(monkeypatch):
    """The repository's root is on the path for one test only."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_needed():
    """Exit code 2, nothing written, and what to do."""
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    done = run()
    assert done.returncode == 2, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert (
        "NVIDIA GPU of compute capability 8.0" in text
        and "--dry-run" in text
        and "pip install soniq_kernels[gpu]" in text
    )
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before


def test_a_dry_run_writes_all_files_and_measures_nothing(tmp_path):
    """Every path is right on the CPU, every file is there, every figure is missing and says so."""
    done = run("--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "dry-run.json").read_text())
    assert not result["measured"] and "dry run" in result["machine"]["gpu"]
    checked = {check["path"]: check for check in result["checks"]}
    names = {row["name"] for row in result["rows"]}
    assert {"cuBLAS FP16", "cuBLAS BF16", "torch._int_mm"} <= names and checked["triton"]["differ"] == 0
    assert checked["codes"]["cases"] > 0 and checked["codes"]["differ"] == 0
    assert checked["triton"]["cases"] > 0 and {"W1A8 triton", "W8A8 triton"} <= names
    assert {"cuDNN FP16", "W8A8"} <= {row["name"] for row in result["convolutions"]}
    if harness.compiler():
        assert checked["b1"]["cases"] > 0 and checked["b1"]["differ"] == 0
        assert {"W1A1 b1", "W2A2 b1", "W8A8 b1"} <= names
    assert result["errors"] == []
    figures = ("seconds", "fastest", "tmac_per_s", "weight_gb_per_s", "ratio")
    assert all(row[figure] is None for row in result["rows"] for figure in figures)
    assert all(c["value"] is None or np.isnan(c["value"]) for c in result["ceilings"].values())
    assert all(t["verdict"] == "not measured" and t["reached"] is None for t in result["targets"])
    page = (tmp_path / "dry-run.md").read_text()
    assert "Nothing on this page was measured" in page and "not measured" in page and "](dry-run.png)" in page
    assert any("gemlite" in reason for reason in result["left_out"])
    assert (tmp_path / "dry-run.png").stat().st_size > 10_000


def test_targets_name_what_is_measured(importable):
    """A target of a shape or a pair of widths that never runs would never be judged."""
    from benchmarks import gpu, gpu_contenders, gpu_targets

    for batch, widths in gpu_targets.TARGETS:
        shape = (batch, gpu_targets.N, gpu_targets.K)
        assert shape in gpu.points(tiny=False)
        assert widths in {c.what for c in gpu_contenders.contenders(shape) if c.kind == "ours"}
    assert len(gpu_targets.TARGETS) == 24


class Made:
    """What a contender leaves for its row."""

    calls, weight_bytes, kernel, stage = [None, None], 10**9, "", "whole"


def rows_of(importable_gpu, seconds: dict[tuple[str, str, str], float]) -> list[dict]:
    """Rows of contenders at 1 x 8192 x 8192 whose graph of two calls takes so long."""
    from benchmarks.contenders import Contender

    rows = [importable_gpu.row(Contender(*name), (1, 8192, 8192), Made, [s, s, 9.0]) for name, s in seconds.items()]
    importable_gpu.add_ratios(rows)
    return rows


def test_rows_and_verdicts(importable):
    """A call is the graph over its calls, the ratio is over cuBLAS FP16, the better of ours is judged on two decimals."""
    from benchmarks import gpu, gpu_pages, gpu_targets

    seconds = {("float", "cuBLAS FP16", ""): 0.010, ("ours", "W1A8", "b1"): 0.002004, ("ours", "W1A8", "triton"): 0.004,
               ("ours", "W2A2", "b1"): 0.005}  # fmt: skip
    rows = rows_of(gpu, seconds)
    assert rows[0]["seconds"] == 0.005 and rows[0]["weight_gb_per_s"] == 200.0 and rows[3]["ratio"] == 2.0
    judged = {(t["shape"][0], t["widths"]): t for t in gpu_targets.judge(rows)}
    assert (judged[1, "W1A8"]["by"], judged[1, "W1A8"]["verdict"]) == ("W1A8 b1", "missed")
    assert gpu_targets.verdict(4.996, 5.0) == "ok" and judged[1, "W2A2"]["verdict"] == "missed"
    assert judged[16, "W1A8"]["verdict"] == "not measured"
    assert gpu_pages.number(4.99, ".2fx") == "4.99x" and gpu_pages.number(12.0, ".0f GB/s") == "12 GB/s"
    assert [gpu_pages.number(value, ".2f") for value in (None, float("nan"))] == ["not measured"] * 2


def test_a_wrong_answer_is_not_timed(importable):
    """Ours by one bit in one value, a peer by noise that its bits do not explain."""
    from benchmarks import gpu_contenders
    from benchmarks.gpu_machine import DryGpu

    from soniq_kernels import gemm

    layer = gpu_contenders.Layer((2, 32, 64), DryGpu())
    small, _ = layer.packed("W2A4")
    y = torch.from_numpy(gemm.linear(layer.x.float().numpy(), small))
    gpu_contenders.require_ours(layer, y, small)
    y.view(torch.int32)[1, 3] += 1
    with pytest.raises(AssertionError, match="1 of 64 values differ"):
        gpu_contenders.require_ours(layer, y, small)
    near = torch.from_numpy(layer.exact)
    gpu_contenders.require_near(layer, near, 0.01, "a peer")
    with pytest.raises(AssertionError, match="a peer is off by 10.0%"):
        gpu_contenders.require_near(layer, near * 1.1, 0.01, "a peer")
    with pytest.raises(AssertionError, match="a peer is off by nan%"):
        gpu_contenders.require_near(layer, near * float("nan"), 0.01, "a peer")


def test_checks_see_a_difference(importable):
    """-0 is not +0, one bit is a difference, every NaN is one."""
    from benchmarks import gpu_checks

    expected = np.array([[0.0, 1.0, np.nan]], np.float32)
    assert gpu_checks._same(torch.from_numpy(expected.copy()), expected)
    for wrong in (
        [[-0.0, 1.0, np.nan]],
        [[0.0, np.nextafter(np.float32(1), np.float32(2)), np.nan]],
        [[0.0, 1.0, 1.0]],
    ):
        assert not gpu_checks._same(np.array(wrong, np.float32), expected)
    assert not gpu_checks._same(expected[0], expected) and not gpu_checks._same(expected.astype(np.float64), expected)


def test_what_fails_is_named(importable, monkeypatch):
    """One of ours that raises does not end the run, but the run fails and says where."""
    from benchmarks import gpu, gpu_contenders
    from benchmarks.gpu_machine import DryGpu

    def broken(layer, widths):
        raise AssertionError("7 of 64 values differ")

    monkeypatch.setattr(gpu_contenders, "_triton", broken)
    monkeypatch.setattr(gpu_contenders, "B1_WIDTHS", [])
    errors: list[str] = []
    rows = gpu.measure_shape(DryGpu(), (2, 32, 64), {}, errors, lambda _: None)
    assert {row["name"] for row in rows} == {"cuBLAS FP16", "cuBLAS BF16", "torch._int_mm"}
    assert errors[0] == "W1A8 triton at 2 x 32 x 64: AssertionError: 7 of 64 values differ" and len(errors) == 5
    check = {"path": "b1", "cases": 9, "differ": 2, "first": "W1A1", "left_out": ""}
    assert (
        gpu.failures({"checks": [check], "errors": errors})[0] == "b1 differs from the CPU in 2 of 9 cases, first W1A1"
    )
    nothing = {"path": "codes", "cases": 0, "differ": 0, "first": "", "left_out": ""}
    assert gpu.failures({"checks": [nothing], "errors": []}) == ["codes was not checked at all"]


def test_time_runs_out(importable, monkeypatch):
    """What does not fit is named, and the shapes with targets come first."""
    from benchmarks import gpu

    assert gpu.points(tiny=False)[:4] == [(m, 8192, 8192) for m in (1, 16, 256, 4096)]
    assert gpu.Deadline(0).seconds() <= 0 < gpu.Deadline(1).seconds()
    assert gpu.slug("NVIDIA H200") == "nvidia-h200"
