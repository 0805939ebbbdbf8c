"""The machine code of the GPU kernels, compiled for GPUs that are not there: the instructions meant, no spills, no fused steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed; pip install soniq_kernels[gpu]")
pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

ROOT = Path(__file__).resolve().parents[1]
SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes that one program may have
# Instructions of a warp in a turn of the loop that multiplies: above these the schedulers would be what limits (docs/gpu.md).
MOST_IN_LOOP = {
    "tensor_core w4a8 64x16/1": 120, "tensor_core w7a8 64x16/2": 620, "tensor_core w8a8 128x128/1": 80, "vector w1a8 8x1/1": 620,
}  # fmt: skip

SOME = [
    "tensor_core w4a8 64x16/1", "tensor_core w7a8 64x16/2", "tensor_core w8a8 128x128/1", "tensor_core w2a4+w4a8 128x128/1 codes",
    "vector w1a8 8x1/1", "vector w3a8+w8a8 8x2/2 residual", "conv2d w2a8+w8a8", "quantize per_row",
    "vector w2a8 8x1/1 all", "between add", "between max_pool", "between avg_pool", "between flatten",
    "rule w7a8+w8a4 8", "rule w7a8+w8a4 4096",
]  # fmt: skip
OTHER = ["tensor_core w4a8 64x16/1", "vector w1a8 8x1/1", "conv2d w2a8+w8a8"]
ALL = SOME + [
    f"rule w{w}a8{second} {rows}" for w in range(1, 9) for second in ("", "+w8a4") for rows in (1, 4, 8, 16, 64, 4096)
]


def compiled(capability: int, names: list[str]) -> dict[str, dict]:
    """The facts of aot.py; what was compiled before is not compiled again."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(ROOT / ".cache" / "triton")}
    command = [sys.executable, str(ROOT / "tests" / "aot.py"), str(capability), str(SHARED_MEMORY[capability])]
    done = subprocess.run(command, input="\n".join(names), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_machine_code(capability, full):
    names = (SOME if capability == 90 else OTHER) if not full else ALL
    found = compiled(capability, names)
    assert list(found) == names
    wrong = [f"{name}: {fault}" for name, facts in found.items() for fault in faults(name, facts, capability)]
    assert not wrong, "\n".join(wrong)


def count(facts, *beginnings):
    return sum(n for name, n in facts["instructions"].items() if name.startswith(beginnings))


def faults(name: str, facts: dict, capability: int):
    """What is wrong with a kernel."""
    kind = name.split()[0]
    if facts["stack"] or count(facts, "LDL", "STL"):
        yield f"spills: stack {facts['stack']}, {count(facts, 'LDL', 'STL')} loads and stores"
    if facts["shared"] > SHARED_MEMORY[capability]:
        yield f"{facts['shared']} bytes of shared memory"
    if facts["fused"] or facts["flushed"]:
        yield f"{facts['fused']} fused products, {facts['flushed']} instructions that flush denormals"
    if kind != "quantize" and count(facts, "FFMA"):
        yield "FFMA in the epilogue"
    if kind not in ("quantize", "between") and not any(
        i.startswith(("LDG", "LDGSTS")) and ".128" in i for i in facts["instructions"]
    ):
        yield "no load of 16 bytes"
    turn = sum(facts["loop"].values())
    if capability == 90 and turn > MOST_IN_LOOP.get(name, turn):
        yield f"{turn} instructions in a turn of the loop"
    if kind == "vector" and not count(facts, "IDP.4A"):
        yield "no dp4a"
    if kind in ("tensor_core", "conv2d"):
        yield from matrix_faults(name, facts, capability)


def matrix_faults(name: str, facts: dict, capability: int):
    if (
        capability != 90
    ):  # Triton has int8 wgmma on 9.0 only; the small instruction clamps, which panels.py keeps in mind
        if not count(facts, "IMMA"):
            yield "no int8 matrix instruction"
        return
    if not count(facts, "IGMMA") or count(facts, "IMMA"):
        yield f"{count(facts, 'IGMMA')} wgmma, {count(facts, 'IMMA')} small matrix instructions"
    if facts["saturating"]:
        yield "wgmma that clamps"
    if "w8" not in name and facts["weights_from_registers"] != facts["wgmma"]:
        yield f"{facts['weights_from_registers']} of {facts['wgmma']} wgmma take their weights from registers"


def test_the_checks_can_fail():
    """A kernel with every fault is found guilty of each."""
    bad = {
        "instructions": {"LDL": 1, "FFMA": 2, "IMMA.16832.S8.S8.SAT": 3, "LDG.E": 4}, "stack": 8, "shared": 300_000,
        "weights_from_registers": 0, "wgmma": 2, "loop": {"LOP3": 999}, "fused": 1, "flushed": 1, "saturating": 1,
    }  # fmt: skip
    assert len(list(faults("tensor_core w4a8 64x16/1", bad, 90))) == 9
    assert "no dp4a" in list(faults("vector w4a8 8x1/1", bad, 90))


def test_a_machine_without_a_gpu_is_told_what_is_needed():
    """Outside of the interpreter an operand on the CPU is an error, and the tuner says that there is no GPU."""
    code = """
import numpy as np, torch
from soniq_kernels import packing
packed = packing.pack(np.zeros((4, 8), np.uint8), packing.Plan.uniform(8, 2, 4), np.ones(4, np.float32), activation_scale=1.0)
from soniq_kernels import triton_kernels as gpu
try:
    gpu.linear(torch.zeros(2, 8), gpu.to_device(packed, "cpu"))
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "the operands are on cpu, these kernels run on NVIDIA GPUs; use soniq_kernels.gemm" in done.stdout, (
        done.stderr
    )


def test_tuning_without_a_gpu_says_what_it_measures():
    """`soniq tune` where torch sees no GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "from soniq_kernels.cli import main; main()", "tune", "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "torch sees no GPU; this command measures an NVIDIA GPU" in done.stderr
