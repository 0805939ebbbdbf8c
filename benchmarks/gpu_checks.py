"""Every path of the GPU kernels against the plain loops of the CPU, bit for bit, on random and extreme inputs, before anything is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.gpu_machine import DryGpu, Gpu, our_kernels
from soniq_kernels import gemm, isa, packing

PAIRS = [(w, a) for w in range(1, 9) for a in range(1, 9)]
FEW = [(1, 1), (2, 2), (3, 5), (1, 8), (8, 8)]
ACTIVATIONS: list[Any] = [None, "relu", "relu6", ("hardtanh", -0.5, 0.75)]
Path = Callable[[Any, packing.PackedWeights, int], Iterator[tuple[str, Any]]]  # (what ran, float32 answer)


def run(gpu: Gpu | DryGpu, minutes: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """[{path, cases, differ, first, left_out}] of every path; a path stops at its share of the time."""
    found = []
    for name, make, pairs in _paths(gpu):
        say(f"checking {name}")
        found.append(_check(gpu, name, make, pairs, minutes * 60 / 2))
    return found


def _paths(gpu: Gpu | DryGpu) -> list[tuple[str, Callable[[], Path], list[tuple[int, int]]]]:
    """Every pair of widths on the one-bit kernels, which are compiled once; a Latin square on Triton's, which are many."""
    latin = [(w, (3 * w + i) % 8 + 1) for w in range(1, 9) for i in (0, 5)]
    return [
        ("b1", lambda: _b1_path(gpu), FEW if gpu.tiny else PAIRS),
        ("triton", lambda: _triton_path(gpu), FEW[:3] if gpu.tiny else latin),
        ("codes", lambda: _codes_path(gpu), FEW[:1] if gpu.tiny else latin[::3]),
    ]


def _check(
    gpu: Gpu | DryGpu, name: str, make: Callable[[], Path], pairs: list[tuple[int, int]], seconds: float
) -> dict[str, Any]:
    result: dict[str, Any] = {"path": name, "cases": 0, "differ": 0, "first": "", "left_out": ""}
    try:
        path = make()
    except (ImportError, RuntimeError) as reason:
        return result | {"left_out": str(reason).splitlines()[0]}
    began = time.monotonic()
    for number, (w_bits, a_bits) in enumerate(pairs):
        if time.monotonic() - began > seconds:
            result["left_out"] = f"stopped after {number} of {len(pairs)} pairs of widths: out of time"
            break
        try:
            for case, got, expected in _cases(gpu, path, number, w_bits, a_bits):
                result["cases"] += 1
                if not _same(got, expected):
                    result["differ"] += 1
                    result["first"] = result["first"] or case
        except Exception as error:  # counts as a difference; the other pairs are still looked at
            result["differ"] += 1
            result["first"] = result["first"] or f"W{w_bits}A{a_bits}: {type(error).__name__}: {error}"
    return result


def _cases(
    gpu: Gpu | DryGpu, path: Path, number: int, w_bits: int, a_bits: int
) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Random and extreme inputs at odd sizes, every type of input, epilogues in turn."""
    rng = np.random.default_rng(number)
    k = 70 if gpu.tiny else int(rng.integers(1, 1200))
    n = 20 if gpu.tiny else int(rng.integers(1, 200))
    rows = [2 + number % 2] if gpu.tiny else [1, int(rng.integers(2, 9)), int(rng.integers(9, 160))]
    for m in rows:
        for kind in ("random", "largest", "odd"):
            packed, x = _layer(rng, w_bits, a_bits, n, k, m, kind)
            dtype = ("float32", "float16", "bfloat16")[(number + m) % 3] if kind == "random" else "float32"
            on_gpu = gpu.torch.from_numpy(x).to(gpu.device, getattr(gpu.torch, dtype))
            with isa.use("reference"):
                expected = gemm.linear(
                    on_gpu.float().cpu().numpy(), packed, activation=ACTIVATIONS[number % 4], check_finite=False
                )
            for what, got in path(on_gpu, packed, number):
                yield f"W{w_bits}A{a_bits} {m} x {n} x {k}, {kind}, {dtype}, {what}", got, expected


def _layer(
    rng: np.random.Generator, w_bits: int, a_bits: int, n: int, k: int, m: int, kind: str
) -> tuple[packing.PackedWeights, np.ndarray]:
    """Packed weights of a random segmentation, and float32 inputs."""
    grid = "bipolar" if w_bits == 1 or rng.random() < 0.5 else "signed"
    second = rng.random(k) < 0.3
    w_all, a_all = np.where(second, min(8, w_bits + 1), w_bits), np.where(second, a_bits, a_bits)
    plan = packing.Plan.mixed(
        w_bits=w_all,
        a_bits=a_all,
        w_grid=grid,
        a_grid=rng.choice(["bipolar", "unsigned"]),
        shift=int(rng.integers(-2, 3)),
    )
    tops = np.array([s.w.cmax for s in plan.segments])[plan.segment_of()]
    codes = np.broadcast_to(tops, (n, k)) if kind == "largest" else rng.integers(0, tops + 1, (n, k))
    vectors = {"bias": rng.normal(size=n).astype(np.float32), "post_scale": rng.normal(size=n).astype(np.float32)}
    scale = (rng.normal(size=n) * 0.05).astype(np.float32)
    if kind == "odd":
        scale[::3], vectors["bias"][::5] = 1e-38, 1e-41
    packed = packing.pack(
        codes.astype(np.uint8),
        plan,
        scale,
        vectors["bias"],
        "per_row" if m % 2 else 0.7,
        post_scale=vectors["post_scale"],
    )
    x = (rng.normal(size=(m, k)) * 1.2).astype(np.float32)
    if kind == "largest":
        x[:] = 3.0
    if kind == "odd":
        values = np.array([0, -0.0, 1e-41, -1e-45, np.nan, np.inf, -np.inf, 3e38], np.float32)
        x = np.where(rng.random(x.shape) < 0.2, rng.choice(values, x.shape), x)
    return packed, x


def _b1_path(gpu: Gpu | DryGpu) -> Path:
    from soniq_kernels.triton_kernels import b1

    device = gpu.b1_device()

    def run(x: Any, packed: packing.PackedWeights, number: int) -> Iterator[tuple[str, Any]]:
        layer = b1.Linear(packed, device)
        for form, splits in (("gemv", 1 + number % 3), ("gemm", 1 + number % 2)):
            planes = layer.quantize(x, launch=layer.launch_for(x.shape[0], form, splits))
            yield f"{form}, K in {splits}", layer.linear(planes, activation=ACTIVATIONS[number % 4])

    return run


def _triton_path(gpu: Gpu | DryGpu) -> Path:
    ours = our_kernels()

    def run(x: Any, packed: packing.PackedWeights, number: int) -> Iterator[tuple[str, Any]]:
        weights = ours.to_device(packed, gpu.device)
        with ours.use("vector", "tensor_core"):
            yield str(ours.explain(x, weights)), ours.linear(x, weights, activation=ACTIVATIONS[number % 4])

    return run


def _codes_path(gpu: Gpu | DryGpu) -> Path:
    """The layer at the end of operations on codes, as `gpu.linear` is called by default: through a network, whose codes are exact."""
    from soniq_kernels.network import Network, Node

    def run(x: Any, packed: packing.PackedWeights, number: int) -> Iterator[tuple[str, Any]]:
        if isinstance(packed.activation_scale, str) or packed.activation_scale is None:
            return
        codes = packed.plan, np.float32(packed.activation_scale)
        nodes = [
            Node("requantize", ("x",), ("a", "f")),
            Node("add", ("a", "zero"), ("b",)),
            Node("linear", ("b",), ("y",), layer="layer", activation=ACTIVATIONS[number % 4]),
        ]
        tensors = {"x": None, "zero": None, "a": codes, "f": None, "b": codes, "y": None}
        net = Network(nodes, {"layer": packed}, tensors, inputs=("x", "zero")).to(gpu.device)
        x = x.float()
        yield "codes through a network", net(x, gpu.torch.zeros_like(x))

    return run


def _same(got: Any, expected: np.ndarray) -> bool:
    """Shape and bit patterns; every NaN counts as one."""
    array = got.cpu().numpy() if hasattr(got, "cpu") else got.get() if hasattr(got, "get") else got
    if array.shape != expected.shape or array.dtype != np.float32:
        return False
    bits = [
        np.where(np.isnan(a), np.uint32(0x7FC00000), np.ascontiguousarray(a).view(np.uint32)) for a in (array, expected)
    ]
    return bool((bits[0] == bits[1]).all())
