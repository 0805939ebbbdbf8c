"""Convolutions of the GPU kernels against the oracle and the CPU kernels."""

from __future__ import annotations

import numpy as np
import pytest

import cases
from soniq_kernels import conv, packing
from triton_cases import A_SCALE, Grid, gpu, layer, numpy, on_gpu, oracle, two_segments

SMALL = [
    dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1, bits=((4, 4),)),
    dict(kernel=(3, 2), stride=(2, 1), padding=(0, 2, 1, 0), dilation=(1, 2), groups=1, bits=((1, 8),)),
    dict(kernel=(1, 1), stride=(2, 2), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, bits=((8, 8),)),
    dict(kernel=(3, 3), stride=(1, 2), padding=(2, 2, 2, 2), dilation=(2, 2), groups=1, bits=((2, 3), (8, 8))),
    dict(kernel=(2, 3), stride=(1, 1), padding=(1, 0, 0, 1), dilation=(1, 1), groups=2, bits=((3, 5), (6, 7))),
    dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=6, bits=((5, 6),)),
]


def operands(rng, case, kinds=("bipolar", "bipolar"), channels=12, outputs=24, size=(5, 6), **options):
    pairs = tuple((Grid(kinds[0], w), Grid(kinds[1], a)) for w, a in case["bits"])
    low = channels if len(pairs) == 1 else 5
    layout = oracle.uniform(channels, *pairs[0]) if len(pairs) == 1 else two_segments(rng, low, channels - low, pairs)
    packed = layer(rng, layout, (outputs, *case["kernel"], channels // case["groups"]), **options)
    x = cases.activations(cases.x_codes(rng, (2, *size, channels), layout), packed.plan, A_SCALE)
    return layout, packed, x


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c['kernel']}-{c['groups']}-{c['bits']}")
def test_integers_are_the_oracles(rng, case):
    layout, packed, x = operands(rng, case)
    weights, codes = on_gpu(packed, x)
    how = case["stride"], case["padding"], case["dilation"]
    got = gpu.conv2d_int32(codes, weights, *how)
    cases.assert_same(numpy(got), oracle.conv2d(x.codes(), packed.codes(), layout, *how), case)


@pytest.mark.parametrize("kinds", [("signed", "unsigned"), ("unsigned", "bipolar")])
def test_padding_is_zero_on_every_grid(rng, kinds):
    layout, packed, x = operands(rng, SMALL[3], kinds)
    weights, codes = on_gpu(packed, x)
    expected = oracle.conv2d(x.codes(), packed.codes(), layout, (1, 1), (2, 2, 2, 2))
    cases.assert_same(numpy(gpu.conv2d_int32(codes, weights, 1, 2)), expected)


def test_floats_and_codes_are_those_of_the_cpu(rng):
    """Floats in, a scale per image, a residual, and codes out that the next layer reads."""
    case, outputs = SMALL[0], 24
    bias = rng.normal(size=outputs).astype(np.float32)
    _, packed, _ = operands(rng, case, bias=bias, activation_scale="per_row")
    image = rng.normal(size=(2, 5, 6, 12)).astype(np.float32)
    residual = rng.normal(size=(2, 5, 6, outputs)).astype(np.float32)
    weights, _ = on_gpu(packed, packing.quantize_activations(image, packed.plan, 1.0))
    to = lambda array: weights.vectors.new_tensor(array)  # noqa: E731
    expected = conv.conv2d(image, packed, padding=1, residual=residual, activation="relu")
    cases.assert_same_bits(
        numpy(gpu.conv2d(to(image), weights, padding=1, residual=to(residual), activation="relu")), expected
    )
    plan = packing.Plan.mixed(rng.permutation([2] * 10 + [8] * 14))
    expected = conv.conv2d(image, packed, padding=1, out=(plan, 0.4))
    got = gpu.conv2d(to(image), weights, padding=1, out=(plan, 0.4))
    cases.assert_same(numpy(got.codes()), expected.codes())


def test_wrong_sizes_are_named(rng):
    _, packed, x = operands(rng, SMALL[0])
    weights, codes = on_gpu(packed, x)
    with pytest.raises(ValueError, match="the padded height is 5 but the dilated kernel needs 9"):
        gpu.conv2d(codes, weights, dilation=4)
    with pytest.raises(ValueError, match="expected NHWC"):
        gpu.conv2d(codes.data, weights)
