"""Training loops that are not our own: no place for the penalty, NaN, scaled losses, the compiler around a whole step."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from qat_nets import images, prepared_cnn, quant_layers, small_cnn
from soniq_kernels import qat
from soniq_kernels.qat.budget import average_bits, learned_layers


class Trainer:
    """A loop as others write it: it knows a model that returns its loss, and an optimizer, and no penalty."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1, loss_scale: float = 1.0
    ):
        self.model, self.optimizer, self.accumulate, self.scale = model, optimizer, accumulate, loss_scale

    def step(self, x: torch.Tensor, loss) -> None:
        for part in x.chunk(self.accumulate):
            (loss(self.model(part)) / self.accumulate * self.scale).backward()
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad /= self.scale
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize(("accumulate", "loss_scale"), [(1, 1.0), (2, 1024.0)])
def test_penalize_takes_the_place_of_the_term_in_the_loss(accumulate, loss_scale):
    """Bit for bit the same precisions as with the term; accumulated and scaled gradients count it once."""
    ours, theirs = prepared_cnn(), prepared_cnn()
    other = torch.optim.SGD(qat.param_groups(theirs, lr=0.1, bits_lr=5.0))
    handle = qat.penalize(other, theirs)
    trainer = Trainer(theirs.train(), other, accumulate, loss_scale)
    optimizer = torch.optim.SGD(qat.param_groups(ours.train(), lr=0.1, bits_lr=5.0))
    for _ in range(3):
        qat.bit_penalty(ours).backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.step(images(), lambda y: 0.0 * y.sum())
    for mine, its in zip(learned_layers(ours), learned_layers(theirs), strict=True):
        assert torch.equal(mine.precision, its.precision)
    assert torch.equal(ours.soniq_multiplier, theirs.soniq_multiplier) and ours.soniq_multiplier != 0
    qat.freeze(theirs)
    trainer.step(images(), lambda y: y.square().sum())
    handle.remove()
    with pytest.raises(ValueError, match="not prepared"):
        qat.penalize(other, small_cnn())


def test_penalize_reaches_the_target():
    model = prepared_cnn()
    optimizer = torch.optim.Adam(qat.param_groups(model, bits_lr=0.05))
    qat.penalize(optimizer, model)
    for _ in range(200):
        optimizer.step()
        optimizer.zero_grad()
    assert 2.45 < float(average_bits(learned_layers(model)).detach()) < 2.55


# --- NaN -------------------------------------------------------------------------------------------------------------


def test_nan_names_the_layer_that_made_it():
    model = prepared_cnn().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    loss = model(images()).square().mean()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert qat.check_finite(loss, model, images()) is loss
    model[6].register_forward_hook(lambda module, args, output: output / 0.0)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf): layer 6 \(QuantConv2d\) makes it of finite"):
        qat.check_finite(loss * torch.nan, model, images())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), f"{key}: looking changes nothing"


def test_nan_names_the_parameter_that_is_not_finite():
    model = prepared_cnn()
    with torch.no_grad():
        quant_layers(model)[1].weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="3.weight is not finite"):
        qat.check_finite(torch.tensor(torch.nan), model, images())


def test_nan_of_the_loss_itself():
    with pytest.raises(FloatingPointError, match="the outputs are finite, so the loss itself is the cause"):
        qat.check_finite(torch.tensor(torch.inf), prepared_cnn(), images())


# --- AMP, the compiler -----------------------------------------------------------------------------------------------


def test_autocast_around_a_training_step():
    """Layers compute in float32; what stays float around them may be bfloat16."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 4))
    qat.prepare(model, qat.Config(exclude=["4"], first_bits=None, last_bits=None), images())
    for phase in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(images())
            loss = y.float().square().mean() + qat.bit_penalty(model)
        assert y.dtype == torch.bfloat16 and loss.dtype == torch.float32
        model.zero_grad()
        loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
        if not phase:
            assert all((layer.precision.grad != 0).any() for layer in learned_layers(model))
            qat.freeze(model)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own imports
def test_a_compiled_training_step_learns_what_an_eager_one_does():
    """Loss, penalty and backward in both phases; the exact phase bit for bit, whose forward has no noise."""
    torch.compiler.reset()
    models = [qat.freeze(_prepared_linears()).train() for _ in range(2)]
    for model, step in zip(models, (_step, torch.compile(_step, backend="eager", fullgraph=True)), strict=True):
        optimizer = torch.optim.SGD(qat.param_groups(model, lr=0.01))
        for seed in range(2):
            step(model, _rows(seed)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, mine), its in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, its), name
    noisy = _prepared_linears().train()
    torch.compile(_step, backend="eager", fullgraph=True)(noisy, _rows()).backward()
    assert all(layer.precision.grad.isfinite().all() for layer in learned_layers(noisy))
    torch.compiler.reset()


def _prepared_linears() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return qat.prepare(model, qat.Config(first_bits=None, last_bits=None), _rows())


def _rows(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(seed))


def _step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean() + qat.bit_penalty(model)
