"""Where a layer's channels and taps lie: what a convolution needs beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Geometry(NamedTuple):
    """Stride, padding (top, bottom, left, right), dilation and groups of a convolution; a 1-D one has height 1."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv1d | nn.Conv2d) -> Geometry:
        """The geometry of a convolution, its padding spelled out."""
        stride, dilation = ((1, *size)[-2:] for size in (layer.stride, layer.dilation))
        return cls(stride, _padding(layer), dilation, layer.groups)

    @classmethod
    def of_ints(cls, ints: Sequence[int]) -> Geometry | None:
        """Back from `ints`; None (a Linear) from nothing."""
        return cls(tuple(ints[0:2]), tuple(ints[2:6]), tuple(ints[6:8]), ints[8]) if ints else None

    def ints(self) -> list[int]:
        """The nine numbers, as an op takes them."""
        return [*self.stride, *self.padding, *self.dilation, self.groups]

    @property
    def symmetric(self) -> bool:
        top, bottom, left, right = self.padding
        return (top, left) == (bottom, right)

    def output_size(self, height: int, width: int, kernel: Sequence[int]) -> tuple[int, int]:
        """(height, width) of the result."""
        top, bottom, left, right = self.padding
        return (
            self._positions(height + top + bottom, kernel[0], 0),
            self._positions(width + left + right, kernel[1], 1),
        )

    def _positions(self, size: int, kernel: int, axis: int) -> int:
        return (size - self.dilation[axis] * (kernel - 1) - 1) // self.stride[axis] + 1


def _padding(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, int, int, int]:
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        sizes = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        height, width = (0, *sizes)[-2:]
        return (height // 2, height - height // 2, width // 2, width - width // 2)
    vertical, horizontal = (0, *layer.padding)[-2:]
    return (vertical, vertical, horizontal, horizontal)


def along_weight(values: Tensor, weight: Tensor) -> Tensor:
    """Values of the input channels [C], laid out to broadcast against the weight [O, C / groups, ...].

    Output channel o belongs to group o // (O / groups) and sees that group's input channels only.
    """
    outputs, per_group = weight.shape[:2]
    groups = values.numel() // per_group
    rows = values.view(groups, 1, per_group)
    if groups > 1:
        rows = rows.expand(groups, outputs // groups, per_group).reshape(outputs, per_group)
    return rows.reshape(-1, per_group, *[1] * (weight.dim() - 2))
