"""What the examples share: recipes, how each spends its epochs, and the command line.

Every recipe of a seed starts from the same float network, the teacher, and gets the same epochs and the same distillation:

    teacher    float, from scratch
    fp32       the teacher, trained on like everything below
    uniform    every channel of the inner layers at the same bits
    wide       the same with the activations of `soniq`
    soniq      two levels: bits learned in the noise phase, then fixed
    tied       the same with as many bits of a channel's activations as of its weights
    random     the same two levels at the same average, dealt at random
    magnitude  the same, to the channels with the largest weights
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from comparison import SEEDS, Rows, write_tables
from runs import (
    Progress,
    Stage,
    Store,
    Task,
    command_line,
    console,
    evidence,
    load,
    machine,
    microseconds,
    sizes,
    train,
)
from torch import Tensor, nn

from soniq_kernels import qat
from soniq_kernels.qat.budget import learned_layers

WEIGHT_DECAY = 1e-2

# Options of every experiment's command.
Recipes = Annotated[list[str] | None, typer.Option(help="a recipe; may be repeated")]
Seeds = Annotated[list[int] | None, typer.Option(help="may be repeated; default 0, 1 and 2")]
All = Annotated[bool, typer.Option("--all", help="every recipe, the most important first")]
Table = Annotated[bool, typer.Option("--table", help="write results.md and results.png")]
Timed = Annotated[bool, typer.Option("--time", help="time the packed networks whose checkpoints are here, in turns")]
Epochs = Annotated[int | None, typer.Option(help="of every recipe, for trials; results go to a folder of their own")]
Threads = Annotated[int, typer.Option(help="of torch")]


@dataclass(frozen=True)
class Recipe:
    """One row of the table.

    palette, a_palette: of the weights and of the activations; None: the same. target: average bits of the inner layers'
    weights. edges: bits of the first and the last layer; None: learned like those of the others, and part of the target.
    blocks: channel counts that leave the kernels the least to pad.
    """

    family: str
    palette: tuple[int, int] = (32, 32)
    target: float = 32.0
    a_palette: tuple[int, int] | None = None
    edges: int | None = 8
    blocks: bool = False


class Data(Task, Protocol):
    """A task with a teacher and a test."""

    test_inputs: Tensor

    def example(self) -> Tensor: ...

    def learn_from(self, teacher: nn.Module | None) -> None: ...

    def score(self, model: nn.Module) -> float: ...


@dataclass(frozen=True)
class Experiment:
    """One network on one task.

    factory: "module:function" that makes the float network. epochs: noise, exact, folded (at a tenth of the rate; 0 where
    no batch norm needs it). one_cycle: noise and exact share one cycle of the learning rate, else each has its own. batch: of
    the proof. bits_rate: of the precisions. goals: (goal, what was found) of the runs that are there.
    """

    store: Store
    recipes: Mapping[str, Recipe]
    network: Callable[[], nn.Module]
    factory: str
    measure: str
    teacher_epochs: int
    epochs: tuple[int, int, int]
    one_cycle: bool = False
    teacher_rate: float = 5e-3
    rate: float = 3e-3
    bits_rate: float = 5e-2
    batch: int = 500
    goals: Callable[[Rows], list[tuple[str, str]]] = field(default=lambda rows: [])

    def of_epochs(self, count: int | None) -> Experiment:
        """The same with so many epochs of everything behind the teacher, and a store of its own. Raises SystemExit below 3."""
        if count is None:
            return self
        if count < 3:
            raise SystemExit(f"got --epochs {count}, expected 3 at least: noise, exact and folded")
        noise = max(1, count // 6)
        folded = noise if self.epochs[2] else 0
        store = replace(self.store, name=f"{self.store.name}_{count}_epochs")
        return replace(self, store=store, epochs=(noise, count - noise - folded, folded))

    # --- how a recipe spends its epochs

    def stages(self, recipe: Recipe) -> list[Stage]:
        noise, exact, folded = self.epochs
        if recipe.family == "fp32":
            return [Stage("float", sum(self.epochs), partial(_float_groups, rate=self.rate))]
        if recipe.family in ("soniq", "tied"):
            freeze = partial(qat.freeze, blocks=recipe.blocks)
            found = [
                Stage("noise", noise, self._groups),
                Stage("exact", exact, self._groups, freeze, joins=self.one_cycle),
            ]
        else:
            found = [Stage("exact", noise + exact, self._groups, partial(_allocate, family=recipe.family))]
        last = Stage("folded", folded, partial(self._groups, part=0.1), qat.fix_batch_norm)
        return [*found, last] if folded else found

    def _groups(self, model: nn.Module, part: float = 1.0) -> list[dict[str, Any]]:
        return qat.param_groups(model, lr=part * self.rate, weight_decay=WEIGHT_DECAY, bits_lr=self.bits_rate)

    # --- runs

    def teacher(self, seed: int, data: Data) -> nn.Module:
        """The float network of this seed: from out/, or trained and written there, its result too."""
        file = self.store.checkpoint("teacher", seed, "weights")
        torch.manual_seed(seed)
        model = self.network()
        if file.is_file():
            model.load_state_dict(torch.load(file, weights_only=True))
            return model.eval()
        data.learn_from(None)
        stage = Stage("float", self.teacher_epochs, partial(_float_groups, rate=self.teacher_rate))
        done = train(model, [stage], data, self.store.checkpoint("teacher", seed), f"teacher seed {seed}")
        if self.store.read("teacher", seed) is None:
            self.store.write(self._result("teacher", seed, done, data.score(model)))
        torch.save(model.state_dict(), file)
        return model.eval()

    def run(self, name: str, seed: int, data: Data) -> dict[str, Any]:
        """Train one recipe, prove it, and write its result."""
        recipe, label = self.recipes[name], f"{name} seed {seed}"
        teacher = self.teacher(seed, data)
        if name == "teacher":
            return self.store.read(name, seed) or {}
        data.learn_from(teacher)
        torch.manual_seed(1000 + seed)
        model = _prepared(teacher, recipe, data.example())
        done = train(model, self.stages(recipe), data, self.store.checkpoint(name, seed), label)
        others: dict[str, Any] = {"teacher": data.score(teacher)}
        if recipe.family != "fp32":
            a_palette = recipe.a_palette or recipe.palette
            others |= {"palette": recipe.palette, "a_palette": a_palette, "target": recipe.target, **sizes(model)}
            others |= evidence(model, self.factory, data.test_inputs, self.batch)
        result = self._result(name, seed, done, data.score(model), **others)
        file = self.store.write(result)
        console.print(f"{label}: {self.measure} {result[self.measure]}, written to {file.name}")
        return result

    def time(self, seed: int, data: Data) -> Path:
        """Measure the packed networks of this seed beside each other; the file that was written."""
        teacher, example = self.teacher(seed, data), data.example()
        networks = {}
        for name, recipe in self.recipes.items():
            checkpoint = self.store.checkpoint(name, seed)
            if recipe.family not in ("teacher", "fp32") and checkpoint.is_file():
                model = _prepared(teacher, recipe, example)
                load(model, checkpoint)
                networks[name] = qat.convert(model.eval())
        console.print(f"timing {', '.join(networks) or 'nothing: no checkpoint is here'}")
        found = microseconds(networks, data.test_inputs[: self.batch])
        about = {"seed": seed, "batch": self.batch, "command": command_line(), "machine": machine()}
        return self.store.write_times({"microseconds": found, **about})

    def _result(self, recipe: str, seed: int, done: Progress, score: float, **others: object) -> dict[str, Any]:
        float_bits = {"inner_bits": 32.0, "network_bits": 32.0, "compression": 1.0}
        return {
            "recipe": recipe, "seed": seed, self.measure: score, **float_bits, **others, "epochs": len(done.log),
            "cpu_seconds": round(done.cpu_seconds, 1), "wall_seconds": round(done.wall_seconds, 1),
            "command": command_line(), "machine": machine(), "log": done.log,
        }  # fmt: skip

    def command(
        self,
        data: Callable[[], Data],
        recipes: list[str],
        seeds: list[int],
        table: bool,
        threads: int,
        timed: bool = False,
    ) -> list[Path]:
        """Train what is missing of these recipes, time what is there, then write the tables; the files of the tables."""
        torch.set_num_threads(threads)
        wanted = [(name, seed) for seed in seeds or SEEDS for name in recipes if self.store.read(name, seed) is None]
        loaded = data() if wanted or timed else None
        for index, (name, seed) in enumerate(wanted):
            console.print(f"run {index + 1} of {len(wanted)}: {name} seed {seed}")
            self.run(name, seed, loaded)
        if timed:
            console.print(f"wrote {self.time((seeds or SEEDS)[0], loaded)}")
        files = write_tables(self.store, list(self.recipes), self.measure, self.goals) if table else []
        for file in files:
            console.print(f"wrote {file}")
        return files

    def chosen(self, recipes: list[str] | None, everything: bool, table: bool) -> list[str]:
        """The names asked for. Raises SystemExit for an unknown one, or if there is nothing to do."""
        names = list(self.recipes) if everything else recipes or []
        if unknown := [name for name in names if name not in self.recipes]:
            raise SystemExit(f"got recipe {unknown[0]!r}, expected one of {', '.join(self.recipes)}")
        if not names and not table:
            raise SystemExit("nothing to do: give --all, --recipe NAME, --table or --time")
        return names


def _float_groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "lr": rate, "weight_decay": WEIGHT_DECAY}]


def _prepared(teacher: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """A copy of the teacher, quantized; a plain copy where the recipe is float."""
    model = copy.deepcopy(teacher)
    if recipe.family == "fp32":
        return model
    bits = {"first_bits": recipe.edges, "last_bits": recipe.edges}
    config = qat.Config(palette=recipe.palette, a_palette=recipe.a_palette, target_bits=recipe.target, **bits)
    return qat.prepare(model, config, example)


def _allocate(model: nn.Module, family: str) -> None:
    """Freeze without learning: a channel's wish is a random number, or the mean magnitude of its weights."""
    with torch.no_grad():
        for layer in learned_layers(model):
            magnitude = (
                layer.weight.abs().flatten(2).mean((0, 2)) if layer.weight.dim() > 2 else layer.weight.abs().mean(0)
            )
            wish = torch.rand(layer.channels) if family == "random" else magnitude / magnitude.mean()
            layer.precision.copy_(-wish)  # a smaller precision parameter is more bits
    qat.freeze(model)
