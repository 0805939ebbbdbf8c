"""Batch norm as part of a layer's scale and bias: the same function while training, in eval and in convert."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("soniq::fold_batch_norm", mutates_args=())
def fold_batch_norm(
    scale: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and bias (float32 [N]) of a layer followed by a batch norm with fixed statistics.

    Computed in float64 and rounded once; opaque to torch.compile, so it gives the same bits everywhere.
    """
    gain = weight.double() / (variance.double() + eps).sqrt()
    folded_scale = scale.double() * gain
    folded_bias = (bias.double() - mean.double()) * gain + shift.double()
    return folded_scale.float(), folded_bias.float()


@fold_batch_norm.register_fake
def _(scale, bias, weight, shift, mean, variance, eps):
    return torch.empty_like(scale), torch.empty_like(scale)


def _keep(ctx, inputs, output):
    scale, bias, weight, _, mean, variance, eps = inputs
    ctx.save_for_backward(scale, bias, weight, mean, (variance + eps).rsqrt())


def _gradients(ctx, grad_scale, grad_bias):
    scale, bias, weight, mean, rsqrt = ctx.saved_tensors
    gain = weight * rsqrt
    grad_weight = (grad_scale * scale + grad_bias * (bias - mean)) * rsqrt
    return grad_scale * gain, grad_bias * gain, grad_weight, grad_bias, None, None, None


fold_batch_norm.register_autograd(_gradients, setup_context=_keep)
