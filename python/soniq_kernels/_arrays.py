"""Arrays at the border: what callers hand over becomes a C-contiguous NumPy array of the right dtype, or a clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# DLPack device types whose memory the CPU reads: CPU, CUDA pinned host memory, ROCm pinned host memory.
_DLPACK_HOST = (1, 3, 11)
_FLOATS = (np.float16, np.float32, np.float64)


def as_numpy(x: Any, name: str) -> NDArray[Any]:
    """`x` as a NumPy array without a copy where its owner allows one.

    Raises:
        TypeError: `x` lives on a GPU, or is nothing that NumPy or DLPack can read.
    """
    if isinstance(x, np.ndarray):
        return x
    if _on_gpu(x):
        raise TypeError(
            f"{name} is a CUDA array or on another device, this is a CPU function; use soniq_kernels.triton_kernels, "
            f"or move {name} to the CPU first ({name}.cpu() in torch, cupy.asnumpy({name}) in CuPy)"
        )
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} requires a gradient, which these kernels do not compute; pass {name}.detach()")
    try:
        array = np.from_dlpack(x) if hasattr(x, "__dlpack__") else np.asarray(x)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(
            f"{name} is a {type(x).__name__} that neither np.from_dlpack nor np.asarray reads: {error}"
        ) from None
    if array.dtype == object:
        raise TypeError(f"{name} is a {type(x).__name__} of Python objects; pass a numeric array")
    return array


def _on_gpu(x: Any) -> bool:
    """Torch CPU tensors have `__cuda_array_interface__` too, as a property that raises: hasattr tells them apart."""
    if hasattr(x, "__cuda_array_interface__"):
        return True
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[0]) not in _DLPACK_HOST
    return False


def floats(x: Any, name: str) -> NDArray[np.float32]:
    """float32, C-contiguous. float16 widens exactly; float64 is refused, since rounding it is the caller's decision."""
    array = as_numpy(x, name)
    if array.dtype not in _FLOATS:
        raise TypeError(f"{name} has dtype {array.dtype}, expected float32; convert it with {name}.astype(np.float32)")
    if array.dtype == np.float64:
        raise TypeError(f"{name} has dtype float64, expected float32; round it with {name}.astype(np.float32)")
    return _contiguous(array, np.float32)


FEW_CHANNELS = 8


def fill(to: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """`to`, with these values. NumPy copies few channels that lie apart plane by plane in a quarter of the time."""
    if values.flags.c_contiguous or values.shape[-1] > FEW_CHANNELS:
        np.copyto(to, values)
    else:
        for channel in range(values.shape[-1]):
            to[..., channel] = values[..., channel]
    return to


def float_vector(x: Any, name: str, length: int) -> NDArray[np.float32]:
    """Finite float32 [length]; a scalar is repeated; float64 is rounded (scales and biases are parameters, not data)."""
    array = as_numpy(x, name)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected float32 [{length}]")
    with np.errstate(over="ignore"):  # an overflow shows as infinity below
        array = array.astype(np.float32)
    if array.ndim == 0:
        array = np.full(length, array, np.float32)
    if array.shape != (length,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({length},): one value per output channel")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has non-finite values; every value must be a finite float32")
    return _contiguous(array, np.float32)


def codes(x: Any, name: str) -> NDArray[np.uint8]:
    """uint8, C-contiguous; other integers are accepted where every value fits."""
    array = as_numpy(x, name)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected uint8 codes; quantize floats with packing.quantize_*"
        )
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(f"{name} has values in [{array.min()}, {array.max()}], codes are unsigned and at most 255")
    return _contiguous(array, np.uint8)


def _contiguous(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return np.require(array, dtype, ["C", "A"])


def integer(value: Any, name: str, low: int, high: int) -> int:
    """An int in [low, high]; bool and float are refused."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected an int in [{low}, {high}]")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low} to {high}")
    return int(value)
