"""QuantLinear and QuantConv2d: they hold the float layer's own parameters and compute what the kernels will compute.

Three phases, kept in the buffer `phase`:
    NOISE  bits are learned: uniform noise of half a step stands for rounding
    EXACT  bits are fixed, the arithmetic is the kernels'; a batch norm still uses batch statistics while training
    FOLDED as EXACT, with the batch norm's statistics fixed: the training forward is what ships
eval() of EXACT and FOLDED is the same: batch norm folded, bit for bit the packed layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .emulation import convolve, emulate
from .exactness import (
    FLOAT32_EXACT,
    INT32_MAX,
    WEIGHT_GRID,
    accumulator_bound,
    result_exponent,
    segment_factor,
)
from .folding import fold_batch_norm
from .geometry import Geometry, along_weight
from .quantizer import Table, codes, levels, noisy
from .scales import fit_scale, learned

NOISE, EXACT, FOLDED = range(3)
PHASES = ("noise", "exact", "folded")


class QuantLayer(nn.Module):
    """What both layers share. Made by `prepare`; the weight, the bias and the batch norm are the float model's objects.

    precision    Parameter [C]: s, from which the learned bits are 1 + log2(1 + e^-s)
    bits         int64 [C]: the precision of every input channel once the phase is not NOISE
    weight_unit, weight_gain [O], input_unit, input_gain []: scale = unit * |gain|; gains are learned
    rows         rows of the layer's matrix products for one sample of the example input (output pixels of a convolution)
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, channels: int, palette: tuple[int, int], kind: str, learns: bool):
        super().__init__()
        device = layer.weight.device
        self.weight, self.bias = layer.weight, layer.bias
        self.norm: nn.Module | None = None
        self.rows = 1
        self.channels, self.palette, self.learns_bits = channels, palette, learns
        self.precision = nn.Parameter(torch.zeros(channels, device=device), requires_grad=learns)
        self.weight_gain = nn.Parameter(torch.ones(len(layer.weight), device=device))
        self.input_gain = nn.Parameter(torch.ones((), device=device))
        self.register_buffer("weight_unit", torch.ones(len(layer.weight), device=device))
        self.register_buffer("input_unit", torch.ones((), device=device))
        self.register_buffer("bits", torch.full((channels,), palette[1], device=device))
        self.register_buffer("phase", torch.tensor(NOISE, device=device))
        self.register_buffer("unsigned", torch.tensor(kind == "unsigned", device=device))
        self._read_buffers()

    # Forward must not read a buffer's value (it would synchronise a GPU and break torch.compile's graph), so the few
    # that steer it are mirrored in plain attributes wherever they change.

    def _read_buffers(self) -> None:
        self.kind = "unsigned" if bool(self.unsigned) else "bipolar"
        self.phase_index = int(self.phase)
        bits = self.bits.tolist()
        self.widths = tuple(sorted(set(bits)))
        self.bound = accumulator_bound(bits, self.kind, self.taps, self.groups)

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self._read_buffers()

    def set_phase(self, phase: int) -> None:
        self.phase.fill_(phase)
        self._read_buffers()

    def set_bits(self, bits: Tensor) -> None:
        """Fix the precision of every input channel: integers [C], at most two distinct values of 1..8.

        Raises ValueError for anything else, or if a sum could pass int32.
        """
        chosen = sorted(set(bits.tolist()))
        if bits.shape != self.bits.shape or len(chosen) > 2 or chosen[0] < 1 or chosen[-1] > 8:
            raise ValueError(
                f"got bits of shape {tuple(bits.shape)} with values {chosen}, "
                f"expected {self.channels} channels with at most two precisions in 1..8"
            )
        bound = accumulator_bound(bits.tolist(), self.kind, self.taps, self.groups)
        if bound > INT32_MAX:
            raise ValueError(
                f"sums of this layer may reach {bound}, more than int32 holds; use fewer bits or exclude the layer"
            )
        self.bits.copy_(bits)
        self._read_buffers()

    # --- sizes

    @property
    def taps(self) -> int:
        """Weights of one output that read one input channel."""
        return math.prod(self.weight.shape[2:])

    @property
    def groups(self) -> int:
        return self.channels // self.weight.shape[1]

    @property
    def weights_per_channel(self) -> int:
        return self.weight.numel() // self.channels

    # --- what is learned, and what it stands for

    def learned_bits(self) -> Tensor:
        """Bits of every input channel as a differentiable function of `precision`: 1 + log2(1 + e^-s)."""
        return 1 + F.softplus(-self.precision) / math.log(2)

    def weight_scale(self) -> Tensor:
        """float32 [O]: the scale the weights' codes are made with (before a batch norm is folded in)."""
        return learned(self.weight_unit, self.weight_gain, self.weight[0].numel())

    def input_scale(self, values: int = 1) -> Tensor:
        """float32 scalar: the scale of the activations' codes."""
        return learned(self.input_unit, self.input_gain, values)

    def fit_weight_scale(self) -> None:
        """Start the weight scales again at the least-squares fit for `bits`."""
        rows = self.weight.detach().flatten(1)
        bits = along_weight(self.bits, self.weight).expand(-1, *self.weight.shape[1:]).flatten(1)
        self.weight_unit.copy_(fit_scale(rows, WEIGHT_GRID, bits))
        with torch.no_grad():
            self.weight_gain.fill_(1)

    def weight_table(self) -> Table:
        bits = along_weight(self.bits, self.weight)
        return Table.of(WEIGHT_GRID, bits, bits.shape)

    def weight_codes(self) -> Tensor:
        """uint8 codes, shaped like the weight: what `convert` packs."""
        return codes(self.weight.detach(), self._per_output(self.weight_scale()), self.weight_table())

    def shipped(self) -> tuple[Tensor, Tensor | None]:
        """(scale, bias) of the epilogue, float32 [O], a batch norm folded in with its running statistics."""
        scale = self.weight_scale()
        norm = self.norm
        if norm is None:
            return scale, self.bias
        bias = torch.zeros_like(scale) if self.bias is None else self.bias
        weight = torch.ones_like(scale) if norm.weight is None else norm.weight
        shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
        return fold_batch_norm(scale, bias, weight, shift, norm.running_mean, norm.running_var, norm.eps)

    def _per_output(self, scale: Tensor) -> Tensor:
        return scale.view(-1, *[1] * (self.weight.dim() - 1))

    # --- forward

    def forward(self, x: Tensor) -> Tensor:
        """float32 in (lower float types are widened), float32 out; shapes as in the float layer."""
        self._check(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.phase_index == NOISE:
                y = self._noisy(x)
                return y if self.norm is None else self.norm(y)
            if self.norm is not None and self.norm.training and self.phase_index == EXACT:
                return self.norm(self._exact(x, self.weight_scale(), self.bias))
            return self._exact(x, *self.shipped())

    def _noisy(self, x: Tensor) -> Tensor:
        sigma = torch.sigmoid(self.precision)
        scale = self._per_output(self.weight_scale())
        weight = noisy(self.weight, scale, along_weight(sigma, self.weight), WEIGHT_GRID, self.training)
        x = noisy(x, self._input_scale_for(x), self._along_input(sigma), self.kind, self.training)
        return self._product(x, weight)

    def _exact(self, x: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        input_scale = self._input_scale_for(x)
        levels_x = levels(x, input_scale, self._input_table())
        levels_w = levels(self.weight, self._per_output(self.weight_scale()), self.weight_table())
        segments = segment_factor(self.bits, self.weight, self.kind, self.widths)
        if segments is not None:
            levels_w = levels_w * segments
        factor = input_scale * 2.0 ** result_exponent(self.widths, self.kind)
        y, _ = emulate(levels_x, levels_w, factor, weight_scale, bias, self._geometry, self.bound >= FLOAT32_EXACT)
        return y

    def _input_scale_for(self, x: Tensor) -> Tensor:
        return self.input_scale(math.prod(x.shape[1:]))

    def _input_table(self) -> Table:
        bits = self._along_input(self.bits)
        return Table.of(self.kind, bits, bits.shape)

    def _check(self, x: Tensor) -> None:
        found = x.shape[self._channel_dim] if x.dim() >= -self._channel_dim else None
        if found != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected {self.channels} channels in dimension {self._channel_dim}"
            )

    def extra_repr(self) -> str:
        bits = "learned" if self.phase_index == NOISE and self.learns_bits else "+".join(map(str, self.widths))
        shape = f"{self.channels} -> {len(self.weight)}"
        return f"{shape}, bits={bits}, a_grid={self.kind}, phase={PHASES[self.phase_index]}"


class QuantLinear(QuantLayer):
    """A quantized nn.Linear: x [..., in_features] to [..., out_features]."""

    _channel_dim = -1
    _geometry: tuple[int, ...] = ()

    def __init__(self, layer: nn.Linear, palette: tuple[int, int], kind: str, learns: bool):
        super().__init__(layer, layer.in_features, palette, kind, learns)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def _along_input(self, values: Tensor) -> Tensor:
        return values

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class QuantConv2d(QuantLayer):
    """A quantized nn.Conv2d: x [B, C, H, W] (or [C, H, W]), zero padding only."""

    _channel_dim = -3

    def __init__(self, layer: nn.Conv2d, palette: tuple[int, int], kind: str, learns: bool):
        super().__init__(layer, layer.in_channels, palette, kind, learns)
        self.place = Geometry.of(layer)
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self._geometry = self.place.ints()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return super().forward(x.unsqueeze(0)).squeeze(0)
        return super().forward(x)

    def _along_input(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        y = convolve(x, weight, self.place)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)
