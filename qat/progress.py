"""Live figures while a network trains: phase, average bits, losses, time left; and the same for TensorBoard."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from soniq_kernels._optional import require

from .budget import average_bits, learned_layers, prepared_root
from .layers import PHASES

SECONDS = 0.5  # between two looks: reading a value waits for a GPU


class Progress:
    """A line that says how training goes.

    with qat.Progress(model, steps=1000) as progress:
        for x, labels in batches:
            ...
            progress.step(loss=loss, penalty=penalty)

    steps: of this part of the training. log: anything with `add_scalar(name, value, step)`, such as TensorBoard's
    SummaryWriter; it gets every figure each `every` steps. first: the number of the first step, after a resume.
    """

    def __init__(
        self, model: nn.Module, steps: int, log: Any = None, every: int = 50, first: int = 0, console: Any = None
    ):
        rich = require("rich.progress", extra="torch")
        self.model, self.log, self.every, self.done = model, log, every, first
        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
        )
        self._bar = rich.Progress(*columns, console=console)
        self._task = self._bar.add_task("", total=first + steps, completed=first)
        self._looked = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, **figures: Tensor | float) -> None:
        """One step is done; figures: scalars by name."""
        self.done += 1
        logged, now = self.log is not None and self.done % self.every == 0, time.monotonic()
        if logged or now - self._looked >= SECONDS or self._bar.tasks[0].total == self.done:
            self._looked = now
            known = self.figures() | {name: _number(value) for name, value in figures.items()}
            text = "  ".join(f"{name} {value:.4g}" for name, value in known.items())
            self._bar.update(self._task, description=f"{self.phase}  {text}")
            if logged:
                for name, value in known.items():
                    self.log.add_scalar(name, value, self.done)
        self._bar.update(self._task, completed=self.done)

    @property
    def phase(self) -> str:
        """The name of the phase that the model is in."""
        layers = [module for module in self.model.modules() if hasattr(module, "phase_index")]
        return PHASES[layers[0].phase_index] if layers else ""

    def figures(self) -> dict[str, float]:
        """What the model says of itself: the average bits of its learned layers, and the target."""
        layers, root = learned_layers(self.model), prepared_root(self.model)
        if not layers:
            return {}
        return {
            "bits": float(average_bits(layers, root.soniq_cost).detach()),
            "target": float(root.soniq_target_bits),
        }


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)
