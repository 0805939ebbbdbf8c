"""Any number of threads gives the same bits, and threads get along with forks, callers' threads and flushed denormals."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cases
import oracle
import soniq_kernels
from oracle import Epilogue, Grid, Layout
from soniq_kernels import _core, conv, gemm, packing

F32 = np.float32
PAIRS = ((Grid("bipolar", 1), Grid("bipolar", 3)), (Grid("bipolar", 4), Grid("unsigned", 6)))


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    """Split even the smallest call, and leave the thread count as it was."""
    before = soniq_kernels.get_num_threads()
    _core.set_work_per_thread(1)
    yield
    _core.set_work_per_thread(2**20)
    soniq_kernels.set_num_threads(before)


def mixed_layout(channels: int) -> Layout:
    """Two segments in turn."""
    return Layout(tuple(k % 2 for k in range(channels)), PAIRS)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 1000, 65), (130, 201, 131), (3, 64, 513), (257, 5, 33)])
def test_matmul(tier, rng, m, n, k):
    """Wide, tall and tiny products under 1 to 4 threads."""
    layout = mixed_layout(k)
    x, w = cases.x_codes(rng, (m, k), layout), cases.w_codes(rng, (n, k), layout)
    plan, expected = cases.package_plan(layout), oracle.matmul(x, w, layout)
    for threads in (1, 2, 3, 4):
        soniq_kernels.set_num_threads(threads)
        assert soniq_kernels.get_num_threads() == threads
        cases.assert_same(gemm.matmul(cases.activations(x, plan), cases.pack_unit(w, plan)), expected, threads)


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_conv2d(tier, rng, groups):
    """Ordinary, grouped and depthwise convolution under 1 to 4 threads."""
    layout = mixed_layout(12)
    x, w = cases.x_codes(rng, (3, 13, 11, 12), layout), cases.w_codes(rng, (36, 3, 3, 12 // groups), layout)
    plan, expected = cases.package_plan(layout), oracle.conv2d(x, w, layout, padding=(1, 1, 1, 1))
    for threads in (1, 2, 3, 4):
        soniq_kernels.set_num_threads(threads)
        got = conv.conv2d_int32(cases.activations(x, plan), cases.pack_unit(w, plan), padding=1)
        cases.assert_same(got, expected, threads)


def test_float_to_float(tier, rng):
    """Quantize per row, multiply, epilogue, codes out: all of it under 1 to 4 threads."""
    layout = mixed_layout(70)
    x, w = rng.normal(size=(101, 70)).astype(F32), cases.w_codes(rng, (67, 70), layout)
    scale, bias = cases.random_scale(rng, 67), rng.normal(size=67).astype(F32)
    a_scale = oracle.row_scale(x, layout, -1)[:, None]
    codes = oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), a_scale)
    steps = Epilogue(scale, bias, activation="relu")
    y = oracle.epilogue(oracle.matmul(codes, w, layout), a_scale, oracle.total_exponent(layout), steps)
    packed = packing.pack(w, cases.package_plan(layout), scale, bias, activation_scale="per_row")
    out = packing.Plan.uniform(67, w_bits=1, a_bits=4)
    for threads in (1, 2, 3, 4):
        soniq_kernels.set_num_threads(threads)
        cases.assert_same_bits(gemm.linear(x, packed, activation="relu"), y, threads)
        coded = gemm.linear(x, packed, activation="relu", out=(out, 0.3))
        cases.assert_same(coded.codes(), oracle.quantize(y, Grid("unsigned", 4), F32(0.3)), threads)


def test_callers_threads(rng):
    """Eight Python threads share one packed layer."""
    layout = mixed_layout(130)
    w = cases.w_codes(rng, (65, 130), layout)
    packed = cases.pack_unit(w, cases.package_plan(layout))
    inputs = [cases.x_codes(rng, (m + 1, 130), layout) for m in range(32)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: gemm.matmul(cases.activations(x, packed.plan), packed), inputs))
    for x, got in zip(inputs, results, strict=True):
        cases.assert_same(got, oracle.matmul(x, w, layout))


@pytest.mark.parametrize("count", [0, -1, 1.5, "two", None, 2**40], ids=str)
def test_bad_thread_counts(count):
    """A clear error, and the count stays."""
    before = soniq_kernels.get_num_threads()
    with pytest.raises((ValueError, TypeError, OverflowError)):
        soniq_kernels.set_num_threads(count)
    assert soniq_kernels.get_num_threads() == before


# ---- fresh processes ----------------------------------------------------------------------------------------------------

LAYER = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
import numpy as np, oracle, cases
import soniq_kernels
from soniq_kernels import gemm, packing
F32 = np.float32
rng = np.random.default_rng(5)
layout = oracle.uniform(131, oracle.Grid("bipolar", 2), oracle.Grid("unsigned", 4))
x, w = cases.x_codes(rng, (67, 131), layout), cases.w_codes(rng, (129, 131), layout)
steps = oracle.Epilogue(np.full(129, 2.0**-60, F32), np.full(129, 1e-43, F32))
expected = oracle.epilogue(oracle.matmul(x, w, layout), 2.0**-73, oracle.total_exponent(layout), steps)
assert np.any((np.abs(expected) < 2.0**-126) & (expected != 0))
packed = packing.pack(w, cases.package_plan(layout), steps.w_scale, steps.bias)
acts = packing.Activations.from_codes(x, packed.plan, 2.0**-73)
def check():
    cases.assert_same_bits(gemm.linear(acts, packed), expected)
"""


def run_script(body: str) -> None:
    """Run LAYER and then body in a fresh interpreter; it must end well."""
    code = LAYER.format(tests=os.path.dirname(oracle.__file__)) + body
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


FORK = """
soniq_kernels._core.set_work_per_thread(1)
soniq_kernels.set_num_threads(4)
check()
warnings.simplefilter("ignore")  # Python warns of forks in processes with threads, which is what is tested
child = os.fork()
if child == 0:
    try:
        check()
        soniq_kernels.set_num_threads(2)
        check()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
check()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use():
    """A forked child of a process that has used threads computes, and so does the parent afterwards."""
    run_script(FORK)


FLUSHED = """
import torch
torch.set_flush_denormal(True)
assert (torch.tensor([1e-42]) * 1).item() == 0
soniq_kernels._core.set_work_per_thread(1)
for threads in (1, 2, 4):
    soniq_kernels.set_num_threads(threads)
    check()
assert (torch.tensor([1e-42]) * 1).item() == 0, "the caller's setting is restored"
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_after_torch_flushes_denormals():
    """torch.set_flush_denormal(True) changes the processor's mode, not our results; it stays set for torch."""
    run_script(FLUSHED)
