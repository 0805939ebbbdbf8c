"""verify: the packed model against the training emulation, with == on every bit of every output."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .budget import unwrapped
from .freeze import frozen_layers
from .observe import evaluating, removed_at_exit, run


@dataclass(frozen=True)
class Check:
    """One comparison: how many values, how many differ, and the first one that does."""

    name: str
    values: int
    different: int
    index: tuple[int, ...] | None = None
    expected: float | None = None
    got: float | None = None

    def __str__(self) -> str:
        if not self.different:
            return f"{self.name}: {self.values} of {self.values} identical"
        return (
            f"{self.name}: {self.different} of {self.values} differ, the first at {self.index}: "
            f"expected {self.expected!r}, got {self.got!r}"
        )


@dataclass(frozen=True)
class Verification:
    """What verify found. True in a condition if every bit was identical.

    layers: one Check for each run of each quantized layer, in order of execution; outputs: the whole network's result.
    """

    layers: tuple[Check, ...]
    outputs: Check

    @property
    def first_difference(self) -> Check | None:
        """The first layer whose packed form differs on the same input; else the outputs, if they do."""
        return next((check for check in (*self.layers, self.outputs) if check.different), None)

    def __bool__(self) -> bool:
        return self.first_difference is None

    def __str__(self) -> str:
        total = self.outputs.values
        lines = [f"identical outputs: {total - self.outputs.different} of {total}"]
        lines.append(f"identical layers: {sum(not c.different for c in self.layers)} of {len(self.layers)}")
        if not self:
            lines.append(f"first difference: {self.first_difference}")
        return "\n".join(lines)


def verify(model: nn.Module, packed: nn.Module, batch: object) -> Verification:
    """Compare a frozen model and its converted form on `batch` (tensor, tuple of arguments or dict of keyword arguments).

    Every packed layer gets the very input its quantized layer got, so a difference names the layer that made it; then
    the whole networks are compared. Floats are compared as bit patterns. Both models run in eval mode, each on the device that it
    is on: the packed model may be on a GPU and the other one on the CPU.
    Raises ValueError if the model is not frozen or the two do not have the same layers.
    """
    layers, model = frozen_layers(model), unwrapped(model)
    counterparts = dict(packed.named_modules())
    checks: list[Check] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(evaluating(packed))
        for name, layer in layers:
            counterpart = _counterpart(name, counterparts)
            hook = layer.register_forward_hook(_comparison(name, counterpart, checks))
            stack.enter_context(removed_at_exit(hook))
        expected = run(nullcontext(), model, _moved(batch, _device_of(model)))
        got = run(nullcontext(), packed, _moved(batch, _device_of(packed)))
    return Verification(tuple(checks), _compare_all(expected, got))


def _comparison(name: str, counterpart: nn.Module, checks: list[Check]):
    def compare_layer(layer, args, output):
        got = counterpart(*_moved(args, _device_of(counterpart)))
        checks.append(compare(name, counterpart.with_norm(output.cpu()), got.cpu()))

    return compare_layer


def compare(name: str, expected: Tensor, got: Tensor) -> Check:
    """Compare two tensors bit by bit (so +0 and -0 differ, and equal NaNs do not)."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise ValueError(
            f"{name}: expected {tuple(expected.shape)} {expected.dtype}, got {tuple(got.shape)} {got.dtype}"
        )
    differs = _bits(expected) != _bits(got)
    count = int(differs.sum())
    if not count:
        return Check(name, expected.numel(), 0)
    index = tuple(differs.nonzero()[0].tolist())
    return Check(name, expected.numel(), count, index, expected[index].item(), got[index].item())


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32) if x.dtype == torch.float32 else x


def _compare_all(expected: object, got: object) -> Check:
    """The first differing tensor of the results, with the counts of all of them."""
    pairs = zip(tree_leaves(expected), tree_leaves(got), strict=True)
    checks = [compare("outputs", e.cpu(), g.cpu()) for e, g in pairs if isinstance(e, Tensor)]
    values, different = sum(c.values for c in checks), sum(c.different for c in checks)
    first = next((c for c in checks if c.different), None)
    return Check("outputs", values, different, *(() if first is None else (first.index, first.expected, first.got)))


def _counterpart(name: str, modules: dict[str, nn.Module]) -> nn.Module:
    if name not in modules:
        raise ValueError(f"the packed model has no layer {name}; verify takes a model and what convert made of it")
    return modules[name]


def _device_of(module: nn.Module) -> torch.device:
    """Of its first tensor; a model without any is on the CPU."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _moved(values: Any, device: torch.device) -> Any:
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, values)
