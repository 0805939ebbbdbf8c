"""report: what every layer costs and how it will be computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from soniq_kernels import gemm
from soniq_kernels._optional import require
from soniq_kernels.activations import PER_ROW
from soniq_kernels.weights import MANY_ROWS

from .budget import unwrapped
from .cost import Shape, padding, time_of
from .embeddings import PackedEmbedding, QuantEmbedding
from .exactness import FLOAT32_EXACT, Pair, accumulator_bound
from .figures import plot
from .layers import NOISE, QuantLayer, name_of_pair
from .packed_layers import PackedLayer
from .targets import bytes_of


@dataclass(frozen=True)
class LayerReport:
    """One layer. channels: {bits: input channels}, empty where bits are still learned or the layer is float; bits are a text
    such as W2A8 where weights and activations have different ones.

    kernel: of a packed layer the family that serves many rows. padding: products that the kernels compute on channels
    that are not there, as a share of those that are (0.5: half as many again). time: of the products over their time at 8
    bits, by this machine's table; None where there is none, or bits are still learned.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channels: dict[int | str, int]
    average_bits: float
    bytes: int
    grid: str
    kernel: str
    bound: int | None
    isa: str = ""
    padding: float = 0.0
    time: float | None = None

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def exact_in(self) -> str:
        """The float type that holds every sum of the emulation exactly."""
        return "" if self.bound is None else "float32" if self.bound < FLOAT32_EXACT else "float64"


@dataclass(frozen=True)
class Report:
    """All layers with weights, in order of registration. print() it, or read the fields.

    floats: of a converted model, what stays float32 between its layers, and why; of a prepared one, why all of it will.
    compression: of a converted model, bytes of the float model's state_dict over those of its own (a file adds its header).
    accuracy: what was given to `report`, in the user's words.
    """

    layers: tuple[LayerReport, ...]
    floats: tuple[str, ...] = ()
    compression: float | None = None
    accuracy: str = ""

    @property
    def average_bits(self) -> float:
        """Bits of a weight over the whole network; a float weight has 32. Biases, norms and scales are not weights."""
        return sum(l.average_bits * l.weights for l in self.layers) / sum(l.weights for l in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def __rich__(self):
        table = require("rich.table", extra="torch").Table(caption=self._caption(), caption_justify="left")
        for title, justify in (("layer", "left"), ("kind", "left"), ("weights", "right"), ("channels at bits", "left"),
                               ("average bits", "right"), ("bytes", "right"), ("input grid", "left"),
                               ("largest sum", "right"), ("exact in", "left"), ("padding", "right"), ("time", "right"), ("kernel", "left")):  # fmt: skip
            table.add_column(title, justify=justify)
        for l in self.layers:
            channels = "  ".join(f"{count} at {bits}" for bits, count in l.channels.items())
            bound = "" if l.bound is None else f"{l.bound:,}"
            table.add_row(l.name, l.kind, "x".join(map(str, l.shape)), channels, f"{l.average_bits:.2f}",
                          f"{l.bytes:,}", l.grid, bound, l.exact_in, f"{l.padding:.0%}" if l.padding else "",
                          "" if l.time is None else f"{l.time:.2f}", f"{l.kernel} on {l.isa}" if l.isa else l.kernel)  # fmt: skip
        return table

    @property
    def headline(self) -> str:
        """The whole network in one line."""
        text = f"{self.average_bits:.2f} bits a weight over the whole network (float weights count as 32), {self.bytes:,} bytes"
        if self.compression is not None:
            text += f", {self.compression:.1f} times smaller than the float model"
        return f"{text}, {self.accuracy}" if self.accuracy else text

    def plot(self, path: str | Path) -> None:
        """Write a picture of bits, bytes and time, one bar a layer; the ending of `path` is its format. Needs matplotlib."""
        plot(self, path)

    def _caption(self) -> str:
        return "\n".join([self.headline, *(f"float32 between layers: {reason}" for reason in self.floats)])

    def __str__(self) -> str:
        console = require("rich.console", extra="torch").Console(width=150)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def report(model: nn.Module, accuracy: str = "") -> Report:
    """Report on a prepared, frozen or converted model; `accuracy` is quoted. Bytes before convert are an estimate: codes,
    scales and biases.
    """
    model = unwrapped(model)
    reasons = getattr(model, "soniq_left_float", {})
    rows = tuple(_rows(model, reasons))
    packed = any(isinstance(module, PackedLayer) for module in model.modules())
    before = getattr(model, "soniq_float_bytes", None) if packed else None
    return Report(rows, tuple(getattr(model, "soniq_floats", ())), before and before / bytes_of(model), accuracy)


def _rows(model: nn.Module, reasons: dict[str, str]) -> Iterator[LayerReport]:
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            inside.update(id(p) for p in module.parameters())
            yield _quantized_row(name, module)
        elif isinstance(module, PackedLayer):
            yield _packed_row(name, module)
        elif isinstance(module, (QuantEmbedding, PackedEmbedding)):
            inside.update(id(p) for p in module.parameters())
            yield _embedding_row(name, module)
        else:
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1 and id(parameter) not in inside:
                    inside.add(id(parameter))
                    yield _float_row(name, parameter_name, module, parameter, reasons)


def _embedding_row(name: str, module: QuantEmbedding | PackedEmbedding) -> LayerReport:
    packed = module.packed_weights()
    bits = packed.plan.segments[0].w.bits
    return LayerReport(name, type(module).__name__, packed.shape, {}, float(bits), packed.nbytes, "", "looked up", None)


def _float_row(name, parameter_name, module, parameter, reasons) -> LayerReport:
    owner = name or type(module).__name__
    label = owner if parameter_name == "weight" else f"{owner}.{parameter_name}"
    kernel = f"float: {reasons[name]}" if name in reasons else "float"
    return LayerReport(
        label, type(module).__name__, tuple(parameter.shape), {}, 32.0, 4 * parameter.numel(), "", kernel, None
    )


def _quantized_row(name: str, layer: QuantLayer) -> LayerReport:
    learning = layer.phase_index == NOISE and layer.learns_bits
    bits = layer.learned_bits().detach() if learning else layer.bits.float()
    average = float(bits.mean())  # every input channel of a layer has the same number of weights
    vectors = 2 if layer.bias is not None or layer.norm is not None else 1
    size = math.ceil(average * layer.weight.numel() / 8) + 4 * vectors * len(layer.weight)
    pairs = Counter(zip(layer.bits.tolist(), layer.a_bits.tolist(), strict=True))
    width = layer.weight.shape[-1] if layer.taps > 1 else 1
    shape = Shape(width, layer.groups, len(layer.weight) // layer.groups, layer.rows)
    channels = {} if learning else _channels(pairs)
    kernel = "noise" if layer.phase_index == NOISE else "emulation"
    return LayerReport(name, type(layer).__name__, tuple(layer.weight.shape), channels, average, size,
                       _grid(layer.kind, layer.input.per_row), kernel,
                       None if learning else layer.bound, **({} if learning else _speed(pairs, shape)))  # fmt: skip


def _speed(pairs: Mapping[Pair, int], shape: Shape) -> dict[str, Any]:
    return {"padding": padding(pairs, shape), "time": time_of(pairs, shape)}


def _channels(pairs: Mapping[Pair, int]) -> dict[int | str, int]:
    """{bits: channels}, fewest bits first."""
    counts = sorted(pairs.items())
    return {pair[0] if pair[0] == pair[1] else name_of_pair(pair): count for pair, count in counts}


def _grid(kind: str, per_row: bool) -> str:
    return f"{kind} per row" if per_row else kind


def _packed_row(name: str, layer: PackedLayer) -> LayerReport:
    packed = layer.packed_weights()
    segments, shape = packed.plan.segments, tuple(packed.shape)
    pairs = [(segments[i].w.bits, segments[i].a.bits) for i in packed.plan.segment_of().tolist()]
    counts, bits = Counter(pairs), np.array([w for w, _ in pairs])
    kind, taps = segments[0].a.kind, math.prod(shape[1:-1])
    explanation = gemm.explain(np.zeros((MANY_ROWS, packed.plan.channels), np.float32), packed)
    shape = (shape[0], shape[-1], *shape[1:-1])  # OIHW, as torch says it
    bound = accumulator_bound(pairs, kind, taps, packed.groups, segments[0].w.kind)
    return LayerReport(name, type(layer).__name__, shape, _channels(counts), float(bits.mean()), packed.nbytes,
                       _grid(kind, packed.activation_scale == PER_ROW), explanation.family, bound, explanation.isa,
                       **_speed(counts, Shape(shape[-1] if len(shape) > 2 else 1, packed.groups,
                                              len(packed.scale) // packed.groups, MANY_ROWS)))  # fmt: skip
