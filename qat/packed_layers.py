"""PackedLinear, PackedConv1d and PackedConv2d: what convert puts in place of the quantized layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soniq_kernels import packing, torch_ops

from .geometry import Geometry
from .layouts import line_last
from .norms import PackedNorm, affine


class PackedLayer(nn.Module):
    """Holds packed weights as the uint8 buffer `packed`, the bytes of a saved file. CPU.

    input_factor: float32 that broadcasts against x, or None: what float32 inputs are multiplied by first.
    """

    input_factor: Tensor | None

    def __init__(self, packed: packing.PackedWeights, input_factor: Tensor | None = None):
        super().__init__()
        self.register_buffer("input_factor", input_factor)
        self.register_buffer("packed", torch_ops.weights_to_tensor(packed))
        self._read(packed)

    def _read(self, packed: packing.PackedWeights) -> None:
        self.channels, self.outputs = packed.plan.channels, packed.out_channels

    def packed_weights(self) -> packing.PackedWeights:
        """The packed weights, for looking at: codes(), plan, scale, save(path)."""
        return torch_ops.weights_from_tensor(self.packed.cpu())

    def _load_from_state_dict(self, state_dict, prefix, *arguments) -> None:
        new = state_dict.get(prefix + "packed")
        if new is not None:  # other bits make another length, so the buffer is replaced, not copied into
            self._accept(torch_ops.weights_from_tensor(new.cpu()), prefix)
            self.packed = torch.empty_like(new, device=self.packed.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _accept(self, packed: packing.PackedWeights, prefix: str) -> None:
        found, expected = (packed.plan.channels, packed.out_channels), (self.channels, self.outputs)
        if found != expected:
            raise ValueError(f"{prefix}packed has {found} (inputs, outputs), this layer has {expected}")

    def take(self, norm: PackedNorm) -> None:
        """Make a batch norm behind the activation function part of this layer's epilogue."""
        old = self.packed_weights()
        if old.post_scale is None:
            new = packing.pack(
                old.codes(), old.plan, old.scale, old.bias, old.activation_scale, norm.g.numpy(), norm.h.numpy(),
                old.scales_at_bits, old.biases_at_bits,
            )  # fmt: skip
            self.packed = torch_ops.weights_to_tensor(new)

    def with_norm(self, y: Tensor) -> Tensor:
        """What `forward` makes of the float layer's result y: the same, or a norm taken behind it."""
        weights = self.packed_weights()
        if weights.post_scale is None:
            return y
        return affine(y, torch.from_numpy(weights.post_scale), torch.from_numpy(weights.post_bias))

    def extra_repr(self) -> str:
        weights = self.packed_weights()
        bits = "+".join(str(segment.w.bits) for segment in weights.plan.segments)
        return f"{self.channels} -> {self.outputs}, bits={bits}, bytes={weights.nbytes}"

    def forward(
        self, x: Tensor, x_codes: str = "", outs: str = "",
        residual: Tensor | None = None, residual_codes: str = "", activation: str = "null",
    ) -> Tensor | list[Tensor]:  # fmt: skip
        """float32 to float32 as in the float layer; with `outs`, a list of what they describe, channels last.

        x_codes, outs, residual_codes: descriptions (soniq_kernels.tensors) of tensors of codes; activation: JSON.
        x may be float32 all the same, as torch lays it out.
        """
        if x.is_floating_point():
            x = x.float() if self.input_factor is None else x.float() * self.input_factor
        if not outs:
            return self._plain(x.float())
        if x.is_floating_point():
            x = self._entered(x)
        return self._with_epilogue(x, x_codes, outs, residual, residual_codes, activation)


class PackedLinear(PackedLayer):
    """A Linear on the kernels: x [..., in_features] to [..., out_features].

    pixels: of the flattened image that it reads. Codes of an image lie channels last, so the weights' columns do too.
    """

    def __init__(self, packed: packing.PackedWeights, pixels: int = 1, input_factor: Tensor | None = None):
        super().__init__(packed, input_factor)
        self.pixels = pixels

    def _entered(self, x: Tensor) -> Tensor:
        if self.pixels == 1:
            return x
        return x.unflatten(-1, (-1, self.pixels)).transpose(-1, -2).flatten(-2)

    def _plain(self, x: Tensor) -> Tensor:
        return torch.ops.soniq.linear(self._entered(x), self.packed, self.outputs)

    def _with_epilogue(self, x, x_codes, *epilogue) -> list[Tensor]:
        outs, *rest = epilogue
        return torch.ops.soniq.linear_codes(x, x_codes, self.packed, self.outputs, outs, *rest)


class PackedConv2d(PackedLayer):
    """A Conv2d on the kernels: x [B, C, H, W] (or [C, H, W]), result channels last in memory."""

    def __init__(self, packed: packing.PackedWeights, place: Geometry, input_factor: Tensor | None = None):
        super().__init__(packed, input_factor)
        self.place = place

    def _read(self, packed: packing.PackedWeights) -> None:
        super()._read(packed)
        self.kernel_size = list(packed.shape[1:3])

    def _entered(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def _plain(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return PackedConv2d._plain(self, x.unsqueeze(0)).squeeze(0)
        place = self.place
        return torch.ops.soniq.conv2d(
            x, self.packed, self.outputs, self.kernel_size, place.stride, place.padding, place.dilation
        )

    def _with_epilogue(self, x, x_codes, *epilogue) -> list[Tensor]:
        place, (outs, *rest) = self.place, epilogue
        return torch.ops.soniq.conv2d_codes(
            x,
            x_codes,
            self.packed,
            self.outputs,
            self.kernel_size,
            place.stride,
            place.padding,
            place.dilation,
            outs,
            *rest,
        )


class PackedConv1d(PackedConv2d):
    """A Conv1d on the kernels: x [B, C, L] (or [C, L]), an image of height 1; codes are [B, 1, L, C]."""

    def _entered(self, x: Tensor) -> Tensor:
        return line_last(x)

    def _plain(self, x: Tensor) -> Tensor:
        return super()._plain(x.unsqueeze(-2)).squeeze(-2)
