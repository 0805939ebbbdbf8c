"""The example of budgets over weights and over time runs, goes on where it stopped, and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from soniq_kernels import isa

SCRIPT = Path(__file__).parent.parent / "examples" / "time_budget.py"


@pytest.mark.skipif(isa.available() == ["reference"], reason="this machine has the reference tier only")
def test_time_budget(tmp_path, full):
    """--full: it trains networks, an epoch of each part."""
    if not full:
        pytest.skip("--full")
    command = [sys.executable, str(SCRIPT), "--quick", "--seeds", "1", "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    written = (tmp_path / "time_budget.json").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "time_budget.json").read_text() == written, "nothing is trained twice"
    assert first.stdout.split("us an image")[1] == again.stdout.split("us an image")[1]
    runs = json.loads(written)["runs"]
    shares = {run["way"]: run["high_share"] for run in runs}
    assert len(shares) == 3 and len({str(share) for share in shares.values()}) == 3, "three ways, three allocations"
