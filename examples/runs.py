"""Runs that take minutes each: a finished run is one JSON file, an unfinished one goes on from its last epoch.

store = Store("fashion_mnist")                    results in examples/results/fashion_mnist/, checkpoints in out/
model = train(model, stages, task, checkpoint)    every epoch leaves a checkpoint; the same command continues there
evidence(model, ...)                              packs it, and compares every output with the training emulation
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import soniq_kernels
from soniq_kernels import isa, qat
from soniq_kernels.qat.budget import average_bits, learned_layers, quantized_layers
from soniq_kernels.qat.cost import product_ns
from soniq_kernels.qat.layers import name_of_pair

HERE = Path(__file__).resolve().parent
console = Console(highlight=False)


# --- the store ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """One folder of results, `<recipe>-<seed>.json`, and one of what only this machine needs."""

    name: str
    results: Path = HERE / "results"
    scratch: Path = HERE.parent / "out"

    def file(self, recipe: str, seed: int) -> Path:
        return self.results / self.name / f"{recipe}-{seed}.json"

    def checkpoint(self, recipe: str, seed: int, kind: str = "checkpoint") -> Path:
        return self.scratch / self.name / f"{recipe}-{seed}.{kind}"

    def read(self, recipe: str, seed: int) -> dict[str, Any] | None:
        file = self.file(recipe, seed)
        return json.loads(file.read_text()) if file.is_file() else None

    def write(self, result: dict[str, Any]) -> Path:
        file = self.file(result["recipe"], result["seed"])
        return _write_json(file, result)

    @property
    def times_file(self) -> Path:
        return self.results / self.name / "times.json"

    def write_times(self, found: dict[str, Any]) -> Path:
        return _write_json(self.times_file, found)

    def times(self) -> dict[str, float]:
        """{recipe: microseconds of a sample}, of those that were measured."""
        return json.loads(self.times_file.read_text())["microseconds"] if self.times_file.is_file() else {}

    def all(self) -> list[dict[str, Any]]:
        """Every finished run."""
        return [json.loads(file.read_text()) for file in sorted((self.results / self.name).glob("*-*.json"))]


def _write(file: Path, write: Callable[[Path], object]) -> None:
    """All of a file or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    write(part)
    part.replace(file)


def _write_json(file: Path, content: dict[str, Any]) -> Path:
    _write(file, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
    return file


def machine() -> dict[str, Any]:
    """What a result was made on."""
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = models[0].split(":", 1)[1].strip() if models else platform.processor()
    return {
        "processor": processor, "isa": isa.active(), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "commit": _commit(),
    }  # fmt: skip


def _commit() -> str:
    """Of the sources; empty outside of a repository."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return found.stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


# --- training ----------------------------------------------------------------------------------------------------


class Task(Protocol):
    """What is learned: batches of one epoch, and the loss of a model on one of them."""

    steps: int

    def epoch(self) -> Iterator[Any]: ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...


@dataclass(frozen=True)
class Stage:
    """So many epochs in one cycle of the learning rate (up in a quarter of the steps, then down to nothing).

    groups: of the optimizer, made of the model as it is then. enter: what happens to the model before the first step.
    joins: goes on with the optimizer and in the cycle of the stage before.
    """

    name: str
    epochs: int
    groups: Callable[[nn.Module], list[dict[str, Any]]]
    enter: Callable[[nn.Module], object] | None = None
    joins: bool = False


@dataclass
class Progress:
    """What a checkpoint knows beside the tensors."""

    stage: int = 0
    epochs: int = 0  # of the stage
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


def train(model: nn.Module, stages: Sequence[Stage], task: Task, checkpoint: Path, label: str) -> Progress:
    """Train in place through all stages, from `checkpoint` if it exists. Prints a line an epoch.

    Raises FloatingPointError where the loss is not finite.
    """
    done, resumed = load(model, checkpoint)
    optimizer = schedule = None
    for index, stage in enumerate(stages):
        if index < done.stage:
            continue
        if done.epochs == 0 and stage.enter is not None:
            stage.enter(model)
        if optimizer is None or not stage.joins:
            optimizer = torch.optim.AdamW(stage.groups(model), fused=True)
            rates = [group["lr"] for group in optimizer.param_groups]
            steps = _epochs_of_cycle(stages, index) * task.steps
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.25)
            if done.epochs:
                optimizer.load_state_dict(resumed["optimizer"])
                schedule.load_state_dict(resumed["schedule"])
        while done.epochs < stage.epochs:
            _epoch(model, stage, task, optimizer, schedule, done, label)
            _save(model, optimizer, schedule, done, checkpoint)
        done.stage, done.epochs = index + 1, 0
    return done


def _epochs_of_cycle(stages: Sequence[Stage], index: int) -> int:
    """Of the stage and all that share its cycle of the learning rate."""
    starts = [i for i, stage in enumerate(stages) if i == 0 or not stage.joins]
    first = max(i for i in starts if i <= index)
    end = min((i for i in starts if i > index), default=len(stages))
    return sum(stage.epochs for stage in stages[first:end])


def _epoch(model, stage: Stage, task: Task, optimizer, schedule, done: Progress, label: str) -> None:
    cpu, wall, total = time.process_time(), time.perf_counter(), 0.0
    model.train()
    for batch in task.epoch():
        loss = task.loss(model, batch) + _penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if not np.isfinite(total):
            raise FloatingPointError(
                f"{label}: the loss is {loss.item()} in stage {stage.name}; lower its learning rate"
            )
    done.epochs += 1
    done.cpu_seconds += time.process_time() - cpu
    done.wall_seconds += time.perf_counter() - wall
    line = {"stage": stage.name, "epoch": done.epochs, "loss": round(total / task.steps, 4)} | _bits(model)
    done.log.append(line)
    shown = "  ".join(f"{key} {value}" for key, value in line.items())
    console.print(f"{label}  {shown}  cpu {done.cpu_seconds:.0f} s")


def _penalty(model: nn.Module) -> Tensor | float:
    return qat.bit_penalty(model) if hasattr(model, "soniq_target_bits") else 0.0


def _bits(model: nn.Module) -> dict[str, float]:
    if not hasattr(model, "soniq_target_bits") or not learned_layers(model):
        return {}
    return {"average_bits": round(float(average_bits(learned_layers(model)).detach()), 3)}


def _save(model: nn.Module, optimizer, schedule, done: Progress, file: Path) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
             "random": torch.get_rng_state(), "progress": vars(done)}  # fmt: skip
    _write(file, lambda path: torch.save(state, path))


def load(model: nn.Module, file: Path) -> tuple[Progress, dict[str, Any]]:
    """The model as the checkpoint left it, if there is one; (where training stood, all of the checkpoint)."""
    if not file.is_file():
        return Progress(), {}
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    torch.set_rng_state(state["random"])
    return Progress(**state["progress"]), state


# --- evidence ----------------------------------------------------------------------------------------------------


def evidence(model: nn.Module, factory: str, inputs: Tensor, batch: int) -> dict[str, Any]:
    """Pack a frozen model, save it, load it in a new process, and count every output that differs from the emulation.

    factory: "module:function" of this folder that makes a fresh float instance of the network.
    Per layer every output of every batch of `inputs`, here (`qat.verify`) and in the new process (by digest, a batch each);
    of the network every output there.
    """
    packed = qat.convert(model)
    layers, outputs = Counter(), Counter()
    for part in inputs.split(batch):
        found = qat.verify(model, packed, part)
        layers.update(values=sum(c.values for c in found.layers), different=sum(c.different for c in found.layers))
        outputs.update(values=found.outputs.values, different=found.outputs.different)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.safetensors"
        qat.save(packed, file)
        size = file.stat().st_size
        fresh = _compare_fresh(model, factory, file, inputs, batch)
    return {"file_bytes": size, "layers": dict(layers), "network": dict(outputs), "new_process": fresh}


def _compare_fresh(model: nn.Module, factory: str, file: Path, inputs: Tensor, batch: int) -> dict[str, int]:
    images, answers = file.with_name("inputs.npy"), file.with_name("answers.npz")
    np.save(images, inputs.numpy())
    command = [sys.executable, str(HERE / "fresh.py"), factory, str(file), str(images), str(batch), str(answers)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    expected, got = digests(model, model, inputs, batch), np.load(answers)
    outputs = expected.pop("outputs"), got["outputs"]
    if set(expected) != set(got.files) - {"outputs"}:
        raise AssertionError(f"the new process has layers {sorted(got.files)}, expected {sorted(expected)}")
    return {
        "outputs": outputs[0].size,
        "different": int((outputs[0].view(np.int32) != outputs[1].view(np.int32)).sum()),
        "layer_batches": sum(len(each) for each in expected.values()),
        "layer_batches_different": sum(int((expected[name] != got[name]).sum()) for name in expected),
    }


@torch.no_grad()
def digests(model: nn.Module, call: Callable[[Tensor], Tensor], inputs: Tensor, batch: int) -> dict[str, np.ndarray]:
    """{layer: a digest of all its outputs, one of each batch}, and "outputs": float32, of the network."""
    found: dict[str, list[str]] = {}
    kinds = (qat.QuantLayer, qat.PackedLayer)
    layers = {name: module for name, module in model.eval().named_modules() if isinstance(module, kinds)}

    def keep(name: str) -> Callable:
        def hook(layer, args, output):
            found.setdefault(name, []).append(hashlib.sha256(output.contiguous().numpy().tobytes()).hexdigest())

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    outputs = torch.cat([call(part) for part in inputs.split(batch)]).contiguous().numpy()
    for handle in handles:
        handle.remove()
    return {name: np.array(each) for name, each in found.items()} | {"outputs": outputs}


@torch.no_grad()
def microseconds(
    networks: Mapping[str, Callable[[Tensor], object]], inputs: Tensor, rounds: int = 15
) -> dict[str, float]:
    """CPU microseconds of one sample in a batch, on one thread: the median of rounds in which all take turns."""
    threads = soniq_kernels.get_num_threads()
    soniq_kernels.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(1 + rounds):
        for name, network in networks.items():
            start = time.process_time()
            network(inputs)
            times[name].append(time.process_time() - start)
    soniq_kernels.set_num_threads(threads)
    return {name: round(1e6 * median(found[1:]) / len(inputs), 2) for name, found in times.items()}


def sizes(model: nn.Module) -> dict[str, Any]:
    """Bits, compression and the planner's time of a frozen model."""
    report = qat.report(model)
    channels = {
        name: {name_of_pair(pair): count for pair, count in sorted(_pairs(layer).items())}
        for name, layer in quantized_layers(model)
    }
    return {
        "inner_bits": round(float(average_bits(_inner(model))), 4),
        "network_bits": round(report.average_bits, 4),
        "compression": round(32 / report.average_bits, 3),
        "planner_us": round(planner_us(model), 3),
        "channels": channels,
    }


def _pairs(layer: qat.QuantLayer) -> Counter[tuple[int, int]]:
    """Input channels of each (bits of the weights, bits of the activations)."""
    return Counter(zip(layer.bits.tolist(), layer.a_bits.tolist(), strict=True))


def _inner(model: nn.Module) -> list[qat.QuantLayer]:
    """All but the first and the last layer."""
    return [layer for _, layer in quantized_layers(model)][1:-1]


def planner_us(model: nn.Module) -> float:
    """Microseconds of all products of one sample, by the costs of one machine, so that runs of any machine can be compared."""
    total = 0.0
    with qat.machine("avx2"):  # of the first table that ships
        for _, layer in quantized_layers(model):
            outputs = len(layer.weight) // layer.groups
            for pair, count in _pairs(layer).items():
                products = count * layer.weights_per_channel * layer.rows
                total += products * product_ns(*pair, outputs, layer.rows)
    return total / 1000


# --- tables ------------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the error of one value is not known."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first row is the head, numbers to the right."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def command_line() -> str:
    return "python " + " ".join([os.path.relpath(sys.argv[0], HERE.parent), *sys.argv[1:]])
