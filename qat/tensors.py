"""How one tensor becomes codes: precision and scale. They belong to the tensor, so layers that read one tensor share them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soniq_kernels.packing import Grid

from .observe import Seen
from .quantizer import LARGEST_SCALE, SMALLEST_SCALE, Table
from .scales import fit_scale, learned

Palette = tuple[int, int]


class TensorQuantizer(nn.Module):
    """A tensor's grid and its one scale, or a scale of every row.

    bits         int64 [C] (or [1]: all channels alike): the precision of every channel once it is fixed
    unit, gain   [], [1]: scale = unit * |gain|; the gain is learned
    kind         "unsigned" or "bipolar"
    per_row      the scale of a row follows from its largest value, as the kernels find it; unit and gain play no part
    """

    def __init__(self, channels: int, bits: int, kind: str, device: torch.device | None = None):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, device=device))  # not a scalar, which fully_shard does not take
        self.register_buffer("unit", torch.ones((), device=device))
        self.register_buffer("bits", torch.full((channels,), bits, device=device))
        self.register_buffer("unsigned", torch.tensor(kind == "unsigned", device=device))
        self.register_buffer("rowwise", torch.tensor(False, device=device))
        self._read_buffers()

    # Forward must not read a buffer's value (it would synchronise a GPU and break torch.compile's graph), so the few
    # that steer it are mirrored in plain attributes wherever they change.

    def _read_buffers(self) -> None:
        self.kind = "unsigned" if bool(self.unsigned) else "bipolar"
        self.per_row = bool(self.rowwise)
        self.widths = tuple(sorted(set(self.bits.tolist())))

    def scale_rows(self) -> None:
        """From now on each row has a scale of its own."""
        self.rowwise.fill_(True)
        self.gain.requires_grad_(False)
        self._read_buffers()

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self._read_buffers()

    def scale(self, values: int = 1) -> Tensor:
        """float32 scalar; `values`: how many numbers of one sample it serves, for the size of its gradient."""
        return learned(self.unit, self.gain.squeeze(0), values)

    def scale_for(self, x: Tensor, row: tuple[int, ...] = (-1,)) -> Tensor:
        """The scale in a forward on x, whose first dimension is the batch; row: the dimensions that make one row."""
        if self.per_row:
            return row_scale(x, row, self.kind, self.widths[-1])
        return self.scale(math.prod(x.shape[1:]))

    def table(self, along: Callable[[Tensor], Tensor]) -> Table:
        """The quantizer's constants for every channel; `along` shapes [C] to broadcast against the tensor."""
        bits = along(self.bits)
        return Table.of(self.kind, bits, bits.shape)


def whole(parameter: Tensor) -> Tensor:
    """The parameter, gathered where fully_shard has split it; the gradient goes back to its shards."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


class InputQuantizer(TensorQuantizer):
    """What layers read: codes whose precision is learned channel by channel.

    precision   Parameter [C]: s, from which the learned bits of the weights are 1 + log2(1 + e^-s)
    bits, w_bits  int64 [C]: fixed precisions of the tensor's channels, and of the weights that multiply them
    palette     (low, high): the precisions the weights of a channel may have
    a_palette   (low, high): those of the channel itself; a channel has both low or both high
    factor      float32 [C]: what channels are multiplied by before anything else, powers of two (see smoothing.py)
    readers     the layers that share this quantizer; the first one owns it and has it in its state_dict
    """

    def __init__(
        self,
        channels: int,
        palette: Palette,
        kind: str,
        learns: bool,
        device: torch.device | None = None,
        a_palette: Palette | None = None,
    ):
        self.readers: list[Any] = []
        self.palette, self.a_palette, self.learns = palette, a_palette or palette, learns
        super().__init__(channels, self.a_palette[1], kind, device)
        self.register_buffer("w_bits", torch.full((channels,), palette[1], device=device))
        self.register_buffer("factor", torch.ones(channels, device=device))
        self.precision = nn.Parameter(torch.zeros(channels, device=device), requires_grad=learns)

    def _read_buffers(self) -> None:
        super()._read_buffers()
        self.smooths = hasattr(self, "factor") and bool((self.factor != 1).any())
        for layer in self.readers:
            layer.read_bits()

    def set_factor(self, factor: Tensor) -> None:
        """Multiply the channels by these powers of two from now on."""
        self.factor.copy_(factor)
        self._read_buffers()

    def learned_bits(self) -> Tensor:
        """Bits of the weights of every channel as a differentiable function of `precision`."""
        return 1 + F.softplus(-whole(self.precision)) / math.log(2)

    def learned_sigmas(self) -> tuple[Tensor, Tensor]:
        """2^(1 - bits) of the weights and of the activations: the same place between the two levels of their palettes."""
        sigma = torch.sigmoid(self.precision)
        if self.palette == self.a_palette:
            return sigma, sigma
        return sigma, torch.exp2(1 - self.a_bits_at(self.learned_bits())).clamp(max=1 - 2.0**-24)

    def a_bits_at(self, bits: Any) -> Any:
        """Bits of the activations where the weights have `bits`: the same place between the levels of the palettes."""
        (low, high), (a_low, a_high) = self.palette, self.a_palette
        return a_low + (bits - low) * ((a_high - a_low) / max(high - low, 1))

    def set_bits(self, bits: Tensor, a_bits: Tensor | None = None) -> None:
        """Fix the precision of every channel, for all readers. Raises ValueError as `QuantLayer.set_bits`."""
        a_bits = bits if a_bits is None else a_bits
        for layer in self.readers:
            layer.check_bits(bits, a_bits)
        self.w_bits.copy_(bits)
        self.bits.copy_(a_bits)
        self._read_buffers()

    def set_high(self, is_high: Tensor, palette: Palette, a_palette: Palette) -> None:
        """Fix every channel at the low or (bool [C]) the high level of these palettes, which are its own from now on."""
        is_high = is_high.to(self.bits.device)
        self.palette, self.a_palette = palette, a_palette
        self.set_bits(*(torch.where(is_high, high, low) for low, high in (palette, a_palette)))


def row_scale(x: Tensor, row: tuple[int, ...], kind: str, bits: int) -> Tensor:
    """float32, shaped like x with 1 in the dimensions `row`: the kernels' "per_row" rule; `bits` of the widest channel.

    A constant to the gradient: the largest value of a row is not what training moves.
    """
    factor = float(Grid(kind, bits).dynamic_factor)
    return (x.detach().abs().amax(row, keepdim=True) * factor).clamp_(SMALLEST_SCALE, LARGEST_SCALE)


def fit_input(quantizer: TensorQuantizer, bits: int, seen: Seen) -> None:
    """The first scale of a tensor: its full range at 8 bits, else by least squares."""
    if bits == 8:
        quantizer.unit.fill_(full_range(seen.largest, quantizer.kind, 8))
    else:
        width = torch.tensor([[bits]], device=quantizer.bits.device)
        quantizer.unit.copy_(fit_scale(seen.sample.view(1, -1), quantizer.kind, width)[0])


def full_range(largest: float, kind: str, bits: int) -> float:
    """The scale at which the grid's largest value is `largest`."""
    grid = Grid(kind, bits)
    scale = largest / (grid.max_level * 2.0**grid.exponent)
    return min(max(scale, SMALLEST_SCALE), LARGEST_SCALE) if scale > 0 else 1.0
