"""Which path serves a layer, in which tiles: a rule, and a table of what was measured on this GPU where there is one.

Nothing is tried out at a first call. `soniq tune` measures a GPU and writes its table (tune.py): JSON of

    {"gpu": name, "date": ..., "versions": ..., "choices": {"<weight bits>:<rows class>:<outputs class>x<K class>": {"path", "bn", ...}}}

where a class is the power of two at or above the number. The table is $SONIQ_GPU_TABLE, else soniq/gpu-<name>.json in the
user's folder of configurations, else tables/<name>.json beside this file. Results do not depend on it: all paths are exact.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.panels import parts_of, rows_of, slices_of

VECTOR, TENSOR_CORE = "vector", "tensor_core"
VECTOR_ROWS = 8
PROCESSORS, SHARED_MEMORY = 132, 232_448  # of an H100 or H200; what is assumed where there is no GPU to ask


@dataclass(frozen=True)
class Choice:
    """How a layer is run.

    Attributes:
        path: "vector" (dp4a) or "tensor_core" (int8 matrix instructions).
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


def choose(weights: DeviceWeights, rows: int) -> Choice:
    """The choice for a call with so many output rows."""
    key = "choice", power_of_two(rows)
    if key not in weights.cache:
        weights.cache[key] = measured(weights, rows) or rule(weights, rows)
    return weights.cache[key]


def rule(weights: DeviceWeights, rows: int) -> Choice:
    """Without measurements: dp4a for few rows, else the smallest tile that holds the rows; K is split until the GPU is full."""
    linear = len(weights.shape) == 2
    if linear and (rows <= VECTOR_ROWS or weights.saturates):
        why = "few rows: bound by how fast weights arrive" if rows <= VECTOR_ROWS else "sums may leave int32 on the way"
        bm = min(VECTOR_ROWS, power_of_two(rows))
        bn = 4 if bm == VECTOR_ROWS else 8
        if any(len(parts_of(shape.bits)) > 1 for shape in weights.shapes):
            bn, bm = min(bn, 4), min(bm, 4)  # words of several parts take registers
        choice = Choice(VECTOR, bn, bm, warps=1, stages=1, reason=why)
        return replace(choice, splits=_splits(weights, choice, rows, 16, _vector_steps(weights)))
    if weights.saturates:
        raise ValueError(
            f"a convolution of {weights.plan} may leave int32 on the way to its result, which int8 matrix instructions would "
            f"clamp; use fewer channels, or soniq_kernels.conv on the CPU"
        )
    bm = min(128, max(16, power_of_two(rows)))
    bn = weights.panel_outputs if rows <= 64 or weights.panel_outputs < 64 else 128
    choice = Choice(
        TENSOR_CORE, bn, bm, warps=8 if bn * bm > 64 * 128 else 4, reason="the smallest tile that holds the rows"
    )
    choice = fitted(weights, choice)
    blocks = min(shape.blocks for shape in weights.shapes)
    return replace(choice, splits=_splits(weights, choice, rows, 1, min(8, max(1, blocks // 4))) if linear else 1)


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


def key_of(weights: DeviceWeights, rows: int) -> str:
    """What choices are filed under."""
    bits = "+".join(str(shape.bits) for shape in weights.shapes)
    k = sum(shape.blocks * shape.slice for shape in weights.shapes)
    kind = "" if len(weights.shape) == 2 else "conv:"
    return f"{kind}{bits}:{power_of_two(rows)}:{power_of_two(weights.out_channels)}x{power_of_two(k)}"


def measured(weights: DeviceWeights, rows: int) -> Choice | None:
    """The table's choice, if there is a table and it has one that this layer can run."""
    path, table = load(gpu_name(weights.device))
    found = table.get("choices", {}).get(key_of(weights, rows))
    if found is None or (weights.saturates and found["path"] != VECTOR):
        return None
    return Choice(**{**found, "reason": f"measured ({path})"})


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
