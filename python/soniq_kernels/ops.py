"""Operations between layers on tensors of codes: add, pooling, flatten, concat, requantize. docs/ops.md.

y = ops.add(a, b, activation="relu", out=(plan, scale))     # a, b: Activations, or one of them float32
p = ops.max_pool2d(y, 3, stride=2, padding=1)               # exact: codes of one channel order as their values do

`out` is None for float32, (plan, scale) for codes, or a list of them, all written in one pass; a list gives a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays
from soniq_kernels.activations import Activations, quantize_activations
from soniq_kernels.conv import _four, _two
from soniq_kernels.tensors import plan_of_tensor

__all__ = [
    "add",
    "avg_pool2d",
    "concat",
    "dequantize",
    "flatten",
    "global_avg_pool",
    "max_pool2d",
    "quantize",
    "requantize",
]

quantize = quantize_activations


def dequantize(x: Activations) -> NDArray[np.float32]:
    """float32(level) * (scale * 2**e), in the original order of the channels."""
    return np.ascontiguousarray(x.dequantize())


def add(a: Any, b: Any, activation: Any = None, out: Any = None) -> Any:
    """activation(a + b), each operand rounded to float32 once, then their sum.

    Args:
        a, b: Activations of the same shape and any plans; one of them may be float32, channels last.
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        out: None for float32, (plan, scale) for Activations, or a list of these.
    """
    return _written(_activate(_values(a) + _values(b), activation), out)


def max_pool2d(x: Activations, kernel: Any, stride: Any = None, padding: Any = 0) -> Activations:
    """The largest code of each window, NHWC; padding never wins. The plan and the scale stay.

    Args:
        kernel, stride: int or (height, width); stride None is the kernel.
        padding: int, (height, width) or (top, bottom, left, right), each less than the kernel: no window is empty.
    """
    kh, kw = _two(kernel, "kernel", 1)
    sh, sw = (kh, kw) if stride is None else _two(stride, "stride", 1)
    top, bottom, left, right = _four(padding)
    padded = np.pad(x.stored, ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (1, 2))[:, ::sh, ::sw]
    return Activations(np.ascontiguousarray(windows.max((-1, -2))), x.plan, x.scale)


def avg_pool2d(x: Activations, kernel: Any, stride: Any = None, out: Any = None) -> Any:
    """float32(sum of levels) * (scale * 2**e) * float32(1 / count) of each window, NHWC, without padding."""
    kh, kw = _two(kernel, "kernel", 1)
    sh, sw = (kh, kw) if stride is None else _two(stride, "stride", 1)
    index, grids = x.plan.segment_of(), [s.a for s in x.plan.segments]
    levels = np.stack([g.levels(x.codes()) for g in grids])[index, ..., np.arange(index.size)]
    levels = np.moveaxis(levels, 0, -1)
    sums = np.lib.stride_tricks.sliding_window_view(levels, (kh, kw), (1, 2))[:, ::sh, ::sw].sum((-1, -2))
    steps = np.array([2.0**g.exponent for g in grids], np.float32)[index]
    scale = x.scale.reshape(x.scale.shape + (1,) * (4 - x.scale.ndim))
    return _written(sums.astype(np.float32) * (scale * steps) * (np.float32(1) / np.float32(kh * kw)), out)


def global_avg_pool(x: Activations, out: Any = None) -> Any:
    """`avg_pool2d` over the whole image: [batch, 1, 1, channels]."""
    return avg_pool2d(x, x.shape[1:3], out=out)


def flatten(x: Activations) -> Activations:
    """NHWC to rows [batch, height * width * channels], in this order: column (h * width + w) * channels + c.

    torch.nn.Flatten of NCHW counts (c * height + h) * width + w: a linear layer behind it has its columns permuted by
    weight.reshape(N, C, H, W).transpose(0, 2, 3, 1).reshape(N, -1).
    """
    batch, height, width, channels = x.shape
    plan = plan_of_tensor(np.tile(x.plan.segment_of(), height * width), [s.a for s in x.plan.segments])
    stored = x.stored.reshape(batch, height * width, channels)
    parts = np.split(stored, x.plan.first_channels[1:], axis=-1)
    return Activations(np.concatenate([p.reshape(batch, -1) for p in parts], -1), plan, x.scale)


def concat(xs: Sequence[Activations], out: Any = None) -> Any:
    """Tensors side by side along the channels.

    Args:
        out: None where all have one scale and at most two grids together: the codes stay. (plan, scale): requantized.
    """
    if out is not None:
        return _written(np.concatenate([_values(x) for x in xs], -1), out)
    grids = list(dict.fromkeys(s.a for x in xs for s in x.plan.segments))
    index = np.concatenate([[grids.index(x.plan.segments[i].a) for i in x.plan.segment_of()] for x in xs])
    return Activations.from_codes(
        np.concatenate([x.codes() for x in xs], -1), plan_of_tensor(index, grids), xs[0].scale
    )


def requantize(x: Any, out: Any, activation: Any = None) -> Any:
    """activation(x) in the codes of another plan and scale; x: Activations, or float32."""
    return _written(_activate(_values(x), activation), out)


def _values(x: Any) -> NDArray[np.float32]:
    return x.dequantize() if isinstance(x, Activations) else _arrays.floats(x, "x")


def _activate(y: NDArray[np.float32], activation: Any) -> NDArray[np.float32]:
    if activation is None:
        return y
    zero = np.float32(0)
    if activation in ("relu", "relu6"):
        y = np.where(y > 0, y, zero)
        return y if activation == "relu" else np.where(y < 6, y, np.float32(6))
    low, high = (np.float32(v) for v in activation[1:])
    return np.where(y > low, np.where(y < high, y, high), low)


def _written(y: NDArray[np.float32], out: Any) -> Any:
    if isinstance(out, list):
        return [_written(y, one) for one in out]
    return np.ascontiguousarray(y) if out is None else quantize_activations(y, out[0], out[1])
