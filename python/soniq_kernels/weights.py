"""Packed weights: bit planes that any machine can read, and the layer that one tier runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core, planner
from soniq_kernels._joined import JoinedGrids, join_streams, joined_grids
from soniq_kernels.activations import MAX_SCALE, MIN_SCALE, PER_ROW, check_largest_codes
from soniq_kernels.plans import Grid, Plan

MAX_ACC = 2**31 - 1
MANY_ROWS = planner.ROWS[-1]
JOINED = ("joined", "joined")


class BuiltLayer(NamedTuple):
    """A layer of the core, how long its panels took to build, and the families asked for."""

    layer: _core.Layer
    pack_seconds: float
    families: tuple[str, ...]

    @property
    def kernels(self) -> list[tuple[str, str, str]]:
        """(tier, family, form) of each segment."""
        if "joined" not in self.families or self.layer.kernels[0][1] == "depthwise":
            return self.layer.kernels
        return [(tier, "joined", form) for tier, _, form in self.layer.kernels] * len(self.families)


class PackedWeights:
    """Weights of one linear layer or convolution. Make them with `packing.pack`, `packing.quantize_weights` or `packing.load`.

    Attributes:
        plan: of the input channels. shape: (N, K), or (O, kh, kw, I / groups). groups: 1 for a linear layer.
        scale: float32 [out_channels]. bias, post_scale, post_bias: float32 [out_channels] or None.
        activation_scale: float, "per_row" or None; how float32 inputs are quantized.
        scales_at_bits, biases_at_bits: {q: float32 [out_channels]}, what to use when read at q bits.
        planes: per segment, uint8 [bits, bytes]: one dense bit stream per plane over (output, tap, channel), most
            significant plane first, bit i of a stream in byte i // 8 at position i % 8; None once they are dropped.
    """

    def __init__(
        self,
        plan: Plan,
        shape: tuple[int, ...],
        planes: list[NDArray[np.uint8]],
        scale: NDArray[np.float32],
        bias: NDArray[np.float32] | None = None,
        activation_scale: np.float32 | str | None = None,
        post_scale: NDArray[np.float32] | None = None,
        post_bias: NDArray[np.float32] | None = None,
        scales_at_bits: dict[int, NDArray[np.float32]] | None = None,
        biases_at_bits: dict[int, NDArray[np.float32]] | None = None,
    ) -> None:
        self.plan = plan
        self.shape = shape
        self.planes: list[NDArray[np.uint8]] | None = planes
        self.scale = scale
        self.bias = bias
        self.activation_scale = activation_scale
        self.post_scale = post_scale
        self.post_bias = post_bias
        self.scales_at_bits = scales_at_bits or {}
        self.biases_at_bits = biases_at_bits or {}
        # By tier, families, whether pixels are shared, and whether it reads joined codes.
        self._layers: dict[tuple[str, tuple[str, ...], bool, bool], BuiltLayer] = {}
        self._again: Callable[[], PackedWeights | None] | None = None
        self._planned: dict[tuple[str, int, bool, bool], _core.Layer] = {}  # by tier and class of rows
        self._settings: object = planner.settings  # what the plans were made under
        self._output: tuple[_core.Output, dict[str, Any]] | None = None

    # ---- sizes -----------------------------------------------------------------------------------------------------
    @property
    def out_channels(self) -> int:
        return self.shape[0]

    @property
    def groups(self) -> int:
        return self.plan.channels // self.shape[-1]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(height, width) of the taps; (1, 1) for a linear layer."""
        return (self.shape[1], self.shape[2]) if len(self.shape) == 4 else (1, 1)

    @property
    def exponent(self) -> int:
        """E: integer results count in units of 2**E."""
        return self.plan.exponent

    @property
    def nbytes(self) -> int:
        """Bytes of the portable bit planes, scales and biases."""
        vectors = [self.scale, self.bias, self.post_scale, self.post_bias]
        vectors += [*self.scales_at_bits.values(), *self.biases_at_bits.values()]
        streams = [(stream_length(self.plan, self.shape, i) + 7) // 8 for i in range(len(self.plan.segments))]
        planes = sum(s.w.bits * bytes_ for s, bytes_ in zip(self.plan.segments, streams, strict=True))
        return planes + sum(v.nbytes for v in vectors if v is not None)

    # ---- codes -----------------------------------------------------------------------------------------------------
    def codes(self) -> NDArray[np.uint8]:
        """uint8 codes, `shape`, in the original channel order."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        result = np.empty((self.out_channels, taps, self.shape[-1]), np.uint8)
        streams = _unpack_streams(self, self._portable("codes"))
        for group, parts in enumerate(_group_channels(self.plan, self.groups)):
            outputs = _outputs_of(self, group)
            for segment, part in enumerate(parts):
                count = (outputs.stop - outputs.start) * taps * part.size
                stream, streams[segment] = streams[segment][:count], streams[segment][count:]
                result[outputs, :, part] = stream.reshape(outputs.stop - outputs.start, taps, part.size)
        return result.reshape(self.shape)

    def dequantize(self) -> NDArray[np.float32]:
        """float32, `shape`: float32(level) * (2**e * scale of the output)."""
        codes, out = self.codes(), np.empty(self.shape, np.float32)
        scale = self.scale.reshape(-1, *[1] * (len(self.shape) - 1))
        for group, parts in enumerate(_group_channels(self.plan, self.groups)):
            outputs = _outputs_of(self, group)
            for s, part in zip(self.plan.segments, parts, strict=True):
                levels = s.w.levels(codes[outputs][..., part]).astype(np.float32)
                out[outputs, ..., part] = levels * (scale[outputs] * np.float32(2.0**s.w.exponent))
        return out

    def at_bits(self, bits: int, low: Any = None) -> PackedWeights:
        """The same weights at `bits` bits or fewer: the low planes dropped, scale and bias from `scales_at_bits` and
        `biases_at_bits` where given.

        low: bool [channels], the input channels to read so; None: all. The scale and the bias of an output then lie between
        those of both widths, in proportion to the channels it reads at either (float64, rounded once).

        Raises:
            ValueError: a weight grid other than bipolar without offset, whose planes do not nest; channels at more than two
                precisions; `low` of another shape.
        """
        q = _arrays.integer(bits, "bits", 1, 8)
        for s in self.plan.segments:
            if s.w.kind != "bipolar" or s.w.offset:
                raise ValueError(
                    f"at_bits needs bipolar weights without offset, this layer has {s.w}; quantize at {q} bits instead"
                )
        mask = self._low_channels(low)
        plan = self._plan_at(q, mask)
        bits_of = [np.array([s.w.bits for s in p.segments])[p.segment_of()] for p in (self.plan, plan)]
        drop = _per_channel(self.shape, bits_of[0] - bits_of[1])
        share = np.repeat(mask.reshape(self.groups, -1).mean(axis=1), self.out_channels // self.groups)
        scale = _between(self.scale, self.scales_at_bits.get(q), share)
        bias = None if self.bias is None else _between(self.bias, self.biases_at_bits.get(q), share)
        return pack(
            self.codes() >> drop, plan, scale, bias, self.activation_scale, self.post_scale, self.post_bias,
            self.scales_at_bits, self.biases_at_bits,
        )  # fmt: skip

    def _low_channels(self, low: Any) -> NDArray[np.bool_]:
        mask = np.ones(self.plan.channels, bool) if low is None else np.asarray(low)
        if mask.dtype != bool or mask.shape != (self.plan.channels,):
            raise ValueError(
                f"low is {mask.dtype} {list(mask.shape)}, expected bool [{self.plan.channels}], one a channel"
            )
        return mask

    def _plan_at(self, q: int, low: NDArray[np.bool_]) -> Plan:
        """The plan with the weights of the channels `low` at q bits or fewer."""
        segments = self.plan.segments
        fewer = [(Grid("bipolar", min(q, s.w.bits), 0, s.w.shift), s.a) for s in segments]
        each = [fewer[i] if is_low else (segments[i].w, segments[i].a)
                for i, is_low in zip(self.plan.segment_of(), low, strict=True)]  # fmt: skip
        grids = list(dict.fromkeys(each))
        if len(grids) > 2:
            raise ValueError(
                f"reading some channels at {q} bits gives {len(grids)} precisions, a layer has at most two; read all of them so"
            )
        return Plan.of_segments([grids.index(pair) for pair in each], grids)

    # ---- files -----------------------------------------------------------------------------------------------------
    def to_tensors(self) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        """(tensors, metadata) of the portable format, for a file that holds more than this layer. docs/format.md."""
        from soniq_kernels import _files

        return _files.to_tensors(self)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file that any machine can load. docs/format.md."""
        from soniq_kernels import _files

        _files.save(self, path)

    def drop_portable(self, again: Callable[[], PackedWeights | None] | None = None) -> None:
        """Frees the portable copy; `codes`, `at_bits` and `save` then refuse.

        Panels that are built stay, and the planner chooses among them from then on. If the active tier has none, those for
        many rows are built; call `layer(1)` before to keep those for single rows as well, and `layer(dilation=2)` those for
        dilation along lines. again: gives the same weights once more, from where they came; panels are then built as they are
        needed, and nothing refuses.
        """
        self._again = again
        if again is None and not self._kept(_core.active_tier()):
            self.layer()
        self.planes = None

    def drop_portable_when_built(self, again: Callable[[], PackedWeights | None]) -> None:
        """As `drop_portable(again)`, but with the first panels that are built from now on: until then nothing is read again."""
        self._again = again

    def _portable(self, wanted: str) -> list[NDArray[np.uint8]]:
        if self.planes is not None:
            return self.planes
        same = self._again() if self._again is not None else None
        if same is None or same.planes is None:
            raise ValueError(
                f"{wanted} needs the portable copy, which drop_portable() freed or whose file was overwritten; load the file again"
            )
        return same.planes

    # ---- GPUs ------------------------------------------------------------------------------------------------------
    def to(self, device: Any = "cuda") -> Any:
        """The layer on a GPU, `triton_kernels.DeviceWeights`; docs/gpu.md. Needs torch and triton."""
        from soniq_kernels.triton_kernels import to_device

        return to_device(self, device)

    # ---- running ---------------------------------------------------------------------------------------------------
    def layer(self, rows: int = MANY_ROWS, dilation: int = 1, stride: int = 1) -> _core.Layer:
        """The active tier's layer for a call of so many rows, chosen and built at its first use; `dilation` along lines.

        stride: 1 where 3 x 3 taps are one apart, as `_layers.places_of` says.
        """
        if self._settings is not planner.settings:
            self._planned, self._settings = {}, planner.settings
        planned, key = self._planned, (_core.active_tier(), planner.rows_class(rows), dilation == 1, stride == 1)
        layer = planned.get(key)
        if layer is None:
            layer = planned[key] = self.built(rows, dilation, stride).layer
        return layer

    def built(self, rows: int = MANY_ROWS, dilation: int = 1, stride: int = 1) -> BuiltLayer:
        """What `layer` gives, with the time that building it took."""
        families = tuple(choice.family for choice in self.choices(rows, dilation, stride))
        return self.built_of(_core.active_tier(), families, self._shares_pixels(dilation))

    def _shares_pixels(self, dilation: int) -> bool:
        """Whether pixels are prepared once for all taps; taps must read neighbours."""
        return dilation == 1 and self.groups == 1 and self.kernel_size != (1, 1)

    def choices(self, rows: int = MANY_ROWS, dilation: int = 1, stride: int = 1) -> tuple[planner.Choice, ...]:
        """What multiplies each segment on the active tier, and why; empty where there is one way only."""
        tier, n, k = _core.active_tier(), self.out_channels // self.groups, self.k_of_segments()
        taps = math.prod(self.kernel_size) if self._shares_pixels(dilation) else 1
        if not _core.candidates(tier, 8, 8) or self._is_depthwise():
            return ()
        grids = self.joined_grids
        widths = [(s.w.bits, s.a.bits) for s in self.plan.segments]
        neighbours = stride == 1 and self.kernel_size == (3, 3) and self._shares_pixels(dilation)
        wanted = planner.choose_segments(tier, widths, rows, n, k, taps, grids.widths if grids else None, neighbours)
        kept = self._kept(tier)
        if self.planes is not None or self._again is not None or not kept or tuple(c.family for c in wanted) in kept:
            return wanted
        best = min(kept, key=lambda families: sum(c.estimates[f] for c, f in zip(wanted, families, strict=True)))
        kernels = next(b for (t, f, *_), b in self._layers.items() if (t, f) == (tier, best)).kernels
        return tuple(c.kept(family, kernel) for c, (kernel, family, _) in zip(wanted, kernels, strict=True))

    @cached_property
    def joined_grids(self) -> JoinedGrids | None:
        """The grids of both segments as one; None where they are not to be had. Groups have their channels in two places, but for
        those of one channel."""
        return joined_grids(self.plan) if self.groups == 1 or self._is_depthwise() else None

    def joined(self, dilation: int = 1) -> BuiltLayer:
        """The active tier's layer that reads `JoinedActivations`."""
        return self.built_of(_core.active_tier(), JOINED, self._shares_pixels(dilation), True)

    def joining_cost(self, rows: int, dilation: int = 1, stride: int = 1) -> float | None:
        """Nanoseconds that a layer takes more (less, if negative) with joined codes than with two segments; None if it cannot,
        or another family is forced."""
        can_be_built = self.planes is not None or self._again is not None
        if self.joined_grids is None or not can_be_built or planner.settings.forced not in (None, "joined"):
            return None
        choices = self.choices(rows, dilation, stride)
        if not choices and not (self._is_depthwise() and _core.candidates(_core.active_tier(), 8, 8)):
            return None
        if planner.settings.forced is not None:
            return -math.inf
        return planner.joining_ns(choices, rows, self.out_channels) if choices else 0.0

    def built_of(
        self, tier: str, families: tuple[str, ...], share_pixels: bool = False, reads_joined: bool = False
    ) -> BuiltLayer:
        """The layer of a tier with these kernel families, one a segment, built at its first use; () if it has one way."""
        key = tier, families, share_pixels, reads_joined
        if key not in self._layers:
            planes = self._portable("this dilation" if self._kept(tier) else f"the tier {tier}")
            began = time.perf_counter()
            streams = _unpack_streams(self, planes)
            shape = self.out_channels, self.groups, *self.kernel_size, self.plan.channels
            if families == JOINED:
                segments, streams, joins = self._as_one_segment(streams, reads_joined)
                layer = _core.Layer(*shape, segments, streams, tier, ["dot"], share_pixels, joins)
            else:
                segments = [_segment_tuple(self.plan, i, self.groups) for i in range(len(self.plan.segments))]
                layer = _core.Layer(*shape, segments, streams, tier, list(families), share_pixels)
            self._layers[key] = BuiltLayer(layer, time.perf_counter() - began, families)
            if self._again is not None:
                self.planes = None
        return self._layers[key]

    def _as_one_segment(
        self, streams: list[NDArray[np.uint8]], reads_joined: bool
    ) -> tuple[list[Any], list[NDArray[np.uint8]], list[tuple[int, int, int, int]]]:
        """The one segment of a joined layer, its codes, and the maps that join a tensor's: (first channel, channels, shift, add)."""
        grids = self.joined_grids
        assert grids is not None
        starts = np.linspace(0, self.plan.channels, self.groups + 1, dtype=int).tolist()
        segment = grids.w.core, grids.a.core, starts
        stream = join_streams(streams, grids.w, self.shape)
        if reads_joined:  # in the original order
            ordered = stream[self.plan.position] if self._is_depthwise() else stream[:, self.plan.position]
            return [segment], [np.ascontiguousarray(ordered).ravel()], []
        parts = zip(self.plan.first_channels, self.plan.segments, grids.a.maps, strict=True)
        return [segment], [stream.ravel()], [(first, s.channels, *code_map) for first, s, code_map in parts]

    def _kept(self, tier: str) -> list[tuple[str, ...]]:
        """The families of a tier whose panels are there, for codes in stored order."""
        return [families for built_tier, families, _, joined in list(self._layers) if built_tier == tier and not joined]

    def _is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.plan.channels == self.out_channels

    def k_of_segments(self) -> list[float]:
        """K of each segment in a group, on average over the groups."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        return [taps * s.channels / self.groups for s in self.plan.segments]

    def output(self) -> _core.Output:
        """What the core does with the integers as far as this layer decides it: a copy that the caller completes."""
        parts = {
            "w_scale": self.scale, "bias": self.bias, "post_scale": self.post_scale, "post_bias": self.post_bias
        }  # fmt: skip
        if self._output is None or any(self._output[1][name] is not part for name, part in parts.items()):
            output = _core.Output()
            output.unit = 2.0**self.exponent
            for name, part in parts.items():
                setattr(output, name, part)
            self._output = output, parts
        return _core.Output(self._output[0])

    def __getstate__(self) -> dict[str, Any]:
        planes = self._portable("pickling")
        return {
            **self.__dict__,
            "planes": planes,
            "_again": None,
            "_layers": {},
            "_planned": {},
            "_settings": None,
            "_output": None,
        }

    def __repr__(self) -> str:
        return f"PackedWeights{self.shape}, {self.plan}"


# ---- making --------------------------------------------------------------------------------------------------------
def pack(
    codes: Any,
    plan: Plan,
    scale: Any,
    bias: Any = None,
    activation_scale: Any = None,
    post_scale: Any = None,
    post_bias: Any = None,
    scales_at_bits: dict[int, Any] | None = None,
    biases_at_bits: dict[int, Any] | None = None,
) -> PackedWeights:
    """Packs weight codes.

    Args:
        codes: uint8 [N, K] or OHWI [O, kh, kw, I / groups], original channel order; groups = plan.channels / last axis.
        plan: of the layer's input channels.
        scale: float32 [N] (or one float): a weight is level * 2**e * scale. Any sign, or 0.
        bias: float32 [N], added after the scales; a batch norm is folded into `scale` and `bias`.
        activation_scale: float or "per_row", serves float32 inputs.
        post_scale, post_bias: float32 [N], a batch norm behind the activation function.
        scales_at_bits, biases_at_bits: {q: float32 [N]}, what `at_bits(q)` takes instead of `scale` and `bias`.

    Raises:
        ValueError: shapes or codes that do not fit, or a K so large that the int32 result could overflow.
    """
    array = _arrays.codes(codes, "codes")
    groups = _check_shape(array.shape, plan)
    check_largest_codes(array, per_weight(plan, array.shape, [s.w.cmax for s in plan.segments]), "codes")
    _check_bound(plan, groups, int(np.prod(array.shape[1:-1], dtype=np.int64)))
    n = array.shape[0]
    if biases_at_bits and bias is None:
        raise ValueError("biases_at_bits is given without bias; give bias too, of zeros if there is none at full width")
    return PackedWeights(
        plan,
        array.shape,
        _pack_planes(array, plan, groups),
        _weight_scale(scale, n),
        _optional_vector(bias, "bias", n),
        activation_scale_of(activation_scale),
        _optional_vector(post_scale, "post_scale", n),
        _optional_vector(post_bias, "post_bias", n),
        _vectors_at_bits(scales_at_bits, "scales_at_bits", n),
        _vectors_at_bits(biases_at_bits, "biases_at_bits", n),
    )


def quantize_weights(
    w: Any,
    plan: Plan,
    scale: Any = None,
    bias: Any = None,
    activation_scale: Any = None,
    post_scale: Any = None,
    post_bias: Any = None,
) -> PackedWeights:
    """float32 weights [N, K] or OHWI to the nearest codes, then `pack`.

    Args:
        scale: float32 [N], positive; None takes the largest |w| of each output to the edge of the widest grid.
    """
    array = _arrays.floats(w, "w")
    _check_shape(array.shape, plan)
    if not np.isfinite(array).all():
        raise ValueError("w has non-finite values; every weight must be a finite float32")
    n = array.shape[0]
    scale = _default_weight_scale(array, plan) if scale is None else _weight_scale(scale, n)
    if not ((scale >= MIN_SCALE) & (scale <= MAX_SCALE)).all():
        raise ValueError(
            "scale must lie in [2**-100, 2**100] to quantize weights; fold a negative or zero scale after packing"
        )
    segments = plan.segments
    numerator, z, cmax = (
        per_weight(plan, array.shape, values).astype(np.float32)
        for values in ([s.w.r_numerator for s in segments], [s.w.z for s in segments], [s.w.cmax for s in segments])
    )
    r = numerator / scale.reshape(-1, *[1] * (array.ndim - 1))
    with np.errstate(over="ignore"):  # far outside the range is the largest code, like everything above it
        codes = np.clip(array * r + z, np.float32(0), cmax).astype(np.uint8)  # NumPy rounds the product, then the sum
    return pack(codes, plan, scale, bias, activation_scale, post_scale, post_bias)


def activation_scale_of(value: Any) -> np.float32 | str | None:
    """A float32 in the contract's range, "per_row" or None."""
    if value is None or (isinstance(value, str) and value == PER_ROW):
        return value
    if isinstance(value, (str, bool)) or np.ndim(value) != 0:
        raise TypeError(f'activation_scale is {value!r}, expected a float, "per_row" or None')
    scale = np.float32(value)
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise ValueError(f"activation_scale is {value}, expected a float in [2**-100, 2**100]")
    return scale


def _default_weight_scale(w: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    grid = max((s.w for s in plan.segments), key=lambda g: (g.bits, g.max_level * 2.0**g.exponent))
    largest = np.abs(w).reshape(w.shape[0], -1).max(axis=1)
    edge = np.float32(2 if grid.kind == "bipolar" else grid.max_level * 2.0**grid.exponent)
    if edge <= 0:
        raise ValueError(f"{grid} has no level above 0, so no default scale fits it; give a scale")
    return np.where(largest > 0, np.clip(largest / edge, MIN_SCALE, MAX_SCALE), np.float32(1))


# ---- checks --------------------------------------------------------------------------------------------------------
def _check_shape(shape: tuple[int, ...], plan: Plan) -> int:
    """The number of groups."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}, expected a packing.Plan")
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(
            f"weights have shape {shape}, expected [N, K] or OHWI [O, kh, kw, I / groups] without empty axes"
        )
    if len(shape) == 2 and shape[1] != plan.channels:
        raise ValueError(
            f"weights have {shape[1]} input channels (shape {shape}) but the plan has {plan.channels}; "
            f"make the plan with {shape[1]} channels"
        )
    if plan.channels % shape[-1] or shape[0] % (plan.channels // shape[-1]):
        raise ValueError(
            f"weights of shape {shape} do not divide a plan of {plan.channels} channels into groups: the plan's channels must "
            f"be a multiple of {shape[-1]}, and the outputs {shape[0]} a multiple of the groups"
        )
    return plan.channels // shape[-1]


def _check_bound(plan: Plan, groups: int, taps: int) -> None:
    """The integer result must fit int32 for every input: refused before anything could wrap."""
    index = plan.segment_of().reshape(groups, -1)
    for group in range(groups):
        counts = [taps * int((index[group] == i).sum()) for i in range(len(plan.segments))]
        per_k = [2 ** (s.exponent - plan.exponent) * s.w.max_magnitude * s.a.max_magnitude for s in plan.segments]
        if sum(k * m for k, m in zip(counts, per_k, strict=True)) > MAX_ACC:
            parts = [
                f"K = {k} at w_bits = {s.w.bits}, a_bits = {s.a.bits} (largest alone: {MAX_ACC // m})"
                for k, m, s in zip(counts, per_k, plan.segments, strict=True)
                if k
            ]
            raise ValueError(
                f"K = {sum(counts)} is too large, the int32 result could overflow: {' and '.join(parts)}; use fewer bits "
                f"or split the layer's channels"
            )


def check_packed(packed: PackedWeights) -> None:
    """What a file cannot show by shapes alone: groups, the int32 bound, codes within their grid, finite vectors."""
    groups = _check_shape(packed.shape, packed.plan)
    _check_bound(packed.plan, groups, packed.kernel_size[0] * packed.kernel_size[1])
    for s, stream in zip(packed.plan.segments, _unpack_streams(packed, packed._portable("checking")), strict=True):
        if s.w.cmax < 2**s.w.bits - 1 and stream.max(initial=0) > s.w.cmax:
            raise ValueError(f"weights have code {stream.max()}, above {s.w.cmax}, the largest of the {s.w.kind} grid")
    for name, vector in [("scale", packed.scale), ("bias", packed.bias), ("post_scale", packed.post_scale),
                         ("post_bias", packed.post_bias), *packed.scales_at_bits.items(),
                         *packed.biases_at_bits.items()]:  # fmt: skip
        if vector is not None and not np.isfinite(vector).all():
            raise ValueError(f"{name} has non-finite values")


def _weight_scale(scale: Any, n: int) -> NDArray[np.float32]:
    return _arrays.float_vector(scale, "scale", n)


def _optional_vector(x: Any, name: str, n: int) -> NDArray[np.float32] | None:
    return None if x is None else _arrays.float_vector(x, name, n)


def _vectors_at_bits(vectors: Any, name: str, n: int) -> dict[int, NDArray[np.float32]]:
    if not isinstance(vectors, (dict, type(None))):
        raise TypeError(f"{name} is a {type(vectors).__name__}, expected {{bits: float32 [{n}]}}")
    return {_arrays.integer(q, name, 1, 8): _arrays.float_vector(v, name, n) for q, v in (vectors or {}).items()}


def _between(
    full: NDArray[np.float32], lower: NDArray[np.float32] | None, share: NDArray[np.float64]
) -> NDArray[np.float32]:
    """A vector of outputs that read a share of their channels at the lower width."""
    if lower is None:
        return full
    return (full.astype(np.float64) * (1 - share) + lower.astype(np.float64) * share).astype(np.float32)


# ---- streams and planes --------------------------------------------------------------------------------------------
def per_weight(plan: Plan, shape: tuple[int, ...], values: list[Any]) -> NDArray[Any]:
    """One value per segment, spread over weights of `shape`: [N or 1, 1.., I / groups], which broadcasts."""
    return _per_channel(shape, np.array(values)[plan.segment_of()])


def _per_channel(shape: tuple[int, ...], values: NDArray[Any]) -> NDArray[Any]:
    """One value per input channel, spread likewise."""
    by_group = values.reshape(-1, shape[-1])
    each = 1 if len(by_group) == 1 else shape[0] // len(by_group)
    return np.repeat(by_group, each, axis=0).reshape(-1, *[1] * (len(shape) - 2), shape[-1])


def _group_channels(plan: Plan, groups: int) -> list[list[NDArray[np.int64]]]:
    """[group][segment]: the channels of the segment, relative to the group."""
    index = plan.segment_of().reshape(groups, -1)
    return [[np.flatnonzero(row == i) for i in range(len(plan.segments))] for row in index]


def _outputs_of(packed: PackedWeights, group: int) -> slice:
    per_group = packed.out_channels // packed.groups
    return slice(group * per_group, (group + 1) * per_group)


def _pack_planes(codes: NDArray[np.uint8], plan: Plan, groups: int) -> list[NDArray[np.uint8]]:
    n, channels = codes.shape[0], codes.shape[-1]
    rows = codes.reshape(groups, n // groups, -1, channels)
    planes = []
    parts = _group_channels(plan, groups)
    for i, s in enumerate(plan.segments):
        stream = np.concatenate([rows[g][:, :, p[i]].ravel() for g, p in enumerate(parts)])
        planes.append(np.stack([np.packbits((stream >> b) & 1, bitorder="little") for b in reversed(range(s.w.bits))]))
    return planes


def stream_length(plan: Plan, shape: tuple[int, ...], segment: int) -> int:
    """Codes in one segment of weights of `shape`."""
    taps = int(np.prod(shape[1:-1], dtype=np.int64))
    groups = plan.channels // shape[-1]
    return plan.segments[segment].channels * taps * (shape[0] // groups)


# Codes that are unpacked at once: they stay in the cache while plane by plane is added, and no second copy of all is needed.
_UNPACKED_AT_ONCE = 2**16


def _unpack_streams(packed: PackedWeights, portable: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """uint8 codes of each segment, [output][tap][channel of the output's group]."""
    streams = []
    for i, planes in enumerate(portable):
        count = stream_length(packed.plan, packed.shape, i)
        stream: NDArray[np.uint8] = np.zeros(count, np.uint8)
        for first in range(0, count, _UNPACKED_AT_ONCE):
            part = stream[first : first + _UNPACKED_AT_ONCE]
            for plane in planes:
                bits = plane[first // 8 : (first + _UNPACKED_AT_ONCE) // 8]
                np.left_shift(part, 1, out=part)
                np.bitwise_or(part, np.unpackbits(bits, count=len(part), bitorder="little"), out=part)
        streams.append(stream)
    return streams


def _segment_tuple(plan: Plan, segment: int, groups: int) -> Any:
    s = plan.segments[segment]
    counts = (plan.segment_of().reshape(groups, -1) == segment).sum(axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return _grid_tuple(s.w), _grid_tuple(s.a), [int(v) for v in starts]


def _grid_tuple(g: Grid) -> tuple[int, int, int, int]:
    return g.bits, g.alpha, g.beta, g.exponent
