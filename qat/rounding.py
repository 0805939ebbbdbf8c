"""Rounding that makes good: of a Linear's weights, each rounded one is compensated by those that are still free.

After GPTQ (Frantar et al., arXiv 2210.17323), with two changes: the weights are first moved to where they best make good for
the rounding of the inputs (least squares), and channels of few bits are rounded first, since those of many bits compensate
finely. Scales stay as they are; the weights become exactly the values of their codes. Rows that were not looked at decide
whether it was worth it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .exactness import WEIGHT_GRID
from .layers import QuantLinear
from .quantizer import Table, levels
from .ranges import Target

RIDGE = 0.01  # of the mean of H's diagonal: what holds the weights where they are


@torch.no_grad()
def round_weights(target: Target, check: Target) -> None:
    """Choose the weights of one Linear, in place, by the error of its output; taken back if that of `check` does not get smaller."""
    layer = target.layer
    if not isinstance(layer, QuantLinear):
        return
    before, kept = check.error(), layer.weight.clone()
    root = target.row_weights().sqrt().float().unsqueeze(1)
    x = input_values(layer, target.x) * root
    wanted = (target.y if layer.bias is None else target.y - layer.bias) * root
    second = (x.T @ x).double()
    second += RIDGE * second.diagonal().mean().clamp(min=1e-30) * torch.eye(len(second), dtype=second.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    weight = layer.weight.double() + ((wanted - x @ layer.weight.T).T @ x).double() @ inverse
    layer.weight.copy_(_rounded(layer, weight, second.diagonal(), inverse))
    if not check.error() < before:
        layer.weight.copy_(kept)


def input_values(layer: QuantLinear, x: Tensor) -> Tensor:
    """What the codes of the layer's input stand for, float32 like x."""
    x = layer.entering(x)
    scale = layer.input.scale_for(x, layer.row_dims)
    table = layer.input.table(layer._features)
    return levels(x, scale, table) * (scale * table.unit)


def _rounded(layer: QuantLinear, weight: Tensor, diagonal: Tensor, inverse: Tensor) -> Tensor:
    """Column after column, the error of each spread over those that follow; float32 values of codes."""
    order = torch.argsort(layer.bits.double() - diagonal / diagonal.max().clamp(min=1e-30) / 2)
    weight, bits = weight[:, order], layer.bits[order]
    upper = torch.linalg.cholesky(inverse[order][:, order], upper=True)
    scale = layer.weight_scale()
    chosen = torch.empty(weight.shape)
    for k, bit in enumerate(bits):
        table = Table.of(WEIGHT_GRID, bit.view(1), (1,))
        chosen[:, k] = levels(weight[:, k].float(), scale, table) * (scale * table.unit)
        error = (weight[:, k] - chosen[:, k].double()) / upper[k, k]
        weight[:, k + 1 :] -= error.unsqueeze(1) * upper[k, k + 1 :]
    result = torch.empty_like(chosen)
    result[:, order] = chosen
    return result
