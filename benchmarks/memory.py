"""`python -m benchmarks.memory`: the peak memory of one network, each of ours and of the others' INT8 in a fresh process.

A process loads a file, runs one image three times and says how much memory it had at most. What the same interpreter with NumPy has
before is subtracted: that is there for everybody. Figures are Linux's VmHWM: ru_maxrss also counts what the parent had at the fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks import probes
from benchmarks.networks import PARTS, RESULTS, WIDTHS, ours
from benchmarks.pages import machine_lines

SHARE = 0.25  # of OpenVINO's INT8, at most
OPENVINO = "OpenVINO INT8"
console = Console()

_NUMPY = "import sys\nimport numpy as np\nx = np.load(sys.argv[2])\n"
_PEAK = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
SCRIPTS = {
    "": "",
    "ours": "import soniq_kernels\nnet = soniq_kernels.load_network(sys.argv[1])\nfor _ in range(3): net.run(x)\n",
    OPENVINO: (
        "import openvino\ncore = openvino.Core()\nmodel = core.compile_model(core.read_model(sys.argv[1]), 'CPU',"
        " {'INFERENCE_NUM_THREADS': 1, 'PERFORMANCE_HINT': 'LATENCY'})\nfor _ in range(3): model([x])\n"
    ),
    "ONNX Runtime INT8": (
        "import onnxruntime\noptions = onnxruntime.SessionOptions()\noptions.intra_op_num_threads = 1\n"
        "net = onnxruntime.InferenceSession(sys.argv[1], options)\n"
        "for _ in range(3): net.run(None, {net.get_inputs()[0].name: x})\n"
    ),
}


def peak(script: str, model: Path, images: Path) -> int:
    """Bytes that a fresh process had at most."""
    done = subprocess.run(
        [sys.executable, "-c", _NUMPY + SCRIPTS[script] + _PEAK, str(model), str(images)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.splitlines()[-1]) * 1024


def rows(name: str, folder: Path) -> list[dict[str, Any]]:
    """A row for everybody: bytes of the file and at the peak."""
    from benchmarks import models
    from benchmarks.network_peers import quantized_onnx

    images = np.random.default_rng(0).random((1, *models.MODELS[name].shape), dtype=np.float32)
    np.save(folder / "x.npy", images)
    (folder / "int8.onnx").write_bytes(quantized_onnx(models.random_model(name), images))
    files = {peer: (peer, folder / "int8.onnx") for peer in SCRIPTS if peer not in ("", "ours")}
    for i, (label, widths) in enumerate(WIDTHS.items()):
        ours(name, widths, images)[0].save(folder / f"{i}.safetensors")
        files[label] = ("ours", folder / f"{i}.safetensors")
    before = peak("", folder / "x.npy", folder / "x.npy")
    return [
        {"network": name, "name": label, "file_bytes": file.stat().st_size,
         "peak_bytes": peak(script, file, folder / "x.npy") - before}
        for label, (script, file) in files.items()
    ]  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    peaks = {row["name"]: row["peak_bytes"] for row in result["rows"]}
    lines = ["# Peak memory of whole networks", "", "  \n".join(machine_lines(result["machine"])), "",
             "Each in a fresh process, batch 1, one thread; above what the interpreter with NumPy has.", "",
             "| | file, MB | peak, MB | of OpenVINO INT8 |", "| --- | --- | --- | --- |"]  # fmt: skip
    for row in result["rows"]:
        share = row["peak_bytes"] / peaks[OPENVINO]
        verdict = "" if row["name"] not in WIDTHS else ", ok" if share <= SHARE else f", missed (at most {SHARE:.0%})"
        lines.append(
            f"| {row['name']} | {row['file_bytes'] / 1e6:.1f} | {row['peak_bytes'] / 1e6:.1f} | {share:.0%}{verdict} |"
        )
    return "\n".join(lines) + "\n"


def main(
    network: Annotated[str, typer.Option(help="A name of models.MODELS.")] = "ResNet-18",
    out: Annotated[Path | None, typer.Option(help="Folder; benchmarks/results for ResNet-18.")] = None,
) -> None:
    """Measure the peak memory of a network, ours and others', and write the results."""
    console.print(f"{network}: packing, quantizing for the others, a process each")
    with tempfile.TemporaryDirectory() as folder:
        found = rows(network, Path(folder))
    command = f"python -m benchmarks.memory --network {network}"
    result = {"suite": "memory", "machine": probes.machine(command, [1]), "rows": found}
    place = out or (RESULTS if network == "ResNet-18" else PARTS)
    place.mkdir(parents=True, exist_ok=True)
    (place / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    (place / "memory.md").write_text(page(result))
    console.print(page(result))


if __name__ == "__main__":
    typer.run(main)
