"""A network made ready for inputs of one shape: every tensor has its place in one block of memory, every call its pointers.

A tensor's place is free again after its last reader, so the block is as large as what lives at one time. Running is then a list
of calls into the core, a few microseconds of Python each.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from soniq_kernels import _arrays, _core, conv, ops
from soniq_kernels._joined import JoinedActivations
from soniq_kernels._joined_tensors import joined_tensors
from soniq_kernels._layers import WINOGRAD, Call, codes_in, explain_rows, operand, places_of, prepare, results_in
from soniq_kernels._network_checks import in_words
from soniq_kernels._pooled import pooled
from soniq_kernels.activations import Activations, refuse_not_finite
from soniq_kernels.tensors import Codes
from soniq_kernels.weights import PackedWeights

if TYPE_CHECKING:
    from soniq_kernels.network import Network, Node

Shape = tuple[int, ...]
ALIGNMENT = 64
MOST_VALUES = 2**33  # of a tensor: more is a mistake, or a file that means harm


class Step(NamedTuple):
    """One node, ready to run, and what is known about it."""

    node: Node
    run: Callable[[], object]
    shape: Shape  # of its first result, before it is pooled
    products: int  # multiplications of codes, 0 where there is no layer
    packed: PackedWeights | None = None
    place: _core.Geometry | None = None  # of a layer
    reads_joined: bool = False
    call: Call | None = None  # of a layer whose scales are known; keeps what the core has pointers to
    pools: bool = False  # and writes what a max pooling leaves

    @property
    def places(self) -> tuple[int, int]:
        """(dilation, stride), as the planner wants them."""
        return places_of(self.place) if self.place is not None else (1, 1)


class _PoolingError(Exception):
    """Says itself which node it is about."""


class Program:
    """A network for inputs of these shapes on the active tier.

    Attributes:
        steps: in order. nbytes: of all tensors together.
    """

    def __init__(self, net: Network, shapes: Sequence[Shape]) -> None:
        self._lock = threading.Lock()  # tensors are shared by all runs
        net, self._numbers, self._poolings = pooled(net)
        self._net = net
        self._shapes: dict[str, Shape] = dict(zip(net.inputs, shapes, strict=True))
        self._pool_tasks: dict[str, _core.PoolTask] = {}  # by the first tensor that a convolution writes
        self._unpooled: dict[str, Shape] = {}
        geometry = [self._infer(i, node) for i, node in enumerate(net.nodes)]
        places = {id(node): place for node, place in zip(net.nodes, geometry, strict=True)}
        self._joined = joined_tensors(net, self._shapes, lambda node: self._joining_cost(node, places[id(node)]))
        self._places, self.nbytes = _places(net, self._shapes)
        self._block = np.empty(self.nbytes + ALIGNMENT, np.uint8)
        self._base = -self._block.ctypes.data % ALIGNMENT
        self._tensors: dict[str, Any] = {}
        calls = [self._bind(i, node, geometry[i]) for i, node in enumerate(net.nodes)]
        self._build(calls)
        self.steps = [self._ready(step, place) for step, place in zip(calls, geometry, strict=True)]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs, as copies, of the inputs: float32 arrays and Activations."""
        with self.entered(values):
            for step in self.steps:
                step.run()
            return [_copy(self._tensor(name)) for name in self._net.outputs]

    @contextmanager
    def entered(self, values: Sequence[Any]) -> Iterator[None]:
        """The inputs are in their places, and nobody else runs the program, until the end of the block."""
        with self._lock:
            for name, value in zip(self._net.inputs, values, strict=True):
                tensor = self._tensor(name)
                if isinstance(tensor, Activations):
                    np.copyto(tensor.stored, value.stored)
                else:
                    _arrays.fill(tensor, value)
            yield

    def _tensor(self, name: str) -> Any:
        """The tensor in its place."""
        if name not in self._tensors:
            shape, codes = self._shapes[name], self._net.tensors[name]
            begin = self._base + self._places[name]
            raw = self._block[begin : begin + _bytes(shape, codes)]
            if codes is None:
                self._tensors[name] = raw.view(np.float32).reshape(shape)
            elif name in self._joined:
                self._tensors[name] = JoinedActivations(raw.reshape(shape), *codes, self._joined[name])
            else:
                self._tensors[name] = Activations(raw.reshape(shape), *codes)
        return self._tensors[name]

    # ---- shapes ----------------------------------------------------------------------------------------------------
    def _infer(self, index: int, node: Node) -> Any:
        """Sets the shapes of what the node writes; what its kernel has to know of places in the image."""
        try:
            shape, geometry = _SHAPES.get(node.op, _same_shape)(self._net, node, [self._shapes[n] for n in node.inputs])
            if node.outputs[0] in self._poolings:
                shape = self._infer_pooled(node.outputs[0], shape)
            for name in node.outputs:
                codes = self._net.tensors[name]
                if codes is not None and codes.plan.channels != shape[-1]:
                    raise ValueError(f"{name} is of shape {shape} and described with {codes.plan.channels} channels")
                self._shapes[name] = shape
            if node.residual is not None and self._shapes[node.residual] != shape:
                raise ValueError(f"residual has shape {self._shapes[node.residual]}, expected {shape}")
            if math.prod(shape) > MOST_VALUES:
                raise ValueError(f"its result would have shape {shape}, more than {MOST_VALUES} values")
            return geometry
        except _PoolingError as error:
            raise ValueError(str(error)) from None
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{in_words(self._numbers[index], node)}: {error}") from None

    def _infer_pooled(self, name: str, shape: Shape) -> Shape:
        number, pool = self._poolings[name]
        self._unpooled[name] = shape
        try:
            self._pool_tasks[name], after = ops.pool_task_of(shape, pool.kernel, pool.stride, pool.padding or 0)
        except (ValueError, TypeError) as error:
            raise _PoolingError(f"{in_words(number, pool)}: {error}") from None
        return after

    def _shape_of_layer(self, node: Node) -> Shape:
        """Of what a layer computes, of which a pooling may leave less."""
        return self._unpooled.get(node.outputs[0], self._shapes[node.outputs[0]])

    def _joining_cost(self, node: Node, geometry: _core.Geometry) -> float | None:
        rows = math.prod(self._shape_of_layer(node)[:-1])
        return self._net.layers[node.layer or ""].joining_cost(rows, *places_of(geometry))

    # ---- calls -----------------------------------------------------------------------------------------------------
    def _build(self, steps: Sequence[Step]) -> None:
        """The layers' panels, the largest first: the others fit into the memory that it needed on the way."""
        layers = [(step.packed, step) for step in steps if step.packed is not None]
        for packed, step in sorted(layers, key=lambda each: -each[0].nbytes):
            packed.joined(step.places[0]) if step.reads_joined else packed.layer(_rows(step), *step.places)

    def _ready(self, step: Step, place: Any) -> Step:
        """With the layer itself in its call, now that it is built: choosing it takes Python as long as small ones take."""
        return step if step.call is None else step._replace(run=step.call.ready(place))

    def _bind(self, index: int, node: Node, geometry: Any) -> Step:
        x, y = [self._tensor(name) for name in node.inputs], [self._tensor(name) for name in node.outputs]
        shape = self._shape_of_layer(node)
        task = self._pool_tasks.get(node.outputs[0])
        if node.op not in ("conv2d", "linear"):
            return Step(node, _BINDINGS[node.op](node, x, y, geometry), shape, 0)
        packed = self._net.layers[node.layer or ""]
        products = math.prod(shape[:-1]) * math.prod(packed.shape)
        residual = None if node.residual is None else self._tensor(node.residual)

        def ready() -> Call:
            call = Call(operand(x[0], packed, check_finite=True), packed, shape)
            prepare(call, residual, node.activation, y, check_finite=False)
            if task is not None:
                call.output.pooling = task
            return call

        if not isinstance(x[0], Activations) and isinstance(packed.activation_scale, str):  # by what the rows hold
            return Step(node, lambda: ready().run(geometry), shape, products, packed, geometry)
        call = ready()
        joined = isinstance(x[0], JoinedActivations)
        run = partial(call.run, geometry)
        return Step(node, run, shape, products, packed, geometry, joined, call, task is not None)


# ---- shapes ------------------------------------------------------------------------------------------------------------
def _same_shape(net: Network, node: Node, x: list[Shape]) -> tuple[Shape, Any]:
    if any(shape != x[0] for shape in x):
        raise ValueError(f"its inputs have the shapes {x}, expected the same")
    return x[0], None


def _conv_shape(net: Network, node: Node, x: list[Shape]) -> tuple[Shape, Any]:
    _require_image(x[0])
    packed = net.layers[node.layer or ""]
    _require_channels(x[0], packed.plan.channels)
    place = {"stride": 1, "padding": 0, "dilation": 1} | node.given("stride", "padding", "dilation")
    g = conv._geometry(x[0], packed.kernel_size, place["stride"], place["padding"], place["dilation"])
    return (x[0][0], g.out_h, g.out_w, packed.out_channels), g


def _linear_shape(net: Network, node: Node, x: list[Shape]) -> tuple[Shape, Any]:
    packed = net.layers[node.layer or ""]
    _require_channels(x[0], packed.plan.channels)
    geometry = _core.Geometry()
    geometry.batch = math.prod(x[0][:-1])
    return (*x[0][:-1], packed.out_channels), geometry


def _pool_shape(net: Network, node: Node, x: list[Shape]) -> tuple[Shape, Any]:
    _require_image(x[0])
    codes = net.tensors[node.inputs[0]]
    assert codes is not None  # checked
    kernel = x[0][1:3] if node.op == "global_avg_pool" else node.kernel
    padding = 0 if node.padding is None else node.padding
    task, shape = ops.pool_task_of(x[0], kernel, node.stride, padding)
    if node.op != "max_pool2d":
        ops.require_sums_fit(codes.plan, task)
    return shape, task


def _flat_shape(net: Network, node: Node, x: list[Shape]) -> tuple[Shape, Any]:
    return (x[0][0], math.prod(x[0][1:])), None


def _concat_shape(net: Network, node: Node, x: list[Shape]) -> tuple[Shape, Any]:
    if any(shape[:-1] != x[0][:-1] for shape in x):
        raise ValueError(f"its inputs have the shapes {x}, which may differ in their channels only")
    return (*x[0][:-1], sum(shape[-1] for shape in x)), None


_SHAPES: dict[str, Any] = {
    "conv2d": _conv_shape,
    "linear": _linear_shape,
    "max_pool2d": _pool_shape,
    "avg_pool2d": _pool_shape,
    "global_avg_pool": _pool_shape,
    "flatten": _flat_shape,
    "concat": _concat_shape,
}


def _require_image(shape: Shape) -> None:
    if len(shape) != 4:
        raise ValueError(f"its input has shape {shape}, expected an image [batch, height, width, channels]")


def _require_channels(shape: Shape, channels: int) -> None:
    if shape[-1] != channels:
        raise ValueError(f"its input has {shape[-1]} channels (shape {shape}), its layer {channels}")


# ---- calls -------------------------------------------------------------------------------------------------------------
Binding = Callable[[], object]


def _quantize(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    def run() -> None:
        for tensor in y:
            quantizer = tensor.plan.quantizer
            if not _core.quantize(_core.active_tier(), quantizer, x[0], tensor.scale, tensor.stored):
                refuse_not_finite(x[0], node.inputs[0])

    return run


def _requantize(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    return ops.combine_task(x[0], None, node.op if node.op in ("relu", "relu6") else node.activation, y)


def _add(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    return ops.combine_task(x[0], x[1], node.activation, y)


def _max_pool(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    return partial(_core.max_pool, _core.active_tier(), geometry, x[0].stored, y[0].stored)


def _avg_pool(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    return partial(_core.avg_pool, _core.active_tier(), geometry, codes_in(x[0], x[0].shape[0]), results_in(y))


def _flatten(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    if not isinstance(x[0], Activations):
        return partial(np.copyto, y[0], x[0].reshape(y[0].shape))
    plan = x[0].plan
    if plan.in_order:
        return partial(np.copyto, y[0].stored, x[0].stored.reshape(y[0].stored.shape))
    batch, *size, channels = x[0].shape
    pixels = x[0].stored.reshape(batch, math.prod(size), channels)
    moves, first = [], 0
    for part in np.split(pixels, plan.first_channels[1:], axis=-1):
        columns = part.shape[1] * part.shape[2]
        moves.append((y[0].stored[:, first : first + columns].reshape(part.shape), part))
        first += columns

    def run() -> None:
        for to, part in moves:
            np.copyto(to, part)

    return run


def _concat(node: Node, x: list[Any], y: list[Any], geometry: Any) -> Binding:
    firsts = np.cumsum([0, *(part.shape[-1] for part in x)])
    tasks = [ops.combine_task(part, None, None, y, int(first)) for part, first in zip(x, firsts[:-1], strict=True)]
    return lambda: [task() for task in tasks]


_BINDINGS: dict[str, Callable[[Node, list[Any], list[Any], Any], Binding]] = {
    "quantize": _quantize,
    "requantize": _requantize,
    "relu": _requantize,
    "relu6": _requantize,
    "add": _add,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "global_avg_pool": _avg_pool,
    "flatten": _flatten,
    "concat": _concat,
}


# ---- memory --------------------------------------------------------------------------------------------------------------
def _bytes(shape: Shape, codes: Codes | None) -> int:
    return math.prod(shape) * (4 if codes is None else 1)


def _places(net: Network, shapes: Mapping[str, Shape]) -> tuple[dict[str, int], int]:
    """(where each tensor begins, bytes of all): large tensors first, each at the lowest place that is free while it lives."""
    lives = _lifetimes(net)
    size = {name: -(-_bytes(shape, net.tensors[name]) // ALIGNMENT) * ALIGNMENT for name, shape in shapes.items()}
    places: dict[str, int] = {}
    for name in sorted(shapes, key=lambda n: (-size[n], lives[n])):
        begin, end = lives[name]
        taken = sorted((places[o], places[o] + size[o]) for o in places if lives[o][0] <= end and begin <= lives[o][1])
        at = 0
        for start, stop in taken:
            if at + size[name] <= start:
                break
            at = max(at, stop)
        places[name] = at
    return places, max((places[n] + size[n] for n in places), default=0)


def _lifetimes(net: Network) -> dict[str, tuple[int, int]]:
    """(the node that writes it, the last one that reads it); inputs are there before the first, outputs after the last."""
    lives = dict.fromkeys(net.inputs, (-1, -1))
    for index, node in enumerate(net.nodes):
        lives |= {name: (lives[name][0], index) for name in node.reads}
        lives |= dict.fromkeys(node.outputs, (index, index))
    return lives | {name: (lives[name][0], len(net.nodes)) for name in net.outputs}


def _copy(tensor: Any) -> Any:
    if isinstance(tensor, Activations):
        return Activations(tensor.stored.copy(), tensor.plan, tensor.scale)
    return tensor.copy()


def kernels_of(step: Step) -> str:
    """Which kernels a step runs, in words."""
    if step.packed is None:
        return ""
    if step.reads_joined:
        kernels = ".".join(step.packed.joined(step.places[0]).kernels[0]) + (f", {WINOGRAD}" if _winograd(step) else "")
    else:
        kernels = explain_rows(None, step.packed, _rows(step), step.place, step.pools).kernel
    return kernels + (", pooled" if step.pools else "")


def _winograd(step: Step) -> bool:
    """Whether a layer multiplies 16 times where it would 36 times."""
    if step.packed is None or step.place is None or step.pools:
        return False
    joined = step.packed.joined(step.places[0]).layer if step.reads_joined else None
    return (joined or step.packed.layer(_rows(step), *step.places)).takes_winograd(step.place)


def ceiling_of(step: Step) -> float | None:
    """Products a cycle that the inner loops of a step's kernels reach at most; None where they are not known."""
    if step.packed is None or not (choices := step.packed.choices(_rows(step), *step.places)):
        return None
    k, cycles = step.packed.k_of_segments(), 0.0
    for segment, choice, k_s in zip(step.packed.plan.segments, choices, k, strict=True):
        joined = step.packed.joined_grids if step.reads_joined or choice.family == "joined" else None
        widths = joined.widths if joined else (segment.w.bits, segment.a.bits)
        rates = {f: rate for f, _, rate, _ in _core.candidates(_core.active_tier(), *widths)}
        cycles += k_s / rates["dot" if joined else choice.family]
    return sum(k) / cycles * (36 / 16 if _winograd(step) else 1)


def _rows(step: Step) -> int:
    return math.prod(step.shape[:-1])
