"""The networks that are timed and tested, written out in plain torch, with random weights and batch norms that do something.

Architectures: ResNet-18, -50 (He et al. 2015, stride in the 3x3 convolution), ResNet-20 for 32 pixels (the same paper, shortcuts of 1x1
convolutions), MobileNetV2 (Sandler et al. 2018), VGG-small (as in Zhang et al. 2018, LQ-Nets), CREPE-tiny (Kim et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, padded to keep the size at stride 1, and batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


# --- residual networks -------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.branch, self.shortcut, self.relu = branch, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where the shape stays, else a 1x1 convolution."""
    return nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)


def basic_block(inputs: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    branch = nn.Sequential(conv(inputs, width, 3, stride), nn.ReLU(), conv(width, width, 3))
    return Residual(branch, shortcut(inputs, width, stride))


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """1x1, 3x3 and a 1x1 convolution to four times the width."""
    branch = nn.Sequential(
        conv(inputs, width), nn.ReLU(), conv(width, width, 3, stride), nn.ReLU(), conv(width, 4 * width)
    )
    return Residual(branch, shortcut(inputs, 4 * width, stride))


def stages(
    block: Callable[[int, int, int], Residual],
    inputs: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    expansion: int,
) -> nn.Sequential:
    """Stages of blocks; all but the first halve the image."""
    made = []
    for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for j in range(count):
            made.append(block(inputs, width, 2 if i and not j else 1))
            inputs = expansion * width
    return nn.Sequential(*made)


def _imagenet_resnet(block: Callable, blocks: Sequence[int], expansion: int, classes: int) -> nn.Sequential:
    stem = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    body = stages(block, 64, (64, 128, 256, 512), blocks, expansion)
    return nn.Sequential(*stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512 * expansion, classes))


def resnet18(classes: int = 1000) -> nn.Sequential:
    """11.7 million parameters."""
    return _imagenet_resnet(basic_block, (2, 2, 2, 2), 1, classes)


def resnet50(classes: int = 1000) -> nn.Sequential:
    """25.6 million parameters."""
    return _imagenet_resnet(bottleneck, (3, 4, 6, 3), 4, classes)


def resnet20(classes: int = 10, channels: int = 3, width: int = 16) -> nn.Sequential:
    """For images of 28 or 32 pixels."""
    stem = [conv(channels, width, 3), nn.ReLU()]
    body = stages(basic_block, width, (width, 2 * width, 4 * width), (3, 3, 3), 1)
    return nn.Sequential(*stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


# --- MobileNetV2 -------------------------------------------------------------------------------------------------

# expansion, outputs, blocks, stride of the first
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Inverted(nn.Module):
    """Expand, filter each channel by itself, project without activation; x is added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        expand = [conv(inputs, width), nn.ReLU6()] if expansion > 1 else []
        self.branch = nn.Sequential(*expand, conv(width, width, 3, stride, width), nn.ReLU6(), conv(width, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


def mobilenet_v2(classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """3.5 million parameters at width 1."""
    inputs = int(32 * width)
    parts: list[nn.Module] = [conv(3, inputs, 3, 2), nn.ReLU6()]
    for expansion, channels, count, stride in _INVERTED:
        outputs = int(channels * width)
        for i in range(count):
            parts.append(Inverted(inputs, outputs, stride if i == 0 else 1, expansion))
            inputs = outputs
    last = int(1280 * width)
    head = [conv(inputs, last), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*parts, *head, nn.Linear(last, classes))


# --- plain networks ----------------------------------------------------------------------------------------------


def vgg_small(
    classes: int = 10, channels: int = 3, size: int = 32, widths: Sequence[int] = (128, 256, 512)
) -> nn.Sequential:
    """Six 3x3 convolutions in pairs with a pool behind each."""
    parts, inputs = [], channels
    for width in widths:
        parts += [conv(inputs, width, 3), nn.ReLU(), conv(width, width, 3), nn.MaxPool2d(2), nn.ReLU()]
        inputs = width
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(inputs * (size // 8) ** 2, classes))


def crepe_tiny() -> nn.Sequential:
    """Pitch from 1,024 samples of sound [B, 1, 1024, 1]: six tall convolutions, each with ReLU, batch norm and a pool."""
    parts, inputs = [], 1
    for i, width in enumerate((128, 16, 16, 16, 32, 64)):
        taps, stride, padding = (64, 1, "same") if i else (512, 4, (254, 0))
        layer = nn.Conv2d(inputs, width, (taps, 1), (stride, 1), padding)
        parts += [layer, nn.ReLU(), nn.BatchNorm2d(width, eps=1e-3), nn.MaxPool2d((2, 1))]
        inputs = width
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 360))


# --- all of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """make: the network; shape: of one input, CHW."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]


MODELS = {
    "ResNet-18": Model(resnet18, (3, 224, 224)),
    "ResNet-50": Model(resnet50, (3, 224, 224)),
    "MobileNetV2": Model(mobilenet_v2, (3, 224, 224)),
    "VGG-small": Model(vgg_small, (3, 32, 32)),
    "ResNet-20": Model(resnet20, (3, 32, 32)),
    "CREPE-tiny": Model(crepe_tiny, (1, 1024, 1)),
}


def random_model(name: str, seed: int = 0) -> nn.Module:
    """A model of the table in eval mode, its batch norms with statistics and factors of their own, some factors negative."""
    torch.manual_seed(seed)
    model = MODELS[name].make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _as_if_trained(module)
    return model.eval()


def _as_if_trained(norm: Any) -> None:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    norm.weight.data[::16].neg_()
    nn.init.normal_(norm.bias, 0, 0.2)
    nn.init.normal_(norm.running_mean, 0, 0.1)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    norm.num_batches_tracked.fill_(1)
