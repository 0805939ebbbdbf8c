"""The CUDA sources on a GPU: compiled by CuPy at their first use, launched on the current stream.

Importing this starts no CUDA context and needs no CuPy; `CudaDevice()` does.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from soniq_kernels._optional import require

HERE = Path(__file__).parent
SOURCES = ("b1.cu", "cuda_planes.cu")
OPTIONS = ("-std=c++17",)  # CuPy adds -ftz=true; the sources name their float instructions
FREE_SHARED = 48 * 1024  # what a block gets without asking
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


@cache
def source(name: str) -> str:
    """One CUDA source with its headers in it: compiled kernels are cached by this text, headers included."""
    seen: set[str] = set()

    def inlined(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (HERE / name).read_text().replace("#pragma once\n", "")
        return _INCLUDE.sub(lambda found: inlined(found[1]), text)

    return inlined(name)


def refusal(capability: tuple[int, int]) -> str | None:
    """Why GPUs of this compute capability do not run the one-bit kernels; None if they do."""
    number = ".".join(map(str, capability))
    if capability < (8, 0):
        return f"this GPU has compute capability {number}, the one-bit kernels need 8.0 or higher"
    if capability >= (10, 0):
        return (
            f"GPUs of compute capability {number} emulate one-bit products; the Triton kernels are the fast path there"
        )
    return None


class CudaDevice:
    """One GPU, as b1.Device: CuPy's memory for what stays, the caller's library for what a call makes.

    Args:
        index: of the GPU; None is the current one.

    Raises:
        ImportError: CuPy is not installed. RuntimeError: the GPU does not run these kernels, and why.
    """

    def __init__(self, index: int | None = None) -> None:
        self._cupy = require("cupy", extra="gpu")
        self._gpu = self._cupy.cuda.Device(index)
        self.index = self._gpu.id
        capability = self._gpu.compute_capability  # "90"
        reason = refusal((int(capability[:-1]), int(capability[-1])))
        if reason:
            raise RuntimeError(reason)
        self.processors: int = self._gpu.attributes["MultiProcessorCount"]
        self._launch = self._cupy.cuda.driver.launchKernel
        self._kernels: dict[str, Any] = {}  # loaded as long as these live
        self._shared: dict[str, int] = {}  # what each may have

    @cached_property
    def _modules(self) -> list[Any]:
        return [self._cupy.RawModule(code=source(name), options=OPTIONS) for name in SOURCES]

    # ---- memory
    def put(self, array: NDArray[Any]) -> Any:
        return self._settled(lambda: self._cupy.asarray(array))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any = None) -> Any:
        if _is_torch(like):
            torch = sys.modules["torch"]
            return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
        with self._gpu:
            return self._cupy.empty(shape, dtype)

    def zeros(self, words: int, like: Any = None) -> Any:
        if _is_torch(like):
            return sys.modules["torch"].zeros(words, dtype=sys.modules["torch"].int32, device=like.device)
        return self._settled(lambda: self._cupy.zeros(words, "int32"))

    def address(self, array: Any) -> int:
        at: int = array.data_ptr() if hasattr(array, "data_ptr") else array.data.ptr
        return at

    def _settled(self, make: Callable[[], Any]) -> Any:
        """What stays has to be there for every stream that reads it."""
        with self._gpu:
            made = make()
            self._cupy.cuda.get_current_stream().synchronize()
            return made

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], str]:
        if _is_torch(array):
            return self._describe_torch(array)
        if not isinstance(array, self._cupy.ndarray):
            raise TypeError(f"got a {type(array).__name__}, expected a CUDA tensor of torch or a cupy.ndarray")
        self._require_here(array.device.id)
        if not array.flags.c_contiguous:
            raise ValueError(
                f"got an array with strides {array.strides}; make it contiguous with cupy.ascontiguousarray"
            )
        return array.data.ptr, array.shape, array.dtype.name

    def _describe_torch(self, tensor: Any) -> tuple[int, tuple[int, ...], str]:
        if not tensor.is_cuda:
            raise ValueError(
                f"got a tensor on {tensor.device}, this layer is on cuda:{self.index}; move it with .cuda()"
            )
        self._require_here(tensor.device.index)
        if not tensor.is_contiguous():
            raise ValueError(f"got a tensor with strides {tensor.stride()}; make it contiguous with .contiguous()")
        return tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def _require_here(self, index: int) -> None:
        if index != self.index:
            raise ValueError(f"got an array on cuda:{index}, this layer is on cuda:{self.index}")

    # ---- launches
    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, shared: int, arguments: Any) -> None:
        function = self._function(kernel, shared)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))  # copied by the driver before it returns
        with self._gpu:
            self._launch(function, *grid, threads, 1, 1, shared, self._stream(), ctypes.addressof(pointers), 0)

    def order_of_launches(self) -> int | None:
        torch = _started_torch()
        return None if torch is not None and torch.cuda.is_current_stream_capturing() else self._stream()

    def _function(self, kernel: str, shared: int) -> int:
        """The driver's handle of a kernel that may have so much shared memory."""
        if kernel not in self._kernels:
            with self._gpu:
                self._kernels[kernel] = self._modules[kernel == "write_planes"].get_function(kernel)
        function: int = self._kernels[kernel].kernel.ptr
        if shared > self._shared.get(kernel, FREE_SHARED):
            self._cupy.cuda.driver.funcSetAttribute(function, _MAX_DYNAMIC_SHARED, shared)
            self._shared[kernel] = shared
        return function

    def _stream(self) -> int:
        """torch's current stream where torch is in use, else CuPy's."""
        torch = _started_torch()
        if torch is not None:
            stream: int = torch.cuda.current_stream(self.index).cuda_stream
            return stream
        current: int = self._cupy.cuda.get_current_stream().ptr
        return current


class TorchDevice(CudaDevice):
    """A GPU whose memory is torch's: nothing is waited for, and a CUDA graph of torch can record every call but the first."""

    def put(self, array: NDArray[Any]) -> Any:
        import numpy as np
        import torch

        signed = array.view(np.int32) if array.dtype == np.uint32 else array
        return torch.from_numpy(np.ascontiguousarray(signed)).to(torch.device("cuda", self.index))


def _started_torch() -> Any:
    """torch, if it is in use on a GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)
