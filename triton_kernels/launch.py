"""Starting a kernel: where it may run, and what is the same for every kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import InterpretedFunction

OPTIONS = {"enable_fp_fusion": False}
# Machine code by what Triton compiles it for, and before that by what a call is made of, numbers as they are: Triton's own
# look-up binds every argument anew, and even the kinds of forty arguments cost more Python than the rest of a launch.
_compiled: dict[tuple[Any, ...], Any] = {}
_known: dict[tuple[Any, ...], Any] = {}
MOST_KNOWN = 10_000


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], **options: int
) -> None:
    """Runs `kernel` over `grid`; `constants` are its compile-time arguments, `options` num_warps and num_stages.

    `arguments` are all that come before the compile-time ones, in order; the first is a tensor on the device that runs it.
    """
    if 0 in grid:
        return
    if isinstance(kernel, InterpretedFunction):
        with np.errstate(all="ignore"):  # the interpreter computes with NumPy
            kernel[grid](*arguments, **constants, ASM=False)
        return
    index = arguments[0].get_device()
    if index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return launch(kernel, grid, arguments, constants, **options)
    key = (
        id(kernel), index, *constants.values(), *options.values(),
        *[a if a.__class__ is int else float if a.__class__ is float else (a.dtype, a.data_ptr() & 15) for a in arguments],
    )  # fmt: skip
    code = _known.get(key) or _look_up(key, kernel, arguments, constants, options)
    code[(*grid, 1, 1)[:3]](*arguments, *constants.values(), True)


def _look_up(
    key: tuple[Any, ...], kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], options: dict[str, int]
) -> Any:
    kinds = (id(kernel), key[1], *constants.values(), *options.values(), *map(_kind, arguments))
    if kinds not in _compiled:
        _compiled[kinds] = compiled(kernel, arguments, constants, **options)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[key] = _compiled[kinds]
    return _compiled[kinds]


def compiled(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], **options: int) -> Any:
    """The machine code for these arguments, for the GPU of Triton's active driver; nothing is run."""
    return kernel.warmup(*arguments, grid=(1,), **constants, ASM=True, **OPTIONS, **options)


def _kind(argument: Any) -> Any:
    """What of a run-time argument the machine code depends on: types, being 1, divisibility and alignment by 16."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
    return float


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set when these kernels were imported: they then run on the CPU, slowly, to be tested."""
    from soniq_kernels.triton_kernels.tensor_core import gemm_kernel

    return isinstance(gemm_kernel, InterpretedFunction)


@lru_cache(maxsize=64)
def require_usable(device: torch.device) -> None:
    """Raises an error that says what these kernels need, unless they can run on `device`."""
    if interpreted():
        return
    if device.type != "cuda":
        raise ValueError(
            f"the operands are on {device}, these kernels run on NVIDIA GPUs; use soniq_kernels.gemm and soniq_kernels.conv on the CPU"
        )
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise RuntimeError(
            f"{name} is not supported: these kernels need an NVIDIA GPU of compute capability 8.0 or higher"
        )
