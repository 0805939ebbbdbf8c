"""One file for a converted network: packed layers, edges and float leftovers side by side, in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from soniq_kernels import _networks, torch_ops
from soniq_kernels._optional import require
from soniq_kernels.network import Network

from .convert import to_codes
from .edges import PackedEdge, QuantAvgPool2d, QuantEdge
from .embeddings import PackedEmbedding
from .exporting import network_of
from .geometry import Geometry
from .network import EDGES, PREFIX
from .nodes import LEAVES
from .norms import PackedNorm
from .packed_layers import PackedConv1d, PackedConv2d, PackedLayer, PackedLinear
from .placement import Placement, insert
from .tracing import Traced, Untraceable, give_forward, swap, trace

NOTHING_MORE: dict[str, Any] = {
    "pixels": {},
    "lines": [],
    "embeddings": [],
    "norms": {},
    "edges": {},
    "placement": None,
    "codes": False,
}  # of a file of layers alone


def save(packed: nn.Module, path: str | Path) -> None:
    """Write a converted model to one safetensors file: `<layer>.packed` is what PackedWeights.save writes for that layer.

    `soniq_kernels.load_network` runs the file without torch, if all between the layers is codes. Raises ValueError if the model holds no packed layer.
    """
    layers = {name: layer for name, layer in packed.named_modules() if isinstance(layer, PackedLayer)}
    if not layers:
        raise ValueError(f"this {type(packed).__name__} has no packed layer; save what qat.convert returns")
    network = {
        "layers": {
            name: layer.place.ints() if isinstance(layer, PackedConv2d) else [] for name, layer in layers.items()
        },
        "folded": [name for name, module in packed.named_modules() if isinstance(module, nn.Identity)],
    }
    metadata = _networks.metadata_of(network, _program(packed)) | {"torch": json.dumps(_fields(packed))}
    require("safetensors.torch", extra="torch").save_model(packed, str(path), metadata=metadata)


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Read a converted network back: `model` is a fresh float instance of it; its layers are swapped in place.

    Returns the model in eval mode. Raises ValueError if the file is not such a network or does not fit the model.
    """
    torch_files = require("safetensors.torch", extra="torch")
    description = _description(path)
    tensors = torch_files.load_file(str(path))
    modules = dict(model.named_modules())
    swaps: dict[nn.Module, nn.Module] = {_module(modules, name): nn.Identity() for name in description["folded"]}
    swaps |= {_module(modules, name): PackedNorm(size) for name, size in description["norms"].items()}
    for name, ints in description["layers"].items():
        if f"{name}.packed" not in tensors:
            raise ValueError(f"{path} names the layer {name} but holds no {name}.packed; save the network again")
        weights = torch_ops.weights_from_tensor(tensors[f"{name}.packed"])
        place, pixels = Geometry.of_ints(ints), description["pixels"].get(name, 1)
        convolution = PackedConv1d if name in description["lines"] else PackedConv2d
        factor = tensors.get(f"{name}.input_factor")
        packed = PackedLinear(weights, pixels, factor) if place is None else convolution(weights, place, factor)
        swaps[_module(modules, name)] = packed
    for name in description["embeddings"]:
        swaps[_module(modules, name)] = PackedEmbedding(torch_ops.weights_from_tensor(tensors[f"{name}.packed"]))
    swap(model, swaps)
    if description["edges"]:
        _add_edges(model, description, path)
    try:
        torch_files.load_model(model, str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}") from error
    model.eval()
    if description["codes"]:
        to_codes(model)
    return model


def _program(packed: nn.Module) -> Network | None:
    """All that is computed, for NumPy; None if torch has a part in it."""
    try:
        return network_of(packed)
    except ValueError:
        return None


def _fields(packed: nn.Module) -> dict[str, Any]:
    """What rebuilding the torch module needs beside its layers."""
    modules = list(packed.named_modules())
    return {
        "pixels": {name: module.pixels for name, module in modules if getattr(module, "pixels", 1) > 1},
        "lines": [name for name, module in modules if isinstance(module, PackedConv1d)],
        "embeddings": [name for name, module in modules if isinstance(module, PackedEmbedding)],
        "norms": {name: len(module.g) for name, module in modules if isinstance(module, PackedNorm)},
        "edges": {name: _edge_fields(edge) for name, edge in getattr(packed, EDGES, nn.Module()).named_children()},
        "placement": getattr(packed, "soniq_placement", None),
        "codes": isinstance(packed, Traced),
    }


# --- edges -------------------------------------------------------------------------------------------------------


def _edge_fields(edge: nn.Module) -> dict[str, Any]:
    if isinstance(edge, QuantAvgPool2d):
        return _edge_fields(edge.edge) | {"pool": [edge.kernel, edge.stride, edge.flat]}
    return {"bits": edge.widths[0], "kind": edge.kind}


def _edge_of(fields: dict[str, Any]) -> nn.Module:
    edge = PackedEdge(QuantEdge(fields["bits"], fields["kind"]))
    return QuantAvgPool2d(edge, *fields["pool"]) if "pool" in fields else edge


def _add_edges(model: nn.Module, description: dict, path: str | Path) -> None:
    """The quantizers between layers, where the file says that they were."""
    try:
        graph = trace(model, LEAVES)
        placement = Placement.of_names(description["placement"], graph)
    except (Untraceable, KeyError) as error:
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: its forward is another one ({error})"
        ) from error
    holder = nn.Module()
    for name, fields in description["edges"].items():
        holder.add_module(name, _edge_of(fields))
    model.add_module(EDGES, holder)
    model.soniq_placement = description["placement"]
    insert(graph, placement, PREFIX)
    give_forward(model, graph)


def _description(path: str | Path) -> dict:
    with require("safetensors", extra="torch").safe_open(str(path), framework="numpy") as file:
        metadata = file.metadata() or {}
    found, versions = (metadata.get("format"), metadata.get("version")), _networks.VERSIONS
    if found[0] != _networks.FORMAT or found[1] not in versions:
        expected = f"{_networks.FORMAT!r} and one of {versions}"
        raise ValueError(f"{path} has format and version {found}, expected {expected}, as qat.save writes")
    return {**NOTHING_MORE, **json.loads(metadata["network"]), **json.loads(metadata.get("torch", "{}"))}


def _module(modules: dict[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise ValueError(f"the file has a layer {name}, the model does not; give a fresh instance of the same network")
    return modules[name]
