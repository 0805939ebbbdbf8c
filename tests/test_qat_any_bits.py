"""One training for several widths: at every width and share the packed network is the training's, bit for bit."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import frozen_cnn, images, quant_layers, randomize
from soniq_kernels import load_network, qat

LOWER = (4, 2, 1)


def nested_cnn(seed: int = 0, **fields) -> nn.Module:
    """A frozen small_cnn whose widths differ in their scales and batch norms."""
    fields = {"palette": (8, 8), "target_bits": 8, "nested_bits": LOWER} | fields
    model = frozen_cnn(seed, **fields)
    for layer in quant_layers(model):
        if layer.nested is not None:
            nn.init.uniform_(layer.nested.gain, 0.5, 2.0)
    return model


class Block(nn.Module):
    """A residual block whose convolution and shortcut read one tensor; a Linear reads the flattened image."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.a_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3, stride=2)
        self.behind = nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(54, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.a_norm(self.a(x)) + self.shortcut(x))
        x = self.behind(torch.relu(self.last(x)))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def nested_block(**fields) -> nn.Module:
    torch.manual_seed(0)
    model = qat.prepare(Block(), qat.Config.uniform(8, a_bits=4, nested_bits=LOWER, **fields), images())
    qat.freeze(model)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            randomize(norm)
    return model


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nested_cnn, nested_block])
@pytest.mark.parametrize("codes", [True, False])
def test_every_width_and_share_is_the_packed_network(make, codes):
    model = make()
    packed = qat.convert(model, codes=codes)
    seen = []
    for bits in (8, *LOWER):
        for share in (0.0, 0.4, 1.0):
            read = qat.at_bits(packed, bits, share)
            check = qat.verify(qat.set_width(model, bits, share), read, images(seed=1))
            assert check, f"{bits} bits, {share} of the channels: {check}"
            seen.append(read(images(seed=1)))
    full = packed(images(seed=1))
    assert all(torch.equal(y, full) for y in (*seen[:3], *seen[3::3])), (
        "all planes, or a share of 0, is the network itself"
    )
    others = [y for i, y in enumerate(seen[3:]) if i % 3]
    assert all(not torch.equal(a, b) for i, a in enumerate(others) for b in (full, *others[:i])), "widths are different"


def test_convert_packs_all_planes_whatever_is_read():
    model = nested_cnn()
    before = qat.convert(model)(images())
    assert torch.equal(qat.convert(qat.set_width(model, 2))(images()), before)
    assert [layer.planes.bits for layer in quant_layers(model)] == [8, 2, 2, 8], "first and last keep their planes"


def test_two_levels_are_read_at_a_width():
    """A palette of two levels at q bits: min(q, p) of every channel."""
    model = nested_cnn(palette=(2, 8), target_bits=5, nested_bits=(4, 2, 1))
    packed = qat.convert(model)
    for bits in qat.widths(model):
        assert qat.verify(model, qat.at_bits(packed, bits), images())
        assert set(quant_layers(model)[1].bits.tolist()) == {min(bits, 2), min(bits, 8)}
    with pytest.raises(ValueError, match=r"gives 3 precisions \(2, W4A8, 8\)"):
        qat.set_width(model, 4, share=0.5)
    assert all(layer.planes.bits == 8 for layer in quant_layers(model)), "a refusal changes nothing"
    with pytest.raises(ValueError, match="3 precisions"):
        qat.at_bits(packed, 4, share=0.5)


def test_a_file_holds_all_widths(tmp_path):
    """Saved once; read again at any width, by torch and without it."""
    model = nested_block()
    qat.save(qat.convert(model), tmp_path / "all.safetensors")
    again = qat.load(tmp_path / "all.safetensors", Block())
    for bits in qat.widths(model):
        read = qat.at_bits(again, bits)
        assert qat.verify(model, read, images())
        qat.save(read, tmp_path / "one.safetensors")
        without_torch = load_network(tmp_path / "one.safetensors")(images().numpy())
        assert (without_torch == read(images()).numpy()).all()


def test_training_ships_what_it_computes_at_every_width():
    """With fixed statistics the training forward is the packed one, at shares in between in every phase."""
    model = nested_cnn().train()
    packed, x = qat.convert(model), images()
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    state = [norm.running_mean.clone() for norm in norms]
    qat.set_width(model, 2, share=0.5)
    for layer in quant_layers(model):
        if layer.nested is None:
            layer.eval()
    assert torch.equal(model(x), qat.at_bits(packed, 2, 0.5)(x))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, state, strict=True))
    qat.fix_batch_norm(model)
    for bits in qat.widths(model):
        assert torch.equal(model.train()(x), qat.at_bits(packed, bits)(x))


# --- training --------------------------------------------------------------------------------------------------------


def test_widths_train_together():
    """Every width moves its own scales and statistics and the weights; the loss falls at all of them."""
    torch.manual_seed(0)
    model = nested_cnn().train()
    x, labels = images(8), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(qat.param_groups(model, lr=3e-3))
    criterion = nn.functional.cross_entropy
    losses: dict[int, list[float]] = {}
    for _ in range(8):
        for bits in qat.widths(model):
            loss = criterion(model(x), labels)
            loss.backward()
            losses.setdefault(bits, []).append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert list(losses) == [8, *LOWER]
    assert all(each[-1] < each[0] for each in losses.values())
    assert all(layer.planes.bits == 8 for layer in quant_layers(model))
    nested = quant_layers(model)[1].nested
    means = [norm.running_mean for norm in (quant_layers(model)[1].norm, *nested.norms)]
    assert all(not torch.equal(a, b) for i, a in enumerate(means) for b in means[:i])
    packed = qat.convert(model)
    for bits in qat.widths(model):
        assert qat.verify(model, qat.at_bits(packed, bits), x)


def test_gradient_of_a_width():
    """To the weight, the scale of all widths, the factor of this one, and at a share in between to both batch norms."""
    model = nested_cnn().train()
    layer = quant_layers(model)[1]
    qat.set_width(model, 2)
    model(images()).square().sum().backward()
    used = [bool(row.any()) for row in layer.nested.gain.grad]
    assert layer.weight.grad.any() and layer.weight_gain.grad.any() and layer.norm.weight.grad is None
    assert [norm.weight.grad is not None for norm in layer.nested.norms] == [False, True, False]
    assert used == [False, True, False]
    model.zero_grad()
    qat.set_width(model, 2, share=0.5)
    model(images()).square().sum().backward()
    assert layer.norm.weight.grad.any() and layer.nested.norms[1].weight.grad.any() and layer.nested.gain.grad[1].any()


def test_first_scales_are_the_nearest():
    """Least squares: no other factor brings what is left of the weights nearer to them."""
    model = qat.freeze(qat.prepare(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)),
                                   qat.Config.uniform(8, nested_bits=[2]), torch.rand(8, 6)))  # fmt: skip
    layer = quant_layers(model)[1]
    gain = layer.nested.gain.detach()[0].clone()

    def error(factor: float) -> torch.Tensor:
        with torch.no_grad():
            layer.nested.gain.copy_(gain * factor)
        weights = qat.at_bits(qat.convert(model), 2)[1].packed_weights().dequantize()
        return (torch.from_numpy(weights) - layer.weight).square().sum(1)

    assert (gain != 1).any() and (error(1.0) < error(0.97)).all() and (error(1.0) < error(1.03)).all()


def test_state_loads_strictly_at_any_phase():
    fields = {"palette": (8, 8), "target_bits": 8, "nested_bits": LOWER}
    trained, fresh = nested_cnn(1), frozen_cnn(2, **fields)
    assert fresh.load_state_dict(trained.state_dict(), strict=True)
    packed = qat.convert(trained)
    for bits in qat.widths(fresh.eval()):
        assert qat.verify(fresh, qat.at_bits(packed, bits), images())
    copied = qat.set_width(copy.deepcopy(qat.set_width(trained, 2)), 4)
    assert qat.verify(copied, qat.at_bits(packed, 4), images())


def test_optimizer_groups_hold_every_parameter_once():
    model = nested_cnn()
    grouped = [id(p) for group in qat.param_groups(model) for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own imports
def test_a_compiled_share_is_the_same():
    torch.compiler.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)), torch.rand(8, 6)
    qat.freeze(qat.prepare(model, qat.Config.uniform(8, first_bits=None, last_bits=None, nested_bits=[2]), x))
    qat.set_width(model, 2, 0.5)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    torch.compiler.reset()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: qat.Config.uniform(4, nested_bits=[4, 2]), "nested_bits has 4, expected widths below 4"),
        (lambda: qat.Config(nested_bits=[0]), "nested_bits has 0"),
        (lambda: qat.set_width(nested_cnn(), 3), r"trained for \(4, 2, 1\), not for 3 bits"),
        (lambda: qat.set_width(nested_cnn(), 2, share=1.5), "share is 1.5"),
        (lambda: qat.set_width(frozen_cnn()), "no layer is trained for lower widths"),
        (lambda: qat.at_bits(qat.convert(frozen_cnn()), 2), "no layer is trained for lower widths"),
        (lambda: qat.at_bits(qat.convert(nested_cnn()), 3), r"trained for \[1, 2, 4\] bits, not for 3"),
        (lambda: qat.at_bits(qat.convert(nested_cnn()), 2, share=-0.1), "share is -0.1"),
    ],
)  # fmt: skip
def test_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_refused_before_freeze_and_in_words():
    model = qat.prepare(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), qat.Config(nested_bits=[1]), torch.rand(2, 4)
    )
    with pytest.raises(ValueError, match="noise phase"):
        qat.set_width(model, 1)
    with pytest.raises(TypeError, match="expected a list of widths"):
        qat.Config(nested_bits=2)


def test_a_width_above_the_palette_that_freeze_chose_is_the_full_one():
    """Config(palette="auto") may end below a nested width."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    qat.prepare(model, qat.Config(palette="auto", target_bits=2, nested_bits=[6, 1]), torch.rand(8, 4))
    qat.freeze(model, palette=(1, 4))
    packed = qat.convert(model)
    assert list(qat.widths(model)) == [4, 1]
    for bits in (6, 4, 1):
        assert qat.verify(qat.set_width(model, bits), qat.at_bits(packed, bits), torch.rand(3, 4))
