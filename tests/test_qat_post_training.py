"""Post-training: smoothing, ranges, bits by sensitivity, reconstruction, and all of it through `quantize_model`."""

from __future__ import annotations

import copy
import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from torch import nn

from qat_nets import images, quant_layers, randomize, small_cnn
from soniq_kernels import qat
from soniq_kernels.qat import reconstruct, smoothing
from soniq_kernels.qat.calibration import layer_inputs
from soniq_kernels.qat.ranges import Target, search_ranges, start_ranges
from soniq_kernels.qat.rounding import round_weights
from soniq_kernels.qat.scales import fit_scale
from soniq_kernels.qat.sensitivity import Choice, choose, values_at

FEW = {"items": 64, "steps": 4, "block": 2}


def mlp() -> nn.Sequential:
    """A norm, and channels of very different size in front of both Linears that can be smoothed into what is before them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight *= torch.logspace(-1, 1, 12)
        model[1].weight *= torch.logspace(1, -1, 16).view(-1, 1)
    return model.eval()


def trained_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    model = small_cnn()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            randomize(norm)
    return model.eval()


def rows(count: int = 4) -> list[torch.Tensor]:
    return [torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def frozen_mlp(**fields) -> nn.Module:
    config = qat.Config(**{"palette": (4, 4), "first_bits": None, "last_bits": None} | fields)
    model = qat.prepare(mlp(), config, rows()[0])
    return qat.fix_batch_norm(qat.freeze(model)).eval()


def targets_of(model: nn.Module, float_model: nn.Module, name: str) -> list[Target]:
    layer = model.get_submodule(name)
    x = torch.cat(rows())
    x = layer_inputs(float_model, {name: float_model.get_submodule(name)}, [x], 64)[name]
    with torch.no_grad():
        return [Target(layer, x, float_model.get_submodule(name)(x))]


# --- the whole path ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [
    dict(palette=(4, 4)),
    dict(palette=(2, 4), target=3.0),
    dict(palette=(4, 8), target=6.0, a_scale="per_row", first_bits=None, last_bits=None),
    dict(palette=(2, 8), target=5.0, first_bits=None, last_bits=None, network_steps=3),
], ids=["uniform", "two levels", "per row", "network"])  # fmt: skip
@pytest.mark.parametrize("net", ["cnn", "mlp"])
def test_packed_network_is_identical(net, how, tmp_path):
    model, batches = (trained_cnn(), [images(8, seed) for seed in range(3)]) if net == "cnn" else (mlp(), rows())
    fresh = copy.deepcopy(model)
    quantized = qat.quantize_model(model, batches, qat.PostTraining(**how, **FEW))
    assert quantized is model and not model.training
    packed = qat.convert(model)
    result = qat.verify(model, packed, batches[-1])
    assert result, str(result)
    learned = [layer for layer in quant_layers(model) if layer.learns_bits]
    if learned:
        spent = sum(layer.bits.sum() * layer.weights_per_channel for layer in learned)
        assert spent <= how["target"] * sum(layer.weight.numel() for layer in learned)
        assert {layer.widths for layer in learned} & {how["palette"]}, "both levels are there"
    qat.save(packed, tmp_path / "net.safetensors")
    assert torch.equal(qat.load(tmp_path / "net.safetensors", fresh)(batches[0]), packed(batches[0]))


def test_modes_come_back():
    model = mlp().train()
    qat.quantize_model(model, rows(), qat.PostTraining(palette=(4, 4), items=16, steps=0))
    assert model.training and all(layer.training for layer in quant_layers(model))


def test_it_can_be_trained_on():
    model = qat.quantize_model(mlp(), rows(), qat.PostTraining(palette=(4, 4), items=16, steps=0))
    model(rows()[0]).square().sum().backward()
    assert all(layer.weight.grad is not None for layer in quant_layers(model))


@pytest.mark.parametrize(("unit", "target", "message"), [
    ("bits", 2.05, r"the nearest that can be met is 2\.\d+ average bits"),
    ("network_bits", 1.0, r"average bits of the network"),
    ("bytes", 10, r"the nearest that can be met is \d+\S* bytes"),
])  # fmt: skip
def test_a_target_that_cannot_be_met_names_the_nearest(unit, target, message):
    how = qat.PostTraining(palette=(2, 4), target=target, unit=unit, first_bits=None, last_bits=None, **FEW)
    with pytest.raises(ValueError, match=message):
        qat.quantize_model(mlp(), rows(), how)


def test_bytes_are_those_of_the_report():
    how = dict(palette=(2, 8), first_bits=None, last_bits=None, **FEW)
    sizes = []
    for target in (340, 420):
        model = qat.quantize_model(mlp(), rows(), qat.PostTraining(target=target, unit="bytes", **how))
        sizes.append(qat.report(model).bytes)
        assert sizes[-1] <= target + 3, "a layer's bits are rounded up to a byte"
    assert sizes[0] < sizes[1]


def test_bad_input():
    with pytest.raises(ValueError, match="calibration has no batches"):
        qat.quantize_model(mlp(), [])
    with pytest.raises(ValueError, match="unit is 'kb', expected"):
        qat.PostTraining(unit="kb", target=3.0)
    with pytest.raises(ValueError, match="without a target"):
        qat.PostTraining(unit="bytes")
    with pytest.raises(ValueError, match="steps is -1"):
        qat.PostTraining(steps=-1)
    with pytest.raises(ValueError, match="outside the palette"):
        qat.PostTraining(palette=(2, 4), target=7.0)


# --- smoothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"a_scale": "per_row"}], ids=["static", "per row"])
def test_folding_changes_no_bit(fields):
    model, x = frozen_mlp(**fields), torch.cat(rows())
    first, second, last = quant_layers(model)
    for layer in (first, second, last):
        smoothing.set_factor([layer], 2.0 ** torch.randint(-3, 4, layer.input.bits.shape))
        layer.fit_weight_scale()
    with torch.no_grad():
        before = model(x)
        assert smoothing.fold(model) == ["0", "1"], "a norm and a Linear; GELU lets nothing through"
        assert torch.equal(model(x), before)
    assert not first.input.smooths and not second.input.smooths and last.input.smooths
    packed = qat.convert(model)
    assert qat.verify(model, packed, x) and packed[5].input_factor is not None


def test_factors_keep_the_float_function():
    model, float_model = frozen_mlp(), mlp()
    layer, x = model[3], torch.randn(5, 16)
    smoothing.set_factor([layer], 2.0 ** torch.randint(-5, 6, (16,)))
    with torch.no_grad():
        assert torch.equal(layer._product(layer.entering(x), layer.weight), float_model[3](x))


def test_folding_into_a_batch_norm_behind_relu():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2)]
    model = nn.Sequential(*layers).eval()
    randomize(model[2])
    model = qat.fix_batch_norm(qat.freeze(qat.prepare(model, qat.Config.uniform(4), images()))).eval()
    smoothing.set_factor([model[4]], torch.tensor([0.25, 4.0, 1.0, 8.0]))
    with torch.no_grad():
        before = model(images())
        assert smoothing.fold(model) == ["2"]
        assert torch.equal(model(images()), before)


class Residual(nn.Module):
    """The norm's result is read by a sum too."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        x = self.norm(x)
        return x + self.down(self.up(x).relu())


def test_nothing_is_folded_where_another_reads_the_tensor():
    model = qat.freeze(qat.prepare(Residual(), qat.Config.uniform(4, edge_bits=None), torch.randn(4, 6)))
    assert list(smoothing.makers(model).values()) == [model.up]


def test_smoothing_helps_where_channels_differ():
    """Squared errors of the layer's output, smaller than without: the choice is made by them."""
    model = frozen_mlp()
    targets = targets_of(model, mlp(), "1")
    start_ranges(targets)
    before = targets[0].error()
    assert smoothing.smooth(targets) > 0 and targets[0].error() < before


# --- ranges, bits, reconstruction --------------------------------------------------------------------------------


def test_ranges_do_not_get_worse():
    targets = targets_of(frozen_mlp(), mlp(), "3")
    start_ranges(targets)
    before = targets[0].error()
    search_ranges(targets)
    assert targets[0].error() < before


def test_choice_is_the_best_there_is():
    """Against all subsets, where blocks hold one channel."""
    torch.manual_seed(1)
    choices = [Choice(torch.rand(5).double(), 3.0), Choice(torch.rand(5).double(), 2.0)]
    masks = choose(choices, budget=11.0, block=1)
    gains, prices = torch.cat([c.gain for c in choices]), torch.tensor([3.0] * 5 + [2.0] * 5)
    best = max(
        float(gains[torch.tensor(subset, dtype=torch.bool)].sum())
        for subset in itertools.product([0, 1], repeat=10)
        if 1 <= sum(subset) <= 9 and float(prices @ torch.tensor(subset, dtype=torch.float)) <= 11
    )
    assert float(gains[torch.cat(masks)].sum()) == best


def test_choice_takes_whole_blocks():
    gain = torch.arange(12).double()
    (mask,) = choose([Choice(gain, 1.0)], budget=9.0, block=4)
    assert mask.tolist() == [False] * 4 + [True] * 8


def test_reconstruction_gets_nearer_and_never_farther():
    targets = targets_of(frozen_mlp(), mlp(), "1")
    search_ranges(targets)
    before = targets[0].error()
    reconstruct.reconstruct(targets, 100)
    after = targets[0].error()
    assert after < before
    reconstruct.reconstruct(targets, 2, rate=1e4)
    assert targets[0].error() == after, "what got worse was taken back"


def test_nan_names_the_layer():
    targets = targets_of(frozen_mlp(), mlp(), "3")
    targets = [targets[0]._replace(y=targets[0].y * float("nan"))]
    with pytest.raises(FloatingPointError, match="layer 3"):
        reconstruct.reconstruct(targets, 1, name="layer 3")


def test_items_are_the_same_in_every_run():
    model, x = mlp(), torch.cat(rows())
    layers = {"1": model[1], "3": model[3]}
    first = layer_inputs(model, layers, [x, x[:5]], 20)
    second = layer_inputs(model, {"3": model[3]}, [x, x[:5]], 20)
    assert torch.equal(first["3"], second["3"]) and first["1"].shape == (15, 12)


def test_factor_survives_the_state_dict():
    model = frozen_mlp(a_scale="per_row")
    smoothing.set_factor([model[5]], 2.0 ** torch.arange(8))
    fresh = frozen_mlp(a_scale="per_row")
    fresh.load_state_dict(model.state_dict())
    x = rows()[0]
    with torch.no_grad():
        assert fresh[5].input.smooths and torch.equal(fresh(x), model(x))


def test_lines_are_quantized_and_smoothed_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.GELU(), nn.Conv1d(6, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1))
    x = torch.randn(8, 3, 16) * torch.tensor([0.1, 1.0, 10.0]).view(-1, 1)
    how = qat.PostTraining(palette=(2, 4), target=3.0, a_scale="per_row", first_bits=None, last_bits=None, **FEW)
    qat.quantize_model(model.eval(), [x], how)
    smoothing.set_factor([model[2]], 2.0 ** torch.arange(6))
    result = qat.verify(model, qat.convert(model), x)
    assert result, str(result)


@pytest.mark.parametrize("fields", [dict(palette=(3, 3)), dict(palette=(2, 2), a_palette=(8, 8), a_scale="per_row")])
def test_rounding_gets_nearer_and_leaves_values_of_codes(fields):
    targets = targets_of(frozen_mlp(**fields), mlp(), "1")
    search_ranges(targets)
    before, layer = targets[0].error(), targets[0].layer
    round_weights(targets[0], targets[0])
    assert targets[0].error() < before
    values = values_at(layer.weight.detach(), layer.weight_scale().view(-1, 1), "bipolar", layer.widths[0])
    assert torch.equal(values, layer.weight)


def test_rounding_that_does_not_help_unseen_rows_is_taken_back():
    """Two rows fit twelve inputs exactly, and nothing else."""
    unseen = targets_of(frozen_mlp(), mlp(), "1")[0]
    search_ranges([unseen])
    before, kept = unseen.error(), unseen.layer.weight.clone()
    round_weights(Target(unseen.layer, unseen.x[:2], -unseen.y[:2]), unseen)
    assert unseen.error() == before and torch.equal(unseen.layer.weight, kept)


def test_a_few_huge_rows_do_not_decide():
    """Every row's error counts by about the size of the row."""
    target = targets_of(frozen_mlp(), mlp(), "1")[0]
    weights = target._replace(y=torch.cat([target.y[:1] * 1000, target.y[1:]])).row_weights()
    assert weights[0] < 1e-4 and bool((weights[1:] > 0.1).all())
    of_images = target._replace(y=torch.randn(3, 2, 4, 4)).row_weights()
    assert torch.equal(of_images, torch.ones(3, dtype=torch.float64))


def test_scales_follow_what_counts():
    """One large weight among small ones is clipped unless its input is large."""
    x = torch.cat([torch.full((1, 1), 8.0), torch.linspace(-1, 1, 2000).view(1, -1)], 1)
    importance, bits = torch.ones(2001), torch.tensor([[4]])
    alike = fit_scale(x, "bipolar", bits)
    assert torch.equal(fit_scale(x, "bipolar", bits, importance=importance), alike)
    importance[0] = 1e4
    large = fit_scale(x, "bipolar", bits, importance=importance)
    clipped, kept = (values_at(x, scale.view(1, 1), "bipolar", 4)[0, 0] for scale in (alike, large))
    assert clipped < 7 < kept
