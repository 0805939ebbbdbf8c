"""convert, verify, save, load, report."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import frozen_cnn, images, quant_layers, small_cnn
from soniq_kernels import packing, qat, torch_ops
from soniq_kernels.qat.verify import compare


@pytest.fixture(scope="module")
def frozen():
    return frozen_cnn()


@pytest.fixture(scope="module")
def packed(frozen):
    return qat.convert(frozen)


# --- convert and verify ------------------------------------------------------------------------------------------


def test_whole_network_is_identical(frozen, packed):
    result = qat.verify(frozen, packed, images(32, seed=7))
    assert result and str(result) == "identical outputs: 160 of 160\nidentical layers: 4 of 4"
    assert [check.name for check in result.layers] == ["0", "3", "6", "10"]


def test_convert_leaves_the_model_alone(frozen):
    before = {key: tensor.clone() for key, tensor in frozen.state_dict().items()}
    qat.convert(frozen)
    assert all(torch.equal(tensor, frozen.state_dict()[key]) for key, tensor in before.items())
    assert all(isinstance(layer, qat.QuantLayer) for layer in quant_layers(frozen))


def test_nothing_is_left_to_train(packed):
    assert not list(packed.parameters()) and not packed.training


def repacked(layer: qat.PackedLayer, codes=None, scale=None) -> torch.Tensor:
    """The layer's buffer with other codes or scales."""
    old = layer.packed_weights()
    codes, scale = old.codes() if codes is None else codes, old.scale if scale is None else scale
    new = packing.pack(codes, old.plan, scale, bias=old.bias, activation_scale=old.activation_scale)
    return torch_ops.weights_to_tensor(new)


def test_verify_names_a_planted_code(frozen, packed):
    planted = copy.deepcopy(packed)
    codes = planted[3].packed_weights().codes()
    codes[5] ^= 1
    planted[3].packed = repacked(planted[3], codes=codes)
    result = qat.verify(frozen, planted, images())
    assert not result
    assert result.first_difference.name == "3" and result.first_difference.index[1] == 5
    assert sum(check.different > 0 for check in result.layers) == 1, "the other layers get the right input and agree"
    assert "first difference: 3: " in str(result)


def test_verify_names_a_planted_ulp(frozen, packed):
    planted = copy.deepcopy(packed)
    scale = torch.from_numpy(planted[10].packed_weights().scale.copy())
    scale[2] = torch.nextafter(scale[2], torch.tensor(9.0))
    planted[10].packed = repacked(planted[10], scale=scale.numpy())
    first = qat.verify(frozen, planted, images()).first_difference
    assert first.name == "10" and first.index[1] == 2 and first.expected != first.got


def test_compare_sees_bits_not_values():
    zero, one = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, -0.0]])
    check = compare("y", zero, one)
    assert (check.values, check.different, check.index) == (2, 1, (0, 1))
    nan = torch.tensor([torch.nan])
    assert not compare("y", nan, nan.clone()).different
    with pytest.raises(ValueError, match=r"expected \(1, 2\) torch.float32, got \(2,\)"):
        compare("y", zero, one[0])


def test_verify_wants_the_converted_model(frozen):
    with pytest.raises(ValueError, match="no layer 0; verify takes a model and what convert made of it"):
        qat.verify(frozen, nn.Sequential(), images())


def test_verify_restores_modes(frozen, packed):
    frozen.train()
    frozen[4].eval()
    qat.verify(frozen, packed, images())
    assert frozen.training and frozen[3].training and not frozen[4].training


# --- an ordinary module ------------------------------------------------------------------------------------------


def test_state_dict_deepcopy_and_pickle(packed):
    x = images(3, seed=5)
    expected = packed(x)
    assert torch.equal(copy.deepcopy(packed)(x), expected)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    other = qat.convert(frozen_cnn(seed=9, target_bits=3.1))
    assert not torch.equal(other(x), expected)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(x), expected), "other bits, another length of buffer"


def test_state_dict_of_another_network_is_refused(packed):
    other = qat.convert(qat.freeze(qat.prepare(nn.Sequential(nn.Linear(4, 4)), qat.Config(), torch.rand(1, 4))))
    with pytest.raises(ValueError, match=r"0.packed has \(3, 8\) \(inputs, outputs\), this layer has \(4, 4\)"):
        other.load_state_dict(packed.state_dict())


def test_save_and_load(packed, tmp_path):
    path = tmp_path / "network.safetensors"
    qat.save(packed, path)
    loaded = qat.load(path, small_cnn())
    assert torch.equal(loaded(images(3)), packed(images(3)))
    assert qat.report(packed).bytes < 4 * sum(p.numel() for p in small_cnn().parameters())


def test_save_and_load_with_float_leftovers(tmp_path):
    model = qat.prepare(small_cnn(), qat.Config(exclude=["3"]), images())
    packed = qat.convert(qat.freeze(model))
    qat.save(packed, tmp_path / "network.safetensors")
    loaded = qat.load(tmp_path / "network.safetensors", small_cnn())
    assert torch.equal(loaded(images(3)), packed(images(3)))


def test_load_refuses_what_does_not_fit(packed, tmp_path):
    path = tmp_path / "network.safetensors"
    qat.save(packed, path)
    with pytest.raises(ValueError, match="the file has a layer 6, the model does not"):
        qat.load(path, small_cnn()[:5])
    with pytest.raises(ValueError, match="has no packed layer"):
        qat.save(small_cnn(), path)
    packed[0].packed_weights().save(path)
    with pytest.raises(ValueError, match="expected .*soniq_kernels.network"):
        qat.load(path, small_cnn())


# --- report ------------------------------------------------------------------------------------------------------


def test_report_counts_every_weight(frozen, packed):
    for model in (frozen, packed):
        report = qat.report(model)
        rows = {row.name: row for row in report.layers}
        assert [row.weights for row in rows.values()] == [216, 576, 144, 320]
        assert rows["0"].channels == {8: 3} and set(rows["3"].channels) <= {2, 4}
        inner = (rows["3"].average_bits * 576 + rows["6"].average_bits * 144) / 720
        assert report.average_bits == pytest.approx((8 * (216 + 320) + inner * 720) / 1256)
        assert rows["0"].exact_in == "float32" and rows["0"].bound == 27 * 255 * 255
    assert {row.shape for row in qat.report(frozen).layers} == {row.shape for row in qat.report(packed).layers}


def test_report_prints_and_names_the_kernel(packed):
    pytest.importorskip("rich")
    text = str(qat.report(packed))
    assert "average bits" in text and "bits a weight over the whole network" in text
    assert all(row.kernel and row.bytes for row in qat.report(packed).layers)


def test_report_counts_float_weights_as_32():
    model = nn.Sequential(nn.Embedding(2, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    report = qat.report(qat.prepare(model, qat.Config(exclude=["2"]), torch.tensor([0, 1])))
    assert report.average_bits == (16 * 32 + 64 * 8 + 64 * 32) / 144
    assert report.layers[0].kernel == "float: Config(embedding_bits=8) would pack its rows"
