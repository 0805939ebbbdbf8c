"""QuantLinear, QuantConv1d and QuantConv2d: they hold the float layer's own parameters and compute what the kernels will compute.

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
    Pair,
    accumulator_bound,
    result_exponent,
    segment_factor,
)
from .folding import fold_batch_norm
from .geometry import Geometry, along_weight
from .nested import ALL, Nested, Planes, mixture
from .quantizer import Table, codes, levels, noisy
from .scales import average, fit_scale, learned
from .tensors import InputQuantizer, Palette

NOISE, EXACT, FOLDED = range(3)
PHASES = ("noise", "exact", "folded")


def _pairs(bits: Tensor, a_bits: Tensor) -> list[Pair]:
    return list(zip(bits.tolist(), a_bits.tolist(), strict=True))


def name_of_pair(pair: Pair) -> str:
    """How a user reads it: 4, or W4A8 where the two differ."""
    return str(pair[0]) if pair[0] == pair[1] else f"W{pair[0]}A{pair[1]}"


FloatLayer = nn.Linear | nn.Conv1d | nn.Conv2d


def channels_of(layer: FloatLayer) -> int:
    """Input channels of a convolution, input features of a Linear."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


class QuantLayer(nn.Module):
    """What both layers share. Made by `prepare`; the weight, the bias and the batch norm are the float model's objects.

    input        the quantizer of the layer's input; another layer's where both read one tensor (`share_input`)
    spread       input features per channel of the quantizer: pixels, where the layer reads a flattened image
    weight_unit, weight_gain [O]: scale = unit * |gain|; the gain is learned
    w_kind       grid of the weights, "bipolar" or "ternary"
    w_scale      "learned", or "absmean" or "absmedian": of the weights as they are
    surrogate    how gradients pass the rounding (`quantizer.levels`)
    nested       what it has for lower widths, if it is trained for any
    planes       which planes of the weights it reads; all, but while another width is trained or looked at
    rows         rows of the layer's matrix products for one sample of the example input (output pixels of a convolution)
    """

    input: InputQuantizer

    def __init__(
        self,
        layer: FloatLayer,
        palette: Palette,
        kind: str,
        learns: bool,
        spread: int = 1,
        a_palette: Palette | None = None,
    ):
        super().__init__()
        device = layer.weight.device
        self.weight, self.bias = layer.weight, layer.bias
        self.norm: nn.Module | None = None
        self.w_kind, self.w_scale, self.surrogate = WEIGHT_GRID, "learned", "clipped"
        self.nested: Nested | None = None
        self.planes = ALL
        self.rows = 1
        self.channels, self.spread = channels_of(layer), spread
        self.weight_gain = nn.Parameter(torch.ones(len(layer.weight), device=device))
        self.register_buffer("weight_unit", torch.ones(len(layer.weight), device=device))
        self.register_buffer("phase", torch.tensor(NOISE, device=device))
        self.phase_index = NOISE
        self.input = InputQuantizer(self.channels // spread, palette, kind, learns, device, a_palette)
        self.input.readers.append(self)
        self.read_bits()

    def share_input(self, other: QuantLayer) -> None:
        """Read the same codes as `other`: its quantizer serves both, and stays registered there only."""
        del self.input
        self.__dict__["input"] = other.input
        other.input.readers.append(self)
        self.read_bits()

    @property
    def owns_input(self) -> bool:
        return "input" in self._modules

    def read_bits(self) -> None:
        """Mirror what the quantizer's bits imply (see TensorQuantizer)."""
        self.kind = self.input.kind
        pairs = _pairs(self.bits, self.a_bits)
        self.pairs: tuple[Pair, ...] = tuple(sorted(set(pairs)))
        self.widths = tuple(sorted({w for w, _ in self.pairs}))
        self.widest = max(self.input.w_bits.tolist())
        self.bound = self._bound(pairs)

    def _bound(self, pairs: list[Pair]) -> int:
        return accumulator_bound(pairs, self.input.kind, self.taps, self.groups, self.w_kind)

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self.phase_index = int(self.phase)

    def read_planes(self, planes: Planes) -> None:
        """Read these planes of the weights from now on. Raises ValueError if the layer has no such width or cannot mix them."""
        is_there = self.nested is not None and planes.bits in self.nested.bits
        if planes.bits < self.widest and not is_there:
            widths = "no lower width" if self.nested is None else f"{self.nested.bits}"
            raise ValueError(
                f"the layer is trained for {widths}, not for {planes.bits} bits; see Config(nested_bits=...)"
            )
        before, self.planes = self.planes, planes
        self.read_bits()
        if len(self.pairs) > 2:
            found, self.planes = self.pairs, before
            self.read_bits()
            raise ValueError(
                f"reading some channels at {planes.bits} bits gives {len(found)} precisions ({', '.join(map(name_of_pair, found))}), "
                "a layer has at most two; read all of them so"
            )

    def set_phase(self, phase: int) -> None:
        self.phase.fill_(phase)
        self.phase_index = phase

    def set_bits(self, bits: Tensor, a_bits: Tensor | None = None) -> None:
        """Fix the precision of every channel of the input, for all layers that share it: integers of 1..8.

        bits: of the weights; a_bits: of the activations, the same if not given. At most two distinct pairs.
        Raises ValueError for anything else, or if a sum could pass int32.
        """
        self.input.set_bits(bits, a_bits)

    def check_bits(self, bits: Tensor, a_bits: Tensor) -> None:
        """Raises ValueError if the layer cannot have these bits of its input's channels."""
        same_shape = bits.shape == a_bits.shape == self.input.bits.shape
        chosen = sorted(set(_pairs(bits, a_bits))) if same_shape else []
        if not 1 <= len(chosen) <= 2 or not all(1 <= width <= 8 for pair in chosen for width in pair):
            values = sorted({*bits.tolist(), *a_bits.tolist()})
            raise ValueError(
                f"got bits of shape {tuple(bits.shape)} with values {values}, "
                f"expected {len(self.input.bits)} channels with at most two precisions in 1..8"
            )
        bound = self._bound(_pairs(self._features(bits), self._features(a_bits)))
        if bound > INT32_MAX:
            raise ValueError(
                f"sums of this layer may reach {bound}, more than int32 holds; use fewer bits or exclude the layer"
            )

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

    def _features(self, values: Tensor) -> Tensor:
        """Values of the quantizer's channels, one for every input feature of the layer."""
        return values if self.spread == 1 else values.repeat_interleave(self.spread)

    @property
    def precision(self) -> nn.Parameter:
        """Parameter: s of every channel of the input, from which the learned bits are 1 + log2(1 + e^-s)."""
        return self.input.precision

    @property
    def learns_bits(self) -> bool:
        return self.input.learns

    @property
    def palette(self) -> Palette:
        return self.input.palette

    @property
    def bits(self) -> Tensor:
        """int64 [input features]: fixed precisions of the weights, as they are read."""
        bits = self.input.w_bits
        return self._features(bits if self.planes == ALL else self.planes.of(bits))

    @property
    def a_bits(self) -> Tensor:
        """int64 [input features]: fixed precisions of the activations."""
        return self._features(self.input.bits)

    def learned_bits(self) -> Tensor:
        """Bits of the weights of every input feature as a differentiable function of `precision`."""
        return self._features(self.input.learned_bits())

    def weight_scale(self) -> Tensor:
        """float32 [O]: the scale the weights' codes are made with (before a batch norm is folded in)."""
        if self.w_scale != "learned":
            return average(self.weight.flatten(1), self.w_scale)
        return learned(self.weight_unit, self.weight_gain, self.weight[0].numel())

    def fit_weight_scale(self, importance: Tensor | None = None) -> None:
        """Start the weight scales again at the least-squares fit for `bits`; importance: what each input of an output counts."""
        rows = self.weight.detach().flatten(1)
        bits = along_weight(self.bits, self.weight).expand(-1, *self.weight.shape[1:]).flatten(1)
        self.weight_unit.copy_(fit_scale(rows, self.w_kind, bits, importance=importance))
        with torch.no_grad():
            self.weight_gain.fill_(1)

    def weight_table(self) -> Table:
        bits = along_weight(self.bits, self.kernel)
        return Table.of(self.w_kind, bits, bits.shape)

    @property
    def kernel(self) -> Tensor:
        """The weight as it multiplies: [N, K] or OIHW."""
        return self.weight

    def weight_codes(self) -> Tensor:
        """uint8 codes, shaped like `kernel`: what `convert` packs."""
        return codes(self.kernel.detach(), self._per_output(self.weight_scale()), self.weight_table())

    def weight_levels(self) -> Tensor:
        """Whole numbers in float32, shaped like `kernel`, with a gradient to the weight."""
        return levels(self.kernel, self._per_output(self.weight_scale()), self.weight_table(), self.surrogate)

    def shipped(self) -> tuple[Tensor, Tensor | None]:
        """(scale, bias) of the epilogue, float32 [O], a batch norm folded in with its running statistics."""
        full = self._shipped(None)
        lower = self._lower
        if lower is None:
            return full
        share = self.low_share()
        return tuple(
            None if a is None else mixture(a, b, share) for a, b in zip(full, self._shipped(lower), strict=True)
        )

    def low_share(self) -> Tensor:
        """float64 [O]: the share of the channels an output reads that is read at the lower width."""
        low = self._features(self.planes.low(len(self.input.bits))).view(self.groups, -1)
        share = low.sum(1).double() / low.shape[1]
        return share.repeat_interleave(len(self.weight) // self.groups).to(self.weight.device)

    @property
    def _lower(self) -> int | None:
        """The width below the full one at which channels are read."""
        return self.planes.bits if self.planes.bits < self.widest else None

    @property
    def _whole(self) -> bool:
        """Whether all channels are read at one width."""
        return self._lower is None or self.planes.share == 1

    def _sum_scale(self, lower: int | None) -> Tensor:
        """The scale behind the integer sum at the full or a lower width."""
        scale = self.weight_scale()
        return scale if lower is None else self.nested.scale(scale, lower, self.weight[0].numel())

    def _norm_at(self, lower: int | None) -> nn.Module | None:
        return self.norm if lower is None else self.nested.norm(lower)

    def _shipped(self, lower: int | None) -> tuple[Tensor, Tensor | None]:
        scale, norm = self._sum_scale(lower), self._norm_at(lower)
        if norm is None:
            return scale, self.bias
        bias = torch.zeros_like(scale) if self.bias is None else self.bias
        weight = torch.ones_like(scale) if norm.weight is None else norm.weight
        shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
        return fold_batch_norm(scale, bias, weight, shift, norm.running_mean, norm.running_var, norm.eps)

    def _per_output(self, scale: Tensor) -> Tensor:
        return scale.view(-1, *[1] * (self.kernel.dim() - 1))

    # --- forward

    def forward(self, x: Tensor) -> Tensor:
        """float32 in (lower float types are widened), float32 out; shapes as in the float layer."""
        self._check(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.entering(x.float())
            if self.phase_index == NOISE:
                return self._normalized(self._noisy(x))
            if self.norm is not None and self.norm.training and self.phase_index == EXACT and self._whole:
                return self._normalized(self._exact(x, self._sum_scale(self._lower), self.bias))
            return self._exact(x, *self.shipped())

    def _normalized(self, y: Tensor) -> Tensor:
        norm = self._norm_at(self._lower)
        return y if norm is None else norm(y)

    def entering(self, x: Tensor) -> Tensor:
        """x times the factor of each channel, if the input has factors: exact, they are powers of two."""
        return x * self.input_factor() if self.input.smooths else x

    def along_weight(self, values: Tensor) -> Tensor:
        """Values of the quantizer's channels, to broadcast against the weight."""
        return along_weight(self._features(values), self.weight)

    def input_factor(self) -> Tensor:
        """The factors of the input's channels, to broadcast against it."""
        return self._along_input(self._features(self.input.factor))

    def laid_out(self, x: Tensor) -> Tensor:
        """A float layer's input as `entering` takes it."""
        return x

    def before_norm(self, x: Tensor) -> Tensor:
        """The exact phase's forward on float32 x, without the batch norm that belongs to the layer."""
        return self._exact(self.entering(self.laid_out(x.float())), self.weight_scale(), self.bias)

    def _noisy(self, x: Tensor) -> Tensor:
        sigma, a_sigma = (self._features(each) for each in self.input.learned_sigmas())
        scale = self._per_output(self.weight_scale())
        weight = noisy(self.kernel, scale, along_weight(sigma, self.kernel), WEIGHT_GRID, self.training)
        x = noisy(x, self.input.scale_for(x, self.row_dims), self._along_input(a_sigma), self.kind, self.training)
        return self._product(x, weight)

    def _exact(self, x: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        input_scale = self.input.scale_for(x, self.row_dims)
        smooth = self.surrogate == "tanh" and self.kind == "bipolar"
        levels_x = levels(x, input_scale, self._input_table(), self.surrogate if smooth else "clipped")
        levels_w = self.weight_levels()
        segments = segment_factor((self.bits, self.a_bits), self.kernel, self.kind, self.pairs)
        if segments is not None:
            levels_w = levels_w * segments
        factor = input_scale * 2.0 ** result_exponent(self.pairs, self.kind, self.w_kind)
        y, _ = emulate(levels_x, levels_w, factor, weight_scale, bias, self._geometry, self.bound >= FLOAT32_EXACT)
        return y

    def _input_table(self) -> Table:
        return self.input.table(lambda bits: self._along_input(self._features(bits)))

    def _check(self, x: Tensor) -> None:
        found = x.shape[self._channel_dim] if x.dim() >= -self._channel_dim else None
        if found != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected {self.channels} channels in dimension {self._channel_dim}"
            )

    def extra_repr(self) -> str:
        bits = "learned" if self.phase_index == NOISE and self.learns_bits else "+".join(map(name_of_pair, self.pairs))
        shape = f"{self.channels} -> {len(self.weight)}"
        return f"{shape}, bits={bits}, a_grid={self.kind}, phase={PHASES[self.phase_index]}"


class QuantLinear(QuantLayer):
    """A quantized nn.Linear: x [..., in_features] to [..., out_features]."""

    _channel_dim = -1
    row_dims: tuple[int, ...] = (-1,)
    _geometry: tuple[int, ...] = ()

    def __init__(self, layer: nn.Linear, *fields, **more):
        super().__init__(layer, *fields, **more)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def _along_input(self, values: Tensor) -> Tensor:
        return values

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class QuantConv2d(QuantLayer):
    """A quantized nn.Conv2d: x [B, C, H, W] (or [C, H, W]), zero padding only."""

    _channel_dim = -3
    row_dims = (-3, -2, -1)

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, *fields, **more):
        super().__init__(layer, *fields, **more)
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


class QuantConv1d(QuantConv2d):
    """A quantized nn.Conv1d: x [B, C, L] (or [C, L]), zero padding only; computed as an image of height 1."""

    @property
    def kernel(self) -> Tensor:
        return self.weight.unsqueeze(-2)

    def _normalized(self, y: Tensor) -> Tensor:
        return super()._normalized(y.squeeze(-2)).unsqueeze(-2)

    def laid_out(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-2)

    def before_norm(self, x: Tensor) -> Tensor:
        return super().before_norm(x).squeeze(-2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(-2)).squeeze(-2)
