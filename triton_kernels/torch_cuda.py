"""The ops of soniq_kernels.torch_ops for CUDA tensors.

The first call with a tensor of packed weights reads it on the CPU and builds the GPU's panels; later calls neither synchronise nor
move anything, so that they can be recorded in a CUDA graph.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from soniq_kernels import tensors, torch_ops
from soniq_kernels.ops import joined
from soniq_kernels.triton_kernels import ops
from soniq_kernels.triton_kernels.conv import conv2d as run_conv2d
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, from_codes, one_scale
from soniq_kernels.triton_kernels.device_weights import DeviceWeights
from soniq_kernels.triton_kernels.gemm import linear as run_linear
from soniq_kernels.triton_kernels.quantize import quantize_activations

# As in torch_ops: by the address of the storage, which the weak reference keeps from being used again, with its version.
_built: dict[int, tuple[StorageWeakRef, int, DeviceWeights]] = {}


def weights_of(weights: Tensor) -> DeviceWeights:
    """The layer of a uint8 tensor made by torch_ops.weights_to_tensor, on that tensor's device."""
    storage = weights.untyped_storage()
    version = 0 if weights.is_inference() else weights._version
    entry = _built.get(storage._cdata)
    if entry is not None and entry[1] == version and not entry[0].expired():
        return entry[2]
    for address in [address for address, (reference, _, _) in _built.items() if reference.expired()]:
        del _built[address]
    layer = DeviceWeights(torch_ops.weights_from_tensor(weights.cpu()), weights.device)
    _built[storage._cdata] = (StorageWeakRef(storage), version, layer)
    return layer


def linear(x: Tensor, weights: Tensor, out_features: int) -> Tensor:
    """soniq::linear; x float32, float16, bfloat16 or uint8 codes."""
    layer = _layer(x, weights, 2, out_features)
    return run_linear(_operand(x, layer), layer)


def conv2d(
    x: Tensor, weights: Tensor, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """soniq::conv2d; x NCHW, result NCHW, channels last in memory."""
    layer = _layer(x, weights, 4, out_channels)
    if tuple(kernel_size) != tuple(layer.shape[1:3]):
        raise ValueError(f"kernel_size is {tuple(kernel_size)}, the packed weights have {tuple(layer.shape[1:3])}")
    if x.dim() != 4:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected 4 dimensions, NCHW; x.unsqueeze(0) makes one image a batch"
        )
    image = _operand(x.permute(0, 2, 3, 1), layer)
    return run_conv2d(image, layer, tuple(stride), tuple(padding), tuple(dilation)).permute(0, 3, 1, 2)


def quantize(x: Tensor, weights: Tensor) -> Tensor:
    """soniq::quantize: uint8 codes in x's shape."""
    layer = weights_of(weights)
    if len(layer.shape) == 2:
        return quantize_activations(x, layer.plan, layer.activation_scale).codes().contiguous()
    codes = quantize_activations(x.permute(0, 2, 3, 1), layer.plan, layer.activation_scale).codes()
    return codes.permute(0, 3, 1, 2).contiguous()


# ---- ops on codes ----------------------------------------------------------------------------------------------------
# Tensors of these ops are codes in stored order, layout 0 of layout.py; products lay them out for themselves.
def quantize_codes(x: Tensor, outs: str, check_finite: bool = True) -> list[Tensor]:
    """soniq::quantize_codes. On a GPU nothing is checked for being finite."""
    return _tensors(ops.requantize(x.contiguous(), tensors.parse_all(outs), groups=0))


def dequantize_codes(x: Tensor, x_codes: str) -> Tensor:
    return ops.dequantize(_activations(x, x_codes))


def linear_codes(
    x: Tensor, x_codes: str, weights: Tensor, out_features: int, outs: str, residual: Tensor | None = None,
    residual_codes: str = "", activation: str = "null",
) -> list[Tensor]:  # fmt: skip
    added = None if residual is None else _value(residual, residual_codes)
    layer = _layer(x, weights, 2, out_features)
    return _tensors(
        run_linear(_value(x, x_codes), layer, added, json.loads(activation), tensors.parse_all(outs), groups=0)
    )


def conv2d_codes(
    x: Tensor, x_codes: str, weights: Tensor, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], outs: str, residual: Tensor | None = None, residual_codes: str = "",
    activation: str = "null",
) -> list[Tensor]:  # fmt: skip
    added = None if residual is None else _value(residual, residual_codes)
    layer, where = _layer(x, weights, 4, out_channels), (tuple(stride), tuple(padding), tuple(dilation))
    return _tensors(
        run_conv2d(_value(x, x_codes), layer, *where, added, json.loads(activation), tensors.parse_all(outs), groups=0)
    )


def add_codes(a: Tensor, a_codes: str, b: Tensor, b_codes: str, outs: str, activation: str = "null") -> list[Tensor]:
    both = _value(a, a_codes), _value(b, b_codes)
    return _tensors(ops.add(*both, json.loads(activation), tensors.parse_all(outs), groups=0))


def max_pool2d_codes(
    x: Tensor, x_codes: str, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return _tensor(ops.max_pool2d(_activations(x, x_codes), tuple(kernel_size), tuple(stride), tuple(padding)))


def avg_pool2d_codes(
    x: Tensor, x_codes: str, kernel_size: Sequence[int], stride: Sequence[int], outs: str
) -> list[Tensor]:
    x_in = _activations(x, x_codes)
    return _tensors(ops.avg_pool2d(x_in, tuple(kernel_size), tuple(stride), tensors.parse_all(outs), groups=0))


def global_avg_pool_codes(x: Tensor, x_codes: str, outs: str) -> list[Tensor]:
    return _tensors(ops.global_avg_pool(_activations(x, x_codes), tensors.parse_all(outs), groups=0))


def flatten_codes(x: Tensor, x_codes: str) -> Tensor:
    return _tensor(ops.flatten(_activations(x, x_codes)))


def concat_codes(xs: Sequence[Tensor], xs_codes: str, outs: str = "") -> list[Tensor]:
    described = tensors.parse_all(xs_codes)
    parts = [_with_codes(x, codes) for x, codes in zip(xs, described, strict=True)]
    if outs:
        return _tensors(ops.concat(parts, tensors.parse_all(outs), groups=0))
    if len({float(codes.scale) for codes in described}) > 1:
        raise ValueError(
            f"the tensors have the scales {[str(c.scale) for c in described]}; give outs to requantize them"
        )
    # The quantizer gives every code of a grid and scale back.
    return _tensors([ops.concat(parts, (joined([x.plan for x in parts]), float(described[0].scale)), groups=0)])


def requantize_codes(x: Tensor, x_codes: str, outs: str) -> list[Tensor]:
    return _tensors(ops.requantize(_activations(x, x_codes), tensors.parse_all(outs), groups=0))


def _activations(x: Tensor, text: str) -> DeviceActivations:
    return _with_codes(x, tensors.parse(text))


def _with_codes(x: Tensor, codes: tensors.Codes | None) -> DeviceActivations:
    if codes is None:
        raise ValueError("x is described as float32, expected codes; quantize it with soniq::quantize_codes")
    if x.dtype != torch.uint8 or x.shape[-1] != codes.plan.channels:
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, expected torch.uint8 [..., {codes.plan.channels}]")
    data = x.contiguous().reshape(-1, x.shape[-1])
    no_sums = torch.empty((data.shape[0], 0), dtype=torch.int32, device=x.device)
    return DeviceActivations(data, no_sums, tuple(x.shape), codes.plan, one_scale(float(codes.scale), x.device), 0)


def _value(x: Tensor, text: str) -> Any:
    codes = tensors.parse(text)
    return x if codes is None else _with_codes(x, codes)


def _tensors(made: list[Any]) -> list[Tensor]:
    return [_tensor(one) for one in made]


def _tensor(one: Any) -> Tensor:
    return one.data.contiguous().reshape(one.shape) if isinstance(one, DeviceActivations) else one


# ---- operands --------------------------------------------------------------------------------------------------------
def _layer(x: Tensor, weights: Tensor, rank: int, outputs: int) -> DeviceWeights:
    if x.device != weights.device:
        raise ValueError(f"x is on {x.device} but the packed weights are on {weights.device}; move one of them")
    layer = weights_of(weights)
    if len(layer.shape) != rank or layer.out_channels != outputs:
        raise ValueError(
            f"the packed weights have shape {tuple(layer.shape)}, expected {rank} dimensions and {outputs} outputs"
        )
    return layer


def _operand(x: Tensor, layer: DeviceWeights) -> Tensor | DeviceActivations:
    """Floats, or codes with the layer's own plan and scale."""
    if x.dtype != torch.uint8:
        return x
    if layer.activation_scale is None or isinstance(layer.activation_scale, str):
        raise ValueError(f"codes need a layer with a fixed activation_scale, this one has {layer.activation_scale!r}")
    return from_codes(x, layer.plan, float(layer.activation_scale), layer.groups)
