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
    return _on_tensors(harness.EmulatedDevice)(harness.library())


def _on_tensors(base: type) -> type:
    """The device with tensors in the place of arrays where the caller has tensors."""
    import torch

    class OnTensors(base):
        def empty(self, shape: tuple[int, ...], dtype: str, like: Any = None) -> Any:
            array = super().empty(shape, dtype)
            return torch.from_numpy(array) if isinstance(like, torch.Tensor) else array

        def describe(self, array: Any) -> tuple[int, tuple[int, ...], str]:
            if not isinstance(array, torch.Tensor):
                found: tuple[int, tuple[int, ...], str] = super().describe(array)
                return found
            return array.data_ptr(), tuple(array.shape), str(array.dtype).removeprefix("torch.")

    return OnTensors
