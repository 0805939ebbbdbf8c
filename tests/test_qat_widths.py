"""Weights and activations with precisions of their own: one s a channel, emulation == oracle == packed == NumPy."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import assert_identical, draw_bits, extremes, frozen, frozen_layer, images, quant_layers, small_cnn
from soniq_kernels import qat
from soniq_kernels.qat.layers import EXACT
from test_qat_emulation import assert_all_agree

PAIRS = [((1, 8),), ((2, 4), (4, 8)), ((2, 8), (4, 8)), ((4, 2), (4, 4)), ((1, 8), (8, 1))]


def with_pairs(layer: nn.Module, pairs: tuple, kind: str, x: torch.Tensor) -> nn.Module:
    """A frozen model of one layer, its channels dealt to the pairs of (weight bits, activation bits)."""
    channels = x.shape[-1] if isinstance(layer, nn.Linear) else x.shape[1]
    model = frozen_layer(layer, torch.full((channels,), 4), kind, x)
    chosen = torch.tensor(pairs)[draw_bits(channels, tuple(range(len(pairs))))]
    model[0].set_bits(chosen[:, 0], chosen[:, 1])
    model[0].fit_weight_scale()
    model[0].set_phase(EXACT)
    assert set(model[0].pairs) == set(pairs)
    return model.eval()


@pytest.mark.parametrize("kind", ["bipolar", "unsigned"])
@pytest.mark.parametrize("pairs", PAIRS, ids=str)
def test_one_layer(pairs, kind):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 37)
    assert_all_agree(with_pairs(nn.Linear(37, 9), pairs, kind, x), x)
    x = torch.randn(2, 12, 7, 6)
    assert_all_agree(with_pairs(nn.Conv2d(12, 6, 3, padding=1, groups=2), pairs, kind, x), x)


@pytest.mark.parametrize("palettes", [((2, 4), (4, 8)), ((1, 4), (8, 8)), ((2, 4), (2, 2))], ids=str)
def test_a_network_through_every_phase(palettes):
    palette, a_palette = palettes
    x = images()
    model = frozen(small_cnn(), x, palette=palette, a_palette=a_palette, target_bits=sum(palette) / 2)
    found = {pair for layer in quant_layers(model)[1:3] for pair in layer.pairs}
    assert found == set(zip(palette, a_palette, strict=True))
    packed = qat.convert(model)
    assert qat.float_tensors(packed, x) == []
    assert_identical(model, packed, torch.cat([x, extremes(x)]))
    assert any(
        isinstance(key, str) and key.startswith("W") for row in qat.report(packed).layers for key in row.channels
    )


def test_one_s_moves_both_noises():
    model = qat.prepare(small_cnn(), qat.Config(palette=(2, 4), a_palette=(4, 8), target_bits=3), images())
    tensor = quant_layers(model)[1].input
    for bits, (w, a) in {2: (2, 4), 3: (3, 6), 4: (4, 8)}.items():
        nn.init.constant_(tensor.precision, {2: 0.0, 3: -1.0986123, 4: -1.9459101}[bits])
        sigmas = [1 - torch.log2(sigma).mean().item() for sigma in tensor.learned_sigmas()]
        assert sigmas == pytest.approx([w, a], abs=1e-5)
    assert tuple(layer.input.scale().isfinite().item() for layer in quant_layers(model)) == (True,) * 4


def test_a_checkpoint_has_both(tmp_path):
    config = qat.Config(palette=(2, 4), a_palette=(4, 8), target_bits=3)
    model = frozen(small_cnn(), images(), palette=(2, 4), a_palette=(4, 8), target_bits=3)
    fresh = qat.prepare(small_cnn(), config, images(seed=1))
    fresh.load_state_dict(model.state_dict())
    assert [layer.pairs for layer in quant_layers(fresh)] == [layer.pairs for layer in quant_layers(model)]
    assert torch.equal(fresh.eval()(images(2)), model(images(2)))


def test_palettes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="expected two levels of the weights too"):
        qat.Config(palette=(4, 4), target_bits=4, a_palette=(4, 8))
    with pytest.raises(ValueError, match="a_palette is .8, 4., expected the lower precision first"):
        qat.Config(a_palette=(8, 4))
    assert qat.Config.uniform(4, a_bits=8).a_palette == (8, 8)
