"""Packed weights on a GPU: panels, the constants of the integer algebra, the vectors of the epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from soniq_kernels.triton_kernels import panels
from soniq_kernels.triton_kernels.layout import RowLayout, row_layout
from soniq_kernels.weights import PackedWeights

# Rows of the two tables that the epilogue reads, one value per output channel.
FLOATS = ("w_scale", "bias", "post_scale", "post_bias")


class DeviceWeights:
    """Weights of one layer on a GPU. Make them with `to_device(packed)` or `packed.to("cuda")`.

    Attributes:
        plan, shape, groups, kernel_size, exponent, activation_scale: as of packing.PackedWeights.
        shapes: per segment panels.SegmentShape. panels: per segment uint8 tensor, see panels.py.
        order: the segments in the order that they are multiplied in, the one that counts most first.
        vectors: float32 [4, outputs], rows as FLOATS names them. has: which of FLOATS there are.
        row_layout: of the activations that it reads.
    """

    def __init__(self, packed: PackedWeights, device: Any) -> None:
        self.device = torch.device(device)
        self.plan, self.shape, self.groups = packed.plan, packed.shape, packed.groups
        self.kernel_size, self.exponent = packed.kernel_size, packed.exponent
        self.activation_scale = packed.activation_scale
        self.row_layout: RowLayout = row_layout(packed.plan, packed.groups)
        self._host = panels.build(packed)
        self.packed = packed
        self.shapes, self.saturates = self._host.shapes, self._host.saturates
        self.panel_outputs, self.group_outputs = self._host.panel_outputs, self._host.group_outputs
        self.panels = tuple(self.upload(array) for array in self._host.arrays)
        self.order = tuple(sorted(range(len(self.shapes)), key=lambda s: -self.shapes[s].factor))
        vectors = [packed.scale, packed.bias, packed.post_scale, packed.post_bias]
        self.has = dict(zip(FLOATS, (v is not None for v in vectors), strict=True))
        nothing = np.zeros(self.out_channels, np.float32)
        self.vectors = self.upload(np.stack([nothing if v is None else v for v in vectors]))
        self.cache: dict[Any, Any] = {}  # tables that calls ask for again: borders, output plans, workspaces

    @property
    def out_channels(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the panels."""
        return sum(panel.nbytes for panel in self.panels)

    def words(self) -> tuple[torch.Tensor, ...]:
        """The panels as int32, four bytes a word."""
        if "words" not in self.cache:
            self.cache["words"] = tuple(panel.view(torch.int32) for panel in self.panels)
        return self.cache["words"]

    def upload(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def column_terms(self, taps: np.ndarray) -> torch.Tensor:
        """int32 [classes, outputs] for bool [classes, taps], see panels.column_terms; kept for the next call."""
        key = "terms", taps.tobytes(), taps.shape
        if key not in self.cache:
            self.cache[key] = self.upload(panels.column_terms(self.packed, self._host, taps))
        return self.cache[key]

    def __repr__(self) -> str:
        return f"DeviceWeights{self.shape}, {self.plan}, on {self.device}"


def to_device(packed: PackedWeights, device: Any = "cuda") -> DeviceWeights:
    """`packed` on a GPU; its panels are built here, once."""
    if not isinstance(packed, PackedWeights):
        raise TypeError(
            f"packed is a {type(packed).__name__}, expected packing.PackedWeights; make it with packing.quantize_weights"
        )
    return DeviceWeights(packed, device)
