"""Bits by their number or by their time: the same network and budget, allocated three ways and measured on this machine.

    python examples/time_budget.py                      # seeds 0-2, about ten minutes of one core; goes on where it stopped
    python examples/time_budget.py --other avx512 --table costs_of_the_target.json

The network has layers that few bits make much faster (convolutions, many pixels, few weights) and one that holds most of
the weights and takes little time (a Linear behind them). Budgets over weights spend bits on the former, budgets over time
on the latter. Every run is written to the JSON file when it is done; the table says what they come to.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from demo_data import Images, load
from demo_training import accuracy
from rich.console import Console
from rich.progress import track
from torch import nn

from soniq_kernels import isa, load_network, planner, qat, set_num_threads
from soniq_kernels.qat.budget import average_bits, learned_layers

PALETTE, TARGET, BATCH = (2, 8), 3.5, 64
EPOCHS = {"float": 10, "noise": 8, "exact": 10}
RESULTS = Path(__file__).parent / "results"


def network() -> nn.Sequential:
    """For grey images of 8 x 8: three convolutions (19k and 37k learned weights) and two Linears (131k)."""
    parts = [
        layer
        for inputs, outputs, stride in ((1, 32, 1), (32, 64, 1), (64, 64, 2))
        for layer in (nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))


def train(
    model: nn.Module, groups: list, data: Images, epochs: int, teacher: nn.Module | None = None, **penalty
) -> None:
    """AdamW with one cycle of the learning rate; a quantized network learns from the float one, too."""
    optimizer = torch.optim.AdamW(groups)
    if penalty:
        qat.penalize(optimizer, model, **penalty)
    steps = len(data.train_labels) // BATCH
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train_labels))[: steps * BATCH].view(steps, BATCH):
            x = data.train_images[chosen]
            y = model(x)
            loss = F.cross_entropy(y, data.train_labels[chosen])
            if teacher is not None:
                loss = (loss + qat.distill(y, teacher(x))) / 2
            qat.check_finite(loss, model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def train_float(data: Images, seed: int, epochs: dict[str, int]) -> nn.Module:
    torch.manual_seed(seed)
    model = network()
    train(model, [{"params": list(model.parameters()), "lr": 5e-3}], data, epochs["float"])
    return qat.teacher(model)


def train_mixed(teacher: nn.Module, data: Images, seed: int, cost: str, epochs: dict[str, int]) -> nn.Module:
    """The frozen network whose budget is over `cost`."""
    torch.manual_seed(seed)
    model = copy.deepcopy(teacher).requires_grad_(True)
    qat.prepare(model, qat.Config(palette=PALETTE, target_bits=TARGET), data.train_images[:256])
    train(model, qat.param_groups(model, lr=3e-3, bits_lr=3e-2), data, epochs["noise"], teacher, cost=cost)
    qat.freeze(model, cost=cost)
    train(model, qat.param_groups(model, lr=3e-3), data, epochs["exact"], teacher)
    return model.eval()


def measure(model: nn.Module, data: Images) -> dict[str, object]:
    layers = learned_layers(model)
    assert qat.verify(model, qat.convert(model), data.test_images), "no output differs by a single bit"
    return {
        "accuracy": accuracy(model, data),
        "average_bits": float(average_bits(layers)),
        "high_share": [float((layer.bits == PALETTE[1]).float().mean()) for layer in layers],
    }


def latencies(files: list[Path], data: Images, calls: int) -> list[float]:
    """Median microseconds of CPU time that an image takes in a batch on each network, in turns, one thread."""
    networks, x = [load_network(file) for file in files], data.test_images[:BATCH].numpy()
    times: list[list[float]] = [[] for _ in networks]
    for _ in range(calls + 5):
        for net, mine in zip(networks, times, strict=True):
            began = time.process_time()
            net(x)
            mine.append(time.process_time() - began)
    return [1e6 * median(mine[5:]) / BATCH for mine in times]


def summary(runs: list[dict]) -> str:
    """Markdown: mean and standard error over the seeds."""
    head = "| budget over | accuracy % | bits a weight | high in conv2, conv3, linear1 % | us an image |\n|---|---|---|---|---|\n"
    lines = []
    for way in dict.fromkeys(run["way"] for run in runs):
        mine = [run for run in runs if run["way"] == way]
        cells = [_mean_and_error([run[key] for run in mine]) for key in ("accuracy", "average_bits", "microseconds")]
        shares = ", ".join(f"{100 * mean(run['high_share'][i] for run in mine):.0f}" for i in range(3))
        lines.append(f"| {way} | {cells[0]} | {cells[1]} | {shares} | {cells[2]} |")
    return head + "\n".join(lines) + "\n"


def _mean_and_error(values: list[float]) -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):.2f} ± {error:.2f}"


def main(
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ...")] = 3,
    other: Annotated[
        str, typer.Option(help="Tier of another machine, whose table allocates the third way.")
    ] = "avx512_vbmi",
    table: Annotated[Path | None, typer.Option(help="That machine's table; none: the one that ships.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    quick: Annotated[bool, typer.Option(help="One epoch of each part: to see that everything runs.")] = False,
) -> None:
    """Train, measure and compare."""
    torch.set_num_threads(1)
    set_num_threads(1)
    data, epochs = load("digits"), dict.fromkeys(EPOCHS, 1) if quick else EPOCHS
    networks, path = out / "time_budget", out / "time_budget.json"
    networks.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    about = {"command": "python examples/time_budget.py", "machine": platform.processor() or platform.machine(),
             "tier": isa.active(), "table": planner.table().origin, "palette": PALETTE, "target_bits": TARGET}  # fmt: skip

    def write() -> None:
        path.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")

    ways = {"weights": ("bits", None), f"time, {isa.active()} here": ("time", None), f"time, {other}": ("time", other)}
    for seed in track(range(seeds), description="seeds"):
        missing = [way for way in ways if (seed, way) not in {(run["seed"], run["way"]) for run in runs}]
        teacher = train_float(data, seed, epochs) if missing else None
        for way in missing:
            began, (cost, tier) = time.process_time(), ways[way]
            with qat.machine(tier, table if tier else None):
                model = train_mixed(teacher, data, seed, cost, epochs)
            run = {"seed": seed, "way": way, "float": accuracy(teacher, data)} | measure(model, data)
            run["network"] = f"{seed}-{list(ways).index(way)}.safetensors"
            qat.save(qat.convert(model), networks / run["network"])
            runs.append(run | {"cpu_seconds": round(time.process_time() - began, 1)})
            write()
        mine = [run for run in runs if run["seed"] == seed]
        if not all("microseconds" in run for run in mine):
            for run, found in zip(
                mine, latencies([networks / run["network"] for run in mine], data, 5 if quick else 300), strict=True
            ):
                run["microseconds"] = found
            write()
    text = summary(runs)
    (out / "time_budget.md").write_text(text)
    Console().print(text)


if __name__ == "__main__":
    typer.run(main)
