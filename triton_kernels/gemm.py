"""Matrix products of codes on a GPU, and linear layers on them: `soniq_kernels.gemm` for CUDA tensors."""

from __future__ import annotations

import math
from typing import Any

import torch

from soniq_kernels.activations import PER_ROW
from soniq_kernels.triton_kernels import epilogue, one_bit, tensor_core, vector
from soniq_kernels.triton_kernels.choice import B1, TENSOR_CORE, VECTOR, Choice, choose
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.launch import require_usable
from soniq_kernels.triton_kernels.quantize import floats, operand, require_same_plan


def matmul(x: Any, weights: DeviceWeights) -> torch.Tensor:
    """The integer result, exact, int32 [..., N] in units of 2**weights.exponent. `x` as in `linear`."""
    codes, choice = _operand(x, weights)
    done = epilogue.integers(weights, (*codes.shape[:-1], weights.out_channels))
    run(codes, weights, done, choice)
    return done.result


def linear(
    x: Any, weights: DeviceWeights, residual: Any = None, activation: Any = None, out: epilogue.Outputs = None, groups: int = 1
) -> Any:  # fmt: skip
    """A linear layer with its epilogue, as `soniq_kernels.gemm.linear` and with the same bits; nothing is checked for being finite.

    Args:
        x: DeviceActivations [..., K]; or float32, float16 or bfloat16 [..., K], quantized with the weights' activation_scale.
        residual: float32 tensor or DeviceActivations [..., N].
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        out: None for float32 [..., N], (plan, scale) of the next layer for DeviceActivations, or a list of these, written in one pass.
        groups: 1; or 0 for codes in stored order, without sums (layout.py).
    """
    codes, choice = _operand(x, weights)
    shape = (*codes.shape[:-1], weights.out_channels)
    done = epilogue.steps(weights, codes, shape, residual, activation, out, groups)
    run(codes, weights, done, choice)
    return done.result


def run(x: Any, weights: DeviceWeights, done: epilogue.Epilogue, choice: Choice) -> None:
    """One product with its epilogue, by the given choice. x: DeviceActivations, or one_bit.BitPlanes where the path is "b1"."""
    PATHS[choice.path](x, weights, done, choice)


PATHS = {VECTOR: vector.gemv, TENSOR_CORE: tensor_core.gemm, B1: one_bit.gemm}


def explain(x: Any, weights: DeviceWeights) -> Choice:
    """Which kernel serves this product or convolution, in which tiles, and why; of `x` only the shape counts."""
    rows = math.prod(x.shape[:-1])
    return choose(weights, rows)


def _operand(x: Any, weights: DeviceWeights) -> tuple[Any, Choice]:
    """`x` as the path that `weights` take can read it, and that path."""
    if not isinstance(weights, DeviceWeights):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected DeviceWeights; make it with to_device(packed)"
        )
    if len(weights.shape) != 2:
        raise ValueError(f"weights have shape {weights.shape}, a convolution; use conv2d, or pack [N, K] weights")
    require_usable(weights.device)
    choice = choose(weights, math.prod(x.shape[:-1]))
    if choice.path != B1:
        return operand(x, weights), choice
    if isinstance(x, DeviceActivations):
        require_same_plan(x, weights)
        return x, choice
    if len(x.shape) == 4 and weights.activation_scale == PER_ROW:  # one scale an image
        return operand(x, weights), choice
    return one_bit.quantized(floats(x, weights), weights, choice), choice
