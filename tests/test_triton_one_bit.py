"""The one-bit kernels behind gpu.linear: when they are chosen, what they take and write. The emulator runs them where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

import cases
from cuda_emulator import harness
from soniq_kernels import gemm, packing
from soniq_kernels.triton_kernels import choice, cuda, one_bit, tune
from soniq_kernels.triton_kernels.choice import B1, TENSOR_CORE, VECTOR
from triton_cases import DEVICE, INTERPRETED, Grid, gpu, layer, numpy, oracle, two_segments


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """An emulated GPU in the place of the one that is not there."""
    if not INTERPRETED:
        return
    emulated = harness.tensor_device()
    monkeypatch.setattr(one_bit, "device_of", lambda device: emulated)
    monkeypatch.setattr(one_bit, "unusable", lambda device: None)


PAIRS = ((Grid("bipolar", 1), Grid("unsigned", 2)), (Grid("bipolar", 2), Grid("bipolar", 8, 3)))


def made(rng, outputs=21, low=400, high=300, **options):
    packed = layer(rng, two_segments(rng, low, high, PAIRS), (outputs, low + high), **options)
    return packed, gpu.to_device(packed, DEVICE)


def on_device(x):
    return torch.from_numpy(x).to(DEVICE)


@pytest.mark.parametrize("scale", [0.4, "per_row"])
@pytest.mark.parametrize("shape", [(3,), (70,), (2, 1, 2)])
def test_floats(rng, scale, shape):
    """Quantized to planes in one pass, with a bias, an activation and a residual."""
    packed, weights = made(rng, bias=rng.normal(size=21), post_bias=rng.normal(size=21), activation_scale=scale)
    x, residual = oracle.values_near(rng, (*shape, 700), 0.4), rng.normal(size=(*shape, 21)).astype(np.float32)
    with choice.use(B1):
        got = gpu.linear(on_device(x), weights, on_device(residual), "relu")
        integers = gpu.matmul(on_device(x), weights)
    cases.assert_same_bits(numpy(got), gemm.linear(x, packed, residual, "relu", check_finite=False))
    codes = packing.quantize_activations(x, packed.plan, scale, check_finite=False)
    cases.assert_same(numpy(integers), gemm.matmul(codes, packed))


@pytest.mark.parametrize("shape", [(3,), (2, 9, 5)])
@pytest.mark.parametrize("groups", [0, 1])
def test_codes_in_and_several_tensors_out(rng, shape, groups):
    """Bytes of the other kernels become planes; float32, codes and their sums are written in one pass."""
    packed, weights = made(rng)
    x = cases.activations(rng.integers(0, 4, (*shape, 700)).astype(np.uint8), packed.plan, 0.3)
    plans = [packing.Plan.mixed(rng.permutation([3] * 9 + [8] * 12)), packing.Plan.uniform(21, 2, 4)]
    outs = [(plans[0], 0.6), None, (plans[1], 0.2)]
    residual = cases.activations(rng.integers(0, 8, (*shape, 21)).astype(np.uint8), plans[0], 0.8)
    expected = gemm.linear(x, packed, residual, "relu6", outs, check_finite=False)
    with choice.use(B1):
        shortcut = gpu.from_host(residual, DEVICE, groups)
        got = gpu.linear(gpu.from_host(x, DEVICE, groups), weights, shortcut, "relu6", outs, groups)
    for one, other in zip(got, expected, strict=True):
        if isinstance(other, np.ndarray):
            cases.assert_same_bits(numpy(one), other)
            continue
        again = gpu.from_host(other, DEVICE, groups)
        for name in ("data", "sums") if groups else ("data",):
            cases.assert_same(numpy(getattr(one, name)), numpy(getattr(again, name)))


def test_who_is_chosen(rng):
    """Few bits at any number of rows, any bits at few; explain says why, and use() forces."""
    few, many = (made(rng, activation_scale=1.0)[1], gpu.to_device(uniform(4, 8), DEVICE))
    assert gpu.explain(torch.empty(1, 64), many).path == B1 and "planes" in str(gpu.explain(torch.empty(1, 64), many))
    assert gpu.explain(torch.empty(100, 64), many).path == TENSOR_CORE
    one = gpu.to_device(uniform(1, 2), DEVICE)
    assert gpu.explain(torch.empty(4096, 64), one).path == B1 and gpu.explain(torch.empty(4096, 64), one).bn == 128
    with gpu.use("vector", "tensor_core"):
        assert gpu.explain(torch.empty(1, 64), one).path == VECTOR
    with gpu.use("b1"):
        assert gpu.explain(torch.empty(100, 64), many).path == B1
        images = gpu.to_device(
            packing.pack(
                np.zeros((4, 1, 1, 8), np.uint8), packing.Plan.uniform(8, 2, 2), np.ones(4), activation_scale=1.0
            ),
            DEVICE,
        )
        with pytest.raises(ValueError, match="b1: one-bit kernels multiply linear layers only"):
            gpu.conv2d(torch.zeros(1, 2, 2, 8, device=DEVICE), images)
    with (
        pytest.raises(ValueError, match="use\\(\\) names speed; expected some of vector, tensor_core, b1"),
        gpu.use("speed"),
    ):
        pass
    assert few.plan.channels == 700


def uniform(w_bits, a_bits):
    plan = packing.Plan.uniform(64, w_bits, a_bits)
    return packing.pack(np.zeros((40, 64), np.uint8), plan, np.ones(40), activation_scale=1.0)


def test_a_gpu_that_emulates_one_bit_products_takes_the_other_paths(rng, monkeypatch):
    """And explain says why; the same without CuPy."""
    for reason in (cuda.refusal((10, 0)), "cupy is not installed"):
        monkeypatch.setattr(one_bit, "unusable", lambda device, reason=reason: reason)
        weights = gpu.to_device(uniform(1, 1), DEVICE)
        found = gpu.explain(torch.empty(1, 64), weights)
        assert found.path == VECTOR and reason in found.reason
        with gpu.use("b1"), pytest.raises(ValueError, match="b1: "):
            gpu.explain(torch.empty(1, 64), weights)


def test_the_tuner_tries_them_and_its_table_is_read(rng, tmp_path, monkeypatch):
    """The entry of 8 bits serves fewer bits of activations, with tiles of their own."""
    weights = gpu.to_device(uniform(2, 8), DEVICE)
    tried = list(tune.candidates(weights, 2))
    assert {c.bn for c in tried if c.path == B1} == {16, 128}
    jobs = []
    table = tune.measure(
        DEVICE, tune.jobs(tiny=True)[::2], lambda runs: -float(len(jobs)), lambda: jobs.append(1), step=12
    )
    assert len(jobs) == len(table["choices"]) == 2 and all(c["path"] in choice.PATHS for c in table["choices"].values())
    entry = choice.as_entry(next(c for c in tried if c.path == B1))
    path = tmp_path / "gpu.json"
    tune.write({"gpu": "none", "choices": {choice.key_of(weights, 2): entry}}, path)
    monkeypatch.setenv("SONIQ_GPU_TABLE", str(path))
    choice.load.cache_clear()
    try:
        for a_bits in (8, 3):
            assert (
                gpu.explain(torch.empty(2, 64), gpu.to_device(uniform(2, a_bits), DEVICE)).reason
                == f"measured ({path})"
            )
    finally:
        choice.load.cache_clear()
