"""Embeddings whose rows are codes: nothing is multiplied, so a row is looked up and its values are float32(level) * (scale * 2^e)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soniq_kernels import packing, torch_ops
from soniq_kernels.packing import Grid, Plan

from .edges import scaled
from .exactness import WEIGHT_GRID
from .quantizer import SMALLEST_SCALE, Table, codes, levels
from .scales import fit_scale


class QuantEmbedding(nn.Module):
    """An nn.Embedding at one fixed precision, straight through from the start; the weight is the float model's object.

    bits   [] int64. scale   float32 [rows]: least squares of each row, found at `prepare` and again at `freeze`.
    """

    def __init__(self, embedding: nn.Embedding, bits: int):
        super().__init__()
        self.weight, self.width = embedding.weight, bits
        self.register_buffer("bits", torch.tensor(bits, device=embedding.weight.device))
        self.register_buffer("scale", torch.ones(len(embedding.weight), device=embedding.weight.device))
        self.fit()

    @torch.no_grad()
    def fit(self) -> None:
        """Scales for what the weights are now. The grid has no zero: a row of zeros gets the smallest scale there is."""
        zero = self.weight.abs().amax(1) == 0
        self.scale.copy_(fit_scale(self.weight, WEIGHT_GRID, self.bits.view(1, 1)).masked_fill_(zero, SMALLEST_SCALE))

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self.width = int(self.bits)

    def _table(self) -> Table:
        return Table.of(WEIGHT_GRID, self.bits, ())

    def forward(self, ids: Tensor) -> Tensor:
        """Whole numbers [...] to float32 [..., columns]."""
        scale = self.scale[ids].unsqueeze(-1)
        with torch.autocast(ids.device.type, enabled=False):
            rows = levels(self.weight[ids], scale, self._table())
            return scaled(rows, scale * 2.0 ** Grid(WEIGHT_GRID, self.width).exponent, 1.0)

    def packed_weights(self) -> packing.PackedWeights:
        """The rows as a packed layer of so many outputs."""
        rows = codes(self.weight.detach(), self.scale.unsqueeze(1), self._table())
        plan = Plan.uniform(rows.shape[1], w_bits=self.width, a_bits=8, w_grid=WEIGHT_GRID)
        return packing.pack(rows.cpu().numpy(), plan, self.scale.cpu().numpy())

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, {self.weight.shape[1]}, bits={self.width}"


class PackedEmbedding(nn.Module):
    """The same with the bytes of a packed layer as the buffer `packed`; codes are unpacked once, a byte each."""

    def __init__(self, packed: packing.PackedWeights):
        super().__init__()
        self.register_buffer("packed", torch_ops.weights_to_tensor(packed))
        self._unpack(packed)

    def _unpack(self, packed: packing.PackedWeights) -> None:
        grid = packed.plan.segments[0].w
        self.levels = torch.from_numpy(grid.levels(packed.codes()).astype("int16"))
        self.factor = torch.from_numpy(packed.scale * 2.0**grid.exponent).float()
        self.width = grid.bits

    def _load_from_state_dict(self, state_dict, prefix, *arguments) -> None:
        new = state_dict.get(prefix + "packed")
        if new is not None:
            self.packed = torch.empty_like(new)
            self._unpack(torch_ops.weights_from_tensor(new.cpu()))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def packed_weights(self) -> packing.PackedWeights:
        """The packed rows, for looking at."""
        return torch_ops.weights_from_tensor(self.packed.cpu())

    def forward(self, ids: Tensor) -> Tensor:
        """Whole numbers [...] to float32 [..., columns]."""
        return scaled(self.levels[ids].float(), self.factor[ids].unsqueeze(-1), 1.0)

    def extra_repr(self) -> str:
        return f"{len(self.levels)}, {self.levels.shape[1]}, bits={self.width}"


def reason_to_stay_float(embedding: nn.Embedding) -> str | None:
    """Why an Embedding cannot have rows of codes."""
    if embedding.max_norm is not None:
        return "max_norm changes the weights at every call"
    if embedding.sparse:
        return "its gradients are sparse"
    if embedding.weight.dtype != torch.float32:
        return f"its weight is {embedding.weight.dtype}, not float32"
    hooks = embedding._forward_hooks or embedding._forward_pre_hooks
    return "it has forward hooks" if hooks else None
