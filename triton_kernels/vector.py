"""Few rows (batch 1 to 8): dp4a on words of four codes, bound by how fast weights arrive.

One warp computes BN outputs of M rows over a part of K. It loads 16 bytes of weights a thread, unpacks them word by word, and
multiplies each word with the word of activations beside it, four products an instruction:

    thread t of 32:   bytes 16 t .. 16 t + 15 of a run of 512   =   8 blocks x 16 words of a byte row      (slices of 64 codes)

Weights of a row are read once and used for all M rows; words of activations are used for all BN outputs. A warp to itself needs
no barrier and no shared memory; K is split over programs until the GPU is full (split_k.py).

With one row, unpacking costs as much as multiplying, so fields are left where they are in their bytes: field f of a word, under its
mask, is 2^(bits * f) times its codes, and has an accumulator of its own, which is shifted back once at the end. Exact: every
product is a multiple of that power, and a thread's part of K is too short for its sum to leave int32.

dp4a wraps, so that this path also serves the layers whose sums may leave int32 on the way (panels.Panels.saturates).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from soniq_kernels.triton_kernels import split_k
from soniq_kernels.triton_kernels.choice import Choice
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.epilogue import Epilogue, finish
from soniq_kernels.triton_kernels.launch import launch
from soniq_kernels.triton_kernels.panels import rows_of, slices_of
from soniq_kernels.triton_kernels.tensor_core import ONE_TAP, segment_constants
from soniq_kernels.triton_kernels.unpack import code_words, load_rows, part_width

WORDS = tl.constexpr(128)  # that a warp loads at once, 4 a thread


@triton.jit
def add_word_products(acc, w, x, SIGNED: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr):
    """int32 [BN, WORDS / 4] + the products of the bytes of w [BN, WORDS] (int8 if SIGNED, else uint8) and x [1, WORDS] (int8).

    A thread holds four neighbouring words of each; their products go into one sum.
    """
    if ASM:
        words, activations = four(w, BN), four(x, 1)
        for i in tl.static_range(4):
            other = tl.broadcast_to(activations[i], (BN, WORDS // 4))
            acc = tl.inline_asm_elementwise(
                "dp4a.s32.s32 $0, $1, $2, $3;" if SIGNED else "dp4a.u32.s32 $0, $1, $2, $3;",
                "=r,r,r,r", [words[i], other, acc], dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
        return acc
    shifts = (tl.arange(0, 4) * 8)[None, None, :]
    a, b = w[:, :, None] >> shifts, (x[:, :, None] >> shifts).to(tl.int8).to(tl.int32)
    a = (a.to(tl.int8) if SIGNED else a.to(tl.uint8)).to(tl.int32)
    return acc + tl.sum(tl.reshape(tl.mul(a, b, False), (BN, WORDS // 4, 16)), axis=2)


@triton.jit
def four(words, BN: tl.constexpr):
    """[BN, WORDS] -> four [BN, WORDS / 4]: the words that a thread has loaded, one by one."""
    a, b = tl.split(tl.reshape(words, (BN, WORDS // 4, 2, 2)))
    a0, a1 = tl.split(a)
    b0, b1 = tl.split(b)
    return a0, b0, a1, b1


@triton.constexpr_function
def kept_in_place(bits, rows, unshifted):
    """Accumulators a row of activations needs: one a field where fields are left in place."""
    return 8 // bits if unshifted and rows == 1 and bits in (1, 2, 4) else 1


@triton.constexpr_function
def slot(row, slice, fields):
    """The accumulator of a row and a slice."""
    return row if fields == 1 else slice % fields


@triton.jit
def add_words(
    accs, w, x, rows, n, first, last, w_panel, x_stride, channels,
    BITS: tl.constexpr, L: tl.constexpr, PN: tl.constexpr, BN: tl.constexpr, M: tl.constexpr, UNSHIFTED: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """accs + the sums of products over blocks first..last of a segment. Pointers and strides of w and x count words."""
    W: tl.constexpr = L // 4
    ROWS: tl.constexpr = rows_of(BITS)
    SLICES: tl.constexpr = slices_of(BITS)
    FIELDS: tl.constexpr = kept_in_place(BITS, M, UNSHIFTED)
    column = tl.arange(0, WORDS)
    block = column // W
    word = column % W
    tile = (
        w
        + (n // PN).to(tl.int64)[:, None] * w_panel
        + (n % PN)[:, None] * W
        + (block * (ROWS * PN * W) + word)[None, :]
    )
    for start in range(first, last, WORDS // W):
        here = start + block < last
        rows_loaded = (0, 0, 0)
        for s in tl.static_range(SLICES):
            rows_loaded = load_rows(rows_loaded, tile + start * (ROWS * PN * W), PN * W, here[None, :], BITS, s)
            words = code_words(rows_loaded, BITS, s, FIELDS == 1)
            k = ((start + block) * SLICES + s) * W + word
            inside = (here & (k < channels))[None, :]
            for m in tl.static_range(M):
                row = tl.minimum(tl.program_id(2) * M + m, rows - 1)
                activations = tl.load(x + row.to(tl.int64) * x_stride + k[None, :], mask=inside, other=0)
                acc = accs[slot(m, s, FIELDS)]
                acc = add_word_products(acc, words, activations, BITS == 8, BN, ASM)
                accs = replaced(accs, slot(m, s, FIELDS), acc)
    return accs


@triton.jit
def replaced(values, INDEX: tl.constexpr, value):
    """The tuple with one of its values replaced."""
    new = ()
    for i in tl.static_range(len(values)):
        new = new + (value if i == INDEX else values[i],)  # noqa: RUF005, Triton takes no starred tuples
    return new


@triton.jit
def segment_sums(
    w, x, rows, n, split, splits, blocks, n_blocks, group, x_stride, channels,
    BITS: tl.constexpr, L: tl.constexpr, PN: tl.constexpr, BN: tl.constexpr, M: tl.constexpr, UNSHIFTED: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """int32 [BN, M]: this program's part of a segment's sums of products."""
    FIELDS: tl.constexpr = kept_in_place(BITS, M, UNSHIFTED)
    STEP: tl.constexpr = WORDS // (L // 4)
    steps = tl.cdiv(blocks, STEP)
    first = steps * split // splits * STEP
    last = tl.minimum(steps * (split + 1) // splits * STEP, blocks)
    accs = (tl.zeros((BN, WORDS // 4), tl.int32),) * (M if FIELDS == 1 else FIELDS)
    panel = blocks * (rows_of(BITS) * PN * (L // 4))
    accs = add_words(
        accs, w + group.to(tl.int64) * n_blocks * panel, x, rows, n, first, last, panel, x_stride, channels,
        BITS, L, PN, BN, M, UNSHIFTED, ASM,
    )  # fmt: skip
    tile = tl.zeros((BN, M), tl.int32)
    if FIELDS == 1:
        for m in tl.static_range(M):
            tile = tl.where(tl.arange(0, M)[None, :] == m, tl.sum(accs[m], axis=1)[:, None], tile)
    else:
        total = accs[0]
        for f in tl.static_range(1, FIELDS):
            total += accs[f] >> (part_width(BITS, 0) * f)
        tile = tl.sum(total, axis=1)[:, None]
    return tile


@triton.jit
def vector_kernel(
    x, x_stride, x_sums, rows, w1, w2, terms, group_outputs, outputs,
    blocks1, blocks2, first1, first2, channels1, channels2, group_words,
    row_factor1, row_factor2, sum1, sum2, sums_stride, workspace,
    a_scale, rows_per_scale, unit, vectors,
    residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
    out, quantizers, code_ints, codes, codes_stride, code_sums, lo, hi,
    KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    POST_SCALE: tl.constexpr, POST_BIAS: tl.constexpr, TENSORS: tl.constexpr,
    BITS1: tl.constexpr, L1: tl.constexpr, BITS2: tl.constexpr, L2: tl.constexpr, BETWEEN: tl.constexpr, AFTER: tl.constexpr,
    PN: tl.constexpr, BN: tl.constexpr, M: tl.constexpr, UNSHIFTED: tl.constexpr, SPLIT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(group_outputs, PN)
    tiles = tl.cdiv(group_outputs, BN)
    group = tl.program_id(0) // tiles
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    split, splits = tl.program_id(1), tl.num_programs(1)
    x_stride = tl.multiple_of(x_stride, 4)  # parts of a row begin and end at 16 bytes
    channels1, channels2 = tl.multiple_of(channels1, 4), tl.multiple_of(channels2, 4)
    x += tl.multiple_of(group * group_words, 4)
    acc = segment_sums(
        w1, x + tl.multiple_of(first1, 4), rows, n, split, splits, blocks1, n_blocks, group, x_stride, channels1,
        BITS1, L1, PN, BN, M, UNSHIFTED, ASM,
    )  # fmt: skip
    if BITS2 != 0:
        acc = (acc << BETWEEN) + segment_sums(
            w2, x + tl.multiple_of(first2, 4), rows, n, split, splits, blocks2, n_blocks, group, x_stride, channels2,
            BITS2, L2, PN, BN, M, UNSHIFTED, ASM,
        )  # fmt: skip
    tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    all_tiles = tl.num_programs(2) * tl.num_programs(0)
    last = True
    if SPLIT:
        last = split_k.add_and_count(acc, workspace, tile, all_tiles, splits, BN, M)
    if last:
        if SPLIT:
            acc = split_k.take(workspace, tile, all_tiles, BN, M)
        m = tl.program_id(2) * M + tl.arange(0, M)
        m_ok, n_ok = m < rows, n < group_outputs
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

LONGEST_IN_PLACE = 1 << 20  # codes of K: a thread sums a 32nd of them, each product at most 2^7 * 255 * 128 / 2^7 * 2^7


def gemv(x: DeviceActivations, weights: DeviceWeights, epilogue: Epilogue, choice: Choice) -> None:
    """One layer: `choice.bn` outputs of `choice.bm` rows a warp, K in `choice.splits` parts."""
    bn, rows, splits = choice.bn, choice.bm, choice.splits
    shape, layout = weights.shapes, weights.row_layout
    first, second = weights.order[0], weights.order[-1]
    tiles, row_tiles = weights.groups * -(-weights.group_outputs // bn), -(-x.rows // rows)
    space = split_k.workspace(weights, tiles * row_tiles, bn * rows) if splits > 1 else x.sums
    words = weights.words()
    launch(
        vector_kernel, (tiles, splits, row_tiles),
        (
            x.data.view(torch.int32), x.data.stride(0) // 4, x.sums, x.rows, words[first], words[second],
            weights.column_terms(ONE_TAP), weights.group_outputs, weights.out_channels,
            shape[first].blocks, shape[second].blocks, layout.first[first] // 4, layout.first[second] // 4,
            layout.padded[first] // 4, layout.padded[second] // 4, layout.group_bytes // 4,
            shape[first].row_factor, shape[second].row_factor, first, second, x.sums.stride(0), space, *epilogue.arguments,
        ),
        dict(
            **epilogue.constants, **segment_constants(weights), PN=weights.panel_outputs, BN=bn, M=rows,
            UNSHIFTED=int(weights.plan.channels <= LONGEST_IN_PLACE), SPLIT=int(splits > 1),
        ),
        num_warps=1, num_stages=1,
    )  # fmt: skip
