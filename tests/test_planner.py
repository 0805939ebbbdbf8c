"""The planner: what it chooses by a table, where the table comes from, forcing a family, and what explain says."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import _core, _costs, conv, gemm, isa, packing, planner

TIERS = [name for name in isa.available() if _core.candidates(name, 8, 8)]
needs_a_choice = pytest.mark.skipif(
    not TIERS or len(_core.candidates(TIERS[-1], 1, 2)) < 2, reason="this machine has one family for W1A2"
)


def cost(rate: float, prepare: float = 0.0, columns: int = 1, many_rows_rate: float | None = None) -> dict:
    """A family's entry in a table, the same at every M but for the rate at many rows."""
    rates = [rate, rate, many_rows_rate or rate]
    return {
        "columns": columns, "products_per_ns": rates, "prepare_ns_per_code": [prepare] * 3, "pack_ns_per_weight": 1.0,
    }  # fmt: skip


def content(**fields) -> dict:
    """A table for this machine without numbers."""
    return {
        "format": "soniq_kernels.costs", "version": 1, "cpu": _core.cpu_name(), "date": "2031-02-03", "command": "a test",
        "versions": {}, "rows": [1, 8, 128], "tiers": {},
    } | fields  # fmt: skip


@pytest.fixture
def user_table(tmp_path, monkeypatch):
    """write(content or text) makes the user's table; the planner forgets it at the end."""
    path = tmp_path / "costs.json"

    def write(table) -> object:
        path.write_text(table if isinstance(table, str) else json.dumps(table))
        planner.reload()
        return path

    monkeypatch.setenv("SONIQ_COSTS", str(path))
    yield write
    monkeypatch.undo()
    planner.reload()


def layer(w_bits: int = 1, a_bits: int = 2, n: int = 40, k: int = 70) -> packing.PackedWeights:
    """A packed layer of random codes."""
    layout = cases.sums_layout(k, w_bits, a_bits)
    codes = cases.w_codes(np.random.default_rng(n), (n, k), layout)
    return cases.pack_unit(codes, cases.package_plan(layout))


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False)


# ---- choosing ---------------------------------------------------------------------------------------------------------


@needs_a_choice
def test_time_is_products_and_preparation(user_table):
    """A family that prepares dearly and multiplies fast wins where there are many outputs to share it."""
    tier, names = TIERS[-1], [family for family, *_ in _core.candidates(TIERS[-1], 1, 2)]
    table = {family: cost(1.0) for family in names} | {names[0]: cost(100.0, 1.0), names[1]: cost(50.0)}
    user_table(content(tiers={tier: {"1x2": table}}))
    few, many = (planner.choose(tier, 1, 2, 128, n, 1000) for n in (64, 128))
    assert (few.family, many.family) == (names[1], names[0])
    assert few.estimates[names[0]] == pytest.approx(128 * 1000 * (1 + 64 / 100), rel=1e-12)
    assert few.estimates[names[1]] == few.ns == pytest.approx(128 * 1000 * 64 / 50, rel=1e-12)
    assert list(few.estimates) == sorted(few.estimates, key=few.estimates.__getitem__)
    assert few.measured and "table of this machine, 2031-02-03" in few.reason


@needs_a_choice
def test_outputs_count_in_whole_steps(user_table):
    """A kernel that makes 256 outputs at once takes as long for 1 as for 256."""
    tier, names = TIERS[-1], [family for family, *_ in _core.candidates(TIERS[-1], 1, 2)]
    user_table(content(tiers={tier: {"1x2": {family: cost(1.0, columns=256) for family in names}}}))
    times = [planner.choose(tier, 1, 2, 8, n, 10).ns for n in (1, 256, 257, 512)]
    assert times[0] == times[1] == times[2] / 2 == times[3] / 2


@needs_a_choice
def test_rows_decide(user_table):
    """Two classes of rows may have two families; with the same choice they share one layer."""
    tier, names = TIERS[-1], [family for family, *_ in _core.candidates(TIERS[-1], 1, 2)]
    table = {family: cost(1.0) for family in names} | {names[0]: cost(2.0, many_rows_rate=9.0), names[1]: cost(3.0)}
    user_table(content(tiers={tier: {"1x2": table}}))
    packed = layer()
    with isa.use(tier):
        chosen = {rows: packed.choices(rows)[0].family for rows in (1, 8, 128, 5000)}
        assert chosen == {1: names[1], 8: names[1], 128: names[0], 5000: names[0]}
        assert packed.layer(1) is packed.layer(8) is not packed.layer(128)
        assert packed.layer(128) is packed.layer(5000) is packed.layer()
        assert {name for _, name, _ in packed.layer(1).kernels} == {names[1]}


def test_between_measured_rows_time_grows_evenly():
    """From M = 1 to 8 and from 8 to 128 time is a straight line; beyond it is proportional."""
    measured = _costs.Cost(1, (1.0, 2.0, 4.0), (0.0, 0.0, 0.0), 1.0)
    assert [measured.ns(m, 1, 1) for m in (0, 1, 8, 128, 256)] == [0, 1, 4, 32, 64]
    assert measured.ns(2, 1, 1) == pytest.approx(1 + 3 / 7)
    assert measured.ns(64, 1, 1) == pytest.approx(4 + 28 * 56 / 120)


def test_classes_of_rows():
    """Each M up to 8 is its own class, then powers of two, and 128 stands for all that are larger."""
    expected = {1: 1, 2: 2, 7: 7, 8: 8, 9: 8, 15: 8, 16: 16, 33: 32, 64: 64, 127: 64, 128: 128, 10**9: 128}
    assert {rows: planner.rows_class(rows) for rows in expected} == expected


@pytest.mark.parametrize("tier", TIERS)
def test_without_numbers_the_ceilings_decide(user_table, tier):
    """A tier, a pair or a family that was not measured: the order is that of the core's rates."""
    user_table(content(tiers={tier: {"1x2": {"dot": cost(1e9)}}}))
    for w_bits, a_bits in cases.WIDTHS:
        choice = planner.choose(tier, w_bits, a_bits, 3, 5, 7)
        rates = {family: rate for family, _, rate, _ in _core.candidates(tier, w_bits, a_bits)}
        assert rates[choice.family] == max(rates.values())
        if len(rates) > 1 or (w_bits, a_bits) != (1, 2):
            assert not choice.measured and "no numbers for" in choice.reason
        assert set(choice.estimates) == set(rates)


def test_a_tier_that_is_not_in_the_users_table_has_the_numbers_that_ship(user_table):
    shipped = {tier for table in _costs.shipped() for tier in table.tiers}
    user_table(content())
    for tier in set(TIERS) & shipped:
        choice = planner.choose(tier, 2, 2, 8, 64, 64)
        assert choice.measured and "table that ships" in choice.reason


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(ValueError, match="reference has no kernel families"):
        planner.choose("reference", 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="w_bits is 9"):
        planner.choose(isa.available()[-1], 9, 1, 1, 1, 1)


@pytest.mark.parametrize("tier", TIERS)
def test_the_tables_that_ship_know_every_kernel(tier):
    """A family that is added is measured, too: `soniq calibrate --tiers all --out python/soniq_kernels/costs/NAME.json`."""
    tables = [table for table in _costs.shipped() if tier in table.tiers]
    if not tables:
        pytest.skip(f"no table has numbers for {tier}: they were measured on other kinds of processors")
    for table, widths in itertools.product(tables, cases.WIDTHS):
        measured = set(table.tiers[tier][widths])
        assert measured == {family for family, *_ in _core.candidates(tier, *widths)}, (table.path, widths)


def test_the_table_of_the_same_maker_comes_first():
    """An Intel processor is closer to another one of Intel; a processor that nobody measured takes what there is."""
    tables = _costs.shipped()
    for table in tables:
        assert _costs.shipped_for(f"{table.cpu.split()[0]} Another 9999")[0].cpu == table.cpu
    assert _costs.shipped_for("unknown") == _costs.shipped_for("") == tables


# ---- the table's file -------------------------------------------------------------------------------------------------


def test_without_a_file_of_its_own_a_machine_has_one_that_ships():
    assert planner.table().path.parent == _costs.SHIPPED
    assert planner.table().origin.startswith("table that ships")


def test_the_users_table_is_read(user_table):
    path = user_table(content(date="2030-01-01"))
    assert (planner.table().path, planner.table().date) == (path, "2030-01-01")


def test_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert _costs.user_path() == tmp_path / "soniq" / "costs.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _costs.user_path() == tmp_path / ".config" / "soniq" / "costs.json"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cpu": "another processor"}, "was measured on 'another processor', and this machine is"),
        ({"version": 2}, "version 2, expected 'soniq_kernels.costs', version 1"),
        ({"format": "a list of friends"}, "has format 'a list of friends'"),
    ],
)
def test_a_table_that_does_not_fit_is_ignored_with_a_warning(user_table, fields, says):
    path = user_table(content(**fields))
    with pytest.warns(UserWarning, match="run `soniq calibrate`") as warned:
        assert planner.table().path.parent == _costs.SHIPPED
    assert str(path) in str(warned[0].message) and says in str(warned[0].message)


def test_a_missing_file_that_was_named_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("SONIQ_COSTS", str(tmp_path / "none.json"))
    with pytest.warns(UserWarning, match="none.json is not there"):
        assert _costs.of_this_machine() is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "[" * 99999, json.dumps(content(tiers=[])), json.dumps(content(rows=[1, 2])),
        json.dumps({name: value for name, value in content().items() if name != "tiers"}),
        json.dumps(content(tiers={"avx2": {"1by2": {}}})),
        json.dumps(content(tiers={"avx2": {"1x2": {"dot": cost(-1.0)}}})),
        json.dumps(content(tiers={"avx2": {"1x2": {"dot": cost(float("nan"))}}})),
        json.dumps(content(tiers={"avx2": {"1x2": {"dot": cost(1.0, columns=0)}}})),
        json.dumps(content(tiers={"avx2": {"1x2": {"dot": cost(1.0) | {"products_per_ns": [1.0]}}}})),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_damaged_table_is_an_error_that_names_the_file(user_table, text):
    path = user_table(text)
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged.*run `soniq calibrate`") as refusal:
            planner.table()
        assert str(path) in str(refusal.value)


def test_nothing_is_read_at_import(user_table):
    """A damaged table is an error of the first product, not of the import."""
    path = user_table("{")
    done = run_python("from soniq_kernels import conv, gemm, packing, planner", SONIQ_COSTS=str(path))
    assert done.returncode == 0, done.stderr


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "costs.json"
    shipped = _costs.shipped()[0]
    table = _costs.Table(path, _core.cpu_name(), "2030-05-06", "soniq calibrate", {"a": "1"}, shipped.tiers)
    _costs.write(table)
    monkeypatch.setenv("SONIQ_COSTS", str(path))
    assert _costs.of_this_machine() == table
    assert [p.name for p in path.parent.iterdir()] == ["costs.json"]


# ---- forcing ----------------------------------------------------------------------------------------------------------


@needs_a_choice
def test_use_forces_and_restores(rng):
    """use() is a call and a context manager, and takes effect at once on layers that ran before; contexts nest."""
    tier, packed = TIERS[-1], layer()
    x = cases.activations(cases.x_codes(rng, (4, 70), cases.sums_layout(70, 1, 2)), packed.plan)
    with isa.use(tier):
        before = gemm.explain(x, packed).family
        expected = gemm.matmul(x, packed)
        for family, *_ in _core.candidates(tier, 1, 2):
            with planner.use(family):
                assert gemm.explain(x, packed).family == family
                cases.assert_same(gemm.matmul(x, packed), expected, family)
                with planner.use(None):
                    assert gemm.explain(x, packed).family == before
                assert gemm.explain(x, packed).family == family
                assert "forced by planner.use" in gemm.explain(x, packed).reason
        assert gemm.explain(x, packed).family == before
        with pytest.raises(KeyError), planner.use("dot"):
            raise KeyError
        assert gemm.explain(x, packed).family == before
        try:
            planner.use("dot")
            assert gemm.explain(x, packed).family == "dot"
        finally:
            planner.use(None)


@pytest.mark.parametrize("tier", TIERS)
def test_a_family_that_does_not_serve_a_segment_leaves_it_to_the_planner(tier, rng):
    """A family that W8A8 lacks: the other segment is forced, this one is not, and explain says so."""
    pairs = ((Grid("unsigned", 1), Grid("unsigned", 2)), (Grid("unsigned", 8), Grid("unsigned", 8)))
    layout = Layout((0, 1) * 20, pairs)
    x, w = cases.x_codes(rng, (3, 40), layout), cases.w_codes(rng, (9, 40), layout)
    packed = cases.pack_unit(w, cases.package_plan(layout))
    acts = cases.activations(x, packed.plan)
    low, high = ({candidate[0] for candidate in _core.candidates(tier, *bits)} for bits in ((1, 2), (8, 8)))
    for family in sorted(low - high):
        with isa.use(tier), planner.use(family):
            explanation = gemm.explain(acts, packed)
            assert explanation.segments[0].family == family
            assert explanation.segments[1].family in high
            assert f"{family}, forced by planner.use, does not serve them" in explanation.reason
            cases.assert_same(gemm.matmul(acts, packed), oracle.matmul(x, w, layout), family)


@pytest.mark.parametrize("name", ["", "DOT", "reference", "depthwise", "lut,dot"])
def test_an_unknown_family_lists_the_names(name):
    with pytest.raises(ValueError) as refusal:
        planner.use(name)
    assert all(family in str(refusal.value) for family in planner.FAMILIES)
    assert planner.settings.forced is None


@pytest.mark.parametrize("name", [3, b"dot", True], ids=str)
def test_a_family_is_a_text(name):
    with pytest.raises(TypeError, match="dot, popcount, lut, lut5, lut6"):
        planner.use(name)


LAYER_IN_PYTHON = """
import numpy as np
from soniq_kernels import gemm, packing
packed = packing.pack(np.ones((4, 40), np.uint8), packing.Plan.uniform(40, 1, 2), np.ones(4, np.float32), activation_scale=1.0)
x = np.ones((3, 40), np.float32)
print(gemm.explain(x, packed).family)
"""


@needs_a_choice
def test_environment_forces_a_family():
    for family, *_ in _core.candidates(TIERS[-1], 1, 2):
        done = run_python(LAYER_IN_PYTHON, SONIQ_FAMILY=family, SONIQ_ISA=TIERS[-1])
        assert done.stdout.strip() == family, done.stderr


def test_an_unknown_family_in_the_environment():
    done = run_python("import soniq_kernels.gemm", SONIQ_FAMILY="cuckoo")
    assert done.returncode == 1
    assert "ValueError: SONIQ_FAMILY got 'cuckoo'" in done.stderr
    assert all(family in done.stderr for family in planner.FAMILIES)


# ---- layers -----------------------------------------------------------------------------------------------------------


@needs_a_choice
def test_dropping_the_portable_copy_keeps_the_panels_that_are_there(rng):
    """The planner then chooses among those, whatever is forced, and explain says so; another tier has none."""
    tier, packed = TIERS[-1], layer()
    x = cases.activations(cases.x_codes(rng, (4, 70), cases.sums_layout(70, 1, 2)), packed.plan)
    first, second = (family for family, *_ in _core.candidates(tier, 1, 2)[:2])
    with isa.use(tier):
        expected = gemm.matmul(x, copy.deepcopy(packed))
        with planner.use(first):
            packed.drop_portable()
        assert packed.layer(1) is packed.layer(128)
        with planner.use(second):
            explanation = gemm.explain(x, packed)
            assert explanation.family == explanation.segments[0].family == first
            assert "kept by drop_portable()" in explanation.reason
            cases.assert_same(gemm.matmul(x, packed), expected)
    with isa.use("reference"), pytest.raises(ValueError, match="drop_portable"):
        gemm.matmul(x, packed)


def test_copies_start_without_layers(tier):
    packed = layer()
    packed.layer(1)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert twin.layer(1) is not packed.layer(1)
        assert twin.layer(1).kernels == packed.layer(1).kernels


# ---- explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", TIERS)
def test_explain_gives_the_estimates(tier, rng):
    """Family, runner-up, sizes, where the numbers are from, bytes and time of packing."""
    packed = layer()
    with isa.use(tier):
        explanation = gemm.explain(np.zeros((2, 3, 70), np.float32), packed)
        (choice,) = explanation.segments
        assert explanation.family == choice.family == packed.layer(6).kernels[0][1]
        assert explanation.kernel_isa == choice.tier
        assert "at M = 6, N = 40, K = 70" in explanation.reason
        assert all(family in explanation.reason for family in list(choice.estimates)[:2])
        assert explanation.panel_bytes == packed.layer(6).panel_bytes > 0
        assert explanation.pack_seconds > 0
        assert f"{explanation.panel_bytes:,} bytes of panels" in str(explanation)


def test_explain_where_there_is_one_way():
    """The reference tier and depthwise layers have no families to choose from."""
    with isa.use("reference"):
        assert gemm.explain(np.zeros((1, 70), np.float32), layer()).segments == ()
    codes = np.ones((8, 3, 3, 1), np.uint8)
    depthwise = packing.pack(codes, packing.Plan.uniform(8, 2, 2), np.ones(8, np.float32))
    explanation = conv.explain(np.zeros((1, 5, 5, 8), np.float32), depthwise)
    assert explanation.segments == ()
    assert explanation.family in ("depthwise", "reference")


@pytest.mark.parametrize("tier", TIERS)
def test_explain_of_a_convolution_counts_its_output(tier):
    """conv.explain knows the stride, gemm.explain counts pixels; N and K are those of a group."""
    codes = np.ones((12, 3, 3, 4), np.uint8)
    packed = packing.pack(codes, packing.Plan.uniform(8, 2, 2), np.ones(12, np.float32))
    image = np.zeros((2, 9, 9, 8), np.float32)
    with isa.use(tier):
        assert "at M = 50, N = 6, K = 36" in conv.explain(image, packed, stride=2, padding=1).reason
        assert "at M = 162, N = 6, K = 36" in gemm.explain(image, packed).reason
        conv.conv2d_int32(cases.activations(np.zeros((2, 9, 9, 8), np.uint8), packed.plan), packed, stride=2, padding=1)
    with pytest.raises(ValueError, match="expected NHWC"):
        conv.explain(image[0], packed)


def test_neighbours_take_dot_less_time():
    """3 x 3 taps one apart: dot is expected to take a part of its time, where its tier and the widths have the form, and then only."""
    for tier in isa.available():
        dot = next((of for family, of, *_ in _core.candidates(tier, 4, 4) if family == "dot"), None)
        if dot is None:
            continue
        for w, a, rows, k in [(4, 4, 128, 576), (4, 4, 127, 576), (5, 4, 128, 576), (4, 8, 128, 576), (4, 4, 128, 580)]:
            plain, beside = (
                planner.choose(tier, w, a, rows, 64, k, 9, neighbours).estimates for neighbours in (False, True)
            )
            fits = dot in planner.WINOGRAD_BITS and (w, a, rows, k) == (4, 4, 128, 576)
            assert beside["dot"] == plain["dot"] * (planner.WINOGRAD if fits else 1)
            assert {f: ns for f, ns in beside.items() if f != "dot"} == {f: ns for f, ns in plain.items() if f != "dot"}
