"""SONIQ beside FP32, uniform bits and other allocations on Fashion-MNIST: python examples/fashion_mnist.py --all --table

Every finished run is a file in examples/results/fashion_mnist/ and is not repeated; an interrupted one goes on from its last
epoch. `--table` writes results.md and results.png from the runs that are there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import demo_training
import numpy as np
import torch
import torch.nn.functional as F
import typer
from comparison import Rows, above, curve, spread, to_float, verdict
from demo_data import fashion_mnist
from experiment import All, Epochs, Experiment, Recipe, Recipes, Seeds, Table, Threads, Timed
from runs import Store
from torch import Tensor, nn

from soniq_kernels import qat

BATCH = 128
# Activations of 4 bits at both levels: on tables a 1-bit weight costs little more with 4-bit activations than with 1-bit
# ones (avx2: 4.0 against 3.1 ps a product, 5.5 with 2 bits of both), and they carry most of the accuracy.
RECIPES = {  # the most important first
    "teacher": Recipe("teacher"),
    "fp32": Recipe("fp32"),
    "soniq-2": Recipe("soniq", (1, 4), 2, (4, 4)),
    "soniq-2-blocks": Recipe("soniq", (1, 4), 2, (4, 4), blocks=True),
    "uniform-2": Recipe("uniform", (2, 2), 2),
    "uniform-1": Recipe("uniform", (1, 1), 1),
    "soniq-1.5": Recipe("soniq", (1, 4), 1.5, (4, 4)),
    "uniform-4": Recipe("uniform", (4, 4), 4),
    "soniq-4": Recipe("soniq", (3, 5), 4, (8, 8)),
    "soniq-1.25": Recipe("soniq", (1, 3), 1.25, (4, 4)),
    "uniform-3": Recipe("uniform", (3, 3), 3),
    "soniq-3": Recipe("soniq", (1, 5), 3, (4, 4)),
    "soniq-2.5": Recipe("soniq", (1, 4), 2.5, (4, 4)),
    "random-2": Recipe("random", (1, 4), 2, (4, 4)),
    "magnitude-2": Recipe("magnitude", (1, 4), 2, (4, 4)),
    "tied-2": Recipe("tied", (1, 4), 2),
    "wide-2": Recipe("wide", (2, 2), 2, (4, 4)),
    "wide-1": Recipe("wide", (1, 1), 1, (4, 4)),
}


DEEP_RECIPES = {  # 269,824 inner weights and 784 at 8 bits: 1.98 bits inside are 2.0 over the whole network
    "teacher": Recipe("teacher"),
    "fp32": Recipe("fp32"),
    "soniq-1.98": Recipe("soniq", (1, 4), 1.98, (4, 4)),
    "uniform-2": Recipe("uniform", (2, 2), 2),
}


def network() -> nn.Module:
    """The float network: convolutions 1-32-64-64 with batch norm and ReLU, average pool, Linear; 58,144 weights."""
    return demo_training.network(28).to(memory_format=torch.channels_last)


def deep_network() -> nn.Module:
    """ResNet-20 for grey images (benchmarks/models.py)."""
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from benchmarks.models import resnet20

    return resnet20(channels=1).to(memory_format=torch.channels_last)


class Images:
    """Fashion-MNIST with flips; a teacher's probabilities for every image and its mirror image. count: fewer images."""

    def __init__(self, path: Path | None = None, count: int | None = None):
        data = fashion_mnist(path)
        images, labels = data.train_images[:count], data.train_labels[:count]
        self.pixels = torch.cat([images, images.flip(-1)]).mul(255).round().byte()
        self.labels, self.count = labels.repeat(2), len(labels)
        self.test_inputs = data.test_images[:count].contiguous(memory_format=torch.channels_last)
        self.test_labels = data.test_labels[:count]
        self.steps = max(1, self.count // BATCH)
        self.taught: Tensor | None = None

    def _images(self, chosen: Tensor) -> Tensor:
        """float32 [B, 1, 28, 28] in 0..1."""
        return self.pixels[chosen].float().div_(255).contiguous(memory_format=torch.channels_last)

    def example(self) -> Tensor:
        return self._images(torch.arange(min(256, self.count)))

    def learn_from(self, teacher: nn.Module | None) -> None:
        """From now on half of the loss is the distance to the teacher, which sees every image once."""
        self.taught = None
        if teacher is not None:
            parts = torch.arange(len(self.pixels)).split(1000)
            with torch.no_grad():
                self.taught = torch.cat([teacher.eval()(self._images(part)) for part in parts])

    def epoch(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        order = torch.randperm(self.count) + self.count * torch.randint(0, 2, (self.count,))
        for chosen in order.split(BATCH)[: self.steps]:
            yield self._images(chosen), self.labels[chosen], None if self.taught is None else self.taught[chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Cross entropy, averaged with the distance to the teacher's logits if there is one."""
        images, labels, taught = batch
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        return loss if taught is None else (loss + qat.distill(logits, taught)) / 2

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Per cent of the test images."""
        answers = torch.cat([model.eval()(part).argmax(1) for part in self.test_inputs.split(500)])
        return round(100 * float((answers == self.test_labels).float().mean()), 2)


def goals(rows: Rows) -> list[tuple[str, str]]:
    """What SONIQ should reach here, and what the runs say."""
    found = [
        ("2 bits within 0.3 points of FP32", verdict(to_float(rows, "soniq-2", "accuracy"), -0.3)),
        ("4 bits at or above FP32", verdict(to_float(rows, "soniq-4", "accuracy"), 0)),
    ]
    for along, unit in (("inner_bits", "bits"), ("planner_us", "µs of products"), ("measured_us", "µs measured")):
        points = above(rows, "accuracy", along)
        text = ", ".join(f"{at:.2f} {unit}: {spread((more, error), '+')}" for at, more, error in points)
        found.append((f"not below uniform at equal {unit} by more than a standard error", text or "missing"))
    return [*found, ("between 1 and 2 bits above uniform by a third of its gap", _of_gap(rows))]


def _of_gap(rows: Rows) -> str:
    """How much of the uniform networks' gap from 1 to 2 bits SONIQ is above the line between them."""
    uniform = curve(rows, "uniform", "accuracy")
    gap = np.interp(2, *uniform[:, :2].T) - np.interp(1, *uniform[:, :2].T) if len(uniform) > 1 else 0.0
    points = [(at, more / gap) for at, more, _ in above(rows, "accuracy", "inner_bits") if 1 < at < 2 and gap > 0]
    return ", ".join(f"{at:.2f} bits: {share:+.2f} of it" for at, share in points) or "missing"


def deep_goals(rows: Rows) -> list[tuple[str, str]]:
    """The same for ResNet-20."""
    return [("2 bits over the whole network within 0.3 points of FP32",
             verdict(to_float(rows, "soniq-1.98", "accuracy"), -0.3))]  # fmt: skip


EXPERIMENT = Experiment(
    Store("fashion_mnist"), RECIPES, network, "fashion_mnist:network", "accuracy",
    teacher_epochs=6, epochs=(1, 4, 1), goals=goals,
)  # fmt: skip
DEEP = Experiment(
    Store("fashion_mnist_resnet20"), DEEP_RECIPES, deep_network, "fashion_mnist:deep_network", "accuracy",
    teacher_epochs=12, epochs=(2, 8, 2), goals=deep_goals,
)  # fmt: skip


def main(
    recipe: Recipes = None,
    seed: Seeds = None,
    all_: All = False,
    table: Table = False,
    time: Timed = False,
    epochs: Epochs = None,
    resnet20: Annotated[
        bool, typer.Option("--resnet20", help="ResNet-20 in place of the small CNN: an hour a run")
    ] = False,
    data_path: Annotated[Path | None, typer.Option(help="folder with the four files of Fashion-MNIST")] = None,
    threads: Threads = 1,
) -> None:
    """Train what is missing, then write the tables."""
    experiment = (DEEP if resnet20 else EXPERIMENT).of_epochs(epochs)
    names = experiment.chosen(recipe, all_, table or time)
    experiment.command(lambda: Images(data_path), names, seed or [], table, threads, time)


if __name__ == "__main__":
    typer.run(main)
