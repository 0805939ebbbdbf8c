"""Scales: a first guess by least squares, then a learned factor whose gradient is scaled as in LSQ."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantizer import LARGEST_SCALE, SMALLEST_SCALE, Table, levels


def fit_scale(x: Tensor, kind: str, bits: Tensor, candidates: int = 40, importance: Tensor | None = None) -> Tensor:
    """Float32 [rows]: for each row of x [rows, values] the scale with the smallest squared error.

    `bits` is an integer tensor that broadcasts against x: one width, or one for every value. A row of zeros gets scale 1.
    importance: float32 [values], what the squared error of each counts; all alike if not given.
    """
    with torch.no_grad():
        table = Table.of(kind, bits, bits.shape)
        counts = 1.0 if importance is None else importance
        amax = x.abs().amax(dim=1, keepdim=True).clamp(max=LARGEST_SCALE)
        best = torch.where(amax > 0, amax / 2, torch.ones_like(amax)).clamp_(min=SMALLEST_SCALE)
        least = torch.full_like(best, torch.inf)
        for fraction in torch.logspace(-1.2, 0.3, candidates).tolist():
            scale = torch.where(amax > 0, amax / 2 * fraction, torch.ones_like(amax)).clamp_(min=SMALLEST_SCALE)
            error = (levels(x, scale, table) * table.unit * scale - x).square().mul_(counts).sum(dim=1, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best.squeeze(1)


def average(x: Tensor, how: str) -> Tensor:
    """float32 [rows]: the mean ("absmean") or median ("absmedian") of |x| of each row of x [rows, values]: the scale of
    ternary weights in BitNet b1.58 (Ma et al., 2024, arXiv 2402.17764) and of one-bit ones in XNOR-Net (Rastegari et al., 2016).

    The same bits in any order of summation: the mean is a sum of whole numbers, 2^-38 of the row's largest value at most. No gradient.
    """
    with torch.no_grad():
        size = x.abs().double()
        if how == "absmedian":
            found = size.median(dim=1).values
        else:
            unit = torch.exp2(torch.frexp(size.amax(1, keepdim=True)).exponent - 38.0)
            found = (size / unit).round_().long().sum(1).double() * unit.squeeze(1) / x.shape[1]
        return torch.where(found > 0, found, 1.0).float().clamp_(SMALLEST_SCALE, LARGEST_SCALE)


def learned(unit: Tensor, gain: Tensor, values: int) -> Tensor:
    """The scale unit * |gain|: positive, and relative, so that one learning rate suits every layer.

    `values` is how many numbers the scale serves: its gradient, a sum over all of them, is divided by the square root.
    """
    scale = unit * _ScaledGradient.apply(gain, values**-0.5).abs()
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE)


class _ScaledGradient(torch.autograd.Function):
    """The identity, bit for bit, with its gradient times a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None
