"""Files that hold one packed layer, or a whole network, read and written without torch. docs/format.md."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from soniq_kernels import network, packing, tensors

FORMAT = "soniq_kernels.network"
VERSIONS = LAYERS_ONLY, WITH_NODES = (
    "1",
    "2",
)  # versions: layers alone, for a model that somebody has; and all that is computed


# ---- layers ------------------------------------------------------------------------------------------------------------
def load_layers(path: str | Path) -> dict[str, packing.PackedWeights]:
    """Every packed layer of a file by name; a file of one layer gives {"layer": it}.

    Raises:
        ValueError: what is wrong with the file, and in which layer. OSError: the file cannot be read.
    """
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        return {"layer": packing.load(path)}
    if metadata.get("version") not in (LAYERS_ONLY, WITH_NODES):
        raise ValueError(
            f"{path} is a network of format version {metadata.get('version')!r}, this release reads versions {LAYERS_ONLY} "
            f"and {WITH_NODES}; install a matching release"
        )
    file, layers = _File(path), {}
    for name in _described(metadata, path)["layers"]:
        try:
            layers[name] = from_bytes(data := file.read(name))
        except ValueError as error:
            raise ValueError(f"{path}: layer {name}: {error}") from None
        layers[name].drop_portable_when_built(partial(file.again, name, _metadata_of(data)["sha256"]))
    return layers


class _File:
    """A network's file, kept open: a layer can be read again, also when the name is gone.

    Read, not mapped: whoever truncates the file would kill a process that has it mapped, and pages count as memory in use.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        size = int.from_bytes(os.pread(self._file, 8, 0), "little")
        self._places: dict[str, Any] = json.loads(os.pread(self._file, size, 8))  # _metadata has checked the header
        self._start = 8 + size

    def __del__(self) -> None:
        os.close(self._file)

    def read(self, layer: str) -> bytes:
        """The bytes of the file of one layer. Raises ValueError if there are none."""
        if f"{layer}.packed" not in self._places:
            raise ValueError(f"the file has no tensor {layer}.packed")
        first, end = self._places[f"{layer}.packed"]["data_offsets"]
        return os.pread(self._file, end - first, self._start + first)

    def again(self, layer: str, digest: str) -> packing.PackedWeights | None:
        """The same layer once more; None if the file was overwritten."""
        try:
            found = from_bytes(data := self.read(layer))
        except ValueError:
            return None
        return found if _metadata_of(data)["sha256"] == digest else None


def from_bytes(data: bytes) -> packing.PackedWeights:
    """The layer whose file has these bytes. Raises ValueError if they are no such file."""
    try:
        parts = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(f"these {len(data)} bytes are not packed weights: {error}") from None
    return packing.from_tensors(parts, _metadata_of(data))


def _metadata_of(data: bytes) -> dict[str, str]:
    """Of a safetensors file that can be read."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})


def to_bytes(packed: packing.PackedWeights) -> bytes:
    """The bytes that `packed.save` would write."""
    return safetensors.numpy.save(*packed.to_tensors())


def _metadata(path: str | Path) -> dict[str, str]:
    with open(path, "rb"):  # a missing file or a folder is the operating system's own, clearer error
        pass
    try:
        with safe_open(str(path), framework="np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}; was it truncated?") from None


def _described(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    """The JSON of a network, which names at least one layer."""
    try:
        content: Any = json.loads(metadata.get("network", ""))
        layers = content["layers"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: the network description is unusable: {type(error).__name__}: {error}") from None
    if not isinstance(layers, dict) or not layers:
        raise ValueError(f"{path}: the network description names no layers")
    return content


# ---- networks ----------------------------------------------------------------------------------------------------------
def describe_network(net: network.Network) -> dict[str, Any]:
    """What a file says about a network beside its layers; JSON can carry it."""
    return {
        "inputs": list(net.inputs),
        "outputs": list(net.outputs),
        "layout": net.layout,
        "tensors": {name: tensors.fields(codes) for name, codes in net.tensors.items()},
        "nodes": [_node_fields(node) for node in net.nodes],
    }


def _node_fields(node: network.Node) -> dict[str, Any]:
    return {"op": node.op, "inputs": list(node.inputs), "outputs": list(node.outputs)} | node.given(*network.ATTRIBUTES)


def save_network(net: network.Network, path: str | Path) -> None:
    """One file: its layers as complete files of one layer each, and the description in the header."""
    parts = {f"{name}.packed": np.frombuffer(to_bytes(packed), np.uint8) for name, packed in net.layers.items()}
    safetensors.numpy.save_file(parts, str(path), metadata_of({"layers": {name: [] for name in net.layers}}, net))


def metadata_of(fields: dict[str, Any], net: network.Network | None) -> dict[str, str]:
    """The header of a file: `fields` and the network, version 2; without a network version 1."""
    text = json.dumps(fields if net is None else fields | describe_network(net))
    version = LAYERS_ONLY if net is None else WITH_NODES
    return {"format": FORMAT, "version": version, "network": text, "sha256": _digest(text)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_network(path: str | Path) -> network.Network:
    """Reads a network of version 2; a file of layers alone is refused, since nothing says what to do with them."""
    metadata = _metadata(path)
    found = metadata.get("format"), metadata.get("version")
    if found != (FORMAT, WITH_NODES):
        raise ValueError(
            f"{path} has format and version {found}, expected {(FORMAT, WITH_NODES)}, as Network.save writes; "
            f"qat.load reads version {LAYERS_ONLY}"
        )
    if metadata.get("sha256") != _digest(metadata.get("network", "")):
        raise ValueError(f"{path}: the network description does not match its checksum; the file was damaged or edited")
    content = _described(metadata, path)
    layers = load_layers(path)
    try:
        return _network(content, layers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _network(content: dict[str, Any], layers: dict[str, packing.PackedWeights]) -> network.Network:
    parts = {key: content.get(key) for key in ("nodes", "tensors", "inputs", "outputs", "layout")}
    odd = set(content) - {"layers", "folded", *parts}
    if odd:
        raise ValueError(f"the network description has the unknown entries {sorted(odd)}")
    if not isinstance(parts["tensors"], dict):
        raise ValueError("the network description has no tensors, expected {name: description}")
    return network.Network(
        [_node(i, fields) for i, fields in enumerate(_list(parts["nodes"], "nodes"))],
        layers,
        {name: _tensor(name, fields) for name, fields in parts["tensors"].items()},
        _names(parts["inputs"], "inputs"),
        _names(parts["outputs"], "outputs"),
        str(parts["layout"]),
    )


def _tensor(name: str, fields: Any) -> tensors.Codes | None:
    try:
        return tensors.of_fields(fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"tensor {name}: {error}") from None


def _node(index: int, fields: Any) -> network.Node:
    if not isinstance(fields, dict) or not {"op", "inputs", "outputs"} <= set(fields):
        raise ValueError(f"node {index} is {fields!r}, expected op, inputs, outputs and attributes")
    odd = set(fields) - {"op", "inputs", "outputs", *network.ATTRIBUTES}
    if odd or not isinstance(fields["op"], str):
        raise ValueError(f"node {index} has op {fields['op']!r} and the unknown entries {sorted(odd)}")
    for name in ("layer", "residual"):
        if not isinstance(fields.get(name), (str, type(None))):
            raise ValueError(f"node {index}: {name} is {fields[name]!r}, expected a name")
    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items() if name in network.ATTRIBUTES
    }
    inputs, outputs = (_names(fields[name], f"node {index}: {name}") for name in ("inputs", "outputs"))
    return network.Node(fields["op"], inputs, outputs, **given)


def _names(names: Any, what: str) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in _list(names, what)):
        raise ValueError(f"{what} is {names!r}, expected names")
    return tuple(names)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {value!r}, expected a list")
    return value
