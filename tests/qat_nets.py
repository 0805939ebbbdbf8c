"""Small networks and frozen layers for the tests of qat."""

from __future__ import annotations

import torch
from torch import nn

from soniq_kernels import qat
from soniq_kernels.qat.layers import EXACT


def small_cnn() -> nn.Sequential:
    """Three convolutions (one grouped, one depthwise) with batch norm, pooling, and a Linear: [B, 3, 8, 8] to [B, 5]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding="same", groups=16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Random [count, 3, 8, 8] in [0, 1]."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def prepared_cnn(seed: int = 0, **fields) -> nn.Sequential:
    """A prepared small_cnn whose precisions differ from channel to channel."""
    torch.manual_seed(seed)
    model = qat.prepare(small_cnn(), qat.Config(**fields), images())
    for layer in quant_layers(model):
        if layer.learns_bits:
            nn.init.normal_(layer.precision)
    return model


def frozen_cnn(seed: int = 0, **fields) -> nn.Sequential:
    """A frozen small_cnn with batch norms that do something."""
    model = qat.freeze(prepared_cnn(seed, **fields))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            randomize(norm)
    return model


def quant_layers(model: nn.Module) -> list[qat.QuantLayer]:
    """The quantized layers, in order."""
    return [module for module in model.modules() if isinstance(module, qat.QuantLayer)]


def frozen_layer(layer: nn.Module, bits: torch.Tensor, kind: str, example: torch.Tensor, norm: nn.Module | None = None):
    """A model of one quantized layer with the given bits, in the exact phase."""
    parts = [layer] if norm is None else [layer, norm]
    config = qat.Config(palette=(int(bits.min()), int(bits.max())), first_bits=None, last_bits=None, a_grid=kind)
    model = qat.prepare(nn.Sequential(*parts), config, example)
    quantized = model[0]
    quantized.set_bits(bits)
    quantized.fit_weight_scale()
    quantized.set_phase(EXACT)
    if norm is not None:
        randomize(norm)
    return model.eval()


def randomize(norm: nn.Module) -> None:
    """Statistics and parameters of a trained batch norm, negative factors included."""
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 3.0)


def draw_bits(channels: int, widths: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Int64 [channels] of the given precisions, each there at least once where there is room."""
    choice = torch.randint(len(widths), (channels,), generator=torch.Generator().manual_seed(seed))
    choice[: len(widths)] = torch.arange(len(widths))[:channels]
    return torch.tensor(widths)[choice]
