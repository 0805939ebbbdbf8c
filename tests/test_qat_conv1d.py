"""Conv1d: an image of height 1 to the kernels; emulation == oracle == packed == NumPy, saved and loaded."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

import soniq_kernels
from qat_nets import assert_identical, bits_of, draw_bits, extremes, frozen, frozen_layer, quant_layers
from soniq_kernels import qat
from soniq_kernels.qat.exporting import network_of
from test_qat_emulation import oracle_output

LAYERS = {
    "3": dict(in_channels=5, out_channels=7, kernel_size=3, padding=1),
    "1": dict(in_channels=12, out_channels=4, kernel_size=1, bias=False),
    "strided": dict(in_channels=6, out_channels=8, kernel_size=5, stride=2, padding=1),
    "dilated": dict(in_channels=6, out_channels=5, kernel_size=3, dilation=2, padding=2),
    "groups": dict(in_channels=12, out_channels=6, kernel_size=3, groups=3),
    "depthwise": dict(in_channels=10, out_channels=10, kernel_size=3, groups=10, padding=1),
    "same": dict(in_channels=4, out_channels=6, kernel_size=5, padding="same"),
}


def lines(channels: int = 4, length: int = 19, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, channels, length, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bipolar", "unsigned"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_layer(name, kind):
    torch.manual_seed(0)
    layer = nn.Conv1d(**LAYERS[name])
    x = torch.randn(3, layer.in_channels, 19)
    expected_shape = layer(x).shape
    model = frozen_layer(layer, draw_bits(layer.in_channels, (2, 4)), kind, x)
    y = model(x)
    assert y.shape == expected_shape and isinstance(model[0], qat.QuantConv1d)
    with_image = nn.Sequential(_AsImage(model[0]))
    assert (bits_of(y) == bits_of(oracle_output(with_image, x.unsqueeze(2)))[:, :, 0]).all()
    packed = qat.convert(model)
    assert qat.verify(model, packed, x) and isinstance(packed[0], qat.PackedConv1d)
    assert torch.equal(packed(x[0]), model(x[0])), "a line without a batch dimension"


class _AsImage(qat.QuantConv2d):
    """The same layer with the kernel of an image, as the oracle wants it."""

    def __init__(self, layer: qat.QuantConv1d):
        nn.Module.__init__(self)
        self.__dict__.update({**layer.__dict__, "_parameters": {**layer._parameters}})
        self._parameters["weight"] = nn.Parameter(layer.weight.unsqueeze(2))
        self.place = layer.place


class Residual(nn.Module):
    """Lines through batch norms, a pool, a residual sum, a mean that stays float, and a Linear."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2))
        self.a = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.b = nn.Conv1d(8, 8, 3, padding=1)
        self.c = nn.Conv1d(8, 6, 1)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        x = self.first(x)
        x = F.max_pool1d(F.relu(x + self.b(self.a(x))), 3, stride=1, padding=1)
        return self.last(self.c(x).mean(-1))


class AllCodes(Residual):
    def forward(self, x):
        x = self.first(x)
        return self.c(F.relu(x + self.b(self.a(x))))


@torch.no_grad()
def test_a_network_whose_tensors_stay_codes(tmp_path):
    model = frozen(AllCodes(), lines())
    del model.last
    packed, x = qat.convert(model), lines(seed=1)
    assert qat.float_tensors(packed, x) == []
    assert_identical(model, packed, torch.cat([x, extremes(x)]))
    qat.save(packed, tmp_path / "net.safetensors")
    fresh = AllCodes()
    del fresh.last
    again = qat.load(tmp_path / "net.safetensors", fresh)
    assert torch.equal(again(x), packed(x)) and isinstance(again.c, qat.PackedConv1d)
    without_torch = soniq_kernels.load_network(tmp_path / "net.safetensors")
    assert without_torch.layout == "NCL" and (bits_of(without_torch(x.numpy())) == bits_of(packed(x))).all()


@torch.no_grad()
def test_what_stays_float_is_named(tmp_path):
    model = frozen(Residual(), lines())
    packed, x = qat.convert(model), lines(seed=1)
    assert qat.verify(model, packed, torch.cat([x, extremes(x)]))
    assert any("mean" in reason for reason in qat.report(packed).floats)
    qat.save(packed, tmp_path / "net.safetensors")
    assert torch.equal(qat.load(tmp_path / "net.safetensors", Residual())(x), packed(x))
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))


def test_training_moves_everything_in_both_phases():
    torch.manual_seed(0)
    model = qat.prepare(Residual(), qat.Config(), lines())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(qat.param_groups(model.train(), lr=0.1))
    for phase in range(2):
        (model(lines()).square().sum() + qat.bit_penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if not phase:
            qat.freeze(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"a.0.weight", "a.0.weight_gain", "a.0.norm.weight", "b.bias", "b.input.precision"} <= moved
    assert [layer.rows for layer in quant_layers(model)] == [19, 9, 9, 9, 1]
    assert qat.verify(model, qat.convert(model), lines())


def test_padding_modes_other_than_zeros_stay_float():
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), nn.Conv1d(4, 4, 1))
    report = qat.report(qat.prepare(model, qat.Config(), lines()))
    assert "padding_mode is 'circular'" in report.layers[0].kernel


@torch.no_grad()
def test_a_users_own_permute_is_not_taken_for_a_change_of_layout():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.b(self.a(x).permute(0, 2, 1))

    x = torch.rand(2, 6, 6)
    packed = qat.convert(frozen(Swapped(), x))
    with pytest.raises(ValueError, match="computes on float32, which torch alone can"):
        network_of(packed)
