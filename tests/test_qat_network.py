"""Whole networks: what convert keeps as codes, and that emulation, packed torch network and NumPy give the same bits."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

import soniq_kernels
from qat_nets import assert_identical, bits_of, extremes, frozen, images
from soniq_kernels import ops, packing, qat
from soniq_kernels.qat.edges import QuantAvgPool2d, QuantEdge, scaled
from soniq_kernels.qat.exporting import network_of
from soniq_kernels.qat.norms import affine

# --- patterns ----------------------------------------------------------------------------------------------------


def layer(inputs=8, outputs=8, **more) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **more)


class Net(nn.Module):
    """A convolution in front, the pattern, a Linear behind: [B, 3, 8, 8] to [B, 5]."""

    def __init__(self, features: int = 8):
        super().__init__()
        self.stem, self.a, self.b, self.c = layer(3), layer(), layer(), layer()
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(features, 5)

    def forward(self, x):
        return self.head(self.pattern(self.relu(self.stem(x))))


class SumOfTwoLayers(Net):
    def pattern(self, x):
        y = self.a(x)
        y += self.b(x)
        return F.relu(y).mean((2, 3))


class SumOfThree(Net):
    def pattern(self, x):
        return F.adaptive_avg_pool2d(torch.relu(torch.add(self.a(x), self.b(x)) + x), 1).flatten(1)


class SumOfCodes(Net):
    """Both operands are read twice: neither layer can add in its epilogue."""

    def pattern(self, x):
        a, b = self.a(x).relu(), self.norm(self.b(x))
        y = F.relu6(a + b)
        return self.c(a + y).mean(dim=[2, 3], keepdim=True).reshape(x.size(0), -1)


class PoolBeforeActivation(Net):
    def pattern(self, x):
        y = F.max_pool2d(self.norm(self.a(x)), 3, 2, 1)
        return F.avg_pool2d(self.b(F.hardtanh(y, -0.5, 0.75)), 4).flatten(1)


class Concat(Net):
    def __init__(self):
        super().__init__()
        self.c = layer(24, 8)

    def pattern(self, x):
        y = self.c(torch.cat([self.a(x), x, F.max_pool2d(self.b(x), 3, 1, 1)], 1))
        return F.relu(y).mean((2, 3))


class FlattenedImage(Net):
    """A Linear with learned bits reads 4 x 4 pixels: the bits belong to the channels."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(128, 8), nn.ReLU6()

    def pattern(self, x):
        y = nn.functional.max_pool2d(self.relu(self.a(x)), 2)
        return self.last(self.hidden(y.view(y.size(0), -1)))


class TwoActivations(Net):
    """One tensor is read through ReLU and without: it is written as float32."""

    def pattern(self, x):
        y = self.a(x)
        return (self.b(y) + self.c(F.relu(y))).mean((2, 3))


class ReadAfterWriting(Net):
    """The residual operand is what the in-place ReLU left of it."""

    def pattern(self, x):
        y = self.norm(self.a(x))
        z = self.b(self.relu(y))
        return (z + y).mean((2, 3))


class DropoutAndIdentity(Net):
    def __init__(self):
        super().__init__()
        self.same, self.drop = nn.Identity(), nn.Dropout(0.5)

    def pattern(self, x):
        y = self.same(x)
        return F.relu(self.drop(self.a(x)) + self.drop(y)).mean((2, 3))


class EvenParts(Net):
    def __init__(self):
        super().__init__(32)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def pattern(self, x):
        return self.pool(self.b(self.relu(self.a(x)))).flatten(1)


class NormBehindActivation(Net):
    """As in CREPE: convolution, ReLU, batch norm with factors of both signs, pool. One norm is folded, one is not."""

    def __init__(self):
        super().__init__()
        self.behind = nn.BatchNorm2d(8)

    def pattern(self, x):
        y = F.max_pool2d(self.behind(F.relu6(self.norm(self.a(x)))), 2)
        return F.relu(self.b(y) + self.c(y)).mean((2, 3))


class Dense(Net):
    """Every layer reads all that came before: the first tensor is wanted in six formats, more than one pass writes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(layer(8 * i, 8) for i in range(1, 6))
        self.c = layer(48, 8)

    def pattern(self, x):
        tensors = [x]
        for each in self.layers:
            tensors.append(F.relu(each(torch.cat(tensors, 1))))
        return self.c(torch.cat(tensors, dim=1)).mean((2, 3))


ALL_CODES = [
    SumOfTwoLayers, SumOfThree, SumOfCodes, PoolBeforeActivation, Concat, FlattenedImage, ReadAfterWriting,
    DropoutAndIdentity, EvenParts, NormBehindActivation, Dense,
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL_CODES, ids=lambda kind: kind.__name__)
def test_patterns_stay_codes(kind):
    model = frozen(kind(), images(6), last_bits=None)
    packed = qat.convert(model)
    assert not packed.soniq_floats and qat.float_tensors(packed, images(2)) == []
    assert_identical(model, packed, images(5, seed=3))
    assert_identical(model, packed, extremes(images(2)))


def test_layer_by_layer_has_float_tensors():
    """What the other tests find empty is not always empty."""
    model = frozen(SumOfTwoLayers(), images(6))
    packed = qat.convert(model, codes=False)
    assert len(qat.float_tensors(packed, images(2))) > 3
    assert qat.verify(model, packed, images(3))


def test_different_activation_functions_of_one_tensor():
    model = frozen(TwoActivations(), images(6))
    packed = qat.convert(model)
    assert packed.soniq_floats == ["a (PackedConv2d) is read through different activation functions"]
    assert_identical(model, packed, images(5, seed=3))


# --- what stays float32 ------------------------------------------------------------------------------------------


class Unsupported(Net):
    """SiLU has no form on codes; what stands around it has."""

    def __init__(self):
        super().__init__()
        self.odd = nn.SiLU()

    def pattern(self, x):
        y = self.odd(self.a(x))
        return F.relu(self.b(y) + x).mean((2, 3))


def test_an_unsupported_operation_converts_the_rest():
    model = frozen(Unsupported(), images(6))
    packed = qat.convert(model)
    assert packed.soniq_floats == ["odd (SiLU) has no form on codes"]
    assert "float32 between layers: odd (SiLU) has no form on codes" in str(qat.report(packed))
    assert "odd" in qat.float_tensors(packed, images(2)) and "b" not in qat.float_tensors(packed, images(2))
    assert qat.verify(model, packed, images(5, seed=3))
    with pytest.raises(ValueError, match="odd.* computes on float32, which torch alone can"):
        network_of(packed)


class Branches(Net):
    def pattern(self, x):
        return (self.a(x) if x.sum() > 0 else self.b(x)).mean((2, 3))


class Behaves(Net):
    """Another network in training, in a way that no layer shows."""

    def pattern(self, x):
        return (self.a(x) + self.b(x) if self.training else self.a(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Branches, "torch.fx cannot trace its forward: TraceError"), (Behaves, "in training than in eval")],
)
def test_a_model_that_cannot_be_traced_converts_layer_by_layer(kind, reason):
    model = frozen(kind(), images(6))
    assert type(model) is kind and not hasattr(model, "soniq_edges")
    assert reason in qat.report(model).floats[0]
    packed = qat.convert(model)
    assert reason in qat.report(packed).floats[0]
    assert qat.verify(model, packed, images(5, seed=3))


def test_hooks_of_blocks_go_on_being_called():
    class Hooked(SumOfTwoLayers):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(layer(), nn.ReLU())
            self.a.register_forward_hook(lambda module, args, output: calls.append(module))

    calls: list[nn.Module] = []
    model = frozen(Hooked(), images(6))
    assert qat.report(model).floats == ("a has forward hooks, which a graph of the whole model would not call",)
    calls.clear()
    model(images())
    assert calls == [model.a]


def test_edges_can_be_left_out():
    model = frozen(SumOfThree(), images(6), edge_bits=None)
    packed = qat.convert(model)
    assert {"add adds float32", "adaptive_avg_pool2d averages float32"} <= set(packed.soniq_floats)
    assert qat.verify(model, packed, images(5, seed=3))


# --- edges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bipolar", "unsigned"])
@pytest.mark.parametrize("bits", [2, 8])
def test_an_edge_gives_the_values_of_its_codes(kind, bits):
    x = torch.randn(2, 3, 4, 5) * 3
    edge = QuantEdge(bits, kind)
    edge.unit.fill_(0.37)
    plan = packing.Plan.uniform(3, w_bits=1, a_bits=bits, a_grid=kind)
    codes = packing.quantize_activations(x.permute(0, 2, 3, 1).numpy(), plan, 0.37)
    assert np.array_equal(bits_of(edge(x).permute(0, 2, 3, 1).detach()), bits_of(codes.dequantize()))
    for kernel, stride in ((None, None), ((2, 3), (1, 2))):
        pool = QuantAvgPool2d(edge, kernel, stride)
        expected = ops.global_avg_pool(codes) if kernel is None else ops.avg_pool2d(codes, kernel, stride)
        assert np.array_equal(bits_of(pool(x).permute(0, 2, 3, 1).detach()), bits_of(expected))


def test_edges_learn_their_scale_and_pass_gradients():
    torch.manual_seed(0)
    model = qat.prepare(SumOfThree(), qat.Config(), images(6)).train()
    model(images(6)).square().sum().backward()
    for edge in model.modules():
        if isinstance(edge, QuantEdge):
            assert edge.gain.grad != 0
    assert model.stem.weight.grad.abs().sum() > 0
    scales = next(group for group in qat.param_groups(model) if group["name"] == "scales")["params"]
    assert all(any(edge.gain is p for p in scales) for edge in model.modules() if isinstance(edge, QuantEdge))


def test_mean_gradients_are_those_of_a_mean():
    x = torch.randint(-3, 4, (2, 3, 4, 4)).float().requires_grad_()
    pool = QuantAvgPool2d(QuantEdge(8, "bipolar"), (2, 2), None)
    pool.edge.unit.fill_(64.0)  # steps of 1/2: no value of x is clipped or between two levels
    weights = torch.randint(-2, 3, (2, 3, 2, 2)).float()
    (pool(x) * weights).sum().backward()
    assert torch.equal(x.grad, F.interpolate(weights, scale_factor=2) / 4)


# --- batch norms behind activation functions ---------------------------------------------------------------------


def test_a_norm_behind_an_activation_trains_and_is_fixed_with_the_others():
    model = qat.freeze(qat.prepare(NormBehindActivation(), qat.Config(), images(6))).train()
    before = model.behind.norm.running_mean.clone()
    model(images(6)).square().sum().backward()
    assert not torch.equal(model.behind.norm.running_mean, before)
    qat.fix_batch_norm(model)
    before = model.behind.norm.running_mean.clone()
    model.zero_grad()
    trained = model(images(6))
    trained.square().sum().backward()
    assert torch.equal(model.behind.norm.running_mean, before) and torch.equal(trained, model.eval()(images(6)))
    assert model.behind.norm.weight.grad.abs().sum() > 0 and model.behind.norm.bias.grad.abs().sum() > 0
    fresh = qat.prepare(NormBehindActivation(), qat.Config(), images(6, seed=1))
    fresh.load_state_dict(model.state_dict())
    assert fresh.behind.is_folded


def test_a_norm_whose_input_is_read_twice_stays_float():
    class ReadTwice(NormBehindActivation):
        def pattern(self, x):
            y = F.relu(self.a(x))
            return F.relu(self.b(self.behind(y)) + self.c(y)).mean((2, 3))

    model = frozen(ReadTwice(), images(6))
    packed = qat.convert(model)
    assert "behind (BatchNorm2d) has no form on codes" in packed.soniq_floats
    assert qat.verify(model, packed, images(5, seed=3))


def test_gradients_of_an_affine():
    """Whole-number operands make float32 gradients exact, so they must equal autograd's own."""
    x, g, h = (torch.randint(-4, 5, shape).float() for shape in ((2, 3, 4, 5), (3,), (3,)))
    mine, theirs = ([t.clone().requires_grad_() for t in (x, g, h)] for _ in range(2))
    affine(*mine).square().sum().backward()
    x, g, h = theirs
    (x * g.view(-1, 1, 1) + h.view(-1, 1, 1)).square().sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)
    torch.library.opcheck(affine, tuple(mine))
    torch.library.opcheck(scaled, (mine[0], torch.tensor(0.5, requires_grad=True), 0.25))


# --- layers that read one tensor ---------------------------------------------------------------------------------


def test_layers_that_read_one_tensor_share_its_bits_and_scale():
    model = qat.prepare(SumOfTwoLayers(), qat.Config(), images(6))
    assert model.a.input is model.b.input and model.a.owns_input and not model.b.owns_input
    assert not any(key.startswith("b.input") for key in model.state_dict())
    nn.init.normal_(model.a.precision)
    copied = copy.deepcopy(model)
    assert copied.a.input is copied.b.input is not model.a.input
    qat.freeze(model)
    assert torch.equal(model.a.bits, model.b.bits) and model.a.widths == model.b.widths == (2, 4)
    fresh = qat.prepare(SumOfTwoLayers(), qat.Config(), images(6, seed=1))
    fresh.load_state_dict(model.state_dict())
    assert fresh.b.widths == (2, 4) and fresh.b.bound == model.b.bound
    assert torch.equal(fresh.eval()(images(2)), model.eval()(images(2)))


def test_a_shared_channel_counts_in_every_layer_that_reads_it():
    """One high channel of the shared tensor costs twice as much as one of a tensor that one layer reads."""
    model = qat.prepare(SumOfTwoLayers(), qat.Config(target_bits=4), images(6))
    qat.freeze(model)
    assert model.a.widths == (4,)
    model = qat.prepare(SumOfTwoLayers(), qat.Config(palette=(2, 4), target_bits=2.25), images(6))
    qat.freeze(model)
    assert int((model.a.bits == 4).sum()) == 1


def test_bits_of_a_flattened_image_belong_to_its_channels():
    model = qat.prepare(FlattenedImage(), qat.Config(), images(6))
    assert model.hidden.spread == 16 and len(model.hidden.precision) == 8 and len(model.hidden.bits) == 128
    with torch.no_grad():
        model.hidden.precision.copy_(torch.arange(8) - 4.0)
    qat.freeze(model)
    assert torch.equal(model.hidden.bits.view(8, 16), model.hidden.bits.view(8, 16)[:, :1].expand(8, 16))


# --- an ordinary module ------------------------------------------------------------------------------------------


def test_prepare_keeps_the_object_and_its_class():
    model = Concat()
    prepared = qat.prepare(model, qat.Config(), images())
    assert prepared is model and isinstance(model, Concat) and type(model).__name__ == "Concat"
    assert torch.equal(copy.deepcopy(model).eval()(images()), model.eval()(images()))
    assert torch.equal(through_pickle(model)(images()), model(images()))


def through_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@torch.no_grad()
def test_copies_files_and_state_dicts_of_a_packed_network(tmp_path):
    model = frozen(FlattenedImage(), images(6), last_bits=None)
    packed, x = qat.convert(model), images(3, seed=5)
    expected = packed(x)
    for again in (copy.deepcopy(packed), through_pickle(packed), through_pickle(through_pickle(packed))):
        assert torch.equal(again(x), expected) and qat.float_tensors(again, x) == []
    qat.save(packed, tmp_path / "network.safetensors")
    loaded = qat.load(tmp_path / "network.safetensors", FlattenedImage())
    assert torch.equal(loaded(x), expected) and qat.float_tensors(loaded, x) == []
    assert qat.verify(model, loaded, x)


@torch.no_grad()
@pytest.mark.parametrize("kind", [SumOfThree, EvenParts, Unsupported, NormBehindActivation])
def test_save_and_load_with_edges(kind, tmp_path):
    packed, x = qat.convert(frozen(kind(), images(6))), images(3, seed=5)
    qat.save(packed, tmp_path / "network.safetensors")
    loaded = qat.load(tmp_path / "network.safetensors", kind())
    assert torch.equal(loaded(x), packed(x)) and loaded.soniq_floats == packed.soniq_floats
    if packed.soniq_floats:
        with pytest.raises(ValueError, match=r"qat.load reads version 1"):
            soniq_kernels.load_network(tmp_path / "network.safetensors")
    else:
        without_torch = soniq_kernels.load_network(tmp_path / "network.safetensors")
        assert np.array_equal(bits_of(without_torch(x.numpy())), bits_of(packed(x)))


@torch.no_grad()
def test_a_state_dict_brings_its_own_bits():
    """The codes between layers follow what is loaded."""
    one, other = (frozen(Concat(), images(6), seed=seed) for seed in (0, 1))
    packed, target = qat.convert(one), qat.convert(other)
    target.load_state_dict(packed.state_dict())
    assert torch.equal(target(images(3)), packed(images(3)))
    assert qat.verify(one, target, images(3))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own imports
def test_compile_and_export():
    model = frozen(SumOfCodes(), images(6))
    packed, x = qat.convert(model), images(5, seed=3)
    expected = model(x)
    for either in (model, packed):
        assert torch.equal(torch.compile(either, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.equal(torch.export.export(packed, (x,)).module()(x), expected)
