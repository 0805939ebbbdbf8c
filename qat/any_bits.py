"""Training, looking at and serving one network at several widths of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from torch import nn

from soniq_kernels import torch_ops

from .convert import renew
from .freeze import frozen_layers
from .layers import QuantLayer
from .nested import ALL, Planes
from .packed_layers import PackedLayer, PackedLinear


def nested_layers(model: nn.Module) -> list[QuantLayer]:
    """The layers that are trained for lower widths. Raises ValueError if there is none, or before `freeze`."""
    found = [layer for _, layer in frozen_layers(model) if layer.nested is not None]
    if not found:
        raise ValueError(
            "no layer is trained for lower widths; prepare the model with Config(nested_bits=[2, 4]), for example"
        )
    return found


def set_width(model: nn.Module, bits: int | None = None, share: float = 1.0) -> nn.Module:
    """From now on the frozen model computes as if only the first `bits` planes of its weights were there, in place.

    bits: one of `Config.nested_bits`; None, or the high level of the palette: all planes.
    share: 0 to 1, of the channels of every tensor that a layer reads; the first ones are read at the lower width, the others
        in full. Between 0 and 1 a training forward takes the batch norms' running statistics.

    The first and the last layer, where they have bits of their own, keep all planes. Raises ValueError for another width,
    another share, or channels at more than two precisions.
    """
    _check_share(share)
    layers, before = nested_layers(model), []
    planes = ALL if bits is None else Planes(bits, share)
    try:
        for layer in layers:
            before.append((layer, layer.planes))
            layer.read_planes(planes)
    except ValueError:
        for layer, old in before:
            layer.read_planes(old)
        raise
    return model


def widths(model: nn.Module) -> Iterator[int]:
    """Every width of a frozen model, the full one first; the model is at it while the loop's body runs, and at the full one after.

    for bits in qat.widths(model):
        criterion(model(x), labels).backward()      # gradients add up over the widths
    """
    layers = nested_layers(model)
    widest = max(layer.widest for layer in layers)
    try:
        for bits in (widest, *(bits for bits in layers[0].nested.bits if bits < widest)):
            set_width(model, bits)
            yield bits
    finally:
        set_width(model)


def fit_widths(model: nn.Module) -> nn.Module:
    """Start the scales and batch norms of the lower widths again from those of the full one, in place.

    `freeze` does it; do it again where only the full width was trained since.
    """
    for layer in nested_layers(model):
        layer.nested.start(layer)
    return model


def at_bits(packed: nn.Module, bits: int, share: float = 1.0) -> nn.Module:
    """A copy of a converted model that reads its weights at `bits` bits: what `set_width` makes of the trained one.

    share: 0 to 1, of the channels of every tensor, the first ones; the others keep all their bits.
    Raises ValueError if no layer was trained for lower widths, or not for this one.
    """
    _check_share(share)
    lower = copy.deepcopy(packed)
    layers = [layer for layer in lower.modules() if isinstance(layer, PackedLayer)]
    nested = [layer for layer in layers if layer.packed_weights().scales_at_bits]
    if not nested:
        raise ValueError(
            "no layer is trained for lower widths; prepare the model with Config(nested_bits=[2, 4]), for example"
        )
    for layer in nested:
        _read(layer, bits, share)
    renew(lower)
    return lower


def _read(layer: PackedLayer, bits: int, share: float) -> None:
    weights = layer.packed_weights()
    if bits not in weights.scales_at_bits and bits < max(s.w.bits for s in weights.plan.segments):
        raise ValueError(f"the network is trained for {sorted(weights.scales_at_bits)} bits, not for {bits}")
    pixels = layer.pixels if isinstance(layer, PackedLinear) else 1
    low = Planes(bits, share).low(weights.plan.channels // pixels).numpy()
    layer.packed = torch_ops.weights_to_tensor(weights.at_bits(bits, np.tile(low, pixels)))


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected 0 to 1: of the channels, those at the lower width")
