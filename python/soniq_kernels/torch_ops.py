"""torch custom ops over the kernels: soniq::linear, soniq::conv2d, soniq::quantize on float32, and soniq::*_codes, whose tensors
are codes.

Packed weights travel through torch as one uint8 tensor that holds the bytes of a saved file (`weights_to_tensor`). A
tensor is what state_dict, safetensors, deepcopy, torch.compile and torch.export know how to carry; the kernels' own
form of the weights is built from it once and kept as long as the tensor's memory lives.

All of them take CUDA tensors too (docs/gpu.md). None has a gradient: train with `soniq_kernels.qat`, then convert.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from functools import partial

import numpy as np

from ._optional import require

torch = require("torch", extra="torch")
import safetensors.numpy  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from . import conv, gemm, isa, ops, packing, tensors  # noqa: E402
from ._networks import from_bytes  # noqa: E402
from .packing import Activations  # noqa: E402

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
    packed = entry[2] if entry is not None and entry[1] == state and not entry[0].expired() else None
    if packed is None:
        packed = _build(weights, storage, state)
    # The tensor is the portable copy; a weak reference, because whoever keeps the panels must not keep the tensor.
    packed.drop_portable(again=partial(_again, weakref.ref(weights)))
    return packed


def _again(weights: weakref.ref[Tensor]) -> packing.PackedWeights | None:
    tensor = weights()
    return None if tensor is None else weights_from_tensor(tensor)


def _build(weights: Tensor, storage, state: tuple[int, str]) -> packing.PackedWeights:
    for address in [address for address, (reference, _, _) in _built.items() if reference.expired()]:
        del _built[address]
    _expect_cpu("weights", weights)
    packed = weights_from_tensor(weights)
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


# --- ops on codes ------------------------------------------------------------------------------------------------
# A code tensor is uint8 [batch, height, width, channels] or [..., channels], contiguous, its channels in the order of storage
# of its plan: what packing.Activations calls `stored`. What its codes mean goes beside it as text, tensors.describe(...), which
# says {"float": true} where the tensor is float32 (channels last as well). `outs` is tensors.describe_all([...]): each op
# that takes it gives a list of tensors in that order, all written in one pass. `activation` is JSON too: null, "relu", "relu6"
# or ["hardtanh", low, high].


@torch.library.custom_op("soniq::quantize_codes", mutates_args=())
def quantize_codes(x: Tensor, outs: str, check_finite: bool = True) -> list[Tensor]:
    """float32 [..., channels] to the codes of each of `outs`."""
    array = _floats(x)
    return [_tensor(ops.quantize(array, *_codes_of("outs", out), check_finite)) for out in tensors.parse_all(outs)]


@quantize_codes.register_fake
def _(x, outs, check_finite=True):
    return _empty(x, x.shape, outs)


@torch.library.custom_op("soniq::dequantize_codes", mutates_args=())
def dequantize_codes(x: Tensor, x_codes: str) -> Tensor:
    """float32 in x's shape, channels in their original order."""
    return _tensor(ops.dequantize(_activations("x", x, x_codes)))


@dequantize_codes.register_fake
def _(x, x_codes):
    return torch.empty(x.shape, dtype=torch.float32, device=x.device)


@torch.library.custom_op("soniq::linear_codes", mutates_args=())
def linear_codes(
    x: Tensor, x_codes: str, weights: Tensor, out_features: int, outs: str,
    residual: Tensor | None = None, residual_codes: str = "", activation: str = "null",
) -> list[Tensor]:  # fmt: skip
    """Code tensor x [..., K] times packed weights [N, K], with the whole epilogue: [..., N] for each of `outs`.

    residual: a code tensor or float32 [..., N], described by residual_codes.
    """
    packed = _weights_for(weights, 2, out_features)
    added = None if residual is None else _value("residual", residual, residual_codes)
    y = gemm.linear(
        _value("x", x, x_codes), packed, added, json.loads(activation), tensors.parse_all(outs), check_finite=False
    )
    return [_tensor(one) for one in y]


@linear_codes.register_fake
def _(x, x_codes, weights, out_features, outs, residual=None, residual_codes="", activation="null"):
    return _empty(x, (*x.shape[:-1], out_features), outs)


@torch.library.custom_op("soniq::conv2d_codes", mutates_args=())
def conv2d_codes(
    x: Tensor, x_codes: str, weights: Tensor, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], outs: str,
    residual: Tensor | None = None, residual_codes: str = "", activation: str = "null",
) -> list[Tensor]:  # fmt: skip
    """Code tensor x NHWC with packed weights OHWI, with the whole epilogue: NHWC for each of `outs`.

    kernel_size, stride, dilation: (height, width); padding: (top, bottom, left, right) of exact zeros. residual as in linear_codes.
    """
    packed = _weights_for(weights, 4, out_channels)
    if tuple(kernel_size) != tuple(packed.shape[1:3]):
        raise ValueError(f"kernel_size is {tuple(kernel_size)}, the packed weights have {tuple(packed.shape[1:3])}")
    added = None if residual is None else _value("residual", residual, residual_codes)
    y = conv.conv2d(
        _value("x", x, x_codes), packed, tuple(stride), tuple(padding), tuple(dilation), added, json.loads(activation),
        tensors.parse_all(outs), check_finite=False,
    )  # fmt: skip
    return [_tensor(one) for one in y]


@conv2d_codes.register_fake
def _(
    x, x_codes, weights, out_channels, kernel_size, stride, padding, dilation, outs,
    residual=None, residual_codes="", activation="null",
):  # fmt: skip
    pads = (padding[0] + padding[1], padding[2] + padding[3])
    size = [(x.shape[1 + i] + pads[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    return _empty(x, (x.shape[0], *size, out_channels), outs)


@torch.library.custom_op("soniq::add_codes", mutates_args=())
def add_codes(a: Tensor, a_codes: str, b: Tensor, b_codes: str, outs: str, activation: str = "null") -> list[Tensor]:
    """activation(a + b) for each of `outs`; one of the operands may be float32."""
    y = ops.add(_value("a", a, a_codes), _value("b", b, b_codes), json.loads(activation), tensors.parse_all(outs))
    return [_tensor(one) for one in y]


@add_codes.register_fake
def _(a, a_codes, b, b_codes, outs, activation="null"):
    return _empty(a, a.shape, outs)


@torch.library.custom_op("soniq::max_pool2d_codes", mutates_args=())
def max_pool2d_codes(
    x: Tensor, x_codes: str, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The largest code of each window; the description of x is that of the result. padding: (top, bottom, left, right)."""
    return _tensor(ops.max_pool2d(_activations("x", x, x_codes), tuple(kernel_size), tuple(stride), tuple(padding)))


@max_pool2d_codes.register_fake
def _(x, x_codes, kernel_size, stride, padding):
    pads = (padding[0] + padding[1], padding[2] + padding[3])
    size = [(x.shape[1 + i] + pads[i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1)]
    return x.new_empty((x.shape[0], *size, x.shape[3]))


@torch.library.custom_op("soniq::avg_pool2d_codes", mutates_args=())
def avg_pool2d_codes(
    x: Tensor, x_codes: str, kernel_size: Sequence[int], stride: Sequence[int], outs: str
) -> list[Tensor]:
    """The mean of each window, for each of `outs`. Without padding."""
    y = ops.avg_pool2d(_activations("x", x, x_codes), tuple(kernel_size), tuple(stride), tensors.parse_all(outs))
    return [_tensor(one) for one in y]


@avg_pool2d_codes.register_fake
def _(x, x_codes, kernel_size, stride, outs):
    size = [(x.shape[1 + i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1)]
    return _empty(x, (x.shape[0], *size, x.shape[3]), outs)


@torch.library.custom_op("soniq::global_avg_pool_codes", mutates_args=())
def global_avg_pool_codes(x: Tensor, x_codes: str, outs: str) -> list[Tensor]:
    """The mean of each channel of each image, [batch, 1, 1, channels], for each of `outs`."""
    return [_tensor(one) for one in ops.global_avg_pool(_activations("x", x, x_codes), tensors.parse_all(outs))]


@global_avg_pool_codes.register_fake
def _(x, x_codes, outs):
    return _empty(x, (x.shape[0], 1, 1, x.shape[3]), outs)


@torch.library.custom_op("soniq::flatten_codes", mutates_args=())
def flatten_codes(x: Tensor, x_codes: str) -> Tensor:
    """NHWC to [batch, height * width * channels] in the order (h, w, c); its description is that of ops.flatten's result."""
    return _tensor(ops.flatten(_activations("x", x, x_codes))).clone()


@flatten_codes.register_fake
def _(x, x_codes):
    return x.new_empty((x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]))


@torch.library.custom_op("soniq::concat_codes", mutates_args=())
def concat_codes(xs: Sequence[Tensor], xs_codes: str, outs: str = "") -> list[Tensor]:
    """Tensors side by side along the channels; xs_codes is tensors.describe_all of them.

    outs: "" keeps the codes where all have one scale and at most two grids together; its description is then that of
    ops.concat's result.
    """
    described = zip(xs, tensors.parse_all(xs_codes), strict=True)
    parts = [Activations(_array("xs", x), *_codes_of("xs", codes)) for x, codes in described]
    y = [ops.concat(parts)] if outs == "" else ops.concat(parts, tensors.parse_all(outs))
    return [_tensor(one) for one in y]


@concat_codes.register_fake
def _(xs, xs_codes, outs=""):
    shape = (*xs[0].shape[:-1], sum(x.shape[-1] for x in xs))
    return _empty(xs[0], shape, outs) if outs else [xs[0].new_empty(shape)]


@torch.library.custom_op("soniq::requantize_codes", mutates_args=())
def requantize_codes(x: Tensor, x_codes: str, outs: str) -> list[Tensor]:
    """The values of x in the codes of each of `outs`."""
    return [_tensor(one) for one in ops.requantize(_activations("x", x, x_codes), tensors.parse_all(outs))]


@requantize_codes.register_fake
def _(x, x_codes, outs):
    return _empty(x, x.shape, outs)


def _empty(x: Tensor, shape: Sequence[int], outs: str) -> list[Tensor]:
    """What an op gives: uint8 or float32 for each of `outs`."""
    kinds = [torch.float32 if codes is None else torch.uint8 for codes in tensors.parse_all(outs)]
    return [torch.empty(shape, dtype=kind, device=x.device) for kind in kinds]


def _activations(name: str, x: Tensor, text: str) -> Activations:
    codes = _codes_of(name, tensors.parse(text))
    if x.shape[-1] != codes.plan.channels:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, its description {codes.plan.channels} channels")
    return Activations(_array(name, x), codes.plan, np.array(codes.scale))


def _codes_of(name: str, codes: tensors.Codes | None) -> tensors.Codes:
    if codes is None:
        raise ValueError(f"{name} is described as float32, expected codes; quantize it with soniq::quantize_codes")
    return codes


def _value(name: str, x: Tensor, text: str) -> Activations | np.ndarray:
    return _floats(x) if tensors.parse(text) is None else _activations(name, x, text)


def _array(name: str, x: Tensor) -> np.ndarray:
    _expect_cpu(name, x)
    if x.dtype != torch.uint8:
        raise TypeError(f"{name} is {x.dtype}, expected torch.uint8 codes")
    return x.contiguous().numpy()


def _tensor(y: Activations | np.ndarray) -> Tensor:
    return torch.from_numpy(y.stored if isinstance(y, Activations) else y)


# --- CUDA tensors ------------------------------------------------------------------------------------------------


def _on_cuda(name: str):
    """The op of triton_kernels/torch_cuda.py, imported at its first call."""

    def call(*arguments):
        from soniq_kernels.triton_kernels import torch_cuda

        return getattr(torch_cuda, name)(*arguments)

    return call


for _op in (
    linear, conv2d, quantize, quantize_codes, dequantize_codes, linear_codes, conv2d_codes, add_codes, max_pool2d_codes,
    avg_pool2d_codes, global_avg_pool_codes, flatten_codes, concat_codes, requantize_codes,
):  # fmt: skip
    _op.register_kernel("cuda", _on_cuda(_op._name))


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
        raise ValueError(f"{name} is on {tensor.device} and the other operand on the CPU; move one of them")
