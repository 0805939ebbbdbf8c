"""Measuring a GPU offline: which tile is fastest for each width, number of rows and size of layer (`soniq tune`).

Every candidate's integers are compared with those of the first before it is timed. Times are medians of replays of a CUDA graph
that goes through copies of the weights larger than the level 2 cache. The table only chooses; results do not depend on it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from soniq_kernels import packing
from soniq_kernels.triton_kernels import choice, epilogue, gemm
from soniq_kernels.triton_kernels.choice import TENSOR_CORE, VECTOR, VECTOR_ROWS, Choice, power_of_two
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights, to_device
from soniq_kernels.triton_kernels.quantize import quantize_activations

LAYERS = ((4096, 4096), (8192, 8192), (4096, 11008))  # outputs, K
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)
QUICK_LAYERS, QUICK_ROWS = LAYERS[:1], (1, 16, 256)

Run = Callable[[], None]
Timer = Callable[[list[Run]], float]


def candidates(weights: DeviceWeights, rows: int) -> Iterator[Choice]:
    """What is tried; the rule's own choice comes first."""
    own = choice.rule(weights, rows)
    yield own
    if rows <= VECTOR_ROWS:
        steps = max(-(-shape.blocks // (512 // shape.slice)) for shape in weights.shapes)
        for bn in (4, 8, 16):
            for splits in (1, 2, 4, 8, 16):
                if splits <= steps:
                    yield Choice(VECTOR, bn, power_of_two(rows), splits, warps=1, stages=1)
    if weights.saturates:
        return
    smallest = max(16, min(256, power_of_two(rows)))
    for bm in sorted({max(16, smallest // 2), smallest, 128 if rows >= 128 else smallest}):
        for bn in (64, 128, 256):
            for warps, stages in ((4, 3), (4, 4), (8, 3), (8, 4)):
                for splits in (1, 2, 4) if rows <= 64 else (1,):
                    yield Choice(TENSOR_CORE, bn, bm, splits, warps, stages)


def best(weights: list[DeviceWeights], x: DeviceActivations, timer: Timer) -> tuple[Choice, float]:
    """The fastest candidate and its seconds; `weights` are copies of one layer.

    Raises:
        RuntimeError: two candidates disagree, which would be a bug of a kernel or of the GPU.
    """
    shape = (*x.shape[:-1], weights[0].out_channels)
    expected, found = None, None
    for candidate in dict.fromkeys(replace(c, reason="") for c in candidates(weights[0], x.rows)):
        try:
            runs = [_run(layer, x, shape, candidate) for layer in weights]
            result = runs[0]()
        except triton.runtime.errors.OutOfResources:
            continue
        if expected is not None and not torch.equal(result, expected):
            raise RuntimeError(f"{candidate} gives other integers than {choice.rule(weights[0], x.rows)}")
        expected = result
        seconds = timer(runs)
        if found is None or seconds < found[1]:
            found = candidate, seconds
    return found


def _run(weights: DeviceWeights, x: DeviceActivations, shape: tuple[int, ...], candidate: Choice) -> Callable[[], Any]:
    def run() -> torch.Tensor:
        done = epilogue.integers(weights, shape)
        gemm.run(x, weights, done, candidate)
        return done.result

    return run


def graph_seconds(runs: list[Run], replays: int = 20) -> float:
    """Seconds of one call: all of `runs` in one CUDA graph, replayed; the median."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(runs))
    return float(np.median(times))


def jobs(quick: bool) -> list[tuple[int, int, int, int]]:
    """(weight bits, outputs, K, rows) of everything that `measure` tunes."""
    layers, rows = (QUICK_LAYERS, QUICK_ROWS) if quick else (LAYERS, ROWS)
    return [(bits, n, k, m) for bits in range(1, 9) for n, k in layers for m in rows]


def measure(
    device: Any, quick: bool, timer: Timer = graph_seconds, advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The table of `device`; `advance` is called after every job."""
    device = torch.device(device)
    rng, choices, layer, copies = np.random.default_rng(0), {}, None, []
    for bits, n, k, m in jobs(quick):
        if (bits, n, k) != layer:
            layer, copies = (bits, n, k), _copies(rng, bits, n, k, device)
        x = quantize_activations(torch.randn(m, k, device=device), copies[0].plan, 1.0)
        found, _ = best(copies, x, timer)
        choices[choice.key_of(copies[0], m)] = choice.as_entry(found)
        advance()
    return {
        "gpu": choice.gpu_name(device), "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__}, "choices": choices,
    }  # fmt: skip


def _copies(rng: np.random.Generator, bits: int, n: int, k: int, device: torch.device) -> list[DeviceWeights]:
    """One layer as often as it takes to outgrow the level 2 cache twice."""
    plan = packing.Plan.uniform(k, bits, 8, a_grid="bipolar")
    packed = packing.pack(rng.integers(0, 2**bits, (n, k), np.uint8), plan, np.ones(n, np.float32))
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return [to_device(packed, device) for _ in range(max(1, min(32, 2 * cache * 8 // (n * k * bits) + 1)))]


def write(table: dict[str, Any], path: Path) -> None:
    """One choice a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table["choices"].items()]
    head = {key: value for key, value in table.items() if key != "choices"}
    text = json.dumps(head, indent=1)[:-2] + ',\n "choices": {\n' + ",\n".join(lines) + "\n }\n}\n"
    path.write_text(text, encoding="utf-8")
    choice.load.cache_clear()
