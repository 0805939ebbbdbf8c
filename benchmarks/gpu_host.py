"""`python -m benchmarks.gpu_host`: what a call of the GPU kernels costs the host, measured without a GPU.

Everything that runs in Python for a call runs here: checks, the choice, allocations, the look-up of the kernel, Triton's own
launcher. The driver is a stub that does nothing, and tensors are the CPU's, so the times leave out the driver's launch, the
conversion of arguments to C, and what a GPU's allocator costs beyond the CPU's. CPU seconds of this process, not the clock.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import numpy as np
import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver

from soniq_kernels import packing, torch_ops
from soniq_kernels.triton_kernels import choice, conv, cuda, gemm, launch, one_bit, quantize, tensor_core, torch_cuda
from soniq_kernels.triton_kernels.device_weights import to_device
from soniq_kernels.triton_kernels.gemm import linear
from soniq_kernels.triton_kernels.quantize import quantize_activations

N, K = 512, 1024
CALLS, ROUNDS = 100, 40


def pretend() -> None:
    """Compiles for a GPU of compute capability 9.0, launches nothing, and lets CPU tensors pass for its own."""
    nothing = lambda *arguments: None  # noqa: E731
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
        )
    )  # fmt: skip
    torch.cuda.current_device = lambda: -1  # where tensors of the CPU say that they are
    for module in (quantize, gemm, conv):
        module.require_usable = nothing
    compiled = launch.compiled
    launch.compiled = lambda *arguments, **options: without_driver(compiled(*arguments, **options))
    one_bit.device_of = lambda device: device_without_driver()
    one_bit.unusable = lambda device: None


def without_driver(kernel: Any) -> Any:
    """A compiled kernel that Triton takes for loaded."""
    run = CudaLauncher.__new__(CudaLauncher)
    run.launch, run.num_ctas, run.arg_annotations, run.kernel_signature = lambda *arguments: None, 1, (), b""
    for name in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl"):
        setattr(run, name, getattr(kernel.metadata, name))
    run.global_scratch_align = run.profile_scratch_align = 1
    kernel.module, kernel.function, kernel._run = 1, 0, run
    return kernel


def device_without_driver() -> cuda.TorchDevice:
    """The one-bit kernels' device with a driver that does nothing."""
    device = cuda.TorchDevice.__new__(cuda.TorchDevice)
    device.index, device.processors, device._shared = 0, 132, {}
    handle = SimpleNamespace(kernel=SimpleNamespace(ptr=0))
    device._gpu, device._launch, device._kernels = contextlib.nullcontext(), lambda *arguments: None, _Every(handle)
    device._stream, device._cupy = (
        lambda: 0,
        SimpleNamespace(cuda=SimpleNamespace(driver=SimpleNamespace(funcSetAttribute=lambda *a: None))),
    )
    device.put = lambda array: torch.from_numpy(
        np.ascontiguousarray(array.view(np.int32) if array.dtype == np.uint32 else array)
    )
    return device


class _Every(dict[str, Any]):
    """Holds one value under every key."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> Any:
        return self.value


def microseconds(call: Callable[[], Any]) -> float:
    """CPU microseconds of one call, the best of a few rounds."""
    call(), call()
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - began) / CALLS)
    return 1e6 * min(rounds)


def calls() -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    plan = packing.Plan.mixed(np.arange(K) % 2 * 2 + 2, a_grid="unsigned")
    packed = packing.pack(np.zeros((N, K), np.uint8), plan, np.ones(N), bias=np.ones(N), activation_scale=0.5)
    weights, tensor = to_device(packed, "cpu"), torch_ops.weights_to_tensor(packed)
    few, many = torch.zeros(1, K), torch.zeros(64, K)
    codes = {x: quantize_activations(x, plan, 0.5) for x in (few, many)}
    next_plan = packing.Plan.mixed(np.arange(N) % 2 * 2 + 2)
    kernel_calls: list[tuple[Any, Any]] = []
    run = launch.launch

    def recorded(*arguments: Any, **options: Any) -> None:
        kernel_calls.append((arguments, options))
        run(*arguments, **options)

    tensor_core.launch = recorded
    with choice.use("tensor_core"):
        linear(codes[many], weights)
    tensor_core.launch = run
    arguments, options = kernel_calls[-1]

    def on(path: str, x: Any, **more: Any) -> Callable[[], Any]:
        def call() -> Any:
            return linear(x, weights, **more)

        return forced(path, call)

    return {
        "one kernel launch (tensor cores, 39 arguments)": lambda: run(*arguments, **options),
        "quantize_activations, 1 row": lambda: quantize_activations(few, plan, 0.5),
        "linear of codes, vector path": on("vector", codes[few]),
        "linear of codes, tensor cores": on("tensor_core", codes[many]),
        "linear of codes, tensor cores, codes out": on("tensor_core", codes[many], out=(next_plan, 0.5)),
        "linear of floats (quantize, product), vector path": on("vector", few),
        "linear of floats (quantize, product), one-bit": on("b1", few),
        "linear of codes (planes, product), one-bit": on("b1", codes[few]),
        "soniq::linear of floats, called as the op's function": forced(
            "vector", lambda: torch_cuda.linear(few, tensor, N)
        ),
    }


def forced(path: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with one path allowed, set once and not at every call."""

    def run() -> Any:
        choice._allowed = (path,)
        return call()

    return run


def main() -> None:
    torch.set_num_threads(1)
    pretend()
    table = Table(
        "",
        "CPU us",
        title=f"Host time of a call, driver left out; torch {torch.__version__}, triton {triton.__version__}",
    )
    for name, call in calls().items():
        table.add_row(name, f"{microseconds(call):.1f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
