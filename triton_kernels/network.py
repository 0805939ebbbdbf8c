"""A whole network of codes on a GPU: `soniq_kernels.network.Network` node by node, with the bits of the CPU. `net.to("cuda")`."""

from __future__ import annotations

from typing import Any

import torch

from soniq_kernels.network import Network, Node
from soniq_kernels.triton_kernels import ops
from soniq_kernels.triton_kernels.conv import conv2d
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, from_codes
from soniq_kernels.triton_kernels.device_weights import to_device
from soniq_kernels.triton_kernels.gemm import linear
from soniq_kernels.triton_kernels.quantize import as_tensor


class DeviceNetwork:
    """A network whose layers are on a GPU. Make it with `net.to("cuda")`.

    After the first call of a shape it neither waits for the GPU nor copies anything to it: a CUDA graph can record it.

    Attributes:
        net: the network. layers: its layers on the GPU, by name.
    """

    def __init__(self, net: Network, device: Any = "cuda") -> None:
        self.net, self.device = net, torch.device(device)
        self.layers = {name: to_device(packed, self.device) for name, packed in net.layers.items()}

    def run(self, *x: Any) -> Any:
        """The outputs (one tensor, or a tuple if there are several) of the inputs, as `Network.run`: tensors on the GPU."""
        net = self.net
        if len(x) != len(net.inputs):
            raise ValueError(f"the network takes {len(net.inputs)} inputs {list(net.inputs)}, got {len(x)}")
        values = {name: self._entering(name, one) for name, one in zip(net.inputs, x, strict=True)}
        last = {name: index for index, node in enumerate(net.nodes) for name in node.reads}
        for index, node in enumerate(net.nodes):
            values |= dict(zip(node.outputs, self._run(node, values), strict=True))
            for name in node.reads:
                if last[name] == index and name not in net.outputs:
                    values.pop(name, None)  # its memory serves the next tensor
        outputs = [self._leaving(values[name]) for name in net.outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    __call__ = run

    def _entering(self, name: str, x: Any) -> Any:
        codes, tensor = self.net.tensors[name], as_tensor(x, name)
        if self.net.layout == "NCHW" and tensor.dim() == 4:
            tensor = tensor.permute(0, 2, 3, 1)
        if codes is None:
            return tensor.float().contiguous()
        return from_codes(tensor.contiguous(), codes.plan, float(codes.scale))

    def _leaving(self, y: Any) -> torch.Tensor:
        tensor = y.codes() if isinstance(y, DeviceActivations) else y
        return tensor.permute(0, 3, 1, 2) if self.net.layout == "NCHW" and tensor.dim() == 4 else tensor

    def _run(self, node: Node, values: dict[str, Any]) -> list[Any]:
        """What the node writes."""
        x = [values[name] for name in node.inputs]
        outs = [self._out(name) for name in node.outputs]
        if node.layer:
            residual = None if node.residual is None else values[node.residual]
            how = node.given("stride", "padding", "dilation") if node.op == "conv2d" else {}
            run = conv2d if node.op == "conv2d" else linear
            return run(x[0], self.layers[node.layer], **how, residual=residual, activation=node.activation, out=outs)
        return RUNS[node.op](node, x, outs)

    def _out(self, name: str) -> tuple[Any, float] | None:
        codes = self.net.tensors[name]
        return None if codes is None else (codes.plan, float(codes.scale))

    def __repr__(self) -> str:
        return f"Device{self.net!r} on {self.device}"


def _requantize(node: Node, x: list[Any], outs: list[Any]) -> list[Any]:
    activation = node.op if node.op in ("relu", "relu6") else node.activation
    return ops.requantize(x[0], outs, activation)


def _flatten(node: Node, x: list[Any], outs: list[Any]) -> list[Any]:
    return [ops.flatten(x[0]) if isinstance(x[0], DeviceActivations) else x[0].flatten(1)]


RUNS: dict[str, Any] = {
    "quantize": _requantize,
    "requantize": _requantize,
    "relu": _requantize,
    "relu6": _requantize,
    "add": lambda node, x, outs: ops.add(*x, node.activation, outs),
    "max_pool2d": lambda node, x, outs: [ops.max_pool2d(x[0], **node.given("kernel", "stride", "padding"))],
    "avg_pool2d": lambda node, x, outs: ops.avg_pool2d(x[0], **node.given("kernel", "stride"), out=outs),
    "global_avg_pool": lambda node, x, outs: ops.global_avg_pool(x[0], outs),
    "flatten": _flatten,
    "concat": lambda node, x, outs: ops.concat(x, outs),
}  # fmt: skip
