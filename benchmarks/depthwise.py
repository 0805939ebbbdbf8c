"""Depthwise and grouped convolutions from codes to codes, one image and one thread, beside torch's INT8 in turns of one run.

    python -m benchmarks.depthwise [--rounds 25] [--tier avx2] [--grouped] [--csv FILE]

A ratio is the median time of the faster one of torch's two INT8 engines over ours. Torch reads and writes quint8 tensors in
channels-last order, ours Activations; both add a bias, apply ReLU and requantize.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.operands import require_equal
from soniq_kernels import conv, isa, packing, set_num_threads

Call = Callable[[], Any]
INT8 = ["fbgemm", "onednn"]
WIDTHS = {"4x4": (4, 4), "8x8": (8, 8), "4x4 | 8x8": None}
SCALE = 0.05


class Shape(NamedTuple):
    """Height = width, channels, taps, stride, groups (0: as many as channels)."""

    size: int
    channels: int
    taps: int
    stride: int
    groups: int = 0

    def __str__(self) -> str:
        groups = f", {self.groups} groups" if self.groups else ""
        return f"{self.size}x{self.size}x{self.channels}, {self.taps}x{self.taps} stride {self.stride}{groups}"


# MobileNetV2, then larger kernels.
DEPTHWISE = [
    Shape(112, 32, 3, 1), Shape(112, 96, 3, 2), Shape(56, 144, 3, 1), Shape(56, 144, 3, 2), Shape(28, 192, 3, 1),
    Shape(28, 192, 3, 2), Shape(14, 384, 3, 1), Shape(14, 576, 3, 1), Shape(14, 576, 3, 2), Shape(7, 960, 3, 1),
    Shape(56, 128, 3, 1), Shape(28, 192, 5, 1), Shape(14, 192, 7, 1),
]  # fmt: skip
# ResNeXt-50 32x4d, then ShuffleNet's grouped 1x1.
GROUPED = [
    Shape(56, 128, 3, 1, 32), Shape(28, 256, 3, 1, 32), Shape(14, 512, 3, 1, 32), Shape(7, 1024, 3, 1, 32),
    Shape(56, 128, 3, 2, 32), Shape(28, 240, 1, 1, 3), Shape(14, 480, 1, 1, 3),
]  # fmt: skip


def plan(channels: int, widths: tuple[int, int] | None) -> packing.Plan:
    """One pair of widths, or the two levels with 80 % of the channels, at random, on the low one."""
    if widths:
        return packing.Plan.uniform(channels, *widths, a_grid="unsigned")
    bits = np.where(np.random.default_rng(0).random(channels) < 0.8, 4, 8)
    return packing.Plan.mixed(bits, a_grid="unsigned")


def floats(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """x NHWC, not negative, and w OHWI, float32."""
    rng = np.random.default_rng(0)
    groups = shape.groups or shape.channels
    x = np.abs(rng.standard_normal((1, shape.size, shape.size, shape.channels), dtype=np.float32))
    return x, rng.standard_normal((shape.channels, shape.taps, shape.taps, shape.channels // groups), dtype=np.float32)


def ours(shape: Shape, widths: tuple[int, int] | None) -> Call:
    """Our convolution, after its integers have been compared with NumPy's."""
    x, w = floats(shape)
    bias = np.ones(shape.channels, np.float32)
    packed = packing.quantize_weights(w, plan(shape.channels, widths), bias=bias)
    codes = packing.quantize_activations(x, packed.plan, SCALE)
    steps: dict[str, Any] = {"stride": shape.stride, "padding": shape.taps // 2}
    got = conv.conv2d_int32(codes, packed, **steps)
    exact = _product(codes.dequantize(), packed.dequantize() / packed.scale[:, None, None, None], shape)
    require_equal(got, np.rint(exact / (SCALE * 2.0**packed.exponent)), str(shape))
    out = packing.Plan.uniform(shape.channels, 8, 8, a_grid="unsigned"), SCALE
    return lambda: conv.conv2d(codes, packed, activation="relu", out=out, **steps)


def _product(x: np.ndarray, w: np.ndarray, shape: Shape) -> np.ndarray:
    """The convolution in float64."""
    import torch

    a, b = (torch.from_numpy(part.astype(np.float64)).permute(0, 3, 1, 2) for part in (x, w))
    y = torch.nn.functional.conv2d(a, b, None, shape.stride, shape.taps // 2, 1, shape.groups or shape.channels)
    return y.permute(0, 2, 3, 1).numpy()


def int8(shape: Shape, engine: str) -> Call:
    """Torch's quantized convolution with ReLU."""
    import torch

    torch.set_num_threads(1)
    x, w = (torch.from_numpy(part).permute(0, 3, 1, 2) for part in floats(shape))
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():  # torch announces the end of this API; it is what torch runs INT8 on CPUs with
        warnings.simplefilter("ignore")
        scales = torch.full((shape.channels,), 0.02, dtype=torch.float64)
        q = torch.quantize_per_channel(w, scales, torch.zeros_like(scales, dtype=torch.long), 0, torch.qint8)
        padding, bias = [shape.taps // 2] * 2, torch.ones(shape.channels)
        packed = torch.ops.quantized.conv2d_prepack(
            q, bias, [shape.stride] * 2, padding, [1, 1], shape.groups or shape.channels
        )
        codes = torch.quantize_per_tensor(x.contiguous(memory_format=torch.channels_last), SCALE, 0, torch.quint8)

    def call() -> Any:
        torch.backends.quantized.engine = engine
        return torch.ops.quantized.conv2d_relu(codes, packed, SCALE, 0)

    return call


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of each: all in every round, in another order each time; the second one of two calls counts."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            calls[name]()
            began = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured) for name, measured in times.items()}


def measure(shape: Shape, tier: str, rounds: int) -> dict[str, Any]:
    """One row: microseconds of INT8 at its best, and how many times as fast each of ours is."""
    with isa.use(tier):
        calls = {name: ours(shape, widths) for name, widths in WIDTHS.items()}
        seconds = in_turns(calls | {engine: int8(shape, engine) for engine in INT8}, rounds)
    best = min(INT8, key=lambda engine: seconds[engine])
    ratios = {name: round(seconds[best] / seconds[name], 2) for name in WIDTHS}
    return {"shape": str(shape), "INT8": best, "microseconds": round(seconds[best] * 1e6)} | ratios


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tier", default=isa.active())
    parser.add_argument("--grouped", action="store_true", help="grouped convolutions instead of depthwise ones")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    set_num_threads(1)
    shapes = GROUPED if options.grouped else DEPTHWISE
    rows = [measure(shape, options.tier, options.rounds) for shape in track(shapes, "measuring")]
    table = Table(*rows[0], title=f"codes in, codes out, one thread, {options.tier}: times as fast as INT8")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
