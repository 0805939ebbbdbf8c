"""Targets that are not bits, as bits: of the bytes of a whole network, or of the time of its products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from soniq_kernels.torch_ops import weights_to_tensor

from .config import Config
from .convert import pack_layer
from .cost import bit_cost, layer_cost
from .edges import QuantEdge
from .embeddings import QuantEmbedding
from .layers import QuantLayer
from .norms import QuantNorm


def bytes_of(model: nn.Module) -> int:
    """Bytes of a model's state_dict; each tensor once."""
    state = {tensor.data_ptr() or id(tensor): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def target_of(model: nn.Module, config: Config, layers: Sequence[QuantLayer], float_bytes: int) -> float:
    """The target as average bits of the learned layers (of time, where that is the target).

    Raises ValueError, with the nearest target that can be met, for one that no bits of the palette reach.
    """
    learned, name = [layer for layer in layers if layer.learns_bits], config.other_target
    if name is None or not learned:
        return config.start_bits
    wanted = getattr(config, name)
    if name == "target_time":
        return _of_time(learned, config, wanted)
    weights = sum(layer.weight.numel() for layer in learned)
    total = wanted if name == "target_bytes" else float_bytes / wanted
    fixed = _fixed_bytes(model, layers)
    low, high = ((fixed + weights * bits / 8) for bits in config.levels)
    if total < low or (name == "target_compression" and total > high):
        nearest = low if total < low else high
        as_given = f"{nearest:.0f}" if name == "target_bytes" else f"{float_bytes / nearest:.4g}"
        raise ValueError(
            f"{name} is {wanted:g}, which the palette {config.levels} does not reach, the nearest possible is {as_given}; "
            f"{fixed:.0f} bytes are scales, biases, layers with fixed bits and what stays float"
        )
    return min((total - fixed) * 8 / weights, float(config.levels[1]))


def _of_time(learned: Sequence[QuantLayer], config: Config, wanted: float) -> float:
    a_palette = config.a_palette or config.levels
    low, high = zip(config.levels, a_palette, strict=True)
    least, most, full = (
        sum(float(layer_cost(layer, pair, pair, "time")[0]) for layer in learned) for pair in (low, high, (8, 8))
    )
    if wanted * full < least:
        raise ValueError(
            f"target_time is {wanted:g} of the time at 8 bits, the nearest that the palette {config.levels} can meet on this "
            f"machine is {least / full:.4g}"
        )
    slope = sum(bit_cost(layer, "time") * layer.channels for layer in learned)
    return min(low[0] + (wanted * full - least) / slope, float(high[0])) if most > least else float(high[0])


def _fixed_bytes(model: nn.Module, layers: Sequence[QuantLayer]) -> int:
    """Bytes of the packed network beside the codes of learned weights, two precisions in each learned layer."""
    inside = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    for module in model.modules():
        if isinstance(module, (QuantEdge, QuantNorm, QuantEmbedding)):
            inside |= {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    outside = {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    total = sum(size for key, size in outside.items() if key not in inside)
    rows = [module.packed_weights() for module in model.modules() if isinstance(module, QuantEmbedding)]
    total += sum(weights_to_tensor(packed).numel() for packed in rows)
    with _two_levels(layers):
        for layer in layers:
            codes = float(layer.bits.double().mean()) * layer.weight.numel() / 8 if layer.learns_bits else 0.0
            total += pack_layer(layer).packed.numel() - int(codes)
    return total


@contextmanager
def _two_levels(layers: Sequence[QuantLayer]) -> Iterator[None]:
    """Both precisions in every learned tensor, for a while."""
    inputs = {
        layer.input: (layer.input.w_bits.clone(), layer.input.bits.clone()) for layer in layers if layer.learns_bits
    }
    for each in inputs:
        each.set_high(torch.arange(len(each.bits)) % 2 == 0, each.palette, each.a_palette)
    try:
        yield
    finally:
        for each, bits in inputs.items():
            each.set_bits(*bits)
