"""Scales of every row: emulation, packed layers and the oracle give the same bits, whatever lies between the layers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import oracle
from cases import assert_same_bits
from qat_nets import assert_identical, draw_bits, extremes, frozen, images, quant_layers, small_cnn
from soniq_kernels import qat
from soniq_kernels.packing import Grid

ROWS = {"a_scale": "per_row"}


def rows_of_all_sizes(*shape: int) -> torch.Tensor:
    """Normal values whose rows differ by many powers of two; the first row is zero."""
    x = torch.randn(*shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    x[0] = 0
    return x


@pytest.mark.parametrize("kind", ["bipolar", "unsigned"])
@pytest.mark.parametrize("widths", [(1,), (4,), (8,), (2, 4), (4, 8)], ids=str)
def test_linear_against_the_oracle(widths, kind):
    torch.manual_seed(0)
    x = rows_of_all_sizes(6, 3, 29)
    config = qat.Config((min(widths), max(widths)), first_bits=None, last_bits=None, a_grid=kind, **ROWS)
    model = qat.freeze(qat.prepare(nn.Sequential(nn.Linear(29, 7)), config, x)).eval()
    layer = model[0]
    layer.set_bits(draw_bits(29, widths))
    layer.fit_weight_scale()
    pairs = tuple((oracle.Grid("bipolar", p), oracle.Grid(kind, p)) for p in layer.widths)
    layout = oracle.Layout(tuple(layer.widths.index(p) for p in layer.bits.tolist()), pairs)
    rows = x.reshape(-1, 29).numpy()
    factor = Grid(kind, max(layer.widths)).dynamic_factor
    scale = np.maximum(np.abs(rows).max(1) * factor, np.float32(2.0**-100))
    x_codes = oracle.quantize_channels(rows, layout.segment, oracle.a_grids(layout), scale[:, None])
    w_codes = oracle.quantize_weights(layer.weight.detach().numpy(), layout, layer.weight_scale().detach().numpy())
    shipped = (t.detach().numpy() for t in layer.shipped())
    y = oracle.epilogue(
        oracle.matmul(x_codes, w_codes, layout),
        scale[:, None],
        oracle.total_exponent(layout),
        oracle.Epilogue(*shipped),
    )
    with torch.no_grad():
        assert_same_bits(model(x).reshape(-1, 7).numpy(), y, "emulation against oracle")
    result = qat.verify(model, qat.convert(model), torch.cat([x, extremes(x)]))
    assert result, str(result)


@pytest.mark.parametrize("codes", [True, False])
def test_network(codes, tmp_path):
    model = frozen(small_cnn(), images(), **ROWS)
    x = torch.cat([images(3) * 0.01, images(3), torch.zeros(1, 3, 8, 8)])
    packed = qat.convert(model, codes=codes)
    result = qat.verify(model, packed, x)
    assert result, str(result)
    qat.save(packed, tmp_path / "net.safetensors")
    assert torch.equal(qat.load(tmp_path / "net.safetensors", small_cnn())(x), packed(x))


def test_without_torch():
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3)]
    model = frozen(nn.Sequential(*layers), torch.randn(3, 8), **ROWS)
    assert_identical(model, qat.convert(model), rows_of_all_sizes(5, 8))


def test_trains_and_keeps_its_phase():
    torch.manual_seed(0)
    x = torch.randn(5, 4, 12)
    model = qat.prepare(nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)), qat.Config(**ROWS), x)
    for step in range(4):
        if step == 2:
            qat.freeze(model)
        model.zero_grad()
        model(x).square().sum().backward()
        for layer in quant_layers(model):
            assert layer.weight.grad.isfinite().all() and layer.weight_gain.grad.isfinite().all()
            assert layer.input.gain.grad is None, "the scale is not learned"
    fresh = qat.prepare(nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)), qat.Config(), x)
    fresh.load_state_dict(model.state_dict())
    assert all(layer.input.per_row for layer in quant_layers(fresh))
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_gradients_are_those_of_the_values():
    """y is linear in the weights' scale: the gradient of sum(y) is sum(y) / scale, exact where all are small dyadic numbers."""
    torch.manual_seed(0)
    x = torch.randint(-7, 8, (4, 10)) * 2.0 ** torch.arange(4).view(-1, 1)
    x[:, 0] = 2.0 ** torch.arange(3, 7)
    layer = qat.freeze(
        qat.prepare(nn.Sequential(nn.Linear(10, 3)), qat.Config.uniform(4, first_bits=None, last_bits=None, **ROWS), x)
    )[0]
    scale = torch.ones(3, requires_grad=True)
    y = layer._exact(x, scale, None)
    y.sum().backward()
    assert torch.equal(scale.grad, y.detach().sum(0))


def test_the_report_says_so():
    model = frozen(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), torch.randn(3, 8), **ROWS)
    for stage in (model, qat.convert(model)):
        assert [row.grid for row in qat.report(stage).layers] == ["bipolar per row"] * 2


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="a_scale is 'per_image', expected 'static' or 'per_row'"):
        qat.Config(a_scale="per_image")
