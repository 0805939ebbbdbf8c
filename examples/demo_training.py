"""The demo's network and its three trainings: FP32, uniform and two precisions per layer."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from demo_data import Images
from torch import Tensor, nn

from soniq_kernels import qat

Tick = Callable[[], None]  # called once an epoch


@dataclass(frozen=True)
class Schedule:
    """Epochs of each part. A uniform network gets as many as one with two precisions: noise + exact, then folded.

    threads: the most that training may use. Tiny layers lose more by waiting for a second thread than they gain.
    """

    float32: int
    noise: int
    exact: int
    folded: int
    batch: int
    threads: int

    def quick(self) -> Schedule:
        """One epoch of each part: to see that everything runs."""
        return replace(self, float32=1, noise=1, exact=1, folded=1)

    @property
    def quantized(self) -> int:
        return self.noise + self.exact + self.folded


SCHEDULES = {"digits": Schedule(12, 7, 7, 2, batch=64, threads=1), "Fashion-MNIST": Schedule(4, 1, 1, 1, batch=128, threads=2)}


def network(size: int) -> nn.Sequential:
    """A small CNN, 32-64-64 channels, for grey images of `size` x `size` pixels."""
    first_stride = 1 if size < 16 else 2
    parts: dict[str, nn.Module] = {}
    for i, (inputs, outputs, stride) in enumerate([(1, 32, first_stride), (32, 64, 2), (64, 64, 1)], start=1):
        parts[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        parts[f"norm{i}"] = nn.BatchNorm2d(outputs)
        parts[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(OrderedDict(parts, pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), linear=nn.Linear(256, 10)))


def train_float32(data: Images, plan: Schedule, tick: Tick) -> nn.Module:
    """A float network from scratch."""
    model = network(data.train_images.shape[-1])
    _train(model, [{"params": list(model.parameters()), "lr": 5e-3}], data, plan.float32, plan.batch, tick)
    return model.eval()


def train_uniform(teacher: nn.Module, bits: int, data: Images, plan: Schedule, tick: Tick) -> nn.Module:
    """Every channel of the inner layers at `bits`: the baseline. Starts from the float network and learns from it."""
    model = qat.prepare(copy.deepcopy(teacher), qat.Config.uniform(bits), data.train_images[:256])
    return _fine_tune(qat.freeze(model), teacher, data, plan.noise + plan.exact, plan, tick)


def train_mixed(
    teacher: nn.Module, palette: tuple[int, int], target: float, data: Images, plan: Schedule, tick: Tick
) -> nn.Module:
    """Every channel of the inner layers at one of two precisions, learned in the noise phase."""
    config = qat.Config(palette=palette, target_bits=target)
    model = qat.prepare(copy.deepcopy(teacher), config, data.train_images[:256])
    groups = qat.param_groups(model, lr=3e-3, bits_lr=2e-2)
    _train(model, groups, data, plan.noise, plan.batch, tick, teacher, qat.bit_penalty)
    return _fine_tune(qat.freeze(model), teacher, data, plan.exact, plan, tick)


def _fine_tune(model: nn.Module, teacher: nn.Module, data: Images, exact: int, plan: Schedule, tick: Tick) -> nn.Module:
    _train(model, qat.param_groups(model, lr=3e-3), data, exact, plan.batch, tick, teacher)
    qat.fix_batch_norm(model)
    _train(model, qat.param_groups(model, lr=3e-4), data, plan.folded, plan.batch, tick, teacher)
    return model.eval()


def _train(
    model: nn.Module, groups: list[dict], data: Images, epochs: int, batch: int, tick: Tick,
    teacher: nn.Module | None = None, penalty: Callable[[nn.Module], Tensor] | None = None,
) -> None:  # fmt: skip
    """AdamW with one learning-rate cycle; with a teacher, half of the loss is the distance to its predictions."""
    optimizer = torch.optim.AdamW(groups)
    steps = len(data.train_labels) // batch
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train_labels))[: steps * batch].view(steps, batch):
            images, labels = data.train_images[chosen], data.train_labels[chosen]
            loss = _loss(model(images), labels, None if teacher is None else teacher(images))
            if penalty is not None:
                loss = loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        tick()


def _loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    loss = F.cross_entropy(logits, labels)
    if teacher_logits is None:
        return loss
    return (loss + F.cross_entropy(logits, teacher_logits.detach().softmax(1))) / 2


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """Logits of every image."""
    return torch.cat([model(part) for part in images.split(batch)])


def accuracy(model: nn.Module, data: Images) -> float:
    """Per cent of the test images."""
    return 100 * float((predict(model, data.test_images).argmax(1) == data.test_labels).float().mean())
