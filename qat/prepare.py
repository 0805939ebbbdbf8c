"""prepare: swap the Linear, Conv1d and Conv2d layers of a float model for quantized ones, in place."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import nn

from .allocation import Budget
from .budget import attach, learned_layers
from .config import AUTO, Config
from .embeddings import QuantEmbedding, reason_to_stay_float
from .exactness import INT32_MAX, accumulator_bound
from .layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear, name_of_pair
from .nested import Nested
from .network import Network, add_edges, study
from .norms import QuantNorm
from .observe import Seen, observe
from .placement import has_statistics
from .targets import bytes_of, target_of
from .tensors import Palette, fit_input
from .tracing import swap

Palettes = tuple[Palette, Palette]  # of the weights, of the activations
KINDS = {nn.Linear: QuantLinear, nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d}
SUPPORTED = "Linear, Conv1d or Conv2d"
WEIGHTED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)


def prepare(model: nn.Module, config: Config, example_input: object) -> nn.Module:
    """Make `model` trainable at low precision, in place, and return it.

    Parameters stay the same objects, so an optimizer made earlier goes on working (it lacks the new scales and
    precisions: see `param_groups`). A BatchNorm that alone reads a layer's output moves into that layer. Layers that
    cannot be quantized stay float32; `report` gives the reason for each. All new tensors have their final shape, and
    state_dict loads strictly at any phase.

    example_input: one real batch, as a tensor, a tuple of arguments or a dict of keyword arguments.
    Raises ValueError if the model was prepared before, is itself a layer, or has nothing to quantize.
    """
    _refuse_unpreparable(model)
    names, float_bytes = _names(model), bytes_of(model)
    candidates = [layer for layer in names if type(layer) in KINDS]
    _refuse_unmatched(config, [names[layer] for layer in candidates])
    seen, result = observe(model, candidates, example_input)
    fixed = _fixed(seen, config)
    palettes = _palettes(seen, fixed, config)
    left = {names[layer]: _reason_to_stay_float(layer, names[layer], seen, palettes, config) for layer in candidates}
    taken = [layer for layer in candidates if left[names[layer]] is None]
    if not taken:
        listing = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or f"it has no {SUPPORTED}"
        raise ValueError(f"prepare found no layer to quantize in this {type(model).__name__} ({listing})")
    folded = {layer: norm for layer in taken if config.fold_batch_norm and (norm := _foldable(layer, seen[layer].norm))}
    network = study(model, taken, folded.values(), example_input, result)
    quantized: dict[nn.Module, QuantLayer] = {}
    for layer in taken:
        spread = network.pixels.get(names[layer], 1)
        quantized[layer] = _quantized(layer, palettes[layer], seen[layer], config, folded.get(layer), spread)
        if layer not in fixed:
            _choose_weights(quantized[layer], config)
    norms: dict[nn.Module, nn.Module] = {norm: QuantNorm(norm) for norm in network.norms}
    rows, embeddings = _embeddings(names, config)
    swap(model, {**quantized, **norms, **rows, **{norm: nn.Identity() for norm in folded.values()}})
    _refuse_unreached(model, example_input, list(quantized.values()), [names[layer] for layer in taken])
    _share_inputs(model, network)
    if config.edge_bits is not None:
        add_edges(model, network, config.edge_bits)
    model.soniq_floats = [network.untraced] if network.untraced else []
    reasons = {name: reason for name, reason in left.items() if reason} | _unsupported(names) | embeddings
    attach(model, target_of(model, config, list(quantized.values()), float_bytes), config, float_bytes, reasons)
    _refuse_impossible_budget(model, config)
    return model


def _refuse_impossible_budget(model: nn.Module, config: Config) -> None:
    """Before anything is trained, not at `freeze`."""
    inputs = list(dict.fromkeys(layer.input for layer in learned_layers(model)))
    if inputs and config.palette != AUTO:
        budget = Budget(inputs, float(model.soniq_target_bits), model.soniq_cost, least_share=config.least_share)
        budget.require(config.palette, config.a_palette)


def _share_inputs(model: nn.Module, network: Network) -> None:
    """Layers that read one tensor read the same codes, where they may have the same bits."""
    for names in network.readers.values():
        first, *others = (model.get_submodule(name) for name in names)
        for other in others:
            mine, theirs = ((q.palette, q.a_palette, q.learns, len(q.bits)) for q in (first.input, other.input))
            if mine == theirs:
                other.share_input(first)


def _refuse_unpreparable(model: nn.Module) -> None:
    if any(isinstance(module, QuantLayer) for module in model.modules()):
        raise ValueError("this model is already prepared; prepare a fresh float model instead")
    if type(model) in KINDS:
        raise ValueError(f"the model is a single {type(model).__name__}, which cannot be swapped in place; "
                         "wrap it: nn.Sequential(layer)")  # fmt: skip


def _refuse_unmatched(config: Config, names: list[str]) -> None:
    for pattern in config.exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"exclude has {pattern!r}, which matches no {SUPPORTED}; there are: {', '.join(names)}")


def _embeddings(names: dict[nn.Module, str], config: Config) -> tuple[dict[nn.Module, nn.Module], dict[str, str]]:
    """(what takes the place of embeddings, {name: why it stays float} of the others)."""
    swaps: dict[nn.Module, nn.Module] = {}
    reasons = {}
    for module, name in names.items():
        if type(module) is nn.Embedding:
            reason = (
                "Config(embedding_bits=8) would pack its rows"
                if config.embedding_bits is None
                else reason_to_stay_float(module)
            )
            if any(fnmatchcase(name, pattern) for pattern in config.exclude):
                reason = "excluded"
            if reason is not None:
                reasons[name] = reason
            elif config.embedding_bits is not None:
                swaps[module] = QuantEmbedding(module, config.embedding_bits)
                swaps[module].training = module.training
    return swaps, reasons


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Every module once, with the first of its names."""
    return {module: name for name, module in model.named_modules()}


def _unsupported(names: dict[nn.Module, str]) -> dict[str, str]:
    """Layers with weights that are no Linear, Conv1d or Conv2d (subclasses may compute something else)."""
    reasons = {
        name: f"a {type(module).__name__} is not supported"
        for module, name in names.items()
        if isinstance(module, WEIGHTED) and type(module) not in (*KINDS, nn.Embedding)
    }
    for module, name in names.items():
        if isinstance(module, nn.MultiheadAttention):
            inside = "its projections are one product inside of torch; use an attention of separate nn.Linear layers"
            reasons |= {name: inside, f"{name}.out_proj".lstrip("."): inside}
    return reasons


def _fixed(seen: dict[nn.Module, Seen], config: Config) -> dict[nn.Module, int]:
    """{the first and the last layer: bits}, where they have one fixed precision."""
    last = max((s.order for s in seen.values()), default=0)
    bits = {last: config.last_bits} | {0: config.first_bits or (config.last_bits if last == 0 else None)}
    return {layer: fixed for layer, s in seen.items() if (fixed := bits.get(s.order)) is not None}


def _palettes(seen: dict[nn.Module, Seen], fixed: dict[nn.Module, int], config: Config) -> dict[nn.Module, Palettes]:
    """(low, high) bits of every layer's weights and activations: the palettes, or one fixed precision."""
    learned = config.levels, config.a_palette or config.levels
    return {layer: ((b, b), (b, b)) if (b := fixed.get(layer)) else learned for layer in seen}


def _reason_to_stay_float(
    layer: nn.Module,
    name: str,
    all_seen: dict[nn.Module, Seen],
    palettes: dict[nn.Module, Palettes],
    config: Config,
) -> str | None:
    seen = all_seen.get(layer)
    if any(fnmatchcase(name, pattern) for pattern in config.exclude):
        return "excluded"
    if seen is None:
        return "the example input does not reach its forward"
    if layer.weight.dtype != torch.float32:
        return f"its weight is {layer.weight.dtype}, not float32"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks"
    if not isinstance(layer, nn.Linear) and layer.padding_mode != "zeros":
        return f"padding_mode is {layer.padding_mode!r}, only zeros are exact"
    if not seen.finite:
        raise ValueError(f"layer {name} reads NaN or infinity on example_input; give a batch on which the model works")
    learned = config.palette == AUTO and palettes[layer][0] == config.levels
    return _reason_of_size(layer, *(((1, 4), (1, 4)) if learned else palettes[layer]))


def _reason_of_size(layer: nn.Module, palette: Palette, a_palette: Palette) -> str | None:
    """The widest sums this layer could be asked for must fit int32."""
    channels, taps = layer.weight.shape[1], layer.weight[0, 0].numel()
    bound = accumulator_bound([(palette[1], a_palette[1])] * channels, "bipolar", taps, groups=1)
    bits = name_of_pair((palette[1], a_palette[1]))
    return None if bound <= INT32_MAX else f"sums of {channels * taps} products may pass int32 at {bits} bits"


def _quantized(
    layer: nn.Module, palettes: Palettes, seen: Seen, config: Config, norm: nn.Module | None, spread: int
) -> QuantLayer:
    (palette, a_palette), kind = palettes, config.a_grid
    if kind == "auto":
        kind = "unsigned" if seen.smallest >= 0 else "bipolar"
    learns = palette[0] < palette[1]
    quantized = KINDS[type(layer)](layer, palette, kind, learns, spread, a_palette)
    quantized.rows = max(1, seen.rows)
    quantized.norm = norm
    if config.a_scale == "per_row":
        quantized.input.scale_rows()
    _start(quantized, config.start_bits if learns else palette[1], seen)
    quantized.training = layer.training  # not .train(): the batch norm keeps a mode of its own
    return quantized


def _choose_weights(layer: QuantLayer, config: Config) -> None:
    """What the weights of learned layers may have and those of the first and the last layer do not."""
    layer.w_kind, layer.w_scale, layer.surrogate = config.w_grid, config.w_scale, config.surrogate
    layer.weight_gain.requires_grad_(config.w_scale == "learned")
    if config.w_grid != "bipolar":
        layer.read_bits()
        layer.fit_weight_scale()
    if config.nested_bits:
        layer.nested = Nested(config.nested_bits, layer)


def _foldable(layer: nn.Module, norm: nn.Module | None) -> nn.Module | None:
    """The norm, if it has fixed statistics, float32, no hooks, and is of the kind that normalises the output channels."""
    expected = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    fits = type(norm) is expected and norm.num_features == len(layer.weight) and has_statistics(norm)
    return norm if fits else None


def _start(layer: QuantLayer, bits: float, seen: Seen) -> None:
    """First values: every channel at `bits`, scales by least squares for that width.

    8-bit inputs take the full range instead, and keep it: images of uint8 pixels then pass without loss.
    """
    a_bits = layer.input.a_bits_at(bits)
    with torch.no_grad():
        layer.precision.fill_(precision_of(bits))
        layer.set_bits(*(torch.full_like(layer.input.bits, round(each)) for each in (bits, a_bits)))
        layer.fit_weight_scale()
    fit_input(layer.input, round(a_bits), seen)
    if a_bits == 8 and seen.order == 0:
        layer.input.gain.requires_grad_(False)


def precision_of(bits: float) -> float:
    """s with 1 + log2(1 + e^-s) = bits; just above 1 bit for 1, where s would be infinite."""
    return -math.log(2.0 ** (max(bits, 1.01) - 1) - 1)


def _refuse_unreached(model: nn.Module, example_input: object, layers: list[QuantLayer], names: list[str]) -> None:
    """A layer kept in a plain list, too, would go on being called as float: say so instead of training nothing."""
    seen, _ = observe(model, layers, example_input)
    missed = [name for layer, name in zip(layers, names, strict=True) if layer not in seen]
    if missed:
        raise ValueError(
            f"the model calls {', '.join(missed)} through a reference that is not a submodule (a plain list or dict?), "
            "so it would stay float; use nn.ModuleList or nn.ModuleDict, or exclude it"
        )
