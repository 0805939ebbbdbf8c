"""The list of tiers, forcing one, and what the environment variable does."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import cases
import oracle
from oracle import Grid
from soniq_kernels import gemm, isa

ORDER = ["reference", "avx2", "avxvnni", "avx512", "avx512_vbmi", "amx", "neon", "neon_dotprod", "neon_i8mm"]


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, with SONIQ_ISA only if given."""
    environment = {name: value for name, value in os.environ.items() if name != "SONIQ_ISA"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=120, check=False
    )


def test_available_is_ordered():
    """reference first, then by rising capability; everything available was built."""
    names = isa.available()
    assert names[0] == "reference"
    assert names == [name for name in ORDER if name in names]
    assert set(names) <= set(isa.built()) <= set(ORDER)


def test_use_sets_and_restores():
    """use() is a call and a context manager; contexts nest."""
    before = isa.active()
    for name in isa.available():
        with isa.use(name):
            assert isa.active() == name
            with isa.use("reference"):
                assert isa.active() == "reference"
            assert isa.active() == name
        assert isa.active() == before


def test_use_restores_after_an_error():
    """An exception inside the context leaves no tier forced."""
    before = isa.active()
    with pytest.raises(KeyError), isa.use("reference"):
        raise KeyError
    assert isa.active() == before


def test_use_as_a_plain_call():
    """Without `with` the choice stays."""
    before = isa.active()
    try:
        isa.use("reference")
        assert isa.active() == "reference"
    finally:
        isa.use(before)


@pytest.mark.parametrize("name", ["sse2", "", "AVX2", "reference ", "neon,avx2"])
def test_unknown_name_lists_what_is_there(name):
    """The error names the wrong tier and the right ones, and changes nothing."""
    before = isa.active()
    with pytest.raises(ValueError) as refusal:
        isa.use(name)
    assert all(known in str(refusal.value) for known in isa.available())
    assert isa.active() == before


@pytest.mark.parametrize("name", [None, 3, b"avx2"], ids=str)
def test_name_must_be_text(name):
    """Other types are refused, not guessed at."""
    with pytest.raises((TypeError, ValueError)):
        isa.use(name)


def test_tier_of_another_processor_is_refused():
    """Known names that this machine cannot run are as unknown as others."""
    for name in set(ORDER) - set(isa.available()):
        with pytest.raises(ValueError, match=name):
            isa.use(name)


def test_best_tier_is_the_default():
    """Without the variable the last of the list is active."""
    done = run_python("from soniq_kernels import isa; print(isa.active() == isa.available()[-1])")
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("name", isa.available())
def test_environment_forces_a_tier(name):
    """SONIQ_ISA is read at import."""
    done = run_python("from soniq_kernels import isa; print(isa.active())", SONIQ_ISA=name)
    assert done.stdout.strip() == name, done.stderr


def test_unknown_name_in_the_environment():
    """The import fails with a ValueError that lists what is there."""
    done = run_python("import soniq_kernels.gemm", SONIQ_ISA="avx1024")
    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert "avx1024" in done.stderr
    assert all(known in done.stderr for known in isa.available())


def test_tiers_agree_on_one_layer():
    """The same bits from every tier: float output of a layer with all its vectors."""
    rng = np.random.default_rng(0)
    layout = oracle.uniform(67, Grid("bipolar", 3), Grid("unsigned", 4))
    packed = cases.pack_unit(cases.w_codes(rng, (35, 67), layout), cases.package_plan(layout))
    acts = cases.activations(cases.x_codes(rng, (9, 67), layout), packed.plan, 0.3)
    with isa.use("reference"):
        expected = gemm.linear(acts, packed)
    for name in isa.available():
        with isa.use(name):
            cases.assert_same_bits(gemm.linear(acts, packed), expected, name)
            assert gemm.explain(acts, packed).isa in isa.available()
