"""Ternary and one-bit weights: grids, scales and gradients, exact through convert and verify."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import frozen_cnn, images, quant_layers
from soniq_kernels import load_network, packing, qat
from soniq_kernels.qat.quantizer import Table, codes, levels
from soniq_kernels.qat.scales import average

RECIPES = {
    "ternary": {"palette": (2, 2), "a_palette": (8, 8), "w_grid": "ternary", "w_scale": "absmean", "surrogate": "identity"},
    "ternary, median": {"palette": (2, 2), "a_palette": (4, 4), "w_grid": "ternary", "w_scale": "absmedian"},
    "ternary, learned": {"palette": (2, 2), "w_grid": "ternary"},
    "one bit": {"palette": (1, 1), "w_scale": "absmean", "surrogate": "tanh", "a_grid": "bipolar"},
    "one bit, learned": {"palette": (1, 1), "surrogate": "identity"},
}  # fmt: skip


def frozen(recipe: str, **more) -> nn.Module:
    fields = RECIPES[recipe] | more
    return frozen_cnn(target_bits=fields["palette"][0], **fields)


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_is_the_training(recipe, tmp_path):
    """Bit for bit: layer by layer, as a network, from a file, and without torch."""
    model = frozen(recipe)
    packed, x = qat.convert(model), images(seed=1)
    assert qat.verify(model, packed, x) and packed.soniq_floats == []
    weights = packed[3].packed_weights()
    assert weights.plan.segments[0].w.kind == RECIPES[recipe].get("w_grid", "bipolar")
    qat.save(packed, tmp_path / "network.safetensors")
    assert (load_network(tmp_path / "network.safetensors")(x.numpy()) == packed(x).numpy()).all()
    values = np.unique(np.sign(weights.dequantize()))
    assert values.tolist() == ([-1, 0, 1] if "ternary" in recipe else [-1, 1])
    assert qat.report(model).average_bits == qat.report(packed).average_bits


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains(recipe):
    """The loss falls, and what was trained is what ships."""
    model = frozen(recipe).train()
    x, labels = images(8), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(qat.param_groups(model, lr=3e-3))
    losses = []
    for step in range(12):
        if step == 6:
            qat.fix_batch_norm(model)
        loss = nn.functional.cross_entropy(model(x), labels)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-3:]) < sum(losses[:3])
    packed = qat.convert(model)
    assert torch.equal(model(x), packed(x)) and qat.verify(model, packed, x)


def test_ternary_quantizer_is_the_grid_of_the_kernels():
    """Every level, its borders, and values far outside: the same codes as packing makes."""
    x = torch.tensor([[-9.0, -1.5, -0.75, -0.7499, -0.3751, -0.375, 0.0, 0.3749, 0.375, 0.75, 1.5, 9.0]])
    scale = np.array([0.75], np.float32)
    plan = packing.Plan.uniform(x.shape[1], w_bits=2, a_bits=4, w_grid="ternary")
    expected = packing.quantize_weights(x.numpy(), plan, scale).codes()
    table = Table.of("ternary", torch.tensor([2]), (1,))
    got = codes(x, torch.from_numpy(scale).view(1, 1), table)
    assert (got.numpy() == expected).all() and sorted(set(got.flatten().tolist())) == [0, 1, 2]
    assert torch.equal(levels(x, torch.from_numpy(scale).view(1, 1), table), got - 1.0)


# --- scales ----------------------------------------------------------------------------------------------------------


def test_average_of_sizes():
    x = torch.tensor([[1.0, -3.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0], [-0.5, -0.5, -0.5, -0.5]])
    assert average(x, "absmean").tolist() == [3.0, 1.0, 0.5]
    assert average(x, "absmedian").tolist() == [1.0, 1.0, 0.5]


def test_the_mean_is_the_same_in_any_order():
    rows = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 5).view(-1, 1)
    mean = average(rows, "absmean")
    for seed in range(5):
        order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(average(rows[:, order], "absmean"), mean)
    assert torch.equal(mean, rows.abs().double().mean(1).float()), "on these rows it rounds to the same float32"


def test_scales_follow_the_weights():
    """absmean has nothing to learn: the scale is that of the weights as they are, and no gain takes a gradient."""
    model = frozen("ternary")
    layer, first = quant_layers(model)[1], quant_layers(model)[0]
    assert not layer.weight_gain.requires_grad and first.weight_gain.requires_grad and first.w_kind == "bipolar"
    before = layer.weight_scale()
    with torch.no_grad():
        layer.weight *= 2
    assert torch.equal(layer.weight_scale(), 2 * before)
    assert torch.equal(before, layer.weight.abs().double().flatten(1).mean(1).float() / 2)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bits"), [("ternary", 2), ("bipolar", 1), ("bipolar", 3)])
def test_gradient_passes_as_the_surrogate_says(kind, bits):
    """At equal levels: one inside the range and zero outside; one everywhere; the slope of tanh(2v), v = -1..1 over the range."""
    x = torch.linspace(-4, 4, 41).requires_grad_()
    table, scale = Table.of(kind, torch.tensor([bits]), (1,)), torch.tensor([0.5])
    made, gradients = {}, {}
    for surrogate in ("clipped", "identity", "tanh"):
        made[surrogate] = levels(x, scale, table, surrogate)
        (gradients[surrogate],) = torch.autograd.grad(made[surrogate].sum(), x)
    assert all(torch.equal(y, made["clipped"]) for y in made.values())
    step = float(table.alpha * table.numerator / 0.5)
    edge = float((table.cmax + 1) * 0.5 / table.numerator / 2)
    v = x.detach() / edge
    assert torch.equal(gradients["identity"], torch.full_like(x, step))
    assert torch.equal(gradients["clipped"][v.abs() < 0.99], torch.full_like(v[v.abs() < 0.99], step))
    assert not gradients["clipped"][v.abs() > 1.01].any()
    middle = (table.cmax + 1) / 2
    t = x.detach() * (table.numerator / scale) + table.z
    assert torch.equal(gradients["tanh"], (1 - torch.tanh((t - middle) / middle * 2).square()) * step)
    assert gradients["tanh"].argmax() == 20 and (gradients["tanh"][v.abs() < 2] > 0).all(), (
        "steepest at 0, not lost at the ends"
    )


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"w_grid": "ternary"}, r"palette \(2, 4\), expected \(2, 2\)"),
        ({"w_grid": "three"}, "w_grid is 'three', expected 'bipolar' or 'ternary'"),
        ({"w_scale": "absmean"}, r"weights have \(2, 4\) bits, expected ternary or one-bit"),
        ({"w_scale": "mean"}, "expected 'learned', 'absmean' or 'absmedian'"),
        ({"surrogate": "sign"}, "expected 'clipped', 'identity' or 'tanh'"),
        ({"palette": (2, 2), "w_grid": "ternary", "nested_bits": [1]}, "whose planes are no weights of fewer bits"),
    ],
)  # fmt: skip
def test_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        qat.Config(**fields)


def test_a_packed_ternary_layer_has_no_fewer_bits():
    with pytest.raises(ValueError, match="no layer is trained for lower widths"):
        qat.at_bits(qat.convert(frozen("ternary")), 1)
