"""A target in milliseconds: counted by a machine's table of costs, met, and named where it cannot be."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from torch import nn

from qat_nets import quant_layers
from soniq_kernels import qat
from soniq_kernels.qat.cost import product_ns

PALETTE = (2, 8)
MACHINES = ("avx2", "avx512_vbmi")


def rows() -> list[torch.Tensor]:
    return [torch.rand(32, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def quantized(target: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 8))
    how = qat.PostTraining(
        palette=PALETTE, target=target, unit="milliseconds", first_bits=None, last_bits=None, items=16, steps=0
    )
    return qat.quantize_model(model, rows(), how)


def milliseconds(model: nn.Module, bits: int | None = None) -> float:
    """Of one sample's products, every channel at `bits` if given."""
    total = 0.0
    for layer in quant_layers(model):
        outputs = len(layer.weight)
        for own in layer.bits.tolist():
            each = bits or own
            total += layer.rows * outputs * product_ns(each, each, outputs, layer.rows)
    return total / 1e6


def high(model: nn.Module) -> int:
    """Channels at the high level."""
    return sum(int((layer.bits == PALETTE[1]).sum()) for layer in quant_layers(model))


def test_a_target_in_milliseconds_is_met_and_the_nearest_is_named():
    with qat.machine("avx512_vbmi"):
        with pytest.raises(ValueError, match="milliseconds") as refusal:
            quantized(1e-9)
        nearest = float(re.findall(r"can be met is (\S+) milliseconds", str(refusal.value))[0])
        target = nearest * (1 + 1e-5)  # it is named with six digits
        assert milliseconds(quantized(target)) <= target
        half = (nearest + milliseconds(quantized(1e9), 8)) / 2
        model = quantized(half)
        spent, block = milliseconds(model), 16 * max(len(layer.weight) for layer in quant_layers(model))
        dearest = max(product_ns(8, 8, len(layer.weight), layer.rows) for layer in quant_layers(model))
        assert half - block * dearest / 1e6 < spent <= half, "no block more fits"
    assert qat.verify(model, qat.convert(model), rows()[0])


def test_milliseconds_are_those_of_the_machine():
    """What pays for 8 bits everywhere on one machine pays for fewer on a slower one."""
    found = []
    for tier in MACHINES:
        with qat.machine(tier):
            found.append(milliseconds(everything := quantized(1e9), 8))
    target = min(found)
    counts = []
    for tier in MACHINES:
        with qat.machine(tier):
            counts.append(high(quantized(target)))
            assert milliseconds(everything, 8) == found[len(counts) - 1], "the table of this machine"
    assert counts[found.index(target)] > counts[found.index(max(found))] and min(found) < max(found)
