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

    def laid_out_for(self, groups: int) -> DeviceActivations:
        """The same codes, as a layer of so many groups reads them."""
        if groups == self.groups:
            return self
        layout = row_layout(self.plan, groups)
        source = torch.as_tensor(layout.source, device=self.device).long()
        position = torch.as_tensor(self.layout.position, device=self.device).long()
        data = self.data[:, position[source.clamp(min=0)]] * (source >= 0).to(torch.int8)
        return DeviceActivations(data, part_sums(data, layout), self.shape, self.plan, self.scale, groups)

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


def part_sums(data: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """int32 [rows, groups * segments] of int8 [rows, row_bytes]."""
    by_group = data.reshape(data.shape[0], layout.groups, layout.group_bytes)
    parts = torch.split(by_group, list(layout.padded), dim=2)
    return torch.stack([part.sum(dim=2, dtype=torch.int32) for part in parts], dim=2).reshape(data.shape[0], -1)


def from_codes(codes: torch.Tensor, plan: Plan, scale: Any, groups: int = 1) -> DeviceActivations:
    """Codes on a GPU that already exist: uint8 [..., channels] in the original channel order, images for example.

    scale: a float, or a float32 tensor of 1 element, one per row, or one per NHWC image. Codes are not checked.
    """
    if codes.dtype != torch.uint8 or codes.shape[-1] != plan.channels:
        raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)}, expected torch.uint8 [..., {plan.channels}]")
    layout = row_layout(plan, groups)
    zeros = torch.as_tensor(channel_zeros(plan), device=codes.device)
    own = (codes.reshape(-1, plan.channels).to(torch.int16) - zeros).to(torch.int8)
    source = torch.as_tensor(layout.source, device=codes.device).long()
    data = own[:, source.clamp(min=0)] * (source >= 0).to(torch.int8)
    scales = torch.as_tensor(scale, dtype=torch.float32, device=codes.device).reshape(-1)
    return DeviceActivations(data, part_sums(data, layout), tuple(codes.shape), plan, scales, groups)


def from_host(x: Activations, device: Any = "cuda", groups: int = 1) -> DeviceActivations:
    """Codes of the CPU functions, copied to a GPU."""
    codes = torch.from_numpy(np.ascontiguousarray(x.codes())).to(device)
    return from_codes(codes, x.plan, torch.from_numpy(np.array(x.scale)), groups)
