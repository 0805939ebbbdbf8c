"""The GPU that is measured, and what stands in its place on the CPU in a dry run: memory, clocks, timing by graph replay."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

from soniq_kernels import __version__

PACKAGES = ("torch", "triton", "cupy-cuda13x", "cupy-cuda12x", "numpy", "gemlite", "humming-kernels")
NEEDED = {"torch": "torch", "triton": "triton", "cupy": "cupy-cuda13x", "numpy": "numpy"}
SMI = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")

Call = Callable[[], Any]


class NoGpu(Exception):
    """What is missing to measure, as one sentence."""


class Gpu:
    """The current CUDA GPU."""

    measured = True
    tiny = False

    def __init__(self) -> None:
        require_packages()
        import torch

        if not torch.cuda.is_available():
            raise NoGpu("torch sees no CUDA GPU")
        self.torch, self.device = torch, torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.device)
        self.capability = torch.cuda.get_device_capability(self.device)
        self.name = self.properties.name
        if self.capability < (8, 0):
            raise NoGpu(
                f"{self.name} has compute capability {'.'.join(map(str, self.capability))}, these kernels need 8.0"
            )

    @property
    def l2_bytes(self) -> int:
        return int(self.properties.L2_cache_size)

    def b1_device(self) -> Any:
        """Where the one-bit kernels run. Raises RuntimeError where they do not, and says why."""
        from soniq_kernels.triton_kernels import cuda

        return cuda.CudaDevice(self.device.index)

    def duplicate(self, array: Any) -> Any:
        """The same values at another address, of CuPy or torch."""
        return array.copy() if hasattr(array, "copy") else array.clone()

    def prepare(self, calls: list[Call]) -> Call:
        """Runs every call once, then captures all of them: a function that replays the graph."""
        torch = self.torch
        torch.cuda.synchronize()  # weights were copied on other libraries' streams
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        replay: Call = graph.replay
        return replay

    def seconds(self, run: Call) -> float:
        """Of one run, between two events."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def host_seconds(self, call: Call, times: int = 300) -> float:
        """What the host needs for a call, whose work the GPU does meanwhile."""
        for _ in range(20):
            call()
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            call()
        spent = time.perf_counter() - start
        self.torch.cuda.synchronize()
        return spent / times

    def free(self) -> None:
        """Gives unused memory back."""
        self.torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        """What a reader needs to judge the figures."""
        p = self.properties
        return {
            "gpu": self.name, "compute_capability": ".".join(map(str, self.capability)), "processors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1), "l2_mib": round(self.l2_bytes / 2**20, 1),
            "cuda": self.torch.version.cuda,
        }  # fmt: skip

    def clocks(self) -> dict[str, str]:
        """What nvidia-smi says now; empty without it."""
        if shutil.which("nvidia-smi") is None:
            return {}
        command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "-i", str(self.device.index)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        values = done.stdout.strip().split(", ")
        return dict(zip(SMI, values, strict=True)) if len(values) == len(SMI) else {}


class DryGpu:
    """The CPU in its place: tiny shapes through Triton's interpreter and the CUDA emulator, every answer checked, nothing timed."""

    measured = False
    tiny = True
    name, capability, l2_bytes = "dry run", (9, 0), 0

    def __init__(self) -> None:
        require_packages("torch", "triton", "numpy")
        import torch

        self.torch, self.device = torch, torch.device("cpu")

    def b1_device(self) -> Any:
        """The emulator of the tests, whose memory NumPy and torch share."""
        from benchmarks.gpu_emulated import emulated_device

        return emulated_device()

    def duplicate(self, array: Any) -> Any:
        return array.copy() if hasattr(array, "copy") else array.clone()

    def prepare(self, calls: list[Call]) -> Call:
        return calls[0]

    def seconds(self, run: Call) -> float:
        """Nothing is timed: NaN, which becomes "not measured". Answers were checked when the contender was made."""
        return float("nan")

    def host_seconds(self, call: Call, times: int = 1) -> float:
        return self.seconds(call)

    def free(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"gpu": "none: a dry run on the CPU, nothing was measured", "cuda": None}

    def clocks(self) -> dict[str, str]:
        return {}


def our_kernels() -> Any:
    """soniq_kernels.triton_kernels, imported late: a dry run sets Triton's interpreter before."""
    return importlib.import_module("soniq_kernels.triton_kernels")


def require_packages(*names: str) -> None:
    """Raises NoGpu that names what is not installed."""
    from importlib.util import find_spec

    absent = [NEEDED[name] for name in names or NEEDED if find_spec(name) is None]
    if absent:
        raise NoGpu(f"not installed: {', '.join(absent)}; run: pip install soniq_kernels[gpu]")


def machine(gpu: Gpu | DryGpu, command: str) -> dict[str, Any]:
    """The GPU, its clocks before the work, versions, date, command."""
    versions = {"soniq_kernels": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        **gpu.facts(), "clocks_before": gpu.clocks(), "versions": versions, "date": datetime.date.today().isoformat(),
        "command": command,
    }  # fmt: skip
