"""Linear layers from float32 to float32: ours at every pair of widths and on every tier, and the INT8 and floats of others."""

from __future__ import annotations

import pytest

from benchmarks import ours, peers, shapes
from benchmarks.operands import Operands
from soniq_kernels import isa

SHAPES = [*shapes.GEMM, shapes.GEMV[1]]
TINY = [(5, 24, 70), (1, 9, 64)]


@pytest.mark.parametrize("widths", shapes.WIDTHS)
def test_ours(timed, shape, widths):
    call, kernel = ours.linear(Operands.random(shape), widths, isa.active(), threads=1)
    timed(call, kernel=kernel, products=shape[0] * shape[1] * shape[2])


@pytest.mark.parametrize("tier", isa.available()[1:-1])
@pytest.mark.parametrize("widths", shapes.FEW_WIDTHS)
def test_lower_tiers(timed, shape, widths, tier):
    call, kernel = ours.linear(Operands.random(shape), widths, tier, threads=1)
    with isa.use(tier):
        timed(call, kernel=kernel, products=shape[0] * shape[1] * shape[2])


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("int8", "float") for name in peers.TABLES[kind]])
def test_peer(timed, available, shape, kind, name):
    call = available(peers.linear, Operands.random(shape), kind, name, 1)
    timed(call, products=shape[0] * shape[1] * shape[2])
