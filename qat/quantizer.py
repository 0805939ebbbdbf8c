"""The one quantizer in torch: float32 to levels, with straight-through gradients, and its noisy stand-in.

A code is int(clamp(x * r + z, 0, cmax)) with r = numerator / scale, product and sum rounded to float32 one after the
other; its level is alpha * code + beta. The constants come from `packing.Grid`, so the kernels and the training cannot
disagree about them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from soniq_kernels.packing import Grid

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**100


class Table(NamedTuple):
    """The constants of the quantizer for every channel, float32, shaped to broadcast against the tensor."""

    numerator: Tensor
    z: Tensor
    cmax: Tensor
    alpha: Tensor
    beta: Tensor

    @classmethod
    def of(cls, kind: str, bits: Tensor, shape: tuple[int, ...]) -> Table:
        """Constants for the integer tensor `bits` on grid `kind`, viewed as `shape`."""
        columns = _CONSTANTS[kind].to(bits.device)[bits].unbind(-1)
        return cls(*(column.reshape(shape) for column in columns))


def _constants(kind: str) -> Tensor:
    """float32 [9, 5]: row p holds the constants of the p-bit grid; row 0 is never read."""
    rows = [[0.0] * 5]
    for bits in range(1, 9):
        grid = Grid(kind, bits)
        numerator, z = grid.quantizer(1.0)
        rows.append([float(numerator), float(z), grid.cmax, grid.alpha, grid.beta])
    return torch.tensor(rows, dtype=torch.float32)


_CONSTANTS = {kind: _constants(kind) for kind in ("bipolar", "unsigned")}


def levels(x: Tensor, scale: Tensor, table: Table) -> Tensor:
    """Whole numbers in float32, shaped like x; `scale` broadcasts against x.

    Gradients: straight through where the code is inside 0..cmax, zero outside; for the scale the exact derivative with
    the rounding passed straight through, which is the one of LSQ once the output is multiplied by the scale again.
    """
    return _levels(x, scale, *table)


def codes(x: Tensor, scale: Tensor, table: Table) -> Tensor:
    """uint8 codes of x, by the same steps as `levels`."""
    with torch.no_grad():
        return _truncated(_affine(x, scale, table.numerator, table.z), table.cmax).to(torch.uint8)


def _affine(x: Tensor, scale: Tensor, numerator: Tensor, z: Tensor) -> Tensor:
    t = x * (numerator / scale)  # one division of a power of two, never 1 / (1 / scale)
    t += z  # a kernel of its own: fused with the product it would be rounded once instead of twice
    return t


def _truncated(t: Tensor, cmax: Tensor) -> Tensor:
    """Codes of x * r + z, in place where it can be; nothing is negative, so floor truncates. NaN gives code 0."""
    return torch.minimum(t.clamp_(min=0), cmax).floor_().nan_to_num_(nan=0.0)


@torch.library.custom_op("soniq::fake_quantize", mutates_args=())
def _levels(
    x: Tensor, scale: Tensor, numerator: Tensor, z: Tensor, cmax: Tensor, alpha: Tensor, beta: Tensor
) -> Tensor:
    return _truncated(_affine(x, scale, numerator, z), cmax).mul_(alpha).add_(beta)


@_levels.register_fake
def _(x, scale, numerator, z, cmax, alpha, beta):
    return torch.empty_like(x)


def _keep(ctx, inputs, output):
    x, scale, numerator, z, cmax, alpha, _ = inputs
    ctx.save_for_backward(x, scale, numerator, z, cmax, alpha)


def _straight_through(ctx, grad):
    x, scale, numerator, z, cmax, alpha = ctx.saved_tensors
    r = numerator / scale
    t = x * r + z
    grad_x = grad * (alpha * r) * ((t >= 0) & (t < cmax + 1))
    grad_scale = None
    if ctx.needs_input_grad[1]:
        grad_scale = -(grad_x * x / scale).sum_to_size(scale.shape)
    return grad_x, grad_scale, None, None, None, None, None


_levels.register_autograd(_straight_through, setup_context=_keep)


def noisy(x: Tensor, scale: Tensor, sigma: Tensor, kind: str, noise: bool) -> Tensor:
    """What stands for rounding while the bits are learned: clip, then add uniform noise of half a step.

    sigma = 2^(1-p) broadcasts against x. Noise of half a step is what rounding to p bits does to a value, and it has a
    gradient to p. Returns real values (levels times 2^e times scale).
    """
    top = 2 - sigma
    bottom, half_step = (-top, sigma) if kind == "bipolar" else (torch.zeros_like(top), sigma / 2)
    u = torch.clamp(x / scale, bottom, top)
    if noise:
        u = u + half_step * torch.empty_like(u).uniform_(-1, 1)
    return u * scale
