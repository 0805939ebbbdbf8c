"""One training, any number of bits: a network whose weights are read at 8, 4, 2 or 1 bits, on digits.

    python examples/any_bits.py                     # seeds 0-2, a few minutes of one core; goes on where it stopped

Three ways to a network at fewer bits: drop planes of one trained at 8 bits (as it is, or with scales and batch norms fitted
to what is left), train one network for all widths, train one for each width. And between two widths: a share of the channels
is read at the lower one. All figures are those of packed networks, whose every bit is compared with the training's.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from demo_data import Images, load
from demo_training import accuracy
from rich.console import Console
from rich.progress import track
from runs import machine, mean_and_error
from torch import nn

from soniq_kernels import qat
from soniq_kernels.qat.layers import EXACT

FULL, LOWER, LOW, BATCH = 8, (4, 2, 1), 2, 64
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
EPOCHS = {"float": 10, "exact": 9, "folded": 5}
RESULTS = Path(__file__).parent / "results"
Losses = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]  # all gradients of one batch


def network() -> nn.Sequential:
    """For grey images of 8 x 8: three convolutions, 4.0k weights at the learned bits, and a Linear."""
    parts = [
        layer
        for inputs, outputs, stride in ((1, 12, 1), (12, 16, 2), (16, 16, 1))
        for layer in (nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def train(model: nn.Module, groups: list, data: Images, epochs: dict[str, int], losses: Losses) -> None:
    """AdamW with one cycle of the learning rate; the batch norms' statistics are fixed for the last epochs."""
    optimizer = torch.optim.AdamW(groups)
    steps = len(data.train_labels) // BATCH
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=sum(epochs.values()) * steps)
    model.train()
    for part, count in epochs.items():
        if part == "folded":
            qat.fix_batch_norm(model)
        for _ in range(count):
            for chosen in torch.randperm(len(data.train_labels))[: steps * BATCH].view(steps, BATCH):
                losses(model, data.train_images[chosen], data.train_labels[chosen])
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()


def plain(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    F.cross_entropy(model(x), labels).backward()


def taught(teacher: nn.Module) -> Losses:
    """Half the loss is the float network's answer."""

    def losses(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
        y = model(x)
        ((F.cross_entropy(y, labels) + qat.distill(y, teacher(x))) / 2).backward()

    return losses


def of_all_widths(teacher: nn.Module) -> Losses:
    """Every width on every batch, and one of the shares in between."""
    one = taught(teacher)

    def losses(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
        for _ in qat.widths(model):
            one(model, x, labels)
        one(qat.set_width(model, LOW, share=random.random()), x, labels)
        qat.set_width(model)

    return losses


def train_float(data: Images, seed: int, epochs: dict[str, int]) -> nn.Module:
    torch.manual_seed(seed)
    model = network()
    train(model, [{"params": list(model.parameters()), "lr": 1e-2}], data, {"float": epochs["float"]}, plain)
    return qat.teacher(model)


def train_at(
    bits: int,
    nested: tuple[int, ...],
    teacher: nn.Module,
    data: Images,
    seed: int,
    epochs: dict[str, int],
    all_widths: bool,
) -> nn.Module:
    """A network with weights of `bits` bits and activations of 8, readable at the lower widths `nested` too."""
    torch.manual_seed(seed)
    random.seed(seed)
    model = copy.deepcopy(teacher).requires_grad_(True)
    config = qat.Config.uniform(bits, a_bits=8, nested_bits=nested)
    qat.freeze(qat.prepare(model, config, data.train_images[:256]))
    losses = of_all_widths(teacher) if all_widths else taught(teacher)
    parts = {part: epochs[part] for part in ("exact", "folded")}
    train(model, qat.param_groups(model, lr=5e-3), data, parts, losses)
    return model.eval()


def without_fit(model: nn.Module) -> nn.Module:
    """What dropping planes alone gives: scales and batch norms of the full width at every width."""
    model = qat.fit_widths(copy.deepcopy(model))
    for layer in model.modules():
        if isinstance(layer, qat.QuantLayer) and layer.nested is not None:
            nn.init.ones_(layer.nested.gain)
    return model


def with_fit(model: nn.Module, data: Images) -> nn.Module:
    """Scales nearest to the weights, and batch norms that have seen the training images at every width."""
    model = qat.fit_widths(copy.deepcopy(model)).train()
    for layer in model.modules():
        if isinstance(layer, qat.QuantLayer):
            layer.set_phase(EXACT)  # back to the phase in which batch norms count
    with torch.no_grad():
        for _ in qat.widths(model):
            for _ in range(3):
                for x in data.train_images.split(BATCH):
                    model(x)
    return qat.fix_batch_norm(model).eval()


def measure(model: nn.Module, data: Images, bits: int | None = None, share: float = 1.0) -> dict[str, float]:
    """The packed network at a width: accuracy in %, bytes, average bits of the learned layers, and outputs that differ."""
    packed = qat.convert(model)
    if bits is not None:
        qat.set_width(model, bits, share)
        packed = qat.at_bits(packed, bits, share)
    check = qat.verify(model, packed, data.test_images)
    learned = qat.report(packed).layers[1:-1]
    return {
        "accuracy": accuracy(packed, data),
        "bits": sum(l.average_bits * l.weights for l in learned) / sum(l.weights for l in learned),
        "values": check.outputs.values + sum(layer.values for layer in check.layers),
        "different": check.outputs.different + sum(layer.different for layer in check.layers),
    }


def of_widths(model: nn.Module, data: Images) -> dict[str, dict[str, float]]:
    return {str(bits): measure(model, data, bits) for bits in (FULL, *LOWER)}


def of_shares(model: nn.Module, data: Images) -> dict[str, dict[str, float]]:
    return {str(share): measure(model, data, LOW, share) for share in SHARES}


def one_seed(data: Images, seed: int, epochs: dict[str, int]) -> dict[str, object]:
    began = time.process_time()
    teacher = train_float(data, seed, epochs)
    jointly = train_at(FULL, LOWER, teacher, data, seed, epochs, all_widths=True)
    full = train_at(FULL, LOWER, teacher, data, seed, epochs, all_widths=False)
    dropped, fitted = without_fit(full), with_fit(full, data)
    alone = {str(bits): measure(train_at(bits, (), teacher, data, seed, epochs, False), data) for bits in LOWER}
    networks = {
        "planes dropped": dropped,
        "planes dropped, scales and batch norms fitted": fitted,
        "one training for all widths": jointly,
    }
    result = {
        "seed": seed,
        "float": accuracy(teacher, data),
        "widths": {name: of_widths(model, data) for name, model in networks.items()}
        | {"a training for each width": alone},
        "shares": {name: of_shares(model, data) for name, model in networks.items()},
    }
    return result | {"cpu_seconds": round(time.process_time() - began, 1)}


def summary(runs: list[dict]) -> str:
    """Markdown: mean and standard error over the seeds."""
    names = list(runs[0]["widths"])
    lines = [
        f"Accuracy in % on digits, {len(runs)} seeds, mean and standard error; FP32 {_of(runs, lambda run: run['float'])}.",
        "",
    ]
    lines += _table("bits of the weights", [str(bits) for bits in (FULL, *LOWER)], names, "widths", runs)
    lines += ["", f"A share of the channels at {LOW} bits, the others at {FULL}:", ""]
    lines += _table("share", [str(share) for share in SHARES], names[:-1], "shares", runs)
    checked = [m for run in runs for kind in ("widths", "shares") for way in run[kind].values() for m in way.values()]
    differ, values = (int(sum(m[key] for m in checked)) for key in ("different", "values"))
    return (
        "\n".join(
            [
                *lines,
                "",
                f"{differ} of {values} outputs of packed layers and networks differ from the training's by a bit.",
            ]
        )
        + "\n"
    )


def _table(title: str, columns: list[str], names: list[str], kind: str, runs: list[dict]) -> list[str]:
    rows = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [
            _of(runs, lambda run, n=name, c=c: run[kind][n][c]["accuracy"]) if c in runs[0][kind][name] else ""
            for c in columns
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _of(runs: list[dict], value: Callable[[dict], float]) -> str:
    middle, error = mean_and_error([value(run) for run in runs])
    return f"{middle:.1f}" + (f" ± {error:.1f}" if len(runs) > 1 else "")


def main(
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    quick: Annotated[bool, typer.Option(help="One epoch of each part: to see that everything runs.")] = False,
) -> None:
    """Train, measure and compare."""
    torch.set_num_threads(1)
    data, epochs = load("digits"), dict.fromkeys(EPOCHS, 1) if quick else EPOCHS
    path = out / "any_bits.json"
    out.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    about = {"command": "python examples/any_bits.py", "machine": machine(), "epochs": epochs}
    for seed in track(range(seeds), description="seeds"):
        if seed not in {run["seed"] for run in runs}:
            runs.append(one_seed(data, seed, epochs))
            path.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
    text = summary(runs)
    (out / "any_bits.md").write_text(text)
    Console().print(text)


if __name__ == "__main__":
    typer.run(main)
