"""The phases: noise, exact, folded; the budget; checkpoints at every one of them."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import frozen_cnn, images, prepared_cnn, quant_layers, small_cnn
from soniq_kernels import qat
from soniq_kernels.qat.budget import average_bits, learned_layers
from soniq_kernels.qat.layers import PHASES
from soniq_kernels.qat.prepare import precision_of


def at_phase(phase: str, seed: int = 0) -> nn.Module:
    model = prepared_cnn(seed)
    if phase != "noise":
        qat.freeze(model)
    if phase == "folded":
        qat.fix_batch_norm(model)
    return model


def step(model: nn.Module, optimizer, seed: int = 0) -> None:
    torch.manual_seed(seed)
    loss = model(images()).square().mean() + qat.bit_penalty(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_state_dict_loads_strictly_into_a_freshly_prepared_model(phase):
    model = at_phase(phase)
    step(model, torch.optim.Adam(qat.param_groups(model)))
    fresh = qat.prepare(small_cnn(), qat.Config(), images(seed=1))
    fresh.load_state_dict(through_a_file(model.state_dict()), strict=True)
    assert [layer.phase_index for layer in quant_layers(fresh)] == [PHASES.index(phase)] * 4
    assert [layer.widths for layer in quant_layers(fresh)] == [layer.widths for layer in quant_layers(model)]
    assert torch.equal(fresh.eval()(images(2)), model.eval()(images(2)))
    if phase != "noise":
        assert qat.verify(fresh, qat.convert(fresh), images())


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("phase", PHASES)
def test_state_dict_goes_through_safetensors(phase):
    from safetensors.torch import load, save

    model = at_phase(phase)
    fresh = prepared_cnn(seed=5)
    fresh.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(fresh.eval()(images(2)), model.eval()(images(2)))


def test_keys_and_shapes_are_the_same_in_every_phase():
    states = [at_phase(phase).state_dict() for phase in PHASES]
    shapes = [{key: (tensor.shape, tensor.dtype) for key, tensor in state.items()} for state in states]
    assert shapes[0] == shapes[1] == shapes[2]


def test_training_resumes_bit_for_bit():
    model = prepared_cnn()
    optimizer = torch.optim.Adam(qat.param_groups(model))
    step(model, optimizer)
    copied = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, seed=1)
    other = prepared_cnn(seed=3)
    other_optimizer = torch.optim.Adam(qat.param_groups(other))
    other.load_state_dict(copied[0])
    other_optimizer.load_state_dict(copied[1])
    step(other, other_optimizer, seed=1)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


def test_parameters_stay_the_same_objects_through_every_phase():
    model = prepared_cnn()
    before = {name: id(p) for name, p in model.named_parameters()}
    qat.freeze(model)
    qat.fix_batch_norm(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_an_optimizer_made_before_prepare_goes_on_working():
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[3].weight.detach().clone()
    qat.prepare(model, qat.Config(), images())
    step(model, optimizer)
    assert not torch.equal(before, model[3].weight)


def test_param_groups_hold_every_parameter_once():
    model = prepared_cnn()
    grouped = [id(p) for group in qat.param_groups(model, weight_decay=0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert [g["weight_decay"] for g in qat.param_groups(model, weight_decay=0.1)] == [0.1, 0, 0, 0]


def test_deepcopy_and_device_moves_keep_the_phase():
    model = frozen_cnn()
    assert torch.equal(copy.deepcopy(model).to("cpu").eval()(images()), model.eval()(images()))


# --- noise phase -------------------------------------------------------------------------------------------------


def test_noise_only_while_training_and_every_precision_gets_a_gradient():
    model = prepared_cnn()
    assert not torch.equal(model(images()), model(images()))
    model(images()).square().sum().backward()
    assert all((layer.precision.grad != 0).all() for layer in learned_layers(model))
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_noise_is_half_a_step_of_the_grid():
    from soniq_kernels.qat.quantizer import noisy

    x = torch.full((20_000,), 0.25)
    for kind, half in (("bipolar", 0.25), ("unsigned", 0.125)):  # 3 bits: steps of 0.5 and 0.25
        spread = noisy(x, torch.tensor(1.0), torch.tensor(0.25), kind, noise=True) - x
        assert spread.abs().max() <= half
        assert spread.max() > 0.99 * half and spread.min() < -0.99 * half


@pytest.mark.parametrize(("bits", "s"), [(8, -4.84), (4, -1.95), (3, -1.10), (2, 0.0)])
def test_precision_of_bits(bits, s):
    assert round(precision_of(bits), 2) == s


def test_penalty_reaches_the_target_average():
    model = prepared_cnn()
    optimizer = torch.optim.Adam(qat.param_groups(model, bits_lr=0.05))
    for _ in range(200):
        optimizer.zero_grad()
        qat.bit_penalty(model).backward()
        optimizer.step()
    assert 2.45 < float(average_bits(learned_layers(model)).detach()) < 2.55


def test_penalty_is_zero_without_anything_to_learn():
    assert float(qat.bit_penalty(frozen_cnn())) == 0
    assert float(qat.bit_penalty(qat.prepare(small_cnn(), qat.Config.uniform(2), images()))) == 0


def test_nan_is_an_error_that_says_what_to_do():
    model = prepared_cnn()
    with torch.no_grad():
        learned_layers(model)[0].precision[0] = torch.nan
    with pytest.raises(FloatingPointError, match="diverged; lower the learning rate"):
        qat.bit_penalty(model)
    with pytest.raises(FloatingPointError, match="diverged"):
        qat.freeze(model)


# --- freeze ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [2, 2.25, 2.5, 3.9, 4])
def test_freeze_hits_the_target_within_one_channel(target):
    model = qat.freeze(prepared_cnn(target_bits=target))
    layers = learned_layers(model)
    weights = sum(layer.weight.numel() for layer in layers)
    coarsest = max(2 * layer.weights_per_channel for layer in layers) / weights
    spent = sum(int(layer.bits.sum()) * layer.weights_per_channel for layer in layers)
    assert 0 <= target - spent / weights < coarsest
    used = {width for layer in layers for width in layer.widths}
    assert used == ({2} if target == 2 else {4} if target == 4 else {2, 4})


def test_freeze_gives_more_bits_to_channels_that_learned_more():
    model = prepared_cnn()
    wanted = {layer: layer.learned_bits().detach() for layer in learned_layers(model)}
    qat.freeze(model)
    for layer, learned in wanted.items():
        assert learned[layer.bits == 4].min() >= learned[layer.bits == 2].max()


def test_uniform_networks():
    model = qat.freeze(qat.prepare(small_cnn(), qat.Config.uniform(3), images()))
    assert [layer.widths for layer in quant_layers(model)] == [(8,), (3,), (3,), (8,)]
    assert qat.verify(model, qat.convert(model), images())


def test_order_of_calls_is_checked():
    model = prepared_cnn()
    for call in (qat.convert, qat.fix_batch_norm):
        with pytest.raises(ValueError, match="layer 0 is in the noise phase.*call qat.freeze"):
            call(model)
    with pytest.raises(ValueError, match="already frozen"):
        qat.freeze(qat.freeze(model))


def test_set_bits_refuses_three_precisions_and_sums_beyond_int32():
    model = prepared_cnn()
    with pytest.raises(ValueError, match="at most two precisions"):
        model[3].set_bits(torch.tensor([1, 2, 3, 4, 4, 4, 4, 4]))
    wide = qat.prepare(
        nn.Sequential(nn.Linear(40_000, 2)), qat.Config(first_bits=4, last_bits=4), torch.rand(1, 40_000)
    )
    with pytest.raises(ValueError, match="more than int32 holds"):
        wide[0].set_bits(torch.full((40_000,), 8))


# --- exact phase -------------------------------------------------------------------------------------------------


def test_exact_phase_updates_batch_norm_and_folded_does_not():
    model = frozen_cnn().train()
    norm = quant_layers(model)[0].norm
    before = norm.running_mean.clone()
    model(images())
    assert not torch.equal(norm.running_mean, before)
    qat.fix_batch_norm(model)
    before = norm.running_mean.clone()
    trained = model(images())
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(trained, model.eval()(images())), "what is trained is what ships"


def test_every_parameter_but_the_precisions_learns_in_the_folded_phase():
    model = qat.fix_batch_norm(frozen_cnn()).train()
    model(images(16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        frozen = name.endswith("precision") or name == "0.input.gain"
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.abs().sum() > 0, name


def test_negative_gains_are_harmless():
    model = frozen_cnn().eval()
    with torch.no_grad():
        quant_layers(model)[1].weight_gain.neg_()
    assert qat.verify(model, qat.convert(model), images())


# --- several devices ---------------------------------------------------------------------------------------------


def test_distributed_data_parallel(tmp_path):
    """One process is enough to meet DDP's demands: every parameter that can have a gradient gets one in each phase."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(prepared_cnn())
        for _ in range(2):
            (model(images()).sum() + qat.bit_penalty(model)).backward()
        model = DistributedDataParallel(qat.freeze(model).module)
        for _ in range(2):
            model(images()).sum().backward()
        qat.fix_batch_norm(model)
        for _ in range(2):
            model(images()).sum().backward()
        assert qat.verify(model, qat.convert(model), images())
        assert qat.report(model).average_bits == qat.report(model.module).average_bits
    finally:
        distributed.destroy_process_group()
