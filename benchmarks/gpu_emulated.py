"""For dry runs: the CUDA emulator of the tests as the device of the one-bit kernels, on torch tensors of the CPU."""

from __future__ import annotations

from typing import Any


def emulated_device() -> Any:
    """A device of tests/cuda_emulator that also reads and makes CPU tensors. Raises RuntimeError without a C++ compiler."""
    try:
        from tests.cuda_emulator import harness
    except ImportError as error:
        raise RuntimeError(f"the emulator needs the tests of the repository ({error})") from None
    if harness.compiler() is None:
        raise RuntimeError("the emulator needs a C++ compiler: sudo apt install g++")
    return harness.tensor_device()
