"""Saved models: what comes back, and that no file, however broken, does more than raise ValueError."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cases
import oracle
from oracle import Grid, Layout
from soniq_kernels import conv, gemm, isa, packing

F32 = np.float32
PAIRS = ((Grid("bipolar", 2, 0, 1), Grid("unsigned", 3, -2)), (Grid("bipolar", 5), Grid("unsigned", 4, 0, -1)))
SHAPES = {"linear": (6, 11), "conv": (6, 3, 2, 11), "groups": (4, 3, 3, 5)}


def sample(kind: str = "linear", **extra) -> packing.PackedWeights:
    """A packed layer with two segments and every optional vector."""
    rng = np.random.default_rng(4)
    shape = SHAPES[kind]
    channels = 10 if kind == "groups" else shape[-1]
    layout = Layout(tuple(int(s) for s in rng.integers(0, 2, channels)), PAIRS)
    vectors = rng.normal(size=(4, shape[0])).astype(F32)
    names = ("scale", "bias", "post_scale", "post_bias")
    optional = dict(zip(names, vectors, strict=True)) | {"activation_scale": 0.3} | extra
    return packing.pack(cases.w_codes(rng, shape, layout), cases.package_plan(layout), **optional)


def saved(tmp_path, packed: packing.PackedWeights) -> bytes:
    """The bytes of the file that save() writes."""
    path = tmp_path / "saved.safetensors"
    packed.save(path)
    return path.read_bytes()


def same_optional(got, expected) -> None:
    """Two optional float32 vectors: both missing, or the same bits."""
    assert (got is None) == (expected is None)
    if expected is not None:
        cases.assert_same_bits(got, expected)


def assert_same_packed(got: packing.PackedWeights, expected: packing.PackedWeights) -> None:
    """Everything that a packed layer consists of."""
    assert (got.plan, got.shape, got.groups) == (expected.plan, expected.shape, expected.groups)
    assert got.exponent == expected.exponent
    assert got.nbytes == expected.nbytes
    assert got.activation_scale == expected.activation_scale
    cases.assert_same(got.codes(), expected.codes())
    cases.assert_same_bits(got.scale, expected.scale)
    for name in ("bias", "post_scale", "post_bias"):
        same_optional(getattr(got, name), getattr(expected, name))


# ---- what was saved comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_round_trip(tier, tmp_path, kind):
    """Matrices, convolutions and groups with every vector; saved again gives the same header and the same bytes."""
    packed = sample(kind)
    data = saved(tmp_path, packed)
    again = packing.load(tmp_path / "saved.safetensors")
    assert_same_packed(again, packed)
    assert split(saved(tmp_path, again))[1] == split(data)[1]
    assert split(saved(tmp_path, again))[0] == split(data)[0]


@pytest.mark.parametrize(
    "missing", [{"bias": None}, {"post_scale": None}, {"post_bias": None}, {"activation_scale": None}], ids=str
)
def test_round_trip_without(tmp_path, missing):
    """Optional parts stay missing."""
    packed = sample(**missing)
    saved(tmp_path, packed)
    assert_same_packed(packing.load(tmp_path / "saved.safetensors"), packed)


def test_scale_per_row_and_scales_of_fewer_bits_come_back(tmp_path):
    """activation_scale="per_row" and one scale vector per width."""
    two = np.arange(1, 7, dtype=F32)
    packed = sample(activation_scale="per_row", scales_at_bits={2: two}, biases_at_bits={2: -two})
    saved(tmp_path, packed)
    again = packing.load(tmp_path / "saved.safetensors")
    assert again.activation_scale == "per_row"
    cases.assert_same_bits(again.at_bits(2).scale, two)
    cases.assert_same_bits(again.at_bits(2).bias, -two)
    cases.assert_same_bits(again.at_bits(1).scale, packed.scale)
    cases.assert_same_bits(again.at_bits(1).bias, packed.bias)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_comes_back(tmp_path, bits):
    """Plane streams that end inside a byte and inside a word."""
    for shape in [(1, 1), (3, 5), (7, 37), (5, 2, 3, 3)]:
        layout = oracle.uniform(shape[-1], Grid("bipolar", bits), Grid("bipolar", bits))
        codes = cases.w_codes(np.random.default_rng(bits), shape, layout)
        saved(tmp_path, cases.pack_unit(codes, cases.package_plan(layout)))
        cases.assert_same(packing.load(tmp_path / "saved.safetensors").codes(), codes, shape)


def test_file_of_one_tier_runs_under_another(tmp_path, rng):
    """The file depends on no tier."""
    for writer in isa.available():
        with isa.use(writer):
            packed = sample()
            packed.save(tmp_path / writer)
    x = rng.integers(0, 8, (5, 11)).astype(np.uint8)
    results = []
    for reader in isa.available():
        with isa.use(reader):
            loaded = [packing.load(tmp_path / writer) for writer in isa.available()]
            results += [gemm.linear(cases.activations(x, p.plan, 0.3), p) for p in loaded]
    for y in results:
        cases.assert_same_bits(y, results[0])


def test_file_has_the_portable_bits_and_little_else(tmp_path):
    """p bits a weight, and a header."""
    packed = cases.pack_unit(np.zeros((64, 512), np.uint8), packing.Plan.uniform(512, w_bits=3, a_bits=8))
    size = len(saved(tmp_path, packed))
    assert 64 * 512 * 3 // 8 <= size <= 64 * 512 * 3 // 8 + 64 * 4 + 512 * 8 + 4096


def test_text_paths_and_missing_files(tmp_path):
    """str and Path; a file that is not there is an OSError that names it."""
    packed = sample()
    packed.save(str(tmp_path / "named"))
    assert_same_packed(packing.load(str(tmp_path / "named")), packed)
    with pytest.raises(OSError, match="nothing_here"):
        packing.load(tmp_path / "nothing_here")
    with pytest.raises((OSError, ValueError)):
        packing.load(tmp_path)


def test_planes_as_the_format_describes_them(tmp_path):
    """A reader written from docs/format.md alone: bit streams over (output, tap, channel of the segment), top bit first."""
    packed = sample("groups")
    header, tensors = split(saved(tmp_path, packed))
    codes, segment_of = packed.codes(), packed.plan.segment_of()
    for index, segment in enumerate(packed.plan.segments):
        begin, end = header[f"planes.{index}"]["data_offsets"]
        planes = np.frombuffer(tensors[begin:end], np.uint8).reshape(segment.w.bits, -1)
        bits = np.unpackbits(planes, axis=1, bitorder="little").astype(np.int64)
        stream = (2 ** np.arange(segment.w.bits)[::-1]) @ bits
        halves = zip(np.split(codes, 2), np.split(segment_of == index, 2), strict=True)
        expected = np.concatenate([half[..., mine].reshape(-1) for half, mine in halves])
        cases.assert_same(stream[: expected.size], expected)
        assert not stream[expected.size :].any()
        assert stream.size - expected.size < 8


# ---- broken files -------------------------------------------------------------------------------------------------------


def use(packed: packing.PackedWeights) -> None:
    """Whatever load accepted must be a working layer: codes in range, and kernels that agree with them."""
    plan, codes = packed.plan, packed.codes()
    assert codes.shape == packed.shape
    assert codes.dtype == np.uint8
    with np.errstate(over="ignore"):
        assert not np.isnan(packed.dequantize()).any()
    assert sorted(plan.permutation.tolist()) == list(range(plan.channels))
    largest = np.array([segment.w.cmax for segment in plan.segments])[plan.segment_of()]
    outputs = np.repeat(np.arange(packed.groups), packed.out_channels // packed.groups)
    largest = largest.reshape(packed.groups, *[1] * (codes.ndim - 2), -1)[outputs]
    assert (codes <= largest).all()
    tops = [segment.a.cmax for segment in plan.segments]
    one = np.array(tops, np.uint8)[plan.segment_of()]
    if codes.ndim == 2:
        y = gemm.matmul(cases.activations(one[None], plan), packed)
    else:
        y = conv.conv2d_int32(
            cases.activations(one[None, None, None], plan), packed, padding=(codes.shape[1], codes.shape[2])
        )
    assert y.shape[-1] == packed.out_channels


def load_or_refuse(path, data: bytes) -> bool:
    """True if the bytes load (and then work), False if load raises ValueError; anything else fails the test."""
    path.write_bytes(data)
    try:
        packed = packing.load(path)
    except ValueError:
        return False
    use(packed)
    return True


def split(data: bytes) -> tuple[dict, bytes]:
    """(header, tensor bytes) of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: dict, tensors: bytes, sign: bool = True) -> bytes:
    """A safetensors file of this header, with a checksum that fits: whoever means harm writes one."""
    text = json.dumps(signed(header, tensors) if sign else header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def signed(header: dict, tensors: bytes) -> dict:
    """The header with the checksum that docs/format.md describes, where the entries make one possible."""
    try:
        digest = hashlib.sha256(header["__metadata__"]["layer"].encode())
        for name in sorted(tensor_names(header)):
            begin, end = header[name]["data_offsets"]
            digest.update(name.encode())
            digest.update(tensors[begin:end])
    except (KeyError, TypeError, ValueError, AttributeError):
        return header
    return header | {"__metadata__": header["__metadata__"] | {"sha256": digest.hexdigest()}}


def tensor_names(header: dict) -> list[str]:
    """Names of the tensors in a header."""
    return [name for name in header if name != "__metadata__"]


def test_truncated_files(tmp_path):
    """Every prefix of a file is refused."""
    data = saved(tmp_path, sample())
    for size in [*range(min(len(data), 64)), *range(64, len(data), 7), len(data) - 1]:
        assert not load_or_refuse(tmp_path / "file", data[:size]), size


def test_longer_files(tmp_path):
    """Bytes behind the end belong to nothing."""
    data = saved(tmp_path, sample())
    for extra in (b"\0", b"x" * 4096):
        assert not load_or_refuse(tmp_path / "file", data + extra)


def test_files_of_another_kind(tmp_path):
    """Empty, text, numpy, a safetensors file without our metadata, absurd header sizes."""
    plain = join({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4)
    texts = [b"", b"hello", b"\x93NUMPY" + b"\0" * 100, b"PK\3\4" + b"\0" * 60, plain, join({}, b"")]
    sizes = [struct.pack("<Q", size) + b"{}" for size in (0, 3, 2**31, 2**63, 2**64 - 1)]
    nested = struct.pack("<Q", 200_000) + b"[" * 200_000
    for data in [*texts, *sizes, nested]:
        assert not load_or_refuse(tmp_path / "file", data), data[:20]


def test_missing_tensors(tmp_path):
    """What a layer cannot do without must be there, and the checksum notices what it can do without."""
    header, tensors = split(saved(tmp_path, sample()))
    for name in tensor_names(header):
        parts = {other: header[other] for other in header if other != name}
        assert not load_or_refuse(tmp_path / "file", join(parts, tensors)), name
        loads = load_or_refuse(tmp_path / "file", repacked(header, tensors, {name: None}))
        assert loads == (name in ("bias", "post_scale", "post_bias")), name
        assert not load_or_refuse(tmp_path / "file", repacked(header, tensors, {name: None}, sign=False)), name


def repacked(header: dict, tensors: bytes, changes: dict, sign: bool = True) -> bytes:
    """A consistent file in which some tensors are replaced by (dtype, shape, bytes), or left out where None."""
    parts, out = b"", {"__metadata__": header["__metadata__"]}
    for name in tensor_names(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        new = changes.get(name, (entry["dtype"], entry["shape"], tensors[begin:end]))
        if new is not None:
            out[name] = {"dtype": new[0], "shape": new[1], "data_offsets": [len(parts), len(parts) + len(new[2])]}
            parts += new[2]
    return join(out, parts, sign)


def test_wrong_shapes(tmp_path):
    """Each tensor longer, shorter, empty, or of another rank."""
    header, tensors = split(saved(tmp_path, sample()))
    for name in tensor_names(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        raw, shape = tensors[begin:end], entry["shape"]
        item = len(raw) // int(np.prod(shape))
        assert load_or_refuse(tmp_path / "file", repacked(header, tensors, {})), "rewriting alone must not matter"
        if len(shape) == 1:
            longer, shorter = (
                (entry["dtype"], [shape[0] + 1], raw + raw[:item]),
                (entry["dtype"], [shape[0] - 1], raw[:-item]),
            )
            for new in (longer, shorter):
                assert not load_or_refuse(tmp_path / "file", repacked(header, tensors, {name: new})), name
        for new in ((entry["dtype"], [0], b""), (entry["dtype"], [1, 1, *shape], raw)):
            assert not load_or_refuse(tmp_path / "file", repacked(header, tensors, {name: new})), (name, new[1])


SAME_SIZE = {
    "U8": ["I8", "BOOL"],
    "F32": ["I32", "U32"],
    "I32": ["F32", "U32"],
    "I64": ["F64", "U64"],
    "U32": ["F32"],
    "U64": ["F64"],
}


def test_wrong_dtypes(tmp_path):
    """The same bytes under another type's name."""
    header, tensors = split(saved(tmp_path, sample()))
    for name in tensor_names(header):
        entry = header[name]
        for dtype in SAME_SIZE[entry["dtype"]]:
            begin, end = entry["data_offsets"]
            changes = {name: (dtype, entry["shape"], tensors[begin:end])}
            assert not load_or_refuse(tmp_path / "file", repacked(header, tensors, changes)), (name, dtype)


def test_non_finite_vectors(tmp_path):
    """NaN or infinity in any float tensor is refused."""
    header, tensors = split(saved(tmp_path, sample()))
    for name in tensor_names(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        for bad in (np.nan, np.inf, -np.inf):
            if entry["dtype"] == "F32":
                changes = {name: ("F32", entry["shape"], struct.pack("<f", bad) + tensors[begin + 4 : end])}
                assert not load_or_refuse(tmp_path / "file", repacked(header, tensors, changes)), (name, bad)


def leaves(value, path=()):
    """The path of everything in nested metadata; text that holds JSON is an entry and is descended into."""
    yield path
    if isinstance(value, str):
        value = json_or_none(value)
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))


def json_or_none(text: str):
    """The parsed text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def with_change(value, path, new):
    """A copy of nested metadata with one entry replaced, or removed where new is DELETE."""
    if not path:
        return new
    if isinstance(value, str):
        return json.dumps(with_change(json.loads(value), path, new))
    out = dict(value) if isinstance(value, dict) else list(value)
    if new is DELETE and len(path) == 1:
        del out[path[0]]
    else:
        out[path[0]] = with_change(value[path[0]], path[1:], new)
    return out


DELETE = object()
HOSTILE = [DELETE, "", "x", "-1", "0", "9", "99999999999999999999", "1e9", "nan", "[]", "null", "\0", "é" * 50]
HOSTILE_JSON = [None, -1, 0, 1, 7, 9, 2**31, 2**63, -(2**70), 1.5, True, [], {}, [1] * 5, "bipolar", float("nan")]


@pytest.mark.parametrize("kind", SHAPES)
def test_hostile_metadata(tmp_path, kind):
    """Every entry of the metadata removed or replaced by nonsense: refused, or a working layer."""
    header, tensors = split(saved(tmp_path, sample(kind)))
    metadata = header["__metadata__"]
    for path in leaves(metadata):
        for new in HOSTILE + HOSTILE_JSON:
            if path or new is not DELETE:
                changed = header | {"__metadata__": with_change(metadata, path, new)}
                load_or_refuse(tmp_path / "file", join(changed, tensors))


def test_metadata_must_be_there(tmp_path):
    """A file without any one entry of the metadata, or without all, is refused."""
    header, tensors = split(saved(tmp_path, sample()))
    metadata = header["__metadata__"]
    assert not load_or_refuse(tmp_path / "file", join({n: header[n] for n in tensor_names(header)}, tensors))
    for key in metadata:
        rest = {other: metadata[other] for other in metadata if other != key}
        assert not load_or_refuse(tmp_path / "file", join(header | {"__metadata__": rest}, tensors, sign=False)), key


def test_other_format_version(tmp_path):
    """A newer version is refused with both versions named."""
    header, tensors = split(saved(tmp_path, sample()))
    metadata = header["__metadata__"]
    (key,) = [key for key in metadata if "version" in key or ("format" in key and metadata[key].isdigit())]
    path = tmp_path / "file"
    path.write_bytes(join(header | {"__metadata__": metadata | {key: "97"}}, tensors))
    with pytest.raises(ValueError, match="97"):
        packing.load(path)


def test_hostile_tensor_entries(tmp_path):
    """Offsets, shapes and types that lie about the file."""
    header, tensors = split(saved(tmp_path, sample()))
    for name in tensor_names(header):
        for key, values in {
            "shape": ([], [-1], [2**62], [2**33, 2**33], [1.5], "x", None, [[1]]),
            "data_offsets": ([0, 0], [0, 2**62], [5, 1], [-8, 8], [2**63, 2**64], [0], None),
            "dtype": ("F32X", "", None, 3, "F8_E4M3", "C64"),
        }.items():
            for value in values:
                changed = header | {name: header[name] | {key: value}}
                assert not load_or_refuse(tmp_path / "file", join(changed, tensors)), (name, key, value)


def test_stored_permutation_must_be_one(tmp_path):
    """Integer tensors with repeated, negative or huge entries never reach a kernel."""
    header, tensors = split(saved(tmp_path, sample()))
    for name in tensor_names(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] in ("I64", "I32", "U32", "U16", "I16"):
            item = (end - begin) // int(np.prod(entry["shape"]))
            second = tensors[begin + item : begin + 2 * item]
            for first in (second, b"\xff" * item, b"\xff" * (item - 1) + b"\x7f", b"\x0b" + b"\0" * (item - 1)):
                changes = {name: (entry["dtype"], entry["shape"], first + tensors[begin + item : end])}
                assert not load_or_refuse(tmp_path / "file", repacked(header, tensors, changes)), (name, first)


@functools.cache
def sample_bytes(kind: str) -> bytes:
    """The file of a sample, made once."""
    with tempfile.TemporaryDirectory() as folder:
        return saved(Path(folder), sample(kind))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=600)
@given(st.data())
def test_flipped_bytes(tmp_path, data):
    """Any few bytes changed anywhere are noticed."""
    original = sample_bytes(data.draw(st.sampled_from(sorted(SHAPES))))
    changed = with_flips(data, original)
    assert changed == original or not load_or_refuse(tmp_path / "file", changed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(st.data())
def test_flipped_bytes_under_a_fitting_checksum(tmp_path, data):
    """The tensors or the description of the layer changed, and the checksum with them: refused, or a working layer."""
    header, tensors = split(sample_bytes(data.draw(st.sampled_from(sorted(SHAPES)))))
    if data.draw(st.booleans()):
        tensors = with_flips(data, tensors)
    else:
        layer = with_flips(data, header["__metadata__"]["layer"].encode()).decode("latin1")
        header = header | {"__metadata__": header["__metadata__"] | {"layer": layer}}
    load_or_refuse(tmp_path / "file", join(header, tensors))


def with_flips(data, original: bytes) -> bytes:
    """The bytes with up to four of them changed."""
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path, data):
    """Random bytes, also behind a plausible header size."""
    assert not load_or_refuse(tmp_path / "file", data)
    assert not load_or_refuse(tmp_path / "file", struct.pack("<Q", len(data)) + data)
