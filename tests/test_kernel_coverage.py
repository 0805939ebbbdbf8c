"""Runs last: a kernel that sits in a table and was never executed is not tested, whatever the rest says."""

from __future__ import annotations

import pytest

from soniq_kernels import _core


def test_every_kernel_ran(missing_files):
    """Every kernel of every tier this machine can use ran at least once in this process."""
    if missing_files:
        pytest.skip(f"only part of the suite was selected; not run whole: {', '.join(missing_files)}")
    counts = _core.kernel_counts()
    assert counts, "the tables of the usable tiers are empty"
    never = sorted(name for name, runs in counts.items() if runs == 0)
    assert not never, f"{len(never)} of {len(counts)} kernels never ran: {', '.join(never)}"
