"""Linear layers of the GPU kernels against the oracle and the CPU kernels: every width, two segments, odd sizes, epilogues."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

import cases
from soniq_kernels import gemm, packing
from soniq_kernels.triton_kernels import gemm as gemm_on_gpu
from soniq_kernels.triton_kernels.choice import TENSOR_CORE, Choice
from triton_cases import A_SCALE, Grid, gpu, layer, numpy, on_gpu, oracle, two_segments


@pytest.fixture(autouse=True)
def matrix_instructions(monkeypatch):
    """These are the tests of the tensor-core path, also where few rows would take the vector path (test_triton_vector.py)."""
    monkeypatch.setattr(gemm_on_gpu, "choose", lambda weights, rows: Choice(TENSOR_CORE, 64, 16))


def check_integers(rng, layout, outputs, rows):
    packed = layer(rng, layout, (outputs, layout.channels))
    x = cases.x_codes(rng, (rows, layout.channels), layout)
    weights, codes = on_gpu(packed, cases.activations(x, packed.plan, A_SCALE))
    cases.assert_same(numpy(gpu.matmul(codes, weights)), oracle.matmul(x, packed.codes(), layout), layout.pairs)


def diagonal(full):
    """Every pair of widths, or a Latin square's worth of them, in which each width occurs on both sides."""
    return cases.WIDTHS if full else [(w, (3 * w + i) % 8 + 1) for w in range(1, 9) for i in (0, 5)]


def test_widths(rng, full):
    for w_bits, a_bits in diagonal(full):
        check_integers(rng, oracle.uniform(100, Grid("bipolar", w_bits), Grid("bipolar", a_bits)), 70, 5)


@pytest.mark.parametrize("w_kind", ["bipolar", "unsigned", "signed", "ternary"])
def test_grids(rng, w_kind):
    for a_kind, bits in (("bipolar", 3), ("unsigned", 8), ("signed", 8), ("ternary", 2)):
        w_grid = Grid(w_kind, 2 if w_kind == "ternary" else 8, -5)
        check_integers(rng, oracle.uniform(33, w_grid, Grid(a_kind, bits, 3, 1)), 17, 18)


def test_two_segments(rng):
    for low, high in (((1, 1), (4, 4)), ((2, 4), (8, 8)), ((3, 8), (5, 6)), ((1, 8), (8, 1))):
        pairs = tuple((Grid("bipolar", w), Grid("unsigned", a, 0, -w % 3)) for w, a in (low, high))
        check_integers(rng, two_segments(rng, 70, 41, pairs), 35, 3)


@pytest.mark.parametrize(("outputs", "rows", "channels"), [(1, 1, 1), (65, 17, 129), (130, 33, 16), (3, 1, 700)])
def test_odd_sizes(rng, outputs, rows, channels):
    check_integers(rng, oracle.uniform(channels, Grid("bipolar", 3), Grid("bipolar", 8)), outputs, rows)


EPILOGUES = {
    "residual": ["none", "float", "codes"],
    "activation": [None, "relu", "relu6", ("hardtanh", -0.3, 0.4)],
    "bias": [False, True],
    "post": [False, True],
    "scales": ["one", "per row"],
    "out": ["float", "codes"],
}


@pytest.mark.parametrize("case", cases.pairwise(EPILOGUES), ids=lambda c: "-".join(map(str, c.values())))
def test_epilogue_has_the_bits_of_the_cpu(rng, case):
    """Every option, two segments, values that become denormal, infinite and NaN on the way."""
    outputs, rows = 21, 6
    layout = two_segments(
        rng, 20, 30, ((Grid("bipolar", 2), Grid("unsigned", 4)), (Grid("bipolar", 4), Grid("bipolar", 8)))
    )
    vectors = lambda: np.where(rng.random(outputs) < 0.2, rng.choice([1e-40, 3e38, -2e-45]), rng.normal(size=outputs))  # noqa: E731
    options = {"bias": vectors()} if case["bias"] else {}
    options |= {"post_scale": vectors(), "post_bias": vectors()} if case["post"] else {}
    packed = layer(rng, layout, (outputs, 50), **options)
    packed.scale[:2] = 1e-42, 3e38
    scale = A_SCALE if case["scales"] == "one" else rng.uniform(0.1, 3, rows).astype(np.float32)
    x = cases.activations(cases.x_codes(rng, (rows, 50), layout), packed.plan, scale)
    next_plan = packing.Plan.mixed(rng.permutation([3] * 9 + [8] * 12), a_grid="bipolar", offset=(2, -1))
    residual = gpu_residual = None
    if case["residual"] == "float":
        residual = rng.normal(size=(rows, outputs)).astype(np.float32)
        residual[0, :3] = np.nan, np.inf, 1e-41
        gpu_residual = gpu.from_host(x, on_gpu(packed, x)[0].device).scale.new_tensor(residual)
    if case["residual"] == "codes":
        codes = rng.integers(0, 8, (rows, outputs)).astype(np.uint8)
        residual = packing.Activations.from_codes(codes, next_plan, 0.8)
    out = (next_plan, 0.6) if case["out"] == "codes" else None
    weights, device_x = on_gpu(packed, x)
    if case["residual"] == "codes":
        gpu_residual = gpu.from_host(residual, weights.device)
    with np.errstate(all="ignore"):
        expected = gemm.linear(x, packed, residual, case["activation"], out, check_finite=False)
        got = gpu.linear(device_x, weights, gpu_residual, case["activation"], out)
    if out is None:
        return cases.assert_same_bits(numpy(got), expected)
    cases.assert_same(numpy(got.codes()), expected.codes())
    again = gpu.from_host(expected, weights.device)
    cases.assert_same(numpy(got.sums), numpy(again.sums))
    cases.assert_same(numpy(got.data), numpy(again.data))


def test_wrong_operands_are_named(rng):
    layout = oracle.uniform(20, Grid("bipolar", 2), Grid("unsigned", 4))
    packed = layer(rng, layout, (5, 20))
    weights, codes = on_gpu(packed, cases.activations(cases.x_codes(rng, (2, 20), layout), packed.plan, 1.0))
    with pytest.raises(TypeError, match="expected DeviceWeights; make it with to_device"):
        gpu.linear(codes, packed)
    with pytest.raises(ValueError, match="residual has shape"):
        gpu.linear(codes, weights, residual=weights.vectors)
    with pytest.raises(ValueError, match="hardtanh has low 2.0 and high 1.0"):
        gpu.linear(codes, weights, activation=("hardtanh", 2, 1))
    with pytest.raises(TypeError, match="expected packing.PackedWeights"):
        gpu.to_device(weights)
