"""One call of a layer: from checked arguments to the pointers that the core reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core
from soniq_kernels._joined import JoinedActivations
from soniq_kernels.activations import (
    MAX_SCALE,
    MIN_SCALE,
    Activations,
    refuse_not_finite,
    require_finite,
    scales_of,
)
from soniq_kernels.planner import Choice
from soniq_kernels.plans import Plan
from soniq_kernels.tensors import Codes
from soniq_kernels.weights import PackedWeights

MAX_SINKS = 4  # tensors of codes that one pass writes
_ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "hardtanh": 3}


@dataclass(frozen=True)
class Explanation:
    """Which kernel runs, and why.

    Attributes:
        isa: the active tier. kernel_isa: the tier whose kernel serves it. family: "dot", "popcount", "lut", "lut5", "lut6", "joined", "depthwise" or
        "reference". kernel: "isa.family.variant". Two segments of different kernels are joined by " + ". tile: (rows, columns) of the inner loop. panel_bytes: of the built weights.
        threads: at most this many. reason: one sentence a segment. pack_seconds: what building the panels took, once.
        segments: the planner's choice for each of them, with the estimates of all families; empty where there is one way only.
    """

    isa: str
    kernel_isa: str
    family: str
    kernel: str
    tile: tuple[int, int]
    panel_bytes: int
    threads: int
    reason: str
    pack_seconds: float
    segments: tuple[Choice, ...]

    def __str__(self) -> str:
        panels = f"{self.panel_bytes:,} bytes of panels, built in {self.pack_seconds * 1e3:.3g} ms"
        return f"{self.kernel}, tile {self.tile[0]} x {self.tile[1]}, {self.threads} threads, {panels}: {self.reason}"


def explain(x: Any, packed: PackedWeights) -> Explanation:
    """Which kernel serves this product, and why; the layer is built if it was not yet.

    Args:
        x: what the call would get; its rows count. For a convolution they are its pixels, as with stride 1 and "same"
            padding: `conv.explain` knows better.
    """
    require_packed(packed)
    shape = x.shape if isinstance(x, Activations) else _arrays.as_numpy(x, "x").shape
    return explain_rows(x, packed, math.prod(shape[:-1]))


def explain_rows(
    x: Any, packed: PackedWeights, rows: int, image: _core.Geometry | None = None, pools: bool = False
) -> Explanation:
    """The explanation of a call with so many output rows, of a convolution of `image` where that is known; `pools`: which writes what a
    max pooling leaves."""
    if isinstance(x, Activations):
        _require_same_plan(x, packed)
    place = places_of(image) if image is not None else (1, 1)
    built, choices = packed.built(rows, *place), packed.choices(rows, *place)
    layer, kernels = built.layer, list(dict.fromkeys(built.kernels))
    tiers, families = (" + ".join(dict.fromkeys(k[i] for k in kernels)) for i in (0, 1))
    why = [c.reason for c in choices] + [_reason(layer.tier, tier, family) for tier, family, _ in kernels]
    kernel = " + ".join(".".join(filter(None, k)) for k in kernels)
    if image is not None and not pools and layer.takes_winograd(image):
        kernel, why = f"{kernel}, {WINOGRAD}", [*why, _WHAT[WINOGRAD]]
    return Explanation(
        _core.active_tier(), tiers, families, kernel, layer.tile,
        layer.panel_bytes, _core.get_num_threads(), "; ".join(dict.fromkeys(why)), built.pack_seconds, choices,
    )  # fmt: skip


def places_of(image: _core.Geometry) -> tuple[int, int]:
    """(dilation, stride) as the planner wants them: along the lines, and the larger one, of a convolution whose taps read neighbours."""
    return image.dilation_w, max(image.stride_h, image.stride_w, image.dilation_h)


WINOGRAD = "winograd"
_WHAT = {
    "reference": "the reference tier was asked for: plain loops, the definition of right",
    "dot": "dot unpacks weights to bytes and multiplies them by byte dot products",
    "popcount": "popcount multiplies bit planes by AND and counts",
    "lut": "lut looks up exact sums of activations by four weight bits at a time",
    "lut5": "lut5 looks up exact sums of activations by five weight bits at a time",
    "lut6": "lut6 looks up exact sums of activations by six weight bits at a time",
    "joined": "both segments are one of wider codes, which dot multiplies",
    WINOGRAD: "winograd multiplies 16 times for 2 x 2 outputs of 3 x 3 taps, in place of 36 times: what it makes of few bits fits bytes",
    "depthwise": "one output per input channel, so lanes are channels",
}


def _reason(asked: str, tier: str, family: str) -> str:
    if tier == asked:
        return _WHAT[family]
    return f"{_WHAT[family]} ({asked} has no {family} kernel of its own and uses that of {tier})"


def require_packed(packed: Any) -> None:
    if not isinstance(packed, PackedWeights):
        raise TypeError(
            f"packed is a {type(packed).__name__}, expected packing.PackedWeights; make it with packing.quantize_weights"
        )


class Floats(NamedTuple):
    """float32 [..., channels], C-contiguous, that a call quantizes on its way in, with these scales."""

    array: NDArray[np.float32]
    scale: NDArray[np.float32]
    check_finite: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


def operand(x: Any, packed: PackedWeights, check_finite: bool) -> Activations | Floats:
    """`x` as `packed` can read it: codes of its plan, or floats with the scales that make them codes."""
    require_packed(packed)
    if isinstance(x, Activations):
        _require_same_plan(x, packed)
        return x
    if packed.activation_scale is None:
        raise ValueError(
            "x is not quantized and the packed weights have no activation_scale; pass packing.quantize_activations(x, "
            'packed.plan, scale), or pack with activation_scale="per_row"'
        )
    array = _arrays.floats(x, "x")
    if array.ndim < 1 or array.shape[-1] != packed.plan.channels:
        got = array.shape[-1] if array.ndim else 0
        raise ValueError(
            f"x has {got} channels (shape {array.shape}) but the packed weights have {packed.plan.channels}; pad x or "
            f"repack the weights"
        )
    return Floats(array, scales_of(array, packed.plan, packed.activation_scale), check_finite)


def _require_same_plan(x: Activations, packed: PackedWeights) -> None:
    if x.plan.channels != packed.plan.channels:
        raise ValueError(
            f"x has {x.plan.channels} channels but the packed weights have {packed.plan.channels}; pad x or repack the weights"
        )
    if not x.plan.same_activations(packed.plan):
        raise ValueError(
            f"x was quantized for {x.plan} but the weights are packed for {packed.plan}; quantize x with packed.plan"
        )


class Call:
    """Builds the core's Output and keeps the arrays it points to alive until the call is over."""

    def __init__(self, x: Activations | Floats, packed: PackedWeights, shape: tuple[int, ...]) -> None:
        self.x, self.packed, self.shape = x, packed, shape
        self.rows = math.prod(shape[:-1])
        self.output = packed.output()
        self._keep: list[Any] = []

    def run(self, geometry: _core.Geometry) -> None:
        x, layer = self.x, self._layer(geometry)
        if isinstance(x, Activations):
            layer.run(x.stored, geometry, self.output)
            return
        finite = layer.run_floats(self.packed.plan.quantizer, x.array, x.scale, geometry, self.output)
        if x.check_finite and not finite:
            refuse_not_finite(x.array, "x")

    def ready(self, geometry: _core.Geometry) -> Callable[[], None]:
        """`run`, for as long as this object lives; of codes, with the layer that is chosen now."""
        if not isinstance(self.x, Activations):
            return partial(self.run, geometry)
        return partial(self._layer(geometry).run, self.x.stored, geometry, self.output)

    def _layer(self, geometry: _core.Geometry) -> _core.Layer:
        dilation = geometry.dilation_w
        if isinstance(self.x, JoinedActivations):
            return self.packed.joined(dilation).layer
        return self.packed.layer(self.rows, *places_of(geometry))

    def _point(self, name: str, array: NDArray[Any]) -> None:
        self._keep.append(array)
        setattr(self.output, name, array)

    def integers(self) -> NDArray[np.int32]:
        acc = np.empty(self.shape, np.int32)
        self._point("acc", acc)
        return acc

    def results(self, tensors: list[Any]) -> None:
        """Where the call writes: float32 arrays and Activations of its shape."""
        results = results_in(tensors)
        self._keep.append(results)
        self.output.results = results

    def scales(self) -> None:
        self._point("activation_scale", self.x.scale)
        self.output.rows_per_scale = max(1, self.rows // max(1, self.x.scale.size))

    def residual(self, residual: Any, check_finite: bool) -> None:
        if residual is None:
            return
        if isinstance(residual, Activations):
            return self._residual_codes(residual)
        array = _arrays.floats(residual, "residual")
        _require_shape(array.shape, self.shape)
        if check_finite:
            require_finite(array, "residual")
        self._point("residual", array)

    def _residual_codes(self, residual: Activations) -> None:
        _require_shape(residual.shape, self.shape)
        codes = codes_in(residual, self.rows)
        self._keep.append(codes)
        self.output.residual_codes = codes

    def activation(self, activation: Any) -> None:
        self.output.activation, self.output.lo, self.output.hi = activation_of(activation)


def codes_in(x: Activations, rows: int) -> _core.CodesIn:
    """`x` as the core reads it in an operation on `rows` rows."""
    one = np.float32(x.scale if x.scale.ndim == 0 else 1)  # values are read with `scales`
    return _core.CodesIn(x.stored, x.tensor_format(one), x.scale, max(1, rows // max(1, x.scale.size)))


def new_tensors(shape: tuple[int, ...], outs: list[Codes | None]) -> list[Any]:
    """Empty tensors of `shape`: Activations for codes, and one float32 array for every None."""
    y = np.empty(shape, np.float32) if None in outs else None
    return [y if out is None else Activations(np.empty(shape, np.uint8), out.plan, out.scale) for out in outs]


def results_in(tensors: list[Any]) -> _core.Results:
    """How the core fills these tensors; only one of them may be float32."""
    sinks = [(t.stored, t.tensor_format(np.float32(t.scale))) for t in tensors if isinstance(t, Activations)]
    floats = [t for t in tensors if not isinstance(t, Activations)]
    return _core.Results(floats[0] if floats else None, sinks)


def activation_of(activation: Any) -> tuple[int, float, float]:
    """(kind, low, high) of an activation function, as the core numbers them.

    Raises:
        ValueError, TypeError: no such function, or its bounds make no sense.
    """
    if not isinstance(activation, (tuple, list)):
        if activation == "hardtanh" or (activation is not None and activation not in _ACTIVATIONS):
            raise ValueError(f'activation is {activation!r}, expected None, "relu", "relu6" or ("hardtanh", low, high)')
        return _ACTIVATIONS[activation], 0.0, 0.0
    if len(activation) != 3 or activation[0] != "hardtanh":
        raise ValueError(f'activation is {activation!r}, expected ("hardtanh", low, high)')
    if not all(isinstance(v, (int, float, np.integer, np.floating)) for v in activation[1:]):
        raise TypeError(f"hardtanh has bounds {activation[1:]!r}, expected two numbers")
    low, high = float(activation[1]), float(activation[2])
    if not low <= high:
        raise ValueError(f"hardtanh has low {low} and high {high}, expected low <= high")
    return _ACTIVATIONS["hardtanh"], low, high


def finish(call: Call, geometry: _core.Geometry, residual: Any, activation: Any, out: Any, check_finite: bool) -> Any:
    """Runs the call with its epilogue: float32, Activations where `out` is (plan, scale), or a list of these."""
    tensors = new_tensors(call.shape, outputs_of(out, call.shape[-1]))
    prepare(call, residual, activation, tensors, check_finite)
    call.run(geometry)
    return tensors if isinstance(out, list) else tensors[0]


def prepare(call: Call, residual: Any, activation: Any, tensors: list[Any], check_finite: bool) -> None:
    """Everything that the epilogue of a call needs; it may then run any number of times on what its arrays hold."""
    call.scales()
    call.residual(residual, check_finite)
    call.activation(activation)
    call.results(tensors)


def outputs_of(out: Any, channels: int) -> list[Codes | None]:
    """What `out=` names, as a list: None for float32, (plan, scale) for codes; checked against the channels."""
    if not isinstance(out, list):
        return [_output_codes(out, channels)]
    outs = [_output_codes(one, channels) for one in out]
    codes = sum(one is not None for one in outs)
    if not outs or codes > MAX_SINKS:
        raise ValueError(
            f"out lists {codes} tensors of codes and {len(outs)} tensors, expected one at least and {MAX_SINKS} of codes at most"
        )
    return outs


def _output_codes(out: Any, channels: int) -> Codes | None:
    if out is None:
        return None
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], Plan):
        raise TypeError(f"out is {out!r}, expected (plan, scale) of the next layer, None, or a list of these")
    plan, scale = out
    if isinstance(scale, str):
        raise ValueError(f"out has scale {scale!r}; codes as output need a fixed scale, a float")
    if plan.channels != channels:
        raise ValueError(f"out names a plan of {plan.channels} channels but this operation has {channels} outputs")
    if np.ndim(scale) != 0 or not MIN_SCALE <= np.float32(scale) <= MAX_SCALE:
        raise ValueError(f"out has scale {scale!r}, expected one float in [2**-100, 2**100]")
    return Codes(plan, np.float32(scale))


def _require_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(f"residual has shape {got}, expected {expected}, the shape of the output")
