"""convert: the frozen model's layers, packed for the kernels."""

from __future__ import annotations

import copy

import torch
from torch import nn

from soniq_kernels import packing

from .budget import prepared_root, unwrapped
from .exactness import WEIGHT_GRID
from .freeze import frozen_layers
from .layers import QuantConv2d, QuantLayer
from .packed_layers import PackedConv2d, PackedLayer, PackedLinear
from .prepare import swap


def convert(model: nn.Module) -> nn.Module:
    """A copy of a frozen model, on the CPU and in eval mode, whose quantized layers run on the kernels.

    An ordinary nn.Module: state_dict, torch.save, deepcopy and torch.compile work; there is nothing left to train.
    The model itself is not changed. Raises ValueError before freeze, or if nothing was quantized.
    """
    frozen_layers(model)
    shipped = copy.deepcopy(unwrapped(model)).cpu().eval()
    layers = {layer: pack_layer(layer) for _, layer in frozen_layers(shipped)}
    swap(shipped, layers)
    root = prepared_root(shipped)
    del root.soniq_target_bits, root.soniq_multiplier  # of training only
    return shipped


@torch.no_grad()
def pack_layer(layer: QuantLayer) -> PackedLayer:
    """One quantized layer as a packed one: the codes and the scales the training forward uses, nothing recomputed."""
    scale, bias = layer.shipped()
    plan = packing.Plan.mixed(layer.bits.numpy(), w_grid=WEIGHT_GRID, a_grid=layer.kind)
    codes = layer.weight_codes()
    if isinstance(layer, QuantConv2d):
        codes = codes.permute(0, 2, 3, 1).contiguous()
    packed = packing.pack(
        codes.numpy(),
        plan,
        scale.numpy(),
        bias=None if bias is None else bias.numpy(),
        activation_scale=float(layer.input.scale()),
    )
    return PackedConv2d(packed, layer.place) if isinstance(layer, QuantConv2d) else PackedLinear(packed)
