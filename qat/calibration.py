"""What layers read on calibration batches: rows of a Linear, images of a convolution, the same ones in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress

import torch
from torch import Tensor, nn

from .observe import removed_at_exit, run


class _Enough(Exception):
    """Every layer that was asked for has run."""


def layer_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[object], items: int, seed: int = 0
) -> dict[str, Tensor]:
    """{name: float32 [items or fewer, ...]}: what these submodules of `model` read, without gradients.

    A Linear's items are rows [.., K], a convolution's are images [.., C, H, W]. The choice depends on shapes and on
    `seed` alone, so two models that compute the same shapes give the same items. A layer that runs several times in a
    batch gives items of its first run. Layers that never run are missing.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    missing: set[str] = set()
    each = -(-items // max(len(batches), 1))

    def keep(name: str):
        def hook(layer, args, kwargs):
            x = as_items(layer, (args[0] if args else kwargs["input"]).detach().float())
            if name in missing:
                chooser = torch.Generator().manual_seed(seed + len(found[name]))
                found[name].append(x[torch.randperm(len(x), generator=chooser)[:each]].clone())
                missing.remove(name)
            if not missing:
                raise _Enough

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(removed_at_exit(layer.register_forward_pre_hook(keep(name), with_kwargs=True)))
        for batch in batches:
            missing.update(layers)
            with suppress(_Enough):
                run(nullcontext(), model, batch)
    return {name: torch.cat(parts)[:items] for name, parts in found.items() if parts}


def as_items(layer: nn.Module, x: Tensor) -> Tensor:
    """[items, K] of a Linear's input, [items, C, ...] of a convolution's."""
    if not hasattr(layer, "in_channels"):
        return x.reshape(-1, x.shape[-1])
    return x if x.dim() > layer.weight.dim() - 1 else x.unsqueeze(0)
