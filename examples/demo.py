"""Train a small CNN at two precisions per layer, pack it, prove it bit for bit, and time it: python examples/demo.py

Writes network.safetensors and demo.png to --out and prints one table. Exits with 1 if a single output bit differs.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import demo_figures
import demo_training as training
import torch
from demo_data import Images, load
from demo_figures import Entry
from demo_latency import fused_float32, interleaved_medians, torch_int8
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import soniq_kernels
from soniq_kernels import qat

SHIPPED = "SONIQ 2+4 bits"
IN_TABLE = ("FP32, torch", "INT8, torch", "uniform 2 bits", SHIPPED)
BATCHES = (1, 256)


def main() -> int:
    """Run the demo; the exit status."""
    options = _options()
    start = time.perf_counter()
    soniq_kernels.set_num_threads(options.threads)
    data = load(options.data, options.data_path)
    recipe = training.RECIPES[data.name].quick() if options.quick else training.RECIPES[data.name]
    entries, models = _train_all(data, recipe, options, start)
    console = Console(width=None if sys.stdout.isatty() else 110)
    shipped = models[SHIPPED]
    options.out.mkdir(parents=True, exist_ok=True)
    qat.save(shipped, options.out / "network.safetensors")
    torch.set_num_threads(options.threads)
    _measure_latency(entries, models, data)
    _show(console, entries, models, data, recipe, options)
    shipped_entry = entries[SHIPPED]
    console.print(f"identical outputs: {shipped_entry.identical:,} of {shipped_entry.compared:,}")
    console.print(f"saved {options.out / 'network.safetensors'} and {options.out / 'demo.png'}; "
                  f"the demo took {time.perf_counter() - start:.0f} s")  # fmt: skip
    return 0 if all(e.identical == e.compared for e in entries.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist, or the folder of --data-path")
    parser.add_argument("--data-path", type=Path, help="folder with the four Fashion-MNIST .gz files")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the network and the picture go")
    parser.add_argument("--seeds", type=int, help="trainings of everything; default 3 for digits, 1 for Fashion-MNIST")
    parser.add_argument(
        "--budget", type=float, default=110, help="start no further seed that would end after this many seconds"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels while timing")
    parser.add_argument("--quick", action="store_true", help="one epoch of everything, to see that it runs")
    options = parser.parse_args()
    if options.data not in ("digits", "fashion-mnist"):
        if not Path(options.data).is_dir():
            parser.error(f"--data is {options.data!r}, expected digits, fashion-mnist or a folder with its files")
        options.data, options.data_path = "fashion-mnist", Path(options.data)
    options.seeds = options.seeds or (3 if options.data == "digits" and not options.quick else 1)
    return options


# --- training ----------------------------------------------------------------------------------------------------


def _train_all(
    data: Images, recipe: training.Recipe, options: argparse.Namespace, start: float
) -> tuple[dict[str, Entry], dict[str, nn.Module]]:
    """Rows of results over the seeds, and the ready-to-run networks of the first seed."""
    entries: dict[str, Entry] = {}
    models: dict[str, nn.Module] = {}
    torch.set_num_threads(1)
    rounds = TextColumn("{task.completed}/{task.total} rounds")
    with Progress(TextColumn("{task.description}"), BarColumn(), rounds, TimeElapsedColumn()) as progress:
        for seed in range(options.seeds):
            elapsed = time.perf_counter() - start
            if seed and elapsed * (seed + 1) / seed > options.budget:
                progress.console.print(f"{seed} of {options.seeds} seeds fit the budget of {options.budget:.0f} s")
                break
            task = progress.add_task(f"seed {seed}", total=recipe.rounds)
            say, tick = partial(progress.update, task), partial(progress.advance, task)
            trained = _train_seed(seed, data, recipe, say, tick)
            for name, model in trained.items():
                _record(entries, models, name, model, trained["FP32, torch"], data)
    return entries, models


def _train_seed(
    seed: int, data: Images, recipe: training.Recipe, say: Callable, tick: training.Tick
) -> dict[str, nn.Module]:
    """Every network of one seed, under the name of its row."""
    torch.manual_seed(seed)
    say(description=f"seed {seed}: FP32")
    teacher = training.train_float32(data, recipe, tick)
    trained = {"FP32, torch": teacher, "INT8, torch": torch_int8(teacher, data.train_images[:256])}
    for bits in recipe.uniform:
        name = f"uniform {bits} bit{'s' * (bits > 1)}"
        say(description=f"seed {seed}: {name}")
        trained[name] = training.train_uniform(teacher, bits, data, recipe, tick)
    for palette, target in recipe.mixed:
        name = f"SONIQ {palette[0]}+{palette[1]} bits"
        say(description=f"seed {seed}: {name}, average {target:g}")
        trained[name] = training.train_mixed(teacher, palette, target, data, recipe, tick)
    say(description=f"seed {seed}: done")
    return trained


def _record(entries: dict, models: dict, name: str, model: nn.Module, teacher: nn.Module, data: Images) -> None:
    """Add one trained network to its row; the first seed's networks are kept for saving and timing."""
    entry = entries.setdefault(name, Entry(name, name.replace(",", "").split()[0]))
    entry.accuracies.append(training.accuracy(model, data))
    if name == "FP32, torch":
        _describe(entry, models, fused_float32(model), sum(t.nbytes for t in teacher.state_dict().values()), 32, 32)
    elif name == "INT8, torch":
        _describe(entry, models, model, _file_bytes(model), 8, 8)
    else:
        _record_packed(entry, models, model, data)


def _describe(entry: Entry, models: dict, runs: nn.Module, size: int, inner_bits: float, average_bits: float) -> None:
    if entry.name not in models:
        models[entry.name] = runs
        entry.bytes, entry.inner_bits, entry.average_bits = size, inner_bits, average_bits


def _record_packed(entry: Entry, models: dict, model: nn.Module, data: Images) -> None:
    """Pack, and compare every output of the whole test set with the training emulation."""
    packed = qat.convert(model)
    for images in data.test_images.split(500):
        result = qat.verify(model, packed, images)
        if not result:
            print(result)
        entry.compared += result.outputs.values
        entry.identical += result.outputs.values - result.outputs.different
    report = qat.report(packed)
    inner = [layer for layer in report.layers if max(layer.channels) < 8]
    inner_bits = sum(l.average_bits * l.weights for l in inner) / sum(l.weights for l in inner)
    _describe(entry, models, packed, _network_bytes(packed), inner_bits, report.average_bits)
    entry.kernel = ", ".join(sorted({layer.kernel for layer in report.layers}))
    entry.isa = ", ".join(sorted({layer.isa for layer in report.layers}))


def _network_bytes(packed: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        qat.save(packed, Path(folder) / "network")
        return (Path(folder) / "network").stat().st_size


def _file_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


# --- results -----------------------------------------------------------------------------------------------------


def _measure_latency(entries: dict[str, Entry], models: dict[str, nn.Module], data: Images) -> None:
    timed = {name: models[name] for name in IN_TABLE}
    for batch in BATCHES:
        for name, seconds in interleaved_medians(timed, data.test_images[:batch]).items():
            entries[name].seconds[batch] = seconds


def _show(
    console: Console, entries: dict, models: dict, data: Images, recipe: training.Recipe, options: argparse.Namespace
) -> None:
    seeds = len(entries[SHIPPED].accuracies)
    title = f"{data.name}: {len(data.test_labels):,} test images, {seeds} seed{'s' * (seeds > 1)}"
    caption = (
        f"Accuracy: mean and standard deviation over the seeds. FP32 trains {recipe.float32} rounds of "
        f"{recipe.images:,} images,\nthe quantized networks start from it and train {recipe.quantized} more.\n"
        "Inner layers: all but the first and the last, which have 8 bits.\n"
        "Bytes: FP32 its state dict, the others a saved file.\n"
        "Identical outputs: packed against training emulation, whole test set, every seed.\n"
        f"Times: medians of interleaved calls, {options.threads} thread{'s' * (options.threads > 1)}; "
        f"torch {torch.__version__}, batch norm fused."
    )
    rows = [entries[name] for name in IN_TABLE]
    console.print(demo_figures.table(rows, rows[0].bytes, title, caption))
    shipped = models[SHIPPED]
    bits = {name: _bits(layer) for name, layer in shipped.named_modules() if isinstance(layer, qat.PackedLayer)}
    demo_figures.picture(list(entries.values()), bits, options.out / "demo.png", title)


def _bits(layer: qat.PackedLayer) -> list[int]:
    plan = layer.packed_weights().plan
    return [plan.segments[s].w.bits for s in plan.segment_of()]


if __name__ == "__main__":
    raise SystemExit(main())
