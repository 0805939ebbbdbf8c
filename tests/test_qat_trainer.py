"""The Trainer of transformers around a prepared model: the penalty comes from the optimizer, and what was trained is what ships."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch import nn

from soniq_kernels import qat
from soniq_kernels.qat.budget import average_bits, learned_layers


class WithLoss(nn.Module):
    """As the Trainer wants it: labels in, a loss out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x, labels):
        logits = self.model(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own
def test_the_trainer_learns_the_bits_and_trains_on(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(64, 6)
    rows = [{"x": row, "labels": i % 3} for i, row in enumerate(x)]
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    qat.prepare(model, qat.Config(palette=(2, 4), target_bits=3.0), x)
    start = float(average_bits(learned_layers(model)).detach())
    _fit(model, rows, tmp_path)
    assert model.soniq_multiplier != 0 and float(average_bits(learned_layers(model)).detach()) != start
    qat.freeze(model)
    before = model[2].weight.detach().clone()
    _fit(model, rows, tmp_path)
    assert not torch.equal(model[2].weight, before) and float(average_bits(learned_layers(model))) == 3.0
    assert qat.verify(model, qat.convert(model), x)


def _fit(model: nn.Module, rows, folder) -> None:
    optimizer = torch.optim.AdamW(qat.param_groups(model, bits_lr=0.1))
    qat.penalize(optimizer, model)
    how = transformers.TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=2, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(WithLoss(model), how, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
