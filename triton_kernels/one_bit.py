"""The one-bit tensor-core kernels (b1.py) behind the same calls as the others: operands and epilogues of this package to theirs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from soniq_kernels.activations import PER_ROW
from soniq_kernels.triton_kernels import b1, cuda
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, one_scale
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.epilogue import ACC, ACTIVATIONS, CODE_RESIDUAL, FLOAT, FLOAT_RESIDUAL, Epilogue
from soniq_kernels.triton_kernels.layout import zero_point

SOURCES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
GEMM_TILE = b1.GEMM_OUTPUTS


class BitPlanes(NamedTuple):
    """Activations as bit planes, in the place of DeviceActivations."""

    planes: b1.Planes
    shape: tuple[int, ...]
    scale: torch.Tensor
    like: torch.Tensor

    @property
    def rows(self) -> int:
        return self.planes.rows


@lru_cache(maxsize=16)
def device_of(device: torch.device) -> b1.Device:
    """The kernels' own view of a GPU. ImportError without CuPy, RuntimeError on a GPU that emulates one-bit products."""
    if device.type != "cuda":
        raise ValueError(f"the operands are on {device}, one-bit kernels run on NVIDIA GPUs")
    return cuda.TorchDevice(device.index)


@lru_cache(maxsize=16)
def unusable(device: torch.device) -> str | None:
    """Why these kernels do not run on this device; None if they do."""
    try:
        if device.type == "cuda":
            reason = cuda.refusal(torch.cuda.get_device_capability(device))
            if reason:
                return reason
        device_of(device)
    except (ImportError, RuntimeError, ValueError) as reason:
        return str(reason)
    return None


def refusal(weights: DeviceWeights) -> str | None:
    """Why a layer cannot take them."""
    if len(weights.shape) != 2:
        return "one-bit kernels multiply linear layers only"
    return unusable(weights.device)


def layer_of(weights: DeviceWeights) -> b1.Linear:
    """The layer with its own panels, built at its first use."""
    if "one bit" not in weights.cache:
        weights.cache["one bit"] = b1.Linear(weights.packed, device_of(weights.device))
    return weights.cache["one bit"]


def launch_of(weights: DeviceWeights, rows: int, choice: Any = None) -> b1.Launch:
    """The launch of a choice, or that of the rule."""
    layer = layer_of(weights)
    if choice is None:
        return layer.launch_for(rows)
    return layer.launch_for(rows, "gemm" if choice.bn == GEMM_TILE else "gemv", choice.splits)


# ---- activations -----------------------------------------------------------------------------------------------------------
def quantized(x: torch.Tensor, weights: DeviceWeights, choice: Any) -> BitPlanes:
    """Floats [..., K] to bit planes in one pass, with the weights' activation_scale."""
    layer, rows, plan = layer_of(weights), math.prod(x.shape[:-1]), weights.plan
    x = x.contiguous()
    per_row = weights.activation_scale == PER_ROW
    if per_row:
        scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    else:
        scale = one_scale(float(weights.activation_scale), x.device)
    lie = b1.Rows(
        b1.SOURCES[SOURCES[x.dtype]], plan.channels, tuple(plan.first_channels), (0,) * len(plan.segments), True
    )
    planes = layer.planes(
        x.data_ptr(), lie, rows, x, scale, per_row, 1 if per_row else max(1, rows), launch_of(weights, rows, choice)
    )
    return BitPlanes(planes, tuple(x.shape), scale, x)


def planes_of(x: DeviceActivations, weights: DeviceWeights, choice: Any) -> BitPlanes:
    """Rows of bytes to bit planes."""
    layout, layer = x.layout, layer_of(weights)
    flips = tuple(zero_point(s.a) if x.groups else 0 for s in x.plan.segments)
    lie = b1.Rows(b1.SOURCES["uint8"], x.data.stride(0), layout.first, flips, False)
    planes = layer.planes(
        x.data.data_ptr(), lie, x.rows, x.data, x.scale, False, x.rows_per_scale, launch_of(weights, x.rows, choice)
    )
    return BitPlanes(planes, x.shape, x.scale, x.data)


# ---- products --------------------------------------------------------------------------------------------------------------
def gemm(x: DeviceActivations | BitPlanes, weights: DeviceWeights, done: Epilogue, choice: Any) -> None:
    """One product with its epilogue."""
    if isinstance(x, DeviceActivations):
        x = planes_of(x, weights, choice)
    layer_of(weights).run(x.planes, _output(weights, done), x.like)


def _output(weights: DeviceWeights, done: Epilogue) -> Any:
    """The epilogue as the CUDA sources take it."""
    a, c = done.arguments, done.constants
    if c["KIND"] == ACC.value:
        return b1.Output(acc=a.out.data_ptr())
    steps = dict(
        activation_scale=a.a_scale.data_ptr(), rows_per_scale=a.rows_per_scale, vectors=a.vectors.data_ptr(),
        has=1 | c["BIAS"] << 1 | c["POST_SCALE"] << 2 | c["POST_BIAS"] << 3, unit=a.unit, activation=c["ACTIVATION"],
        low=a.lo, high=a.hi,
    )  # fmt: skip
    if c["KIND"] == FLOAT.value:
        steps["y"] = a.out.data_ptr()
    if c["TENSORS"]:
        steps |= _codes(a, c["TENSORS"])
    if c["RESIDUAL"] == FLOAT_RESIDUAL.value:
        steps["residual"] = a.residual.data_ptr()
    if c["RESIDUAL"] == CODE_RESIDUAL.value:
        steps |= _residual_codes(a)
    return b1.Output(**steps)


def _codes(a: Any, tensors: int) -> dict[str, int]:
    return dict(
        codes=a.codes.data_ptr(), codes_stride=a.codes_stride, tensors=len(str(tensors)), quantizers=a.quantizers.data_ptr(),
        code_ints=a.code_ints.data_ptr(), sums=a.code_sums.data_ptr() if a.code_sums.shape[1] else 0,
        sums_stride=a.code_sums.shape[1],
    )  # fmt: skip


def _residual_codes(a: Any) -> dict[str, int]:
    return dict(
        residual_codes=a.residual.data_ptr(), residual_signed=int(a.residual.dtype == torch.int8),
        residual_stride=a.residual_stride, residual_scale=a.residual_scale.data_ptr(),
        rows_per_residual_scale=a.rows_per_residual_scale, residual_steps=a.residual_steps.data_ptr(),
        residual_ints=a.residual_ints.data_ptr(),
    )  # fmt: skip


assert ACTIVATIONS == b1.ACTIVATIONS
