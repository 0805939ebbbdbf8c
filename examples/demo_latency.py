"""The float and INT8 forms torch itself offers, and a fair clock for all forms."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

FUSED = [[f"conv{i}", f"norm{i}", f"relu{i}"] for i in (1, 2, 3)]


def fused_float32(model: nn.Module) -> nn.Module:
    """The float network as one would deploy it: batch norm and ReLU fused into the convolutions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.fuse_modules(copy.deepcopy(model).eval(), FUSED)


def torch_int8(model: nn.Module, calibration: Tensor) -> nn.Module:
    """torch's own static INT8 (per-channel weights, x86 backend), calibrated on training images."""
    from torch.ao import quantization

    with warnings.catch_warnings():  # torch announces the end of this API; it is what torch runs INT8 on CPUs with
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
        wrapped = quantization.QuantWrapper(fused_float32(model))
        wrapped.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        quantization.prepare(wrapped, inplace=True)
        with torch.no_grad():
            wrapped(calibration)
        return quantization.convert(wrapped, inplace=True)


def interleaved_medians(models: Mapping[str, nn.Module], images: Tensor, seconds: float = 3.0) -> dict[str, float]:
    """Median seconds of one call of each model on `images`: warmed up, then in turns until the time is spent."""
    with torch.inference_mode():
        for model in models.values():
            _timed(model, images, calls=5)
        once = {name: _timed(model, images) for name, model in models.items()}
        rounds = max(5, min(400, int(seconds / sum(once.values()))))
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds):
            for name, model in models.items():
                times[name].append(_timed(model, images))
    return {name: median(measured) for name, measured in times.items()}


def _timed(model: Callable[[Tensor], Tensor], images: Tensor, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        model(images)
    return (time.perf_counter() - start) / calls
