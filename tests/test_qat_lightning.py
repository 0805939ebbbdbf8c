"""Lightning's own loop around a prepared model: the penalty comes from the optimizer, and what was trained is what ships."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("pytorch_lightning")

from torch import nn

from soniq_kernels import qat
from soniq_kernels.qat.budget import average_bits, learned_layers


class Task(lightning.LightningModule):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        x, labels = batch
        return nn.functional.cross_entropy(self.model(x), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(qat.param_groups(self.model, bits_lr=0.1))
        qat.penalize(optimizer, self.model)
        return optimizer


@pytest.mark.filterwarnings("ignore")  # of Lightning, about loggers and workers
def test_lightning_learns_the_bits_and_trains_on(tmp_path):
    torch.manual_seed(0)
    x, labels = torch.rand(64, 6), torch.arange(64) % 3
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=8)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    qat.prepare(model, qat.Config(palette=(2, 4), target_bits=3.0), x)
    start = float(average_bits(learned_layers(model)).detach())
    _fit(model, batches, tmp_path)
    assert model.soniq_multiplier != 0 and float(average_bits(learned_layers(model)).detach()) != start
    qat.freeze(model)
    before = model[2].weight.detach().clone()
    _fit(model, batches, tmp_path)
    assert not torch.equal(model[2].weight, before) and float(average_bits(learned_layers(model))) == 3.0
    assert qat.verify(model, qat.convert(model), x)


def _fit(model: nn.Module, batches, folder) -> None:
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(Task(model), batches)
