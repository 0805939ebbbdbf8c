"""Matrix products on int8 tensor cores: weights unpacked in registers as the left operand, two segments in one accumulator.

    acc[n, m] = (sum over k of the heavier segment of w[n, k] * x[m, k]) << d   +   the same sum of the other segment

One program computes BN outputs of BM rows. In every block of K it loads byte rows of weights, unpacks them slice by slice
(unpack.py) and multiplies each slice, [BN, L], with the slice of the activations, [L, BM], which the matrix instruction reads
from shared memory. Weights on the left are what may come from registers, and the batch, on the right, may be as small as 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl

from soniq_kernels.triton_kernels import split_k
from soniq_kernels.triton_kernels.choice import Choice
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.epilogue import Epilogue, finish
from soniq_kernels.triton_kernels.launch import launch
from soniq_kernels.triton_kernels.panels import rows_of, slices_of
from soniq_kernels.triton_kernels.unpack import codes_of, load_rows


@triton.jit
def add_products(
    acc, w, x, m, m_ok, n, first, last, w_panel, x_stride, channels,
    BITS: tl.constexpr, L: tl.constexpr, PN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """acc += w[n, k] * x[m, k] over blocks first..last of one segment; w and x point at its panels and its first byte."""
    ROWS: tl.constexpr = rows_of(BITS)
    SLICES: tl.constexpr = slices_of(BITS)
    l = tl.arange(0, L)
    tile = w + (n // PN).to(tl.int64)[:, None] * w_panel + (n % PN)[:, None] * L + l[None, :]
    pixels = x + m.to(tl.int64)[None, :] * x_stride + l[:, None]
    for block in range(first, last):
        rows = (0, 0, 0)
        for s in tl.static_range(SLICES):
            rows = load_rows(rows, tile + block * (ROWS * PN * L), PN * L, None, BITS, s)
            k = (block * SLICES + s) * L
            inside = m_ok[None, :] & (k + l < channels)[:, None]
            acc = tl.dot(
                codes_of(rows, BITS, s, ASM), tl.load(pixels + k, mask=inside, other=0), acc, out_dtype=tl.int32
            )
    return acc


@triton.jit
def gemm_kernel(
    x, x_stride, x_sums, rows, w1, w2, terms, group_outputs, outputs,
    blocks1, blocks2, first1, first2, channels1, channels2, group_bytes,
    row_factor1, row_factor2, sum1, sum2, sums_stride, workspace,
    a_scale, rows_per_scale, unit, vectors,
    residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
    out, quantizers, code_ints, codes, codes_stride, code_sums, lo, hi,
    KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    POST_SCALE: tl.constexpr, POST_BIAS: tl.constexpr, TENSORS: tl.constexpr,
    BITS1: tl.constexpr, L1: tl.constexpr, BITS2: tl.constexpr, L2: tl.constexpr, BETWEEN: tl.constexpr, AFTER: tl.constexpr,
    PN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, SPLIT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(group_outputs, PN)
    tiles = tl.cdiv(group_outputs, BN)
    group = tl.program_id(0) // tiles
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    n_ok = n < group_outputs
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    m_ok = m < rows
    read = tl.minimum(n, n_blocks * PN - 1)  # the last tile may be taller than what is left of the panels
    split, splits = tl.program_id(2), tl.num_programs(2)
    x += group * group_bytes
    acc = tl.zeros((BN, BM), tl.int32)
    panel1 = blocks1 * (rows_of(BITS1) * PN * L1)
    acc = add_products(
        acc, w1 + group.to(tl.int64) * n_blocks * panel1, x + first1, m, m_ok, read,
        blocks1 * split // splits, blocks1 * (split + 1) // splits, panel1, x_stride, channels1, BITS1, L1, PN, ASM,
    )  # fmt: skip
    if BITS2 != 0:
        panel2 = blocks2 * (rows_of(BITS2) * PN * L2)
        acc = add_products(
            acc << BETWEEN, w2 + group.to(tl.int64) * n_blocks * panel2, x + first2, m, m_ok, read,
            blocks2 * split // splits, blocks2 * (split + 1) // splits, panel2, x_stride, channels2, BITS2, L2, PN, ASM,
        )  # fmt: skip
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    all_tiles = tl.num_programs(1) * tl.num_programs(0)
    last = True
    if SPLIT:
        last = split_k.add_and_count(acc, workspace, tile, all_tiles, splits, BN, BM)
    if last:
        if SPLIT:
            acc = split_k.take(workspace, tile, all_tiles, BN, BM)
        own_sums = x_sums + m * sums_stride + group * (2 if BITS2 != 0 else 1)
        row_terms = row_factor1 * tl.load(own_sums + sum1, mask=m_ok, other=0)
        if BITS2 != 0:
            row_terms += row_factor2 * tl.load(own_sums + sum2, mask=m_ok, other=0)
        n += group * group_outputs
        acc = (acc << AFTER) + row_terms[None, :] + tl.load(terms + n, mask=n_ok, other=0)[:, None]
        finish(
            acc, n, n_ok, m, m_ok, outputs, a_scale, rows_per_scale, unit, vectors,
            residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
            out, quantizers, code_ints, codes, codes_stride, code_sums, lo, hi,
            KIND, BIAS, RESIDUAL, ACTIVATION, POST_SCALE, POST_BIAS, TENSORS,
        )  # fmt: skip


# ---- host --------------------------------------------------------------------------------------------------------------

ONE_TAP = np.ones((1, 1), np.bool_)


def gemm(x: DeviceActivations, weights: DeviceWeights, epilogue: Epilogue, choice: Choice) -> None:
    """One layer in tiles of `choice.bn` outputs by `choice.bm` rows, K in `choice.splits` parts."""
    shape, layout = weights.shapes, weights.row_layout
    first, second = weights.order[0], weights.order[-1]
    tiles = weights.groups * -(-weights.group_outputs // choice.bn), -(-x.rows // choice.bm)
    many = choice.splits > 1
    space = split_k.workspace(weights, tiles[0] * tiles[1], choice.bn * choice.bm) if many else x.sums
    launch(
        gemm_kernel, (*tiles, choice.splits),
        (
            x.data, x.data.stride(0), x.sums, x.rows, weights.panels[first], weights.panels[second],
            weights.column_terms(ONE_TAP), weights.group_outputs, weights.out_channels,
            shape[first].blocks, shape[second].blocks, layout.first[first], layout.first[second],
            layout.padded[first], layout.padded[second], layout.group_bytes,
            shape[first].row_factor, shape[second].row_factor, first, second, x.sums.stride(0), space, *epilogue.arguments,
        ),
        dict(
            **epilogue.constants, **segment_constants(weights), PN=weights.panel_outputs, BN=choice.bn, BM=choice.bm,
            SPLIT=int(many),
        ),
        num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip


def segment_constants(weights: DeviceWeights) -> dict[str, Any]:
    """What the kernel is compiled for: widths, slices, and how the two sums are put together."""
    first, second = (weights.shapes[s] for s in (weights.order[0], weights.order[-1]))
    one = first is second
    return dict(
        BITS1=first.bits, L1=first.slice, BITS2=0 if one else second.bits, L2=second.slice,
        BETWEEN=first.factor - second.factor, AFTER=second.factor,
    )  # fmt: skip
