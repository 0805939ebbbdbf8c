"""The networks of benchmarks/models.py, trained, packed and run: emulation == packed in torch == packed in NumPy."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import soniq_kernels
from qat_nets import assert_identical, bits_of, extremes, frozen
from soniq_kernels import isa, qat
from soniq_kernels.qat.exporting import network_of

# Read as a file: the suite also runs from folders where `benchmarks` cannot be imported.
SPEC = importlib.util.spec_from_file_location("models", Path(__file__).parents[1] / "benchmarks/models.py")
models = sys.modules["models"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)


def digits(count: int, size: int) -> torch.Tensor:
    """Real images [count, 3, size, size] in [0, 1]."""
    small = torch.from_numpy(pytest.importorskip("sklearn.datasets").load_digits().images[:count]).float() / 16
    return F.interpolate(small[:, None], (size, size), mode="bilinear").expand(-1, 3, -1, -1).contiguous()


def everywhere(full: bool):
    """Every fast tier with one thread and with two; by default the best one with one."""
    tiers = [tier for tier in isa.available() if tier != "reference"] or ["reference"]
    for tier in tiers if full else tiers[-1:]:
        for threads in (1, 2) if full else (1,):
            with isa.use(tier):
                soniq_kernels.set_num_threads(threads)
                try:
                    yield
                finally:
                    soniq_kernels.set_num_threads(1)


SMALL = {
    "ResNet-20": lambda full: (models.resnet20(width=16 if full else 8), 28),
    "VGG-small": lambda full: (models.vgg_small(widths=(128, 256, 512) if full else (8, 16, 16)), 32),
}


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_on_real_images(name, full):
    """--full: 1,000 images, every fast tier, one thread and two."""
    model, size = SMALL[name](full)
    x = digits(1000 if full else 6, size)
    model = frozen(model, x[:64])
    packed = qat.convert(model)
    assert qat.float_tensors(packed, x[:2]) == [] and qat.verify(model, packed, x[:4])
    numpy_network = network_of(packed)
    expected = bits_of(torch.cat([model(part) for part in x.split(100)]))
    for _ in everywhere(full):
        got = [
            np.concatenate([run(part) for part in x.split(100)])
            for run in (packed, lambda part: numpy_network(part.numpy()))
        ]
        assert all(np.array_equal(bits_of(y), expected) for y in got)


LARGE = ("ResNet-18", "ResNet-50", "MobileNetV2")


@torch.no_grad()
@pytest.mark.parametrize("name", LARGE)
def test_large_networks(name, full):
    """--full: 224 pixels, 8 real images and extreme ones, one network on the reference tier."""
    if not full:
        pytest.skip("--full")
    x = digits(8, 224)
    model = frozen(models.MODELS[name].make(), x)
    packed = qat.convert(model)
    assert qat.float_tensors(packed, x[:1]) == []
    x = torch.cat([x, extremes(x)])
    for _ in everywhere(full=True):
        assert_identical(model, packed, x)
    if name == "ResNet-18":
        with isa.use("reference"):
            assert_identical(model, packed, x[7:9])


@torch.no_grad()
def test_a_slim_mobilenet():
    """Depthwise convolutions, ReLU6 and projections without activation, a quarter as wide."""
    x = digits(2, 32)
    model = frozen(models.mobilenet_v2(width=0.25), x)
    packed = qat.convert(model)
    assert qat.float_tensors(packed, x[:1]) == []
    assert_identical(model, packed, torch.cat([x, extremes(x)]))


@torch.no_grad()
def test_crepe_tiny(full):
    """--full: tones of several pitches through tall convolutions and batch norms behind ReLUs."""
    if not full:
        pytest.skip("--full")
    pitches = torch.linspace(50, 1500, 6)[:, None]
    x = torch.sin(2 * torch.pi * pitches * torch.arange(1024) / 16_000)[:, None, :, None]
    model = frozen(models.crepe_tiny(), x)
    packed = qat.convert(model)
    assert qat.float_tensors(packed, x[:1]) == []
    assert_identical(model, packed, torch.cat([x, extremes(x)]))
