"""llama.cpp's quantised matrix product, one at a time, through the C interface of its library ggml.

The library comes with `pip install llama-cpp-python`, which compiles it for this processor; SONIQ_GGML names another folder
that holds libggml.so and its parts. Weights lie in the buffer that llama.cpp itself would choose: repacked for the
processor where ggml has such a kernel for the type. ggml quantizes the activations (to Q8_0 or Q8_K) inside the product.

    headers without memory -> tensors -> memory of one buffer type -> a graph of one mul_mat -> computed at every call
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# enum ggml_type in ggml.h, which only ever grows at its end.
TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 8, "Q2_K": 10, "Q4_K": 12, "TQ2_0": 35, "Q1_0": 41}
CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
HEADER_BYTES = 1 << 20  # of a few tensor headers and a graph


class InitParams(Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# The functions that are used, without "ggml_": (result, arguments).
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "version": (c_char_p, []),
    "type_name": (c_char_p, [c_int]),
    "blck_size": (c_int64, [c_int]),
    "row_size": (c_size_t, [c_int, c_int64]),
    "quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "init": (c_void_p, [InitParams]),
    "free": (None, [c_void_p]),
    "new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "get_data": (c_void_p, [c_void_p]),
    "mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "new_graph": (c_void_p, [c_void_p]),
    "build_forward_expand": (None, [c_void_p, c_void_p]),
    "backend_dev_by_type": (c_void_p, [c_int]),
    "backend_dev_init": (c_void_p, [c_void_p, c_char_p]),
    "backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "backend_dev_buffer_type": (c_void_p, [c_void_p]),
    "backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "backend_buffer_free": (None, [c_void_p]),
    "backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "backend_graph_compute": (c_int, [c_void_p, c_void_p]),
}


def folder() -> Path:
    """Where libggml.so lies.

    Raises:
        ImportError: nowhere; the message says how to get it.
    """
    named, package = os.environ.get("SONIQ_GGML"), importlib.util.find_spec("llama_cpp")
    if named is None and (package is None or package.origin is None):
        raise ImportError("not installed: pip install llama-cpp-python, or name a folder with libggml.so in SONIQ_GGML")
    place = Path(named) if named else Path(str(package and package.origin)).parent / "lib"
    if not (place / "libggml.so").exists():
        raise ImportError(f"{place} has no libggml.so")
    return place


class Library:
    """ggml's functions, and its CPU."""

    def __init__(self) -> None:
        shared = ctypes.CDLL(str(folder() / "libggml.so"))  # a symbol is looked for in its parts, too
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in FUNCTIONS.items():
            self._functions[name] = function = getattr(shared, f"ggml_{name}")
            function.restype, function.argtypes = result, arguments
        self.cpu = self.backend_dev_by_type(CPU)
        self.backend = self.backend_dev_init(self.cpu, None)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_functions"][name]
        except KeyError:
            raise AttributeError(f"{name} is not among ggml.FUNCTIONS") from None

    def set_threads(self, threads: int) -> None:
        self._registered(b"ggml_backend_set_n_threads", None, c_void_p, c_int)(self.backend, threads)

    def buffer_types(self) -> list[int]:
        """Those that repack weights first, plain memory last."""
        listed = self._registered(b"ggml_backend_dev_get_extra_bufts", POINTER(c_void_p), c_void_p)(self.cpu)
        found: list[int] = []
        while listed and listed[len(found)]:
            found.append(listed[len(found)])
        return [*found, self.backend_dev_buffer_type(self.cpu)]

    def _registered(self, name: bytes, *signature: Any) -> Any:
        """A function that only the CPU's registry knows."""
        registry = self.backend_dev_backend_reg(self.cpu)
        return ctypes.CFUNCTYPE(*signature)(self.backend_reg_get_proc_address(registry, name))


@cache
def library() -> Library:
    """Loaded at its first use."""
    return Library()


class Matmul:
    """x @ w.T for x float32 [M, K] and w float32 [N, K], quantised to one of `TYPES`. A call gives float32 [M, N].

    Raises:
        ImportError: ggml is missing, does not know the type, or K is no whole number of its blocks.
    """

    def __init__(self, x: NDArray[np.float32], w: NDArray[np.float32], kind: str, threads: int) -> None:
        self._headers: list[int] = []
        self._memory: list[int] = []
        self._ggml, self._type = library(), TYPES[kind]
        self._require(kind, x.shape[1])
        self._ggml.set_threads(threads)
        headers = self._new_headers()
        inputs = self._ggml.new_tensor_2d(headers, TYPES["F32"], *reversed(x.shape))
        weights = self._weights(w.shape, inputs)
        product = self._ggml.mul_mat(headers, weights, inputs)
        self._graph = self._ggml.new_graph(headers)
        self._ggml.build_forward_expand(self._graph, product)
        self._allocate(headers, self._ggml.buffer_types()[-1])
        self._ggml.backend_tensor_set(inputs, x.ctypes.data, 0, x.nbytes)
        self._load(weights, w)
        address = ctypes.cast(self._ggml.get_data(product), POINTER(c_float))
        self._y = np.ctypeslib.as_array(address, (x.shape[0], w.shape[0]))

    def __call__(self) -> NDArray[np.float32]:
        if self._ggml.backend_graph_compute(self._ggml.backend, self._graph):
            raise RuntimeError("ggml could not compute the product")
        return self._y

    def __del__(self) -> None:
        for memory in self._memory:
            self._ggml.backend_buffer_free(memory)
        for headers in self._headers:
            self._ggml.free(headers)

    def _require(self, kind: str, k: int) -> None:
        if (self._ggml.type_name(self._type) or b"").decode().lower() != kind.lower():
            raise ImportError(f"this ggml, {self._ggml.version().decode()}, has no type {kind}")
        if k % self._ggml.blck_size(self._type):
            raise ImportError(f"{kind} has blocks of {self._ggml.blck_size(self._type)}, which do not divide K = {k}")

    def _new_headers(self) -> int:
        self._headers.append(self._ggml.init(InitParams(HEADER_BYTES, None, True)))
        return self._headers[-1]

    def _allocate(self, headers: int, buffer_type: int) -> None:
        self._memory.append(self._ggml.backend_alloc_ctx_tensors_from_buft(headers, buffer_type))

    def _weights(self, shape: tuple[int, ...], inputs: int) -> int:
        """A tensor in the first buffer type whose kernels multiply it: what a buffer can do shows once it is there."""
        for buffer_type in self._ggml.buffer_types():
            headers = self._new_headers()
            weights = self._ggml.new_tensor_2d(headers, self._type, *reversed(shape))
            self._allocate(headers, buffer_type)
            if self._ggml.backend_dev_supports_op(self._ggml.cpu, self._ggml.mul_mat(headers, weights, inputs)):
                return int(weights)
        raise ImportError(f"this ggml, {self._ggml.version().decode()}, cannot multiply type {self._type}")

    def _load(self, weights: int, w: NDArray[np.float32]) -> None:
        codes = np.empty(w.shape[0] * self._ggml.row_size(self._type, w.shape[1]), np.uint8)
        self._ggml.quantize_chunk(self._type, w.ctypes.data, codes.ctypes.data, 0, *w.shape, None)
        self._ggml.backend_tensor_set(weights, codes.ctypes.data, 0, codes.nbytes)
