"""Networks of codes without torch: the same bits as the oracle layer by layer, from memory and from files, on every tier."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import sys
import threading
from subprocess import run as run_process

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cases
import oracle
import soniq_kernels
from oracle import Epilogue, Grid, Layout
from soniq_kernels import isa, network, ops, packing
from soniq_kernels._networks import _metadata, load_layers
from soniq_kernels.network import Network, Node
from soniq_kernels.tensors import Codes

F32 = np.float32
LOW, HIGH = (Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("unsigned", 4))
BYTES = (Grid("bipolar", 8), Grid("bipolar", 8))
SCALES = {"x8": 1.0, "a8": 0.9, "a": 0.8, "b": 0.7, "p": 0.7, "s": 0.5, "g": 0.4}


def mixed(channels: int) -> Layout:
    """Two segments in no simple pattern."""
    segment = np.random.default_rng(channels).integers(0, 2, channels)
    segment[0], segment[-1] = 0, 1
    return Layout(tuple(int(s) for s in segment), (LOW, HIGH))


def uniform(channels: int) -> Layout:
    """8 bits for every channel."""
    return oracle.uniform(channels, *BYTES)


LAYOUTS = {"x8": uniform(3), "a8": uniform(16), "a": mixed(16), "b": mixed(16), "p": mixed(16), "s": mixed(16)}


def flat_layout(pixels: int) -> Layout:
    """The layout of `s`, flattened."""
    return Layout(LAYOUTS["s"].segment * pixels, LAYOUTS["s"].pairs)


def weights(rng, layout: Layout, shape, name: str):
    """(codes, scale, bias, packed)."""
    codes = cases.w_codes(rng, shape, layout)
    scale, bias = rng.normal(size=(2, shape[0])).astype(F32) * F32(0.1)
    packed = packing.pack(codes, cases.package_plan(layout), scale, bias, activation_scale=0.5)
    return codes, scale, bias, packed


class Residual:
    """A small residual network on 8x8 images, built by hand, and what the oracle makes of it."""

    def __init__(self, seed: int = 0, size: int = 8):
        rng = np.random.default_rng(seed)
        self.size, self.pixels = size, (size // 4) ** 2
        self.parts = {
            "first": weights(rng, LAYOUTS["x8"], (16, 3, 3, 3), "first"),
            "one": weights(rng, LAYOUTS["a"], (16, 3, 3, 16), "one"),
            "two": weights(rng, LAYOUTS["b"], (16, 1, 1, 16), "two"),
            "last": weights(rng, flat_layout(self.pixels), (10, self.pixels * 16), "last"),
        }

    def nodes(self) -> list[Node]:
        return [
            Node("quantize", ("x",), ("x8",)),
            Node("conv2d", ("x8",), ("a8", "a"), layer="first", activation="relu", padding=1),
            Node("conv2d", ("a",), ("b",), layer="one", activation="relu6", padding=(1, 1)),
            Node("conv2d", ("b",), ("c",), layer="two", residual="a8"),
            Node("add", ("a8", "c"), ("p0",), activation=("hardtanh", -1.0, 1.5)),
            Node("max_pool2d", ("p0",), ("p",), kernel=(2, 2)),
            Node("avg_pool2d", ("p",), ("s",), kernel=2, stride=2),
            Node("flatten", ("s",), ("f",)),
            Node("linear", ("f",), ("y",), layer="last"),
        ]

    def tensors(self) -> dict:
        described = {
            name: Codes(cases.package_plan(layout), F32(SCALES[name]))
            for name, layout in LAYOUTS.items()
            if name != "p"
        }
        pooled = Codes(cases.package_plan(LAYOUTS["p"]), F32(SCALES["p"]))
        flat = Codes(ops.flattened(described["s"].plan, self.pixels), F32(SCALES["s"]))
        return {"x": None, **described, "c": None, "p0": pooled, "p": pooled, "f": flat, "y": None}

    def network(self, **more) -> Network:
        return Network(self.nodes(), {n: p[3] for n, p in self.parts.items()}, self.tensors(), **more)

    def expected(self, x: np.ndarray) -> np.ndarray:
        """float32 logits, each step from its definition."""
        codes = {"x8": self._codes(x, "x8")}
        y = self._conv("first", codes["x8"], "x8", 1, activation="relu")
        codes |= {"a8": self._codes(y, "a8"), "a": self._codes(y, "a")}
        codes["b"] = self._codes(self._conv("one", codes["a"], "a", 1, activation="relu6"), "b")
        a8 = oracle.dequantize(codes["a8"], LAYOUTS["a8"].segment, oracle.a_grids(LAYOUTS["a8"]), F32(SCALES["a8"]))
        c = self._conv("two", codes["b"], "b", 0, residual=a8)
        p0 = self._codes(oracle.activate(a8 + c, ("hardtanh", -1.0, 1.5)), "p")
        p = oracle.max_pool(p0, (2, 2), (2, 2))
        grids = oracle.a_grids(LAYOUTS["p"])
        s = self._codes(oracle.avg_pool(p, LAYOUTS["p"].segment, grids, F32(SCALES["p"]), (2, 2), (2, 2)), "s")
        flat, (w, scale, bias, _) = flat_layout(self.pixels), self.parts["last"]
        acc = oracle.matmul(s.reshape(len(x), -1), w, flat)
        return oracle.epilogue(acc, F32(SCALES["s"]), oracle.total_exponent(flat), Epilogue(scale, bias))

    def _codes(self, y: np.ndarray, name: str) -> np.ndarray:
        layout = LAYOUTS[name]
        return oracle.quantize_channels(y, layout.segment, oracle.a_grids(layout), F32(SCALES[name]))

    def _conv(self, layer: str, codes: np.ndarray, name: str, pad: int, **steps) -> np.ndarray:
        (w, scale, bias, _), layout = self.parts[layer], LAYOUTS[name]
        acc = oracle.conv2d(codes, w, layout, padding=(pad,) * 4)
        return oracle.epilogue(acc, F32(SCALES[name]), oracle.total_exponent(layout), Epilogue(scale, bias, **steps))


@pytest.fixture(scope="module")
def residual() -> Residual:
    return Residual()


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.normal(size=(3, 8, 8, 3)).astype(F32)


# ---- the same bits -------------------------------------------------------------------------------------------------------
def test_a_network_is_its_layers(tier, residual, images):
    """Every tier, more than one run, another batch in between, none at all."""
    net, expected = residual.network(), residual.expected(images)
    for _ in range(2):
        cases.assert_same_bits(net(images), expected)
        cases.assert_same_bits(net(images[:1]), expected[:1])
    assert net(images[:0]).shape == (0, 10)


def test_threads(residual, images):
    """Any number of threads."""
    net, expected = residual.network(), residual.expected(images)
    for count in (1, 2, 3):
        with cases.threads(count):
            cases.assert_same_bits(net(images), expected, count)


def test_a_file_is_the_same_network(tmp_path, residual, images):
    """Saved and loaded: the same bits, the same text when saved again; the layers by themselves too."""
    net = residual.network()
    net.save(tmp_path / "net.safetensors")
    loaded = soniq_kernels.load_network(tmp_path / "net.safetensors")
    cases.assert_same_bits(loaded(images), residual.expected(images))
    assert loaded.nodes == net.nodes
    assert loaded.tensors["a"].scale.tobytes() == net.tensors["a"].scale.tobytes()
    loaded.save(tmp_path / "again.safetensors")
    assert _metadata(tmp_path / "again.safetensors") == _metadata(tmp_path / "net.safetensors")
    layers = load_layers(tmp_path / "net.safetensors")
    assert {n: p.shape for n, p in layers.items()} == {n: p.shape for n, p in net.layers.items()}


def test_weights_are_held_once(tmp_path, residual, images):
    """A loaded network keeps the panels that it runs on; its file serves other tiers and saving, also without its name."""
    path = tmp_path / "network.safetensors"
    residual.network().save(path)
    loaded, expected = soniq_kernels.load_network(path), residual.expected(images)
    assert all(packed.planes is not None for packed in loaded.layers.values())
    path.unlink()
    cases.assert_same_bits(loaded(images), expected)
    assert all(packed.planes is None for packed in loaded.layers.values())
    with isa.use("reference"):
        cases.assert_same_bits(loaded(images), expected)
    loaded.save(path)
    cases.assert_same_bits(soniq_kernels.load_network(path)(images), expected)


def test_a_file_that_was_overwritten(tmp_path, residual, images):
    """What is built goes on; what would need the file says so."""
    path = tmp_path / "network.safetensors"
    residual.network().save(path)
    loaded, expected = soniq_kernels.load_network(path), residual.expected(images)
    loaded(images)
    path.write_bytes(bytes(path.stat().st_size))
    cases.assert_same_bits(loaded(images), expected)
    with pytest.raises(ValueError, match="file was overwritten; load the file again"):
        loaded.save(tmp_path / "other.safetensors")


def test_nchw(residual, images):
    """Images as torch has them, going in and coming out."""
    net = residual.network(layout="NCHW", outputs=("y", "p", "c"))
    y, p, c = net(images.transpose(0, 3, 1, 2))
    cases.assert_same_bits(y, residual.expected(images))
    assert p.shape == (3, 16, 4, 4) and p.dtype == np.uint8
    assert c.shape == (3, 16, 8, 8) and c.dtype == F32
    straight = residual.network(outputs=("p", "c"))(images)
    cases.assert_same(p, straight[0].transpose(0, 3, 1, 2))
    cases.assert_same_bits(c, straight[1].transpose(0, 3, 1, 2))


def test_pixels_enter_as_codes(residual, images, rng):
    """An input that is codes takes uint8 as it is."""
    pixels = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    full, tensors = residual.network(), residual.tensors()
    short = Network(residual.nodes()[1:], full.layers, tensors, inputs=("x8",))
    values = ops.dequantize(packing.Activations.from_codes(pixels, *tensors["x8"]))
    cases.assert_same_bits(short(pixels), residual.expected(values))
    cases.assert_same_bits(short(packing.Activations.from_codes(pixels, *tensors["x8"])), residual.expected(values))


def test_layers_that_read_floats(rng):
    """A float32 tensor in front of a layer is quantized by it, per row where it says so."""
    layout = oracle.uniform(6, Grid("bipolar", 2), Grid("bipolar", 4))
    w, scale = cases.w_codes(rng, (4, 6), layout), cases.random_scale(rng, 4)
    packed = packing.pack(w, cases.package_plan(layout), scale, activation_scale="per_row")
    net = Network([Node("linear", ("x",), ("y",), layer="l")], {"l": packed}, {"x": None, "y": None})
    for seed in range(2):
        x = np.random.default_rng(seed).normal(size=(5, 6)).astype(F32)
        a_scale = oracle.row_scale(x, layout, -1)[:, None]
        acc = oracle.matmul(oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), a_scale), w, layout)
        cases.assert_same_bits(net(x), oracle.epilogue(acc, a_scale, oracle.total_exponent(layout), Epilogue(scale)))


def test_every_other_operation(rng):
    """relu, relu6, requantize, concat, global_avg_pool, flatten of float32: as the functions of ops."""
    a, b = (Codes(cases.package_plan(mixed(n)), F32(0.4)) for n in (5, 7))
    joined = Codes(cases.package_plan(mixed(12)), F32(0.3))
    tensors = {"x": a, "z": b, "r": a, "r6": b, "j": joined, "m": None, "q": joined, "mean": None, "y": None}
    net = Network(
        [
            Node("relu", ("x",), ("r",)),
            Node("relu6", ("z",), ("r6",)),
            Node("concat", ("r", "r6"), ("j", "m")),
            Node("requantize", ("m",), ("q",), activation=("hardtanh", -1, 1)),
            Node("global_avg_pool", ("q",), ("mean",)),
            Node("flatten", ("mean",), ("y",)),
        ],
        {}, tensors, inputs=("x", "z"), outputs=("y", "j"),
    )  # fmt: skip
    x, z = (cases.x_codes(rng, (2, 3, 4, n), mixed(n)) for n in (5, 7))
    parts = [ops.requantize(cases.activations(x, *a), a, "relu"), ops.requantize(cases.activations(z, *b), b, "relu6")]
    q = ops.requantize(ops.concat(parts, [None])[0], joined, ("hardtanh", -1, 1))
    y, j = net(x, z)
    cases.assert_same_bits(y, ops.global_avg_pool(q).reshape(2, 12))
    cases.assert_same(j, ops.concat(parts, joined).codes())


def test_concurrent_runs(residual, images):
    """Two threads on one network: tensors are not shared between runs that overlap."""
    net, expected, wrong = residual.network(), residual.expected(images), []

    def work(part: slice) -> None:
        for _ in range(20):
            if not np.array_equal(cases.as_bits(net(images[part])), cases.as_bits(expected[part])):
                wrong.append(part)

    runners = [threading.Thread(target=work, args=(slice(i % 2, 3),)) for i in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert not wrong


def test_memory_is_reused(residual, images):
    """The block of tensors is smaller than all of them, and no tensor shares its place with one that lives."""
    net = residual.network()
    net(images)
    (program,) = net._programs.values()
    sizes = {n: np.prod(s) * (4 if net.tensors[n] is None else 1) for n, s in program._shapes.items()}
    assert program.nbytes < 0.8 * sum(sizes.values())
    lives = {n: [-1, -1] for n in net.inputs}
    for i, node in enumerate(net.nodes):
        lives |= {n: [i, i] for n in node.outputs}
        for n in node.reads:
            lives[n][1] = i
    lives["y"][1] = len(net.nodes)
    for one in sizes:
        for other in sizes:
            together = lives[one][0] <= lives[other][1] and lives[other][0] <= lives[one][1]
            begin, end = (
                max(program._places[n] for n in (one, other)),
                min(program._places[n] + sizes[n] for n in (one, other)),
            )
            assert one == other or not together or end <= begin, (one, other)


def test_explain(residual, images):
    """A row a node; times with profile only."""
    net = residual.network()
    plain, timed = net.explain(images), net.explain(images, profile=True, runs=2)
    assert [row.node.op for row in plain.rows] == [node.op for node in net.nodes]
    assert all(row.seconds is None for row in plain.rows)
    assert all(row.seconds > 0 for row in timed.rows)
    assert timed.rows[1].products == 3 * 64 * 16 * 27
    assert timed.rows[1].rate == timed.rows[1].products / timed.rows[1].cycles
    assert plain.rows[1].kernel.startswith(tuple(isa.built()))
    assert str(timed).count("\n") == len(net.nodes) and "MAC/cycle" in str(timed)


def test_no_torch(tmp_path, residual):
    """Loading and running needs NumPy and safetensors alone."""
    path = tmp_path / "net.safetensors"
    residual.network().save(path)
    code = (
        "import sys, numpy as np, soniq_kernels\n"
        f"net = soniq_kernels.load_network({str(path)!r})\n"
        "assert net(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 10)\n"
        "assert 'torch' not in sys.modules"
    )
    done = run_process([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- what is refused -----------------------------------------------------------------------------------------------------
def changed(residual: Residual, at: int, /, **fields) -> list[Node]:
    """The nodes with some fields of one replaced."""
    nodes = residual.nodes()
    nodes[at] = Node(**(vars(nodes[at]) | fields))
    return nodes


def test_wrong_networks(residual):
    """Each error names the node and says what is wrong."""
    layers, tensors = residual.network().layers, residual.tensors()
    for at, fields, words in [
        (0, {"op": "softmax"}, "no such operation"),
        (0, {"inputs": ("nobody",)}, "no node before it writes"),
        (0, {"inputs": ("x8",)}, "no node before it writes"),
        (0, {"outputs": ("x",)}, "written already"),
        (0, {"outputs": ("unknown",)}, "not among the tensors"),
        (0, {"outputs": ("y",)}, "reads float32 and writes codes"),
        (0, {"outputs": ()}, "writes 0 tensors"),
        (0, {"layer": "first"}, "has no attributes"),
        (1, {"layer": "none"}, "not among"),
        (1, {"layer": "one"}, "is packed for"),
        (1, {"op": "linear", "padding": None}, "convolution"),
        (1, {"kernel": 3}, "it has kernel"),
        (1, {"activation": "gelu"}, "activation"),
        (1, {"inputs": ("x8", "x")}, "expected 1"),
        (2, {"residual": "x8"}, "16 outputs"),
        (3, {"residual": "y"}, "no node before"),
        (4, {"inputs": ("c",)}, "expected 2"),
        (4, {"inputs": ("c", "c")}, "both operands are float32"),
        (4, {"inputs": ("a8", "x8")}, "channels"),
        (5, {"kernel": None}, "no kernel"),
        (5, {"outputs": ("s",)}, "alike"),
        (7, {"inputs": ("p",)}, "alike"),
        (7, {"inputs": ("x8",)}, "columns"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=rf"node {at} .*{words}"):
            Network(changed(residual, at, **fields), layers, tensors)
    for fields, words in [
        ({"inputs": ("nobody",)}, "not among the tensors"),
        ({"inputs": ()}, "one or more"),
        ({"outputs": ("nobody",)}, "written by no node"),
        ({"outputs": ("y", "y")}, "each once"),
        ({"layout": "CHWN"}, "layout"),
    ]:
        with pytest.raises(ValueError, match=words):
            Network(residual.nodes(), layers, tensors, **fields)


def test_wrong_inputs(residual, images):
    """Shapes, dtypes, numbers of inputs, values that are not finite."""
    net = residual.network()
    with pytest.raises(ValueError, match="takes 1 inputs"):
        net(images, images)
    with pytest.raises(TypeError, match="float64"):
        net(images.astype(np.float64))
    with pytest.raises(ValueError, match=r"node 0 .*channels"):
        net(images[..., :2])
    with pytest.raises(ValueError, match=r"node 7 .*columns|node 7 .*channels"):
        net(np.zeros((1, 16, 16, 3), F32))
    with pytest.raises(ValueError, match=r"node 5 .*height|node 6 .*height"):
        net(np.zeros((1, 1, 1, 3), F32))
    with pytest.raises(ValueError, match="finite"):
        net(np.full((1, 8, 8, 3), np.nan, F32))
    with pytest.raises(ValueError, match="no axis"):
        net(F32(1))
    wide = Network(changed(residual, 1, padding=2**20), net.layers, residual.tensors())
    with pytest.raises(ValueError, match=r"node 1 .*more than"):
        wide(images)


# ---- files that mean harm --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def saved(tmp_path_factory, residual) -> tuple[dict, bytes]:
    """(header, tensor bytes) of a saved network."""
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    residual.network().save(path)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_description(saved, text: str, sign: bool = True) -> bytes:
    """The file with another description, whose checksum fits."""
    header, body = saved
    metadata = header["__metadata__"] | {"network": text}
    if sign:
        metadata["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    data = json.dumps(header | {"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(data)) + data + body


def loads(path, data: bytes) -> Network | None:
    """The network, or None where load raises ValueError; anything else fails the test."""
    path.write_bytes(data)
    try:
        return network.load_network(path)
    except ValueError:
        return None


def use(net: Network) -> None:
    """Whatever load accepted runs, or says what is wrong."""
    for shape in [(1, 8, 8, 3), (2, 5)]:
        with contextlib.suppress(ValueError):
            net(*[np.zeros(shape, F32 if net.tensors[n] is None else np.uint8) for n in net.inputs])


def test_a_changed_description_is_noticed(tmp_path, saved):
    """The checksum finds damage."""
    text = saved[0]["__metadata__"]["network"]
    assert loads(tmp_path / "f", with_description(saved, text)) is not None
    assert loads(tmp_path / "f", with_description(saved, text.replace('"relu"', '"relu6"'), sign=False)) is None
    assert loads(tmp_path / "f", with_description(saved, text.replace('"relu"', '"relu6"'))) is not None


VALUES = [
    None,
    -1,
    0,
    1,
    3,
    2**31,
    2**70,
    1.5,
    True,
    [],
    {},
    "",
    "x",
    "a",
    [1] * 5,
    [[]],
    float("nan"),
    "0x1p+900",
    {"float": True},
]
DELETE = object()


def leaves(value, path=()):
    """The path of everything in nested JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))


def replaced(value, path, new):
    """A copy with one entry replaced, or removed."""
    if not path:
        return new
    out = dict(value) if isinstance(value, dict) else list(value)
    if new is DELETE and len(path) == 1:
        del out[path[0]]
    else:
        out[path[0]] = replaced(value[path[0]], path[1:], new)
    return out


def test_hostile_descriptions(tmp_path, saved):
    """Every entry replaced by nonsense, or removed: refused, or a network that runs or says why not."""
    content = json.loads(saved[0]["__metadata__"]["network"])
    for index, path in enumerate(leaves(content)):
        for new in [DELETE, *VALUES[index % 3 :: 3]]:
            if path or new is not DELETE:
                net = loads(tmp_path / "f", with_description(saved, json.dumps(replaced(content, path, new))))
                if net is not None:
                    use(net)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.data())
def test_flipped_characters(tmp_path, saved, data):
    """A few characters of the description changed, with a checksum that fits."""
    text = list(saved[0]["__metadata__"]["network"])
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = chr(data.draw(st.integers(32, 126)))
    net = loads(tmp_path / "f", with_description(saved, "".join(text)))
    if net is not None:
        use(net)


def test_other_files(tmp_path, residual):
    """One layer, a network of layers alone, no file of ours at all."""
    residual.parts["one"][3].save(tmp_path / "layer")
    with pytest.raises(ValueError, match=r"format and version"):
        soniq_kernels.load_network(tmp_path / "layer")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="no readable safetensors"):
        soniq_kernels.load_network(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        soniq_kernels.load_network(tmp_path / "nowhere")
