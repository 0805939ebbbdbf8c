"""Linear layers of other libraries, each with prepacked weights and float32 in and out.

Every peer quantizes its activations from float32 inside the timed call, as ours does. A peer that is not installed, or
that lacks what was asked for, raises `Unavailable` or ImportError: it is left out, and the report says so.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from benchmarks import ggml
from benchmarks.operands import Floats, Operands

Call = Callable[[], Floats]
Make = Callable[[Operands, int], Call]


class Unavailable(Exception):
    """This peer cannot do that here; the message says why."""


class Peer(NamedTuple):
    """How to make its call, and the bits of its weights, block scales aside."""

    make: Make
    bits: int


def _torch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return torch


# ---- floating point ------------------------------------------------------------------------------------------------
def torch_fp32(operands: Operands, threads: int) -> Call:
    """oneDNN or MKL float32, as torch.nn.functional.linear picks."""
    torch = _torch(threads)
    a, b = torch.from_numpy(operands.x), torch.from_numpy(operands.w)
    return lambda: torch.nn.functional.linear(a, b).numpy()


def _torch_half(dtype: str) -> Make:
    """Weights in 16 bits, activations converted from and to float32 in the call."""

    def peer(operands: Operands, threads: int) -> Call:
        torch = _torch(threads)
        kind = getattr(torch, dtype)
        a, b = torch.from_numpy(operands.x), torch.from_numpy(operands.w).to(kind)
        call = lambda: torch.nn.functional.linear(a.to(kind), b).float().numpy()  # noqa: E731
        try:
            call()
        except RuntimeError as error:
            raise Unavailable(f"torch has no {dtype} linear layer on this processor: {_first_line(error)}") from None
        return call

    return peer


# ---- INT8 ----------------------------------------------------------------------------------------------------------
def _torch_int8(engine: str) -> Make:
    """torch's dynamic INT8 linear layer, per-channel weights, on oneDNN or FBGEMM."""

    def peer(operands: Operands, threads: int) -> Call:
        torch = _torch(threads)
        if engine not in torch.backends.quantized.supported_engines:
            raise Unavailable(f"torch was built without {engine}")
        torch.backends.quantized.engine = engine
        codes, scales = (torch.from_numpy(part) for part in operands.per_channel())
        zeros = torch.zeros(scales.shape[0], dtype=torch.long)
        with warnings.catch_warnings():  # torch announces the end of this API; it is what torch runs INT8 on CPUs with
            warnings.simplefilter("ignore")
            q = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        packed, a = torch.ops.quantized.linear_prepack(q, None), torch.from_numpy(operands.x)
        return lambda: torch.ops.quantized.linear_dynamic(a, packed, False).numpy()

    return peer


def onnxruntime_int8(operands: Operands, threads: int) -> Call:
    """ONNX Runtime's MLAS, static QDQ, per-channel weights."""
    return _onnxruntime(_qdq_model(operands), operands.x, threads)


def openvino_int8(operands: Operands, threads: int) -> Call:
    """OpenVINO, the same QDQ model."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(_qdq_model(operands))
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    return lambda: request.infer({0: operands.x}, share_inputs=True, share_outputs=True)[0]


def _qdq_model(operands: Operands) -> bytes:
    """QuantizeLinear -> DequantizeLinear -> MatMul with per-channel int8 weights."""
    from onnx import helper

    codes, scales = operands.per_channel()
    low, high = min(operands.x.min(), 0), max(operands.x.max(), 0)
    scale = np.float32((high - low) / 255)
    constants = {
        "x_scale": np.array(scale), "x_zero": np.array(round(-low / scale), np.uint8), "w": np.ascontiguousarray(codes.T),
        "w_scale": scales, "w_zero": np.zeros(scales.shape[0], np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return _onnx_model(nodes, constants, (operands.x.shape[0], scales.shape[0]), operands.x.shape)


def _onnx_model(nodes: list[Any], constants: dict[str, Any], y_shape: Any, x_shape: Any) -> bytes:
    """A model from x float32 to y float32."""
    from onnx import TensorProto, helper, numpy_helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x_shape), ("y", y_shape)))
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "linear", [x], [y], stored), opset_imports=domains, ir_version=9)
    return bytes(model.SerializeToString())


def onnxruntime_session(model: bytes, threads: int) -> Any:
    """Raises Unavailable if it refuses the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads spin during a call and rest after it, or they would take the cores of whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise Unavailable(f"ONNX Runtime refuses the model: {_first_line(error)}") from None


def _onnxruntime(model: bytes, x: Floats, threads: int) -> Call:
    session = onnxruntime_session(model, threads)
    return lambda: session.run(None, {"x": x})[0]


# ---- few bits ------------------------------------------------------------------------------------------------------
def _matmul_nbits(bits: int, largest_block: int) -> Make:
    """ONNX Runtime's MatMulNBits with int8 arithmetic (accuracy_level 4) and blocks of K as large as divide it."""

    def peer(operands: Operands, threads: int) -> Call:
        from onnx import helper

        k = operands.x.shape[1]
        block = largest_block
        while k % block and block > 16:
            block //= 2
        codes, scales = _blocks(operands.block, bits, block)
        constants = {"w": operands.spread(codes), "w_scale": operands.spread(scales)}
        n = operands.repeats * operands.block.shape[0]
        node = helper.make_node("MatMulNBits", ["x", "w", "w_scale"], ["y"], domain="com.microsoft", K=k, N=n, bits=bits,
                                block_size=block, accuracy_level=4)  # fmt: skip
        return _onnxruntime(
            _onnx_model([node], constants, (operands.x.shape[0], n), operands.x.shape), operands.x, threads
        )

    return peer


def _blocks(w: Floats, bits: int, block: int) -> tuple[Any, Floats]:
    """(uint8 [N, blocks, block * bits / 8], float32 [N, blocks]): code c stands for (c - 2**(bits - 1)) * scale, lowest bits first."""
    n, k = w.shape
    if k % block:
        raise Unavailable(f"MatMulNBits has blocks of 16 and more, which do not divide K = {k}")
    half, grouped = 2 ** (bits - 1), w.reshape(n, k // block, block)
    scales = np.abs(grouped).max(axis=2) / half
    codes = np.clip(np.rint(grouped / scales[:, :, None]) + half, 0, 2 * half - 1).astype(np.uint8)
    fields = codes.reshape(n, k // block, -1, 8 // bits) << (bits * np.arange(8 // bits)).astype(np.uint8)
    return np.bitwise_or.reduce(fields, axis=3), scales.astype(np.float32)


def _llama_cpp(kind: str) -> Make:
    """One matrix product of llama.cpp."""
    return lambda operands, threads: ggml.Matmul(operands.x, operands.w, kind, threads)


# ---- convolutions: (x NHWC, w OHWI, the exact answer, stride, padding, groups) -> NHWC -----------------------------
def torch_conv2d_fp32(x: Floats, w: Floats, _: Any, stride: int, padding: int, groups: int) -> Call:
    """oneDNN float32, channels last."""
    torch = _torch(1)
    a, b = (torch.from_numpy(part).permute(0, 3, 1, 2) for part in (x, w))
    call = lambda: torch.nn.functional.conv2d(a, b, None, stride, padding, 1, groups)  # noqa: E731
    return lambda: call().permute(0, 2, 3, 1).numpy()


def torch_conv2d_int8(x: Floats, w: Floats, exact: Any, stride: int, padding: int, groups: int) -> Call:
    """oneDNN static INT8, per-channel weights; the output is 8 bits too, and becomes float32 in the call."""
    torch = _torch(1)
    torch.backends.quantized.engine = "onednn"
    scales = torch.from_numpy(np.abs(w).reshape(w.shape[0], -1).max(axis=1) / 127).double()
    b = torch.from_numpy(w).permute(0, 3, 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = torch.quantize_per_channel(b, scales, torch.zeros(w.shape[0], dtype=torch.long), 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(q, None, [stride] * 2, [padding] * 2, [1, 1], groups)
    a, x_scale, y_scale = torch.from_numpy(x).permute(0, 3, 1, 2), np.abs(x).max() / 127, np.abs(exact).max() / 127

    def call() -> Floats:
        codes = torch.quantize_per_tensor(a, float(x_scale), 128, torch.quint8)
        y = torch.ops.quantized.conv2d(codes, packed, float(y_scale), 128)
        return y.dequantize().permute(0, 2, 3, 1).numpy()

    return call


# ---- the tables ----------------------------------------------------------------------------------------------------
INT8 = {
    "oneDNN (torch)": Peer(_torch_int8("onednn"), 8),
    "FBGEMM (torch)": Peer(_torch_int8("fbgemm"), 8),
    "ONNX Runtime": Peer(onnxruntime_int8, 8),
    "OpenVINO": Peer(openvino_int8, 8),
}
FLOAT = {
    "FP32 (torch)": Peer(torch_fp32, 32),
    "BF16 (torch)": Peer(_torch_half("bfloat16"), 16),
    "FP16 (torch)": Peer(_torch_half("float16"), 16),
}
# Blocks of K as large as MatMulNBits has a fast kernel for: that is where it is quickest.
LOWBIT = {
    "MatMulNBits, 8 bits": Peer(_matmul_nbits(8, 256), 8),
    "MatMulNBits, 4 bits": Peer(_matmul_nbits(4, 256), 4),
    "MatMulNBits, 2 bits": Peer(_matmul_nbits(2, 128), 2),
    "llama.cpp Q8_0": Peer(_llama_cpp("Q8_0"), 8),
    "llama.cpp Q4_0": Peer(_llama_cpp("Q4_0"), 4),
    "llama.cpp Q4_K": Peer(_llama_cpp("Q4_K"), 4),
    "llama.cpp Q2_K": Peer(_llama_cpp("Q2_K"), 2),
    "llama.cpp TQ2_0": Peer(_llama_cpp("TQ2_0"), 2),
    "llama.cpp Q1_0": Peer(_llama_cpp("Q1_0"), 1),
}
CONVOLUTIONS = {"FP32 (torch)": torch_conv2d_fp32, "INT8, oneDNN (torch)": torch_conv2d_int8}
TABLES = {"int8": INT8, "float": FLOAT, "lowbit": LOWBIT}

# Mean error over mean result that the bits of the weights explain: zeros would have 1, unrelated numbers 1.4.
_MOST_ERROR = {1: 0.9, 2: 0.9, 4: 0.2, 8: 0.05, 16: 0.05, 32: 0.0001}


def linear(operands: Operands, kind: str, name: str, threads: int) -> Call:
    """A peer's call, after its answer has been compared with the float32 product.

    Raises:
        Unavailable: what is missing.
        AssertionError: an answer that its bits do not explain.
    """
    peer = TABLES[kind][name]
    try:
        call = peer.make(operands, threads)
    except ImportError as error:
        raise Unavailable(_first_line(error)) from None
    off = operands.error_of(call())
    if not off <= _MOST_ERROR[peer.bits]:
        raise AssertionError(f"{name} is off by {off:.1%} on {operands.x.shape} x {operands.block.shape}")
    return call


def versions() -> dict[str, str]:
    """Of everything that is compared."""
    found = {}
    for name in ("numpy", "torch", "onnxruntime", "openvino", "llama-cpp-python"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if "SONIQ_GGML" in os.environ:
        with suppress(ImportError, OSError):
            found["ggml"] = ggml.library().version().decode()
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
