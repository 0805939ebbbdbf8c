"""Operations between layers on codes of a GPU: `soniq_kernels.ops` for DeviceActivations, with the same bits. docs/ops.md.

Elementwise: a tile of rows and channels becomes float32, is added to another, goes through the activation, and becomes codes
(epilogue.write_codes). Pooling: the largest byte of a window is that of the largest code, and levels are summed as integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from soniq_kernels import ops as cpu
from soniq_kernels.triton_kernels import move
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.epilogue import (
    ACTIVATIONS,
    CODE_RESIDUAL,
    FLOAT,
    FLOAT_RESIDUAL,
    Outputs,
    Results,
    Value,
    activate,
    activation_of,
    given,
    new_results,
    no_value,
    outputs_of,
    step_of,
    value,
    value_tables,
    values_of,
    write_codes,
)
from soniq_kernels.triton_kernels.launch import launch, require_usable

MOST_TILE = 2048


@triton.jit
def combine_kernel(
    a, a_stride, a_scale, a_rows_per_scale, a_steps, a_ints, b, b_stride, b_scale, b_rows_per_scale, b_steps, b_ints,
    rows, channels, first, outputs, y, quantizers, code_ints, codes, codes_stride, sums, lo, hi,
    A: tl.constexpr, B: tl.constexpr, ACTIVATION: tl.constexpr, KIND: tl.constexpr, TENSORS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """activation(a + b), or activation(a), into channels first.. of `outputs`."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_ok, n_ok = m < rows, n < channels
    ok = m_ok[:, None] & n_ok[None, :]
    here = m.to(tl.int64)[:, None] * channels + n[None, :]
    if A == CODE_RESIDUAL:
        total = values_of(a, a_stride, a_scale, a_rows_per_scale, a_steps, a_ints, n, n_ok, m, m_ok, channels, 1)
    else:
        total = tl.load(a + here, mask=ok, other=0.0)
    if B == CODE_RESIDUAL:
        other = values_of(b, b_stride, b_scale, b_rows_per_scale, b_steps, b_ints, n, n_ok, m, m_ok, channels, 1)
        total = total + other
    if B == FLOAT_RESIDUAL:
        total = total + tl.load(b + here, mask=ok, other=0.0)
    total = activate(total, lo, hi, ACTIVATION)
    if KIND == FLOAT:
        tl.store(y + m.to(tl.int64)[:, None] * outputs + (first + n)[None, :], total, mask=ok)
    write_codes(total, first + n, n_ok, m, m_ok, outputs, quantizers, code_ints, codes, codes_stride, sums, TENSORS, 1)


@triton.jit
def under_window(m, tap, out_h, out_w, height, width, stride_h, stride_w, pad_top, pad_left, KW: tl.constexpr):
    """(pixel, whether it is inside) of a tap of each output position's window."""
    y = m // out_w % out_h * stride_h - pad_top + tap // KW
    x = m % out_w * stride_w - pad_left + tap % KW
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (m // (out_h * out_w) * height + y).to(tl.int64) * width + x, inside


@triton.jit
def max_pool_kernel(
    x, x_stride, rows, out_h, out_w, height, width, stride_h, stride_w, pad_top, pad_left, spans, data, row_bytes, sums, parts,
    LEAST: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The largest byte of each window, byte by byte of a part of the row, and the part's sums if bytes are signed."""
    part = tl.program_id(1)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    m_ok = m < rows
    start = tl.load(spans + 2 * part)
    span = tl.load(spans + 2 * part + 1)
    if LEAST < 0:  # parts of rows that are padded
        start, span = tl.multiple_of(start, 16), tl.multiple_of(span, 16)
    total = tl.zeros((BM,), tl.int32)
    for first in range(0, span, BK):
        at = first + tl.arange(0, BK)
        ok = m_ok[:, None] & (at < span)[None, :]
        most = tl.full((BM, BK), LEAST, tl.int32)
        for tap in range(KH * KW):
            pixel, inside = under_window(m, tap, out_h, out_w, height, width, stride_h, stride_w, pad_top, pad_left, KW)
            byte = tl.load(
                x + pixel[:, None] * x_stride + (start + at)[None, :], mask=ok & inside[:, None], other=LEAST
            )
            most = tl.maximum(most, byte.to(tl.int32))
        to = data + m.to(tl.int64)[:, None] * row_bytes + (start + at)[None, :]
        tl.store(to, most.to(data.dtype.element_ty), mask=ok)
        total += tl.sum(tl.where(ok, most, 0), axis=1)
    if LEAST < 0:
        tl.store(sums + m * parts + part, total, mask=m_ok)


@triton.jit
def avg_pool_kernel(
    x, x_stride, scale, rows_per_scale, steps, ints, channels, rows, out_h, out_w, height, width, stride_h, stride_w,
    inverse, y, quantizers, code_ints, codes, codes_stride, sums,
    KH: tl.constexpr, KW: tl.constexpr, KIND: tl.constexpr, TENSORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """float32(sum of levels) * (scale * 2^e) * inverse."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_ok, n_ok = m < rows, n < channels
    ok = m_ok[:, None] & n_ok[None, :]
    position = tl.load(ints + n, mask=n_ok, other=0)
    total = tl.zeros((BM, BN), tl.int32)
    for tap in range(KH * KW):
        pixel, _ = under_window(m, tap, out_h, out_w, height, width, stride_h, stride_w, 0, 0, KW)
        total += tl.load(x + pixel[:, None] * x_stride + position[None, :], mask=ok, other=0).to(tl.int32)
    alpha = tl.load(ints + channels + n, mask=n_ok, other=0)
    beta = tl.load(ints + 2 * channels + n, mask=n_ok, other=0)
    levels = alpha[None, :] * total + (KH * KW) * beta[None, :]
    value = levels.to(tl.float32) * step_of(scale, rows_per_scale, steps, n, n_ok, m, m_ok, 1)
    value = value * inverse
    if KIND == FLOAT:
        tl.store(y + m.to(tl.int64)[:, None] * channels + n[None, :], value, mask=ok)
    write_codes(value, n, n_ok, m, m_ok, channels, quantizers, code_ints, codes, codes_stride, sums, TENSORS, 1)


# ---- values ------------------------------------------------------------------------------------------------------------
def add(a: Any, b: Any, activation: Any = None, out: Outputs = None, groups: int = 1) -> Any:
    """activation(a + b), as `soniq_kernels.ops.add`; a, b: DeviceActivations, or one of them a float32 tensor.

    groups: 1; or 0 for codes in stored order, without sums (layout.py).
    """
    if not isinstance(a, DeviceActivations):
        a, b = b, a
    if not isinstance(a, DeviceActivations):
        raise TypeError(
            "a and b are both no DeviceActivations; add float32 tensors with torch, or quantize one of them"
        )
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"a has shape {a.shape} and b has shape {tuple(b.shape)}; add wants the same shape")
    return _combined(a, b, activation, out, groups)


def requantize(x: Any, out: Outputs, activation: Any = None, groups: int = 1) -> Any:
    """activation(x) in the codes of other plans and scales, or as float32; x: DeviceActivations or a float32 tensor."""
    return _combined(x, None, activation, out, groups)


def dequantize(x: DeviceActivations) -> torch.Tensor:
    """float32(level) * (scale * 2^e), in the original order of the channels."""
    return _combined(x, None, None, None, 1)


def concat(xs: Sequence[DeviceActivations], out: Outputs, groups: int = 1) -> Any:
    """Tensors side by side along the channels, in the codes that `out` names; the same plan and scale give the same codes."""
    if not xs or any(tuple(x.shape[:-1]) != tuple(xs[0].shape[:-1]) for x in xs):
        raise ValueError(f"xs have the shapes {[tuple(x.shape) for x in xs]}; they may differ in their channels only")
    shape = (*xs[0].shape[:-1], sum(x.shape[-1] for x in xs))
    results, first = new_results(outputs_of(out, shape[-1]), shape, xs[0].device, groups), 0
    for x in xs:
        _combine(x, None, None, results, first, shape[-1])
        first += x.shape[-1]
    return given(out, results)


def _combined(a: Any, b: Any, activation: Any, out: Outputs, groups: int) -> Any:
    require_usable(a.device)
    results = new_results(outputs_of(out, a.shape[-1]), tuple(a.shape), a.device, groups)
    _combine(a, b, activation, results, 0, a.shape[-1])
    return given(out, results)


def _combine(a: Any, b: Any, activation: Any, results: Results, first: int, outputs: int) -> None:
    name, (lo, hi) = activation_of(activation)
    x, other = value(a, "a"), no_value(results.codes) if b is None else value(b, "b")
    rows, channels = math.prod(a.shape[:-1]), a.shape[-1]
    bm, bn = _tile(rows, channels)
    launch(
        combine_kernel, (-(-rows // bm), -(-channels // bn)),
        (*_read(x), *_read(other), rows, channels, first, outputs, *results[:6], lo, hi),
        dict(A=x.kind, B=other.kind, ACTIVATION=ACTIVATIONS[name], KIND=results.kind, TENSORS=results.count, BM=bm, BN=bn),
        num_warps=4,
    )  # fmt: skip


def _read(x: Value) -> tuple[Any, ...]:
    return x.tensor, x.stride, x.scale, x.rows_per_scale, x.steps, x.ints


def _tile(rows: int, channels: int) -> tuple[int, int]:
    """(rows, channels) of a program."""
    bn = min(256, max(16, triton.next_power_of_2(channels)))
    return max(1, min(MOST_TILE // bn, triton.next_power_of_2(max(1, rows)))), bn


# ---- pooling -------------------------------------------------------------------------------------------------------------
def max_pool2d(x: DeviceActivations, kernel: Any, stride: Any = None, padding: Any = 0) -> DeviceActivations:
    """The largest code of each window, NHWC; the plan and the scale stay. Arguments as `soniq_kernels.ops.max_pool2d`."""
    task, shape = cpu.pool_task_of(_image(x), kernel, stride, padding)
    layout, g, rows = x.layout, task.geometry, math.prod(shape[:-1])
    data = torch.empty((rows, layout.row_bytes), dtype=x.data.dtype, device=x.device)
    spans = move.spans(x.plan, x.groups, x.device)
    sums = torch.empty((rows, len(spans) if x.groups else 0), dtype=torch.int32, device=x.device)
    bm, bk = _tile(rows, max(layout.padded))
    launch(
        max_pool_kernel, (-(-rows // bm), len(spans)),
        (x.data, x.data.stride(0), rows, g.out_h, g.out_w, *x.shape[1:3], g.stride_h, g.stride_w, g.pad_top, g.pad_left,
         spans, data, layout.row_bytes, sums, len(spans)),
        dict(LEAST=-128 if x.groups else 0, KH=task.kernel_h, KW=task.kernel_w, BM=bm, BK=bk), num_warps=4,
    )  # fmt: skip
    return DeviceActivations(data, sums, shape, x.plan, x.scale, x.groups)


def avg_pool2d(x: DeviceActivations, kernel: Any, stride: Any = None, out: Outputs = None, groups: int = 1) -> Any:
    """float32(sum of levels) * (scale * 2^e), then * float32(1 / count), of each window, NHWC, without padding."""
    task, shape = cpu.pool_task_of(_image(x), kernel, stride, 0)
    cpu.require_sums_fit(x.plan, task)
    results = new_results(outputs_of(out, shape[-1]), shape, x.device, groups)
    steps, ints = value_tables(x.plan, x.groups, x.device)
    g, rows, channels = task.geometry, math.prod(shape[:-1]), shape[-1]
    each = max(1, rows // max(1, x.scale.numel()))
    bm, bn = _tile(rows, channels)
    launch(
        avg_pool_kernel, (-(-rows // bm), -(-channels // bn)),
        (x.data, x.data.stride(0), x.scale, each, steps, ints, channels, rows, g.out_h, g.out_w, *x.shape[1:3], g.stride_h,
         g.stride_w, float(np.float32(1) / np.float32(task.kernel_h * task.kernel_w)), *results[:6]),
        dict(KH=task.kernel_h, KW=task.kernel_w, KIND=results.kind, TENSORS=results.count, BM=bm, BN=bn), num_warps=4,
    )  # fmt: skip
    return given(out, results)


def global_avg_pool(x: DeviceActivations, out: Outputs = None, groups: int = 1) -> Any:
    """`avg_pool2d` over the whole image: [batch, 1, 1, channels]."""
    return avg_pool2d(x, _image(x)[1:3], out=out, groups=groups)


def flatten(x: DeviceActivations) -> DeviceActivations:
    """NHWC to rows [batch, height * width * channels], in this order; a scale an image becomes one a row."""
    batch, height, width, channels = _image(x)
    groups, flat = x.groups, cpu.flattened(x.plan, height * width)
    data, sums = move.flattened(x.data, batch, x.plan, groups, flat)
    return DeviceActivations(data, sums, (batch, height * width * channels), flat, x.scale, groups)


def _image(x: DeviceActivations) -> tuple[int, ...]:
    if not isinstance(x, DeviceActivations):
        raise TypeError(f"x is a {type(x).__name__}, expected DeviceActivations; make them with quantize_activations")
    require_usable(x.device)
    if len(x.shape) != 4:
        raise ValueError(f"x has shape {x.shape}, expected NHWC [batch, height, width, channels]")
    return x.shape
