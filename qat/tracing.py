"""A model's forward as a torch.fx graph, and a graph as the forward of a model that stays the same object."""

from __future__ import annotations

import importlib
import linecache
import operator
import types
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, SupportsIndex

import torch
from torch import fx, nn

from .layouts import CHANGES

_numbers = count()
VIEW = (
    "soniq_view"  # meta of a node: the user wrote a view, which the layout of a quantized layer's result does not allow
)


class Untraceable(ValueError):
    """Why a forward cannot become a graph."""


class _Tracer(fx.Tracer):
    """Leaves are torch's own layers and those named; everything else is looked into."""

    def __init__(self, leaves: tuple[type, ...], method: str):
        super().__init__(autowrap_functions=CHANGES)
        self.leaves, self.traced_func_name = leaves, method

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, name)


def trace(model: nn.Module, leaves: tuple[type, ...] = (), method: str = "forward") -> fx.Graph:
    """The graph of `model`'s forward (or another method), the same in training and in eval mode. Raises Untraceable."""
    _refuse_hooks(model, _Tracer(leaves, method))
    training, graph = (_trace_as(model, _Tracer(leaves, method), mode) for mode in (True, False))
    if str(training) != str(graph):
        raise Untraceable(
            "its forward is another one in training than in eval mode, other than inside torch's own layers"
        )
    _read_after_writing(graph, submodules(model))
    _flatten_by_name(graph)
    return graph


def _refuse_hooks(model: nn.Module, tracer: fx.Tracer) -> None:
    """A graph calls leaves only: what hangs on a block around them would be lost."""
    for name, module in model.named_modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        if name and hooks and not tracer.is_leaf_module(module, name):
            raise Untraceable(f"{name} has forward hooks, which a graph of the whole model would not call")


def submodules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module under every name that it has."""
    return dict(model.named_modules(remove_duplicate=False))


def swap(model: nn.Module, swaps: dict[nn.Module, nn.Module]) -> None:
    """Replace modules under every name they have."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in swaps:
                parent._modules[name] = swaps[child]
        if isinstance(
            parent, nn.TransformerEncoderLayer
        ):  # their fast path takes weights past the layers that hold them
            parent.activation_relu_or_gelu = 0
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False


def _trace_as(model: nn.Module, tracer: fx.Tracer, training: bool) -> fx.Graph:
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = training
        return tracer.trace(model)
    except Exception as error:  # whatever the user's forward does with a stand-in for a tensor
        reason = (str(error).strip().splitlines() or [""])[0]
        raise Untraceable(f"torch.fx cannot trace its forward: {type(error).__name__}: {reason}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _read_after_writing(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """What is read after an operation has changed it in place is that operation's result: say so in the graph."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if _writes(node, modules) and node.args and isinstance(node.args[0], fx.Node):
            _use_instead(node.args[0], node, order)


def _use_instead(tensor: fx.Node, written: fx.Node, order: Mapping[fx.Node, int]) -> None:
    tensor.replace_all_uses_with(written, lambda user: order[user] > order[written])


def _writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[node.target], "inplace", False))
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.kwargs.get("inplace", False) is True or (name.endswith("_") and not name.endswith("__"))


def _flatten_by_name(graph: fx.Graph) -> None:
    """x.view(x.size(0), -1) is torch.flatten(x, 1): said like this, nothing asks for a tensor's size."""
    for node in list(graph.nodes):
        sizes: list[Any] = list(node.args[1:]) if node.target in ("view", "reshape", torch.reshape) else []
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = list(sizes[0])
        if len(sizes) == 2 and sizes[1] == -1 and _is_batch(sizes[0]):
            with graph.inserting_before(node):
                flat = graph.call_function(torch.flatten, (node.args[0], 1))
            flat.meta[VIEW] = True
            node.replace_all_uses_with(flat)
            _erase(node)


def _is_batch(size: object) -> bool:
    """x.size(0), x.shape[0] or len(x)."""
    if not isinstance(size, fx.Node):
        return False
    if size.target in ("size", len):
        return size.args[1:] == (0,) or size.target is len
    return size.target is operator.getitem and size.args[1] == 0 and _is_shape(size.args[0])


def _is_shape(node: object) -> bool:
    return isinstance(node, fx.Node) and (node.target == "size" or (node.target is getattr and node.args[1] == "shape"))


def _erase(node: fx.Node) -> None:
    """A node that nothing reads, and what only it read."""
    if not node.users and node.op != "placeholder":
        reads = node.all_input_nodes
        node.graph.erase_node(node)
        for read in reads:
            if read.target in ("size", getattr, operator.getitem, len):
                _erase(read)


# --- a graph as a forward ----------------------------------------------------------------------------------------


class Traced:
    """What a model becomes when graphs take the place of its forward: an instance of a subclass made on the spot.

    soniq_sources: {name of a method: its source and the names that it uses}. Graphs name submodules, so copies of the
    model share them.
    """

    soniq_sources: Mapping[str, Source]

    def __reduce_ex__(self, protocol: SupportsIndex):
        """Pickle by the source of the methods, since the class exists in this process only."""
        return _restored, (own_class(self), dict(self.soniq_sources)), self.__dict__


class Source:
    """Python source of a graph's forward, and the modules and functions that it names."""

    def __init__(self, text: str, names: Mapping[str, object]):
        self.text, self.names = text, dict(names)

    def __deepcopy__(self, memo) -> Source:
        return self

    def __reduce__(self):
        modules = {name: value.__name__ for name, value in self.names.items() if isinstance(value, types.ModuleType)}
        others = {name: value for name, value in self.names.items() if name not in modules}
        return _imported, (self.text, others, modules)

    def compiled(self) -> Callable:
        """The function, which tracebacks and inspect can show."""
        file = f"<soniq graph {next(_numbers)}>"
        linecache.cache[file] = (len(self.text), None, self.text.splitlines(keepends=True), file)
        space = dict(self.names)
        exec(compile(self.text, file, "exec"), space)
        return space["forward"]


def _imported(text: str, names: Mapping[str, object], modules: Mapping[str, str]) -> Source:
    return Source(text, {**names, **{name: importlib.import_module(module) for name, module in modules.items()}})


def give_forward(model: nn.Module, graph: fx.Graph, **others: fx.Graph) -> None:
    """From now on `model` computes `graph`. It stays the same object and an instance of its own class.

    others: further graphs, as methods of these names.
    """
    sources = {}
    for name, each in {"forward": graph, **others}.items():
        code = each.python_code("self")
        sources[name] = Source(code.src, code.globals)
    model.__class__ = _subclass(own_class(model), sources)


def own_class(model: nn.Module) -> type[nn.Module]:
    """The user's class of a model."""
    return type(model).__mro__[2] if isinstance(model, Traced) else type(model)


def _subclass(base: type[nn.Module], sources: Mapping[str, Source]) -> type[nn.Module]:
    methods = {name: source.compiled() for name, source in sources.items()}
    return type(base.__name__, (Traced, base), {"soniq_sources": sources, "__module__": base.__module__, **methods})


def _restored(base: type[nn.Module], sources: Mapping[str, Source]) -> nn.Module:
    cls = _subclass(base, sources)
    return cls.__new__(cls)
