"""Matrix products of codes on a GPU, and linear layers on them: `soniq_kernels.gemm` for CUDA tensors."""

from __future__ import annotations

import math
from typing import Any

import torch

from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels import epilogue, tensor_core, vector
from soniq_kernels.triton_kernels.choice import VECTOR, Choice, choose
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.launch import require_usable
from soniq_kernels.triton_kernels.quantize import operand


def matmul(x: Any, weights: DeviceWeights) -> torch.Tensor:
    """The integer result, exact, int32 [..., N] in units of 2**weights.exponent. `x` as in `linear`."""
    codes = _operand(x, weights)
    done = epilogue.integers(weights, (*codes.shape[:-1], weights.out_channels))
    run(codes, weights, done)
    return done.result


def linear(
    x: Any,
    weights: DeviceWeights,
    residual: Any = None,
    activation: Any = None,
    out: tuple[Plan, float] | None = None,
) -> torch.Tensor | DeviceActivations:
    """A linear layer with its epilogue, as `soniq_kernels.gemm.linear` and with the same bits; nothing is checked for being finite.

    Args:
        x: DeviceActivations [..., K]; or float32, float16 or bfloat16 [..., K], quantized with the weights' activation_scale.
        residual: float32 tensor or DeviceActivations [..., N].
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        out: (plan, scale) of the next layer: the result is DeviceActivations of that plan.

    Returns:
        float32 [..., N], or DeviceActivations.
    """
    codes = _operand(x, weights)
    done = epilogue.steps(weights, codes, (*codes.shape[:-1], weights.out_channels), residual, activation, out)
    run(codes, weights, done)
    return done.result


def run(x: DeviceActivations, weights: DeviceWeights, done: epilogue.Epilogue, choice: Choice | None = None) -> None:
    """One product with its epilogue, by the given choice or the one that the layer gets."""
    choice = choice or choose(weights, x.rows)
    (vector.gemv if choice.path == VECTOR else tensor_core.gemm)(x, weights, done, choice)


def explain(x: Any, weights: DeviceWeights) -> Choice:
    """Which kernel serves this product or convolution, in which tiles, and why; of `x` only the shape counts."""
    rows = math.prod(x.shape[:-1])
    return choose(weights, rows)


def _operand(x: Any, weights: DeviceWeights) -> DeviceActivations:
    """`x` as `weights` can read it."""
    if not isinstance(weights, DeviceWeights):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected DeviceWeights; make it with to_device(packed)"
        )
    if len(weights.shape) != 2:
        raise ValueError(f"weights have shape {weights.shape}, a convolution; use conv2d, or pack [N, K] weights")
    require_usable(weights.device)
    return operand(x, weights)
