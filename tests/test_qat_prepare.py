"""prepare: what it swaps, what it leaves alone and says so, and what it refuses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import images, prepared_cnn, quant_layers, small_cnn
from soniq_kernels import qat


def prepare(model, example, **fields):
    return qat.prepare(model, qat.Config(**fields), example)


# --- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(palette=(2, 4), target_bits=5), "nearest possible is 4"),
        (dict(palette=(2, 4), target_bits=1.5), "nearest possible is 2"),
        (dict(palette=(4, 2)), r"lower precision first: \(2, 4\)"),
        (dict(palette=(0, 4)), "whole bits in 1..8"),
        (dict(palette=(2, 9)), "whole bits in 1..8"),
        (dict(palette=(2, 4, 8)), "two precisions"),
        (dict(first_bits=16), "whole bits in 1..8"),
        (dict(a_grid="signed"), "'auto', 'bipolar' or 'unsigned'"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        qat.Config(**fields)


def test_config_wants_a_list_of_names():
    with pytest.raises(TypeError, match=r"write \['head'\]"):
        qat.Config(exclude="head")


def test_default_target_is_a_quarter_of_the_way():
    assert qat.Config(palette=(2, 4)).target_bits == 2.5
    assert qat.Config.uniform(3).target_bits == 3


# --- what is swapped ---------------------------------------------------------------------------------------------


def test_parameters_stay_the_same_objects():
    model = small_cnn()
    before = {id(p) for p in model.parameters()}
    prepare(model, images())
    assert before <= {id(p) for p in model.parameters()}


def test_every_layer_with_weights_is_taken_and_batch_norms_move_in():
    model = prepared_cnn()
    assert [type(layer).__name__ for layer in quant_layers(model)] == ["QuantConv2d"] * 3 + ["QuantLinear"]
    assert [layer.norm is not None for layer in quant_layers(model)] == [True, True, False, False]
    assert isinstance(model[1], nn.Identity)


def test_first_and_last_layers_have_eight_bits_and_the_input_scale_is_fixed():
    first, second, third, last = quant_layers(prepared_cnn())
    assert first.widths == last.widths == (8,)
    assert not first.learns_bits and not last.learns_bits and second.learns_bits and third.learns_bits
    assert not first.input.gain.requires_grad and second.input.gain.requires_grad


def test_pixels_pass_the_first_layer_without_loss():
    model = nn.Sequential(nn.Conv2d(1, 4, 1))
    pixels = torch.arange(256).view(1, 1, 16, 16)
    first = prepare(model, pixels / 255)[0]
    from soniq_kernels.qat.quantizer import codes

    assert torch.equal(codes(pixels / 255, first.input.scale(), first._input_table()), pixels.to(torch.uint8))


def test_grid_follows_the_sign_of_the_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    kinds = [layer.kind for layer in quant_layers(prepare(model, torch.rand(8, 4)))]
    assert kinds == ["unsigned", "bipolar", "unsigned"]
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert {layer.kind for layer in quant_layers(prepare(model, torch.rand(8, 4), a_grid="bipolar"))} == {"bipolar"}


def test_prepare_leaves_modes_statistics_and_hooks_alone():
    model = small_cnn()
    model[4].eval()
    norms = [model[1], model[4]]
    before = [norm.running_mean.clone() for norm in norms]
    prepare(model, images())
    assert [norm.training for norm in norms] == [True, False]
    assert all(torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True))
    assert all(int(norm.num_batches_tracked) == 0 and norm.momentum == 0.1 for norm in norms)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_excluded_layers_stay_float_and_are_reported():
    model = prepare(small_cnn(), images(), exclude=["1*", "3"])
    assert type(model[3]) is nn.Conv2d and type(model[10]) is nn.Linear
    assert isinstance(model[4], nn.BatchNorm2d), "its convolution is float, so it stays"
    kernels = {layer.name: layer.kernel for layer in qat.report(model).layers}
    assert kernels["3"] == kernels["10"] == "float: excluded"


def test_exclude_must_match_something():
    with pytest.raises(ValueError, match="'head', which matches no Linear, Conv1d or Conv2d; there are: 0, 3"):
        prepare(small_cnn(), images(), exclude=["head"])


class Branches(nn.Module):
    """Layers that cannot be taken, each for another reason."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.unused = nn.Linear(4, 4)
        self.line = nn.ConvTranspose1d(4, 4, 1)
        self.precise = nn.Linear(4, 4).double()
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda module, args, output: output + 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.line(self.circular(self.stem(x)).flatten(2)).mean(2)
        return self.head(self.hooked(self.precise(x.double()).float()))


def test_every_layer_left_float_has_a_reason():
    model = prepare(Branches(), images())
    reasons = {layer.name: layer.kernel for layer in qat.report(model).layers if layer.kernel.startswith("float")}
    assert {name: reason.removeprefix("float: ") for name, reason in reasons.items()} == {
        "circular": "padding_mode is 'circular', only zeros are exact",
        "unused": "the example input does not reach its forward",
        "line": "a ConvTranspose1d is not supported",
        "precise": "its weight is torch.float64, not float32",
        "hooked": "it has forward hooks",
    }
    assert [type(m).__name__ for m in (model.stem, model.head)] == ["QuantConv2d", "QuantLinear"]


class SkipsTheNorm(nn.Module):
    """The convolution's output is read twice: its batch norm must not be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


def test_a_batch_norm_that_is_not_the_only_reader_is_not_folded():
    model = prepare(SkipsTheNorm(), images())
    assert model.conv.norm is None and isinstance(model.norm, nn.BatchNorm2d)
    assert qat.verify(qat.freeze(model), qat.convert(model), images())


def test_folding_can_be_switched_off():
    model = prepare(small_cnn(), images(), fold_batch_norm=False)
    assert all(layer.norm is None for layer in quant_layers(model)) and isinstance(model[1], nn.BatchNorm2d)
    qat.freeze(model)
    assert qat.verify(model, qat.convert(model), images())


class Reuses(nn.Module):
    """One layer under two names, called twice, and two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(self.again(self.first(x).relu()).relu())


def test_reused_layers_and_tied_weights():
    model = prepare(Reuses(), torch.rand(4, 6), first_bits=4)
    assert model.first is model.again and isinstance(model.first, qat.QuantLinear)
    assert model.tied.weight is model.first.weight
    qat.freeze(model)
    packed = qat.convert(model)
    assert packed.first is packed.again
    result = qat.verify(model, packed, torch.rand(4, 6))
    assert result and [check.name for check in result.layers] == ["first", "first", "tied"]


# --- what is refused ---------------------------------------------------------------------------------------------


class BranchesOnData(nn.Module):
    """Reads a value of its input to choose a layer."""

    def __init__(self):
        super().__init__()
        self.enter, self.small, self.large, self.leave = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        middle = self.large if x.mean() > 0.5 else self.small
        return self.leave(torch.relu(middle(torch.relu(self.enter(x)))))


def test_a_branch_on_data_is_converted_layer_by_layer():
    """Both ways through are the training's; the layer that the example does not reach stays float, and the report says so."""
    torch.manual_seed(0)
    model = qat.freeze(qat.prepare(BranchesOnData(), qat.Config(), torch.zeros(4, 6)))
    assert model.soniq_left_float == {"large": "the example input does not reach its forward"}
    packed = qat.convert(model)
    assert "cannot trace its forward" in packed.soniq_floats[0] and "control flow" in packed.soniq_floats[0]
    for x in (torch.zeros(4, 6), torch.ones(4, 6)):
        assert qat.verify(model, packed, x)


class HidesALayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.shown = nn.Linear(4, 4)
        self.hidden = [self.shown]

    def forward(self, x):
        return self.hidden[0](x)


def test_a_layer_called_through_a_plain_list_is_refused():
    with pytest.raises(ValueError, match="the model calls shown through a reference that is not a submodule"):
        prepare(HidesALayer(), torch.rand(2, 4))


def test_refusals():
    with pytest.raises(ValueError, match="already prepared"):
        qat.prepare(prepared_cnn(), qat.Config(), images())
    with pytest.raises(ValueError, match=r"wrap it: nn.Sequential\(layer\)"):
        prepare(nn.Linear(2, 2), torch.rand(1, 2))
    with pytest.raises(ValueError, match="no layer to quantize.*no Linear, Conv1d or Conv2d"):
        prepare(nn.Sequential(nn.ReLU()), torch.rand(1, 2))
    with pytest.raises(ValueError, match="layer 0 reads NaN or infinity"):
        prepare(small_cnn(), images() * torch.nan)
    with pytest.raises(TypeError, match="example_input is str"):
        prepare(small_cnn(), "images")
    with pytest.raises(ValueError, match="not prepared; call qat.prepare"):
        qat.bit_penalty(small_cnn())


def test_sums_beyond_int32_stay_float():
    model = nn.Sequential(nn.Linear(40_000, 2), nn.Linear(2, 2))
    prepare(model, torch.rand(1, 40_000))
    assert "may pass int32 at 8 bits" in qat.report(model).layers[0].kernel


def test_wrong_input_is_named():
    model = prepared_cnn()
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 8, 8\), expected 3 channels in dimension -3"):
        model(torch.rand(2, 5, 8, 8))


@pytest.mark.parametrize("example", [images(), (images(),), {"input": images()}], ids=["tensor", "tuple", "dict"])
def test_forms_of_example_input(example):
    assert len(quant_layers(prepare(small_cnn(), example))) == 4
