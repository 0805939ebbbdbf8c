"""INT8, FP32 and BF16 linear layers of other libraries, each with prepacked weights and float32 in and out.

Every peer quantizes its activations from float32 inside the timed call, as ours does. A peer that is not installed is
left out, and the report says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Call = Callable[[], Floats]
Peer = Callable[[Floats, Floats, int], Call]


def torch_fp32(x: Floats, w: Floats, threads: int) -> Call:
    """oneDNN or MKL float32, as torch.nn.functional.linear picks."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: torch.nn.functional.linear(a, b).numpy()


def torch_bf16(x: Floats, w: Floats, threads: int) -> Call:
    """oneDNN bfloat16, converted from and to float32 in the call."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.from_numpy(x), torch.from_numpy(w).bfloat16()
    return lambda: torch.nn.functional.linear(a.bfloat16(), b).float().numpy()


def _torch_int8(engine: str) -> Peer:
    def peer(x: Floats, w: Floats, threads: int) -> Call:
        import torch

        torch.set_num_threads(threads)
        if engine not in torch.backends.quantized.supported_engines:
            raise ImportError(f"torch was built without {engine}")
        torch.backends.quantized.engine = engine
        a = torch.from_numpy(x)
        with warnings.catch_warnings():  # per-channel observers of torch warn of their own deprecation
            warnings.simplefilter("ignore")
            scales = torch.from_numpy(np.abs(w).max(axis=1) / 127).double()
            zeros = torch.zeros(w.shape[0], dtype=torch.long)
            q = torch.quantize_per_channel(torch.from_numpy(w), scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(q, None)
        return lambda: torch.ops.quantized.linear_dynamic(a, packed, False).numpy()

    return peer


def _onnx_model(x: Floats, w: Floats) -> bytes:
    """Static QDQ: QuantizeLinear -> DequantizeLinear -> MatMul with per-channel int8 weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    scales = (np.abs(w).max(axis=1) / 127).astype(np.float32)
    codes = np.clip(np.rint(w / scales[:, None]), -127, 127).astype(np.int8)
    low, high = float(min(x.min(), 0)), float(max(x.max(), 0))
    x_scale = np.float32((high - low) / 255)
    x_zero = np.uint8(round(-low / float(x_scale)))
    constants = {
        "x_scale": np.array(x_scale), "x_zero": np.array(x_zero), "w": np.ascontiguousarray(codes.T), "w_scale": scales,
        "w_zero": np.zeros(w.shape[0], np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (x.shape[0], w.shape[0]))],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def onnxruntime_int8(x: Floats, w: Floats, threads: int) -> Call:
    """ONNX Runtime's MLAS, static QDQ, per-channel weights."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(_onnx_model(x, w), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def openvino_int8(x: Floats, w: Floats, threads: int) -> Call:
    """OpenVINO, the same QDQ model."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(_onnx_model(x, w))
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    return lambda: request.infer({0: x}, share_inputs=True, share_outputs=True)[0]


INT8: dict[str, Peer] = {
    "oneDNN (torch)": _torch_int8("onednn"),
    "FBGEMM (torch)": _torch_int8("fbgemm"),
    "ONNX Runtime": onnxruntime_int8,
    "OpenVINO": openvino_int8,
}
FLOAT: dict[str, Peer] = {"FP32 (torch)": torch_fp32, "BF16 (torch)": torch_bf16}
