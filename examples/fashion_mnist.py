"""SONIQ beside FP32, uniform bits and other allocations on Fashion-MNIST: python examples/fashion_mnist.py --all --table

Every finished run is a file in examples/results/fashion_mnist/ and is not repeated; an interrupted one goes on from its last
epoch. `--table` writes results.md and results.png from the runs that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import demo_training
import torch
import torch.nn.functional as F
import typer
from demo_data import fashion_mnist
from experiment import Experiment, Recipe
from runs import Store
from torch import Tensor, nn

from soniq_kernels import qat

BATCH = 128
RECIPES = {  # the most important first
    "teacher": Recipe("teacher"),
    "fp32": Recipe("fp32"),
    "soniq-2": Recipe("soniq", (1, 4), 2),
    "uniform-2": Recipe("uniform", (2, 2), 2),
    "uniform-1": Recipe("uniform", (1, 1), 1),
    "soniq-1.5": Recipe("soniq", (1, 4), 1.5),
    "soniq-4": Recipe("soniq", (3, 5), 4),
    "random-2": Recipe("random", (1, 4), 2),
    "magnitude-2": Recipe("magnitude", (1, 4), 2),
    "soniq-3": Recipe("soniq", (2, 4), 3),
    "uniform-3": Recipe("uniform", (3, 3), 3),
    "uniform-4": Recipe("uniform", (4, 4), 4),
    "soniq-1.25": Recipe("soniq", (1, 3), 1.25),
    "soniq-2.5": Recipe("soniq", (2, 4), 2.5),
    "random-1.5": Recipe("random", (1, 4), 1.5),
    "magnitude-1.5": Recipe("magnitude", (1, 4), 1.5),
}


def network() -> nn.Module:
    """The float network: convolutions 1-32-64-64 with batch norm and ReLU, average pool, Linear; 58,144 weights."""
    return demo_training.network(28).to(memory_format=torch.channels_last)


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


EXPERIMENT = Experiment(
    Store("fashion_mnist"), RECIPES, network, "fashion_mnist:network", "accuracy", teacher_epochs=6, epochs=(1, 4, 1)
)


def main(
    recipe: Annotated[list[str] | None, typer.Option(help="a recipe; may be repeated")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="may be repeated; default 0, 1 and 2")] = None,
    all_: Annotated[bool, typer.Option("--all", help="every recipe, the most important first")] = False,
    table: Annotated[bool, typer.Option("--table", help="write results.md and results.png")] = False,
    data_path: Annotated[Path | None, typer.Option(help="folder with the four files of Fashion-MNIST")] = None,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
) -> None:
    """Train what is missing, then write the tables."""
    names = EXPERIMENT.chosen(recipe, all_, table)
    EXPERIMENT.command(lambda: Images(data_path), names, seed or [], table, threads)


if __name__ == "__main__":
    typer.run(main)
