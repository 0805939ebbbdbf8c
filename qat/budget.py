"""The bit budget: how many bits a network spends, the penalty that steers it, and the optimizer's groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .config import AUTO, Config
from .cost import Cost, bit_cost
from .layers import NOISE, QuantLayer
from .tensors import InputQuantizer, TensorQuantizer


def attach(
    model: nn.Module, target_bits: float, config: Config, float_bytes: int, left_float: Mapping[str, str]
) -> None:
    """Put the target and the multiplier of the penalty on the root module, as buffers: a checkpoint resumes both."""
    device = next(model.parameters()).device
    model.register_buffer("soniq_target_bits", torch.tensor(float(target_bits), device=device))
    model.register_buffer("soniq_multiplier", torch.tensor(0.0, device=device))
    model.soniq_left_float = dict(left_float)
    model.soniq_cost = "bits" if config.target_time is None else "time"
    model.soniq_float_bytes = float_bytes
    model.soniq_least_share = config.least_share
    model.soniq_any_palette = config.palette == AUTO


def prepared_root(model: nn.Module) -> nn.Module:
    """The module `prepare` was called on: the model itself, or inside a wrapper such as DistributedDataParallel."""
    for module in model.modules():
        if hasattr(module, "soniq_left_float"):
            return module
    raise ValueError(
        f"this {type(model).__name__} is not prepared; call qat.prepare(model, config, example_input) first"
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model, without the wrapper that trains it on several devices."""
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """(name in the unwrapped model, layer) of every quantized layer, once each, in the order of registration."""
    prepared_root(model)
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, QuantLayer):
            yield name, module


def learned_layers(model: nn.Module) -> list[QuantLayer]:
    """The layers whose channels choose between two precisions."""
    return [layer for _, layer in quantized_layers(model) if layer.learns_bits]


def average_bits(layers: list[QuantLayer], cost: Cost = "bits") -> Tensor:
    """Average bits of a weight over `layers`: the learned real number in the noise phase, then the fixed one.

    With cost "time" every channel counts by the time that its bits cost instead of by its weights.
    """
    costs = [bit_cost(layer, cost) for layer in layers]
    spent = sum(each * _bits(layer).sum() for each, layer in zip(costs, layers, strict=True))
    return spent / sum(each * layer.channels for each, layer in zip(costs, layers, strict=True))


def _bits(layer: QuantLayer) -> Tensor:
    return layer.learned_bits() if layer.phase_index == NOISE else layer.bits.float()


def bit_penalty(model: nn.Module, rate: float = 0.01, stiffness: float = 1.0, cost: Cost | None = None) -> Tensor:
    """What to add to the loss in the noise phase so that the average bits end at the target; 0 in the other phases.

    multiplier * (average - target) + stiffness / 2 * (average - target)^2, a scalar with a gradient to every precision.
    Each call in training mode is one step of dual ascent: the multiplier grows by rate * (average - target).
    cost: "bits" averages over weights. "time" averages over the time that the bits of a channel cost on this machine, so
    that layers where the low precision saves time are pushed to it, and the others hardly; give `freeze` the same. None:
    "time" with `Config(target_time=...)`, else "bits".
    Raises FloatingPointError when a precision has become NaN, ValueError for another cost.
    """
    root, layers = prepared_root(model), learned_layers(model)
    if not layers or layers[0].phase_index != NOISE:
        return torch.zeros((), device=root.soniq_multiplier.device)
    excess = average_bits(layers, cost or root.soniq_cost) - root.soniq_target_bits
    if not torch.compiler.is_compiling() and not torch.isfinite(excess):  # a branch on data would break the graph
        raise FloatingPointError(
            f"the average bits are {excess.item()}: training has diverged; lower the learning rate of the precisions "
            "(param_groups(bits_lr=...)) or clip gradients, and resume from a checkpoint before this step"
        )
    if root.training and torch.is_grad_enabled():
        root.soniq_multiplier += rate * excess.detach()
    return root.soniq_multiplier.clone() * excess + stiffness / 2 * excess.square()


def penalize(optimizer: torch.optim.Optimizer, model: nn.Module, **options) -> RemovableHandle:
    """For loops with no place for another term in the loss: each step of the optimizer adds the gradient of `bit_penalty`.

    It is added to the precisions right before the step, so it needs no loss scaling and counts once where gradients are
    accumulated. options: those of `bit_penalty`. Returns a handle; its .remove() ends it. In the other phases it does nothing.
    """

    def add(*_) -> None:
        precisions = [
            layer.precision for layer in dict.fromkeys(learned_layers(model)) if layer.precision.requires_grad
        ]
        precisions = list(dict.fromkeys(precisions))
        if not precisions:
            return
        with torch.enable_grad():
            gradients = torch.autograd.grad(bit_penalty(model, **options), precisions)
        for precision, gradient in zip(precisions, gradients, strict=True):
            precision.grad = gradient if precision.grad is None else precision.grad + gradient

    prepared_root(model)
    return optimizer.register_step_pre_hook(add)


def param_groups(
    model: nn.Module,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    scale_lr: float | None = None,
    bits_lr: float | None = None,
) -> list[dict[str, object]]:
    """Groups for an Adam-like optimizer: weights; biases and norms; scales; precisions. Every parameter once.

    Only weights (parameters with two dimensions or more) decay. scale_lr defaults to lr: scales are learned as a factor
    of their first value, so one rate suits all. bits_lr defaults to 10 * lr. The groups do not change with the phase.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    scales = [layer.weight_gain for layer in layers] + [l.nested.gain for l in layers if l.nested is not None]
    precisions = []
    for module in model.modules():
        if isinstance(module, TensorQuantizer):
            scales.append(module.gain)
        if isinstance(module, InputQuantizer):
            precisions.append(module.precision)
    taken = {id(p) for p in scales + precisions}
    others = [p for p in model.parameters() if id(p) not in taken]
    return [
        {"name": "weights", "params": [p for p in others if p.dim() > 1], "lr": lr, "weight_decay": weight_decay},
        {"name": "vectors", "params": [p for p in others if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
        {"name": "scales", "params": scales, "lr": lr if scale_lr is None else scale_lr, "weight_decay": 0.0},
        {"name": "bits", "params": precisions, "lr": 10 * lr if bits_lr is None else bits_lr, "weight_decay": 0.0},
    ]
