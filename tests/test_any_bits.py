"""The example of several widths from one training runs, goes on where it stopped, and its table is that of its runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_table_is_that_of_the_runs(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from any_bits import summary

    runs = json.loads((EXAMPLES / "results" / "any_bits.json").read_text())["runs"]
    table = (EXAMPLES / "results" / "any_bits.md").read_text()
    assert summary(runs) == table
    told = (EXAMPLES.parent / "docs" / "any_bits.md").read_text()
    assert all(line in told for line in table.splitlines()[1:]), "docs/any_bits.md quotes it"


def test_any_bits(tmp_path, full):
    """--full: it trains networks, an epoch of each part."""
    if not full:
        pytest.skip("--full")
    command = [sys.executable, str(EXAMPLES / "any_bits.py"), "--quick", "--seeds", "1", "--out", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    written = (tmp_path / "any_bits.json").read_text()
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "any_bits.json").read_text() == written, "nothing is trained twice"
    [run] = json.loads(written)["runs"]
    measured = [m for kind in ("widths", "shares") for way in run[kind].values() for m in way.values()]
    assert len(measured) == 15 + 15 and not any(m["different"] for m in measured) and all(m["values"] for m in measured)
