"""The ops of soniq_kernels.torch_ops for CUDA tensors.

The first call with a tensor of packed weights reads it on the CPU and builds the GPU's panels; later calls neither synchronise nor
move anything, so that they can be recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from soniq_kernels import torch_ops
from soniq_kernels.triton_kernels.conv import conv2d as run_conv2d
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, from_codes
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
