"""The networks of models.py in other libraries: INT8 with static scales found on random images, and floating point.

Each maker takes (float model in eval mode, images float32 NCHW, threads) and returns a call that gives float32 logits.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import Unavailable, onnxruntime_session

Floats = NDArray[np.float32]
Call = Callable[[], Floats]
CALIBRATION = 4  # batches


def torch_int8(model: Any, images: Floats, threads: int) -> Call:
    """torch's own INT8 graph on oneDNN: per-channel weights, batch norms folded, activations in 8 bits throughout."""
    import torch

    x = _torch(images, threads).contiguous(memory_format=torch.channels_last)
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise Unavailable("torch was built without oneDNN's INT8")
    torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():  # torch announces the end of this API; it is what torch runs INT8 on CPUs with
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        observed = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("onednn"), (x,))
        with torch.no_grad():
            for batch in _batches(images):
                observed(torch.from_numpy(batch))
        quantized = torch.jit.freeze(torch.jit.trace(convert_fx(observed).eval(), x))
    return _torch_call(quantized, x)


def onnxruntime_int8(model: Any, images: Floats, threads: int) -> Call:
    """ONNX Runtime's MLAS on a QDQ model with per-channel weights."""
    return _onnxruntime(quantized_onnx(model, images), images, threads)


def openvino_int8(model: Any, images: Floats, threads: int) -> Call:
    """OpenVINO on the same QDQ model."""
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    core = ov.Core()
    request = core.compile_model(core.read_model(quantized_onnx(model, images)), "CPU", config).create_infer_request()
    return lambda: request.infer({0: images}, share_inputs=True, share_outputs=False)[0]


def torch_fp32(model: Any, images: Floats, threads: int) -> Call:
    """torch float32, channels last, frozen."""
    import torch

    x = _torch(images, threads).contiguous(memory_format=torch.channels_last)
    frozen = torch.jit.freeze(torch.jit.trace(copy.deepcopy(model).to(memory_format=torch.channels_last), x))
    return _torch_call(frozen, x)


def torch_bf16(model: Any, images: Floats, threads: int) -> Call:
    """torch bfloat16, the cast of the images included."""
    import torch

    x = _torch(images, threads).contiguous(memory_format=torch.channels_last)
    half = copy.deepcopy(model).to(memory_format=torch.channels_last, dtype=torch.bfloat16)

    def call() -> Floats:
        with torch.inference_mode():
            return half(x.bfloat16()).float().numpy()

    return call


def onnxruntime_fp32(model: Any, images: Floats, threads: int) -> Call:
    """ONNX Runtime float32."""
    return _onnxruntime(as_onnx(model, images), images, threads)


PEERS: dict[str, tuple[str, Callable[[Any, Floats, int], Call]]] = {
    "oneDNN INT8 (torch)": ("int8", torch_int8),
    "ONNX Runtime INT8": ("int8", onnxruntime_int8),
    "OpenVINO INT8": ("int8", openvino_int8),
    "FP32 (torch)": ("float", torch_fp32),
    "FP32 (ONNX Runtime)": ("float", onnxruntime_fp32),
    "BF16 (torch)": ("float", torch_bf16),
}


# ---- making --------------------------------------------------------------------------------------------------------
def _torch(images: Floats, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return torch.from_numpy(images)


def _torch_call(module: Any, x: Any) -> Call:
    import torch

    def call() -> Floats:
        with torch.inference_mode():
            return module(x).numpy()

    call()
    call()  # the first two compile
    return call


def _batches(images: Floats) -> Iterator[Floats]:
    rng = np.random.default_rng(1)
    for _ in range(CALIBRATION):
        yield rng.random(images.shape, dtype=np.float32)


def as_onnx(model: Any, images: Floats) -> bytes:
    """The float model, as torch exports it."""
    import torch

    file: Any = io.BytesIO()
    with warnings.catch_warnings():  # of the exporter's successor, which needs packages that nothing else here does
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.from_numpy(images),), file, dynamo=False, opset_version=17)
    return file.getvalue()


def quantized_onnx(model: Any, images: Floats) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._left = ({name: batch} for batch in _batches(images))

        def get_next(self) -> Any:
            return next(self._left, None)

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "done"))
        plain.write_bytes(as_onnx(model, images))
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        name = onnx.load(ready).graph.input[0].name
        quantize_static(
            str(ready), str(done), Batches(name), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
        return done.read_bytes()


def _onnxruntime(model: bytes, images: Floats, threads: int) -> Call:
    session = onnxruntime_session(model, threads)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})[0]
