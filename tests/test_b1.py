"""The one-bit CUDA kernels, run on the CPU by the emulator (tests/cuda_emulator/), beside the oracle with ==.

The sources are those that a GPU compiles: the same index arithmetic, the same panels, launches and structs. The emulator
multiplies by the documented layout of the instruction's operands, lets warps run ahead of each other in several orders,
and stops at a deadlock, a race that shows in the result, or an access outside of what was passed.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import cases
import oracle
from cases import F32, WIDTHS
from cuda_emulator import harness
from oracle import Grid, Layout
from soniq_kernels import packing

b1 = harness.load("b1")
ORDERS = 4


@pytest.fixture(scope="module")
def library():
    """The kernels, compiled for this CPU."""
    return harness.library()


@pytest.fixture
def device(library):
    """An emulated GPU that takes another order of threads at every launch."""
    return Reordering(library)


class Reordering(harness.EmulatedDevice):
    """Counts its launches, so that all orders come up."""

    def launch(self, *arguments):
        self.order = (self.order + 1) % ORDERS
        super().launch(*arguments)


def packed_of(layout: Layout, w: np.ndarray, **vectors) -> packing.PackedWeights:
    """Packed weights of an oracle layout; scale 1 if none is given."""
    return packing.pack(w, cases.package_plan(layout), vectors.pop("scale", np.ones(w.shape[0], F32)), **vectors)


def integers(device, layout: Layout, x: np.ndarray, w: np.ndarray, form=None, splits=None) -> np.ndarray:
    """What the kernels make of codes."""
    layer = b1.Linear(packed_of(layout, w), device)
    launch = layer.launch_for(x.shape[0], form, splits)
    return layer.matmul(layer.quantize(device.put(x), 1.0, launch))


def check(device, rng, layout: Layout, rows: int, outputs: int, form=None, splits=None) -> None:
    """Random codes, == the oracle."""
    x, w = cases.x_codes(rng, (rows, layout.channels), layout), cases.w_codes(rng, (outputs, layout.channels), layout)
    case = layout.pairs, rows, outputs, layout.channels, form, splits, device.order
    cases.assert_same(integers(device, layout, x, w, form, splits), oracle.matmul(x, w, layout), case)


# ---- integers --------------------------------------------------------------------------------------------------------------


def test_structs_are_those_of_the_sources(library):
    """What Python writes is what the compiler reads."""
    assert library.soniq_bytes_of_product() == b1.PRODUCT.itemsize
    assert library.soniq_bytes_of_planes_call() == b1.PLANES_CALL.itemsize


@pytest.mark.parametrize("form", ["gemv", "gemm"])
def test_every_pair_of_widths(device, rng, form):
    """Both forms, odd sizes, K in one share and in several."""
    for number, (w_bits, a_bits) in enumerate(WIDTHS):
        layout = cases.sums_layout(int(rng.integers(1, 1200)), w_bits, a_bits)
        rows = int(rng.integers(1, 12 if form == "gemv" else 40))
        check(device, rng, layout, rows, int(rng.integers(1, 150)), form, 1 + number % 3)
    assert {f"b1_{form}_{n}" for n in ((1, 2, 4, 8) if form == "gemv" else range(1, 9))} <= set(device.launched)


def test_two_segments(device, rng, full):
    """Every pair of widths and shifts beside another, segments of one channel, whole and broken blocks."""
    widths = (1, 2, 3, 4, 5, 8)
    factors = {
        "w": widths, "a": widths, "w2": widths, "a2": widths, "kind": ["bipolar", "unsigned"], "shift": [-3, 0, 2],
        "channels": [2, 63, 513, 1100], "low": [0.1, 0.5, 0.9], "rows": [1, 5, 17], "form": ["gemv", "gemm"], "splits": [1, 2],
    }  # fmt: skip
    for case in cases.sampled(factors, 300 if full else 50):
        low = (Grid("bipolar", case["w"]), Grid(case["kind"], case["a"], offset=3))
        high = (Grid("signed", max(2, case["w2"]), shift=case["shift"]), Grid(case["kind"], case["a2"]))
        segment = (rng.random(case["channels"]) >= case["low"]).astype(int)
        segment[:2] = 0, 1
        layout = Layout(tuple(segment), (low, high))
        if oracle.bound(layout) <= oracle.INT32_MAX:
            check(device, rng, layout, case["rows"], int(rng.integers(1, 40)), case["form"], case["splits"])


def test_largest_sums(device):
    """All codes at their ends and K at the bound: sums of products of codes pass 2^32 on the way, and come back."""
    for w_bits, a_bits in [(8, 8), (1, 8), (4, 4)]:
        k = min(oracle.largest_k(Grid("bipolar", w_bits), Grid("bipolar", a_bits)), 40_000)
        layout = oracle.uniform(k, Grid("bipolar", w_bits), Grid("bipolar", a_bits))
        for x_code, w_code in [(0, 0), (0, 2**w_bits - 1), (2**a_bits - 1, 2**w_bits - 1)]:
            x, w = np.full((2, k), x_code, np.uint8), np.full((3, k), w_code, np.uint8)
            cases.assert_same(
                integers(device, layout, x, w), oracle.matmul(x, w, layout), (w_bits, a_bits, x_code, w_code)
            )


def test_every_order_of_threads(library, rng):
    """Warps far ahead of each other, copies early and late: the same sums, so no barrier and no wait is missing."""
    layout = cases.sums_layout(3100, 2, 2)
    for order in range(6):
        device = harness.EmulatedDevice(library, order)
        check(device, rng, layout, 70, 140, "gemm", 1 + order % 2)
        check(device, rng, layout, 9, 33, "gemv", 1 + order % 2)


def test_split_sums_leave_zeros(device, rng):
    """The memory that shares of K meet in is ready for the next call, which gives the same."""
    layout = cases.sums_layout(5000, 1, 3)
    x, w = cases.x_codes(rng, (20, 5000), layout), cases.w_codes(rng, (200, 5000), layout)
    layer = b1.Linear(packed_of(layout, w), device)
    planes = layer.quantize(device.put(x), 1.0, layer.launch_for(20, "gemm", 3))
    for _ in range(3):
        cases.assert_same(layer.matmul(planes), oracle.matmul(x, w, layout))
        for words in layer._workspace.values():
            assert not any(array.any() for array in words)


def test_a_large_gpu_splits_k(library, rng):
    """With more processors than tiles the chosen launch has several shares of K, and they are exact."""
    device = harness.EmulatedDevice(library, order=2, processors=132)
    layout = cases.sums_layout(8300, 1, 1)
    for rows in (1, 70):
        check(device, rng, layout, rows, 30)
    layer = b1.Linear(packed_of(layout, np.zeros((30, 8300), np.uint8)), device)
    assert layer.launch_for(1).splits > 1 and layer.launch_for(70).splits > 1


# ---- activations -----------------------------------------------------------------------------------------------------------

QUANTIZER_GRIDS = [
    Grid("bipolar", 1), Grid("bipolar", 3, offset=1), Grid("unsigned", 4, shift=-1), Grid("unsigned", 8, offset=-7),
    Grid("signed", 5), Grid("bipolar", 8), Grid("signed", 2, shift=1), Grid("ternary", 2),
]  # fmt: skip


def identity(grid: Grid, k: int) -> tuple[Layout, np.ndarray]:
    """A layer whose integers are the activation levels themselves: one weight level of 1 an output."""
    layout = oracle.uniform(k, Grid("unsigned", 1), grid)
    return layout, np.eye(k, dtype=np.uint8)


@pytest.mark.parametrize("grid", QUANTIZER_GRIDS, ids=str)
def test_quantizer(device, rng, grid):
    """Ties, denormals, zeros of both signs, infinities and NaN, with one scale and with one a row."""
    k = 70
    layout, w = identity(grid, k)
    x = oracle.values_near(rng, (9, k), 0.7)
    x[0, :5] = np.nan, np.inf, -np.inf, -0.0, 1e-45
    x[1] = 0
    x[2, :2] = np.nan, 2.0
    for scale in (np.float32(0.7), "per_row"):
        layer = b1.Linear(packed_of(layout, w, activation_scale=scale), device)
        planes = layer.quantize(device.put(x))
        scales = oracle.row_scale(x, layout, -1) if scale == "per_row" else scale
        codes = oracle.quantize(x, grid, np.reshape(scales, (-1, 1)) if scale == "per_row" else scales)
        cases.assert_same(layer.matmul(planes), oracle.matmul(codes, w, layout), (grid, scale))
        if scale == "per_row":
            cases.assert_same_bits(planes.scale, scales)


def test_half_precision(device, rng):
    """float16 and bfloat16 are widened exactly before anything else, denormals too."""
    layout, w = identity(Grid("bipolar", 8), 100)
    layer = b1.Linear(packed_of(layout, w, activation_scale="per_row"), device)
    x = (rng.normal(size=(6, 100)) * 2).astype(np.float16)
    x[0, :4], x[1] = (6e-8, -6e-8, 65504, -0.0), (rng.normal(size=100) * 1e-6).astype(np.float16)
    cases.assert_same(layer.matmul(device.put(x)), quantized_product(x.astype(F32), w, layout))
    wide = (oracle.values_near(rng, (6, 100), 1.0).view(np.uint32) & 0xFFFF0000).view(F32)
    narrow = AsBfloat16((wide.view(np.uint32) >> 16).astype(np.uint16))
    device.describe = lambda array: describe_bfloat16(device, array)
    cases.assert_same(layer.matmul(narrow), quantized_product(wide, w, layout))


class AsBfloat16:
    """uint16 that shall be read as bfloat16, which NumPy does not have."""

    def __init__(self, bits: np.ndarray) -> None:
        self.bits = bits


def describe_bfloat16(device, array):
    """`device.describe` that knows AsBfloat16 too."""
    bits = array.bits if isinstance(array, AsBfloat16) else array
    address, shape, dtype = type(device).describe(device, bits)
    return address, shape, "bfloat16" if isinstance(array, AsBfloat16) else dtype


def quantized_product(x: np.ndarray, w: np.ndarray, layout: Layout) -> np.ndarray:
    """The oracle's integers of float32 rows with a scale each."""
    scale = oracle.row_scale(x, layout, -1)[:, None]
    return oracle.matmul(oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), scale), w, layout)


def test_floats_of_two_segments(device, rng):
    """Channels are gathered to [low | high]; rows over several blocks of threads; a scale a row."""
    segment = tuple(int(s) for s in rng.random(3000) < 0.3)
    layout = Layout(segment, ((Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("bipolar", 4))))
    x, w = oracle.values_near(rng, (3, 3000), 0.2), cases.w_codes(rng, (20, 3000), layout)
    layer = b1.Linear(packed_of(layout, w, activation_scale="per_row"), harness.EmulatedDevice(device.library, 3, 132))
    assert layer.device.launched == []
    cases.assert_same(layer.matmul(layer.device.put(x)), quantized_product(x, w, layout))


# ---- the epilogue ----------------------------------------------------------------------------------------------------------


def vectors_of(rng, outputs: int) -> dict:
    """Scale, bias and the batch norm behind the activation, some of them denormal."""
    bias = (rng.normal(size=outputs) * 3).astype(F32)
    bias[::5] = 1e-40
    scale = cases.random_scale(rng, outputs)
    scale[::7] = 1e-38
    post = {"post_scale": rng.normal(size=outputs).astype(F32), "post_bias": rng.normal(size=outputs).astype(F32)}
    return {"scale": scale, "bias": bias, **post}


EPILOGUES = {
    "bias": [True, False], "post": [True, False], "residual": [True, False], "scale": [0.37, "per_row"], "form": ["gemv", "gemm"],
    "activation": [None, "relu", "relu6", ("hardtanh", -0.5, 0.75)], "out": [None, "bipolar", "two"], "splits": [1, 2],
}  # fmt: skip


@pytest.mark.parametrize("case", cases.pairwise(EPILOGUES), ids=lambda case: "-".join(map(str, case.values())))
def test_epilogue(device, rng, case):
    """Every step by itself and in company, as bit patterns; codes in the stored order of the next plan."""
    layout = oracle.uniform(600, Grid("bipolar", 2), Grid("unsigned", 3))
    rows, outputs = 19, 37
    given = vectors_of(rng, outputs)
    vectors = {"scale": given["scale"]} | ({"bias": given["bias"]} if case["bias"] else {})
    vectors |= {k: v for k, v in given.items() if case["post"] and k.startswith("post")}
    x, w = oracle.values_near(rng, (rows, 600), 0.37), cases.w_codes(rng, (outputs, 600), layout)
    residual = (rng.normal(size=(rows, outputs)) * 2).astype(F32) if case["residual"] else None
    layer = b1.Linear(packed_of(layout, w, activation_scale=case["scale"], **vectors), device)
    planes = layer.quantize(device.put(x), launch=layer.launch_for(rows, case["form"], case["splits"]))
    scale = oracle.row_scale(x, layout, -1)[:, None] if case["scale"] == "per_row" else F32(case["scale"])
    codes = oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), scale)
    y = oracle.epilogue(
        oracle.matmul(codes, w, layout), scale, oracle.total_exponent(layout),
        oracle.Epilogue(vectors["scale"], vectors.get("bias"), residual, case["activation"], vectors.get("post_scale"),
                        vectors.get("post_bias")),
    )  # fmt: skip
    on_device = None if residual is None else device.put(residual)
    if case["out"] is None:
        cases.assert_same_bits(layer.linear(planes, on_device, case["activation"]), y, case)
        return
    after = next_layout(case["out"], outputs)
    plan = cases.package_plan(after)
    got = layer.linear(planes, on_device, case["activation"], out=(plan, 0.25))
    expected = oracle.quantize_channels(y, after.segment, oracle.a_grids(after), F32(0.25))
    cases.assert_same(got[:, plan.position], expected, case)


def next_layout(kind: str, channels: int) -> Layout:
    """The layer that reads the codes: of one segment or of two."""
    low, high = ((Grid("bipolar", p), Grid("bipolar", p)) for p in (2, 8))
    if kind == "bipolar":
        return oracle.uniform(channels, *low)
    return Layout(tuple(int(i % 3 == 0) for i in range(channels)), (low, high))


def test_batches_keep_their_shape(device, rng):
    """[2, 3, K] gives [2, 3, N]; one row gives one row."""
    layout = cases.sums_layout(40, 2, 2)
    w = cases.w_codes(rng, (7, 40), layout)
    layer = b1.Linear(packed_of(layout, w, activation_scale=1.0), device)
    x = rng.normal(size=(2, 3, 40)).astype(F32)
    y = layer.linear(device.put(x))
    assert y.shape == (2, 3, 7)
    cases.assert_same_bits(layer.linear(device.put(x[1, 2])), y[1, 2])


# ---- wrong calls -----------------------------------------------------------------------------------------------------------


def test_wrong_calls(device):
    """What came, what was expected, what to do."""
    layout = cases.sums_layout(8, 2, 2)
    layer = b1.Linear(packed_of(layout, np.zeros((3, 8), np.uint8)), device)
    x = np.zeros((2, 8), F32)
    for call, message in [
        (lambda: layer.linear(x), "x has no scale; pass scale="),
        (
            lambda: layer.linear(np.zeros((2, 5), F32), scale=1.0),
            "x has shape (2, 5) but the packed weights have 8 channels",
        ),
        (lambda: layer.linear(x.astype(np.float64), scale=1.0), "x is float64, expected one of float32"),
        (lambda: layer.linear(x.astype(np.uint8), scale="per_row"), "pass the scale that the codes were made with"),
        (lambda: layer.linear(x, scale=np.ones(2, F32)), "expected a float or"),
        (lambda: layer.linear(x, scale=1.0, residual=np.zeros((3, 3), F32)), "residual is ((3, 3), 'float32')"),
        (lambda: layer.linear(x, scale=1.0, activation="gelu"), "activation is 'gelu'"),
        (lambda: layer.linear(x, scale=1.0, activation=("hardtanh", 2, 1)), "low 2.0 and high 1.0"),
        (lambda: layer.linear(x, scale=1.0, out=(cases.package_plan(layout), 1.0)), "out names a plan of 8 channels"),
    ]:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert message in str(caught.value)
    image = packing.pack(np.zeros((2, 1, 1, 8), np.uint8), cases.package_plan(layout), np.ones(2, F32))
    with pytest.raises(ValueError, match="a convolution"):
        b1.weight_panels(image)


# ---- the emulator can fail -------------------------------------------------------------------------------------------------

BROKEN = {
    "no barrier between stages": ("      block_barrier();  // the stage has arrived", "      // the stage has arrived"),
    "no wait for a stage": ("      copy_wait<kStages - 2>();\n", ""),
    "one stage too few": ("kGemmThreads = 128, kStages = 4", "kGemmThreads = 128, kStages = 1"),
    "a tile too far": ("least(tile0 + e / 64, p.output_tiles - 1)", "tile0 + e / 64"),
    "a plane in the wrong place": ("sums[i][group * kPlanes + plane][q] << plane", "sums[i][group * kPlanes + plane][q] << 1"),
    "the factor is forgotten": ("factor *= now.factor;", ""),
    "too little shared memory": ("kSumStride = kTileOutputs + 4", "kSumStride = kTileOutputs + 400"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_kernels_are_caught(what, tmp_path, rng, full):
    """Each of these changes of b1.cu is seen by the check above."""
    if not full and what not in ("no barrier between stages", "a tile too far"):
        pytest.skip("compiles another library; make test-all")
    good, bad = BROKEN[what]
    source = (harness.KERNELS / "b1.cu").read_text()
    assert source.count(good) == 1
    for path in harness.KERNELS.glob("*.cu*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "b1.cu").write_text(source.replace(good, bad))
    library = harness.library(tmp_path)
    with pytest.raises(AssertionError):
        check_orders(library, rng)


def check_orders(library, rng) -> None:
    """A gemm with splits, overhanging tiles and a ring of stages that turns, under many orders of threads."""
    for order in range(12):
        check(harness.EmulatedDevice(library, order), rng, cases.sums_layout(3100, 2, 2), 70, 140, "gemm", 2)
