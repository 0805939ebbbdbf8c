"""The CUDA sources on a CPU: compiled as C++ with the emulator, loaded, and given a Device of NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
KERNELS = REPOSITORY / "triton_kernels"
CACHE = REPOSITORY / ".cache" / "cuda"
# Every step rounds by itself, and fibers jump between stacks, which a fortified longjmp takes for an attack.
FLAGS = "-std=c++17 -O1 -shared -fPIC -ffp-contract=off -U_FORTIFY_SOURCE -w"


def load(name: str) -> ModuleType:
    """A file of triton_kernels by itself: the package needs torch and triton, what is tested here needs neither."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, KERNELS / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return os.environ.get("CXX") or shutil.which("g++")


def make_room(pattern: str) -> None:
    """The cache without what earlier versions of a source left there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(pattern):
        old.unlink(missing_ok=True)


def sources() -> list[Path]:
    """Everything that the emulated library is compiled from."""
    return sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh"), *HERE.glob("*.h"), *HERE.glob("*.cpp")])


def library(kernels: Path = KERNELS) -> ctypes.CDLL:
    """The kernels of a folder, compiled for this CPU; ours are kept in .cache/cuda until a source changes. Skips without g++."""
    if compiler() is None:
        import pytest

        pytest.skip("not installed: g++; sudo apt install g++")
    texts = [path.read_bytes() for path in [*sources(), *sorted(kernels.glob("*.cu*"))]]
    folder = CACHE if kernels == KERNELS else kernels
    path = folder / f"emulated-{hashlib.sha256(b''.join(texts) + FLAGS.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        if folder == CACHE:
            make_room("emulated-*")
        unfinished = path.with_suffix(f".{os.getpid()}")
        include = ["-DSONIQ_EMULATOR", "-I", str(HERE), "-I", str(kernels)]
        command = [str(compiler()), *FLAGS.split(), *include, str(HERE / "emulator.cpp"), "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
        unfinished.rename(path)
    found = ctypes.CDLL(str(path))
    found.soniq_launch.restype = ctypes.c_char_p
    found.soniq_bytes_of_product.restype = found.soniq_bytes_of_planes_call.restype = ctypes.c_uint64
    return found


class Buffer(ctypes.Structure):
    """Memory that a kernel may touch."""

    _fields_ = (("begin", ctypes.c_void_p), ("bytes", ctypes.c_uint64))


class EmulatedError(AssertionError):
    """What the emulator found: a deadlock, an access outside of a buffer."""


class EmulatedDevice:
    """A Device (triton_kernels/b1.py) whose memory is NumPy's. New memory is poisoned; `order` is the emulator's."""

    def __init__(self, library: ctypes.CDLL, order: int = 0, processors: int = 4) -> None:
        self.library, self.order, self.processors = library, order, processors
        self.launched: list[str] = []
        self._arrays: list[np.ndarray] = []

    def _own(self, array: np.ndarray) -> np.ndarray:
        self._arrays.append(array)
        return array

    def put(self, array: np.ndarray) -> np.ndarray:
        return self._own(np.array(array, order="C"))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any = None) -> np.ndarray:
        array = np.empty(shape, dtype)
        array.view(np.uint8).reshape(-1)[:] = 0xA5
        return self._own(array)

    def zeros(self, words: int, like: Any = None) -> np.ndarray:
        return self._own(np.zeros(words, np.int32))

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def order_of_launches(self) -> int:
        return 0

    def describe(self, array: np.ndarray) -> tuple[int, tuple[int, ...], str]:
        assert array.flags.c_contiguous
        return array.ctypes.data, array.shape, array.dtype.name

    def borrowed(self, kernel: str, arguments: Any) -> list[tuple[int, int]]:
        """Memory of others that a launch adds to, (address, bytes)."""
        return []

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, shared: int, arguments: Any) -> None:
        self.launched.append(kernel)
        spans = [(a.ctypes.data, a.nbytes) for a in self._arrays] + self.borrowed(kernel, arguments)
        buffers = (Buffer * len(spans))(*(Buffer(*span) for span in spans))
        message = self.library.soniq_launch(
            kernel.encode(), (ctypes.c_uint32 * 3)(*grid), ctypes.c_uint32(threads), ctypes.c_uint64(shared),
            ctypes.c_void_p(ctypes.addressof(arguments)), buffers, ctypes.c_uint32(len(buffers)), ctypes.c_uint32(self.order),
        )  # fmt: skip
        if message:
            raise EmulatedError(f"{kernel} over {grid}: {message.decode()}")


def tensor_device(order: int = 0, processors: int = 4) -> Any:
    """An EmulatedDevice that also reads and makes torch tensors of the CPU."""
    import torch

    class OnTensors(EmulatedDevice):
        def borrowed(self, kernel: str, arguments: Any) -> list[tuple[int, int]]:
            """The sums of codes that are written."""
            if kernel == "write_planes":
                return []
            out = np.frombuffer(arguments, load("b1").PRODUCT)[0]["out"]
            return [(int(out["sums"]), 4 * int(out["rows"]) * int(out["sums_stride"]))]

        def _tensor(self, array: np.ndarray, like: Any) -> Any:
            return torch.from_numpy(array) if isinstance(like, torch.Tensor) else array

        def empty(self, shape: tuple[int, ...], dtype: str, like: Any = None) -> Any:
            return self._tensor(super().empty(shape, dtype), like)

        def zeros(self, words: int, like: Any = None) -> Any:
            return self._tensor(super().zeros(words), like)

        def address(self, array: Any) -> int:
            return array.data_ptr() if isinstance(array, torch.Tensor) else super().address(array)

        def describe(self, array: Any) -> tuple[int, tuple[int, ...], str]:
            if not isinstance(array, torch.Tensor):
                return super().describe(array)
            return array.data_ptr(), tuple(array.shape), str(array.dtype).removeprefix("torch.")

    return OnTensors(library(), order, processors)
