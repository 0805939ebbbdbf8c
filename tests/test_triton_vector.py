"""The path of few rows, its split K, and what chooses between paths."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

import cases
from soniq_kernels import gemm as cpu
from soniq_kernels import packing
from soniq_kernels.triton_kernels import choice, epilogue, gemm, split_k, tune
from soniq_kernels.triton_kernels.choice import TENSOR_CORE, VECTOR, Choice
from triton_cases import A_SCALE, DEVICE, Grid, gpu, layer, numpy, on_gpu, oracle, two_segments


def operands(rng, layout, outputs, rows):
    packed = layer(rng, layout, (outputs, layout.channels))
    x = cases.x_codes(rng, (rows, layout.channels), layout)
    weights, codes = on_gpu(packed, cases.activations(x, packed.plan, A_SCALE))
    return weights, codes, oracle.matmul(x, packed.codes(), layout)


def check(weights, codes, expected, how):
    done = epilogue.integers(weights, expected.shape)
    gemm.run(codes, weights, done, how)
    cases.assert_same(numpy(done.result), expected, how)


def vector(bn, bm, splits):
    return Choice(VECTOR, bn, bm, splits, warps=1, stages=1)


def test_widths(rng, full):
    """One row, whose fields stay in place, and two, whose fields are shifted."""
    for w_bits, a_bits in cases.WIDTHS if full else [(w, 9 - w) for w in range(1, 9)]:
        weights, codes, expected = operands(
            rng, oracle.uniform(90, Grid("bipolar", w_bits), Grid("bipolar", a_bits)), 6, 2
        )
        check(weights, codes, expected, vector(8, 2, 1))
        if w_bits in (1, 2, 4) or full:
            one = weights, gpu.from_codes(codes.codes()[:1], codes.plan, A_SCALE), expected[:1]
            check(*one, vector(8, 1, 1))


def test_two_segments_and_more_rows_than_a_tile(rng):
    pairs = (Grid("ternary", 2), Grid("unsigned", 2)), (Grid("signed", 8), Grid("bipolar", 8, 7, 1))
    weights, codes, expected = operands(rng, two_segments(rng, 50, 80, pairs), 9, 5)
    check(weights, codes, expected, vector(8, 4, 1))


def test_floats_and_codes_are_those_of_the_cpu(rng):
    """The epilogue behind the vector path, with float32 in and scales per row."""
    packed = layer(
        rng,
        oracle.uniform(40, Grid("bipolar", 2), Grid("unsigned", 8)),
        (9, 40),
        bias=np.ones(9),
        activation_scale="per_row",
    )
    x = rng.normal(size=(3, 40)).astype(np.float32)
    weights = gpu.to_device(packed, DEVICE)
    device_x = weights.vectors.new_tensor(x)
    assert gpu.explain(device_x, weights).path == VECTOR
    got = gpu.linear(device_x, weights, activation="relu")
    cases.assert_same_bits(numpy(got), cpu.linear(x, packed, activation="relu"))
    plan = packing.Plan.uniform(9, 2, 8)
    got = gpu.linear(device_x, weights, out=(plan, 0.3))
    cases.assert_same(numpy(got.codes()), cpu.linear(x, packed, out=(plan, 0.3)).codes())


@pytest.mark.parametrize("how", [vector(8, 1, 3), vector(4, 2, 2), Choice(TENSOR_CORE, 64, 16, 3)], ids=str)
def test_split_k_leaves_its_workspace_as_it_was(rng, how, monkeypatch):
    """Several parts of K give the sums of one, twice in a row in the same memory."""
    spaces = []
    make = split_k.workspace

    def kept(*sizes):
        if not spaces:
            spaces.append(make(*sizes))
        return spaces[0]

    monkeypatch.setattr(split_k, "workspace", kept)
    weights, codes, expected = operands(rng, oracle.uniform(1500, Grid("bipolar", 4), Grid("bipolar", 8)), 10, 2)
    for _ in range(2):
        check(weights, codes, expected, how)
        assert not spaces[0].any()


def test_few_rows_take_the_vector_path_and_many_the_matrix_instructions(rng):
    weights, codes, _ = operands(rng, oracle.uniform(64, Grid("bipolar", 2), Grid("bipolar", 8)), 10, 8)
    assert gpu.explain(codes, weights).path == VECTOR
    many = gpu.explain(np.empty((100, 64)), weights)
    assert (many.path, many.bm) == (TENSOR_CORE, 128) and "tile" in str(many)


def test_sums_that_may_leave_int32_are_never_given_to_clamping_instructions(rng):
    """Signed bytes of 7 bits are codes up to 127, twice the largest level: past a quarter of the bound they could clamp."""
    weights, codes, expected = operands(rng, oracle.uniform(64, Grid("signed", 7), Grid("signed", 7)), 4, 9)
    assert not weights.saturates and choice.rule(weights, 9).path == TENSOR_CORE
    large, _, _ = operands(rng, oracle.uniform(140_000, Grid("signed", 7), Grid("signed", 7)), 1, 1)
    assert large.saturates and choice.rule(large, 4096).path == VECTOR
    check(weights, codes, expected, vector(4, 8, 1))


def test_a_table_overrules_the_rule(rng, tmp_path, monkeypatch):
    weights, codes, _ = operands(rng, oracle.uniform(64, Grid("bipolar", 2), Grid("bipolar", 8)), 10, 3)
    entry = choice.as_entry(vector(4, 2, 1))
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"gpu": "none", "choices": {choice.key_of(weights, 3): entry}}))
    monkeypatch.setenv("SONIQ_GPU_TABLE", str(path))
    choice.load.cache_clear()
    try:
        assert gpu.explain(codes, weights).reason == f"measured ({path})"
        assert gpu.explain(codes, weights).bn == 4
        path.write_text('{"choices": {"x": {"path": "vector"}}}')
        choice.load.cache_clear()
        weights.cache.clear()
        with pytest.raises(ValueError, match="is no table of GPU choices"):
            gpu.explain(codes, weights)
    finally:
        choice.load.cache_clear()


def test_the_tuner_takes_the_fastest_of_equals_and_its_table_is_read(rng, tmp_path, monkeypatch):
    """With a timer that likes one tile best; the timer of a GPU needs one."""
    weights, codes, _ = operands(rng, oracle.uniform(40, Grid("bipolar", 2), Grid("bipolar", 8)), 10, 2)
    tried = list(dict.fromkeys(tune.candidates(weights, 2)))
    assert {VECTOR, TENSOR_CORE} == {candidate.path for candidate in tried}
    few = [candidate for candidate in tried if candidate.splits == 1][:3]
    monkeypatch.setattr(tune, "candidates", lambda weights, rows: iter(few))
    seconds = iter([3.0, 1.0, 2.0])
    found, fastest = tune.best([weights], codes, lambda runs: next(seconds))
    assert (found, fastest) == (replace(few[1], reason=""), 1.0)
    path = tmp_path / "folder" / "gpu.json"
    tune.write({"gpu": "none", "choices": {choice.key_of(weights, 2): choice.as_entry(found)}}, path)
    monkeypatch.setenv("SONIQ_GPU_TABLE", str(path))
    try:
        assert gpu.explain(codes, weights) == replace(found, reason=f"measured ({path})")
    finally:
        choice.load.cache_clear()


def test_the_tuner_refuses_candidates_that_disagree(rng, monkeypatch):
    weights, codes, _ = operands(rng, oracle.uniform(40, Grid("bipolar", 2), Grid("bipolar", 8)), 10, 2)
    results = iter(torch.arange(100))
    monkeypatch.setattr(tune, "_run", lambda *arguments: lambda: next(results))
    with pytest.raises(RuntimeError, match="gives other integers"):
        tune.best([weights], codes, lambda runs: 1.0)
