"""Quantizers on edges that no quantized layer reads: the operand of a residual sum, the input of an average pool.

Their forward gives the value that the kernels use for the codes, float32(level) * (scale * 2^e), so that a sum or a mean
in training is the sum or mean of the packed network, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soniq_kernels.packing import Grid

from .quantizer import levels
from .tensors import TensorQuantizer


class QuantEdge(TensorQuantizer):
    """A tensor as codes of one fixed precision, whatever its shape: float32 in, the codes' float32 values out."""

    def __init__(self, bits: int, kind: str, device: torch.device | None = None):
        super().__init__(1, bits, kind, device)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(whole numbers in float32 shaped like x, what one of them is worth: scale * 2^e)."""
        scale = self.scale_for(x)
        return levels(x, scale, self.table(lambda bits: bits)), scale * 2.0**self.exponent

    @property
    def exponent(self) -> int:
        return Grid(self.kind, self.widths[0]).exponent

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return scaled(*self.levels(x.float()), 1.0)

    def extra_repr(self) -> str:
        return f"bits={self.widths[0]}, a_grid={self.kind}"


class PackedEdge(QuantEdge):
    """A QuantEdge whose scale is fixed: nothing is left to learn."""

    def __init__(self, edge: QuantEdge):
        super().__init__(edge.widths[0], edge.kind)
        del self.gain
        with torch.no_grad():
            self.unit.copy_(edge.scale())

    def scale(self, values: int = 1) -> Tensor:
        return self.unit


class QuantAvgPool2d(nn.Module):
    """An average pool of codes: float32(sum of levels) * (scale * 2^e) * float32(1 / count).

    kernel, stride: (height, width); None: the whole image, whatever its size. flat: [B, C] instead of [B, C, 1, 1].
    """

    def __init__(self, edge: QuantEdge, kernel: Sequence[int] | None, stride: Sequence[int] | None, flat: bool = False):
        super().__init__()
        self.edge, self.flat = edge, flat
        self.kernel = None if kernel is None else tuple(kernel)
        self.stride = None if stride is None else tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        kernel = tuple(x.shape[-2:]) if self.kernel is None else self.kernel
        with torch.autocast(x.device.type, enabled=False):
            whole, factor = self.edge.levels(x.float())
            y = scaled(_window_sums(whole, kernel, self.stride), factor, 1.0 / (kernel[0] * kernel[1]))
        return y.flatten(1) if self.flat else y

    def extra_repr(self) -> str:
        return f"kernel={self.kernel or 'all'}, stride={self.stride or 'kernel'}"


def _window_sums(whole: Tensor, kernel: tuple[int, int], stride: tuple[int, int] | None) -> Tensor:
    """Sums of whole numbers in each window: exact, in float32 while they stay below 2^24."""
    wide = kernel[0] * kernel[1] * 255 >= 2**24
    sums = F.avg_pool2d(whole.double() if wide else whole, kernel, stride, divisor_override=1)
    return sums.float()


@torch.library.custom_op("soniq::scale_levels", mutates_args=())
def scaled(whole: Tensor, factor: Tensor, mean: float) -> Tensor:
    """whole * factor, then * float32(mean), each rounded. Opaque: a compiler could fuse the product with the sum behind it."""
    y = whole * factor
    return y if mean == 1 else y.mul_(torch.tensor(mean, dtype=torch.float32))


@scaled.register_fake
def _(whole, factor, mean):
    return torch.empty_like(whole)


def _keep(ctx, inputs, output):
    whole, factor, ctx.mean = inputs
    ctx.save_for_backward(whole, factor)


def _gradients(ctx, grad):
    whole, factor = ctx.saved_tensors
    grad = grad * ctx.mean
    return grad * factor, (grad * whole).sum() if ctx.needs_input_grad[1] else None, None


scaled.register_autograd(_gradients, setup_context=_keep)
