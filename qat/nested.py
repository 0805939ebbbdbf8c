"""One network for several widths: the top planes of its weights are the network at fewer bits.

On the bipolar grid a code of q bits is the high end of the code of p bits, and both come from one scale; so a layer that is
read at q bits needs nothing of its own but what comes behind the integer sum: a factor of the scale and a batch norm.
Training all widths at once is what makes the low ones good (Yu et al., any-precision networks; Nair et al., 2025, Matryoshka
quantization); a batch norm for each width is from Yu and Huang, 2019 (slimmable networks).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .scales import learned

if TYPE_CHECKING:
    from .layers import QuantLayer


class Planes(NamedTuple):
    """Which planes of the weights are read: the first `bits` of the first `share` of the channels, all of the others."""

    bits: int
    share: float = 1.0

    def low(self, channels: int) -> Tensor:
        """bool [channels]: those at fewer bits."""
        return torch.arange(channels) < round(self.share * channels)

    def of(self, bits: Tensor) -> Tensor:
        """int64 [channels]: what is read of the precisions `bits`."""
        return torch.where(self.low(len(bits)).to(bits.device), bits.clamp(max=self.bits), bits)


ALL = Planes(8)


class Nested(nn.Module):
    """What a layer has for the lower widths beside its weights.

    bits   the widths, falling
    gain   Parameter [widths, O]: the scale at a width is that of the full width times |gain|
    norms  a batch norm of each width, if the layer has one
    """

    def __init__(self, bits: tuple[int, ...], layer: QuantLayer):
        super().__init__()
        self.bits = bits
        self.gain = nn.Parameter(layer.weight_gain.new_ones(len(bits), len(layer.weight)))
        self.norms = nn.ModuleList([] if layer.norm is None else [copy.deepcopy(layer.norm) for _ in bits])
        self.training = layer.training

    def norm(self, bits: int) -> nn.Module | None:
        """The batch norm of a width."""
        return self.norms[self.bits.index(bits)] if len(self.norms) else None

    def scale(self, full: Tensor, bits: int, values: int) -> Tensor:
        """float32 [O]: the scale behind the sum; full: that of the full width, of so many values each."""
        return learned(full, self.gain[self.bits.index(bits)], values)

    @torch.no_grad()
    def start(self, layer: QuantLayer) -> None:
        """First values: the factors that bring what is left of the weights nearest to them, and the layer's own batch norm."""
        weight, scale = layer.kernel.flatten(1), layer.weight_scale().unsqueeze(1)
        for bits, gain in zip(self.bits, self.gain, strict=True):
            layer.read_planes(Planes(bits))
            left = (layer.weight_levels() * layer.weight_table().unit).flatten(1) * scale
            power = left.square().sum(1)
            gain.copy_(torch.where(power > 0, (left * weight).sum(1) / power, 1.0).abs())
        layer.read_planes(ALL)
        for norm in self.norms:
            norm.load_state_dict(layer.norm.state_dict())


@torch.library.custom_op("soniq::mixture", mutates_args=())
def mixture(full: Tensor, lower: Tensor, share: Tensor) -> Tensor:
    """Float32 [O]: between two vectors for outputs that read a share (float64 [O]) of their channels at the lower width.

    In float64, rounded once, as `PackedWeights.at_bits` does it; opaque to torch.compile.
    """
    return (full.double() * (1 - share) + lower.double() * share).float()


@mixture.register_fake
def _(full, lower, share):
    return torch.empty_like(full)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[2].float())


def _gradients(ctx, grad):
    (share,) = ctx.saved_tensors
    return grad * (1 - share), grad * share, None


mixture.register_autograd(_gradients, setup_context=_keep)
