"""Ranges without labels: the scales at which a layer's output is nearest to the float layer's on calibration data.

The smallest error of the values themselves (`fit_scale`) is where the search starts, weights counted by the size of their
inputs. What counts is the error of the layer's output, in which large weights and large inputs weigh more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layers import QuantLayer
from .scales import fit_scale
from .tensors import InputQuantizer, full_range

INPUT_FACTORS = torch.logspace(-0.8, 0.4, 9, base=2.0).tolist()
WEIGHT_FACTORS = torch.logspace(-0.5, 0.25, 7, base=2.0).tolist()
SAMPLE = 1 << 16


class Target(NamedTuple):
    """What a quantized layer reads, x [items, ...], and what the float layer makes of the same items, y [items, ...]."""

    layer: QuantLayer
    x: Tensor
    y: Tensor

    def error(self) -> float:
        """Mean squared error of the layer's output over the mean square of y, rows weighted."""
        size = self.y.double().square().mul_(self.row_weights().view(-1, *[1] * (self.y.dim() - 1))).sum()
        return float(self.errors().sum() / size.clamp(min=1e-30))

    def errors(self) -> Tensor:
        """float64 [O]: squared error of each output, rows weighted."""
        with torch.no_grad():
            difference = (self.layer(self.x) - self.y).double().square_()
        if difference.dim() > 2:
            return difference.transpose(0, 1).flatten(1).sum(1)
        return difference.mul_(self.row_weights().unsqueeze(1)).sum(0)

    def row_weights(self) -> Tensor:
        """float64 [items]: what the squared error of each item counts, 1 for all images.

        A few tokens of a Transformer have outputs a hundred times as large as all others; the norm behind the sum takes
        that size away. So a row of y counts by the median square of all rows over its own plus that median.
        """
        if self.y.dim() > 2:
            return self.y.new_ones(len(self.y), dtype=torch.float64)
        squares = self.y.double().square().mean(1)
        median = squares.median().clamp(min=1e-30)
        return 2 * median / (squares + median)

    def channel_weights(self) -> Tensor | None:
        """float32 [K]: what an error in each input's weights of a Linear counts, its mean square; None for a convolution."""
        if self.y.dim() > 2:
            return None
        x = self.layer.entering(self.x).square().mul_(self.row_weights().float().unsqueeze(1))
        return x.mean(0).clamp_(min=1e-30)


def search_ranges(targets: Sequence[Target]) -> None:
    """Fit the scales of layers that read one tensor, in place: the tensor's, then those of each output's weights."""
    start_ranges(targets)
    if is_searched(targets[0].layer.input):
        _search_input(targets[0].layer.input, targets)
    for target in targets:
        _search_weights(target)


def start_ranges(targets: Sequence[Target]) -> None:
    """The scales with the smallest error of the weights and of the input by themselves, in place."""
    for target in targets:
        target.layer.fit_weight_scale(target.channel_weights())
    if is_searched(targets[0].layer.input):
        _start_input(targets)


def is_searched(quantizer: InputQuantizer) -> bool:
    """False where rows have scales of their own, and for the first layer's range, which loses nothing of 8-bit images."""
    return not quantizer.per_row and quantizer.gain.requires_grad


def _start_input(targets: Sequence[Target]) -> None:
    """The scale of a tensor with the smallest error of its values; the full range at 8 bits."""
    layer, x = targets[0].layer, targets[0].layer.entering(targets[0].layer.laid_out(targets[0].x))
    quantizer = layer.input
    bits = max(quantizer.widths)
    flat = x.flatten()
    flat = flat[:: max(1, flat.numel() // SAMPLE)]
    if bits == 8:
        quantizer.unit.fill_(full_range(float(flat.abs().max()), quantizer.kind, 8))
    else:
        width = torch.tensor([[bits]], device=x.device)
        quantizer.unit.copy_(fit_scale(flat.view(1, -1), quantizer.kind, width)[0])
    with torch.no_grad():
        quantizer.gain.fill_(1)


def _search_input(quantizer: InputQuantizer, targets: Sequence[Target]) -> None:
    start, errors = quantizer.unit.clone(), []
    for factor in INPUT_FACTORS:
        quantizer.unit.copy_(start * factor)
        errors.append(sum(target.error() for target in targets))
    quantizer.unit.copy_(start * INPUT_FACTORS[errors.index(min(errors))])


def _search_weights(target: Target) -> None:
    """Each output has its own best factor; one run of the layer tries a factor for all of them."""
    layer = target.layer
    start, least = layer.weight_unit.clone(), target.errors()
    best = start.clone()
    for factor in WEIGHT_FACTORS:
        layer.weight_unit.copy_(start * factor)
        errors = target.errors()
        best = torch.where(errors < least, layer.weight_unit, best)
        least = torch.minimum(errors, least)
    layer.weight_unit.copy_(best)
