"""Smoothing: input channels of very different size are brought nearer to each other, at the expense of the weights.

A channel of a layer's input is multiplied by a factor and the weights that read it are divided by it (SmoothQuant, Xiao et
al., arXiv 2211.10438). Factors are powers of two, so that float layers compute the same bits as before. How far to go is
found layer by layer, by the error of the quantized layer's output. `fold` then moves the factors into what makes the
tensor - a norm, a Linear or a convolution - if nothing else reads it; elsewhere they stay a product in front of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from .layers import QuantLayer
from .nodes import LEAVES, Op
from .norms import QuantNorm
from .placement import ops_of
from .ranges import Target, start_ranges
from .tensors import InputQuantizer
from .tracing import Untraceable, submodules, trace

STRENGTHS = (0.05, 0.3, 0.5, 0.7, 0.9)
NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def smooth(targets: Sequence[Target]) -> float:
    """Choose the factors of one tensor, for all layers that read it, in place; returns the strength, 0 for none.

    Strength s asks for factors a^-s * w^(1-s), with a and w the largest values of a channel in the input and in the weights.
    """
    layers = [target.layer for target in targets]
    start = layers[0].input.factor.clone()
    largest = (_largest_inputs(targets[0]), _largest_weights(layers))
    start_ranges(targets)
    best, strength, chosen = sum(target.error() for target in targets), 0.0, start
    for candidate in STRENGTHS:
        factor = factors(*largest, candidate)
        set_factor(layers, factor)
        start_ranges(targets)
        error = sum(target.error() for target in targets)
        if error < best:
            best, strength, chosen = error, candidate, factor
    set_factor(layers, chosen)
    start_ranges(targets)
    return strength


def factors(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """float32 [C]: powers of two, their geometric mean about 1; 1 where a channel or its weights are zero."""
    wanted = (1 - strength) * weights.log2() - strength * inputs.log2()
    known = torch.isfinite(wanted)
    centred = wanted - wanted[known].mean() if known.any() else wanted
    return torch.where(known, torch.exp2(centred.round().clamp(-20, 20)), torch.ones_like(wanted))


def set_factor(layers: Sequence[QuantLayer], factor: Tensor) -> None:
    """Give the tensor that these layers read another factor [C]; what the float layers compute stays the same."""
    quantizer = layers[0].input
    with torch.no_grad():
        for layer in layers:
            layer.weight *= layer.along_weight(quantizer.factor / factor)
    quantizer.set_factor(factor)


def _largest_inputs(target: Target) -> Tensor:
    x, channels = target.x, len(target.layer.input.bits)
    rows = x.transpose(0, 1) if x.dim() > 2 else x.T
    return rows.reshape(channels, -1).abs().amax(1)


def _largest_weights(layers: Sequence[QuantLayer]) -> Tensor:
    """[C]: of the weights that read a channel of the tensor, over all layers and taps."""
    each = []
    for layer in layers:
        by_group = layer.weight.detach().abs().unflatten(0, (layer.groups, -1)).amax(1)
        each.append(by_group.reshape(len(layer.input.bits), -1).amax(1))
    return torch.stack(each).amax(0)


# --- into what makes the tensor ----------------------------------------------------------------------------------


def makers(model: nn.Module) -> dict[InputQuantizer, nn.Module]:
    """{quantizer of a tensor: the module whose output channels can take its factors}, of a prepared model.

    Between them only what multiplies through: ReLU, maxima, dropout. Empty for a model without a graph.
    """
    try:
        graph = trace(model, LEAVES)
    except Untraceable:
        return {}
    ops, modules = ops_of(graph, model), submodules(model)
    found: dict[InputQuantizer, nn.Module] = {}
    for quantizer, nodes in _readers(ops, modules).items():
        maker = _maker(nodes, ops, modules)
        if maker is not None and _outputs(maker) == len(quantizer.bits):
            found[quantizer] = maker
    return found


def fold(model: nn.Module) -> list[str]:
    """Move factors into the modules that make the tensors, in place; no output changes by a bit. Returns the modules' names."""
    names = {module: name for name, module in model.named_modules()}
    folded = []
    for quantizer, maker in makers(model).items():
        if quantizer.smooths:
            _scale_outputs(maker, quantizer.factor)
            quantizer.set_factor(torch.ones_like(quantizer.factor))
            folded.append(names[maker])
    return folded


def _readers(ops: Mapping[fx.Node, Op], modules: Mapping[str, nn.Module]) -> dict[InputQuantizer, list[fx.Node]]:
    """The calls that read each quantizer's tensor; tensors of layers that share none, too."""
    found: dict[InputQuantizer, list[fx.Node]] = {}
    for node, op in ops.items():
        if op.kind == "layer" and isinstance(modules[node.target], QuantLayer):
            found.setdefault(modules[node.target].input, []).append(node)
    return found


def _maker(nodes: list[fx.Node], ops: Mapping[fx.Node, Op], modules: Mapping[str, nn.Module]) -> nn.Module | None:
    read = {ops[node].inputs[0] for node in nodes}
    if len(read) != 1 or any(modules[node.target].spread > 1 for node in nodes):
        return None
    node, allowed = read.pop(), set(nodes)
    while set(node.users) <= allowed:
        module = modules.get(node.target) if node.op == "call_module" else None
        if _outputs(module) is not None:
            calls = [other for other in ops if other.op == "call_module" and modules[other.target] is module]
            return module if len(calls) == 1 else None
        op = ops[node]
        if op.kind not in ("same", "passed", "max_pool") and op.activation != ("relu",):
            return None
        node, allowed = op.inputs[0], {node}
    return None


def _outputs(module: nn.Module | None) -> int | None:
    """Channels of what the module makes, if factors can go into its parameters; None of any other."""
    if isinstance(module, QuantLayer):
        return len(module.weight) if module.norm is None or module.norm.weight is not None else None
    norm = module.norm if isinstance(module, QuantNorm) else module
    if not isinstance(norm, NORMS) or norm.weight is None or norm.bias is None or norm.weight.dim() != 1:
        return None
    return len(norm.weight)


@torch.no_grad()
def _scale_outputs(module: nn.Module, factor: Tensor) -> None:
    if isinstance(module, QuantLayer) and module.norm is None:
        module.weight *= factor.view(-1, *[1] * (module.weight.dim() - 1))
        module.weight_unit *= factor
        if module.bias is not None:
            module.bias *= factor
        return
    norm = module.norm if isinstance(module, (QuantLayer, QuantNorm)) else module
    norm.weight *= factor
    norm.bias *= factor
