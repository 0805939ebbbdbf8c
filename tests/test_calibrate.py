"""`soniq calibrate`: the file it writes is the one the planner reads; no time is tested, only what becomes of times."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from soniq_kernels import _calibrate, _core, _costs, isa, planner
from soniq_kernels.cli import app

TIERS = [name for name in isa.available() if _core.candidates(name, 8, 8)]
WIDTHS = [(1, 2), (8, 8)]
BRIEF = _calibrate.Effort(1, 1, 1.0)


@pytest.fixture
def calibrate(tmp_path, monkeypatch):
    """Runs the command on two pairs of widths and a small matrix; the user's table is tmp_path/soniq/costs.json."""
    monkeypatch.setattr(_calibrate, "WIDTHS", WIDTHS)
    monkeypatch.setattr(_calibrate, "K", {1: 96, 8: 64, 128: 64})
    monkeypatch.setattr(_calibrate, "FAR", (1000, 2000))
    for effort in ("THOROUGH", "QUICK"):
        monkeypatch.setattr(_calibrate, effort, BRIEF)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    yield lambda *args: CliRunner().invoke(app, ["calibrate", *map(str, args)])
    monkeypatch.undo()
    planner.reload()


@pytest.mark.parametrize("tier", TIERS)
def test_the_planner_reads_what_was_measured(calibrate, tmp_path, tier):
    """At once, in the same process; every family of every pair is there, and nothing of another tier."""
    with isa.use(tier):
        result = calibrate()
        assert result.exit_code == 0, result.output
        table = planner.table()
        assert table.path == tmp_path / "soniq" / "costs.json"
        assert table.origin.startswith("table of this machine")
        assert list(table.tiers) == [tier]
        for widths in WIDTHS:
            assert list(table.tiers[tier][widths]) == [family for family, *_ in _core.candidates(tier, *widths)]
        choice = planner.choose(tier, 1, 2, 128, 512, 64)
        assert choice.measured
        assert choice.ns == table.tiers[tier][1, 2][choice.family].ns(128, 512, 64)


@pytest.mark.skipif(not TIERS, reason="this machine has the reference tier only")
def test_what_it_says(calibrate, tmp_path):
    """What is chosen beside dot, where the file is, and who will read it."""
    output = calibrate("--quick").output
    assert f"{TIERS[-1]}, M = 128, N = 64" in output
    assert str(tmp_path / "soniq" / "costs.json") in output.replace("\n", "")
    assert "choose their kernels by it" in output.replace("\n", " ")


@pytest.mark.skipif(not TIERS, reason="this machine has the reference tier only")
def test_all_tiers_into_a_file_elsewhere(calibrate, tmp_path):
    """The JSON that is printed is the file; the table in use stays, and the file's command has no path in it."""
    path = tmp_path / "elsewhere" / "costs.json"
    result = calibrate("--tiers", "all", "--out", path, "--json")
    content = json.loads(path.read_text())
    assert json.loads(result.stdout) == content
    assert list(content["tiers"]) == TIERS
    assert content["command"] == "soniq calibrate --tiers all"
    assert planner.table().path.parent == _costs.SHIPPED


def test_nothing_to_measure_on_the_reference_tier(calibrate, tmp_path):
    with isa.use("reference"):
        result = calibrate()
    assert result.exit_code == 2
    assert "reference" in result.output
    assert not (tmp_path / "soniq" / "costs.json").exists()


def test_a_folder_that_cannot_be_made(calibrate, tmp_path):
    (tmp_path / "file").touch()
    result = calibrate("--out", tmp_path / "file" / "costs.json")
    assert result.exit_code == 2
    assert "--out" in result.output


@pytest.mark.skipif(not TIERS, reason="this machine has the reference tier only")
def test_a_damaged_table_does_not_keep_it_from_writing_another(calibrate, tmp_path):
    path = tmp_path / "soniq" / "costs.json"
    path.parent.mkdir()
    path.write_text("{")
    assert "damaged" in CliRunner().invoke(app, ["info"]).output
    assert calibrate().exit_code == 0
    assert planner.table().path == path


# ---- from times to costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "few", "many"), [(1, 64, 512), (32, 64, 512), (48, 96, 528), (256, 256, 512)])
def test_two_times_give_rate_and_preparation(columns, few, many):
    """Sixteenths, so that nothing is rounded: 1 product takes 1/16 ns, preparing a code 5/16 ns."""
    assert _calibrate._solve(5 / 16 + few / 16, 5 / 16 + many / 16, columns) == (16, 5 / 16)


@pytest.mark.parametrize(("short", "long"), [(-1.0, 8.0), (9.0, 8.0), (0.5, 8.0)])
def test_impossible_times_count_as_products(short, long):
    """Noise may make the short call the slower one, or leave less than nothing for preparing."""
    assert _calibrate._solve(short, long, 1) == (512 / long, 0)
