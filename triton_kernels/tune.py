"""Measuring a GPU offline: which path and tile is fastest for each pair of widths, number of rows and size of layer (`soniq tune`).

Every candidate's integers are compared with those of the first before it is timed. Times are medians of replays of a CUDA graph
that goes through copies of the weights larger than the level 2 cache. The table only chooses; results do not depend on it.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from soniq_kernels import packing
from soniq_kernels.triton_kernels import choice, epilogue, gemm, one_bit
from soniq_kernels.triton_kernels.b1 import GEMM_OUTPUTS, MOST_WORK
from soniq_kernels.triton_kernels.choice import B1, TENSOR_CORE, VECTOR, VECTOR_ROWS, Choice, power_of_two
from soniq_kernels.triton_kernels.device_activations import DeviceActivations
from soniq_kernels.triton_kernels.device_weights import DeviceWeights, to_device
from soniq_kernels.triton_kernels.quantize import quantize_activations

LAYERS = ((4096, 4096), (8192, 8192), (4096, 11008))  # outputs, K
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)
# Weights of every width, whose activations cost the same on paths of bytes, and the pairs that bit planes are meant for.
WIDTHS = [(w, 8) for w in range(1, 9)] + [(w, a) for w in range(1, 5) for a in range(1, 5) if w * a <= MOST_WORK]
QUICK_LAYERS, QUICK_ROWS = LAYERS[:1], (1, 16, 256)
TINY_LAYERS, TINY_ROWS, TINY_WIDTHS, TINY_STEP = ((40, 96),), (1, 16), [(2, 8), (1, 1)], 9

Job = tuple[int, int, int, int, int]  # weight bits, activation bits, outputs, K, rows
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
    if one_bit.refusal(weights) is None:
        yield from _one_bit_candidates(weights, rows)
    if weights.saturates:
        return
    smallest = max(16, min(256, power_of_two(rows)))
    for bm in sorted({max(16, smallest // 2), smallest, 128 if rows >= 128 else smallest}):
        for bn in (64, 128, 256):
            for warps, stages in ((4, 3), (4, 4), (8, 3), (8, 4)):
                for splits in (1, 2, 4) if rows <= 64 else (1,):
                    yield Choice(TENSOR_CORE, bn, bm, splits, warps, stages)


def _one_bit_candidates(weights: DeviceWeights, rows: int) -> Iterator[Choice]:
    """Both forms, K in the rule's number of parts and in half and twice as many; gemv while its tiles of columns are few."""
    layer = one_bit.layer_of(weights)
    for form in ("gemv", "gemm"):
        own = choice.of_launch(layer.launch_for(rows, form))
        if own.bn == GEMM_OUTPUTS or rows <= 16 * own.bm:
            yield from (replace(own, splits=splits) for splits in (own.splits, max(1, own.splits // 2), 2 * own.splits))


def best(weights: list[DeviceWeights], x: DeviceActivations, timer: Timer, step: int = 1) -> tuple[Choice, float]:
    """The fastest candidate and its seconds; `weights` are copies of one layer, of candidates every `step`th is tried.

    Raises:
        RuntimeError: two candidates disagree, which would be a bug of a kernel or of the GPU.
    """
    shape = (*x.shape[:-1], weights[0].out_channels)
    expected, found = None, None
    tried = dict.fromkeys(replace(c, reason="") for c in candidates(weights[0], x.rows))
    for candidate in itertools.islice(tried, 0, None, step):
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
    ready = one_bit.planes_of(x, weights, candidate) if candidate.path == B1 else x

    def run() -> torch.Tensor:
        done = epilogue.integers(weights, shape)
        gemm.run(ready, weights, done, candidate)
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


def jobs(quick: bool = False, tiny: bool = False) -> list[Job]:
    """Everything that `measure` tunes."""
    layers, rows, widths = (LAYERS, ROWS, WIDTHS) if not quick else (QUICK_LAYERS, QUICK_ROWS, WIDTHS)
    if tiny:
        layers, rows, widths = TINY_LAYERS, TINY_ROWS, TINY_WIDTHS
    return [(w, a, n, k, m) for w, a in widths for n, k in layers for m in rows]


def measure(
    device: Any,
    work: list[Job],
    timer: Timer = graph_seconds,
    advance: Callable[[], None] = lambda: None,
    step: int = 1,
) -> dict[str, Any]:
    """The table of `device`; `advance` is called after every job."""
    device = torch.device(device)
    rng, choices, layer, copies = np.random.default_rng(0), {}, None, []
    for w_bits, a_bits, n, k, m in work:
        if (w_bits, a_bits, n, k) != layer:
            layer, copies = (w_bits, a_bits, n, k), _copies(rng, w_bits, a_bits, n, k, device)
        x = quantize_activations(torch.randn(m, k, device=device), copies[0].plan, 1.0)
        found, _ = best(copies, x, timer, step)
        choices[choice.key_of(copies[0], m)] = choice.as_entry(found)
        advance()
    return {
        "gpu": choice.gpu_name(device), "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__}, "choices": choices,
    }  # fmt: skip


def dry_run(advance: Callable[[], None]) -> dict[str, Any]:
    """`measure` on the CPU with tiny layers and some candidates: every answer is compared, nothing is timed."""
    return measure("cpu", jobs(tiny=True), lambda runs: 0.0, advance, TINY_STEP)


def _copies(
    rng: np.random.Generator, w_bits: int, a_bits: int, n: int, k: int, device: torch.device
) -> list[DeviceWeights]:
    """One layer as often as it takes to outgrow the level 2 cache twice."""
    plan = packing.Plan.uniform(k, w_bits, a_bits, a_grid="bipolar")
    packed = packing.pack(rng.integers(0, 2**w_bits, (n, k), np.uint8), plan, np.ones(n, np.float32))
    first = to_device(packed, device)
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    number = max(1, min(32, 2 * cache * 8 // (n * k * w_bits) + 1))
    return [first] + [_another(first) for _ in range(number - 1)]


def _another(weights: DeviceWeights) -> DeviceWeights:
    """The same layer in other memory."""
    other = copy.copy(weights)
    other.panels, other.cache = tuple(panel.clone() for panel in weights.panels), {}
    if one_bit.refusal(weights) is None:
        own = other.cache["one bit"] = copy.copy(one_bit.layer_of(weights))
        own.words = copy.deepcopy(own.words)
    return other


def write(table: dict[str, Any], path: Path) -> None:
    """One choice a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table["choices"].items()]
    head = {key: value for key, value in table.items() if key != "choices"}
    text = json.dumps(head, indent=1)[:-2] + ',\n "choices": {\n' + ",\n".join(lines) + "\n }\n}\n"
    path.write_text(text, encoding="utf-8")
    choice.load.cache_clear()
