"""Codes of a tensor on a GPU."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from soniq_kernels.activations import Activations
from soniq_kernels.plans import Plan
from soniq_kernels.triton_kernels import move
from soniq_kernels.triton_kernels.layout import RowLayout, row_layout


class DeviceActivations:
    """A tensor of codes on a GPU, its plan, and its scale.

    Attributes:
        data: int8 [rows, row_bytes], laid out as layout.py says; rows may lie apart. shape: of the tensor, [..., channels].
        sums: int32 [rows, groups * segments], the sum of each part's bytes.
        plan: the tensor's plan. groups: of the layer that the rows are laid out for; 0: uint8 codes in stored order, no sums.
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
        return move.in_original_order(self.data, self.plan, self.groups).reshape(self.shape)

    def laid_out_for(self, groups: int) -> DeviceActivations:
        """The same codes, as a layer of so many groups reads them."""
        if groups == self.groups:
            return self
        data, sums = move.relaid(self.data, self.plan, self.groups, groups)
        return DeviceActivations(data, sums, self.shape, self.plan, self.scale, groups)

    def cpu(self) -> Activations:
        """The same codes for the CPU functions."""
        scale = self.scale.cpu().numpy()
        one_each = (self.shape[0],) if len(self.shape) == 4 else self.shape[:-1]
        return Activations.from_codes(
            self.codes().cpu().numpy(), self.plan, scale.reshape(() if scale.size == 1 else one_each)
        )

    def __repr__(self) -> str:
        return f"DeviceActivations{self.shape} of {self.plan}, on {self.device}"


def from_codes(codes: torch.Tensor, plan: Plan, scale: Any, groups: int = 1) -> DeviceActivations:
    """Codes on a GPU that already exist: uint8 [..., channels] in the original channel order, images for example.

    scale: a float, or a float32 tensor of 1 element, one per row, or one per NHWC image. Codes are not checked.
    """
    if codes.dtype != torch.uint8 or codes.shape[-1] != plan.channels:
        raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)}, expected torch.uint8 [..., {plan.channels}]")
    data, sums = move.relaid(codes.reshape(-1, plan.channels).contiguous(), plan, None, groups)
    return DeviceActivations(data, sums, tuple(codes.shape), plan, scale_tensor(scale, codes.device), groups)


def scale_tensor(scale: Any, device: torch.device) -> torch.Tensor:
    """float32, flat; of a float it is kept for the next call, so that no call copies anything."""
    if isinstance(scale, torch.Tensor):
        return scale.to(device, torch.float32).reshape(-1)
    return one_scale(float(np.float32(scale)), device)


@lru_cache(maxsize=1024)
def one_scale(value: float, device: torch.device) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32, device=device)


def from_host(x: Activations, device: Any = "cuda", groups: int = 1) -> DeviceActivations:
    """Codes of the CPU functions, copied to a GPU."""
    codes = torch.from_numpy(np.ascontiguousarray(x.codes())).to(device)
    return from_codes(codes, x.plan, torch.from_numpy(np.array(x.scale)), groups)
