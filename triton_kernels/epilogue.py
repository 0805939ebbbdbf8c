"""From int32 sums to the output, in the order of docs/arithmetic.md, every step rounded by itself.

Kernels that call `finish` are compiled with enable_fp_fusion=False: products and sums stay apart. Nothing is flushed to zero
and nothing is checked for being finite. Tiles are [outputs, rows], as the matrix instructions leave them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, channel_zeros
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.layout import byte_beta, row_layout

ACC, FLOAT, CODES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what is written
NO_RESIDUAL, FLOAT_RESIDUAL, CODE_RESIDUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "hardtanh": 3}


@triton.jit
def quantize(y, r, z, cmax):
    """The one quantizer: int32 codes of float32 values. Product and sum are rounded each, NaN gives 0."""
    t = y * r
    t = t + z
    t = tl.where(t > 0.0, t, 0.0)
    return tl.where(t < cmax, t, cmax).to(tl.int32)


@triton.jit
def activate(y, lo, hi, ACTIVATION: tl.constexpr):
    """relu, relu6 or hardtanh, by comparisons, so that NaN and -0 fall where the contract puts them."""
    if ACTIVATION == 1 or ACTIVATION == 2:
        y = tl.where(y > 0.0, y, 0.0)
    if ACTIVATION == 2:
        y = tl.where(y < 6.0, y, 6.0)
    if ACTIVATION == 3:
        y = tl.where(y > lo, tl.where(y < hi, y, hi), lo)
    return y


@triton.jit
def finish(
    acc, n, n_ok, m, m_ok, outputs,
    a_scale, rows_per_scale, unit, vectors,
    residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
    quantizers, out_ints, out, out_stride, out_sums, lo, hi,
    KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    POST_SCALE: tl.constexpr, POST_BIAS: tl.constexpr, OUT_SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Writes the tile acc, int32 [outputs n, rows m], in units of 2^E, with everything that follows it."""
    ok = n_ok[:, None] & m_ok[None, :]
    if KIND == ACC:
        tl.store(out + m.to(tl.int64)[None, :] * out_stride + n[:, None], acc, mask=ok)
    else:
        row_scale = tl.load(a_scale + m // rows_per_scale, mask=m_ok, other=1.0) * unit
        y = acc.to(tl.float32) * row_scale[None, :]
        y = y * tl.load(vectors + n, mask=n_ok, other=0.0)[:, None]
        if BIAS:
            y = y + tl.load(vectors + outputs + n, mask=n_ok, other=0.0)[:, None]
        if RESIDUAL == FLOAT_RESIDUAL:
            y = y + tl.load(residual + m.to(tl.int64)[None, :] * residual_stride + n[:, None], mask=ok, other=0.0)
        if RESIDUAL == CODE_RESIDUAL:
            position = tl.load(residual_ints + n, mask=n_ok, other=0)
            byte = tl.load(residual + m.to(tl.int64)[None, :] * residual_stride + position[:, None], mask=ok, other=0)
            alpha = tl.load(residual_ints + outputs + n, mask=n_ok, other=0)
            beta = tl.load(residual_ints + 2 * outputs + n, mask=n_ok, other=0)
            level = alpha[:, None] * byte.to(tl.int32) + beta[:, None]
            scale = tl.load(residual_scale + m // rows_per_residual_scale, mask=m_ok, other=1.0)
            step = scale[None, :] * tl.load(residual_steps + n, mask=n_ok, other=0.0)[:, None]
            shortcut = level.to(tl.float32) * step
            y = y + shortcut
        y = activate(y, lo, hi, ACTIVATION)
        if POST_SCALE:
            y = y * tl.load(vectors + 2 * outputs + n, mask=n_ok, other=0.0)[:, None]
        if POST_BIAS:
            y = y + tl.load(vectors + 3 * outputs + n, mask=n_ok, other=0.0)[:, None]
        if KIND == FLOAT:
            tl.store(out + m.to(tl.int64)[None, :] * out_stride + n[:, None], y, mask=ok)
        else:
            r = tl.load(quantizers + n, mask=n_ok, other=0.0)
            z = tl.load(quantizers + outputs + n, mask=n_ok, other=0.0)
            cmax = tl.load(quantizers + 2 * outputs + n, mask=n_ok, other=0.0)
            zero = tl.load(out_ints + outputs + n, mask=n_ok, other=0)
            byte = quantize(y, r[:, None], z[:, None], cmax[:, None]) - zero[:, None]
            position = tl.load(out_ints + n, mask=n_ok, other=0)
            tl.store(out + m.to(tl.int64)[None, :] * out_stride + position[:, None], byte.to(tl.int8), mask=ok)
            segment = tl.load(out_ints + 2 * outputs + n, mask=n_ok, other=-1)
            for s in tl.static_range(OUT_SEGMENTS):
                own = tl.sum(tl.where((segment == s)[:, None], byte, 0), axis=0)
                tl.atomic_add(out_sums + m * OUT_SEGMENTS + s, own, mask=m_ok, sem="relaxed")


# ---- what the host prepares --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epilogue:
    """The arguments of `finish` after `outputs`, tensors and numbers; pointers that a kind does not read point anywhere."""

    arguments: tuple[Any, ...]
    constants: dict[str, int]
    result: Any

    def __iter__(self):
        return iter(self.arguments)


@dataclass
class _Residual:
    kind: int
    tensor: torch.Tensor
    scale: torch.Tensor
    rows_per_scale: int
    stride: int
    steps: torch.Tensor
    ints: torch.Tensor


def integers(weights: DeviceWeights, shape: tuple[int, ...]) -> Epilogue:
    """The int32 result itself, [..., outputs]."""
    out = torch.empty(shape, dtype=torch.int32, device=weights.device)
    return _assemble(weights, ACC.value, weights.vectors, 1, _no_residual(weights), (None, (0.0, 0.0)), out, shape)


def steps(
    weights: DeviceWeights,
    x: DeviceActivations,
    shape: tuple[int, ...],
    residual: Any,
    activation: Any,
    out: tuple[Plan, float] | None,
) -> Epilogue:
    """float32 [..., outputs], or DeviceActivations where `out` is (plan, scale)."""
    shortcut = _residual(weights, residual, shape)
    function = activation_of(activation)
    each = max(1, math.prod(shape[:-1]) // max(1, x.scale.numel()))
    if out is None:
        y = torch.empty(shape, dtype=torch.float32, device=weights.device)
        return _assemble(weights, FLOAT.value, x.scale, each, shortcut, function, y, shape)
    codes = _empty_codes(weights, out, shape)
    return _assemble(weights, CODES.value, x.scale, each, shortcut, function, codes, shape, out[1])


def _assemble(weights, kind, a_scale, rows_per_scale, residual, function, result, shape, out_scale=1.0) -> Epilogue:
    quantizers = ints = sums = weights.vectors
    target, stride, segments = result, shape[-1], 0
    if kind == CODES.value:
        quantizers, ints = _output_tables(weights, result.plan, out_scale)
        target, stride, sums, segments = result.data, result.data.shape[1], result.sums, len(result.plan.segments)
    name, (lo, hi) = function
    arguments = (
        a_scale, rows_per_scale, 2.0**weights.exponent, weights.vectors,
        residual.tensor, residual.scale, residual.rows_per_scale, residual.stride, residual.steps, residual.ints,
        quantizers, ints, target, stride, sums, lo, hi,
    )  # fmt: skip
    constants = dict(
        KIND=kind, BIAS=int(weights.has["bias"]), RESIDUAL=residual.kind, ACTIVATION=ACTIVATIONS[name],
        POST_SCALE=int(weights.has["post_scale"]), POST_BIAS=int(weights.has["post_bias"]), OUT_SEGMENTS=segments,
    )  # fmt: skip
    return Epilogue(arguments, constants, result)


def activation_of(activation: Any) -> tuple[str | None, tuple[float, float]]:
    """(name, bounds) of an activation as gemm.linear takes it."""
    if isinstance(activation, (tuple, list)):
        if len(activation) != 3 or activation[0] != "hardtanh":
            raise ValueError(f'activation is {activation!r}, expected ("hardtanh", low, high)')
        low, high = float(activation[1]), float(activation[2])
        if not low <= high:
            raise ValueError(f"hardtanh has low {low} and high {high}, expected low <= high")
        return "hardtanh", (low, high)
    if activation == "hardtanh" or activation not in ACTIVATIONS:
        raise ValueError(f'activation is {activation!r}, expected None, "relu", "relu6" or ("hardtanh", low, high)')
    return activation, (0.0, 0.0)


def _no_residual(weights: DeviceWeights) -> _Residual:
    nothing = weights.vectors
    return _Residual(NO_RESIDUAL.value, nothing, nothing, 1, 1, nothing, nothing)


def _residual(weights: DeviceWeights, residual: Any, shape: tuple[int, ...]) -> _Residual:
    if residual is None:
        return _no_residual(weights)
    if tuple(residual.shape) != tuple(shape):
        raise ValueError(f"residual has shape {tuple(residual.shape)}, expected {shape}, the shape of the output")
    if not isinstance(residual, DeviceActivations):
        if residual.dtype != torch.float32:
            raise TypeError(f"residual is {residual.dtype}, expected torch.float32 or DeviceActivations")
        return replace(_no_residual(weights), kind=FLOAT_RESIDUAL.value, tensor=residual.contiguous(), stride=shape[-1])
    layout = residual.layout
    key = "residual", residual.plan, residual.groups
    if key not in weights.cache:
        index, grids = residual.plan.segment_of(), [s.a for s in residual.plan.segments]
        alpha, beta = (np.array([f(g) for g in grids], np.int32)[index] for f in (lambda g: g.alpha, byte_beta))
        powers = np.array([2.0**g.exponent for g in grids], np.float32)[index]
        weights.cache[key] = weights.upload(powers), weights.upload(np.stack([layout.position, alpha, beta]))
    powers, ints = weights.cache[key]
    return _Residual(
        CODE_RESIDUAL.value, residual.data, residual.scale, residual.rows_per_scale, layout.row_bytes, powers, ints
    )


def _empty_codes(weights: DeviceWeights, out: Any, shape: tuple[int, ...]) -> DeviceActivations:
    """Zeros everywhere: padding stays so, and the sums are added to."""
    if not isinstance(out, (tuple, list)) or len(out) != 2 or not isinstance(out[0], Plan):
        raise TypeError(f"out is {out!r}, expected (plan, scale) of the next layer")
    plan, scale = out
    if plan.channels != shape[-1]:
        raise ValueError(f"out names a plan of {plan.channels} channels but this layer has {shape[-1]} outputs")
    key = "out scale", float(scale)
    if key not in weights.cache:
        weights.cache[key] = weights.upload(np.array([scale], np.float32))
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    data = torch.zeros((rows, row_layout(plan).row_bytes), dtype=torch.int8, device=weights.device)
    sums = torch.zeros((rows, len(plan.segments)), dtype=torch.int32, device=weights.device)
    return DeviceActivations(data, sums, shape, plan, weights.cache[key])


def _output_tables(weights: DeviceWeights, plan: Plan, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(r, z, cmax) float32 [3, outputs] and (position, zero point, segment) int32 [3, outputs]."""
    key = "quantizer", plan, float(scale)
    if key not in weights.cache:
        index, grids = plan.segment_of(), [s.a for s in plan.segments]
        given = np.float32(scale)
        r, z = (np.array([g.quantizer(given)[i] for g in grids], np.float32)[index] for i in (0, 1))
        cmax = np.array([g.cmax for g in grids], np.float32)[index]
        ints = np.stack([row_layout(plan).position, channel_zeros(plan), index]).astype(np.int32)
        weights.cache[key] = weights.upload(np.stack([r, z, cmax])), weights.upload(ints)
    return weights.cache[key]
