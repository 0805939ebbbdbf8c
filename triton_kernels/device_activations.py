"""Codes of a tensor on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from soniq_kernels.activations import Activations
from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels.layout import RowLayout, row_layout, zero_point


class DeviceActivations:
    """A tensor of codes on a GPU, its plan, and its scale.

    Attributes:
        data: int8 [rows, row_bytes], laid out as layout.py says. shape: of the tensor, [..., channels].
        sums: int32 [rows, groups * segments], the sum of each part's bytes.
        plan: the tensor's plan. groups: of the layer that the rows are laid out for.
        scale: float32 tensor of 1 element, one per row, or one per NHWC image.
    """

    def __init__(
        self,
        data: torch.Tensor,
        sums: torch.Tensor,
        shape: tuple[int, ...],
        plan: Plan,
        scale: torch.Tensor,
        groups: int = 1,
    ) -> None:
        self.data, self.sums, self.shape = data, sums, tuple(shape)
        self.plan, self.scale, self.groups = plan, scale, groups

    @property
    def rows(self) -> int:
        """Rows of the matrix, pixels of an image."""
        return math.prod(self.shape[:-1])

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def layout(self) -> RowLayout:
        return row_layout(self.plan, self.groups)

    @property
    def rows_per_scale(self) -> int:
        """Consecutive rows that share a scale."""
        return max(1, self.rows // max(1, self.scale.numel()))

    def codes(self) -> torch.Tensor:
        """uint8, `shape`, in the original channel order."""
        position = torch.as_tensor(self.layout.position, device=self.device).long()
        zeros = torch.as_tensor(channel_zeros(self.plan), device=self.device)
        return (self.data[:, position].to(torch.int16) + zeros).to(torch.uint8).reshape(self.shape)

    def cpu(self) -> Activations:
        """The same codes for the CPU functions."""
        scale = self.scale.cpu().numpy()
        one_each = (self.shape[0],) if len(self.shape) == 4 else self.shape[:-1]
        return Activations.from_codes(
            self.codes().cpu().numpy(), self.plan, scale.reshape(() if scale.size == 1 else one_each)
        )

    def __repr__(self) -> str:
        return f"DeviceActivations{self.shape} of {self.plan}, on {self.device}"


def channel_zeros(plan: Plan) -> np.ndarray:
    """int16 [channels]: the zero point of each original channel."""
    return np.array([zero_point(s.a) for s in plan.segments], np.int16)[plan.segment_of()]


def from_host(x: Activations, device: Any = "cuda", groups: int = 1) -> DeviceActivations:
    """Codes of the CPU functions, copied to a GPU."""
    layout = row_layout(x.plan, groups)
    codes = x.codes().reshape(-1, x.plan.channels).astype(np.int16) - channel_zeros(x.plan)
    data = np.zeros((codes.shape[0], layout.row_bytes), np.int8)
    data[:, layout.position] = codes
    parts = np.cumsum([0, *(layout.padded * groups)])[:-1]
    sums = np.add.reduceat(data.astype(np.int32), parts, axis=1) if data.size else np.zeros((0, len(parts)), np.int32)
    to = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
    return DeviceActivations(to(data), to(sums), x.shape, x.plan, to(x.scale.reshape(-1)), groups)
