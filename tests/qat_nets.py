"""Small networks and frozen layers for the tests of qat."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from soniq_kernels import qat
from soniq_kernels.qat.exporting import network_of
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


# --- whole networks ----------------------------------------------------------------------------------------------


def frozen(model: nn.Module, example: torch.Tensor, seed: int = 0, **fields) -> nn.Module:
    """Any model, frozen, with mixed bits and batch norms that do something, in eval mode."""
    torch.manual_seed(seed)
    qat.prepare(model, qat.Config(**fields), example)
    for layer in quant_layers(model):
        if layer.owns_input and layer.learns_bits:
            nn.init.normal_(layer.precision)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            randomize(norm)
    return qat.freeze(model).eval()


@torch.no_grad()
def assert_identical(model: nn.Module, packed: nn.Module, x: torch.Tensor) -> None:
    """Emulation == packed, every layer and the outputs; == NumPy."""
    result = qat.verify(model, packed, x)
    assert result, str(result)
    assert np.array_equal(bits_of(network_of(packed)(x.numpy())), bits_of(packed(x)))


def bits_of(y: torch.Tensor | np.ndarray) -> np.ndarray:
    """Float32 as uint32."""
    return np.ascontiguousarray(y).view(np.uint32)


def extremes(x: torch.Tensor) -> torch.Tensor:
    """Every value far outside the range of its codes, and exactly zero."""
    return torch.cat([torch.full_like(x[:1], 1e6), torch.full_like(x[:1], -1e6), torch.zeros_like(x[:1])])
