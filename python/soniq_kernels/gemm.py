"""Matrix products of codes, and linear layers on them.

y = gemm.linear(x, packed)          # float32 in, quantized on the way, float32 out
acc = gemm.matmul(codes, packed)    # the exact integers
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _core
from soniq_kernels._layers import Call, Explanation, explain, finish, operand
from soniq_kernels.weights import PackedWeights

__all__ = ["Explanation", "explain", "linear", "matmul"]


def matmul(x: Any, packed: PackedWeights) -> NDArray[np.int32]:
    """The integer result, exact: sum over k of level_w[n, k] * level_a[m, k], in units of 2**packed.exponent.

    Args:
        x: Activations [..., K], or float32 that `packed.activation_scale` quantizes.
        packed: weights of shape (N, K).

    Returns:
        int32 [..., N].
    """
    call, geometry = _call(x, packed, check_finite=True)
    acc = call.integers()
    call.run(geometry)
    return acc


def linear(
    x: Any,
    packed: PackedWeights,
    residual: Any = None,
    activation: Any = None,
    out: Any = None,
    check_finite: bool = True,
) -> Any:
    """A linear layer with its epilogue: scales, bias, residual, activation, batch norm behind it, codes.

    Args:
        x: Activations [..., K], or float32 [..., K] that `packed.activation_scale` quantizes.
        residual: float32 [..., N], or Activations [..., N].
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        out: None for float32; (plan, scale) of the next layer for Activations of that plan; a list of up to two of
            these and of None, all written in one pass: the result is a list then.
        check_finite: raise for NaN and infinity in `x` and `residual`.

    Returns:
        float32 [..., N], Activations [..., N], or a list of them; the same bits on every tier and thread count.
    """
    call, geometry = _call(x, packed, check_finite)
    return finish(call, geometry, residual, activation, out, check_finite)


def _call(x: Any, packed: PackedWeights, check_finite: bool) -> tuple[Call, _core.Geometry]:
    x = operand(x, packed, check_finite)
    if len(packed.shape) != 2:
        raise ValueError(f"packed has shape {packed.shape}, a convolution; use conv.conv2d, or pack [N, K] weights")
    call = Call(x, packed, (*x.shape[:-1], packed.out_channels))
    geometry = _core.Geometry()
    geometry.batch = call.rows
    return call, geometry
