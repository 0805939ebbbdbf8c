"""Operations between layers on tensors of codes: add, pooling, flatten, concat, requantize. docs/ops.md.

y = ops.add(a, b, activation="relu", out=(plan, scale))     # a, b: Activations, or one of them float32
p = ops.max_pool2d(y, 3, stride=2, padding=1)               # exact: codes of one channel order as their values do

`out` is None for float32, (plan, scale) for codes, or a list of these, all written in one pass; a list gives a list. At most
four of a list are codes. Channels are the last axis of every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core
from soniq_kernels._layers import activation_of, codes_in, new_tensors, outputs_of, results_in
from soniq_kernels.activations import Activations, quantize_activations, require_finite
from soniq_kernels.conv import _four, _geometry, _two
from soniq_kernels.plans import Plan
from soniq_kernels.tensors import plan_of_tensor

__all__ = [
    "add", "avg_pool2d", "concat", "dequantize", "flatten", "flattened", "global_avg_pool", "joined", "max_pool2d", "quantize",
    "requantize",
]  # fmt: skip

MOST_LEVELS = 2**31 - 1
quantize = quantize_activations


# ---- values ----------------------------------------------------------------------------------------------------------
def add(a: Any, b: Any, activation: Any = None, out: Any = None, check_finite: bool = True) -> Any:
    """activation(a + b): each operand becomes float32 with one rounding, then their sum is rounded.

    Args:
        a, b: Activations of the same shape and any plans; one of them may be float32.
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        out: None for float32, (plan, scale) for Activations, or a list of these.
        check_finite: raise for NaN and infinity in a float32 operand.

    Raises:
        ValueError: shapes that differ, non-finite values. TypeError: two float32 operands.
    """
    if not isinstance(a, Activations):
        a, b = b, a
    if not isinstance(a, Activations):
        raise TypeError("a and b are both no Activations; add float32 arrays with NumPy, or quantize one of them")
    b = _value("b", b, check_finite)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape} and b has shape {b.shape}; add wants the same shape")
    return _combined(a, b, activation, out)


def requantize(x: Any, out: Any, activation: Any = None, check_finite: bool = True) -> Any:
    """activation(x) in the codes of another plan and scale, or as float32; x: Activations or float32."""
    return _combined(_value("x", x, check_finite), None, activation, out)


def dequantize(x: Activations) -> NDArray[np.float32]:
    """float32(level) * (scale * 2**e), in the original order of the channels."""
    _require_codes("x", x)
    return _combined(x, None, None, None)


def _combined(a: Any, b: Any, activation: Any, out: Any) -> Any:
    tensors = new_tensors(a.shape, outputs_of(out, a.shape[-1]))
    combine_task(a, b, activation, tensors)()
    return tensors if isinstance(out, list) else tensors[0]


def combine_task(a: Any, b: Any, activation: Any, tensors: list[Any], first: int = 0) -> Callable[[], None]:
    """activation(a + b), or activation(a), into `tensors`, from their channel `first` on, as often as it is called."""
    task = _core.CombineTask()
    task.rows, task.channels = math.prod(a.shape[:-1]), a.shape[-1]
    task.first, task.result_channels = first, tensors[0].shape[-1]
    task.activation, task.lo, task.hi = activation_of(activation)
    results = results_in(tensors)
    task.results, keep = results, [results, tensors, a, b]
    for name, operand in zip("ab", (a, b), strict=True):
        if isinstance(operand, Activations):
            keep.append(codes_in(operand, task.rows))
            setattr(task, name, keep[-1])
        elif operand is not None:
            task.x = operand

    def run(alive: object = keep) -> None:  # the core has pointers only
        _core.combine(_core.active_tier(), task)

    return run


# ---- pooling ---------------------------------------------------------------------------------------------------------
def max_pool2d(x: Activations, kernel: Any, stride: Any = None, padding: Any = 0) -> Activations:
    """The largest code of each window, NHWC; padding never wins. The plan and the scale stay.

    Args:
        kernel, stride: int or (height, width); stride None is the kernel.
        padding: int, (height, width) or (top, bottom, left, right), each less than the kernel: no window is empty.
    """
    task, shape = pool_task(x, kernel, stride, padding)
    stored = np.empty(shape, np.uint8)
    _core.max_pool(_core.active_tier(), task, x.stored, stored)
    return Activations(stored, x.plan, x.scale)


def avg_pool2d(x: Activations, kernel: Any, stride: Any = None, out: Any = None) -> Any:
    """float32(sum of levels) * (scale * 2**e), then * float32(1 / count), of each window, NHWC, without padding.

    Args:
        kernel, stride: int or (height, width); stride None is the kernel. out: as in `add`.
    """
    task, shape = pool_task(x, kernel, stride, 0)
    require_sums_fit(x.plan, task)
    tensors = new_tensors(shape, outputs_of(out, shape[-1]))
    _core.avg_pool(_core.active_tier(), task, codes_in(x, x.shape[0]), results_in(tensors))
    return tensors if isinstance(out, list) else tensors[0]


def require_sums_fit(plan: Plan, task: _core.PoolTask) -> None:
    """Raises ValueError where the levels of a window could leave int32."""
    largest = max(s.a.max_magnitude for s in plan.segments) * task.kernel_h * task.kernel_w
    if largest > MOST_LEVELS:
        raise ValueError(
            f"a window of {task.kernel_h} x {task.kernel_w} could sum to {largest}, more than an int32 holds; pool in two steps"
        )


def global_avg_pool(x: Activations, out: Any = None) -> Any:
    """`avg_pool2d` over the whole image: [batch, 1, 1, channels]."""
    _require_image(x)
    return avg_pool2d(x, x.shape[1:3], out=out)


def pool_task(x: Any, kernel: Any, stride: Any, padding: Any) -> tuple[_core.PoolTask, tuple[int, ...]]:
    """The windows of a pooling of `x`, and the shape of its result."""
    _require_image(x)
    return pool_task_of(x.shape, kernel, stride, padding)


def pool_task_of(
    shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any
) -> tuple[_core.PoolTask, tuple[int, ...]]:
    """`pool_task` of images of this shape. With padding less than the kernel no window is empty."""
    size, pads = _two(kernel, "kernel", 1), _four(padding)
    if 0 in shape[1:3]:
        raise ValueError(f"x has shape {shape}, images without a pixel; there is nothing to pool")
    if max(pads[:2]) >= size[0] or max(pads[2:]) >= size[1]:
        raise ValueError(
            f"padding is {pads} and the kernel {size}; padding must be less than the kernel, or a window is empty"
        )
    task = _core.PoolTask()
    geometry = _geometry(shape, size, size if stride is None else stride, pads, 1)
    task.geometry, (task.kernel_h, task.kernel_w), task.channels = geometry, size, shape[-1]
    return task, (geometry.batch, geometry.out_h, geometry.out_w, task.channels)


# ---- moving codes ------------------------------------------------------------------------------------------------------
def flattened(plan: Plan, pixels: int) -> Plan:
    """The plan of `flatten`'s result for images of so many pixels."""
    if len(plan.segments) == 1 and plan.in_order:
        return plan_of_tensor(np.zeros(pixels * plan.channels, np.int64), [plan.segments[0].a])
    return plan_of_tensor(np.tile(plan.segment_of(), pixels), [s.a for s in plan.segments])


def flatten(x: Activations) -> Activations:
    """NHWC to rows [batch, height * width * channels], in this order: column (h * width + w) * channels + c.

    torch.nn.Flatten of NCHW counts (c * height + h) * width + w: a linear layer behind it has its columns permuted by
    weight.reshape(N, C, H, W).transpose(0, 2, 3, 1).reshape(N, -1). With one segment nothing is copied.
    """
    _require_image(x)
    batch, height, width, channels = x.shape
    pixels = x.stored.reshape(batch, height * width, channels)
    split = np.split(pixels, x.plan.first_channels[1:], axis=-1)
    parts = [part.reshape(batch, height * width * part.shape[-1]) for part in split]
    return Activations(
        parts[0] if len(parts) == 1 else np.concatenate(parts, -1), flattened(x.plan, height * width), x.scale
    )


def joined(plans: Sequence[Plan]) -> Plan:
    """The plan of `concat`'s result where codes stay. Raises ValueError if the plans have more than two grids together."""
    grids = list(dict.fromkeys(s.a for plan in plans for s in plan.segments))
    if len(grids) > 2:
        raise ValueError(
            f"the tensors have {len(grids)} grids together, a plan has at most two; give out=(plan, scale)"
        )
    index = [np.array([grids.index(s.a) for s in plan.segments])[plan.segment_of()] for plan in plans]
    return plan_of_tensor(np.concatenate(index), grids)


def concat(xs: Sequence[Activations], out: Any = None) -> Any:
    """Tensors side by side along the channels.

    Args:
        out: None keeps the codes, which needs one scale for all and at most two grids together; else as in `add`, and what a
            [None] asks for is float32.

    Raises:
        ValueError: shapes, scales or grids that do not fit.
    """
    _require_side_by_side(xs)
    if out is None:
        return _concat_codes(xs)
    shape = (*xs[0].shape[:-1], sum(x.shape[-1] for x in xs))
    tensors = new_tensors(shape, outputs_of(out, shape[-1]))
    first = 0
    for x in xs:
        combine_task(x, None, None, tensors, first)()
        first += x.shape[-1]
    return tensors if isinstance(out, list) else tensors[0]


def _concat_codes(xs: Sequence[Activations]) -> Activations:
    scales = [x.scale for x in xs]
    if any(s.shape != scales[0].shape or (s != scales[0]).any() for s in scales):
        raise ValueError(
            f"the tensors have the scales {[str(s) for s in scales]}; give out=(plan, scale) to requantize them"
        )
    plan = joined([x.plan for x in xs])
    if any(len({s.a for s in x.plan.segments}) < len(x.plan.segments) for x in xs):  # two segments become one
        return Activations.from_codes(np.concatenate([x.codes() for x in xs], -1), plan, scales[0])
    parts = [
        part
        for segment in plan.segments
        for x in xs
        for s, part in zip(x.plan.segments, x._parts(), strict=True)
        if s.a == segment.a
    ]
    return Activations(np.concatenate(parts, -1), plan, scales[0])


# ---- checks ------------------------------------------------------------------------------------------------------------
def _require_codes(name: str, x: Any) -> None:
    if not isinstance(x, Activations):
        raise TypeError(
            f"{name} is a {type(x).__name__}, expected Activations; make them with ops.quantize(x, plan, scale)"
        )


def _require_image(x: Any) -> None:
    _require_codes("x", x)
    if len(x.shape) != 4:
        raise ValueError(f"x has shape {x.shape}, expected NHWC [batch, height, width, channels]")


def _require_side_by_side(xs: Sequence[Any]) -> None:
    if not xs:
        raise ValueError("there is nothing to concatenate; give at least one tensor")
    for i, x in enumerate(xs):
        _require_codes(f"xs[{i}]", x)
        if x.shape[:-1] != xs[0].shape[:-1]:
            raise ValueError(
                f"xs[{i}] has shape {x.shape} and xs[0] {xs[0].shape}; they may differ in their channels only"
            )


def _value(name: str, x: Any, check_finite: bool) -> Activations | NDArray[np.float32]:
    if isinstance(x, Activations):
        return x
    array = _arrays.floats(x, name)
    if array.ndim == 0:
        raise ValueError(f"{name} has no axis; expected channels as the last one")
    if check_finite:
        require_finite(array, name)
    return array
