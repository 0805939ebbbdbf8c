"""Shapes and widths that people use, as GEMM (M, N, K): rows of activations, output channels, input channels."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from soniq_kernels import packing

Shape = tuple[int, int, int]

# One batch of a language model's layer, two of an encoder's, and the 28x28 stage of a ResNet as a GEMM.
GEMM: list[Shape] = [(128, 4096, 4096), (512, 1024, 1024), (128, 768, 3072), (784, 128, 1152)]
# One token: weights that no cache holds (537 MB in INT8), and weights that an L3 of 32 MB holds (17 MB in INT8).
GEMV: list[Shape] = [(1, 32768, 16384), (1, 4096, 4096)]

# W = weight bits, A = activation bits; both operands on the bipolar grid.
MIXED = "80% W1A4 + 20% W4A4"
WIDTHS = ["W1A1", "W1A2", "W1A4", "W2A2", "W2A4", "W3A3", "W3A4", "W4A4", "W4A8", "W8A8", MIXED]
FEW_WIDTHS = ["W1A1", "W1A4", "W2A2", "W4A4", "W8A8"]
GEMV_WIDTHS = ["W1A1", "W1A4", "W1A8", "W2A2", "W2A4", "W2A8", "W4A4", "W4A8", "W8A8"]
NETWORK_WIDTHS = ["W1A1", "W1A4", "W2A2", "W4A4", "W8A8", MIXED]
LOWBIT_WIDTHS = ["W1A8", "W2A4", "W2A8", "W4A4", "W4A8", "W8A8"]


def text(shape: tuple[int, ...]) -> str:
    """As pages and pictures print it."""
    return " x ".join(map(str, shape))


def parts(widths: str) -> list[tuple[float, int, int]]:
    """(share of the channels, w_bits, a_bits) of each segment: "W2A4", "80% W1A4 + 20% W4A4"."""
    found = re.findall(r"(?:(\d+)% )?W(\d)A(\d)", widths)
    if not found:
        raise ValueError(f'widths are {widths!r}, expected "W2A4" or "80% W1A4 + 20% W4A4"')
    return [(int(share or 100) / 100, int(w), int(a)) for share, w, a in found]


def plan(widths: str, channels: int) -> packing.Plan:
    """Two widths are spread over the channels at random, as training leaves them."""
    segments = parts(widths)
    if len(segments) == 1:
        return packing.Plan.uniform(channels, *segments[0][1:], a_grid="bipolar")
    (share, *low), (_, *high) = segments
    is_low = np.random.default_rng(1).permutation(channels) < round(share * channels)
    w_bits, a_bits = (np.where(is_low, low[i], high[i]) for i in (0, 1))
    return packing.Plan.mixed(w_bits=w_bits, a_bits=a_bits, a_grid="bipolar")


# ---- networks ------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """How many layers of a network have this shape. A convolution is the GEMM of its gathered rows (im2col)."""

    times: int
    shape: Shape


def _encoder(layers: int, tokens: int, width: int, inner: int) -> list[Layer]:
    """Queries, keys, values and output; up; down."""
    return [
        Layer(4 * layers, (tokens, width, width)),
        Layer(layers, (tokens, inner, width)),
        Layer(layers, (tokens, width, inner)),
    ]


def _llama7b(tokens: int) -> list[Layer]:
    """As an encoder, with a gate beside the way up."""
    square, up, down = _encoder(32, tokens, 4096, 11008)
    return [square, Layer(2 * up.times, up.shape), down]


# Images of 224 x 224, one at a time; language models at 128 tokens, and Llama also at one.
NETWORKS: dict[str, list[Layer]] = {
    "ResNet-18": [
        Layer(1, (12544, 64, 147)),
        Layer(4, (3136, 64, 576)),
        *[Layer(1, (784, 128, 64)), Layer(1, (784, 128, 576)), Layer(3, (784, 128, 1152))],
        *[Layer(1, (196, 256, 128)), Layer(1, (196, 256, 1152)), Layer(3, (196, 256, 2304))],
        *[Layer(1, (49, 512, 256)), Layer(1, (49, 512, 2304)), Layer(3, (49, 512, 4608))],
        Layer(1, (1, 1000, 512)),
    ],
    "ResNet-50": [
        Layer(1, (12544, 64, 147)),
        *[Layer(1, (3136, 64, 64)), Layer(2, (3136, 64, 256)), Layer(3, (3136, 64, 576)), Layer(4, (3136, 256, 64))],
        *[Layer(1, (3136, 128, 256)), Layer(3, (784, 128, 512)), Layer(4, (784, 128, 1152))],
        *[Layer(4, (784, 512, 128)), Layer(1, (784, 512, 256))],
        *[Layer(1, (784, 256, 512)), Layer(5, (196, 256, 1024)), Layer(6, (196, 256, 2304))],
        *[Layer(6, (196, 1024, 256)), Layer(1, (196, 1024, 512))],
        *[Layer(1, (196, 512, 1024)), Layer(2, (49, 512, 2048)), Layer(3, (49, 512, 4608))],
        *[Layer(3, (49, 2048, 512)), Layer(1, (49, 2048, 1024))],
        Layer(1, (1, 1000, 2048)),
    ],
    "BERT-base": _encoder(12, 128, 768, 3072),
    "MiniLM-L6": _encoder(6, 128, 384, 1536),
    "Llama-2-7B, 128 tokens": _llama7b(128),
    "Llama-2-7B, 1 token": _llama7b(1),
}
