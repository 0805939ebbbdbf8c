"""Every kernel family at every pair of widths that it serves, forced: the planner would take one of them for each call."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import _core, conv, gemm, isa, planner

MOST_ROWS = 33  # one more than the tallest tile, that of amx
OUTPUTS_AND_K = [(3, 5), (31, 96), (65, 129), (300, 67)]
TIERS = [name for name in isa.available() if _core.candidates(name, 8, 8)]


def families(tier: str, w_bits: int, a_bits: int) -> list[str]:
    """The families that serve a pair of widths."""
    return [family for family, *_ in _core.candidates(tier, w_bits, a_bits)]


@pytest.fixture(params=TIERS)
def tier(request):
    """Runs the test under every tier that has families to choose from."""
    with isa.use(request.param):
        yield request.param


@functools.cache
def sums_case(w_bits: int, a_bits: int, n: int, k: int):
    """Codes and S for the largest number of rows; fewer rows are its first rows."""
    rng = np.random.default_rng([w_bits, a_bits, n, k])
    layout = cases.sums_layout(k, w_bits, a_bits)
    x, w = cases.x_codes(rng, (MOST_ROWS, k), layout), cases.w_codes(rng, (n, k), layout)
    return x, w, cases.package_plan(layout), oracle.matmul(x, w, layout)


def test_every_family_has_a_name(tier):
    """What the core lists can be forced."""
    assert {f for widths in cases.WIDTHS for f in families(tier, *widths)} <= set(planner.FAMILIES)


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
def test_sums(tier, w_bits, a_bits):
    """S with tails of rows up to one more than a tile, of outputs and of K."""
    for n, k in OUTPUTS_AND_K:
        x, w, plan, sums = sums_case(w_bits, a_bits, n, k)
        packed = cases.pack_unit(w, plan)
        for family in families(tier, w_bits, a_bits):
            with planner.use(family):
                assert {name for _, name, _ in packed.layer(1).kernels} == {family}
                most = packed.layer(1).tile[0] + 1
                assert most <= MOST_ROWS
                for m in range(1, most + 1):
                    acc = gemm.matmul(cases.activations(x[:m], plan), packed)
                    cases.assert_same(acc, sums[:m], (family, m, n, k))


@pytest.mark.parametrize(("w_bits", "a_bits"), cases.WIDTHS)
def test_largest_sums(tier, w_bits, a_bits):
    """All-max codes over one block of K and over many: where sums of bytes or of 16 bits would overflow without being flushed.

    Whole tiles of every kernel, a tail of one row, and few rows.
    """
    tops = 2**w_bits - 1, 2**a_bits - 1
    for k, rows in itertools.product((512, 4096 + 512 + 161), (1, 2, 13)):
        w, x = np.full((3, k), tops[0], np.uint8), np.full((rows, k), tops[1], np.uint8)
        packed = cases.pack_unit(w, cases.package_plan(cases.sums_layout(k, w_bits, a_bits)))
        expected = np.full((rows, 3), k * tops[0] * tops[1])
        for family in families(tier, w_bits, a_bits):
            with planner.use(family):
                acc = gemm.matmul(cases.activations(x, packed.plan), packed)
                cases.assert_same(acc, expected, (family, rows, k))


# ---- two segments ---------------------------------------------------------------------------------------------------


def two_families(tier: str) -> list[tuple[tuple[str, str], tuple[tuple[int, int], tuple[int, int]]]]:
    """Every two families of a tier, with different widths that they serve."""
    served = {f: [p for p in cases.WIDTHS if f in families(tier, *p)] for f in planner.FAMILIES}
    found = []
    for first, second in itertools.permutations([f for f in planner.FAMILIES if served[f]], 2):
        widths = min(itertools.product(served[first], served[second]), key=lambda two: (two[0] == two[1], two))
        found.append(((first, second), widths))
    return found


def force(monkeypatch, family_of: dict[tuple[int, int], str]) -> None:
    """A family for each pair of widths."""

    def forced(tier, widths, rows, n, k, taps=1, joined=None, neighbours=False):
        return tuple(
            dataclasses.replace(planner.choose(tier, *pair, rows, n, k_s, taps), family=family_of[pair])
            for pair, k_s in zip(widths, k, strict=True)
        )

    monkeypatch.setattr(planner, "choose_segments", forced)


def test_two_segments_of_two_families(tier, monkeypatch):
    """They add into the same sums, whatever the widths of their panels."""
    for names, widths in two_families(tier):
        rng = np.random.default_rng(0)
        with monkeypatch.context() as patch:
            force(patch, dict(zip(widths, names, strict=True)))
            pairs = tuple((Grid("bipolar", w), Grid("unsigned", a)) for w, a in widths)
            for n, k in [(5, 40), (70, 66), (300, 700)]:
                layout = Layout(tuple(int(s) for s in rng.permutation(k) >= k // 3), pairs)
                x, w = cases.x_codes(rng, (MOST_ROWS, k), layout), cases.w_codes(rng, (n, k), layout)
                packed, sums = cases.pack_unit(w, cases.package_plan(layout)), oracle.matmul(x, w, layout)
                assert {name for _, name, _ in packed.layer().kernels} == set(names)
                for m in (1, 2, 7, 13, MOST_ROWS):
                    acc = gemm.matmul(cases.activations(x[:m], packed.plan), packed)
                    cases.assert_same(acc, sums[:m], (names, m, n, k))


# ---- convolutions ---------------------------------------------------------------------------------------------------

GEOMETRY = {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)}


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(tier, rng, groups):
    """Every family beside dot, with padding, stride and dilation; one group has channels of one segment only."""
    for family in planner.FAMILIES:
        served = [pair for pair in cases.WIDTHS if family in families(tier, *pair)]
        if not served:
            continue
        pairs = ((Grid("bipolar", 3), Grid("bipolar", 8)), tuple(Grid("bipolar", bits) for bits in served[-1]))
        layout = Layout((0,) * 3 + (1,) * 19, pairs)
        x, w = cases.x_codes(rng, (2, 6, 7, 22), layout), cases.w_codes(rng, (34, 3, 3, 22 // groups), layout)
        packed = cases.pack_unit(w, cases.package_plan(layout))
        with planner.use(family):
            assert family in {name for _, name, _ in packed.layer().kernels}
            acc = conv.conv2d_int32(cases.activations(x, packed.plan), packed, **GEOMETRY)
        cases.assert_same(acc, oracle.conv2d(x, w, layout, **GEOMETRY), (family, served[-1]))
