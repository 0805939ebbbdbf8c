"""Convolutions as implicit matrix products: NHWC activations, OHWI weights, padding that is exactly zero.

    acc[n, pixel] = sum over taps t, channels c of w[n, t, c] * x[pixel of the input under tap t, c]

Slices of K run through the channels of one tap after those of the other, so a tile of activations is the same slice of BM
pixels, each at its own address; a tap outside of the image reads zeros. All taps of one segment come first, then those of the
other, in one accumulator (tensor_core.py).

A padded tap has value 0, not the value of code 0: it must be missing from K, from the weights' sums and from the activations'
sums. The last are added up tap by tap beside the products; the others depend on the position only, and positions with the
same taps inside the image share a row of a table: a class for each distinct set of rows times one for each set of columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from soniq_kernels.triton_kernels import epilogue
from soniq_kernels.triton_kernels.choice import Choice, choose
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.epilogue import Epilogue, finish
from soniq_kernels.triton_kernels.launch import launch, require_usable
from soniq_kernels.triton_kernels.panels import rows_of, slices_of
from soniq_kernels.triton_kernels.quantize import operand
from soniq_kernels.triton_kernels.tensor_core import segment_constants
from soniq_kernels.triton_kernels.unpack import codes_of, load_rows


@triton.jit
def under_tap(tap, y, x, image, height, width, dilation_h, dilation_w, KW: tl.constexpr):
    """(input pixel, whether it is inside) of each position's tap."""
    y += tap // KW * dilation_h
    x += tap % KW * dilation_w
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (image * height + y).to(tl.int64) * width + x, inside


@triton.jit
def add_taps(
    acc, w, data, y, x, image, m_ok, height, width, dilation_h, dilation_w, n, blocks, w_panel, x_stride, channels,
    BITS: tl.constexpr, L: tl.constexpr, PER_TAP: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, PN: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """acc += the products of all taps of one segment; w and data point at its panels and its first byte."""
    ROWS: tl.constexpr = rows_of(BITS)
    SLICES: tl.constexpr = slices_of(BITS)
    l = tl.arange(0, L)
    tile = w + (n // PN).to(tl.int64)[:, None] * w_panel + (n % PN)[:, None] * L + l[None, :]
    for block in range(blocks):
        rows = (0, 0, 0)
        for s in tl.static_range(SLICES):
            rows = load_rows(rows, tile + block * (ROWS * PN * L), PN * L, None, BITS, s)
            tap = (block * SLICES + s) // PER_TAP
            channel = (block * SLICES + s) % PER_TAP * L + l
            pixel, inside = under_tap(tap, y, x, image, height, width, dilation_h, dilation_w, KW)
            inside = (inside & m_ok)[None, :] & (channel < tl.where(tap < TAPS, channels, 0))[:, None]
            slice = tl.load(data + pixel[None, :] * x_stride + channel[:, None], mask=inside, other=0)
            acc = tl.dot(codes_of(rows, BITS, s, ASM), slice, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def conv2d_kernel(
    data, x_stride, x_sums, rows, w1, w2, terms, group_outputs, outputs,
    blocks1, blocks2, first1, first2, channels1, channels2, group_bytes,
    row_factor1, row_factor2, sum1, sum2, sums_stride,
    height, width, out_h, out_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, row_class, column_class,
    a_scale, rows_per_scale, unit, vectors,
    residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
    out, quantizers, code_ints, codes, codes_stride, code_sums, lo, hi,
    KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    POST_SCALE: tl.constexpr, POST_BIAS: tl.constexpr, TENSORS: tl.constexpr,
    BITS1: tl.constexpr, L1: tl.constexpr, BITS2: tl.constexpr, L2: tl.constexpr, BETWEEN: tl.constexpr, AFTER: tl.constexpr,
    PER_TAP1: tl.constexpr, PER_TAP2: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BORDERS: tl.constexpr,
    PN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(group_outputs, PN)
    tiles = tl.cdiv(group_outputs, BN)
    group = tl.program_id(0) // tiles
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    n_ok = n < group_outputs
    read = tl.minimum(n, n_blocks * PN - 1)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    m_ok = m < rows
    image = m // (out_h * out_w)
    row, column = m // out_w % out_h, m % out_w
    y, x = row * stride_h - pad_top, column * stride_w - pad_left
    data += group * group_bytes
    acc = tl.zeros((BN, BM), tl.int32)
    panel1 = blocks1 * (rows_of(BITS1) * PN * L1)
    acc = add_taps(
        acc, w1 + group.to(tl.int64) * n_blocks * panel1, data + first1, y, x, image, m_ok, height, width, dilation_h, dilation_w,
        read, blocks1, panel1, x_stride, channels1, BITS1, L1, PER_TAP1, KW, TAPS, PN, ASM,
    )  # fmt: skip
    if BITS2 != 0:
        panel2 = blocks2 * (rows_of(BITS2) * PN * L2)
        acc = add_taps(
            acc << BETWEEN, w2 + group.to(tl.int64) * n_blocks * panel2, data + first2, y, x, image, m_ok, height, width,
            dilation_h, dilation_w, read, blocks2, panel2, x_stride, channels2, BITS2, L2, PER_TAP2, KW, TAPS, PN, ASM,
        )  # fmt: skip
    row_terms = tl.zeros((BM,), tl.int32)
    x_sums += group * (2 if BITS2 != 0 else 1)
    for tap in range(TAPS):
        pixel, inside = under_tap(tap, y, x, image, height, width, dilation_h, dilation_w, KW)
        row_terms += row_factor1 * tl.load(x_sums + pixel * sums_stride + sum1, mask=inside & m_ok, other=0)
        if BITS2 != 0:
            row_terms += row_factor2 * tl.load(x_sums + pixel * sums_stride + sum2, mask=inside & m_ok, other=0)
    n += group * group_outputs
    acc = (acc << AFTER) + row_terms[None, :]
    if BORDERS:
        border = tl.load(row_class + row, mask=m_ok, other=0) + tl.load(column_class + column, mask=m_ok, other=0)
        acc += tl.load(terms + border[None, :] * outputs + n[:, None], mask=n_ok[:, None] & m_ok[None, :], other=0)
    else:
        acc += tl.load(terms + n, mask=n_ok, other=0)[:, None]
    finish(
        acc, n, n_ok, m, m_ok, outputs, a_scale, rows_per_scale, unit, vectors,
        residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
        out, quantizers, code_ints, codes, codes_stride, code_sums, lo, hi,
        KIND, BIAS, RESIDUAL, ACTIVATION, POST_SCALE, POST_BIAS, TENSORS,
    )  # fmt: skip


# ---- host --------------------------------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """One convolution's sizes, (height, width) each; `pads` is (top, left)."""

    size: tuple[int, int]
    out: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]


class Borders(NamedTuple):
    """Which taps each output position has: int32 [height], [width] whose sum is the position's row of `terms`."""

    row_class: torch.Tensor
    column_class: torch.Tensor
    terms: torch.Tensor


def conv2d(
    x: Any,
    weights: DeviceWeights,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    residual: Any = None,
    activation: Any = None,
    out: epilogue.Outputs = None,
    groups: int = 1,
) -> Any:
    """A convolution with its epilogue, as `soniq_kernels.conv.conv2d` and with the same bits; nothing is checked for being finite.

    Args:
        x: DeviceActivations NHWC, or float32, float16 or bfloat16 NHWC, quantized with the weights' activation_scale.
        stride, dilation: int or (height, width). padding: int, (height, width) or (top, bottom, left, right).
        residual: float32 tensor or DeviceActivations of the output's shape. activation, out, groups: as `linear`.

    Returns:
        float32 NHWC, DeviceActivations, or a list of these.
    """
    x, geometry, shape = _prepared(x, weights, stride, padding, dilation)
    done = epilogue.steps(weights, x, shape, residual, activation, out, groups)
    run(x, weights, geometry, done)
    return done.result


def conv2d_int32(x: Any, weights: DeviceWeights, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> torch.Tensor:
    """The integer result of a convolution, exact, int32 NHWC in units of 2**weights.exponent."""
    x, geometry, shape = _prepared(x, weights, stride, padding, dilation)
    done = epilogue.integers(weights, shape)
    run(x, weights, geometry, done)
    return done.result


def _prepared(
    x: Any, weights: DeviceWeights, stride: Any, padding: Any, dilation: Any
) -> tuple[DeviceActivations, Geometry, tuple[int, ...]]:
    if not isinstance(weights, DeviceWeights):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected DeviceWeights; make it with to_device(packed)"
        )
    require_usable(weights.device)
    if len(x.shape) != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected NHWC [batch, height, width, channels]")
    x = operand(x, weights)
    geometry = geometry_of(x.shape[1:3], weights.kernel_size, stride, padding, dilation)
    return x, geometry, (x.shape[0], *geometry.out, weights.out_channels)


def geometry_of(size: Any, kernel: tuple[int, int], stride: Any, padding: Any, dilation: Any) -> Geometry:
    """Output sizes; the same checks as on the CPU."""
    from soniq_kernels.conv import _geometry

    g = _geometry((1, *size, 1), kernel, stride, padding, dilation)
    return Geometry(
        tuple(size), (g.out_h, g.out_w), (g.stride_h, g.stride_w), (g.dilation_h, g.dilation_w), (g.pad_top, g.pad_left)
    )


def borders(weights: DeviceWeights, geometry: Geometry) -> Borders:
    """The classes of output positions and what their taps add, kept for the next call."""
    key = "borders", geometry
    if key not in weights.cache:
        rows, row_class = _axis_classes(weights, geometry, 0)
        columns, column_class = _axis_classes(weights, geometry, 1)
        taps = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(len(rows) * len(columns), -1)
        weights.cache[key] = Borders(
            weights.upload(row_class * len(columns)), weights.upload(column_class), weights.column_terms(taps)
        )
    return weights.cache[key]


def _axis_classes(weights: DeviceWeights, geometry: Geometry, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [classes, taps along the axis], int32 [positions]."""
    first = np.arange(geometry.out[axis])[:, None] * geometry.stride[axis] - geometry.pads[axis]
    at = first + np.arange(weights.kernel_size[axis]) * geometry.dilation[axis]
    classes, index = np.unique((at >= 0) & (at < geometry.size[axis]), axis=0, return_inverse=True)
    return classes, index.reshape(-1).astype(np.int32)


def run(
    x: DeviceActivations, weights: DeviceWeights, geometry: Geometry, done: Epilogue, choice: Choice | None = None
) -> None:
    """One layer in tiles of `choice.bn` outputs by `choice.bm` positions."""
    shape, layout = weights.shapes, weights.row_layout
    first, second = weights.order[0], weights.order[-1]
    rows = x.shape[0] * geometry.out[0] * geometry.out[1]
    table = borders(weights, geometry)
    choice = choice or choose(weights, rows)
    bn, bm = choice.bn, choice.bm
    grid = (weights.groups * -(-weights.group_outputs // bn), -(-rows // bm))
    launch(
        conv2d_kernel, grid,
        (
            x.data, x.data.stride(0), x.sums, rows, weights.panels[first], weights.panels[second], table.terms,
            weights.group_outputs, weights.out_channels, shape[first].blocks, shape[second].blocks,
            layout.first[first], layout.first[second], layout.padded[first], layout.padded[second], layout.group_bytes,
            shape[first].row_factor, shape[second].row_factor, first, second, x.sums.stride(0),
            *geometry.size, *geometry.out, *geometry.stride, *geometry.dilation, *geometry.pads,
            table.row_class, table.column_class, *done.arguments,
        ),
        dict(
            **done.constants, **segment_constants(weights), PER_TAP1=shape[first].slices_per_tap,
            PER_TAP2=shape[second].slices_per_tap, KW=weights.kernel_size[1],
            TAPS=weights.kernel_size[0] * weights.kernel_size[1], BORDERS=int(len(table.terms) > 1),
            PN=weights.panel_outputs, BN=bn, BM=bm,
        ),
        num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip
