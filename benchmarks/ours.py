"""Our linear layer at given widths on a given tier, after its answer has been compared with NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import shapes
from benchmarks.operands import Operands, integers, require_equal
from soniq_kernels import gemm, isa, packing, set_num_threads

A_SCALE = 2.0


def linear(operands: Operands, widths: str, tier: str, threads: int) -> tuple[Callable[[], Any], str]:
    """(call, kernel): float32 in, float32 out, weights prepacked, activations quantized in the call."""
    set_num_threads(threads)
    plan = shapes.plan(widths, operands.x.shape[1])
    packed = packing.quantize_weights(operands.block, plan, activation_scale=A_SCALE)
    w_codes, packed = packed.codes(), _repeated(packed, operands)
    with isa.use(tier):
        packed.layer(operands.x.shape[0])
        packed.drop_portable()
        _check(operands, w_codes, packed, f"{widths} {tier}, {operands.x.shape} x {packed.shape}")
        kernel = gemm.explain(operands.x, packed).kernel
    return lambda: gemm.linear(operands.x, packed), kernel


def _repeated(block: packing.PackedWeights, operands: Operands) -> packing.PackedWeights:
    """The block's weights again and again: whole bytes of its bit planes, so that a large matrix is not packed in full."""
    if operands.repeats == 1:
        return block
    planes = [np.tile(plane, (1, operands.repeats)) for plane in block.planes or []]
    shape = (block.shape[0] * operands.repeats, block.shape[1])
    return packing.PackedWeights(
        block.plan, shape, planes, operands.spread(block.scale), activation_scale=np.float32(A_SCALE)
    )


def _check(operands: Operands, w_codes: NDArray[np.uint8], packed: packing.PackedWeights, what: str) -> None:
    """The integers, and the floats made of them, bit for bit."""
    codes = packing.quantize_activations(operands.x, packed.plan, A_SCALE)
    acc = np.tile(integers(codes, w_codes, packed.plan), (1, operands.repeats))
    require_equal(gemm.matmul(codes, packed), acc, what)
    y = acc.astype(np.float32) * np.float32(A_SCALE * 2.0**packed.exponent) * packed.scale
    require_equal(np.asarray(gemm.linear(operands.x, packed)), y, what)
