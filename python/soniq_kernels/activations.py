"""Codes of a tensor, and how float32 becomes codes."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, _core
from soniq_kernels.plans import Plan

MIN_SCALE, MAX_SCALE = np.float32(2.0**-100), np.float32(2.0**100)
PER_ROW = "per_row"


class Activations:
    """A tensor of codes, its plan, and its scale.

    Attributes:
        stored: uint8, [..., channels], channels in the plan's stored order [low | high].
        plan: the tensor's plan; of each segment only the activation grid matters here.
        scale: float32, shape () for one scale, one per row of a matrix, or [batch] for one per NHWC image.
    """

    def __init__(self, stored: NDArray[np.uint8], plan: Plan, scale: NDArray[np.float32] | np.float32) -> None:
        self.stored = stored
        self.plan = plan
        self.scale = scale if isinstance(scale, np.ndarray) else np.array(scale, np.float32)

    @classmethod
    def from_codes(cls, codes: Any, plan: Plan, scale: Any) -> Activations:
        """Codes that already exist: uint8 images, another framework's output.

        Args:
            codes: uint8 [..., channels] in the original channel order, each at most its grid's largest code.
            scale: a float; or float32, one per row ([..., channels] -> [...]) or one per image of NHWC ([batch]).

        Raises:
            ValueError: a code above its grid's largest, another number of channels, a scale outside [2**-100, 2**100].
        """
        array = _arrays.codes(codes, "codes")
        check_channels(array, plan, "codes")
        check_largest_codes(array, np.array([s.a.cmax for s in plan.segments])[plan.segment_of()], "codes")
        stored = array if plan.in_order else np.ascontiguousarray(array[..., plan.permutation])
        return cls(stored, plan, scales(scale, array.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def tensor_format(self, scale: np.float32) -> _core.TensorFormat:
        """How the core reads and writes these codes, with one scale."""
        return self.plan.tensor_format(scale)

    def codes(self) -> NDArray[np.uint8]:
        """uint8, `shape`, in the original channel order."""
        return self.stored if self.plan.in_order else self.stored[..., self.plan.position]

    def dequantize(self) -> NDArray[np.float32]:
        """float32, `shape`: float32(level) * (scale * 2**e)."""
        levels = np.concatenate([s.a.levels(p) for s, p in zip(self.plan.segments, self._parts(), strict=True)], -1)
        steps = np.repeat(
            np.array([2.0**s.a.exponent for s in self.plan.segments], np.float32),
            [s.channels for s in self.plan.segments],
        )
        scale = self.scale.reshape(self.scale.shape + (1,) * (self.stored.ndim - self.scale.ndim))
        values = levels.astype(np.float32) * (scale * steps)
        return values if self.plan.in_order else values[..., self.plan.position]

    def _parts(self) -> list[NDArray[np.uint8]]:
        return np.split(self.stored, self.plan.first_channels[1:], axis=-1)

    def __repr__(self) -> str:
        scale = f"{self.scale:.4g}" if self.scale.ndim == 0 else f"{self.scale.size} scales"
        return f"Activations{self.shape} of {self.plan}, {scale}"


def quantize_activations(x: Any, plan: Plan, scale: Any, check_finite: bool = True) -> Activations:
    """float32 to codes by the one quantizer (docs/arithmetic.md).

    Args:
        x: float32 [..., channels], or NHWC [batch, height, width, channels]; float16 is widened exactly.
        scale: a float in [2**-100, 2**100]; or "per_row": one per row, for NHWC one per image, from the largest |x|.
        check_finite: raise for NaN and infinity; False trusts the caller, and NaN becomes code 0.

    Raises:
        ValueError: another number of channels, non-finite values.
        TypeError: not float32 or float16, or on a GPU.
    """
    array = _arrays.floats(x, "x")
    check_channels(array, plan, "x")
    array_scale = scales_of(array, plan, scale)
    stored = np.empty(array.shape, np.uint8)
    finite = _core.quantize(_core.active_tier(), plan.quantizer, array, array_scale, stored)
    if check_finite and not finite:
        refuse_not_finite(array, "x")
    return Activations(stored, plan, array_scale)


def scales_of(x: NDArray[np.float32], plan: Plan, scale: Any) -> NDArray[np.float32]:
    """The scales that `x` is quantized with: given, or found by "per_row"."""
    if not isinstance(scale, str):
        return scales(scale, x.shape)
    if scale != PER_ROW:
        raise ValueError(f'scale is {scale!r}, expected a float or "per_row"')
    return _dynamic_scales(x, plan)


def _dynamic_scales(x: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    shape = x.shape[:1] if x.ndim == 4 else x.shape[:-1]
    result = np.empty(shape, np.float32)
    factor = plan.widest_activation.dynamic_factor
    if result.size:
        _core.dynamic_scales(_core.active_tier(), x, result.size, float(factor), result)
    return result


def scales(scale: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """float32 scales of a tensor of `shape`: (), one per row, or one per NHWC image; checked against the range."""
    if isinstance(scale, (float, np.float32)) and MIN_SCALE <= scale <= MAX_SCALE:
        return np.array(scale, np.float32)
    array = _arrays.as_numpy(scale, "scale")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"scale is {scale!r}, expected a float")
    with np.errstate(over="ignore", under="ignore"):
        array = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    allowed = [(), shape[:1] if len(shape) == 4 else shape[:-1]]
    if array.shape not in allowed:
        raise ValueError(f"scale has shape {array.shape}, expected one of {allowed} for codes of shape {shape}")
    if not ((array >= MIN_SCALE) & (array <= MAX_SCALE)).all():
        raise ValueError("scale must lie in [2**-100, 2**100]; got " + str(scale if array.ndim == 0 else array))
    return array


def check_channels(x: NDArray[Any], plan: Plan, name: str) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}, expected a packing.Plan")
    if x.ndim < 1 or x.shape[-1] != plan.channels:
        got = f"{x.shape[-1]} channels (shape {x.shape})" if x.ndim else "no axis"
        raise ValueError(f"{name} has {got} but the plan has {plan.channels}; channels are the last axis (NHWC)")


def check_largest_codes(codes: NDArray[np.uint8], largest: NDArray[Any], name: str) -> None:
    """Raises ValueError that names the first code above its grid's largest; `largest` broadcasts against `codes`."""
    if largest.min() == 255:
        return
    above = codes > largest
    if above.any():
        at = tuple(int(i) for i in np.argwhere(above)[0])
        limit = np.broadcast_to(largest, codes.shape)[at]
        raise ValueError(f"{name}{list(at)} is {codes[at]}, above {limit}, the largest code of its channel's grid")


def require_finite(x: NDArray[np.float32], name: str) -> None:
    """Raises ValueError that names the first NaN or infinity."""
    if x.size and not _core.all_finite(_core.active_tier(), x):
        refuse_not_finite(x, name)


def refuse_not_finite(x: NDArray[np.float32], name: str) -> NoReturn:
    """Raises ValueError that names the first NaN or infinity of an array that has one."""
    at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
    raise ValueError(
        f"{name}{list(at)} is {x[at]}; every value must be finite (check_finite=False skips this check, NaN is then code 0)"
    )
