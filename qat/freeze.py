"""freeze: from learned precisions to two fixed ones per layer; and the last step, fixed batch norm statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .budget import learned_layers, prepared_root, quantized_layers
from .cost import Cost, bit_cost
from .layers import EXACT, FOLDED, NOISE, QuantLayer
from .norms import QuantNorm
from .tensors import InputQuantizer


def freeze(model: nn.Module, cost: Cost = "bits") -> nn.Module:
    """End the noise phase, in place: every channel gets the low or the high precision of its layer's palette.

    The channels that learned the most bits get the high precision, over the whole network, as many as the target
    average allows: the average lands below the target by less than one channel. From here on the forward is the
    kernels' arithmetic. cost: what the average is over, as in `bit_penalty`.
    Raises ValueError if the model is already frozen or for another cost, FloatingPointError if a precision is NaN.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    if any(layer.phase_index != NOISE for layer in layers):
        raise ValueError("this model is already frozen; prepare a fresh one to learn other bits")
    _choose_precisions(learned_layers(model), float(prepared_root(model).soniq_target_bits), cost)
    for layer in layers:
        layer.input.precision.requires_grad_(False)
        layer.set_phase(EXACT)
    return model


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


def _choose_precisions(layers: list[QuantLayer], target: float, cost: Cost) -> None:
    """Fixed layers keep theirs; the others share one budget. A channel that several layers read costs in all of them."""
    if not layers:
        return
    low, high = layers[0].palette
    inputs = list(dict.fromkeys(layer.input for layer in layers))
    wanted = torch.cat([each.learned_bits().detach() for each in inputs]).cpu()
    costs = torch.cat([torch.full((len(each.bits),), _channel_cost(each, cost)) for each in inputs])
    if not torch.isfinite(wanted).all():
        raise FloatingPointError("a learned precision is NaN: training has diverged; resume from an earlier checkpoint")
    budget = (target - low) / (high - low) * float(costs.sum())
    is_high = _most_wanted(wanted, costs, budget)
    for each, chosen in zip(inputs, is_high.split([len(each.bits) for each in inputs]), strict=True):
        each.set_bits(torch.where(chosen, high, low).to(each.bits.device))


def _channel_cost(quantizer: InputQuantizer, cost: Cost) -> int:
    return sum(layer.spread * bit_cost(layer, cost) for layer in quantizer.readers)


def _most_wanted(wanted: Tensor, cost: Tensor, budget: float) -> Tensor:
    """Bool: channels in falling order of `wanted`, each taken if its cost still fits the budget."""
    is_high = torch.zeros(len(wanted), dtype=torch.bool)
    for channel in torch.sort(wanted, descending=True, stable=True).indices.tolist():
        price = int(cost[channel])
        if price <= budget:
            is_high[channel], budget = True, budget - price
    return is_high
