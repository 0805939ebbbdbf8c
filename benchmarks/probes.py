"""What this machine can do at most, and what a reader needs to judge or repeat the figures."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import peers, without_amx
from soniq_kernels import __version__, _core, isa

# {tier: {what: products a cycle of its inner loop}}; csrc/README.md has them for every pair of widths.
CEILINGS = {
    "amx": {"AMX INT8 products": 1024.0},
    "avx512_vbmi": {"W1A1 bit planes": 341.0, "W1 tables": 193.0, "W2 tables": 193.0 / 2},
    "avx512": {"INT8 byte dots": 64.0},
    "avx2": {"AVX2: W1 tables": 90.0, "AVX2: W2 tables": 45.0, "AVX2: INT8 byte products": 32.0},
}

_TURNS = 4_000_000


def least_seconds(call: Callable[[], Any], times: int) -> float:
    """The fastest of many calls."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def gigahertz() -> float:
    """The clock under load, from a loop whose cycles are known."""
    return _TURNS / least_seconds(lambda: _core.spin(_TURNS), 25) / 1e9


def read_gb_per_s(mebibytes: int, threads: int) -> float | None:
    """Bytes that threads read from that much memory, again and again: a sum of float32, which waits for nothing else."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    data = torch.ones(mebibytes * 2**18)
    return data.nbytes / least_seconds(data.sum, 15) / 1e9


def ceilings(tiers: list[str]) -> dict[str, float]:
    """{what: products a cycle} on a machine that has these tiers."""
    return {what: most for tier in tiers for what, most in CEILINGS.get(tier, {}).items()}


LIMITS = ("SONIQ_ISA", "ONEDNN_MAX_CPU_ISA")  # what a run may be held to, by its environment


def command(module: str) -> str:
    """How this program was started, what it was held to included."""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    refused = ["python", "-m", "benchmarks.without_amx"] if without_amx.is_refused() else []
    return shlex.join([*limits, *refused, "python", "-m", module, *sys.argv[1:]])


def machine(command: str, threads: list[int]) -> dict[str, Any]:
    """Processor, flags, threads, versions, date, command; and the measured clock and bandwidths."""
    return {
        "cpu": _core.cpu_name(), "flags": _flags(), "cores": usable_cores(), "threads": threads, "tiers": isa.available(),
        "versions": {"soniq_kernels": __version__, "python": platform.python_version(), **peers.versions()},
        "date": datetime.date.today().isoformat(), "command": command, "gigahertz": gigahertz(),
        "dram_gb_per_s": read_gb_per_s(256, max(threads)), "cache_gb_per_s": read_gb_per_s(8, max(threads)),
    }  # fmt: skip


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _flags() -> list[str]:
    """The processor's vector extensions, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    names = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    kinds = ("avx", "fma", "f16c", "asimd", "i8mm", "bf16", "sve", *(() if without_amx.is_refused() else ("amx",)))
    return sorted(name for name in names if name.startswith(kinds))
