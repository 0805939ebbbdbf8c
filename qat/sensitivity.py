"""Bits by sensitivity: which channels get the high precision of a palette, without training and without labels.

What a channel loses at p bits is the error that it adds to its layer's output, measured on calibration data. What a
layer's error is worth is measured too: the network's output with that layer alone at low bits, and at high bits. The
channels are then chosen by an integer programme, as many as the budget allows, in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from soniq_kernels._optional import require

from .exactness import WEIGHT_GRID, Pair
from .layers import QuantLayer
from .observe import removed_at_exit, run
from .quantizer import Table, levels
from .ranges import Target

LEAST_SHARE = 0.1  # of the channels at each of two levels
GAP = 1e-4  # how near to the best the programme's answer must be, relative


class Choice(NamedTuple):
    """The channels of one tensor: gain [C], what each is worth at the high level; price, what each costs more there."""

    gain: Tensor
    price: float


# --- what channels are worth ---------------------------------------------------------------------------------------


def channel_gains(targets: Sequence[Target], low: Pair, high: Pair) -> Tensor:
    """float64 [C]: by how much a channel's share of its layers' squared output error is smaller at the high precision.

    low, high: bits of (weights, activations).
    """
    return sum(_loss_at(target, *low) - _loss_at(target, *high) for target in targets)


@torch.no_grad()
def _loss_at(target: Target, w_bits: int, a_bits: int) -> Tensor:
    """[C]: mean over items of sum over weights of (error of w)^2 * x^2 + w^2 * (error of x)^2, as if independent."""
    layer = target.layer
    x, weight = layer.entering(layer.laid_out(target.x)), layer.weight.detach()
    error_x = values_at(x, layer.input.scale_for(x, layer.row_dims), layer.kind, a_bits) - x
    scale = layer.weight_scale().view(-1, *[1] * (weight.dim() - 1))
    error_w = values_at(weight, scale, WEIGHT_GRID, w_bits) - weight
    rows = target.row_weights().view(-1, *[1] * (x.dim() - 1)).sqrt().float()
    x, error_x = x * rows, error_x * rows
    return _of_inputs(layer, x) * _of_weights(layer, error_w) + _of_inputs(layer, error_x) * _of_weights(layer, weight)


def values_at(x: Tensor, scale: Tensor, kind: str, bits: int) -> Tensor:
    """x rounded to the grid of so many bits: real values."""
    table = Table.of(kind, torch.tensor([bits], device=x.device), (1,))
    return levels(x, scale, table) * (table.unit * scale)


def _of_inputs(layer: QuantLayer, x: Tensor) -> Tensor:
    """[C]: mean square of each channel of the tensor."""
    rows = x.transpose(0, 1) if x.dim() > 2 else x.T
    return rows.reshape(len(layer.input.bits), -1).double().square().mean(1)


def _of_weights(layer: QuantLayer, weight: Tensor) -> Tensor:
    """[C]: sum of squares of the weights that read each channel."""
    by_feature = weight.double().square().unflatten(0, (layer.groups, -1)).sum(1).reshape(layer.channels, -1).sum(1)
    return by_feature.reshape(len(layer.input.bits), -1).sum(1)


def damage(
    teacher: nn.Module, swaps: Mapping[nn.Module, QuantLayer], batches: Sequence[object], outputs: Sequence[object]
) -> float:
    """Relative squared error of a float model's outputs when these of its layers alone compute as their quantized forms."""
    lost = total = 0.0
    for batch, output in zip(batches, outputs, strict=True):
        expected = _floats(output)
        with ExitStack() as stack:
            for layer, quantized in swaps.items():
                hook = layer.register_forward_hook(lambda _, args, __, q=quantized: q.before_norm(args[0]))
                stack.enter_context(removed_at_exit(hook))
            got = _floats(run(nullcontext(), teacher, batch))
        lost += sum(float((a - b).square().sum()) for a, b in zip(got, expected, strict=True))
        total += sum(float(b.square().sum()) for b in expected)
    return lost / max(total, 1e-30)


def _floats(result: object) -> list[Tensor]:
    return [leaf.double() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


# --- the integer programme -----------------------------------------------------------------------------------------


def choose(
    choices: Sequence[Choice], budget: float, block: int = 16, in_words: Callable[[float], str] = "{:.6g}".format
) -> list[Tensor]:
    """Bool [C] for each tensor: which channels have the high level, of most gain together, their price within the budget.

    The channels of a tensor are taken in blocks of so many, the most gainful first. Each level holds a tenth of all
    channels at least. Raises ValueError that names (by `in_words`) the nearest possible budget if that costs more.
    """
    scipy = require("scipy.optimize", extra="post-training")
    orders = [torch.sort(each.gain, descending=True, stable=True).indices for each in choices]
    blocks = [order.split(block) for order in orders]
    gains = np.array([float(c.gain[b].sum()) for c, bs in zip(choices, blocks, strict=True) for b in bs])
    sizes = np.array([float(len(b)) for bs in blocks for b in bs])
    prices = np.array([c.price * len(b) for c, bs in zip(choices, blocks, strict=True) for b in bs])
    least, most = np.ceil(LEAST_SHARE * sizes.sum()), np.floor((1 - LEAST_SHARE) * sizes.sum())
    limits = scipy.LinearConstraint(np.stack([prices, sizes]), [-np.inf, least], [budget, most])
    worth = np.maximum(gains / max(gains.max(), 1e-300), 0) + 1e-9  # money that is left is spent
    found = scipy.milp(
        -worth, constraints=limits, integrality=np.ones_like(gains), bounds=scipy.Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": 60},
    )  # fmt: skip
    if found.x is None:
        raise ValueError(_too_little(scipy, prices, sizes, (least, most), in_words))
    taken = iter(found.x > 0.5)
    return [_mask(len(c.gain), bs, taken) for c, bs in zip(choices, blocks, strict=True)]


def _mask(channels: int, blocks: Sequence[Tensor], taken) -> Tensor:
    mask = torch.zeros(channels, dtype=torch.bool)
    for block in blocks:
        mask[block.cpu()] = bool(next(taken))
    return mask


def _too_little(scipy, prices, sizes, counts: tuple[float, float], in_words: Callable[[float], str]) -> str:
    limits = scipy.LinearConstraint(sizes[None], [counts[0]], [counts[1]])
    cheapest = scipy.milp(prices, constraints=limits, integrality=np.ones_like(prices), bounds=scipy.Bounds(0, 1))
    if cheapest.x is None:
        return f"{len(sizes)} blocks of channels cannot be dealt so that each level holds {LEAST_SHARE:.0%}; give a smaller block"
    nearest = in_words(float(prices @ cheapest.x))
    return f"the target leaves less than {LEAST_SHARE:.0%} of the channels the high precision; the nearest that can be met is {nearest}"
