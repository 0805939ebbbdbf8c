"""Networks whose tensors stay codes from the first layer to the last, executed with NumPy alone. docs/network.md.

net = soniq_kernels.load_network("network.safetensors")
logits = net(images)                                  # float32 NHWC, or whatever layout the file says

net = network.Network(nodes, layers, tensors)         # by hand
net.save("network.safetensors")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soniq_kernels import _arrays, conv, gemm, ops
from soniq_kernels.activations import Activations
from soniq_kernels.tensors import Codes
from soniq_kernels.weights import PackedWeights

__all__ = ["Network", "Node", "load_network"]

LAYOUTS = ("NHWC", "NCHW")
_PLACE = frozenset({"stride", "padding", "dilation"})
_EPILOGUE = frozenset({"layer", "residual", "activation"})
# op -> the attributes that it may have, besides its inputs and outputs
OPS: dict[str, frozenset[str]] = {
    "quantize": frozenset(),
    "requantize": frozenset({"activation"}),
    "relu": frozenset(),
    "relu6": frozenset(),
    "conv2d": _EPILOGUE | _PLACE,
    "linear": _EPILOGUE,
    "add": frozenset({"activation"}),
    "max_pool2d": frozenset({"kernel", "stride", "padding"}),
    "avg_pool2d": frozenset({"kernel", "stride"}),
    "global_avg_pool": frozenset(),
    "flatten": frozenset(),
    "concat": frozenset(),
}


@dataclass(frozen=True)
class Node:
    """One operation: it reads tensors and writes one or more, all from the same values.

    Attributes:
        op: a name of `network.OPS`.
        inputs, outputs: names of tensors.
        layer: the packed layer of a conv2d or linear.
        residual: a tensor that its epilogue adds.
        activation: None, "relu", "relu6" or ("hardtanh", low, high).
        stride, padding, dilation, kernel: as in conv.conv2d and ops.max_pool2d; None is their default.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str | None = None
    residual: str | None = None
    activation: Any = None
    kernel: Any = None
    stride: Any = None
    padding: Any = None
    dilation: Any = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor that the node needs."""
        return self.inputs if self.residual is None else (*self.inputs, self.residual)

    def given(self, *names: str) -> dict[str, Any]:
        """Those attributes that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Network:
    """A list of nodes, the packed layers they use, and what each tensor between them is.

    Args:
        nodes: in the order of execution.
        layers: packed weights by name.
        tensors: by name, `tensors.Codes(plan, scale)` (or the pair) for codes, None for float32; of every tensor.
        inputs, outputs: names of tensors. An input that is codes takes uint8 in the original order of channels, such as images.
        layout: of the float32 and uint8 images that `run` takes and gives: "NHWC" or "NCHW".

    Raises:
        ValueError: what does not fit, and at which node.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        layers: Mapping[str, PackedWeights],
        tensors: Mapping[str, Codes | tuple[Any, Any] | None],
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = ("y",),
        layout: str = "NHWC",
    ) -> None:
        self.nodes = tuple(nodes)
        self.layers = dict(layers)
        self.tensors = {name: None if t is None else Codes(t[0], np.float32(t[1])) for name, t in tensors.items()}
        self.inputs, self.outputs, self.layout = tuple(inputs), tuple(outputs), layout

    def run(self, *x: Any) -> Any:
        """The outputs (one array, or a tuple if there are several) of the inputs: float32 or uint8 images, or rows."""
        values = {name: self._entered(name, one) for name, one in zip(self.inputs, x, strict=True)}
        for node in self.nodes:
            results = self._execute(node, [values[name] for name in node.inputs], values.get(node.residual or ""))
            values.update(zip(node.outputs, results, strict=True))
        results = [self._left(values[name]) for name in self.outputs]
        return results[0] if len(results) == 1 else tuple(results)

    __call__ = run

    def save(self, path: str | Path) -> None:
        """Writes the network as one safetensors file that `load_network` reads. docs/format.md."""
        raise NotImplementedError

    def _entered(self, name: str, x: Any) -> Any:
        array = _arrays.as_numpy(x, name)
        if self.layout == "NCHW" and array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        codes = self.tensors[name]
        return _arrays.floats(array, name) if codes is None else Activations.from_codes(array, *codes)

    def _left(self, y: Any) -> NDArray[Any]:
        array = y.codes() if isinstance(y, Activations) else y
        return array.transpose(0, 3, 1, 2) if self.layout == "NCHW" and array.ndim == 4 else array

    def _execute(self, node: Node, x: list[Any], residual: Any) -> list[Any]:
        outs = [self.tensors[name] for name in node.outputs]
        epilogue = {"residual": residual, "activation": node.activation, "out": outs}
        match node.op:
            case "quantize":
                return [ops.quantize(x[0], *out) for out in outs if out is not None]
            case "conv2d":
                place = node.given("stride", "padding", "dilation")
                return conv.conv2d(x[0], self.layers[node.layer or ""], **place, **epilogue)
            case "linear":
                return gemm.linear(x[0], self.layers[node.layer or ""], **epilogue)
            case "add":
                return ops.add(x[0], x[1], node.activation, outs)
            case "requantize":
                return ops.requantize(x[0], outs, node.activation)
            case "relu" | "relu6":
                return ops.requantize(x[0], outs, node.op)
            case "max_pool2d":
                return [ops.max_pool2d(x[0], **node.given("kernel", "stride", "padding"))]
            case "avg_pool2d":
                return ops.avg_pool2d(x[0], **node.given("kernel", "stride"), out=outs)
            case "global_avg_pool":
                return ops.global_avg_pool(x[0], outs)
            case "flatten":
                return [ops.flatten(x[0])]
            case "concat":
                return ops.concat(x, outs)
        raise ValueError(f"op {node.op!r} is unknown, expected one of {', '.join(OPS)}")


def load_network(path: str | Path) -> Network:
    """Reads a network that `Network.save` wrote.

    Raises:
        ValueError: what is wrong with the file, and at which node. OSError: the file cannot be read.
    """
    raise NotImplementedError
