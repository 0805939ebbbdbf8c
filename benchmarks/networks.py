"""`python -m benchmarks.networks`: whole convolutional networks from float32 images to float32 logits, beside INT8 elsewhere.

Everybody gets the same float weights. Before anything is timed, ours must give the bits of the training emulation, and the
others' logits must point where float32's do. Turns are taken one call at a time; figures are medians.
docs/benchmarks.md says more.
"""

from __future__ import annotations

import csv
import importlib
import json
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from benchmarks import probes
from benchmarks.network_peers import PEERS, Call, Floats
from benchmarks.peers import Unavailable

RESULTS = Path(__file__).parent / "results"
PARTS = RESULTS.parents[1] / "out" / "benchmarks"  # a run of some networks must not replace a whole one
console = Console()


class Widths(NamedTuple):
    """(low, high) bits of the inner layers, weights and activations alike, and the average; first and last have 8."""

    palette: tuple[int, int]
    average: float


WARM_CALLS, COUNTED_CALLS = 2, 3  # of a turn
WIDTHS = {
    "1x1": Widths((1, 1), 1.0),
    "{1,4}, 80 % low": Widths((1, 4), 1.6),
    "2x2": Widths((2, 2), 2.0),
    "4x4": Widths((4, 4), 4.0),
}
# Over the best INT8 peer, ResNet-18, batch 1, one thread: (at least, aim); and over torch's INT8 where avx2 is all there is.
BEST_TIER = "avx512_vbmi"
TARGETS: dict[tuple[str, str], dict[str, tuple[float, float | None]]] = {
    ("ResNet-18", BEST_TIER): {"1x1": (3.0, 3.6), "{1,4}, 80 % low": (2.0, 2.4), "2x2": (1.35, 1.8), "4x4": (1.0, 1.1)},
    ("ResNet-18", "avx2"): {"1x1": (4.5, None), "{1,4}, 80 % low": (3.0, None), "2x2": (2.2, None), "4x4": (1.3, None)},
    ("MobileNetV2", BEST_TIER): {"4x4": (1.0, None)},
    ("MobileNetV2", "avx2"): {"4x4": (1.0, None)},
}
TORCH_INT8 = "oneDNN INT8 (torch)"


@dataclass
class Entry:
    """Who takes part, and the seconds of each counted call."""

    name: str
    kind: str
    call: Call
    seconds: list[float]


# ---- ours ----------------------------------------------------------------------------------------------------------
def ours(name: str, widths: Widths, images: Floats) -> tuple[Any, Floats]:
    """(the packed network for NumPy, the logits of the training emulation).

    The weights are random, so channels draw their precision: what is timed is the same for any draw.
    """
    import torch

    from benchmarks import models

    qat: Any = importlib.import_module("soniq_kernels.qat")
    network_of = importlib.import_module("soniq_kernels.qat.exporting").network_of

    x = torch.from_numpy(images)
    config = qat.Config(palette=widths.palette, target_bits=widths.average)
    model = qat.prepare(models.random_model(name), config, x)
    for layer in model.modules():
        if isinstance(layer, qat.QuantLayer) and layer.learns_bits:
            torch.nn.init.normal_(layer.precision)
    qat.freeze(model)
    model.eval()
    with torch.no_grad():
        emulated = model(x).numpy()
    return network_of(qat.convert(model)), emulated


def _our_entry(name: str, label: str, images: Floats, threads: int) -> Entry:
    from soniq_kernels import set_num_threads

    set_num_threads(threads)
    net, emulated = ours(name, WIDTHS[label], images)
    got = net.run(images)
    if not np.array_equal(got.view(np.uint32), emulated.view(np.uint32)):
        raise AssertionError(f"{name} {label}: the packed network and the training emulation differ")

    def call() -> Floats:
        set_num_threads(threads)
        return net.run(images)

    return Entry(label, "ours", call, [])


# ---- one network ---------------------------------------------------------------------------------------------------
def entries(name: str, images: Floats, threads: int, left_out: list[str]) -> list[Entry]:
    """Everybody, checked and warm."""
    import torch

    from benchmarks import models

    model = models.random_model(name)
    with torch.inference_mode():
        exact = model(torch.from_numpy(images)).numpy()
    found = [_our_entry(name, label, images, threads) for label in WIDTHS]
    for peer, (kind, make) in PEERS.items():
        try:
            call = make(models.random_model(name), images, threads)
            cosine = float((call() * exact).sum() / np.linalg.norm(call()) / np.linalg.norm(exact))
        except (Unavailable, ImportError, RuntimeError) as error:
            left_out.append(f"{peer} at {name}: {str(error).splitlines()[0]}")
            continue
        if not cosine > 0.95:
            raise AssertionError(f"{peer} computes another {name}: its logits have cosine {cosine:.3f} with float32's")
        found.append(Entry(peer, kind, call, []))
    return found


def measure(name: str, batch: int, threads: int, rounds: int, left_out: list[str]) -> list[dict[str, Any]]:
    """A row for everybody at one network, batch and number of threads."""
    from benchmarks import models

    shape = models.MODELS[name].shape
    images = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
    console.print(f"{name}, batch {batch}, {threads} threads: packing and checking")
    found = entries(name, images, threads, left_out)
    order = random.Random(0)
    for _ in track(range(rounds), description="turns", console=console, transient=True):
        for entry in order.sample(found, len(found)):
            entry.seconds += _turn(entry.call)
    return _rows(found, name, batch, threads)


def _turn(call: Call) -> list[float]:
    """Seconds of some calls, behind some that bring the network back into the caches, as in a program that runs one network."""
    for _ in range(WARM_CALLS):
        call()
    times = []
    for _ in range(COUNTED_CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def _rows(found: list[Entry], name: str, batch: int, threads: int) -> list[dict[str, Any]]:
    from soniq_kernels import isa

    median = {e.name: statistics.median(e.seconds) for e in found}
    int8 = [median[e.name] for e in found if e.kind == "int8"]
    return [
        {
            "network": name, "batch": batch, "threads": threads, "name": e.name, "kind": e.kind,
            "tier": isa.active() if e.kind == "ours" else "", "seconds": median[e.name], "fastest": min(e.seconds),
            "over_best_int8": min(int8) / median[e.name] if int8 else None,
            "over_torch_int8": median[TORCH_INT8] / median[e.name] if TORCH_INT8 in median else None,
        }
        for e in found
    ]  # fmt: skip


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets that these rows can answer; avx2's are over torch, which its authors hold to AVX2 as well."""
    verdicts = []
    for row in rows:
        least_and_aim = TARGETS.get((row["network"], row["tier"]), {}).get(row["name"])
        if least_and_aim is None or (row["batch"], row["threads"]) != (1, 1):
            continue
        reached = row["over_torch_int8" if row["tier"] == "avx2" else "over_best_int8"]
        verdict = "ok" if reached is not None and round(reached, 2) >= least_and_aim[0] else "missed"
        verdicts.append({"network": row["network"], "name": row["name"], "tier": row["tier"], "reached": reached,
                         "least": least_and_aim[0], "aim": least_and_aim[1], "verdict": verdict})  # fmt: skip
    return verdicts


def _profile(name: str) -> None:
    """Every layer of ours at every pair of widths, batch 1, one thread."""
    from benchmarks import models
    from soniq_kernels import set_num_threads

    set_num_threads(1)
    images = np.random.default_rng(0).random((1, *models.MODELS[name].shape), dtype=np.float32)
    for label, widths in WIDTHS.items():
        net, _ = ours(name, widths, images)
        console.print(f"{name}, {label}")
        console.print(str(net.explain(images, profile=True)), soft_wrap=True)


# ---- files ---------------------------------------------------------------------------------------------------------
def write(result: dict[str, Any], out: Path) -> None:
    """cnns.json, cnns.csv and cnns.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cnns.json").write_text(json.dumps(result, indent=1) + "\n")
    with (out / "cnns.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(result["rows"][0]), lineterminator="\n")
        table.writeheader()
        table.writerows(result["rows"])
    (out / "cnns.md").write_text("\n".join(_page(result)) + "\n")


def _page(result: dict[str, Any]) -> list[str]:
    from benchmarks.pages import machine_lines, ratio

    lines = ["# Whole networks beside INT8", "", "  \n".join(machine_lines(result["machine"])), "", result["about"], ""]
    lines += [f"Left out: {reason}.\n" for reason in result["left_out"]]
    if result["targets"]:
        lines += [
            "## Targets",
            "",
            "| network | | tier | reached | at least | verdict |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [f"| {t['network']} | {t['name']} | {t['tier']} | {ratio(t['reached'])} | {t['least']:.2f}x | {t['verdict']} |"
                  for t in result["targets"]]  # fmt: skip
        lines.append("")
    places = dict.fromkeys((r["network"], r["batch"], r["threads"]) for r in result["rows"])
    for network, batch, threads in places:
        lines += [f"## {network}, batch {batch}, {threads} thread{'s' * (threads > 1)}", "",
                  "| | ms | over the best INT8 | over torch's INT8 |", "| --- | --- | --- | --- |"]  # fmt: skip
        for r in result["rows"]:
            if (r["network"], r["batch"], r["threads"]) == (network, batch, threads):
                over = (ratio(r["over_best_int8"]), ratio(r["over_torch_int8"]))
                lines.append(f"| {r['name']} | {1000 * r['seconds']:.2f} | {over[0]} | {over[1]} |")
        lines.append("")
    return lines[:-1]


ABOUT = (
    "Float32 images in, float32 logits out, random weights, the same for everybody; first and last layers of ours have 8 bits. "
    f"Everybody takes turns in one process, in another order every round: {WARM_CALLS} calls to get warm, {COUNTED_CALLS} that count. "
    "Figures are medians. A target at avx2 is over torch's INT8."
)


def main(
    network: Annotated[list[str] | None, typer.Option(help="A name of models.MODELS; may be repeated. All.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images at a time; may be repeated. 1 and 8.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="May be repeated. One.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of everybody.")] = 25,
    out: Annotated[Path | None, typer.Option(help="Folder; benchmarks/results for a whole run.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Of ours alone: time, rate and share of ceiling by layer.")
    ] = False,
) -> None:
    """Time whole networks beside those of others and write the results."""
    from benchmarks import models

    unknown = set(network or []) - set(models.MODELS)
    if unknown:
        raise typer.BadParameter(f"got network {', '.join(sorted(unknown))}, expected {', '.join(models.MODELS)}")
    if profile:
        for name in network or models.MODELS:
            _profile(name)
        return
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name in network or models.MODELS:
        for size in batch or [1, 8]:
            for count in threads or [1]:
                rows += measure(name, size, count, rounds, left_out)
    command = probes.command("benchmarks.networks")
    result = {"suite": "cnns", "about": ABOUT, "machine": probes.machine(command, threads or [1]),
              "left_out": list(dict.fromkeys(left_out)), "targets": judge(rows), "rows": rows}  # fmt: skip
    place = out or (PARTS if network or batch or threads else RESULTS)
    write(result, place)
    console.print((place / "cnns.md").read_text())


if __name__ == "__main__":
    typer.run(main)
