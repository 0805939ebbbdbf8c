"""Reconstruction: a few hundred steps that bring a quantized layer's output back to the float layer's, without labels.

Weights, biases and scales learn; which way a weight is rounded follows from where it moves (the aim of AdaRound, Nagel et
al., arXiv 2004.10568, here under the kernels' own arithmetic). The layer reads what the quantized layers before it give,
so that it also makes good for their errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .freeze import frozen_layers
from .observe import call
from .ranges import Target, is_searched

WEIGHT_RATE = 0.02  # of a step of the weights' finest grid, a step of the optimizer
SCALE_RATE = 1e-3
BATCH_ROWS, BATCH_IMAGES = 256, 16


def reconstruct(targets: Sequence[Target], steps: int, seed: int = 0, rate: float = 1.0, name: str = "") -> None:
    """Train layers that read one tensor towards the targets' outputs, in place; what does not get better is taken back.

    rate: a factor for all learning rates. Raises FloatingPointError that names the layer when an output is NaN.
    """
    if not steps:
        return
    before, kept = _errors(targets), [_state(target.layer) for target in targets]
    optimizer = torch.optim.Adam(_groups(targets, rate), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    chooser = torch.Generator().manual_seed(seed)
    sizes = [float(target.y.square().mean().clamp(min=1e-30)) for target in targets]
    weights = [target.row_weights().float() for target in targets]
    for _ in range(steps):
        count = BATCH_ROWS if targets[0].x.dim() == 2 else BATCH_IMAGES
        some = torch.randint(len(targets[0].x), (count,), generator=chooser)
        x = targets[0].x[some]
        parts = [
            ((t.layer(x) - t.y[some]).square().flatten(1).mean(1) * counts[some]).mean() / size
            for t, counts, size in zip(targets, weights, sizes, strict=True)
        ]
        loss = torch.stack(parts).sum()
        _require_finite(float(loss.detach()), name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if not sum(_errors(targets)) < sum(before):
        for target, state in zip(targets, kept, strict=True):
            target.layer.load_state_dict(state)
    for target in targets:
        target.layer.zero_grad()


def reconstruct_network(
    model: nn.Module,
    batches: Sequence[object],
    outputs: Sequence[object],
    loss: Callable[[object, object], torch.Tensor],
    steps: int,
    rate: float = 1.0,
    tick: Callable[[float], None] = lambda loss: None,
) -> None:
    """The same for a whole network: `loss(model(batch), output)` over all batches in turn; all that is quantized learns."""
    layers = [Target(layer, torch.empty(0), torch.empty(0)) for _, layer in frozen_layers(model)]
    optimizer = torch.optim.Adam(_groups(layers, rate), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for step in range(steps):
        value = loss(call(model, batches[step % len(batches)]), outputs[step % len(batches)])
        _require_finite(float(value.detach()), "the network")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        tick(float(value.detach()))
    model.zero_grad()


def _groups(targets: Sequence[Target], rate: float) -> list[dict[str, object]]:
    """Weights move by a share of their grid's step, biases by a share of the outputs' size."""
    groups: list[dict[str, object]] = []
    for layer in (target.layer for target in targets):
        with torch.no_grad():
            step = float(layer.weight_scale().mean()) * 2.0 ** (2 - max(layer.widths))
            size = float(layer.weight.square().sum().sqrt() / len(layer.weight) ** 0.5)
        groups.append({"params": [layer.weight], "lr": rate * WEIGHT_RATE * step})
        groups.append({"params": [layer.weight_gain], "lr": rate * SCALE_RATE})
        if layer.bias is not None and layer.bias.requires_grad:
            groups.append({"params": [layer.bias], "lr": rate * SCALE_RATE * size})
    gains = {t.layer.input.gain for t in targets if is_searched(t.layer.input)}
    return [*groups, {"params": list(gains), "lr": rate * SCALE_RATE}] if gains else groups


def _errors(targets: Sequence[Target]) -> list[float]:
    return [target.error() for target in targets]


def _state(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def _require_finite(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the reconstruction of {name or 'a layer'} gives a loss of {loss}; lower `rate`, or check the calibration data"
        )
