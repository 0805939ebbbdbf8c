"""freeze: how the levels of a palette are dealt, which palette it is, kernel blocks, targets in bytes and in time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import images, prepared_cnn, quant_layers
from soniq_kernels import gemm, isa, packing, planner, qat
from soniq_kernels.qat.allocation import PALETTES, Budget
from soniq_kernels.qat.blocks import block_of, padded
from soniq_kernels.qat.budget import average_bits, learned_layers
from soniq_kernels.qat.cost import Shape, layer_cost, padded_channels, padding
from soniq_kernels.qat.targets import bytes_of

LEAST_SHARE = 0.1
FAST = [tier for tier in isa.available() if tier != "reference"]
needs_a_table = pytest.mark.skipif(not FAST, reason="this machine has the reference tier only")


def linears(*widths: int, seed: int = 0, **fields) -> nn.Sequential:
    """A prepared chain of Linears whose precisions differ from channel to channel."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths)))
    qat.prepare(model, qat.Config(first_bits=None, last_bits=None, **fields), torch.rand(4, widths[0]))
    for layer in quant_layers(model):
        nn.init.normal_(layer.precision)
    return model


def budget_of(model: nn.Module, cost: str = "bits", blocks: bool = False) -> Budget:
    inputs = [layer.input for layer in learned_layers(model)]
    return Budget(inputs, float(model.soniq_target_bits), cost, blocks)


def lost(model: nn.Module, high: tuple[int, ...], palette: tuple[int, int]) -> float:
    """The distortion by its definition, channel by channel."""
    total = learned = 0.0
    for layer, count in zip(learned_layers(model), high, strict=True):
        bits = sorted(layer.learned_bits().tolist(), reverse=True)
        levels = [palette[1]] * count + [palette[0]] * (len(bits) - count)
        total += len(layer.weight) * sum(4 ** (p - b) for p, b in zip(bits, levels, strict=True))
        learned += layer.weight.numel()
    return total / learned


@pytest.mark.parametrize("palette", [(2, 4), (1, 5), (2, 6)])
def test_no_other_way_to_deal_the_levels_is_expected_to_lose_less(palette):
    """All ways of a small network; what is found may stand one channel beside the best of them."""
    model = linears(5, 4, 3, 2, palette="auto", target_bits=2.6)
    found = budget_of(model).allocate(palette)
    assert found.distortion == pytest.approx(lost(model, found.high, palette), rel=1e-6)
    layers = learned_layers(model)
    channels, weights = sum(layer.channels for layer in layers), sum(layer.weight.numel() for layer in layers)
    best = {}
    for high in itertools.product(*(range(layer.channels + 1) for layer in layers)):
        spent = sum(
            len(layer.weight) * (palette[0] * layer.channels + (palette[1] - palette[0]) * h)
            for layer, h in zip(layers, high, strict=True)
        )
        if LEAST_SHARE <= sum(high) / channels <= 1 - LEAST_SHARE:
            best[high] = (spent, lost(model, high, palette))
    coarsest = max((palette[1] - palette[0]) * len(layer.weight) for layer in layers)
    within = [loss for spent, loss in best.values() if spent <= 2.6 * weights]
    with_less = [loss for spent, loss in best.values() if spent <= 2.6 * weights - coarsest]
    assert best[found.high][0] == found.spent <= 2.6 * weights + 1e-9
    assert min(within) <= found.distortion + 1e-9 and found.distortion <= min(with_less, default=np.inf) + 1e-9


@pytest.mark.parametrize("target", [2.1, 2.5, 3.9])
def test_each_level_holds_a_tenth_of_the_channels(target):
    """Also where one wide layer would take all of the budget, or leave none."""
    model = linears(40, 10, 10, 4, target_bits=target)
    with torch.no_grad():
        learned_layers(model)[0].precision.fill_(-3.0 if target < 3 else 3.0)
    qat.freeze(model)
    layers = learned_layers(model)
    share = sum(int((layer.bits == 4).sum()) for layer in layers) / sum(layer.channels for layer in layers)
    assert LEAST_SHARE <= share <= 1 - LEAST_SHARE


def test_a_target_too_near_to_a_level_names_the_nearest():
    """Before anything is trained; the one it names is one that it can."""
    with pytest.raises(ValueError, match="the nearest that it can is 2.2000 average bits"):
        linears(10, 10, 10, target_bits=2.05)
    qat.freeze(linears(10, 10, 10, target_bits=2.2))
    few = qat.freeze(linears(10, 10, 10, target_bits=2.1, least_share=0))
    assert sum(int((layer.bits == 4).sum()) for layer in learned_layers(few)) == 1
    with pytest.raises(ValueError, match="least_share is 0.6, expected 0 to 0.5"):
        qat.Config(least_share=0.6)


# --- palettes --------------------------------------------------------------------------------------------------------


def test_auto_chooses_the_palette_that_is_expected_to_lose_least():
    model = qat.freeze(prepared_cnn(palette="auto", target_bits=2.5))
    table = model.soniq_palettes
    assert table == sorted(table, key=lambda each: each.distortion)
    assert {each.palette for each in table} == {p for p in PALETTES if p[0] < 2.5}, "all that the budget allows"
    assert {w for layer in learned_layers(model) for w in layer.widths} == set(table[0].palette)
    assert float(average_bits(learned_layers(model))) <= 2.5
    assert qat.verify(model, qat.convert(model), images())


def test_a_measured_loss_decides_between_the_best():
    torch.manual_seed(0)
    model = prepared_cnn(palette="auto", target_bits=2.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    order = [each.palette for each in budget_of(model).search()]
    seen = []

    def loss(candidate: nn.Module) -> float:
        assert not candidate.training and not torch.is_grad_enabled()
        seen.append(tuple(sorted({w for layer in learned_layers(candidate) for w in layer.widths})))
        return -float(len(seen))  # the last one is the best

    qat.freeze(model, loss=loss)
    assert seen == order[:5] and model.soniq_palettes[0].palette == seen[-1]
    assert [each.loss for each in model.soniq_palettes] == [-5, -4, -3, -2, -1] + [None] * (len(order) - 5)
    assert model.training, "it was measured in eval mode, and is as before"
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.split(".")[-1] in ("bits", "w_bits", "phase") for key in changed)


def test_a_palette_can_be_given_to_freeze():
    model = qat.freeze(prepared_cnn(palette="auto", target_bits=3), palette=(1, 6))
    assert {w for layer in learned_layers(model) for w in layer.widths} == {1, 6}
    with pytest.raises(ValueError, match="no palette meets this budget; .* the nearest"):
        qat.freeze(prepared_cnn(palette="auto", target_bits=1.01))


def test_a_checkpoint_of_an_auto_network_resumes_after_freeze():
    model = qat.freeze(prepared_cnn(palette="auto", target_bits=2.5)).eval()
    fresh = prepared_cnn(seed=3, palette="auto", target_bits=2.5)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(images()), model(images()))
    assert qat.verify(fresh, qat.convert(fresh), images())


# --- kernel blocks ---------------------------------------------------------------------------------------------------


@needs_a_table
@pytest.mark.parametrize("tier", FAST)
@pytest.mark.parametrize("family", ["dot", "popcount"])
def test_blocks_are_those_of_the_kernels(family, tier):
    """The panels that the kernels build hold what `padded` says, a segment at a time."""
    with isa.use(tier), planner.use(family):
        sizes = {}
        for channels in (1, 31, 32, 33, 64, 65, 96, 130):
            packed = packing.pack(np.zeros((64, channels), np.uint8), packing.Plan.uniform(channels, 2, 2), 1.0)
            explanation = gemm.explain(np.zeros((128, channels), np.uint8), packed)
            if explanation.family != family:
                pytest.skip(f"{tier} has no {family}")
            block = block_of(family, explanation.segments[0].tier)
            sizes[channels] = explanation.panel_bytes / float(padded(np.array(channels), 1, block))
        assert len(set(sizes.values())) == 1, sizes


def test_padding_of_a_layer():
    with isa.use(FAST[0] if FAST else "reference"), planner.use("dot" if FAST else None):
        expected = [1.0, 0.0, 0.0, 32 / 24 - 1] if FAST else [0.0] * 4
        cases = [({(8, 8): 16}, 1), ({(8, 8): 32, (4, 4): 32}, 1), ({(8, 8): 64}, 3), ({(8, 8): 24}, 3)]
        found = [padding(pairs, Shape(width, 1, 64, 128)) for pairs, width in cases]
    assert found == expected


@needs_a_table
def test_whole_blocks_leave_the_least_to_pad():
    with isa.use(FAST[0]), planner.use("dot"):
        model = linears(128, 128, 64, 8, target_bits=2.7)
        free = qat.freeze(linears(128, 128, 64, 8, target_bits=2.7))
        qat.freeze(model, blocks=True)
        for layer in learned_layers(model):
            assert all(int((layer.bits == width).sum()) % 32 == 0 for width in (2, 4)), layer
        found, other = (sum(row.padding for row in qat.report(m).layers) for m in (model, free))
        assert found == 0 < other, "the report shows what is lost to padding"
        assert "33%" in str(qat.report(free)) or any(
            f"{row.padding:.0%}" in str(qat.report(free)) for row in qat.report(free).layers
        )
        packed = qat.report(qat.convert(model))
        assert all(row.padding == 0 for row in packed.layers)
    assert model.soniq_palettes[0].distortion >= free.soniq_palettes[0].distortion, "and it has its price"


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["target_bytes", "target_compression"])
def test_a_target_in_bytes_is_kept(name, tmp_path):
    torch.manual_seed(0)
    float_bytes = bytes_of(nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise((96, 96, 96, 8)))))
    allowed = 0.14 * float_bytes
    model = qat.freeze(linears(96, 96, 96, 8, **{name: allowed if name == "target_bytes" else float_bytes / allowed}))
    packed = qat.convert(model)
    found = bytes_of(packed)
    one_channel = 2 * 96 / 8
    assert allowed - one_channel - 64 < found <= allowed + 64, (found, allowed)
    assert qat.report(packed).compression == float_bytes / found
    qat.save(packed, tmp_path / "net.safetensors")
    assert found < (tmp_path / "net.safetensors").stat().st_size < found + 4096, "the header of the file comes on top"


def test_a_target_in_bytes_that_is_out_of_reach_names_the_nearest():
    with pytest.raises(ValueError, match="target_bytes is 100, .* the nearest possible is") as refused:
        linears(96, 96, 96, 8, target_bytes=100)
    nearest = int(str(refused.value).split("the nearest possible is ")[1].split(";")[0])
    linears(96, 96, 96, 8, target_bytes=nearest + 1, least_share=0)
    with pytest.raises(ValueError, match="with 10% of the channels at each level; the nearest that it can is"):
        linears(96, 96, 96, 8, target_bytes=nearest + 1)
    with pytest.raises(ValueError, match="target_compression is 40, .* the nearest possible is"):
        linears(96, 96, 96, 8, target_compression=40)


@needs_a_table
def test_a_target_in_time_is_kept_and_counts_time():
    with isa.use(FAST[-1]):
        pairs = [(2, 2), (4, 4), (8, 8)]
        layers = learned_layers(linears(256, 256, 256, 64))
        least, most, full = (sum(layer_cost(layer, p, p, "time")[0] for layer in layers) for p in pairs)
        ratio = (least + 0.6 * (most - least)) / full
        model = linears(256, 256, 256, 64, target_time=ratio)
        assert model.soniq_cost == "time"
        assert torch.equal(qat.bit_penalty(model.eval()), qat.bit_penalty(model, cost="time"))
        qat.freeze(model)
        (chosen,) = model.soniq_palettes
        assert 0.9 * ratio * full < chosen.spent <= ratio * full * 1.001
        spent = 0.0
        for layer in learned_layers(model):
            spent += layer_cost(layer, (2, 2), (4, 4), "time")[int((layer.bits == 4).sum())]
        assert spent == chosen.spent
        with pytest.raises(ValueError, match="the nearest that the palette .2, 4. can meet on this machine is"):
            linears(256, 256, 256, 64, target_time=least / full / 2)


def test_one_target_at_a_time():
    with pytest.raises(ValueError, match="target_bits and target_bytes are given, expected one target"):
        qat.Config(target_bits=3, target_bytes=1000)
    with pytest.raises(ValueError, match="target_time is -1, expected a positive number"):
        qat.Config(target_time=-1)


def test_padded_channels_agree_with_padding():
    layer = learned_layers(linears(96, 96, 8))[0]
    layer.set_bits(torch.where(torch.arange(96) < 40, 4, 2))
    computed = padded_channels(layer, (2, 2), (4, 4))[40]
    assert computed / 96 - 1 == padding({(4, 4): 40, (2, 2): 56}, Shape(1, 1, 96, layer.rows))
