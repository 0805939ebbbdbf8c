"""The arithmetic of the kernels in torch, bit for bit: an exact integer result, then the pinned float32 epilogue.

    acc = sum over channels of 2^(e_s - E) * level_w * level_a          whole numbers, exact
    y   = float32(acc) * (input_scale * 2^E);  y = y * weight_scale[n];  y = y + bias[n]

Levels are whole numbers held in floats, already in the units of the result. While the largest possible |acc| stays
below 2^24 every partial sum of a float32 product is exact, so any order of summation gives the same bits; above it
float64 takes over (|acc| < 2^31). The op is opaque to torch.compile, which could otherwise fuse a product with a sum
and round once where the kernels round twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .exactness import float32_is_exact
from .geometry import Geometry


@torch.library.custom_op("soniq::emulate", mutates_args=())
def emulate(
    levels_x: Tensor, levels_w: Tensor, factor: Tensor, weight_scale: Tensor, bias: Tensor | None,
    geometry: Sequence[int], wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Integer result and epilogue of a Linear ([..., K] x [N, K]) or a Conv2d (NCHW x OIHW, `geometry` not empty).

    factor: input_scale * 2^E, a float32 scalar or one of each row that broadcasts against y; weight_scale, bias: float32 [N]; wide: |acc| may reach 2^24.
    Returns (y, float32(acc)); a convolution's are channels-last in memory.
    """
    place = Geometry.of_ints(geometry)
    with torch.autocast(levels_x.device.type, enabled=False):
        acc = _integer_result(levels_x, levels_w, place, wide).float()
        y = acc * factor
        y *= _columns(weight_scale, place)
        if bias is not None:
            y += _columns(bias, place)
    return y, acc


@emulate.register_fake
def _(levels_x, levels_w, factor, weight_scale, bias, geometry, wide):
    place = Geometry.of_ints(geometry)
    if place is None:
        y = levels_x.new_empty((*levels_x.shape[:-1], levels_w.shape[0]))
    else:
        size = place.output_size(*levels_x.shape[2:], levels_w.shape[2:])
        y = levels_x.new_empty((levels_x.shape[0], *size, levels_w.shape[0])).permute(0, 3, 1, 2)
    return y, torch.empty_like(y)


def _columns(vector: Tensor, place: Geometry | None) -> Tensor:
    return vector if place is None else vector.view(-1, 1, 1)


# --- exact sums --------------------------------------------------------------------------------------------------


def _integer_result(levels_x: Tensor, levels_w: Tensor, place: Geometry | None, wide: bool) -> Tensor:
    """Sums of products of levels, float32 or float64; nothing in here may round."""
    if wide or not float32_is_exact(levels_x.device):
        levels_x, levels_w = levels_x.double(), levels_w.double()
    if place is None:
        return F.linear(levels_x, levels_w)
    if levels_x.is_cpu:
        with torch.backends.nnpack.flags(enabled=False):  # it convolves by Winograd, whose fractions round
            acc = convolve(levels_x, levels_w, place)
    else:
        acc = _unfolded(levels_x, levels_w, place)
    return acc.contiguous(memory_format=torch.channels_last)


def convolve(x: Tensor, weight: Tensor, place: Geometry) -> Tensor:
    """conv2d with the padding of `place`, which may be asymmetric."""
    padding = place.padding[::2]
    if not place.symmetric:
        x, padding = _padded(x, place), (0, 0)
    return F.conv2d(x, weight, None, place.stride, padding, place.dilation, place.groups)


def _padded(x: Tensor, place: Geometry) -> Tensor:
    top, bottom, left, right = place.padding
    return F.pad(x, (left, right, top, bottom))  # exactly 0: a padded tap adds nothing


def _unfolded(levels_x: Tensor, levels_w: Tensor, place: Geometry) -> Tensor:
    """Convolution as a matrix product: a GPU library may pick Winograd or FFT for a convolution, never for this."""
    images, outputs, groups = len(levels_x), len(levels_w), place.groups
    size = place.output_size(*levels_x.shape[2:], levels_w.shape[2:])
    columns = F.unfold(_padded(levels_x, place), levels_w.shape[2:], place.dilation, 0, place.stride)
    columns = columns.view(images, groups, columns.shape[1] // groups, columns.shape[2])
    rows = levels_w.reshape(groups, outputs // groups, -1)
    return torch.matmul(rows, columns).view(images, outputs, *size)


# --- gradients ---------------------------------------------------------------------------------------------------


def _keep(ctx, inputs, output):
    levels_x, levels_w, factor, weight_scale, bias, geometry, _ = inputs
    ctx.save_for_backward(levels_x, levels_w, factor, weight_scale, output[1])
    ctx.place, ctx.has_bias = Geometry.of_ints(geometry), bias is not None
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, grad, _):
    levels_x, levels_w, factor, weight_scale, acc = ctx.saved_tensors
    shape = levels_x.shape
    if ctx.place is None:
        levels_x, acc, grad = (t.reshape(-1, t.shape[-1]) for t in (levels_x, acc, grad))
        factor = factor.reshape(-1, 1) if factor.dim() else factor
    rows = [0] if ctx.place is None else [0, 2, 3]
    grad_scale = grad_factor = None
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        weighted = grad * acc
        along = (weighted * factor if factor.dim() else weighted).sum(rows)
        grad_scale = along if factor.dim() else along * factor
        grad_factor = (along * weight_scale).sum() if ctx.needs_input_grad[2] else None
    grad_bias = grad.sum(rows) if ctx.has_bias else None
    product = _linear_gradients if ctx.place is None else _convolution_gradients
    grad = grad * (_columns(weight_scale, ctx.place) * factor)
    grad_x, grad_w = product(grad, levels_x, levels_w, ctx.place, ctx.needs_input_grad[0])
    if grad_x is not None:
        grad_x = grad_x.reshape(shape)
    return grad_x, grad_w, grad_factor, grad_scale, grad_bias, None, None


def _linear_gradients(grad, levels_x, levels_w, place, needs_x):
    return (grad @ levels_w if needs_x else None), grad.T @ levels_x


def _convolution_gradients(grad, levels_x, levels_w, place, needs_x):
    top, _, left, _ = place.padding
    padding, x = [top, left], levels_x
    if not place.symmetric:
        padding, x = [0, 0], _padded(levels_x, place)
    grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
        grad, x, levels_w, None, place.stride, padding, place.dilation, False, [0, 0], place.groups,
        [needs_x, True, False],
    )  # fmt: skip
    if needs_x and not place.symmetric:
        height, width = levels_x.shape[2:]
        grad_x = grad_x[:, :, top : top + height, left : left + width]
    return grad_x, grad_w


emulate.register_autograd(_gradients, setup_context=_keep)
