"""A loss that is NaN or infinite stops training, with the layer that it came from."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .budget import unwrapped
from .observe import removed_at_exit, run


def check_finite(loss: Tensor, model: nn.Module, batch: object) -> Tensor:
    """`loss`, if it is finite. Reads its value, which a GPU has to be waited for.

    Otherwise raises FloatingPointError that names the first layer whose output is not, or the parameter that is not:
    the model runs once more on `batch` (a tensor, a tuple of arguments or a dict of keyword arguments), in its mode.
    """
    if bool(torch.isfinite(loss.detach()).all()):
        return loss
    model = unwrapped(model)
    reason = (
        _first_parameter(model)
        or _first_layer(model, batch)
        or "the outputs are finite, so the loss itself is the cause"
    )
    raise FloatingPointError(
        f"the loss is {loss.detach().float().mean().item()}: {reason}; lower the learning rate or clip gradients, and resume from a "
        "checkpoint before this step"
    )


def _first_parameter(model: nn.Module) -> str | None:
    found = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p.detach()).all())]
    return f"{found[0]} is not finite (and {len(found) - 1} other parameters)" if found else None


def _first_layer(model: nn.Module, batch: object) -> str | None:
    """The first module in the order of execution that makes of finite inputs an output that is not."""
    found: list[str] = []
    state = {key: value.clone() for key, value in model.state_dict().items()}  # batch norms count what they see
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                hook = module.register_forward_hook(_note(f"{name} ({type(module).__name__})", found))
                stack.enter_context(removed_at_exit(hook))
        run(torch.random.fork_rng(devices=[]), model, batch)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(state[key])
    return f"layer {found[0]} makes it of finite inputs" if found else None


def _note(name: str, found: list[str]):
    def look(module, args, output):
        if _finite(args) and not _finite(output):
            found.append(name)

    return look


def _finite(values: object) -> bool:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
