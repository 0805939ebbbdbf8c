"""Files that hold one packed layer, or a whole network as `qat.save` writes it, read without torch. docs/format.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from soniq_kernels import packing

NETWORK = ("soniq_kernels.network", "1")  # format and version


def load_layers(path: str | Path) -> dict[str, packing.PackedWeights]:
    """Every packed layer of a file by name; a file of one layer gives {"layer": it}.

    Raises:
        ValueError: what is wrong with the file, and in which layer. OSError: the file cannot be read.
    """
    metadata = _metadata(path)
    if metadata.get("format") != NETWORK[0]:
        return {"layer": packing.load(path)}
    if metadata.get("version") != NETWORK[1]:
        raise ValueError(
            f"{path} is a network of format version {metadata.get('version')!r}, this release reads version {NETWORK[1]}; "
            f"install a matching release"
        )
    names = _layer_names(metadata.get("network", ""), path)
    layers = {}
    with safe_open(str(path), framework="np") as file:
        for name in names:
            try:
                layers[name] = from_bytes(file.get_tensor(f"{name}.packed").tobytes())
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{path}: layer {name}: {error}") from None
    return layers


def from_bytes(data: bytes) -> packing.PackedWeights:
    """The layer whose file has these bytes. Raises ValueError if they are no such file."""
    try:
        tensors = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except SafetensorError as error:
        raise ValueError(f"these {len(data)} bytes are not packed weights: {error}") from None
    return packing.from_tensors(tensors, header.get("__metadata__", {}))


def _metadata(path: str | Path) -> dict[str, str]:
    with open(path, "rb"):  # a missing file or a folder is the operating system's own, clearer error
        pass
    try:
        with safe_open(str(path), framework="np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}; was it truncated?") from None


def _layer_names(network: str, path: str | Path) -> list[str]:
    try:
        layers: Any = json.loads(network)["layers"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: the network description is unusable: {type(error).__name__}: {error}") from None
    if not isinstance(layers, dict) or not layers:
        raise ValueError(f"{path}: the network description names no layers")
    return list(layers)
