"""The arithmetic contract in NumPy: int64 sums of levels and float32 steps, written from the definitions alone.

Nothing of soniq_kernels is imported here and no trick of the kernels is repeated: a code becomes a level by the formula of
its grid, levels are multiplied and added as int64, a padded tap is a tap that is never visited. Slow and obvious on purpose.

    value = level * 2^exponent * scale          acc = sum over channels k of 2^(e_k - E) * level_w[n, k] * level_a[m, k]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

F32 = np.float32
INT32_MAX = 2**31 - 1


class Grid(NamedTuple):
    """One operand's grid: the formula that makes a level from a code."""

    kind: str
    bits: int
    offset: int = 0
    shift: int = 0


class Layout(NamedTuple):
    """Which (weight grid, activation grid) pair each channel of a tensor uses; segment[k] indexes pairs."""

    segment: tuple[int, ...]
    pairs: tuple[tuple[Grid, Grid], ...]

    @property
    def channels(self) -> int:
        """Channels of the tensor."""
        return len(self.segment)

    @property
    def used(self) -> list[int]:
        """Segments that own at least one channel."""
        return sorted(set(self.segment))


def uniform(channels: int, w_grid: Grid, a_grid: Grid) -> Layout:
    """A layout of one segment."""
    return Layout((0,) * channels, ((w_grid, a_grid),))


# ---- grids ------------------------------------------------------------------------------------------------------------


def cmax(grid: Grid) -> int:
    """The largest code."""
    return 2 if grid.kind == "ternary" else 2**grid.bits - 1


def level(grid: Grid, code: int) -> int:
    """The level of one code, offset included."""
    formulas = {
        "bipolar": 2 * code - (2**grid.bits - 1),
        "unsigned": code,
        "signed": code - 2**grid.bits // 2,
        "ternary": code - 1,
    }
    return formulas[grid.kind] + grid.offset


def levels(grid: Grid) -> np.ndarray:
    """The level of every code, int64 [cmax + 1]."""
    return np.array([level(grid, code) for code in range(cmax(grid) + 1)], dtype=np.int64)


def exponent(grid: Grid) -> int:
    """The power of two of one level step, shift included."""
    return (0 if grid.kind == "ternary" else 1 - grid.bits) + grid.shift


def largest_magnitude(grid: Grid) -> int:
    """max |level|, the operand's share of the int32 bound."""
    return int(np.abs(levels(grid)).max())


def channel_levels(codes: np.ndarray, segment, grids) -> np.ndarray:
    """Levels of codes [..., C] whose channel k lies on grids[segment[k]], int64."""
    out = np.empty(codes.shape, dtype=np.int64)
    for index, grid in enumerate(grids):
        mine = np.asarray(segment) == index
        out[..., mine] = levels(grid)[codes[..., mine]]
    return out


def channel_exponents(segment, grids) -> np.ndarray:
    """The exponent of every channel, int64 [C]."""
    return np.array([exponent(grid) for grid in grids], dtype=np.int64)[np.asarray(segment)]


# ---- the integer result -----------------------------------------------------------------------------------------------


def w_grids(layout: Layout) -> list[Grid]:
    """The weight grid of each segment."""
    return [w for w, _ in layout.pairs]


def a_grids(layout: Layout) -> list[Grid]:
    """The activation grid of each segment."""
    return [a for _, a in layout.pairs]


def pair_exponent(pair: tuple[Grid, Grid]) -> int:
    """e_s = e_w + e_a."""
    return exponent(pair[0]) + exponent(pair[1])


def total_exponent(layout: Layout) -> int:
    """E, the unit of the accumulators: the least e_s of the segments that have channels."""
    return min(pair_exponent(layout.pairs[s]) for s in layout.used)


def channel_factors(layout: Layout) -> np.ndarray:
    """2^(e_s - E) of every channel, int64 [C]."""
    unit = total_exponent(layout)
    return np.array([2 ** (pair_exponent(layout.pairs[s]) - unit) for s in layout.segment], dtype=np.int64)


def bound(layout: Layout, taps: int = 1, groups: int = 1) -> int:
    """The largest |acc| that any codes of this layout can reach, over the groups."""
    per_pair = [largest_magnitude(w) * largest_magnitude(a) for w, a in layout.pairs]
    per_channel = [int(f) * per_pair[s] for f, s in zip(channel_factors(layout), layout.segment, strict=True)]
    width = layout.channels // groups
    return max(taps * sum(per_channel[g * width : (g + 1) * width]) for g in range(groups))


def largest_k(w_grid: Grid, a_grid: Grid) -> int:
    """The largest K of one segment whose sums surely fit int32."""
    return INT32_MAX // (largest_magnitude(w_grid) * largest_magnitude(a_grid))


def matmul(x_codes: np.ndarray, w_codes: np.ndarray, layout: Layout) -> np.ndarray:
    """acc of codes [..., K] and [N, K], int64 [..., N], in units of 2^E."""
    x_levels = channel_levels(x_codes, layout.segment, a_grids(layout)) * channel_factors(layout)
    return x_levels @ channel_levels(w_codes, layout.segment, w_grids(layout)).T


def weight_levels(w_codes: np.ndarray, layout: Layout) -> np.ndarray:
    """Levels of weights [O, kh, kw, I/groups]; output o of group g reads the tensor's channels g*I/groups onwards."""
    groups = layout.channels // w_codes.shape[-1]
    segments = np.reshape(layout.segment, (groups, -1))
    parts = zip(np.split(w_codes, groups), segments, strict=True)
    return np.concatenate([channel_levels(part, segment, w_grids(layout)) for part, segment in parts])


def output_size(size: int, taps: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Output positions along one axis."""
    return (size + before + after - dilation * (taps - 1) - 1) // stride + 1


def valid_taps(position: int, taps: int, stride: int, before: int, dilation: int, size: int):
    """(taps, input coordinates) of the taps of one output position that fall on the input, along one axis."""
    coordinates = position * stride - before + dilation * np.arange(taps)
    inside = (coordinates >= 0) & (coordinates < size)
    return np.flatnonzero(inside), coordinates[inside]


def conv2d(x_codes, w_codes, layout: Layout, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)) -> np.ndarray:
    """acc of NHWC and OHWI codes, int64 NHWC; padding is (top, bottom, left, right) and adds exactly nothing."""
    batch, height, width, channels = x_codes.shape
    outputs, kh, kw, per_group = w_codes.shape
    groups = channels // per_group
    top, bottom, left, right = padding
    x_levels = channel_levels(x_codes, layout.segment, a_grids(layout)) * channel_factors(layout)
    w_levels = weight_levels(w_codes, layout).reshape(groups, outputs // groups, kh, kw, per_group)
    out_h = output_size(height, kh, stride[0], top, bottom, dilation[0])
    out_w = output_size(width, kw, stride[1], left, right, dilation[1])
    acc = np.zeros((batch, out_h, out_w, outputs), dtype=np.int64)
    for oy, ox in np.ndindex(out_h, out_w):
        ky, iy = valid_taps(oy, kh, stride[0], top, dilation[0], height)
        kx, ix = valid_taps(ox, kw, stride[1], left, dilation[1], width)
        pixels = x_levels[:, iy[:, None], ix].reshape(batch, -1, groups, per_group)
        weights = w_levels[:, :, ky[:, None], kx].reshape(groups, outputs // groups, -1, per_group)
        acc[:, oy, ox] = np.einsum("btgc,gotc->bgo", pixels, weights).reshape(batch, outputs)
    return acc


# ---- float32, one rounding a step -------------------------------------------------------------------------------------


def times_power_of_two(scale, power) -> np.ndarray:
    """scale * 2^power in float32, exact for the scales the contract allows."""
    return np.ldexp(np.asarray(scale, F32), power).astype(F32)


def quantizer(grid: Grid, scale) -> tuple[np.ndarray, np.float32]:
    """(r, z) of the one quantizer: code = trunc(clamp(y*r + z, 0, cmax))."""
    p, offset = grid.bits, grid.offset
    power, z = {
        "bipolar": (p - 2, 2 ** (p - 1) - offset / 2),
        "unsigned": (p - 1, 0.5 - offset),
        "signed": (p - 1, 2 ** (p - 1) + 0.5 - offset),
        "ternary": (0, 1.5 - offset),
    }[grid.kind]
    return F32(2.0 ** (power - grid.shift)) / np.asarray(scale, F32), F32(z)


def quantize(y: np.ndarray, grid: Grid, scale) -> np.ndarray:
    """Codes of float32 values, uint8; scale broadcasts against y. NaN gives code 0."""
    r, z = quantizer(grid, scale)
    with np.errstate(all="ignore"):
        product = np.asarray(y, F32) * r
        total = product + z
        assert product.dtype == total.dtype == F32
        positive = np.where(total > 0, total, F32(0))
        return np.where(positive < cmax(grid), positive, F32(cmax(grid))).astype(np.uint8)


def quantize_channels(y: np.ndarray, segment, grids, scale) -> np.ndarray:
    """Codes of values [..., C] whose channel k goes to grids[segment[k]]."""
    out = np.empty(y.shape, dtype=np.uint8)
    for index, grid in enumerate(grids):
        mine = np.asarray(segment) == index
        out[..., mine] = quantize(y[..., mine], grid, scale)
    return out


def quantize_weights(w: np.ndarray, layout: Layout, scale) -> np.ndarray:
    """Codes of float32 weights [N, K] or OHWI; scale [N] is one per output channel."""
    groups = layout.channels // w.shape[-1]
    segments = np.reshape(layout.segment, (groups, -1))
    column = np.reshape(scale, (-1,) + (1,) * (w.ndim - 1))
    parts = zip(np.split(w, groups), np.split(column, groups), segments, strict=True)
    return np.concatenate([quantize_channels(part, seg, w_grids(layout), s) for part, s, seg in parts])


def dequantize(codes: np.ndarray, segment, grids, scale) -> np.ndarray:
    """float32(level) * (scale * 2^e): one rounding, for [..., C] codes; scale broadcasts."""
    step = times_power_of_two(scale, channel_exponents(segment, grids))
    return channel_levels(codes, segment, grids).astype(F32) * step


def row_scale(x: np.ndarray, layout: Layout, axes) -> np.ndarray:
    """The `per_row` scale: amax over axes, brought to the largest level value of the widest activation grid."""
    grids = [a_grids(layout)[s] for s in layout.used]
    widest = max(grids, key=lambda g: (g.bits, level(g, cmax(g)) * 2.0 ** exponent(g)))
    amax = np.fmax.reduce(np.abs(x.astype(F32)), axis=axes, initial=F32(0))
    largest = level(widest, cmax(widest)) * 2.0 ** exponent(widest)
    factor = F32(0.5) if widest.kind == "bipolar" else F32(1) / F32(largest)
    with np.errstate(all="ignore"):
        return np.clip(amax * factor, F32(2.0**-100), F32(2.0**100)).astype(F32)


def activate(y: np.ndarray, activation) -> np.ndarray:
    """The activation step; comparisons as written, so that NaN and -0 fall where the contract puts them."""
    if activation is None:
        return y
    if activation in ("relu", "relu6"):
        y = np.where(y > 0, y, F32(0))
        return np.where(y < 6, y, F32(6)) if activation == "relu6" else y
    _, low, high = activation
    return np.where(y > F32(low), np.where(y < F32(high), y, F32(high)), F32(low))


class Epilogue(NamedTuple):
    """The float32 steps that follow the accumulators; None leaves a step out."""

    w_scale: np.ndarray
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    activation: str | tuple | None = None
    post_scale: np.ndarray | None = None
    post_bias: np.ndarray | None = None


def epilogue(acc: np.ndarray, a_scale, unit: int, steps: Epilogue) -> np.ndarray:
    """float32 outputs of accumulators [..., N] in units of 2^unit; a_scale is a scalar or broadcasts against acc."""
    assert np.abs(acc).max(initial=0) <= INT32_MAX
    with np.errstate(all="ignore"):
        y = acc.astype(F32) * times_power_of_two(a_scale, unit)
        y = y * steps.w_scale.astype(F32)
        y = y if steps.bias is None else y + steps.bias.astype(F32)
        y = y if steps.residual is None else y + steps.residual.astype(F32)
        y = activate(y, steps.activation)
        y = y if steps.post_scale is None else y * steps.post_scale.astype(F32)
        y = y if steps.post_bias is None else y + steps.post_bias.astype(F32)
    assert y.dtype == F32
    return y


# ---- between layers -----------------------------------------------------------------------------------------------------


def windows(x: np.ndarray, kernel, stride, padding=(0, 0, 0, 0)):
    """(output row, output column, x of the window's positions inside the image [B, positions, C]), NHWC; padding as conv2d's."""
    _, height, width, _ = x.shape
    top, bottom, left, right = padding
    for oy in range(output_size(height, kernel[0], stride[0], top, bottom, 1)):
        for ox in range(output_size(width, kernel[1], stride[1], left, right, 1)):
            _, iy = valid_taps(oy, kernel[0], stride[0], top, 1, height)
            _, ix = valid_taps(ox, kernel[1], stride[1], left, 1, width)
            yield oy, ox, x[:, iy[:, None], ix].reshape(x.shape[0], -1, x.shape[3])


def pooled(parts, batch: int, channels: int, dtype) -> np.ndarray:
    """The results [B, C] of (row, column, result) as one NHWC array."""
    parts = list(parts)
    out = np.empty((batch, parts[-1][0] + 1, parts[-1][1] + 1, channels), dtype)
    for oy, ox, part in parts:
        out[:, oy, ox] = part
    return out


def max_pool(codes: np.ndarray, kernel, stride, padding=(0, 0, 0, 0)) -> np.ndarray:
    """The largest code of each window, positions in the padding left out."""
    parts = ((oy, ox, taps.max(1)) for oy, ox, taps in windows(codes, kernel, stride, padding))
    return pooled(parts, codes.shape[0], codes.shape[3], np.uint8)


def avg_pool(codes: np.ndarray, segment, grids, scale, kernel, stride) -> np.ndarray:
    """float32(sum of levels) * (scale * 2^e), rounded, then * float32(1 / count), rounded; scale is () or [B]."""
    step = times_power_of_two(np.reshape(scale, (-1, 1)), channel_exponents(segment, grids))
    inverse = F32(1) / F32(kernel[0] * kernel[1])
    parts = (
        (oy, ox, channel_levels(taps, segment, grids).sum(1).astype(F32) * step * inverse)
        for oy, ox, taps in windows(codes, kernel, stride)
    )
    return pooled(parts, codes.shape[0], codes.shape[3], F32)


# ---- inputs worth quantizing ----------------------------------------------------------------------------------------------


def values_near(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """float32 around the ranges of all grids at this scale: in range, at exact ties, zeros of both signs, denormal, far out."""
    x = (rng.normal(size=shape) * 1.5 * scale).astype(F32)
    ties = (rng.integers(-64, 65, size=shape) / 32 * scale).astype(F32)
    x = np.where(rng.random(shape) < 0.3, ties, x)
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-39, 3e38, -3e38], F32)
    return np.where(rng.random(shape) < 0.1, rng.choice(special, size=shape), x)
