"""ResNet-50's convolutions on a GPU: ours beside cuDNN in FP16, both NHWC, a batch of images."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import shapes
from benchmarks.gpu_machine import Call, our_kernels
from soniq_kernels import conv, packing

BATCH = 32
WIDTHS = ["W1A4", "W2A4", "W4A4", "W4A8", "W8A8"]
CUDNN = "cuDNN FP16"


class Image(NamedTuple):
    """A convolution: square images and filters, padding that keeps the size at stride 1."""

    size: int
    channels: int
    outputs: int
    taps: int
    stride: int

    def text(self) -> str:
        return f"{self.size}x{self.size}x{self.channels}, {self.taps}x{self.taps}/{self.stride}, {self.outputs}"


RESNET50 = [
    Image(56, 64, 64, 3, 1), Image(56, 64, 256, 1, 1), Image(56, 128, 128, 3, 2), Image(28, 512, 128, 1, 1),
    Image(28, 128, 128, 3, 1), Image(28, 256, 256, 3, 2), Image(14, 256, 1024, 1, 1), Image(14, 256, 256, 3, 1),
    Image(14, 512, 512, 3, 2), Image(7, 512, 2048, 1, 1), Image(7, 512, 512, 3, 1),
]  # fmt: skip
TINY = [Image(5, 8, 6, 3, 1), Image(4, 16, 8, 1, 1)]


def measure(
    gpu: Any, deadline: Any, left_out: dict[str, None], errors: list[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for every convolution and contender, as the rows of the linear layers."""
    rows = []
    for image in TINY if gpu.tiny else RESNET50:
        if deadline.seconds() < 20 and not gpu.tiny:
            left_out[f"convolution {image.text()}: out of time"] = None
            continue
        say(f"convolution {image.text()}")
        rows += _measure(gpu, image, left_out, errors)
        gpu.free()
    return rows


def _measure(gpu: Any, image: Image, left_out: dict[str, None], errors: list[str]) -> list[dict[str, Any]]:
    from benchmarks.gpu import take_turns

    rng = np.random.default_rng(3)
    batch = 2 if gpu.tiny else BATCH
    x = rng.standard_normal((batch, image.size, image.size, image.channels), dtype=np.float32)
    w = rng.standard_normal((image.outputs, image.taps, image.taps, image.channels), dtype=np.float32)
    runs = {}
    for name in (CUDNN, *(WIDTHS[-2:] if gpu.tiny else WIDTHS)):
        try:
            call = _cudnn(gpu, image, x, w) if name == CUDNN else _ours(gpu, image, x, w, name)
            runs[name] = gpu.prepare([call])
        except Exception as error:  # the others are measured all the same; the run fails in the end
            errors.append(f"{name} at convolution {image.text()}: {type(error).__name__}: {error}")
    return _rows(image, batch, take_turns(gpu, runs))


def _cudnn(gpu: Any, image: Image, x: np.ndarray, w: np.ndarray) -> Call:
    torch = gpu.torch
    images, filters = (
        torch.from_numpy(a).permute(0, 3, 1, 2).to(gpu.device, torch.float16, memory_format=torch.channels_last)
        for a in (x, w)
    )
    return lambda: torch.nn.functional.conv2d(images, filters, stride=image.stride, padding=image.taps // 2)


def _ours(gpu: Any, image: Image, x: np.ndarray, w: np.ndarray, widths: str) -> Call:
    ours = our_kernels()
    packed = packing.quantize_weights(w, shapes.plan(widths, image.channels), activation_scale=2.0)
    weights = ours.to_device(packed, gpu.device)
    options: dict[str, Any] = {"stride": image.stride, "padding": image.taps // 2}
    images = gpu.torch.from_numpy(x).to(gpu.device, gpu.torch.float16)
    call = lambda: ours.conv2d(images, weights, **options)  # noqa: E731
    expected = conv.conv2d(images[:2].float().cpu().numpy(), packed, **options)
    if not np.array_equal(call()[:2].cpu().numpy().view(np.uint32), expected.view(np.uint32)):
        raise AssertionError(f"{widths} differs from the CPU's answer at convolution {image.text()}")
    return call


def _rows(image: Image, batch: int, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    seconds = {name: statistics.median(measured) for name, measured in times.items()}
    base = seconds.get(CUDNN)
    side = (image.size - 1) // image.stride + 1
    work = batch * side * side * image.outputs * image.taps**2 * image.channels
    rows = []
    for name, s in seconds.items():
        known = s == s  # NaN: nothing was measured
        rows.append({
            "convolution": image.text(), "batch": batch, "name": name, "seconds": s if known else None,
            "tmac_per_s": work / s / 1e12 if known else None, "ratio": base / s if base and known else None,
        })  # fmt: skip
    return rows
