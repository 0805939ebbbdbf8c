"""Who is timed on a GPU: ours and the peers, each with its answer checked, and copies of its weights beyond the L2 cache."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks import shapes
from benchmarks.contenders import Contender
from benchmarks.gpu_machine import Call, DryGpu, Gpu, our_kernels
from benchmarks.peers import Unavailable
from benchmarks.shapes import Shape
from soniq_kernels import gemm, packing

BLOCK_OUTPUTS = (
    256  # drawn at random; a layer repeats them, so that its whole answer follows from the CPU's for the block
)
MOST_COPIES = 64
A_SCALE = 2.0

TRITON_WIDTHS = ["W1A8", "W2A8", "W4A8", "W8A8", "W4A4"]
B1_WIDTHS = ["W1A1", "W2A2", "W1A4", "W1A8", "W2A8", "W4A8", "W8A8"]
FLOATS = {"cuBLAS FP16": "float16", "cuBLAS BF16": "bfloat16"}
INT_MM, FP8 = "torch._int_mm", "torch._scaled_mm FP8"
GEMLITE = {f"gemlite W{bits}A16": bits for bits in (8, 4, 2, 1)}
HUMMING = {f"humming W{bits}A16": bits for bits in (8, 4, 2, 1)}
FAULTS = {
    INT_MM: "int32 sums only: no quantization, no scales; more than 16 rows, K and N multiples of 8",
    FP8: "operands are FP8 already; one scale a tensor; sums are not exact",
    "gemlite": "float activations; answers within what its bits explain",
    "humming": "float activations; answers within what its bits explain",
}


@dataclass
class Layer:
    """The float operands of N x K weights and M rows, the same for everybody; [N, K] repeats `block`."""

    shape: Shape
    gpu: Gpu | DryGpu
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        m, n, k = self.shape
        self.outputs = math.gcd(n, 64 if self.gpu.tiny else BLOCK_OUTPUTS)
        self.repeats = n // self.outputs
        self.block = self.rng.standard_normal((self.outputs, k), dtype=np.float32)
        torch = gpu_torch(self.gpu)
        self.x = torch.from_numpy(self.rng.standard_normal((m, k), dtype=np.float32)).to(self.gpu.device, torch.float16)

    @cached_property
    def w(self) -> Any:
        """float16 [N, K] on the GPU."""
        torch = gpu_torch(self.gpu)
        return torch.from_numpy(self.block).to(self.gpu.device, torch.float16).repeat(self.repeats, 1)

    @cached_property
    def exact(self) -> np.ndarray:
        """float32 [M, block's outputs], the product without quantization."""
        return self.x.float().cpu().numpy() @ self.block.T

    def packed(self, widths: str) -> tuple[packing.PackedWeights, packing.PackedWeights]:
        """(of the block, of the layer); the second repeats the planes of the first, nothing is packed again."""
        return _packed(self, widths)


def _packed(layer: Layer, widths: str) -> tuple[packing.PackedWeights, packing.PackedWeights]:
    k = layer.shape[2]
    small = packing.quantize_weights(layer.block, shapes.plan(widths, k), activation_scale=A_SCALE)
    planes = [np.tile(_whole_bytes(p, layer.outputs * k), (1, layer.repeats)) for p in small.planes or []]
    large = packing.PackedWeights(
        small.plan,
        (layer.shape[1], k),
        planes,
        np.tile(small.scale, layer.repeats),
        activation_scale=small.activation_scale,
    )
    return small, large


def _whole_bytes(planes: np.ndarray, bits: int) -> np.ndarray:
    if bits % 8:
        raise Unavailable("the random block of weights does not end with a byte")
    return planes[:, : bits // 8]


def gpu_torch(gpu: Gpu | DryGpu) -> Any:
    return gpu.torch


@dataclass
class Ready:
    """A contender that can run: one call for each copy of its weights, and what a call reads of them."""

    calls: list[Call]
    weight_bytes: int
    kernel: str = ""
    stage: str = "whole"


def contenders(shape: Shape) -> Iterator[Contender]:
    """Everybody who may run at this shape; who cannot says so when it is made."""
    yield from (Contender("ours", widths, "triton") for widths in TRITON_WIDTHS)
    yield from (Contender("ours", widths, "b1") for widths in B1_WIDTHS if _b1_is_meant(shape, widths))
    yield from (Contender("float", name) for name in FLOATS)
    yield from (Contender("int8", name) for name in (INT_MM, FP8))
    yield from (Contender("lowbit", name) for name in (*GEMLITE, *HUMMING))


def _b1_is_meant(shape: Shape, widths: str) -> bool:
    (_, w_bits, a_bits), *_ = shapes.parts(widths)
    return w_bits * a_bits <= 4 or shape[0] * a_bits <= 128


def make(contender: Contender, layer: Layer) -> Ready:
    """The contender with its answer checked.

    Raises:
        Unavailable: what is missing, or why it refuses this shape.
        AssertionError: a wrong answer.
    """
    if contender.kind == "ours":
        return {"triton": _triton, "b1": _b1}[contender.tier](layer, contender.what)
    try:
        ready = _peer(contender.what)(layer, contender.what)
    except Unavailable:
        raise
    except Exception as error:  # a peer that fails is left out by name and does not end the run
        raise Unavailable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return ready


def _peer(what: str) -> Callable[[Layer, str], Ready]:
    if what in FLOATS:
        return _cublas
    if what == INT_MM:
        return _int_mm
    if what == FP8:
        return _fp8
    return _gemlite if what in GEMLITE else _humming


def copies(layer: Layer, weight_bytes: int) -> int:
    """Sets of weights whose bytes are three times the L2 cache."""
    return max(1 if layer.gpu.tiny else 2, min(MOST_COPIES, -(-3 * layer.gpu.l2_bytes // weight_bytes)))


# ---- ours ----------------------------------------------------------------------------------------------------------
def _triton(layer: Layer, widths: str) -> Ready:
    ours = our_kernels()
    small, large = layer.packed(widths)
    weights = repeated(ours.to_device(small, layer.gpu.device), large, layer.repeats)
    sets = [weights] + [_another(weights) for _ in range(copies(layer, weights.nbytes) - 1)]

    def call(w: Any = weights) -> Any:
        with ours.use("vector", "tensor_core"):  # those of one bit are a contender of their own
            return ours.linear(layer.x, w)

    require_ours(layer, call(), small)
    with ours.use("vector", "tensor_core"):
        path = str(ours.explain(layer.x, weights)).partition(":")[0]
    return Ready([lambda w=w: call(w) for w in sets], weights.nbytes, path)  # type: ignore[misc]


def repeated(weights: Any, packed: packing.PackedWeights, times: int) -> Any:
    """DeviceWeights of `packed` from those of its block: their tiles of outputs again and again."""
    if times == 1:
        return weights
    large = copy.copy(weights)
    large.shape, large.packed, large.cache = packed.shape, packed, {}
    large.panels = tuple(panel.repeat(1, times, *[1] * (panel.dim() - 2)) for panel in weights.panels)
    large.vectors = weights.vectors.repeat(1, times)
    large.group_outputs = packed.shape[0]
    large._host = replace(
        weights._host,
        group_outputs=packed.shape[0],
        tap_sums=tuple(np.tile(s, (times, 1)) for s in weights._host.tap_sums),
    )
    return large


def _another(weights: Any) -> Any:
    other = copy.copy(weights)
    other.panels = tuple(panel.clone() for panel in weights.panels)
    return other


def _b1(layer: Layer, widths: str) -> Ready:
    try:
        from soniq_kernels.triton_kernels import b1

        device = layer.gpu.b1_device()
    except (ImportError, RuntimeError) as reason:
        raise Unavailable(str(reason)) from None
    small, large = layer.packed(widths)
    panels = b1.weight_panels(small)
    if layer.outputs % b1.TILE_OUTPUTS and layer.repeats > 1:
        raise Unavailable(f"N = {layer.shape[1]} does not repeat whole tiles of outputs")
    panels = panels._replace(
        words=np.tile(panels.words, layer.repeats), column_terms=np.tile(panels.column_terms, layer.repeats),
        outputs=layer.shape[1],
    )  # fmt: skip
    made = b1.Linear(large, device, panels)
    require_ours(layer, made.linear(layer.x), small)
    launch = made.launch_for(layer.shape[0])
    calls: list[Call] = []
    for _ in range(copies(layer, panels.words.nbytes)):
        calls.append(lambda other=made: other.linear(layer.x))  # type: ignore[misc]
        made = copy.copy(made)
        made.words = layer.gpu.duplicate(made.words)
    return Ready(calls, panels.words.nbytes, f"{launch.kernel}, K in {launch.splits}")


def require_ours(layer: Layer, y: Any, small: packing.PackedWeights) -> None:
    """Raises AssertionError unless the whole answer has the bits of the CPU."""
    expected = gemm.linear(layer.x.float().cpu().numpy(), small)
    torch = gpu_torch(layer.gpu)
    wanted = torch.from_numpy(np.ascontiguousarray(expected)).to(y.device).view(torch.int32)
    got = y.view(torch.int32).reshape(y.shape[0], layer.repeats, layer.outputs)
    wrong = int((got != wanted[:, None]).sum())
    if wrong:
        raise AssertionError(f"{wrong} of {y.numel()} values differ from the CPU's at {shapes.text(layer.shape)}")


# ---- peers ---------------------------------------------------------------------------------------------------------
def require_near(layer: Layer, y: Any, most: float, what: str) -> None:
    """Raises AssertionError if the mean error over the mean magnitude is more than the bits explain."""
    got = y[:, : layer.outputs].float().cpu().numpy()
    error = float(np.abs(got - layer.exact).mean() / np.abs(layer.exact).mean())
    if not error <= most:
        raise AssertionError(f"{what} is off by {error:.1%}, at most {most:.0%} can be rounding")


ERRORS = {16: 0.01, 8: 0.03, 4: 0.2, 2: 0.9, 1: 1.1}


def _cublas(layer: Layer, what: str) -> Ready:
    torch = gpu_torch(layer.gpu)
    dtype = getattr(torch, FLOATS[what])
    x, w = layer.x.to(dtype), layer.w.to(dtype)
    require_near(layer, x @ w.T, ERRORS[16], what)
    sets = [w] + [w.clone() for _ in range(copies(layer, w.nbytes) - 1)]
    return Ready([lambda w=w: x @ w.T for w in sets], w.nbytes, "cuBLAS")  # type: ignore[misc]


def _eight_bits(layer: Layer) -> tuple[Any, Any, Any, Any]:
    """(x, w int8, their scales), symmetric: one scale a row of each."""
    torch = gpu_torch(layer.gpu)
    found = []
    for values in (layer.x.float(), layer.w.float()):
        scale = values.abs().amax(1, keepdim=True) / 127
        found += [(values / scale).round().to(torch.int8), scale]
    return found[0], found[2], found[1], found[3]


def _int_mm(layer: Layer, what: str) -> Ready:
    torch = gpu_torch(layer.gpu)
    m, n, k = layer.shape
    if not layer.gpu.tiny and (m <= 16 or k % 8 or n % 8):
        raise Unavailable("takes more than 16 rows, and K and N that are multiples of 8")
    x, w, x_scale, w_scale = _eight_bits(layer)
    require_near(layer, torch._int_mm(x, w.T).float() * x_scale * w_scale.T, ERRORS[8], what)
    sets = [w] + [w.clone() for _ in range(copies(layer, w.nbytes) - 1)]
    return Ready([lambda w=w: torch._int_mm(x, w.T) for w in sets], w.nbytes, "int32 out, no scales", "product")  # type: ignore[misc]


def _fp8(layer: Layer, what: str) -> Ready:
    torch = gpu_torch(layer.gpu)
    if layer.gpu.tiny or layer.gpu.capability < (8, 9):
        raise Unavailable("needs a GPU of compute capability 8.9")
    eight = torch.float8_e4m3fn
    scales = [values.abs().max().float() / 448 for values in (layer.x, layer.w)]
    x, w = ((values / s).to(eight) for values, s in zip((layer.x.float(), layer.w.float()), scales, strict=True))

    def call(w: Any = w) -> Any:
        return torch._scaled_mm(x, w.T, scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16)

    require_near(layer, call(), 0.06, what)
    sets = [w] + [w.clone() for _ in range(copies(layer, w.nbytes) - 1)]
    return Ready([lambda w=w: call(w) for w in sets], w.nbytes, "FP8 in, BF16 out", "product")  # type: ignore[misc]


def _gemlite(layer: Layer, what: str) -> Ready:
    try:
        from gemlite.core import DType, GemLiteLinear
    except ImportError:
        raise Unavailable("not installed: gemlite") from None
    torch, bits = gpu_torch(layer.gpu), GEMLITE[what]
    _, n, k = layer.shape
    codes, scale, zero = _asymmetric(layer, bits)

    def one() -> Any:
        made = GemLiteLinear(
            bits, group_size=k, in_features=k, out_features=n, input_dtype=DType.FP16, output_dtype=DType.FP16
        )
        made.pack(codes, scale.to(torch.float16), zero.to(torch.float16), None)
        return made

    return _of_modules(layer, one, bits, what)


def _of_modules(layer: Layer, one: Callable[[], Any], bits: int, what: str) -> Ready:
    """Another library's module, made by `one`, and copies of it until the caches cannot hold them."""
    first = one()
    require_near(layer, first(layer.x), ERRORS[bits], what)
    size = layer.shape[1] * layer.shape[2] * bits // 8
    sets = [first] + [one() for _ in range(min(8, copies(layer, size)) - 1)]
    return Ready([lambda f=f: f(layer.x) for f in sets], size, "float activations")  # type: ignore[misc]


def _asymmetric(layer: Layer, bits: int) -> tuple[Any, Any, Any]:
    """(uint8 codes [N, K], scale [N, 1], zero [N, 1]) so that w is near (code - zero) * scale; four deviations wide at most."""
    torch, w = gpu_torch(layer.gpu), layer.w.float()
    reach = w.abs().mean(1, keepdim=True) * {1: 1.0, 2: 1.9, 4: 3.3, 8: 5.0}[bits]
    top = 2**bits - 1
    scale = 2 * reach / top
    codes = (w / scale + top / 2).round().clamp(0, top).to(torch.uint8)
    return codes, scale, torch.full_like(scale, top / 2)


def _humming(layer: Layer, what: str) -> Ready:
    try:
        import humming.layer as humming
    except ImportError:
        raise Unavailable("not installed: humming-kernels") from None
    torch, bits = gpu_torch(layer.gpu), HUMMING[what]
    _, n, k = layer.shape

    def one() -> Any:
        made = humming.HummingLayer(
            shape_n=n, shape_k=k, weight_config={"dtype": f"int{bits}"}, torch_dtype=torch.float16
        ).cuda()
        made.load_from_unquantized(layer.w)
        made.transform()
        made.prepare_default_kernel_configs()
        return made

    return _of_modules(layer, one, bits, what)
