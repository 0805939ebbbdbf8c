"""The cost of bits in time: from the planner's table, into the penalty and into freeze."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import images, prepared_cnn, quant_layers
from soniq_kernels import _core, isa, planner, qat
from soniq_kernels.qat.budget import average_bits, learned_layers
from soniq_kernels.qat.cost import LEAST_SAVING, bit_cost, layer_cost, product_ns, relative_time

WIDTHS = [(w, a) for w in range(1, 9) for a in range(1, 9)]
TIERS = [name for name in isa.available() if _core.candidates(name, 8, 8)]
pytestmark = pytest.mark.skipif(not TIERS, reason="this machine has the reference tier only")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """write(products a ns of (bits, bits)) makes it the table of the active tier, the same for every family and M."""
    path = tmp_path / "costs.json"
    monkeypatch.setenv("SONIQ_COSTS", str(path))

    def cost(rate: float) -> dict:
        return {
            "columns": 1, "products_per_ns": [rate] * 3, "prepare_ns_per_code": [0.0] * 3, "pack_ns_per_weight": 1.0,
        }  # fmt: skip

    def write(rate_of_bits) -> None:
        pairs = {
            f"{w}x{a}": {family: cost(rate_of_bits(w)) for family, *_ in _core.candidates(isa.active(), w, a)}
            for w, a in WIDTHS
        }
        content = {
            "format": "soniq_kernels.costs", "version": 1, "cpu": _core.cpu_name(), "date": "2031-02-03",
            "command": "a test", "versions": {}, "rows": [1, 8, 128], "tiers": {isa.active(): pairs},
        }  # fmt: skip
        path.write_text(json.dumps(content))
        planner.reload()

    with isa.use(TIERS[-1]):
        yield write
    monkeypatch.undo()
    planner.reload()


def penalty_gradients(model: nn.Module, **options) -> list[torch.Tensor]:
    """The gradient of the penalty to the precisions of each learned layer, the multiplier at rest."""
    layers = learned_layers(model)
    for layer in layers:
        layer.precision.grad = None
    qat.bit_penalty(model.eval(), **options).backward()
    return [layer.precision.grad.clone() for layer in layers]


def test_time_of_a_product(table):
    """By the table: 12 / bits products a ns make 8 bits twice as slow as 4."""
    table(lambda bits: 12 / bits)
    assert product_ns(4, 4, 64, 100) == pytest.approx(4 / 12)
    assert relative_time(4, 4, 64, 100) == pytest.approx(0.5)
    assert relative_time(8, 8, 64, 1) == 1


def test_rows_and_outputs_are_those_of_the_layer():
    """Rows for one sample: pixels of the output, the positions of a sequence, 1 for plain features."""
    first, second, third, last = quant_layers(prepared_cnn())
    assert [layer.rows for layer in (first, second, third, last)] == [64, 16, 16, 1]
    sequence = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    qat.prepare(sequence, qat.Config(first_bits=None, last_bits=None), torch.rand(2, 7, 6))
    assert [layer.rows for layer in quant_layers(sequence)] == [7, 7]


def test_cost_of_a_bit_is_its_share_of_the_time_saved(table):
    """Picoseconds of one sample: products of a channel, times what a product saves, over the bits between."""
    table(lambda bits: 12 / bits)
    second, third = quant_layers(prepared_cnn(palette=(2, 4)))[1:3]
    saved = 4 / 12 - 2 / 12
    assert bit_cost(second, "bits") == second.weights_per_channel == 72
    assert bit_cost(second, "time") == round(1000 * 72 * 16 * saved / 2)
    assert bit_cost(third, "time") == round(
        1000 * 9 * 16 * LEAST_SAVING * 4 / 12 / 2
    )  # depthwise: the same at all bits


def test_penalty_by_bits_is_what_it_was():
    """The default, and by name: an average over weights."""
    model = prepared_cnn()
    layers = learned_layers(model)
    total = sum(layer.weights_per_channel * layer.learned_bits().sum() for layer in layers)
    expected = total / sum(layer.weight.numel() for layer in layers)
    assert torch.equal(average_bits(layers), expected)
    assert torch.equal(average_bits(layers, "bits"), expected)
    for one, other in zip(penalty_gradients(model), penalty_gradients(model, cost="bits"), strict=True):
        assert torch.equal(one, other)


def test_penalty_by_time_pushes_where_time_is_saved(table):
    """Above the target every precision falls, and the layers in proportion to what their low level saves."""
    table(lambda bits: 12 / bits)
    model = prepared_cnn()
    layers = learned_layers(model)
    with torch.no_grad():
        for layer in layers:
            layer.precision.fill_(-1.5)
    by_bits, by_time = penalty_gradients(model), penalty_gradients(model, cost="time")
    assert all((gradient < 0).all() for gradient in by_bits + by_time), "descent raises s, which lowers the bits"
    ratio = [float(gradient[0] / by_bits[0][0]) for gradient in by_bits]
    assert ratio[1] == pytest.approx(9 / 72)
    ratio = [float(gradient[0] / by_time[0][0]) for gradient in by_time]
    assert ratio[1] == pytest.approx(bit_cost(layers[1], "time") / bit_cost(layers[0], "time"))
    assert ratio[1] < 9 / 72 / 10, "the depthwise layer saves no time"


def test_average_by_time_of_equal_bits_is_those_bits(table):
    """So the target means the same: a place between the palette's levels."""
    table(lambda bits: 12 / bits)
    layers = learned_layers(prepared_cnn())
    with torch.no_grad():
        for layer in layers:
            layer.precision.zero_()  # 2 bits
    assert float(average_bits(layers, "time").detach()) == pytest.approx(2)


@pytest.mark.parametrize("rate_of_bits", [lambda bits: 5.0, lambda bits: bits], ids=["alike", "more bits are faster"])
def test_where_nothing_saves_time_bits_still_count(table, rate_of_bits):
    """A layer whose low level is not faster counts with a little of its time, never with less than nothing."""
    table(rate_of_bits)
    model = prepared_cnn()
    assert all(bit_cost(layer, "time") >= 1 for layer in learned_layers(model))
    with torch.no_grad():
        for layer in learned_layers(model):
            layer.precision.fill_(-1.5)
    assert all((gradient < 0).all() for gradient in penalty_gradients(model, cost="time"))


def test_freeze_by_time_spends_the_budget_where_it_is_cheap(table):
    """Bits of the depthwise layer cost next to nothing, so its channels keep the high level where they want it."""
    table(lambda bits: 12 / bits)
    model = prepared_cnn(target_bits=2.5)
    layers = learned_layers(model)
    with torch.no_grad():
        layers[0].precision.fill_(-1.0)
        layers[1].precision.fill_(-1.1)
    qat.freeze(model, cost="time")
    assert layers[1].widths == (4,)
    (chosen,) = model.soniq_palettes
    one_more = (
        layer_cost(layers[0], (2, 2), (4, 4), "time")[chosen.high[0] + 1]
        - layer_cost(layers[0], (2, 2), (4, 4), "time")[chosen.high[0]]
    )
    assert 0 <= chosen.budget - chosen.spent < one_more, "a second segment has to be padded, too"


def test_freeze_by_time_can_spend_all(table):
    table(lambda bits: 12 / bits)
    model = qat.freeze(prepared_cnn(target_bits=4), cost="time")
    assert {width for layer in learned_layers(model) for width in layer.widths} == {4}
    assert qat.verify(model, qat.convert(model), images())


def test_another_cost_is_refused():
    for call in (qat.bit_penalty, qat.freeze):
        with pytest.raises(ValueError, match="cost is 'energy', expected 'bits' or 'time'"):
            call(prepared_cnn(), cost="energy")


def test_time_of_another_machine(tmp_path):
    """A tier of the tables that ship, which this machine need not have, or of a file from there."""
    from soniq_kernels import _costs

    first, second = _costs.shipped()
    tiers = second.tiers | first.tiers
    for tier in tiers:
        with qat.machine(tier):
            costs = tiers[tier][2, 2].values()
            assert product_ns(2, 2, 64, 128) == min(cost.ns(128, 64, 1024) for cost in costs) / (128 * 64 * 1024)
    with isa.use("reference"):
        with pytest.raises(ValueError, match="has no kernel families"):
            product_ns(2, 2, 64, 128)
        with qat.machine("avx2", first.path):
            model = qat.freeze(prepared_cnn(), cost="time")
        assert qat.verify(model, qat.convert(model), images())
    with pytest.raises(ValueError, match="the table has no tier sse9, it has"):
        qat.machine("sse9")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="is no table of costs"):
        qat.machine("avx2", tmp_path / "bad.json")
