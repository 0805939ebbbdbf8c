"""2-D convolutions of codes: NHWC activations, OHWI weights, padding that is exactly zero on every grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core
from soniq_kernels._layers import Call, Explanation, explain_rows, finish, operand, require_packed
from soniq_kernels.activations import Activations
from soniq_kernels.weights import PackedWeights

__all__ = ["conv2d", "conv2d_int32", "explain"]

_MOST = 2**20  # of any stride, padding or dilation: positions stay far inside int32


def conv2d(
    x: Any,
    packed: PackedWeights,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, int] = 1,
    residual: Any = None,
    activation: Any = None,
    out: Any = None,
    check_finite: bool = True,
) -> Any:
    """A convolution with its epilogue, as `gemm.linear`.

    Args:
        x: Activations NHWC, or float32 NHWC that `packed.activation_scale` quantizes.
        packed: weights of shape OHWI (O, kh, kw, I / groups), or (N, K), which is a 1x1 convolution.
        stride, dilation: int or (height, width).
        padding: int, (height, width) or (top, bottom, left, right).
        residual: float32 or Activations of the output's shape. activation, out, check_finite: as `gemm.linear`.

    Returns:
        float32 NHWC, Activations, or a list of them; the same bits on every tier and thread count.
    """
    call, geometry = _call(x, packed, stride, padding, dilation, check_finite)
    return finish(call, geometry, residual, activation, out, check_finite)


def conv2d_int32(
    x: Any,
    packed: PackedWeights,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, int] = 1,
) -> NDArray[np.int32]:
    """The integer result of a convolution, exact, int32 NHWC in units of 2**packed.exponent."""
    call, geometry = _call(x, packed, stride, padding, dilation, check_finite=True)
    acc = call.integers()
    call.run(geometry)
    return acc


def explain(
    x: Any,
    packed: PackedWeights,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, int] = 1,
) -> Explanation:
    """Which kernel serves this convolution, and why; `x` as in `conv2d`, of which only the shape counts."""
    require_packed(packed)
    x = _image(x)
    geometry = _geometry(x.shape, packed.kernel_size, stride, padding, dilation)
    return explain_rows(x, packed, geometry.batch * geometry.out_h * geometry.out_w, geometry)


def _call(
    x: Any, packed: PackedWeights, stride: Any, padding: Any, dilation: Any, check_finite: bool
) -> tuple[Call, _core.Geometry]:
    require_packed(packed)
    x = operand(_image(x), packed, check_finite)
    geometry = _geometry(x.shape, packed.kernel_size, stride, padding, dilation)
    return Call(x, packed, (x.shape[0], geometry.out_h, geometry.out_w, packed.out_channels)), geometry


def _image(x: Any) -> Any:
    if not isinstance(x, Activations):
        x = _arrays.as_numpy(x, "x")
    if len(x.shape) != 4:
        raise ValueError(f"x has shape {x.shape}, expected NHWC [batch, height, width, channels]")
    return x


def _geometry(
    shape: tuple[int, ...], kernel: tuple[int, int], stride: Any, padding: Any, dilation: Any
) -> _core.Geometry:
    g = _core.Geometry()
    g.batch, g.in_h, g.in_w, _ = shape
    g.stride_h, g.stride_w = _two(stride, "stride", 1)
    g.dilation_h, g.dilation_w = _two(dilation, "dilation", 1)
    top, bottom, left, right = _four(padding)
    g.pad_top, g.pad_left = top, left
    g.out_h = _positions(g.in_h + top + bottom, kernel[0], g.stride_h, g.dilation_h, "height")
    g.out_w = _positions(g.in_w + left + right, kernel[1], g.stride_w, g.dilation_w, "width")
    return g


def _positions(padded: int, taps: int, stride: int, dilation: int, axis: str) -> int:
    extent = dilation * (taps - 1) + 1
    if padded < extent:
        raise ValueError(
            f"the padded {axis} is {padded} but the dilated kernel needs {extent}; pad more or dilate less"
        )
    return (padded - extent) // stride + 1


def _two(value: Any, name: str, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} has {len(pair)} values, expected an int or (height, width)")
    return _arrays.integer(pair[0], name, least, _MOST), _arrays.integer(pair[1], name, least, _MOST)


def _four(padding: Any) -> tuple[int, int, int, int]:
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        top, bottom, left, right = (_arrays.integer(p, "padding", 0, _MOST) for p in padding)
        return top, bottom, left, right
    if isinstance(padding, (tuple, list)) and len(padding) != 2:
        raise ValueError(
            f"padding has {len(padding)} values, expected an int, (height, width) or (top, bottom, left, right)"
        )
    h, w = _two(padding, "padding", 0)
    return h, h, w, w
