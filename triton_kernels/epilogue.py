"""From int32 sums to the output, in the order of docs/arithmetic.md, every step rounded by itself.

Kernels that call `finish` are compiled with enable_fp_fusion=False: products and sums stay apart. Nothing is flushed to zero
and nothing is checked for being finite. Tiles are [outputs, rows], as the matrix instructions leave them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from soniq_kernels.activations import MAX_SCALE, MIN_SCALE
from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, one_scale
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.layout import ALIGN, byte_beta, channel_zeros, row_layout

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


@triton.constexpr_function
def segments_of(tensors):
    """TENSORS has a decimal digit for each tensor of codes: its number of segments, or 9 where nobody wants its sums."""
    return tuple(0 if digit == "9" else int(digit) for digit in str(tensors)) if tensors else ()


@triton.constexpr_function
def count_of(tensors):
    return len(segments_of(tensors))


@triton.constexpr_function
def first_segment(tensors, index):
    """Segments of the tensors before."""
    return sum(segments_of(tensors)[:index])


@triton.jit
def values_of(data, stride, scale, rows_per_scale, steps, ints, n, n_ok, m, m_ok, channels, AXIS: tl.constexpr):
    """float32 values of the codes of channels n (along AXIS of the tile) and rows m: float32(level) * (scale * 2^e)."""
    ok = tl.expand_dims(n_ok, 1 - AXIS) & tl.expand_dims(m_ok, AXIS)
    position = tl.expand_dims(tl.load(ints + n, mask=n_ok, other=0), 1 - AXIS)
    alpha = tl.expand_dims(tl.load(ints + channels + n, mask=n_ok, other=0), 1 - AXIS)
    beta = tl.expand_dims(tl.load(ints + 2 * channels + n, mask=n_ok, other=0), 1 - AXIS)
    byte = tl.load(data + tl.expand_dims(m.to(tl.int64) * stride, AXIS) + position, mask=ok, other=0)
    level = alpha * byte.to(tl.int32) + beta
    step = step_of(scale, rows_per_scale, steps, n, n_ok, m, m_ok, AXIS)
    return level.to(tl.float32) * step


@triton.jit
def step_of(scale, rows_per_scale, steps, n, n_ok, m, m_ok, AXIS: tl.constexpr):
    """scale * 2^e."""
    row_scale = tl.expand_dims(tl.load(scale + m // rows_per_scale, mask=m_ok, other=1.0), AXIS)
    return row_scale * tl.expand_dims(tl.load(steps + n, mask=n_ok, other=0.0), 1 - AXIS)


@triton.jit
def write_codes(
    y, n, n_ok, m, m_ok, outputs, quantizers, code_ints, codes, codes_stride, sums, TENSORS: tl.constexpr, AXIS: tl.constexpr
):  # fmt: skip
    """The codes of float32 y, channels n along AXIS and rows m, in every tensor of codes, and their bytes' sums."""
    ok = tl.expand_dims(n_ok, 1 - AXIS) & tl.expand_dims(m_ok, AXIS)
    rows = codes + tl.expand_dims(m.to(tl.int64) * codes_stride, AXIS)
    COUNT: tl.constexpr = count_of(TENSORS)
    ALL: tl.constexpr = first_segment(TENSORS, COUNT)
    for t in tl.static_range(COUNT):
        at = 3 * t * outputs + n
        r = tl.expand_dims(tl.load(quantizers + at, mask=n_ok, other=0.0), 1 - AXIS)
        z = tl.expand_dims(tl.load(quantizers + outputs + at, mask=n_ok, other=0.0), 1 - AXIS)
        cmax = tl.expand_dims(tl.load(quantizers + 2 * outputs + at, mask=n_ok, other=0.0), 1 - AXIS)
        position = tl.expand_dims(tl.load(code_ints + at, mask=n_ok, other=0), 1 - AXIS)
        zero = tl.expand_dims(tl.load(code_ints + outputs + at, mask=n_ok, other=0), 1 - AXIS)
        byte = quantize(y, r, z, cmax) - zero
        tl.store(rows + position, byte.to(tl.int8), mask=ok)
        segment = tl.expand_dims(tl.load(code_ints + 2 * outputs + at, mask=n_ok, other=-1), 1 - AXIS)
        for s in tl.static_range(first_segment(TENSORS, t), first_segment(TENSORS, t + 1)):
            own = tl.sum(tl.where(segment == s, byte, 0), axis=AXIS)
            tl.atomic_add(sums + m * ALL + s, own, mask=m_ok, sem="relaxed")


@triton.jit
def finish(
    acc, n, n_ok, m, m_ok, outputs,
    a_scale, rows_per_scale, unit, vectors,
    residual, residual_scale, rows_per_residual_scale, residual_stride, residual_steps, residual_ints,
    out, quantizers, code_ints, codes, codes_stride, code_sums, lo, hi,
    KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    POST_SCALE: tl.constexpr, POST_BIAS: tl.constexpr, TENSORS: tl.constexpr,
):  # fmt: skip
    """Writes the tile acc, int32 [outputs n, rows m], in units of 2^E, with everything that follows it."""
    ok = n_ok[:, None] & m_ok[None, :]
    place = m.to(tl.int64)[None, :] * outputs + n[:, None]
    if KIND == ACC:
        tl.store(out + place, acc, mask=ok)
    else:
        row_scale = tl.load(a_scale + m // rows_per_scale, mask=m_ok, other=1.0) * unit
        y = acc.to(tl.float32) * row_scale[None, :]
        y = y * tl.load(vectors + n, mask=n_ok, other=0.0)[:, None]
        if BIAS:
            y = y + tl.load(vectors + outputs + n, mask=n_ok, other=0.0)[:, None]
        if RESIDUAL == FLOAT_RESIDUAL:
            y = y + tl.load(residual + place, mask=ok, other=0.0)
        if RESIDUAL == CODE_RESIDUAL:
            shortcut = values_of(
                residual, residual_stride, residual_scale, rows_per_residual_scale, residual_steps, residual_ints, n, n_ok, m,
                m_ok, outputs, 0,
            )  # fmt: skip
            y = y + shortcut
        y = activate(y, lo, hi, ACTIVATION)
        if POST_SCALE:
            y = y * tl.load(vectors + 2 * outputs + n, mask=n_ok, other=0.0)[:, None]
        if POST_BIAS:
            y = y + tl.load(vectors + 3 * outputs + n, mask=n_ok, other=0.0)[:, None]
        if KIND == FLOAT:
            tl.store(out + place, y, mask=ok)
        write_codes(y, n, n_ok, m, m_ok, outputs, quantizers, code_ints, codes, codes_stride, code_sums, TENSORS, 0)


# ---- what the host prepares --------------------------------------------------------------------------------------------
MOST_TENSORS = 4  # of codes, that one pass writes
Outputs = None | tuple[Plan, float] | list[Any]  # what `out=` takes: float32, codes, or a list of these


class Value(NamedTuple):
    """A tensor as `values_of` reads it, or float32."""

    kind: int
    tensor: torch.Tensor
    scale: torch.Tensor
    rows_per_scale: int
    stride: int
    steps: torch.Tensor
    ints: torch.Tensor


class Results(NamedTuple):
    """What a kernel writes: float32 `out`, tensors of codes side by side in `codes`. `tensors` is what the caller gets."""

    out: torch.Tensor
    quantizers: torch.Tensor
    code_ints: torch.Tensor
    codes: torch.Tensor
    codes_stride: int
    code_sums: torch.Tensor
    kind: int
    count: int  # TENSORS
    tensors: list[Any]


class Arguments(NamedTuple):
    """The arguments of `finish` after `outputs`; pointers that a kind does not read point anywhere."""

    a_scale: torch.Tensor
    rows_per_scale: int
    unit: float
    vectors: torch.Tensor
    residual: torch.Tensor
    residual_scale: torch.Tensor
    rows_per_residual_scale: int
    residual_stride: int
    residual_steps: torch.Tensor
    residual_ints: torch.Tensor
    out: torch.Tensor
    quantizers: torch.Tensor
    code_ints: torch.Tensor
    codes: torch.Tensor
    codes_stride: int
    code_sums: torch.Tensor
    lo: float
    hi: float


class Epilogue(NamedTuple):
    """What a product does with its sums, and what the caller gets of it."""

    arguments: Arguments
    constants: dict[str, int]
    result: Any


def integers(weights: DeviceWeights, shape: tuple[int, ...]) -> Epilogue:
    """The int32 result itself, [..., outputs]."""
    out = torch.empty(shape, dtype=torch.int32, device=weights.device)
    v = weights.vectors
    results = Results(out, v, v, v, 0, v, ACC.value, 0, [out])
    return _assemble(weights, v, 1, no_value(v), results, (None, (0.0, 0.0)), out)


def steps(
    weights: DeviceWeights, x: Any, shape: tuple[int, ...], residual: Any, activation: Any, out: Outputs, groups: int = 1
) -> Epilogue:  # fmt: skip
    """float32 [..., outputs], DeviceActivations where `out` is (plan, scale), or a list of these.

    Args:
        x: with a scale and its number of values; its rows divide evenly among them.
        groups: 1; or 0 for codes in stored order, without sums (layout.py).
    """
    function = activation_of(activation)
    if residual is not None and tuple(residual.shape) != tuple(shape):
        raise ValueError(f"residual has shape {tuple(residual.shape)}, expected {shape}, the shape of the output")
    shortcut = no_value(weights.vectors) if residual is None else value(residual, "residual")
    results = new_results(outputs_of(out, shape[-1]), shape, weights.device, groups)
    each = max(1, math.prod(shape[:-1]) // max(1, x.scale.numel()))
    return _assemble(weights, x.scale, each, shortcut, results, function, given(out, results))


def _assemble(weights, a_scale, rows_per_scale, residual, results, function, result) -> Epilogue:
    name, (lo, hi) = function
    arguments = Arguments(
        a_scale, rows_per_scale, 2.0**weights.exponent, weights.vectors,
        residual.tensor, residual.scale, residual.rows_per_scale, residual.stride, residual.steps, residual.ints,
        *results[:6], lo, hi,
    )  # fmt: skip
    constants = dict(
        KIND=results.kind, BIAS=int(weights.has["bias"]), RESIDUAL=residual.kind, ACTIVATION=ACTIVATIONS[name],
        POST_SCALE=int(weights.has["post_scale"]), POST_BIAS=int(weights.has["post_bias"]), TENSORS=results.count,
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


# ---- tensors that are read -----------------------------------------------------------------------------------------------
def no_value(nothing: torch.Tensor) -> Value:
    return Value(NO_RESIDUAL.value, nothing, nothing, 1, 1, nothing, nothing)


def value(x: Any, name: str) -> Value:
    """float32 tensor or DeviceActivations."""
    if isinstance(x, DeviceActivations):
        steps, ints = value_tables(x.plan, x.groups, x.device)
        return Value(CODE_RESIDUAL.value, x.data, x.scale, x.rows_per_scale, x.data.stride(0), steps, ints)
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        what = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name} is {what}, expected torch.float32 or DeviceActivations")
    x = x.contiguous()
    return no_value(x)._replace(kind=FLOAT_RESIDUAL.value)


@lru_cache(maxsize=1024)
def value_tables(plan: Plan, groups: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """2^e float32 [channels] and (position, alpha, beta) int32 [3, channels], as bytes of this layout stand for levels."""
    index, grids = plan.segment_of(), [s.a for s in plan.segments]
    powers = np.array([2.0**g.exponent for g in grids], np.float32)[index]
    beta = np.array([byte_beta(g) if groups else g.beta for g in grids], np.int32)[index]
    alpha = np.array([g.alpha for g in grids], np.int32)[index]
    ints = np.stack([row_layout(plan, groups).position, alpha, beta])
    return torch.from_numpy(powers).to(device), torch.from_numpy(ints).to(device)


# ---- tensors that are written --------------------------------------------------------------------------------------------
def outputs_of(out: Outputs, channels: int) -> list[tuple[Plan, float] | None]:
    """What `out=` names, as a list: None for float32, (plan, scale) for codes; checked against the channels."""
    outs = out if isinstance(out, list) else [out]
    codes = [one for one in outs if one is not None]
    if not outs or len(codes) > MOST_TENSORS:
        raise ValueError(
            f"out lists {len(codes)} tensors of codes and {len(outs)} tensors, expected one at least and {MOST_TENSORS} of codes at most"
        )
    for one in codes:
        if not isinstance(one, tuple) or len(one) != 2 or not isinstance(one[0], Plan):
            raise TypeError(f"out is {one!r}, expected (plan, scale) of the next layer, None, or a list of these")
        if one[0].channels != channels:
            raise ValueError(
                f"out names a plan of {one[0].channels} channels but this operation has {channels} outputs"
            )
        if isinstance(one[1], str) or not MIN_SCALE <= np.float32(one[1]) <= MAX_SCALE:
            raise ValueError(f"out has scale {one[1]!r}, expected one float in [2**-100, 2**100]")
    return [None if one is None else (one[0], float(np.float32(one[1]))) for one in outs]


def given(out: Outputs, results: Results) -> Any:
    """What the caller asked for: one tensor, or a list."""
    return results.tensors if isinstance(out, list) else results.tensors[0]


def new_results(
    outs: list[tuple[Plan, float] | None], shape: tuple[int, ...], device: torch.device, groups: int = 1
) -> Results:
    """New tensors of `shape`, of layout 1 or 0. Bytes of codes are zeros: padding stays so, and the sums are added to."""
    assert groups in (0, 1), "layers of several groups lay rows out for themselves"
    y = torch.empty(shape, dtype=torch.float32, device=device) if None in outs else None
    codes = tuple(one for one in outs if one is not None)
    if not codes:
        assert y is not None
        return Results(y, y, y, y, 0, y, FLOAT.value, 0, [y] * len(outs))
    quantizers, ints, first, segments = code_tables(codes, groups, device)
    rows = math.prod(shape[:-1])
    data = torch.zeros((rows, first[-1]), dtype=torch.int8 if groups else torch.uint8, device=device)
    sums = torch.zeros((rows, segments[-1] if groups else 0), dtype=torch.int32, device=device)
    made = []
    for i, (plan, scale) in enumerate(codes):
        row = data[:, first[i] : first[i] + row_layout(plan, groups).row_bytes]
        own = sums[:, segments[i] : segments[i + 1]] if groups else sums
        made.append(DeviceActivations(row, own, shape, plan, one_scale(scale, device), groups))
    digits = [len(plan.segments) if groups else 9 for plan, _ in codes]
    left, count = iter(made), int("".join(map(str, digits)))
    tensors = [y if one is None else next(left) for one in outs]
    out, kind = (data, CODES.value) if y is None else (y, FLOAT.value)
    return Results(out, quantizers, ints, data.view(torch.int8), data.shape[1], sums, kind, count, tensors)


@lru_cache(maxsize=1024)
def code_tables(
    outs: tuple[tuple[Plan, float], ...], groups: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    """For codes side by side in one row: (r, z, cmax) float32 and (position, zero point, segment) int32, both [tensors, 3,
    channels]; where each tensor's bytes begin and all end; the same of its segments."""
    floats, ints, first, segments = [], [], [0], [0]
    for plan, scale in outs:
        index, grids, layout = plan.segment_of(), [s.a for s in plan.segments], row_layout(plan, groups)
        r, z = (np.array([g.quantizer(np.float32(scale))[i] for g in grids], np.float32)[index] for i in (0, 1))
        floats.append([r, z, np.array([g.cmax for g in grids], np.float32)[index]])
        ints.append([layout.position + first[-1], channel_zeros(plan, groups), index + segments[-1]])
        width = layout.row_bytes if len(outs) == 1 else -(-layout.row_bytes // ALIGN) * ALIGN
        first.append(first[-1] + width)
        segments.append(segments[-1] + len(plan.segments))
    tables = np.array(floats, np.float32), np.array(ints, np.int32)
    quantizers, code_ints = (torch.from_numpy(table).to(device) for table in tables)
    return quantizers, code_ints, first, segments
