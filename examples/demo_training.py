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

Tick = Callable[[], None]  # called once a round


@dataclass(frozen=True)
class Recipe:
    """What is trained, and for how many rounds: epochs, or parts of one where the data set is large.

    Every quantized network gets as many rounds: one with two precisions `noise` + `exact` + `folded`, a uniform one the
    same number without noise. Training uses one thread: layers this small gain little from a second one, and results
    do not depend on the machine's number of cores.
    """

    float32: int
    noise: int
    exact: int
    folded: int
    batch: int
    images: int  # of a round, drawn anew each time
    uniform: tuple[int, ...]
    mixed: tuple[tuple[tuple[int, int], float], ...]

    @property
    def quantized(self) -> int:
        """Rounds of one quantized network."""
        return self.noise + self.exact + self.folded

    @property
    def rounds(self) -> int:
        """Rounds of one seed."""
        return self.float32 + self.quantized * (len(self.uniform) + len(self.mixed))

    def quick(self) -> Recipe:
        """One round of each part: to see that everything runs."""
        return replace(self, float32=1, noise=1, exact=1, folded=1)


RECIPES = {
    "digits": Recipe(12, 7, 7, 2, batch=64, images=1437, uniform=(1, 2, 3), mixed=(((1, 4), 1.75), ((2, 4), 2.5))),
    "Fashion-MNIST": Recipe(6, 2, 3, 1, batch=128, images=20_000, uniform=(2,), mixed=(((2, 4), 2.5),)),
}


def network(size: int) -> nn.Sequential:
    """A small CNN, 32-64-64 channels, for grey images of `size` x `size` pixels."""
    first_stride = 1 if size < 16 else 2
    parts: dict[str, nn.Module] = {}
    for i, (inputs, outputs, stride) in enumerate([(1, 32, first_stride), (32, 64, 2), (64, 64, 1)], start=1):
        parts[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        parts[f"norm{i}"] = nn.BatchNorm2d(outputs)
        parts[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(
        OrderedDict(parts, pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), linear=nn.Linear(256, 10))
    )


def train_float32(data: Images, recipe: Recipe, tick: Tick) -> nn.Module:
    """A float network from scratch."""
    model = network(data.train_images.shape[-1])
    _train(model, [{"params": list(model.parameters()), "lr": 5e-3}], data, recipe.float32, recipe, tick)
    return model.eval()


def train_uniform(teacher: nn.Module, bits: int, data: Images, recipe: Recipe, tick: Tick) -> nn.Module:
    """Every channel of the inner layers at `bits`: the baseline. Starts from the float network and learns from it."""
    model = qat.prepare(copy.deepcopy(teacher), qat.Config.uniform(bits), data.train_images[:256])
    return _fine_tune(qat.freeze(model), teacher, data, recipe.noise + recipe.exact, recipe, tick)


def train_mixed(
    teacher: nn.Module, palette: tuple[int, int], target: float, data: Images, recipe: Recipe, tick: Tick
) -> nn.Module:
    """Every channel of the inner layers at one of two precisions, learned in the noise phase."""
    config = qat.Config(palette=palette, target_bits=target)
    model = qat.prepare(copy.deepcopy(teacher), config, data.train_images[:256])
    groups = qat.param_groups(model, lr=3e-3, bits_lr=2e-2)
    _train(model, groups, data, recipe.noise, recipe, tick, teacher, qat.bit_penalty)
    return _fine_tune(qat.freeze(model), teacher, data, recipe.exact, recipe, tick)


def _fine_tune(model: nn.Module, teacher: nn.Module, data: Images, exact: int, recipe: Recipe, tick: Tick) -> nn.Module:
    _train(model, qat.param_groups(model, lr=3e-3), data, exact, recipe, tick, teacher)
    qat.fix_batch_norm(model)
    _train(model, qat.param_groups(model, lr=3e-4), data, recipe.folded, recipe, tick, teacher)
    return model.eval()


def _train(
    model: nn.Module, groups: list[dict], data: Images, rounds: int, recipe: Recipe, tick: Tick,
    teacher: nn.Module | None = None, penalty: Callable[[nn.Module], Tensor] | None = None,
) -> None:  # fmt: skip
    """AdamW with one learning-rate cycle; with a teacher, half of the loss is the distance to its predictions."""
    taught = None if teacher is None else predict(teacher, data.train_images).softmax(1)
    optimizer = torch.optim.AdamW(groups)
    steps = recipe.images // recipe.batch
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=rounds * steps)
    model.train()
    for _ in range(rounds):
        order = torch.randperm(len(data.train_labels))
        for chosen in order[: steps * recipe.batch].view(steps, recipe.batch):
            images, labels = data.train_images[chosen], data.train_labels[chosen]
            loss = _loss(model(images), labels, None if taught is None else taught[chosen])
            if penalty is not None:
                loss = loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        tick()


def _loss(logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
    loss = F.cross_entropy(logits, labels)
    return loss if taught is None else (loss + F.cross_entropy(logits, taught)) / 2


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """Logits of every image."""
    return torch.cat([model(part) for part in images.split(batch)])


def accuracy(model: nn.Module, data: Images) -> float:
    """Per cent of the test images."""
    return 100 * float((predict(model, data.test_images).argmax(1) == data.test_labels).float().mean())
