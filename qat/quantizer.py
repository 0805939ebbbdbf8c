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

    @property
    def unit(self) -> Tensor:
        """2^e: what one level is worth at scale 1."""
        return 1 / (self.alpha * self.numerator)  # powers of two, so exact


def _constants(kind: str) -> Tensor:
    """float32 [9, 5]: row p holds the constants of the p-bit grid; row 0 is never read."""
    rows = [[0.0] * 5]
    for bits in range(1, 9):
        grid = Grid(kind, 2 if kind == "ternary" else bits)  # the other rows of the ternary grid are never read
        numerator, z = grid.quantizer(1.0)
        rows.append([float(numerator), float(z), grid.cmax, grid.alpha, grid.beta])
    return torch.tensor(rows, dtype=torch.float32)


_CONSTANTS = {kind: _constants(kind) for kind in ("bipolar", "unsigned", "ternary")}


def levels(x: Tensor, scale: Tensor, table: Table, surrogate: str = "clipped") -> Tensor:
    """Whole numbers in float32, shaped like x; `scale` broadcasts against x.

    Gradients pass the rounding as `surrogate` says, v being the place of x in the grid, -1 and 1 its ends: "clipped" straight
    through where the code is inside 0..cmax, zero outside; "identity" straight through everywhere; "tanh" times the derivative
    of tanh(2v), which falls smoothly towards the ends. For the scale the exact derivative with the rounding passed likewise,
    which for "clipped" is the one of LSQ once the output is multiplied by the scale again.
    """
    return _levels(x, scale, *table, surrogate)[0]


def codes(x: Tensor, scale: Tensor, table: Table) -> Tensor:
    """uint8 codes of x, by the same steps as `levels`."""
    with torch.no_grad():
        return _truncated(_affine(x, scale, table.numerator, table.z), table.cmax).to(torch.uint8)


def _affine(x: Tensor, scale: Tensor, numerator: Tensor, z: Tensor) -> Tensor:
    t = x * (numerator / scale)  # one division of a power of two, never 1 / (1 / scale)
    t += z  # a kernel of its own: fused with the product it would be rounded once instead of twice
    return t


def _truncated(t: Tensor, cmax: Tensor) -> Tensor:
    """Codes of t = x * r + z, which becomes floor(t); a code is not negative, so floor truncates. NaN gives code 0."""
    t.nan_to_num_(nan=0.0).floor_()
    return torch.clamp(t, torch.zeros_like(cmax), cmax)


@torch.library.custom_op("soniq::fake_quantize", mutates_args=())
def _levels(
    x: Tensor, scale: Tensor, numerator: Tensor, z: Tensor, cmax: Tensor, alpha: Tensor, beta: Tensor, surrogate: str
) -> tuple[Tensor, Tensor]:
    """(levels, how much of the gradient passes: 1.0 where the code is inside 0..cmax, 0.0 where it was clipped)."""
    t = _affine(x, scale, numerator, z)
    smooth = _slope(t, cmax) if surrogate == "tanh" else None
    c = _truncated(t, cmax)
    passes = t.eq_(c) if smooth is None else smooth  # in place: a float, which multiplies faster than a bool
    if surrogate == "identity":
        passes.fill_(1)
    return c.mul_(alpha).add_(beta), passes


def _slope(t: Tensor, cmax: Tensor) -> Tensor:
    """The derivative of tanh(2v), where v is -1 at t = 0 and 1 at t = cmax + 1."""
    middle = (cmax + 1) / 2
    return (1 - ((t - middle) / middle * 2).tanh_().square_()).nan_to_num_(nan=0.0)


@_levels.register_fake
def _(x, scale, numerator, z, cmax, alpha, beta, surrogate):
    return torch.empty_like(x), torch.empty_like(x)


def _keep(ctx, inputs, output):
    x, scale, numerator, _, _, alpha, *_ = inputs
    ctx.save_for_backward(x, scale, numerator, alpha, output[1])
    ctx.mark_non_differentiable(output[1])


def _straight_through(ctx, grad, _):
    x, scale, numerator, alpha, passes = ctx.saved_tensors
    grad_x = passes * grad
    grad_x *= alpha * (numerator / scale)
    grad_scale = None
    if ctx.needs_input_grad[1]:
        grad_scale = (grad_x * x).sum_to_size(scale.shape) / -scale
    return grad_x, grad_scale, None, None, None, None, None, None


_levels.register_autograd(_straight_through, setup_context=_keep)


def noisy(x: Tensor, scale: Tensor, sigma: Tensor, kind: str, noise: bool) -> Tensor:
    """What stands for rounding while the bits are learned: clip, then add uniform noise of half a step.

    sigma = 2^(1-p) broadcasts against x. Noise of half a step is what rounding to p bits does to a value, and it has a
    gradient to p. Returns real values (levels times 2^e times scale).
    """
    return _Noisy.apply(x, scale, sigma, kind == "bipolar", noise)


class _Noisy(torch.autograd.Function):
    """clip(x / scale) + half_step * eps, times scale. Written by hand: autograd's own chain takes three times as long."""

    @staticmethod
    def forward(ctx, x, scale, sigma, bipolar, noise):
        top = scale * (2 - sigma)
        half_step = scale * (sigma if bipolar else sigma / 2)
        y = torch.clamp(x, -top if bipolar else torch.zeros_like(top), top)
        clipped = x - y  # its sign says on which side
        eps = _uniform(x) if noise else None
        if eps is not None:
            y = y.addcmul_(eps, half_step)
        ctx.save_for_backward(scale, sigma, clipped, eps)
        ctx.bipolar = bipolar
        return y

    @staticmethod
    def backward(ctx, grad):
        scale, sigma, clipped, eps = ctx.saved_tensors
        side = clipped.sign()
        grad_x = grad * (1 - side.abs())
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None, None
        side = side if ctx.bipolar else side.clamp_(min=0)  # the lower end of an unsigned grid is 0 at any scale
        shape = torch.broadcast_shapes(scale.shape, sigma.shape)
        edge = (grad * side).sum_to_size(shape)
        spread = torch.zeros_like(edge) if eps is None else (grad * eps).sum_to_size(shape)
        if not ctx.bipolar:
            spread = spread / 2
        grad_scale = (edge * (2 - sigma) + spread * sigma).sum_to_size(scale.shape)
        grad_sigma = ((spread - edge) * scale).sum_to_size(sigma.shape)
        return grad_x, grad_scale, grad_sigma, None, None


def _uniform(x: Tensor) -> Tensor:
    """Noise in (-1, 1), shaped like x. On a CPU sixteen random bits each, centred: drawn three times as fast as floats."""
    eps = torch.empty_like(x)
    if not x.is_cpu or torch.compiler.is_compiling():
        return eps.uniform_(-1, 1)
    words = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    eps.copy_(words.view(torch.int16)[: x.numel()].view(x.shape))
    return eps.add_(0.5).mul_(2.0**-15)
