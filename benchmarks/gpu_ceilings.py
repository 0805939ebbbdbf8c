"""What this GPU does at most, measured in the run: copy bandwidth, and the rates of its instructions."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_machine import DryGpu, Gpu

RATES = Path(__file__).parent / "gpu_rates.cu"
ROUNDS = 9
B1_PRODUCTS, DP4A_PRODUCTS, SUMS, THREADS = 32768, 4, 8, 256
UNITS = {
    "copy": ("GB/s", "read and written, 1 GiB each way"),
    "fp16": ("TMAC/s", "cuBLAS, 8192 x 8192 x 8192, random data"),
    "int8": ("TMAC/s", "torch._int_mm, 8192 x 8192 x 8192, random data"),
    "b1": ("TMAC/s", "mma.m16n8k256 AND and POPC from registers"),
    "dp4a": ("TMAC/s", "dp4a from registers"),
}


def measure(gpu: Gpu | DryGpu, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """{what: value, unit, how}; a rate that cannot be measured says why."""
    found = {}
    for name, work in (("copy", _copy), ("fp16", _fp16), ("int8", _int8), ("b1", _b1), ("dp4a", _dp4a)):
        say(f"ceiling: {name}")
        unit, how = UNITS[name]
        try:
            found[name] = {"value": work(gpu), "unit": unit, "how": how}
        except (RuntimeError, ImportError) as reason:
            found[name] = {"value": None, "unit": unit, "how": f"left out: {str(reason).splitlines()[0]}"}
        gpu.free()
    return found


def median_seconds(gpu: Gpu | DryGpu, call: Callable[[], Any]) -> float:
    """Of one call, after two that do not count."""
    warm, counted = (2, ROUNDS) if gpu.measured else (0, 1)
    return statistics.median([gpu.seconds(call) for _ in range(warm + counted)][warm:])


def _copy(gpu: Gpu | DryGpu) -> float:
    torch, size = gpu.torch, 1 << (12 if gpu.tiny else 28)
    source = torch.randn(size, device=gpu.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(gpu, lambda: target.copy_(source)) / 1e9


def _fp16(gpu: Gpu | DryGpu) -> float:
    n = 32 if gpu.tiny else 8192
    a, b = (gpu.torch.randn((n, n), device=gpu.device).to(gpu.torch.float16) for _ in range(2))
    return n**3 / median_seconds(gpu, lambda: a @ b.T) / 1e12


def _int8(gpu: Gpu | DryGpu) -> float:
    n, torch = 32 if gpu.tiny else 8192, gpu.torch
    a, b = (torch.randint(-128, 128, (n, n), device=gpu.device, dtype=torch.int8) for _ in range(2))
    return n**3 / median_seconds(gpu, lambda: torch._int_mm(a, b.T)) / 1e12


def _b1(gpu: Gpu | DryGpu) -> float:
    return _rate(gpu, "b1_rate", 4096, B1_PRODUCTS * SUMS * THREADS // 32)


def _dp4a(gpu: Gpu | DryGpu) -> float:
    return _rate(gpu, "dp4a_rate", 16384, DP4A_PRODUCTS * SUMS * THREADS)


def _rate(gpu: Gpu | DryGpu, kernel: str, turns: int, products: int) -> float:
    """TMAC/s of four blocks of threads a processor; `products` are those of a block in a turn."""
    if isinstance(gpu, DryGpu):
        raise RuntimeError("a dry run has no GPU to count instructions on")
    import cupy

    from soniq_kernels.triton_kernels import cuda

    if kernel == "b1_rate" and (reason := cuda.refusal(gpu.capability)):
        raise RuntimeError(reason)
    loaded = cupy.RawModule(code=source(), options=cuda.OPTIONS).get_function(kernel)
    out, blocks = cupy.zeros(1, "uint32"), 4 * gpu.properties.multi_processor_count
    values = (ctypes.c_void_p(out.data.ptr), ctypes.c_uint32(turns))
    pointers = (ctypes.c_void_p * 2)(*(ctypes.addressof(v) for v in values))

    def call() -> None:
        stream = gpu.torch.cuda.current_stream().cuda_stream
        cupy.cuda.driver.launchKernel(
            loaded.kernel.ptr, blocks, 1, 1, THREADS, 1, 1, 0, stream, ctypes.addressof(pointers), 0
        )

    return blocks * turns * products / median_seconds(gpu, call) / 1e12


def source() -> str:
    """The text of gpu_rates.cu with the header of the kernels in it."""
    from soniq_kernels.triton_kernels import cuda

    return RATES.read_text().replace('#include "cuda_intrinsics.cuh"', cuda.source("cuda_intrinsics.cuh"))
