"""freeze: from learned precisions to two fixed ones per layer; and the last step, fixed batch norm statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .allocation import Allocation, Budget, apply
from .budget import learned_layers, prepared_root, quantized_layers
from .cost import Cost
from .embeddings import QuantEmbedding
from .layers import EXACT, FOLDED, NOISE, QuantLayer
from .norms import QuantNorm
from .observe import evaluating
from .tensors import InputQuantizer, Palette


def freeze(
    model: nn.Module,
    cost: Cost | None = None,
    palette: Palette | None = None,
    blocks: bool = False,
    loss: Callable[[nn.Module], float] | None = None,
) -> nn.Module:
    """End the noise phase, in place: every channel gets the low or the high precision of the palette.

    In each tensor the channels that learned the most bits get the high precision, as many as costs the network the least
    (`allocation`) within the target. From here on the forward is the kernels' arithmetic.

    cost:    what the target is over, as in `bit_penalty`; None: the one of `prepare`.
    palette: another palette than the prepared one, which may spend as much. `Config(palette="auto")` searches all; the
             table of the search is `model.soniq_palettes`.
    blocks:  channel counts that leave the kernels the least to pad. Over time that is counted in any case.
    loss:    of a model in eval mode, the smaller the better (on a few batches): decides between the best palettes.

    Raises ValueError if the model is already frozen, for another cost, or for a target that the palette cannot meet,
    FloatingPointError if a precision is NaN.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    if any(layer.phase_index != NOISE for layer in layers):
        raise ValueError("this model is already frozen; prepare a fresh one to learn other bits")
    learned = learned_layers(model)
    if learned:
        inputs = list(dict.fromkeys(layer.input for layer in learned))
        root = prepared_root(model)
        budget = Budget(inputs, float(root.soniq_target_bits), cost or root.soniq_cost, blocks, root.soniq_least_share)
        if palette is not None or not root.soniq_any_palette:
            table = [budget.allocate(palette or inputs[0].palette, None if palette else inputs[0].a_palette)]
        else:
            table = budget.search(None if loss is None else lambda each: _measured(model, inputs, each, loss))
        apply(inputs, table[0])
        root.soniq_palettes = table
    for layer in layers:
        layer.input.precision.requires_grad_(False)
        layer.set_phase(EXACT)
        if layer.nested is not None:
            layer.nested.start(layer)
    for module in model.modules():
        if isinstance(module, QuantEmbedding):
            module.fit()
    return model


def _measured(
    model: nn.Module, inputs: list[InputQuantizer], allocation: Allocation, loss: Callable[[nn.Module], float]
) -> float:
    """The loss of the model with this allocation, without fine-tuning; everything is as before afterwards."""
    layers = [layer for _, layer in quantized_layers(model)]
    before = [(each.palette, each.a_palette, each.w_bits.clone(), each.bits.clone()) for each in inputs]
    apply(inputs, allocation)
    try:
        with evaluating(model), torch.no_grad():
            for layer in layers:
                layer.set_phase(EXACT)
            return float(loss(model))
    finally:
        for layer in layers:
            layer.set_phase(NOISE)
        for each, (palette, a_palette, w_bits, bits) in zip(inputs, before, strict=True):
            each.palette, each.a_palette = palette, a_palette
            each.set_bits(w_bits, bits)


def fix_batch_norm(model: nn.Module) -> nn.Module:
    """Stop updating batch norm statistics, in place: from here on training computes exactly what ships.

    Call it for the last part of the fine-tuning; eval and convert use the running statistics with or without it.
    """
    layers = frozen_layers(model)
    for _, layer in layers:
        layer.set_phase(FOLDED)
    for module in model.modules():
        if isinstance(module, QuantNorm):
            module.fix()
    return model


def frozen_layers(model: nn.Module) -> list[tuple[str, QuantLayer]]:
    """(name, layer) of every quantized layer; ValueError while the bits are still being learned."""
    layers = list(quantized_layers(model))
    for name, layer in layers:
        if layer.phase_index == NOISE:
            raise ValueError(f"layer {name} is in the noise phase and has no fixed bits; call qat.freeze(model) first")
    return layers
