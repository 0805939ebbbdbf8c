"""What a tensor between two layers is: codes of a plan with a scale, or float32; and how a file or a torch op says it.

    {"codes": {"channels": 64, "grids": [GRID, GRID], "segment_of": "0100..."}, "scale": "0x1.99999ap-3"}
    {"float": true}

GRID is that of docs/format.md. The grids stand in the order in which channels are stored, `segment_of` has one digit a channel
and is left out where there is one grid. A scale is hexadecimal, so that it is read back bit for bit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from soniq_kernels import _arrays
from soniq_kernels.activations import MAX_SCALE, MIN_SCALE, Activations
from soniq_kernels.plans import Grid, Plan, Segment

__all__ = ["Codes", "describe", "describe_all", "parse", "parse_all", "plan_of_tensor"]

MAX_CHANNELS = 2**28
_ANY_WEIGHTS = Grid("bipolar", 1)  # a plan has grids for weights too, which say nothing about a tensor


class Codes(NamedTuple):
    """Codes of a plan, of which the activation half counts, with one scale: what `out=` of a layer takes."""

    plan: Plan
    scale: np.float32


def plan_of_tensor(segment_of: Any, grids: list[Grid]) -> Plan:
    """The plan of a tensor that no layer reads, or that several read: activation grids in the order of storage.

    Args:
        segment_of: int [channels], the index of each channel's grid; channels are stored grid by grid.
        grids: one or two, each with at least one channel.

    Raises:
        ValueError: an index without a grid, a grid without channels.
    """
    index = _arrays.as_numpy(segment_of, "segment_of").astype(np.int64)
    if index.ndim != 1 or index.size == 0:
        raise ValueError(f"segment_of has shape {index.shape}, expected one index per channel")
    if len(grids) not in (1, 2) or sorted(set(index.tolist())) != list(range(len(grids))):
        raise ValueError(
            f"segment_of has the indices {sorted(set(index.tolist()))} for {len(grids)} grids; expected one or two grids, "
            f"each with at least one channel"
        )
    segments = tuple(Segment(_ANY_WEIGHTS, grid, int((index == i).sum())) for i, grid in enumerate(grids))
    return Plan(segments, np.argsort(index, kind="stable"))


# ---- writing -------------------------------------------------------------------------------------------------------
def describe(tensor: Activations | tuple[Plan, Any] | None) -> str:
    """JSON that says what a tensor is: of Activations, of (plan, scale), or of float32 (None).

    Raises:
        ValueError: Activations with one scale a row; a description has one for the tensor.
    """
    return json.dumps(fields(tensor))


def fields(tensor: Activations | tuple[Plan, Any] | None) -> dict[str, Any]:
    """`describe`, before it becomes text."""
    if tensor is None:
        return {"float": True}
    plan, scale = (tensor.plan, tensor.scale) if isinstance(tensor, Activations) else tensor
    if np.ndim(scale) != 0:
        raise ValueError(f"scale has shape {np.shape(scale)}; a tensor's description has one scale, not one per row")
    grids = [s.a for s in plan.segments]
    codes: dict[str, Any] = {"channels": plan.channels, "grids": [_grid_fields(g) for g in grids]}
    if len(grids) > 1:
        codes["segment_of"] = "".join(map(str, plan.segment_of()))
    return {"codes": codes, "scale": float(np.float32(scale)).hex()}


def _grid_fields(g: Grid) -> dict[str, Any]:
    return {"kind": g.kind, "bits": g.bits, "offset": g.offset, "shift": g.shift}


def describe_all(these: Sequence[Activations | tuple[Plan, Any] | None]) -> str:
    """JSON of a list of descriptions: what a torch op with several outputs takes."""
    return json.dumps([fields(tensor) for tensor in these])


# ---- reading -------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Codes | None:
    """The inverse of `describe`: None means float32.

    Raises:
        ValueError: what is wrong with the description.
    """
    try:
        return of_fields(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the description of a tensor is unusable: {error}") from None


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Codes | None, ...]:
    try:
        content = json.loads(text)
        if not isinstance(content, list) or not content:
            raise ValueError(f"it is {content!r}, expected a list of at least one")
        return tuple(of_fields(one) for one in content)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the description of tensors is unusable: {error}") from None


def parse_all(text: str) -> list[Codes | None]:
    """The inverse of `describe_all`. Raises ValueError."""
    return list(_parsed(text))


def of_fields(content: Any) -> Codes | None:
    """`parse`, of what is JSON no longer. Raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError(f'it is {content!r}, expected {{"codes": ..., "scale": ...}} or {{"float": true}}')
    if set(content) == {"float"} and content["float"] is True:
        return None
    if set(content) != {"codes", "scale"}:
        raise ValueError(f"it has the entries {sorted(map(str, content))}, expected codes and scale, or float")
    return Codes(_plan(content["codes"]), _scale(content["scale"]))


def _scale(text: Any) -> np.float32:
    if not isinstance(text, str):
        raise ValueError(f"scale is {text!r}, expected a hexadecimal float as text")
    try:
        value = float.fromhex(text)
    except (ValueError, OverflowError):
        raise ValueError(f"scale is {text!r}, expected a hexadecimal float as text") from None
    if not float(MIN_SCALE) <= value <= float(MAX_SCALE) or float(np.float32(value)) != value:
        raise ValueError(f"scale is {text!r}, expected a float32 in [2**-100, 2**100]")
    return np.float32(value)


def _plan(codes: Any) -> Plan:
    if not isinstance(codes, dict) or not {"channels", "grids"} <= set(codes) <= {"channels", "grids", "segment_of"}:
        raise ValueError(f"codes is {codes!r}, expected channels, grids and, with two grids, segment_of")
    channels = _arrays.integer(codes["channels"], "channels", 1, MAX_CHANNELS)
    grids = codes["grids"]
    if not isinstance(grids, list) or len(grids) not in (1, 2) or not all(isinstance(g, dict) for g in grids):
        raise ValueError(f"grids is {grids!r}, expected one or two")
    return plan_of_tensor(_segment_of(codes, channels, len(grids)), [Grid(**g) for g in grids])


def _segment_of(codes: dict[str, Any], channels: int, grids: int) -> np.ndarray:
    if grids == 1 and "segment_of" not in codes:
        return np.zeros(channels, np.int64)
    digits = codes.get("segment_of")
    if grids == 1 or not isinstance(digits, str) or len(digits) != channels or not set(digits) <= {"0", "1"}:
        raise ValueError(f"segment_of must be {channels} digits, 0 or 1, and be there where there are two grids only")
    return np.frombuffer(digits.encode(), np.uint8) - ord("0")
