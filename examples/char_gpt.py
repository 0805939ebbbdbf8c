"""SONIQ on a Transformer that writes Shakespeare letter by letter: python examples/char_gpt.py --all --table

Every finished run is a file in examples/results/char_gpt/ and is not repeated; an interrupted one goes on from its last epoch.
`--table` writes results.md and results.png from the runs that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import shakespeare_data
import torch
import torch.nn.functional as F
import typer
from comparison import Rows, to_float, verdict
from experiment import All, Epochs, Experiment, Recipe, Recipes, Seeds, Table, Threads, Timed
from runs import Store
from torch import Tensor, nn

from soniq_kernels import qat

LETTERS = 84
CONTEXT, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
BATCH = 64
STEPS = 300  # of an "epoch"

# Activations of 8 bits at both levels, which cost less of the time than of the loss here. In `soniq` the first and the last
# layer learn their bits too, so that the target is that of the whole network; in `uniform` it has, with 98,304 inner weights
# and 10,752 at `edges` bits, (98,304 * target + 10,752 * edges) / 109,056 bits.
RECIPES = {  # the most important first
    "teacher": Recipe("teacher"),
    "fp32": Recipe("fp32"),
    "soniq-4.5": Recipe("soniq", (4, 6), 4.5, (8, 8), edges=None),
    "soniq-2.5": Recipe("soniq", (2, 4), 2.5, (8, 8), edges=None),
    "uniform-4": Recipe("uniform", (4, 4), 4),
    "uniform-2": Recipe("uniform", (2, 2), 2, edges=4),
    "uniform-3": Recipe("uniform", (3, 3), 3, edges=4),
    "random-2.5": Recipe("random", (2, 4), 2.5, (8, 8), edges=None),
    "magnitude-2.5": Recipe("magnitude", (2, 4), 2.5, (8, 8), edges=None),
}


class Block(nn.Module):
    """Causal self-attention and two layers with a ReLU between them, each behind a LayerNorm, each added."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.attend(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(torch.relu(self.widen(self.norm2(x))))


class CharGPT(nn.Module):
    """Letters, int64 [B, T], to logits [B, T, letters]. The embedding is a Linear of one-hot vectors; positions are waves."""

    def __init__(self, letters: int, width: int, heads: int, layers: int):
        super().__init__()
        self.letters = letters
        self.embed = nn.Linear(letters, width, bias=False)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)
        self.register_buffer("positions", waves(CONTEXT, width), persistent=False)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embed(F.one_hot(letters, self.letters).float()) + self.positions[: letters.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def waves(length: int, width: int) -> Tensor:
    """float32 [length, width]: sines and cosines of falling frequency (Vaswani et al., arXiv 1706.03762)."""
    angles = torch.arange(length).float().view(-1, 1) * 10_000 ** (-torch.arange(width // 2) * 2 / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def network() -> nn.Module:
    """The float network: 2 layers of width 64; 109,056 weights."""
    return CharGPT(LETTERS, WIDTH, HEADS, LAYERS)


class Text:
    """Random windows for training, adjacent ones for the test. windows: of the test."""

    def __init__(self, path: Path | None = None, steps: int = STEPS, windows: int = 3000):
        self.letters, test, alphabet = shakespeare_data.load(path)
        if len(alphabet) > LETTERS:
            raise SystemExit(f"the texts have {len(alphabet)} different letters, expected {LETTERS} at most")
        self.steps = steps
        test = test[: (len(test) - 1) // CONTEXT * CONTEXT + 1]
        self.test_inputs = test[:-1].view(-1, CONTEXT)[:windows]
        self.test_next = test[1:].view(-1, CONTEXT)[:windows]
        self.teacher: nn.Module | None = None

    def example(self) -> Tensor:
        return self.test_inputs[:BATCH]

    def learn_from(self, teacher: nn.Module | None) -> None:
        self.teacher = teacher

    def epoch(self) -> Iterator[Tensor]:
        for _ in range(self.steps):
            starts = torch.randint(0, len(self.letters) - CONTEXT, (BATCH, 1))
            yield self.letters[starts + torch.arange(CONTEXT + 1)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross entropy, averaged with the distance to the teacher's logits if there is one."""
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(batch[:, :-1])
        return (loss + qat.distill(logits, taught)) / 2

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Nats a letter of the test."""
        pairs = zip(self.test_inputs.split(100), self.test_next.split(100), strict=True)
        losses = [F.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in pairs]
        return round(float(sum(losses)) / self.test_next.numel(), 5)


def goals(rows: Rows) -> list[tuple[str, str]]:
    """What SONIQ should reach here, and what the runs say."""
    return [
        ("7 times smaller: at most FP32 + 0.01 nats", verdict(to_float(rows, "soniq-4.5", "loss"), 0.01, better=-1)),
        ("2.5 bits: at most FP32 + 0.05 nats", verdict(to_float(rows, "soniq-2.5", "loss"), 0.05, better=-1)),
    ]


EXPERIMENT = Experiment(
    Store("char_gpt"), RECIPES, network, "char_gpt:network", "loss",
    teacher_epochs=6, epochs=(1, 5, 0), one_cycle=True, teacher_rate=4e-3, rate=2e-3, batch=100, goals=goals,
)  # fmt: skip


def main(
    recipe: Recipes = None,
    seed: Seeds = None,
    all_: All = False,
    table: Table = False,
    time: Timed = False,
    epochs: Epochs = None,
    data_path: Annotated[Path | None, typer.Option(help="folder with the texts")] = None,
    threads: Threads = 1,
) -> None:
    """Train what is missing, then write the tables."""
    experiment = EXPERIMENT.of_epochs(epochs)
    names = experiment.chosen(recipe, all_, table or time)
    experiment.command(lambda: Text(data_path), names, seed or [], table, threads, time)


if __name__ == "__main__":
    typer.run(main)
