"""The portable file of packed weights: safetensors, checked in full before anything is believed. docs/format.md draws it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from soniq_kernels.plans import Grid, Plan
from soniq_kernels.weights import PackedWeights, activation_scale_of, check_packed, stream_length

FORMAT, VERSION = "soniq", "1"
_VECTORS = ("scale", "bias", "post_scale", "post_bias")
_AT_BITS = {"scale_at_bits.": "scales_at_bits", "bias_at_bits.": "biases_at_bits"}  # {prefix: attribute}

Tensors = dict[str, NDArray[Any]]


# ---- writing -------------------------------------------------------------------------------------------------------
def to_tensors(packed: PackedWeights) -> tuple[Tensors, dict[str, str]]:
    """Everything of one layer as arrays and strings."""
    tensors: Tensors = {f"planes.{i}": p for i, p in enumerate(packed._portable("save"))}
    tensors["segment_of"] = packed.plan.segment_of().astype(np.uint8)
    tensors |= {name: v for name in _VECTORS if (v := getattr(packed, name)) is not None}
    tensors |= {f"{prefix}{q}": v for prefix, name in _AT_BITS.items() for q, v in getattr(packed, name).items()}
    scale = packed.activation_scale
    layer = {
        "shape": list(packed.shape),
        "segments": [{"w": _grid_fields(s.w), "a": _grid_fields(s.a)} for s in packed.plan.segments],
        "activation_scale": scale if scale is None or isinstance(scale, str) else float(scale),  # repr keeps all bits
    }
    metadata = {"format": FORMAT, "version": VERSION, "layer": json.dumps(layer)}
    return tensors, metadata | {"sha256": _digest(tensors, metadata["layer"])}


def save(packed: PackedWeights, path: str | Path) -> None:
    """One layer as one file."""
    tensors, metadata = to_tensors(packed)
    save_file(tensors, str(path), metadata)


def _grid_fields(g: Grid) -> dict[str, Any]:
    return {"kind": g.kind, "bits": g.bits, "offset": g.offset, "shift": g.shift}


def _digest(tensors: Tensors, layer: str) -> str:
    digest = hashlib.sha256(layer.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


# ---- reading -------------------------------------------------------------------------------------------------------
def load(path: str | Path) -> PackedWeights:
    """Reads a file that `PackedWeights.save` wrote.

    Raises:
        ValueError: what is wrong with the file: not safetensors, truncated, another format or version, a tensor that is
            missing, of another shape or dtype or out of range, contents that do not match their checksum.
        OSError: the file cannot be read.
    """
    with open(path, "rb"):  # a missing file or a folder is the operating system's own, clearer error
        pass
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            shapes = {k: (file.get_slice(k).get_dtype(), tuple(file.get_slice(k).get_shape())) for k in file.keys()}  # noqa: SIM118
            _check_layout(shapes, metadata)
            tensors = {name: file.get_tensor(name) for name in shapes}
        return from_tensors(tensors, metadata)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}; was it truncated?") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_tensors(tensors: Tensors, metadata: dict[str, str]) -> PackedWeights:
    """The layer that `PackedWeights.to_tensors` described; the same checks as `load`."""
    shapes = {name: (_DTYPES.get(t.dtype.str, str(t.dtype)), t.shape) for name, t in tensors.items()}
    shape, grids, activation_scale = _check_layout(shapes, metadata)
    if metadata.get("sha256") != _digest(tensors, metadata["layer"]):
        raise ValueError("the contents do not match their checksum; the file was damaged or edited")
    plan = Plan.of_segments(tensors["segment_of"], grids)
    scales, biases = ({int(n[-1]): t for n, t in tensors.items() if n.startswith(prefix)} for prefix in _AT_BITS)
    planes = [tensors[f"planes.{i}"] for i in range(len(grids))]
    vectors = {name: tensors.get(name) for name in _VECTORS[1:]}
    if len(plan.segments) != len(grids) or [(s.w, s.a) for s in plan.segments] != grids:
        raise ValueError("segments are not in the order [low | high], or one of them has no channel")
    for i, p in enumerate(planes):
        _check_planes(p, stream_length(plan, shape, i), f"planes.{i}")
    if biases and vectors["bias"] is None:
        raise ValueError("there are biases of fewer bits but the tensor bias is missing")
    packed = PackedWeights(
        plan, shape, planes, tensors["scale"], activation_scale=activation_scale,
        scales_at_bits=scales, biases_at_bits=biases, **vectors,
    )  # fmt: skip
    check_packed(packed)
    return packed


_DTYPES = {"|u1": "U8", "<f4": "F32"}


def _check_layout(
    shapes: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> tuple[tuple[int, ...], list[tuple[Grid, Grid]], np.float32 | str | None]:
    """Every name, dtype and shape, from the header alone."""
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f'format is {metadata.get("format")!r}, expected "{FORMAT}": this is no file of packed weights'
        )
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"format version is {metadata.get('version')!r}, this release reads version {VERSION}; install a matching release"
        )
    shape, grids, scale = _parse_layer(metadata.get("layer", ""))
    if "segment_of" not in shapes:
        raise ValueError("the tensor segment_of is missing")
    expected = {"segment_of": ("U8", shapes["segment_of"][1]), "scale": ("F32", (shape[0],))}
    for i in range(len(grids)):
        expected[f"planes.{i}"] = ("U8", shapes.get(f"planes.{i}", ("", ()))[1])
    for name in shapes:
        if name in _VECTORS or (name[:-1] in _AT_BITS and name[-1] in "12345678"):
            expected[name] = ("F32", (shape[0],))
    if set(shapes) != set(expected):
        odd = sorted(set(shapes) ^ set(expected))
        raise ValueError(f"tensors {sorted(shapes)} do not fit the header: {odd} missing or unknown")
    for name, (dtype, size) in shapes.items():
        if (dtype, size) != expected[name]:
            raise ValueError(f"{name} is {dtype} {list(size)}, expected {expected[name][0]} {list(expected[name][1])}")
    _check_plane_shapes(shapes, shape, grids)
    return shape, grids, scale


def _check_plane_shapes(
    shapes: dict[str, tuple[str, tuple[int, ...]]], shape: tuple[int, ...], grids: list[tuple[Grid, Grid]]
) -> None:
    channels = shapes["segment_of"][1]
    if len(channels) != 1 or channels[0] < 1:
        raise ValueError(f"segment_of has shape {list(channels)}, expected one entry per input channel")
    if channels[0] % shape[-1] or shape[0] % (channels[0] // shape[-1]):
        raise ValueError(f"weights of shape {list(shape)} cannot belong to {channels[0]} input channels")
    for i, (w, _) in enumerate(grids):
        size = shapes[f"planes.{i}"][1]
        if len(size) != 2 or size[0] != w.bits:
            raise ValueError(f"planes.{i} has shape {list(size)}, expected [{w.bits}, bytes] for {w.bits} bits")


def _parse_layer(text: str) -> tuple[tuple[int, ...], list[tuple[Grid, Grid]], np.float32 | str | None]:
    try:
        layer = json.loads(text)
        shape = tuple(layer["shape"])
        grids = [(Grid(**s["w"]), Grid(**s["a"])) for s in layer["segments"]]
        scale = activation_scale_of(layer["activation_scale"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the layer description in the header is unusable: {type(error).__name__}: {error}") from None
    sizes_ok = all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n < 2**31 for n in shape)
    if len(shape) not in (2, 4) or not sizes_ok or len(grids) not in (1, 2):
        raise ValueError(
            f"the header has shape {list(shape)} and {len(grids)} segments, expected [N, K] or OHWI and 1 or 2"
        )
    return shape, grids, scale


def _check_planes(planes: NDArray[np.uint8], codes: int, name: str) -> None:
    if planes.shape[1] != (codes + 7) // 8:
        raise ValueError(f"{name} has {planes.shape[1]} bytes a plane, expected {(codes + 7) // 8} for {codes} codes")
    if codes % 8 and (planes[:, -1] >> (codes % 8)).any():
        raise ValueError(f"{name} has bits set in the padding behind its last code")
