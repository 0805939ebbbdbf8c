"""One run of the float model on the example input: what every layer reads, and which batch norms follow which layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

SAMPLE = 1 << 16


@dataclass
class Seen:
    """What one layer met: how often it ran, its smallest input, a sample of its inputs, the batch norm behind it.

    rows: of the layer's matrix products for one sample, in all calls: output pixels, or what stands before the features.
    """

    order: int
    calls: int = 0
    smallest: float = 0.0
    largest: float = 0.0  # in magnitude
    sample: Tensor | None = None
    finite: bool = True
    norm: nn.Module | None = None
    rows: int = 0

    def record(self, x: Tensor) -> None:
        x = x.detach().float()
        self.calls += 1
        self.finite = self.finite and bool(torch.isfinite(x).all())
        smallest = float(x.min()) if x.numel() else 0.0
        self.largest = max(self.largest, float(x.abs().max()) if x.numel() else 0.0)
        self.smallest = smallest if self.calls == 1 else min(self.smallest, smallest)
        if self.sample is None:
            flat = x.flatten()
            self.sample = flat[:: max(1, flat.numel() // SAMPLE)].clone()


def observe(model: nn.Module, layers: list[nn.Module], example_input: object) -> tuple[dict[nn.Module, Seen], object]:
    """Run `model` once in eval mode, without gradients: (what the layers met, the model's result).

    Layers that never ran are missing.

    example_input: a tensor, a tuple of positional arguments, or a dict of keyword arguments. The model is left as it
    was: modes, batch norm statistics and counters included.
    """
    seen: dict[nn.Module, Seen] = {}
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the tensors alive, so an id names one tensor only
    followers: dict[nn.Module, list[nn.Module]] = {}

    def before(layer, args, kwargs):
        x = args[0] if args else kwargs["input"]
        seen.setdefault(layer, Seen(order=len(seen))).record(x)

    def after(layer, args, kwargs, output):
        outputs[id(output)] = (layer, output)
        if isinstance(output, Tensor):  # a hook of the user's may have made something else of it
            seen[layer].rows += _rows_of_one_sample(layer, output.shape)

    def norm_before(norm, args):
        if id(args[0]) in outputs:
            followers.setdefault(outputs[id(args[0])][0], []).append(norm)

    norms = _norms(model)
    norm_calls: Counter = Counter()
    readers = _CountReaders(outputs)
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        for layer in layers:
            stack.enter_context(removed_at_exit(layer.register_forward_pre_hook(before, with_kwargs=True)))
            stack.enter_context(removed_at_exit(layer.register_forward_hook(after, with_kwargs=True)))
        for norm in norms:
            stack.enter_context(removed_at_exit(norm.register_forward_pre_hook(norm_before)))
            stack.enter_context(removed_at_exit(norm.register_forward_hook(lambda norm, *_: norm_calls.update([norm]))))
        result = run(readers, model, example_input)
    readers.count(result)
    for layer, output in outputs.values():
        found = followers.get(layer, [])
        if len(found) == 1 and seen[layer].calls == norm_calls[found[0]] == readers.times[id(output)] == 1:
            seen[layer].norm = found[0]
    return seen, result


def _rows_of_one_sample(layer: nn.Module, output: torch.Size) -> int:
    places = len(getattr(layer, "kernel_size", ()))  # of a Linear there are none
    return math.prod(output[-places:] if places else output[1:-1])


def run(context, model: nn.Module, example_input: object) -> object:
    """`call` in a context, without gradients."""
    with torch.no_grad(), context:
        return call(model, example_input)


def call(model: nn.Module, example_input: object) -> object:
    """Call the model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example_input, Tensor):
        return model(example_input)
    if isinstance(example_input, Mapping):
        return model(**example_input)
    if isinstance(example_input, (tuple, list)):
        return model(*example_input)
    raise TypeError(
        f"example_input is {type(example_input).__name__}, expected a tensor, a tuple of arguments or a dict of "
        "keyword arguments for the model"
    )


class _CountReaders(TorchFunctionMode):
    """Counts how many operations that make tensors read each output: a batch norm may be folded if it is the only one."""

    def __init__(self, outputs: Mapping[int, object]):
        super().__init__()
        self.outputs, self.times = outputs, Counter()

    def count(self, values: object) -> None:
        self.times.update({id(v) for v in tree_leaves(values) if isinstance(v, Tensor) and id(v) in self.outputs})

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not x.shape, x.dim() and the like
            self.count((args, kwargs))
        return result


@contextmanager
def removed_at_exit(handle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, except that a batch norm that has never been trained normalises by the batch, without remembering it.

    Its initial statistics (0 and 1) would show every later layer inputs of the wrong size.
    """
    fresh = [
        norm for norm in _norms(model) if norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0
    ]
    momenta = [norm.momentum for norm in fresh]
    try:
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            for norm in fresh:
                norm.momentum = 0.0
                stack.enter_context(removed_at_exit(norm.register_forward_pre_hook(_use_batch)))
            yield
    finally:
        for norm, momentum in zip(fresh, momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.zero_()


def _use_batch(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    norm.training = args[0].numel() > args[0].shape[1]  # one value per channel has no variance
