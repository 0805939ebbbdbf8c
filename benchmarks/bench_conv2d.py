"""Convolutions from float32 to float32, NHWC: ours at several widths, and torch in float32 and INT8."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import peers, shapes
from benchmarks.operands import require_equal
from soniq_kernels import conv, packing

# (height = width, input channels, output channels, kernel, stride, groups): the stages of a ResNet, and depthwise.
SHAPES = [
    (56, 64, 64, 3, 1, 1),
    (56, 64, 128, 3, 2, 1),
    (28, 128, 128, 3, 1, 1),
    (14, 256, 256, 3, 1, 1),
    (7, 512, 512, 3, 1, 1),
    (14, 1024, 256, 1, 1, 1),
    (56, 128, 128, 3, 1, 128),
]
TINY = [(5, 6, 8, 3, 2, 1), (4, 6, 6, 3, 1, 6), (3, 8, 4, 1, 1, 1)]
A_SCALE = 2.0


def operands(shape):
    """x float32 NHWC and w float32 OHWI."""
    size, inputs, outputs, kernel, _, groups = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, size, size, inputs), dtype=np.float32)
    return x, rng.standard_normal((outputs, kernel, kernel, inputs // groups), dtype=np.float32)


def patches(x, kernel, stride):
    """[positions, kernel, kernel, channels] of an NHWC tensor of one image, padded with zeros as if to keep its size."""
    pad = kernel // 2
    padded = np.pad(x[0], ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))[::stride, ::stride]
    return windows.reshape(-1, x.shape[3], kernel, kernel).transpose(0, 2, 3, 1)


def product(x, w, shape):
    """[positions, outputs] in float64: exact for integers, whose sums stay far below 2**53."""
    _, _, _, kernel, stride, groups = shape
    rows = np.split(patches(x.astype(np.float64), kernel, stride), groups, axis=3)
    parts = zip(rows, np.split(w.astype(np.float64), groups), strict=True)
    return np.concatenate([r.reshape(r.shape[0], -1) @ p.reshape(p.shape[0], -1).T for r, p in parts], axis=1)


@pytest.mark.parametrize("widths", shapes.FEW_WIDTHS)
def test_ours(timed, shape, widths):
    x, w = operands(shape)
    *_, kernel, stride, _ = shape
    packed = packing.quantize_weights(w, shapes.plan(widths, shape[1]), activation_scale=A_SCALE)
    codes = packing.quantize_activations(x, packed.plan, A_SCALE)
    (segment,) = packed.plan.segments
    exact = product(segment.a.levels(codes.codes()), segment.w.levels(packed.codes()), shape)
    got = conv.conv2d_int32(codes, packed, stride=stride, padding=kernel // 2)
    require_equal(got.reshape(exact.shape), exact, f"{widths} {shape}")
    call = lambda: conv.conv2d(x, packed, stride=stride, padding=kernel // 2)  # noqa: E731
    timed(call, kernel=conv.explain(codes, packed).kernel, products=exact.size * w[0].size)


@pytest.mark.parametrize("name", peers.CONVOLUTIONS)
def test_peer(timed, available, shape, name):
    x, w = operands(shape)
    *_, kernel, stride, groups = shape
    exact = product(x, w, shape)
    call = available(peers.CONVOLUTIONS[name], x, w, exact, stride, kernel // 2, groups)
    assert np.abs(call().reshape(exact.shape) - exact).mean() < 0.05 * np.abs(exact).mean()
    timed(call, products=exact.size * w[0].size)
