"""Batch norms that stand behind an activation function: a product and a sum of their own in the layer's epilogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .folding import fold_batch_norm


class QuantNorm(nn.Module):
    """A BatchNorm2d, y = x * g + h, with g and h rounded once from float64 and each step rounded, as the kernels do it.

    While it trains it is the batch norm itself, until `fix_batch_norm`.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.norm = norm
        self.register_buffer("folded", torch.tensor(False, device=norm.running_mean.device))
        self.is_folded = False

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self.is_folded = bool(self.folded)

    def fix(self) -> None:
        """From now on the statistics do not change."""
        self.folded.fill_(True)
        self.is_folded = True

    def shipped(self) -> tuple[Tensor, Tensor]:
        """(g, h), float32, one of every channel."""
        norm = self.norm
        one, zero = torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)
        weight, shift = (one, zero) if norm.weight is None else (norm.weight, norm.bias)
        return fold_batch_norm(one, zero, weight, shift, norm.running_mean, norm.running_var, norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm.training and not self.is_folded:
            return self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            return affine(x.float(), *self.shipped())


class PackedNorm(nn.Module):
    """The same with fixed numbers: buffers g and h, float32 [C]."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("g", torch.ones(features))
        self.register_buffer("h", torch.zeros(features))

    @classmethod
    def of(cls, norm: QuantNorm) -> PackedNorm:
        """What convert puts in place of a trained one."""
        packed = cls(norm.norm.num_features)
        with torch.no_grad():
            packed.g, packed.h = (value.detach().clone() for value in norm.shipped())
        return packed

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.g, self.h)


@torch.library.custom_op("soniq::affine", mutates_args=())
def affine(x: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """x * g + h for NCHW, product and sum each rounded; opaque, or a compiler could round once."""
    y = x * g.view(-1, 1, 1)
    y += h.view(-1, 1, 1)
    return y


@affine.register_fake
def _(x, g, h):
    return torch.empty_like(x)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx, grad):
    x, g = ctx.saved_tensors
    return grad * g.view(-1, 1, 1), (grad * x).sum((0, 2, 3)), grad.sum((0, 2, 3))


affine.register_autograd(_gradients, setup_context=_keep)
