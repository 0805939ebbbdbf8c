"""Compiling GPU kernels for a GPU that is not there, and what their machine code is made of.

    python tests/aot.py 90 232448 < names of cases, one a line        prints JSON, {name: facts}

A program of its own for test_triton_machine_code.py, which runs in Triton's interpreter. Arguments are bound as in a launch, with
tensors of the CPU in the place of the GPU's. Triton keeps what it has compiled, by a hash of the sources and options.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from soniq_kernels import packing
from soniq_kernels import triton_kernels as gpu
from soniq_kernels.triton_kernels import choice, conv, epilogue, gemm, launch, move, ops, quantize, tensor_core, vector
from soniq_kernels.triton_kernels.choice import TENSOR_CORE, VECTOR, Choice

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
PLACED = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)([^;]*);", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", re.MULTILINE)
OUTPUTS, K = 256, 2048


def pretend(capability: int) -> None:
    """From here on Triton compiles for a GPU of this compute capability (90 for 9.0)."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: capability,  # kernels are cached by device
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target,
        )
    )


def disassembly(kernel) -> str:
    """SASS and the use of registers of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loop(sass: str) -> collections.Counter:
    """The instructions of the longest loop that multiplies: from where a branch goes back to, to the branch."""
    placed = [(int(at, 16), name, rest) for at, name, rest in PLACED.findall(sass)]
    bodies = []
    for at, name, rest in placed:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target and int(target[1], 16) < at:
            bodies.append([other for where, other, _ in placed if int(target[1], 16) <= where <= at])
    products = [body for body in bodies if any("MMA" in name or name.startswith("IDP") for name in body)]
    return collections.Counter(max(products, key=len, default=[]))


def facts(kernel) -> dict:
    """What the tests look at."""
    sass, ptx = disassembly(kernel), kernel.asm["ptx"]
    products = re.findall(r"wgmma\.mma_async\S*\.s8\.s8 \{[^}]*\}, (\{|%)", ptx)
    return {
        "instructions": dict(collections.Counter(INSTRUCTION.findall(sass))),
        "loop": dict(loop(sass)),
        "stack": int(re.search(r"STACK:(\d+)", sass)[1]),
        "registers": int(re.search(r"REG:(\d+)", sass)[1]),
        "shared": kernel.metadata.shared,
        "weights_from_registers": products.count("{"),
        "wgmma": len(products),
        "fused": ptx.count("fma.rn.f32"),
        "flushed": ptx.count(".ftz"),
        "saturating": ptx.count("satfinite"),
    }


def packed_layer(shape, pairs, **options) -> packing.PackedWeights:
    """Zero codes of a plan with these (weight bits, activation bits), half the channels each."""
    index = np.arange(options.pop("channels")) % len(pairs)
    grids = [(packing.Grid("bipolar", w), packing.Grid("bipolar", a)) for w, a in pairs]
    ones = np.ones(shape[0], np.float32)
    plan = packing.Plan.of_segments(index, grids)
    return packing.pack(np.zeros(shape, np.uint8), plan, ones, bias=ones, activation_scale="per_row", **options)


def linear(name: str, how: Choice | None, rows: int, pairs, out=None, residual=False):
    """Compiles a linear layer with bias and relu."""
    weights = gpu.to_device(packed_layer((OUTPUTS, K), pairs, channels=K), "cpu")
    x = gpu.from_codes(torch.zeros((rows, K), dtype=torch.uint8), weights.plan, 1.0)
    how = how or choice.rule(weights, rows)
    shortcut = torch.zeros((rows, OUTPUTS)) if residual else None
    gemm.run(x, weights, epilogue.steps(weights, x, (rows, OUTPUTS), shortcut, "relu", out), how)


def convolution(name: str, pairs):
    """Compiles a 3x3 convolution of 64 channels."""
    weights = gpu.to_device(packed_layer((64, 3, 3, 64), pairs, channels=64), "cpu")
    x = gpu.from_codes(torch.zeros((1, 8, 8, 64), dtype=torch.uint8), weights.plan, 1.0)
    geometry = conv.geometry_of((8, 8), (3, 3), 1, 1, 1)
    conv.run(x, weights, geometry, epilogue.steps(weights, x, (1, 8, 8, 64), None, "relu", None))


def quantizing(name: str, scale):
    """Compiles the quantizer of a plan of two segments."""
    plan = packed_layer((16, 512), ((2, 4), (4, 8)), channels=512).plan
    quantize.quantize_activations(torch.zeros(8, 512, dtype=torch.float16), plan, scale)


def between(name: str):
    """Compiles an operation between layers, with codes of two segments in, and two tensors of codes and float32 out."""
    plan = packed_layer((16, 512), ((2, 4), (4, 8)), channels=512).plan
    x = gpu.from_codes(torch.zeros((1, 4, 4, 512), dtype=torch.uint8), plan, 1.0)
    outs = [(plan, 0.5), None, (packing.Plan.uniform(512, 2, 8), 0.5)]
    if name == "add":
        ops.add(x, x, "relu", outs)
    if name == "max_pool":
        ops.max_pool2d(x, 3, 2, 1)
    if name == "avg_pool":
        ops.avg_pool2d(x, 2, 2, outs)
    if name == "flatten":
        ops.flatten(x)


def by_name(name: str):
    """Compiles what a name says: "tensor_core w4a8 64x16/1", "vector w1a8+w4a8 8x1/2", "conv2d w2a8", "rule w7a8 64" (rows), "quantize per_row", "between add"."""
    kind, *rest = name.split()
    if kind == "between":
        return between(rest[0])
    if kind == "quantize":
        return quantizing(name, rest[0] if rest[0] == "per_row" else float(rest[0]))
    pairs = tuple((int(w), int(a)) for w, a in re.findall(r"w(\d)a(\d)", rest[0]))
    if kind == "conv2d":
        return convolution(name, pairs)
    if kind == "rule":
        return linear(name, None, int(rest[1]), pairs)
    bn, bm, splits = map(int, re.split("[x/]", rest[1]))
    path = {"vector": VECTOR, "tensor_core": TENSOR_CORE}[kind]
    how = Choice(path, bn, bm, splits, *((1, 1) if kind == "vector" else (8 if bn * bm > 8192 else 4, 3)))
    codes = (packing.Plan.uniform(OUTPUTS, 2, 8), 0.5)
    out = codes if "codes" in rest else [codes, None, codes] if "all" in rest else None
    return linear(name, how, bm, pairs, out, residual="residual" in rest)


def main() -> None:
    pretend(int(sys.argv[1]))
    choice.SHARED_MEMORY = int(sys.argv[2])
    compiled = []

    def record(kernel, grid, arguments, constants, **options):
        """In the place of launch.launch, which hands over run-time arguments, then compile-time ones: as many as there are."""
        assert len(arguments) + len(constants) + 1 == len(kernel.arg_names), kernel
        assert set(kernel.arg_names[len(arguments) :]) == {*constants, "ASM"}, kernel
        compiled.append(launch.compiled(kernel, arguments, constants, **options))

    for module in (tensor_core, vector, conv, quantize, move, ops):
        module.launch = record
    quantize.require_usable = ops.require_usable = lambda device: None
    found = {}
    for name in sys.stdin.read().splitlines():
        by_name(name)
        found[name] = facts(compiled[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
