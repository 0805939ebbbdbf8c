"""torch custom ops over the kernels: soniq::linear, soniq::conv2d, soniq::quantize.

Packed weights travel through torch as one uint8 tensor that holds the bytes of a saved file (`weights_to_tensor`). A
tensor is what state_dict, safetensors, deepcopy, torch.compile and torch.export know how to carry; the kernels' own
form of the weights is built from it once and kept as long as the tensor's memory lives.

The ops run on the CPU and have no gradient: train with `soniq_kernels.qat`, then convert.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._optional import require

torch = require("torch", extra="torch")
import safetensors.numpy  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from . import conv, gemm, isa, packing  # noqa: E402
from ._networks import from_bytes  # noqa: E402

# --- packed weights as a tensor ----------------------------------------------------------------------------------


def weights_to_tensor(packed: packing.PackedWeights) -> Tensor:
    """The packed weights as a 1-D uint8 tensor: the bytes `packed.save` would write."""
    tensors, metadata = packed.to_tensors()
    return torch.frombuffer(bytearray(safetensors.numpy.save(tensors, metadata)), dtype=torch.uint8)


def weights_from_tensor(weights: Tensor) -> packing.PackedWeights:
    """The inverse of `weights_to_tensor`. Raises ValueError if the bytes are not packed weights."""
    return from_bytes(weights.contiguous().numpy().tobytes())


# Keyed by the address of the storage. The weak reference keeps that address from being used again. The state says which
# version of the tensor was read (load_state_dict writes into it) and for which ISA tier the kernels' form was built.
_built: dict[int, tuple[StorageWeakRef, tuple[int, str], packing.PackedWeights]] = {}


def _kernel_weights(weights: Tensor) -> packing.PackedWeights:
    storage = weights.untyped_storage()
    state = (0 if weights.is_inference() else weights._version, isa.active())
    entry = _built.get(storage._cdata)
    if entry is not None and entry[1] == state and not entry[0].expired():
        return entry[2]
    return _build(weights, storage, state)


def _build(weights: Tensor, storage, state: tuple[int, str]) -> packing.PackedWeights:
    for address in [address for address, (reference, _, _) in _built.items() if reference.expired()]:
        del _built[address]
    _expect_cpu("weights", weights)
    packed = weights_from_tensor(weights)
    packed.drop_portable()  # the tensor is the portable copy
    _built[storage._cdata] = (StorageWeakRef(storage), state, packed)
    return packed


# --- ops ---------------------------------------------------------------------------------------------------------


@torch.library.custom_op("soniq::linear", mutates_args=())
def linear(x: Tensor, weights: Tensor, out_features: int) -> Tensor:
    """x [..., K], float32 or uint8 codes from soniq::quantize, times packed weights [N, K]: float32 [..., N]."""
    packed = _weights_for(weights, 2, out_features)
    return torch.from_numpy(gemm.linear(_operand(x, packed), packed))


@linear.register_fake
def _(x, weights, out_features):
    return x.new_empty((*x.shape[:-1], out_features), dtype=torch.float32)


@torch.library.custom_op("soniq::conv2d", mutates_args=())
def conv2d(
    x: Tensor, weights: Tensor, out_channels: int, kernel_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """x NCHW, float32 or uint8 codes from soniq::quantize, with packed weights OHWI: float32 NCHW, channels last in memory.

    kernel_size, stride, dilation: (height, width); padding: (top, bottom, left, right) of exact zeros.
    """
    packed = _weights_for(weights, 4, out_channels)
    if tuple(kernel_size) != tuple(packed.shape[1:3]):
        raise ValueError(f"kernel_size is {tuple(kernel_size)}, the packed weights have {tuple(packed.shape[1:3])}")
    if x.dim() != 4:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected 4 dimensions, NCHW; x.unsqueeze(0) makes one image a batch"
        )
    image = _operand(x.permute(0, 2, 3, 1), packed)
    y = conv.conv2d(image, packed, stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation))
    return torch.from_numpy(y).permute(0, 3, 1, 2)


@conv2d.register_fake
def _(x, weights, out_channels, kernel_size, stride, padding, dilation):
    pads = (padding[0] + padding[1], padding[2] + padding[3])
    size = [(x.shape[2 + i] + pads[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    return x.new_empty((x.shape[0], *size, out_channels), dtype=torch.float32).permute(0, 3, 1, 2)


@torch.library.custom_op("soniq::quantize", mutates_args=())
def quantize(x: Tensor, weights: Tensor) -> Tensor:
    """uint8 codes, in x's shape, that the packed weights' layer makes of float32 x ([..., K]; NCHW for a convolution)."""
    packed = _kernel_weights(weights)
    if len(packed.shape) == 2:
        return torch.from_numpy(_codes(x, packed)).contiguous()
    return torch.from_numpy(_codes(x.permute(0, 2, 3, 1), packed)).permute(0, 3, 1, 2).contiguous()


@quantize.register_fake
def _(x, weights):
    return torch.empty(x.shape, dtype=torch.uint8, device=x.device)


# --- operands ----------------------------------------------------------------------------------------------------


def _weights_for(weights: Tensor, rank: int, outputs: int) -> packing.PackedWeights:
    packed = _kernel_weights(weights)
    if len(packed.shape) != rank or packed.out_channels != outputs:
        raise ValueError(
            f"the packed weights have shape {tuple(packed.shape)}, expected {rank} dimensions and {outputs} outputs"
        )
    return packed


def _operand(x: Tensor, packed: packing.PackedWeights) -> np.ndarray | packing.Activations:
    """What the kernels read: float32, or codes with the layer's own plan and scale."""
    if x.dtype == torch.uint8:
        _expect_cpu("x", x)
        return packing.Activations.from_codes(x.contiguous().numpy(), packed.plan, packed.activation_scale)
    return _floats(x)


def _codes(x: Tensor, packed: packing.PackedWeights) -> np.ndarray:
    return packing.quantize_activations(_floats(x), packed.plan, packed.activation_scale).codes()


def _floats(x: Tensor) -> np.ndarray:
    _expect_cpu("x", x)
    if x.dtype != torch.float32:
        raise TypeError(f"x is {x.dtype}, expected torch.float32; convert with x.float()")
    return x.contiguous().numpy()


def _expect_cpu(name: str, tensor: Tensor) -> None:
    if not tensor.is_cpu:
        raise ValueError(f"{name} is on {tensor.device}, the soniq ops run on the CPU; move it with .cpu()")
