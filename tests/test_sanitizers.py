"""The core library under AddressSanitizer and UndefinedBehaviorSanitizer, every tier of this machine on all vectors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import oracle
from oracle import Grid
from soniq_kernels import isa
from vectors import harness, write

pytestmark = pytest.mark.sources


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """The runner with sanitizers; skipped where the compiler cannot link them."""
    if reason := harness.missing({"cmake": "cmake", "g++": "g++"}):
        pytest.skip(reason)
    source = tmp_path_factory.mktemp("sanitizers") / "empty.cpp"
    source.write_text("int main() {}\n")
    trial = harness.run([harness.tool("g++"), *harness.SANITIZERS.split(), source, "-o", source.with_suffix("")])
    if trial.returncode != 0:
        pytest.skip("g++ cannot link libasan and libubsan, which Debian ships with libgcc-<version>-dev")
    return harness.build_with_sanitizers("sanitizers", f"-DCMAKE_CXX_COMPILER={harness.tool('g++')}")


@pytest.mark.parametrize("name", isa.available())
def test_clean(runner, name):
    """No finding, no difference, no idle kernel."""
    done = harness.run([runner, harness.cases(), "--threads", "1", "--tiers", name])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "cases, 0 failed" in done.stdout


def test_clean_on_two_threads(runner):
    """All tiers on two threads, called from a thread that flushes denormals."""
    done = harness.run([runner, harness.cases(), "--threads", "2", "--flush-denormals"])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


# ---- the runner itself has to be able to fail ----------------------------------------------------------------------------


def one_case(path, error: int) -> None:
    """A file of one small GEMM whose last expected integer is off by `error`."""
    layout, conv = oracle.uniform(5, Grid("bipolar", 2), Grid("unsigned", 4)), write.Conv(batch=3)
    x, w = write.operands(np.random.default_rng(1), conv, 4, layout)
    acc = write.integers(x, w, layout, conv)
    acc[-1, -1, -1, -1] += error
    with path.open("wb") as file:
        file.write(b"SONIQVEC")
        write.write_layer(write.Writer(file), "one case", x, w, layout, conv, acc=acc)
        file.write(bytes([write.END]))


def test_the_runner_sees_a_wrong_integer(runner, tmp_path):
    """It names the case, the index and both values, and fails."""
    one_case(tmp_path / "wrong", error=1)
    done = harness.run([runner, tmp_path / "wrong", "--threads", "1", "--tiers", "best"])
    assert done.returncode == 1
    assert re.search(r"one case: \w+, acc, batch 3\[11\] of 12 is -?\d+, expected", done.stdout)
    assert ", 1 failed" in done.stdout


def test_the_runner_sees_idle_kernels(runner, tmp_path):
    """One right case is no difference, but most kernels of a tier never ran, and that fails too."""
    one_case(tmp_path / "right", error=0)
    done = harness.run([runner, tmp_path / "right", "--threads", "1", "--tiers", "reference"])
    assert done.returncode == 1
    assert ", 0 failed" in done.stdout
    assert "never ran: " in done.stdout


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_the_runner_refuses_a_truncated_file(runner, tmp_path, keep):
    """Half a file is an error, not a success over fewer cases."""
    one_case(tmp_path / "whole", error=0)
    (tmp_path / "part").write_bytes((tmp_path / "whole").read_bytes()[:keep])
    done = harness.run([runner, tmp_path / "part"])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "soniq_vectors: " in done.stderr
