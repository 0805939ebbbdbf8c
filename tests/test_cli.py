"""The `soniq` command: `info` tells the truth about this machine, `verify` passes good files and fails bad ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import soniq_kernels
from soniq_kernels import _checks, gemm, isa, packing
from soniq_kernels.cli import app, file_report
from soniq_kernels.network import Network, Node

F32 = np.float32


def soniq(*args):
    """Run the command in this process; returns click's result (exit_code, stdout)."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def random_layer(shape, plan, **options):
    """A packed layer of random codes."""
    rng = np.random.default_rng(len(shape))
    codes = rng.integers(0, 2, size=shape, dtype=np.uint8)  # codes 0 and 1 exist on every grid
    outputs = shape[0]
    scale, bias = rng.standard_normal((2, outputs), dtype=F32)
    return packing.pack(codes, plan, scale, bias=bias, **options)


LAYERS = {
    "linear": lambda: random_layer((7, 33), packing.Plan.uniform(33, 2, 4)),
    "two segments": lambda: random_layer((5, 40), packing.Plan.mixed([2, 8] * 20, a_grid="bipolar")),
    "per-row scales": lambda: random_layer((5, 16), packing.Plan.uniform(16, 1, 1), activation_scale="per_row"),
    "offset and shift": lambda: random_layer((4, 9), packing.Plan.uniform(9, 3, 5, offset=-2, shift=1)),
    "ternary": lambda: random_layer((4, 9), packing.Plan.uniform(9, 2, 8, w_grid="ternary", a_grid="signed")),
    "convolution": lambda: random_layer((6, 3, 5, 8), packing.Plan.uniform(8, 4, 4, a_grid="bipolar")),
    "1x1": lambda: random_layer((6, 1, 1, 8), packing.Plan.uniform(8, 4, 4)),
    "groups": lambda: random_layer((6, 3, 3, 4), packing.Plan.mixed([1, 1, 4, 1, 4, 4, 4, 1], a_grid="bipolar")),
    "depthwise": lambda: random_layer((8, 3, 3, 1), packing.Plan.uniform(8, 8, 8, a_grid="bipolar")),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "layer.safetensors"
    LAYERS["linear"]().save(path)
    return path


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_json_describes_this_process():
    facts = json.loads(soniq("info", "--json").stdout)
    assert [tier["name"] for tier in facts["tiers"]] == isa.built()
    assert [tier["name"] for tier in facts["tiers"] if tier["usable"]] == isa.available()
    assert [tier["name"] for tier in facts["tiers"] if tier["active"]] == [isa.active()]
    assert all(tier["kernels"] for tier in facts["tiers"] if tier["name"] == "reference")
    assert facts["threads"] == soniq_kernels.get_num_threads()
    assert facts["versions"]["soniq_kernels"] == soniq_kernels.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["cpu"]["usable"] >= 1


def test_info_as_a_table_names_every_tier():
    result = soniq("info")
    assert result.exit_code == 0
    for tier in isa.built():
        assert tier in result.stdout
    assert f"{isa.active()} (active)" in result.stdout


def test_installed_script_runs_without_torch():
    """The script beside this interpreter starts, obeys SONIQ_ISA, and nothing it imports is torch."""
    script = Path(sys.executable).parent / "soniq"
    out = subprocess.run(
        [script, "info", "--json"], env={"SONIQ_ISA": "reference"}, capture_output=True, text=True, check=True
    )
    active = [tier["name"] for tier in json.loads(out.stdout)["tiers"] if tier["active"]]
    assert active == ["reference"]
    code = "import sys, soniq_kernels.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_passes_every_kind_of_layer(layer, tmp_path):
    path = tmp_path / "layer.safetensors"
    layer.save(path)
    report = file_report(path)
    assert report["passed"], report
    checks = report["layers"][0]["checks"]
    assert [check["name"] for check in checks] == ["sums", *isa.available()[1:]]


def test_verify_leaves_the_active_tier_alone(file):
    with isa.use("reference"):
        file_report(file)
        assert isa.active() == "reference"


def test_verify_prints_a_table(file):
    result = soniq("verify", file)
    assert result.exit_code == 0
    assert "all passed" in result.stdout
    assert "7 x 33" in result.stdout
    assert "2 x 4: 33" in result.stdout


def test_verify_json(file):
    result = soniq("verify", file, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["passed"]
    assert report["layers"][0]["shape"] == [7, 33]
    assert report["layers"][0]["bits"] == [[2, 4, 33]]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file of a whole network, its packed layers by name, and a path for a damaged copy."""
    pytest.importorskip("torch")
    import qat_nets
    from soniq_kernels import qat

    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    packed = qat.convert(qat_nets.frozen_cnn())
    qat.save(packed, path)
    layers = {
        name: module.packed_weights() for name, module in packed.named_modules() if hasattr(module, "packed_weights")
    }
    return path, layers


def test_verify_checks_every_layer_of_a_network(network):
    path, layers = network
    report = file_report(path)
    assert report["passed"], report
    assert {layer["name"]: tuple(layer["shape"]) for layer in report["layers"]} == {
        n: p.shape for n, p in layers.items()
    }
    assert all(name in soniq("verify", path).stdout for name in layers)


def test_verify_names_the_damaged_layer_of_a_network(network, tmp_path):
    path, layers = network
    name, packed = list(layers.items())[-1]
    data, scale = bytearray(path.read_bytes()), packed.scale.tobytes()
    assert data.count(scale) == 1
    data[data.index(scale)] ^= 1  # one bit of one weight scale
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(data)
    report = file_report(damaged)
    assert not report["passed"]
    assert f"layer {name}: the contents do not match their checksum" in report["error"]


@pytest.mark.parametrize(
    "network", ["", "[]", "{}", '{"layers": {}}', '{"layers": {"x": []}}', '{"layers": 3}', "[" * 9999]
)
def test_verify_refuses_a_network_file_with_nonsense_in_it(network, tmp_path):
    path = tmp_path / "network.safetensors"
    metadata = {"format": "soniq_kernels.network", "version": "1", "network": network}
    save_file({"y.packed": np.zeros(3, np.uint8)}, str(path), metadata)
    assert soniq("verify", path).exit_code == 1
    save_file({"x.packed": np.zeros(3, np.uint8)}, str(path), metadata | {"version": "3"})
    assert "'3'" in file_report(path)["error"]


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_reports_a_truncated_file(file, as_json):
    file.write_bytes(file.read_bytes()[:-3])
    result = soniq("verify", file, *(["--json"] if as_json else []))
    assert result.exit_code == 1
    if as_json:
        assert json.loads(result.stdout)["error"]
    else:
        assert "FAIL" in result.stdout


def test_verify_reports_a_file_of_something_else(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a model")
    assert soniq("verify", path).exit_code == 1


def test_verify_of_a_missing_file_is_a_usage_error(tmp_path):
    assert soniq("verify", tmp_path / "missing").exit_code == 2


def test_verify_catches_a_wrong_sum(file, monkeypatch):
    """A fault that all tiers share is seen by the sums, which do not use the kernels."""
    matmul = gemm.matmul
    monkeypatch.setattr(_checks.gemm, "matmul", lambda x, packed: matmul(x, packed) + 1)
    result = soniq("verify", file)
    assert result.exit_code == 1
    assert "sums: 119 of 119 int32 outputs differ, the first at (0, 0)" in result.stdout.replace("\n", " ")


@pytest.mark.skipif(len(isa.available()) == 1, reason="this machine has the reference tier only")
def test_verify_catches_one_wrong_bit_of_one_tier(file, monkeypatch):
    linear, wrong_tier = gemm.linear, isa.available()[-1]

    def faulty(x, packed):
        y = linear(x, packed)
        if isa.active() == wrong_tier:
            y.view(np.uint32)[2, 3] ^= 1
        return y

    monkeypatch.setattr(_checks.gemm, "linear", faulty)
    report = file_report(file)
    failed = [check for check in report["layers"][0]["checks"] if not check["passed"]]
    assert [check["name"] for check in failed] == [wrong_tier]
    assert "1 of 119 float32 outputs differ, the first at (2, 3)" in failed[0]["detail"]


# ---- soniq run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes_file(tmp_path):
    """A network of one node, whose input is codes."""
    packed = LAYERS["linear"]()
    net = Network(
        [Node("linear", ("x",), ("y",), layer="only")], {"only": packed}, {"x": (packed.plan, 1.0), "y": None}
    )
    net.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_run_shows_every_node_and_its_kernel(nodes_file):
    """With and without times."""
    for options in [(), ("--profile", "--runs", 2)]:
        done = soniq("run", nodes_file, "--shape", "3,33", *options)
        assert done.exit_code == 0, done.output
        assert "linear" in done.output and isa.active() in done.output
        assert ("MAC/cycle" in done.output) == bool(options)


def test_run_says_what_does_not_fit(nodes_file, tmp_path):
    """Another shape, a file of layers alone."""
    done = soniq("run", nodes_file, "--shape", "3,32")
    assert done.exit_code == 1 and "33" in done.output
    LAYERS["linear"]().save(tmp_path / "layer")
    done = soniq("run", tmp_path / "layer")
    assert done.exit_code == 1 and "Network.save" in done.output


def test_verify_reads_the_layers_of_a_network_with_nodes(nodes_file):
    """Version 2 of the file."""
    assert soniq("verify", nodes_file).exit_code == 0
