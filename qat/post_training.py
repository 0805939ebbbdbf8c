"""Post-training quantization, without labels: from a trained float model and some of its inputs to a frozen model.

teacher     a float copy, whose layers' outputs are the targets
smoothing   channels of a tensor brought nearer to each other            smoothing.py
ranges      scales by the error of each layer's output                  ranges.py
bits        the channels that deserve the high precision                sensitivity.py
layers      in the order of execution: rounding that makes good,        rounding.py
            then training, each to the float layer's output             reconstruct.py
network     (optional) all of it trained to the float model's outputs   reconstruct.py
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from soniq_kernels._optional import require

from .budget import quantized_layers
from .calibration import layer_inputs
from .config import Config
from .cost import product_ns
from .exactness import Pair
from .freeze import fix_batch_norm, frozen_layers
from .layers import EXACT, QuantLayer
from .observe import frozen as frozen_modes
from .observe import run
from .prepare import prepare
from .ranges import Target, search_ranges, start_ranges
from .reconstruct import reconstruct, reconstruct_network
from .report import report
from .rounding import round_weights
from .sensitivity import Choice, channel_gains, choose, damage
from .smoothing import fold, makers, smooth
from .tensors import InputQuantizer

IMAGE = 32  # rows that an image counts for
RANGE_BATCHES = 16  # what runs through the quantized layers, for ranges and reconstruction
ROUNDING_ROWS = 1 << 14
Unit = Literal["bits", "network_bits", "bytes", "milliseconds"]


def relative_error(output: Any, target: Any) -> Tensor:
    """Squared error over the square of the target, over all float tensors of a result."""
    pairs = zip(tree_leaves(output), tree_leaves(target), strict=True)
    return sum(
        (a - b).square().sum() / b.square().sum() for a, b in pairs if isinstance(b, Tensor) and b.is_floating_point()
    )


@dataclass(frozen=True)
class PostTraining:
    """How `quantize_model` works.

    palette, a_palette, first_bits, last_bits, exclude, a_grid, a_scale, edge_bits   as in `Config`
    target, unit    what the network may cost where the palette has two levels: "bits", average bits of the learned layers;
                    "network_bits", of all weights, float ones as 32; "bytes", as `report` counts them; "milliseconds" of
                    one sample's products in learned layers, by this machine's table of costs. None: a quarter of the way.
    smooth          bring channels of a tensor nearer to each other: into the layer in front where there is one that
                    alone makes the tensor, else (with a_scale="per_row") by a product in front of the layer
    rounding        choose the codes of a Linear's weights one after the other, each making good for those before; all of
                    calibration is looked at, which should have many more rows than the layer has inputs
    items           rows of a Linear's input, per layer, that everything else looks at; a 32nd of it for images
    steps           steps of reconstruction of each layer; 0: none
    network_steps   steps of reconstruction of the whole network's output (`loss`), after that of the layers
    rate            a factor for the learning rates of both
    block           channels that get the high precision together
    """

    palette: tuple[int, int] = (4, 8)
    a_palette: tuple[int, int] | None = None
    target: float | None = None
    unit: Unit = "bits"
    first_bits: int | None = 8
    last_bits: int | None = 8
    exclude: Sequence[str] = ()
    a_grid: Literal["auto", "bipolar", "unsigned"] = "auto"
    a_scale: Literal["static", "per_row"] = "static"
    edge_bits: int | None = 8
    smooth: bool = True
    rounding: bool = False
    items: int = 1024
    steps: int = 200
    network_steps: int = 0
    rate: float = 1.0
    network_rate: float = 0.1
    loss: Callable[[Any, Any], Tensor] = field(default=relative_error)
    block: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in ("bits", "network_bits", "bytes", "milliseconds"):
            raise ValueError(f"unit is {self.unit!r}, expected 'bits', 'network_bits', 'bytes' or 'milliseconds'")
        if self.target is None and self.unit != "bits":
            raise ValueError(f"unit is {self.unit!r} without a target; give target=")
        for name, least in (("items", 1), ("steps", 0), ("network_steps", 0), ("block", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        self.config()

    def config(self) -> Config:
        """What `prepare` is told; what can be met is for the allocation here to say."""
        fields = ("palette", "a_palette", "first_bits", "last_bits", "exclude", "a_grid", "a_scale", "edge_bits")
        target = self.target if self.unit == "bits" else None
        return Config(target_bits=target, least_share=0, **{name: getattr(self, name) for name in fields})


def quantize_model(model: nn.Module, calibration: Iterable[object], how: PostTraining | None = None) -> nn.Module:
    """Quantize a trained float model in place, without labels, and return it frozen: `convert`, `verify`, `report` take it.

    calibration: batches of real inputs, each a tensor, a tuple of arguments or a dict of keyword arguments; a few hundred
    samples in all. Raises ValueError for no batches, what `prepare` refuses, or a target that cannot be met (it names the
    nearest that can), FloatingPointError if a reconstruction gives NaN.
    """
    how, batches = how or PostTraining(), list(calibration)
    if not batches:
        raise ValueError("calibration has no batches; give a few real inputs of the model")
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    modes = {module: module.training for module in model.modules()}
    _fix_phases(prepare(model, how.config(), batches[0]))
    _PostTraining(model, teacher, batches, how).run()
    for module in model.modules():
        module.training = modes.get(module, model.training)
    return model


def _fix_phases(model: nn.Module) -> None:
    """Straight to the last phase: the bits are not learned."""
    for _, layer in quantized_layers(model):
        layer.input.precision.requires_grad_(False)
        layer.set_phase(EXACT)
    fix_batch_norm(model).eval()


class _PostTraining:
    """groups: {tensor's quantizer: [(name, layer) that read it]} in the order of execution."""

    def __init__(self, model: nn.Module, teacher: nn.Module, batches: list[object], how: PostTraining):
        self.model, self.teacher, self.batches, self.how = model, teacher, batches, how
        self.floats = dict(teacher.named_modules())
        self.groups = _in_order(model, batches[0])
        self.makers = makers(model)

    def run(self) -> None:
        rich = require("rich.progress", extra="torch")
        bars = rich.Progress(transient=True)
        bars.disable = not bars.console.is_terminal
        with bars, torch.no_grad():
            self.progress = bars
            samples = self._targets_of_floats()
            self._smooth(samples)
            self._choose_bits(samples)
            if self.how.steps:
                del samples
                self._reconstruct_layers()
            else:
                self._fit_layers(samples)
            self._reconstruct_network()
            fold(self.model)

    def _steps(self, groups, description: str):
        return self.progress.track(list(groups), description=description)

    # --- targets

    def _items(self, layer: QuantLayer, items: int) -> int:
        return items if layer.weight.dim() == 2 else max(8, items // IMAGE)

    def _outputs(self, name: str, layer: QuantLayer, x: Tensor) -> Tensor:
        """What the float layer makes of float inputs, its batch norm included."""
        y = self.floats[name](x)
        return y if layer.norm is None else layer.norm(y)

    def _targets_of_floats(self) -> dict[InputQuantizer, list[Target]]:
        """Targets whose inputs are those of the float model, a few for every layer."""
        names = {name: self.floats[name] for group in self.groups.values() for name, _ in group}
        inputs = {}
        for dim in {layer.weight.dim() for layer in names.values()}:
            some = {name: layer for name, layer in names.items() if layer.weight.dim() == dim}
            count = self._items(next(iter(some.values())), self.how.items)
            inputs |= layer_inputs(self.teacher, some, self.batches, count, self.how.seed)
        return {
            quantizer: [Target(layer, inputs[name], self._outputs(name, layer, inputs[name])) for name, layer in group]
            for quantizer, group in self.groups.items()
        }

    # --- smoothing and bits

    def _smooth(self, samples: dict[InputQuantizer, list[Target]]) -> None:
        for quantizer, targets in self._steps(samples.items(), "smoothing, ranges"):
            _set_all(quantizer, *(sum(levels) // 2 for levels in (quantizer.palette, quantizer.a_palette)))
            allowed = quantizer.per_row or quantizer in self.makers
            if self.how.smooth and allowed and len(quantizer.bits) > 1:
                smooth(targets)
            else:
                start_ranges(targets)

    def _choose_bits(self, samples: dict[InputQuantizer, list[Target]]) -> None:
        learned = [quantizer for quantizer in samples if quantizer.learns]
        if not learned:
            return
        batches = self.batches[:2]
        outputs = [run(torch.no_grad(), self.teacher, batch) for batch in batches]
        choices = [
            Choice(self._gains(quantizer, samples[quantizer], batches, outputs), self._price(quantizer))
            for quantizer in self._steps(learned, "sensitivity")
        ]
        for quantizer in learned:
            _set_all(quantizer, *_levels(quantizer)[0])
        spent = self._spent(learned)
        target = self._target()
        masks = choose(choices, target - spent, self.how.block, lambda more: self._in_words(spent + more))
        for quantizer, is_high in zip(learned, masks, strict=True):
            quantizer.set_high(is_high, quantizer.palette, quantizer.a_palette)

    def _gains(
        self, quantizer: InputQuantizer, targets: list[Target], batches: list[object], outputs: list[object]
    ) -> Tensor:
        """What each channel is worth to the network's output."""
        levels = _levels(quantizer)
        gains = channel_gains(targets, *levels).clamp(min=0)
        swaps = {self.floats[name]: layer for name, layer in self.groups[quantizer]}
        lost = []
        for level in levels:
            _set_all(quantizer, *level)
            lost.append(damage(self.teacher, swaps, batches, outputs))
        return gains * (max(lost[0] - lost[1], 0.0) / max(float(gains.sum()), 1e-300))

    # --- what it costs

    def _price(self, quantizer: InputQuantizer) -> float:
        """What one channel more at the high level costs, in the unit of the budget (bits for all but time)."""
        low, high = _levels(quantizer)
        if self.how.unit == "milliseconds":
            return self._milliseconds(quantizer, high) - self._milliseconds(quantizer, low)
        return (high[0] - low[0]) * self._weights(quantizer)

    def _weights(self, quantizer: InputQuantizer) -> int:
        return sum([layer.weights_per_channel * layer.spread for layer in quantizer.readers])

    def _milliseconds(self, quantizer: InputQuantizer, bits: Pair) -> float:
        """Of one channel's products for one sample."""
        each = [
            layer.weights_per_channel * layer.spread * layer.rows
            * product_ns(*bits, len(layer.weight) // layer.groups, layer.rows)
            for layer in quantizer.readers
        ]  # fmt: skip
        return sum(each) / 1e6

    def _spent(self, learned: list[InputQuantizer]) -> float:
        """With every learned channel at the low level."""
        match self.how.unit:
            case "bits":
                return math.fsum(q.palette[0] * self._weights(q) * len(q.bits) for q in learned)
            case "milliseconds":
                return sum(self._milliseconds(q, _levels(q)[0]) * len(q.bits) for q in learned)
            case "bytes":
                return 8.0 * report(self.model).bytes
        found = report(self.model)
        return found.average_bits * sum(layer.weights for layer in found.layers)

    def _scale(self) -> float:
        """How much of what `_spent` counts one of the target's unit is."""
        match self.how.unit:
            case "bits":
                return math.fsum(self._weights(q) * len(q.bits) for q in self.groups if q.learns)
            case "network_bits":
                return float(sum(layer.weights for layer in report(self.model).layers))
        return 8.0 if self.how.unit == "bytes" else 1.0

    def _target(self) -> float:
        low, high = self.how.palette
        target = low + (high - low) / 4 if self.how.target is None else self.how.target
        return target * self._scale()

    def _in_words(self, spent: float) -> str:
        names = {"bits": "average bits", "network_bits": "average bits of the network"}
        return f"{spent / self._scale():.6g} {names.get(self.how.unit, self.how.unit)}"

    # --- training

    def _fit_layers(self, samples: dict[InputQuantizer, list[Target]]) -> None:
        """Ranges and rounding alone: on the inputs of the float model, which are there already."""
        for quantizer, targets in self._steps(samples.items(), "ranges"):
            search_ranges(targets)
            self._round(self.groups[quantizer])

    def _reconstruct_layers(self) -> None:
        """Layer by layer, each on what the layers before it give by now."""
        batches = self.batches[:: -(-len(self.batches) // RANGE_BATCHES)]
        for group in self._steps(self.groups.values(), "reconstruction"):
            count = self._items(group[0][1], 4 * self.how.items)
            name, layer = group[0]
            x = layer_inputs(self.model, {name: layer}, batches, count, self.how.seed)[name]
            inputs = layer_inputs(self.teacher, {name: self.floats[name]}, batches, count, self.how.seed)[name]
            targets = [Target(layer, x, self._outputs(name, layer, inputs)) for name, layer in group]
            search_ranges(targets)
            self._round(group)
            with torch.enable_grad():
                reconstruct(targets, self.how.steps, self.how.seed, self.how.rate, name)

    def _round(self, group: list[tuple[str, QuantLayer]]) -> None:
        """On inputs of the float model: cheap enough for many rows. Every eighth batch is kept for the check."""
        name, layer = group[0]
        if not self.how.rounding or layer.weight.dim() > 2:
            return
        checked = self.batches[::8]
        fitted = [batch for i, batch in enumerate(self.batches) if i % 8] or self.batches
        x, unseen = (
            layer_inputs(self.teacher, {name: self.floats[name]}, batches, ROUNDING_ROWS, self.how.seed)[name]
            for batches in (fitted, checked)
        )
        for name, layer in group:
            targets = (Target(layer, each, self._outputs(name, layer, each)) for each in (x, unseen))
            round_weights(*targets)

    def _reconstruct_network(self) -> None:
        steps = self.how.network_steps
        if not steps:
            return
        with torch.no_grad():
            outputs = [run(torch.no_grad(), self.teacher, batch) for batch in self.batches]
        task = self.progress.add_task("network", total=steps)
        with torch.enable_grad():
            reconstruct_network(
                self.model, self.batches, outputs, self.how.loss, steps, self.how.network_rate,
                lambda loss: self.progress.update(task, advance=1, description=f"network, loss {loss:.4g}"),
            )  # fmt: skip


def _levels(quantizer: InputQuantizer) -> tuple[Pair, Pair]:
    """Bits of (weights, activations) at the low and at the high level."""
    (low, high), (a_low, a_high) = quantizer.palette, quantizer.a_palette
    return (low, a_low), (high, a_high)


def _set_all(quantizer: InputQuantizer, w_bits: int, a_bits: int) -> None:
    quantizer.set_bits(torch.full_like(quantizer.bits, w_bits), torch.full_like(quantizer.bits, a_bits))


def _in_order(model: nn.Module, batch: object) -> dict[InputQuantizer, list[tuple[str, QuantLayer]]]:
    """Quantized layers by the tensor they read, in the order of execution."""
    names = {layer: name for name, layer in frozen_layers(model)}
    order: list[QuantLayer] = []
    handles = [layer.register_forward_pre_hook(lambda layer, _: order.append(layer)) for layer in names]
    try:
        with frozen_modes(model):
            run(torch.no_grad(), model, batch)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[InputQuantizer, list[tuple[str, QuantLayer]]] = {}
    for layer in dict.fromkeys(order):
        groups.setdefault(layer.input, []).append((names[layer], layer))
    return groups
