"""convert: the frozen model, packed for the kernels, its tensors between layers codes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from soniq_kernels import packing
from soniq_kernels.activations import PER_ROW

from .budget import prepared_root, unwrapped
from .edges import PackedEdge, QuantEdge
from .embeddings import PackedEmbedding, QuantEmbedding
from .freeze import frozen_layers
from .layers import QuantConv1d, QuantConv2d, QuantLayer
from .lower import lower
from .nested import ALL, Planes
from .nodes import LEAVES
from .norms import PackedNorm, QuantNorm
from .packed_layers import PackedConv1d, PackedConv2d, PackedLayer, PackedLinear
from .tracing import Untraceable, give_forward, swap, trace

UNFUSED = "soniq_unfused"  # the method that computes the network layer by layer


def convert(model: nn.Module, codes: bool = True) -> nn.Module:
    """A copy of a frozen model, on the CPU and in eval mode, that runs on the kernels.

    Where torch.fx can trace the model, the tensors between quantized layers are codes: activation functions, residual sums
    and the next layer's quantizer are part of the layers. What has no form on codes stays float32; `report` says what and
    why. codes=False: layer by layer, float32 in between.

    An ordinary nn.Module: state_dict, torch.save, deepcopy, torch.compile and torch.export work; there is nothing left to
    train. The model itself is not changed. Raises ValueError before freeze, or if nothing was quantized.
    """
    frozen_layers(model)
    shipped = copy.deepcopy(unwrapped(model)).cpu().eval()
    for _, layer in frozen_layers(shipped):
        layer.read_planes(ALL)
    swap(shipped, {module: packed for module in shipped.modules() if (packed := _packed(module)) is not None})
    root = prepared_root(shipped)
    del root.soniq_target_bits, root.soniq_multiplier  # of training only
    if codes:
        to_codes(shipped)
    else:
        shipped.soniq_floats = ["converted layer by layer"]
    return shipped


def _packed(module: nn.Module) -> nn.Module | None:
    """What takes the place of a module of training; None for any other."""
    if isinstance(module, QuantLayer):
        return pack_layer(module)
    if isinstance(module, QuantEdge):
        return PackedEdge(module)
    if isinstance(module, QuantEmbedding):
        return PackedEmbedding(module.packed_weights())
    return PackedNorm.of(module) if isinstance(module, QuantNorm) else None


def to_codes(packed: nn.Module) -> None:
    """Make the tensors between the packed layers of `packed` codes, in place, as far as that is possible."""
    try:
        unfused = trace(packed, LEAVES)
    except Untraceable as reason:
        packed.soniq_floats = [str(reason)]
        return
    _give(packed, unfused)
    packed.register_load_state_dict_post_hook(renew)


def _give(packed: nn.Module, unfused: fx.Graph) -> None:
    lowered = lower(packed, unfused)
    packed.soniq_floats = lowered.floats
    if lowered.codes:
        give_forward(packed, lowered.graph, **{UNFUSED: unfused})


def renew(packed: nn.Module, *_) -> None:
    """Other weights may have other bits, which the codes between layers follow."""
    if hasattr(packed, UNFUSED):
        _give(packed, trace(packed, LEAVES, UNFUSED))


@torch.no_grad()
def pack_layer(layer: QuantLayer) -> PackedLayer:
    """One quantized layer as a packed one: the codes and the scales the training forward uses, nothing recomputed."""
    scale, bias = layer.shipped()
    codes, bits, a_bits = layer.weight_codes(), layer.bits, layer.a_bits
    if isinstance(layer, QuantConv2d):
        codes = codes.permute(0, 2, 3, 1).contiguous()
    else:  # columns of a flattened image: channels last
        codes, bits, a_bits = (
            t.unflatten(-1, (-1, layer.spread)).transpose(-1, -2).flatten(-2) for t in (codes, bits, a_bits)
        )
    scales, biases = vectors_at_bits(layer)
    packed = packing.pack(
        codes.numpy(),
        packing.Plan.mixed(w_bits=bits.numpy(), a_bits=a_bits.numpy(), w_grid=layer.w_kind, a_grid=layer.kind),
        scale.numpy(),
        bias=None if bias is None else bias.numpy(),
        activation_scale=PER_ROW if layer.input.per_row else float(layer.input.scale()),
        scales_at_bits=scales,
        biases_at_bits=biases,
    )
    factor = layer.input_factor().clone() if layer.input.smooths else None
    if not isinstance(layer, QuantConv2d):
        return PackedLinear(packed, layer.spread, factor)
    if not isinstance(layer, QuantConv1d):
        return PackedConv2d(packed, layer.place, factor)
    return PackedConv1d(packed, layer.place, None if factor is None else factor.squeeze(-1))


def vectors_at_bits(layer: QuantLayer) -> tuple[dict[int, NDArray[np.float32]], dict[int, NDArray[np.float32]]]:
    """({q: scale}, {q: bias}) for the lower widths, float32 [O]; no biases where all widths have the same one."""
    lower = [] if layer.nested is None else [bits for bits in layer.nested.bits if bits < layer.widest]
    scales, biases = {}, {}
    for bits in lower:
        layer.read_planes(Planes(bits))
        scale, bias = layer.shipped()
        scales[bits] = scale.numpy()
        if layer.norm is not None:
            biases[bits] = bias.numpy()
    layer.read_planes(ALL)
    return scales, biases
