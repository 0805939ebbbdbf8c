"""Which path serves a layer, in which tiles: a rule, and a table of what was measured on this GPU where there is one.

Nothing is tried out at a first call. `soniq tune` measures a GPU and writes its table (tune.py): JSON of

    {"gpu": name, "date": ..., "versions": ..., "choices": {"<widths>:<rows class>:<outputs class>x<K class>": {"path", "bn", ...}}}

where widths are "w2a8", those of two segments joined by "+", and a class is the power of two at or above the number. A layer whose
activation bits have no entry takes that of 8 bits: paths of bytes do not care, and bit planes only gain. The table is $SONIQ_GPU_TABLE, else soniq/gpu-<name>.json in the
user's folder of configurations, else tables/<name>.json beside this file. Results do not depend on it: all paths are exact.
`use("b1")`, or SONIQ_GPU_PATH=b1, allows that path only; several may be named.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from soniq_kernels.triton_kernels import b1, one_bit
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.panels import parts_of, rows_of, slices_of

VECTOR, TENSOR_CORE, B1 = PATHS = "vector", "tensor_core", "b1"
VECTOR_ROWS = 8
PROCESSORS, SHARED_MEMORY = 132, 232_448  # of an H100 or H200; what is assumed where there is no GPU to ask


@dataclass(frozen=True)
class Choice:
    """How a layer is run.

    Attributes:
        path: "vector" (dp4a), "tensor_core" (int8 matrix instructions) or "b1" (one-bit matrix instructions on bit planes).
        bn, bm: outputs and rows of a tile. splits: parts of K. warps, stages: of the compiled kernel.
        reason: one sentence.
    """

    path: str
    bn: int
    bm: int
    splits: int = 1
    warps: int = 4
    stages: int = 3
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path}, tile {self.bn} x {self.bm}, {self.splits} parts of K, {self.warps} warps: {self.reason}"


# ---- forced -----------------------------------------------------------------------------------------------------------------
_allowed: tuple[str, ...] | None = None  # None: not read from the environment yet


@contextmanager
def use(*paths: str) -> Iterator[None]:
    """Inside of the block layers take one of these paths, and raise ValueError where none of them can serve.

    >>> with use("b1"): y = linear(x, weights)
    """
    global _allowed
    before, _allowed = allowed(), _checked(paths, "use()")
    try:
        yield
    finally:
        _allowed = before


def allowed() -> tuple[str, ...]:
    """The paths that may be taken."""
    global _allowed
    if _allowed is None:
        given = os.environ.get("SONIQ_GPU_PATH")
        _allowed = _checked(tuple(given.split(",")), "SONIQ_GPU_PATH") if given else PATHS
    return _allowed


def _checked(paths: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not paths or not set(paths) <= set(PATHS):
        raise ValueError(f"{where} names {', '.join(paths) or 'no path'}; expected some of {', '.join(PATHS)}")
    return paths


# ---- the choice -------------------------------------------------------------------------------------------------------------
def choose(weights: DeviceWeights, rows: int) -> Choice:
    """The choice for a call with so many output rows."""
    key = "choice", power_of_two(rows), allowed()
    if key not in weights.cache:
        found = measured(weights, rows)
        weights.cache[key] = found if found and found.path in allowed() else rule(weights, rows)
    return weights.cache[key]


def rule(weights: DeviceWeights, rows: int) -> Choice:
    """Without measurements: bit planes where b1.suits says so, dp4a for few rows, else the smallest tile that holds the rows."""
    reasons = {}
    for path, make in ((B1, _b1), (VECTOR, _vector), (TENSOR_CORE, _tensor_core)):
        if path not in allowed():
            continue
        made = make(weights, rows, forced=len(allowed()) == 1)
        if isinstance(made, Choice):
            why = reasons.get(B1, "")
            return replace(made, reason=f"{made.reason}; not b1: {why}") if why else made
        reasons[path] = made
    if TENSOR_CORE in reasons:
        raise ValueError(reasons[TENSOR_CORE])
    raise ValueError(f"{weights} with {rows} rows: " + "; ".join(f"{path}: {why}" for path, why in reasons.items()))


def _b1(weights: DeviceWeights, rows: int, forced: bool) -> Choice | str:
    """Or why not; the empty reason is that another path is expected to be faster."""
    why = b1.suits(weights, rows)
    if why is None and not forced:
        return ""
    refused = one_bit.refusal(weights)
    if refused:
        return refused
    return of_launch(one_bit.launch_of(weights, rows), why or "it was asked for")


def of_launch(launch: b1.Launch, reason: str = "") -> Choice:
    """A launch of the one-bit kernels as a choice."""
    tile_rows = launch.tile_words // launch.tile_outputs
    return Choice(B1, launch.tile_outputs, tile_rows, launch.splits, launch.threads // 32, 1, reason)


def _vector(weights: DeviceWeights, rows: int, forced: bool) -> Choice | str:
    """dp4a; K is split until the GPU is full."""
    if len(weights.shape) != 2:
        return "dp4a kernels multiply linear layers only"
    if rows > VECTOR_ROWS and not weights.saturates and not forced:
        return "many rows"
    few = rows <= VECTOR_ROWS
    why = "few rows: bound by how fast weights arrive" if few else "sums may leave int32 on the way"
    bm = min(VECTOR_ROWS, power_of_two(rows))
    bn = 4 if bm == VECTOR_ROWS else 8
    if any(len(parts_of(shape.bits)) > 1 for shape in weights.shapes):
        bn, bm = min(bn, 4), min(bm, 4)  # words of several parts take registers
    choice = Choice(VECTOR, bn, bm, warps=1, stages=1, reason=why if few or weights.saturates else "it was asked for")
    return replace(choice, splits=_splits(weights, choice, rows, 16, _vector_steps(weights)))


def _tensor_core(weights: DeviceWeights, rows: int, forced: bool) -> Choice | str:
    if weights.saturates:
        what = "a convolution" if len(weights.shape) != 2 else "a layer"
        return (
            f"{what} of {weights.plan} may leave int32 on the way to its result, which int8 matrix instructions would "
            f"clamp; use fewer channels, or soniq_kernels.conv on the CPU"
        )
    bm = min(128, max(16, power_of_two(rows)))
    bn = weights.panel_outputs if rows <= 64 or weights.panel_outputs < 64 else 128
    choice = Choice(
        TENSOR_CORE, bn, bm, warps=8 if bn * bm > 64 * 128 else 4, reason="the smallest tile that holds the rows"
    )
    choice = fitted(weights, choice)
    blocks = min(shape.blocks for shape in weights.shapes)
    most = min(8, max(1, blocks // 4)) if len(weights.shape) == 2 else 1
    return replace(choice, splits=_splits(weights, choice, rows, 1, most) if most > 1 else 1)


def fitted(weights: DeviceWeights, choice: Choice) -> Choice:
    """The choice with as many stages, and then rows, as shared memory has room for."""
    bn, bm, stages = choice.bn, choice.bm, choice.stages
    while stages * _stage_bytes(weights, bn, bm) > shared_memory(weights.device) and (stages > 2 or bm > 16):
        stages, bm = (stages - 1, bm) if stages > 2 else (choice.stages, bm // 2)
    return replace(choice, bm=bm, stages=stages)


def _stage_bytes(weights: DeviceWeights, bn: int, bm: int) -> int:
    """Of one block of K: byte rows of weights and slices of activations."""
    return max(shape.slice * (rows_of(shape.bits) * bn + slices_of(shape.bits) * bm) for shape in weights.shapes)


def _splits(weights: DeviceWeights, choice: Choice, rows: int, programs: int, most: int) -> int:
    """Parts of K that bring about `programs` programs to each multiprocessor."""
    tiles = weights.groups * -(-weights.group_outputs // choice.bn) * -(-rows // choice.bm)
    return max(1, min(most, programs * processors(weights.device) // tiles))


def _vector_steps(weights: DeviceWeights) -> int:
    """Steps of a warp in the longest segment: 512 bytes of a byte row each."""
    return max(-(-shape.blocks // (512 // shape.slice)) for shape in weights.shapes)


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """Bytes that one program may have."""
    if device.type != "cuda":
        return SHARED_MEMORY
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def power_of_two(number: int) -> int:
    """The power of two at or above."""
    return 1 << max(0, number - 1).bit_length()


# ---- measured -------------------------------------------------------------------------------------------------------------


def key_of(weights: DeviceWeights, rows: int, a_bits: int | None = None) -> str:
    """What choices are filed under; `a_bits` in the place of the layer's own."""
    widths = "+".join(f"w{s.w.bits}a{a_bits or s.a.bits}" for s in weights.plan.segments)
    k = sum(shape.blocks * shape.slice for shape in weights.shapes)
    kind = "" if len(weights.shape) == 2 else "conv:"
    return f"{kind}{widths}:{power_of_two(rows)}:{power_of_two(weights.out_channels)}x{power_of_two(k)}"


def measured(weights: DeviceWeights, rows: int) -> Choice | None:
    """The table's choice, if there is a table and it has one that this layer can run."""
    path, table = load(gpu_name(weights.device))
    choices = table.get("choices", {})
    found = choices.get(key_of(weights, rows)) or choices.get(key_of(weights, rows, a_bits=8))
    if found is None or (weights.saturates and found["path"] == TENSOR_CORE):
        return None
    made = Choice(**{**found, "reason": f"measured ({path})"})
    if made.path != B1:
        return made
    if one_bit.refusal(weights):
        return None
    same = one_bit.launch_of(weights, rows, made)  # tiles depend on the rows and on the activation bits
    return of_launch(same, made.reason)


def gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "none"


def user_path(name: str) -> Path:
    """Where `soniq tune` writes."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "soniq" / f"gpu-{_slug(name)}.json"


@lru_cache(maxsize=16)
def load(name: str) -> tuple[str, dict[str, Any]]:
    """(path, table) for a GPU of this name; ("", {}) where there is none.

    Raises:
        ValueError: a file that is no table.
    """
    given = os.environ.get("SONIQ_GPU_TABLE")
    shipped = Path(__file__).parent / "tables" / f"{_slug(name)}.json"
    for path in [Path(given)] if given else [user_path(name), shipped]:
        if path.exists() or given:
            return str(path), _read(path)
    return "", {}


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for entry in table["choices"].values():
            Choice(**entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of GPU choices ({error}); write it anew with `soniq tune`") from None
    return table


def as_entry(choice: Choice) -> dict[str, Any]:
    """A choice as the table holds it."""
    return {name: value for name, value in asdict(choice).items() if name != "reason"}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
