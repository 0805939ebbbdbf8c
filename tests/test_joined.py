"""Two segments as one: the grids, layers that join what they read, and tensors of a network that are joined from the start."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import cases
import oracle
from oracle import Epilogue, Grid, Layout
from soniq_kernels import conv, gemm, isa, network, packing, planner
from soniq_kernels._joined import joined_grids
from soniq_kernels.activations import Activations
from soniq_kernels.network import Network, Node
from soniq_kernels.tensors import Codes

F32 = np.float32
TIERS = [name for name in isa.available() if name != "reference"]
KINDS = [("bipolar", "bipolar"), ("bipolar", "unsigned"), ("signed", "signed"), ("unsigned", "bipolar")]
WIDTHS = [
    ((1, 1), (4, 4)),
    ((1, 4), (4, 4)),
    ((2, 2), (4, 4)),
    ((2, 8), (4, 8)),
    ((3, 3), (5, 5)),
    ((4, 4), (8, 8)),
    ((1, 8), (8, 8)),
]


def layouts(channels: int) -> list[Layout]:
    """Two segments of every kind and pair of widths that grids have, and of grids with offsets and shifts; some cannot be joined."""
    segment = tuple(int(s) for s in np.random.default_rng(channels).permutation(channels) % 3 == 0)
    pairs = [
        tuple((Grid(kinds[0], w), Grid(kinds[1], a)) for w, a in widths)
        for kinds, widths in itertools.product(KINDS, WIDTHS)
        if kinds[0] != "signed" or min(min(pair) for pair in widths) > 1
    ]
    pairs += [
        ((Grid("ternary", 2), Grid("unsigned", 4)), (Grid("signed", 4), Grid("unsigned", 4))),
        ((Grid("bipolar", 1, shift=2), Grid("unsigned", 4)), (Grid("bipolar", 4), Grid("unsigned", 4, offset=-3))),
        ((Grid("bipolar", 2, offset=1), Grid("bipolar", 4)), (Grid("bipolar", 4), Grid("bipolar", 4, shift=-1))),
    ]
    return [Layout(segment, pair) for pair in pairs]


JOINABLE = [layout for layout in layouts(40) if joined_grids(cases.package_plan(layout))]


# ---- grids ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", layouts(40), ids=lambda layout: str(layout.pairs))
def test_products_of_joined_levels_are_those_of_the_segments(layout):
    """Every code of a weight times every code of an activation, in units of 2**E, from bytes."""
    plan = cases.package_plan(layout)
    grids = joined_grids(plan)
    if grids is None:
        assert max(oracle.cmax(g) for pair in layout.pairs for g in pair) > 100, "fewer bits can be joined"
        return
    for i, s in enumerate(plan.segments):
        w, a = np.arange(s.w.cmax + 1), np.arange(s.a.cmax + 1)
        expected = np.multiply.outer(s.w.levels(w), s.a.levels(a)) * 2 ** (s.exponent - plan.exponent)
        codes = [(c << g.maps[i][0]) + g.maps[i][1] for c, g in ((w, grids.w), (a, grids.a))]
        assert all(c.min() >= 0 and c.max() < 2**g.bits <= 256 for c, g in zip(codes, (grids.w, grids.a), strict=True))
        levels = [g.alpha * c + g.beta for c, g in zip(codes, (grids.w, grids.a), strict=True)]
        np.testing.assert_array_equal(np.multiply.outer(*levels), expected)
        np.testing.assert_array_equal(levels[1] * grids.steps[i], s.a.levels(a) * 2.0**s.a.exponent)


@pytest.mark.parametrize(
    ("widths", "bits"), [(((1, 1), (4, 4)), (4, 8)), (((2, 8), (4, 8)), (5, 8)), (((1, 1), (8, 8)), None)]
)
def test_weights_have_the_fewest_bits(widths, bits):
    """The rest of the factor between segments is the activations', as long as they are bytes."""
    low, high = ((packing.Grid("bipolar", w), packing.Grid("bipolar", a)) for w, a in widths)
    grids = joined_grids(packing.Plan.of_segments([0, 1], [low, high]))
    assert (grids and (grids.w.bits, grids.a.bits)) == bits


def test_one_segment_is_not_joined():
    assert joined_grids(packing.Plan.uniform(8, 4, 4)) is None


# ---- layers --------------------------------------------------------------------------------------------------------------
@pytest.fixture(params=TIERS)
def joined(request):
    """Every tier with kernel families, told to join."""
    with isa.use(request.param), planner.use("joined"):
        yield request.param


@pytest.mark.parametrize("m", [1, 3, 65])
def test_matmul(joined, m):
    rng = np.random.default_rng(m)
    for layout in JOINABLE:
        x, w = cases.x_codes(rng, (m, 40), layout), cases.w_codes(rng, (33, 40), layout)
        packed = cases.pack_unit(w, cases.package_plan(layout))
        assert {family for _, family, _ in packed.built(m).kernels} == {"joined"}
        acc = gemm.matmul(cases.activations(x, packed.plan), packed)
        cases.assert_same(acc, oracle.matmul(x, w, layout), layout.pairs)


GEOMETRIES = [
    ({}, 40),
    ({"padding": (1, 0, 2, 1), "stride": (2, 1)}, 40),
    ({"padding": (2, 2, 2, 2), "dilation": (1, 2)}, 40),
    ({"padding": (1, 1, 1, 1)}, 5),  # few channels
]  # fmt: skip


@pytest.mark.parametrize(("geometry", "channels"), GEOMETRIES)
def test_convolution(joined, geometry, channels):
    """Taps in the padding are exactly 0, which is no level of the joined grid."""
    rng = np.random.default_rng(channels)
    for layout in layouts(channels):
        if not joined_grids(plan := cases.package_plan(layout)):
            continue
        x, w = cases.x_codes(rng, (2, 6, 7, channels), layout), cases.w_codes(rng, (34, 3, 3, channels), layout)
        acc = conv.conv2d_int32(cases.activations(x, plan), cases.pack_unit(w, plan), **geometry)
        cases.assert_same(acc, oracle.conv2d(x, w, layout, **geometry), layout.pairs)


@pytest.mark.parametrize("scale", [0.7, "per_row"])
@pytest.mark.parametrize("threads", [1, 3])
def test_floats_and_the_epilogue(joined, rng, scale, threads):
    """Quantized, then joined; scales, bias and codes as with two segments."""
    layout = Layout(
        (0, 1, 0) * 15, ((Grid("bipolar", 1), Grid("bipolar", 4)), (Grid("bipolar", 4), Grid("bipolar", 4)))
    )
    plan, x = cases.package_plan(layout), rng.normal(size=(37, 45)).astype(F32)
    w, w_scale, bias = (
        cases.w_codes(rng, (33, 45), layout),
        cases.random_scale(rng, 33),
        rng.normal(size=33).astype(F32),
    )
    packed = packing.pack(w, plan, w_scale, bias, activation_scale=scale)
    with cases.threads(threads):
        y = gemm.linear(x, packed, activation="relu")
    a_scale = F32(scale) if scale != "per_row" else packing.quantize_activations(x, plan, scale).scale
    codes = packing.quantize_activations(x, plan, a_scale).codes()
    acc = oracle.matmul(codes, w, layout)
    rows = a_scale if np.ndim(a_scale) == 0 else a_scale.reshape(-1, 1)
    steps = Epilogue(w_scale, bias, activation="relu")
    cases.assert_same_bits(y, oracle.epilogue(acc, rows, oracle.total_exponent(layout), steps))
    with pytest.raises(ValueError, match="must be finite"):
        gemm.linear(np.full_like(x, np.nan), packed)


def test_nothing_to_join(joined, rng):
    """A layer that cannot be joined goes on, and explain says so; groups have their channels in two places."""
    wide = Layout((0, 1) * 20, ((Grid("bipolar", 1), Grid("bipolar", 1)), (Grid("bipolar", 8), Grid("bipolar", 8))))
    x, w = cases.x_codes(rng, (3, 40), wide), cases.w_codes(rng, (9, 40), wide)
    packed = cases.pack_unit(w, cases.package_plan(wide))
    assert "joined, forced by planner.use, does not serve them" in gemm.explain(x.astype(F32), packed).reason
    cases.assert_same(gemm.matmul(cases.activations(x, packed.plan), packed), oracle.matmul(x, w, wide))
    grouped = cases.pack_unit(np.ones((4, 1, 1, 20), np.uint8), cases.package_plan(JOINABLE[0]))
    assert grouped.joined_grids is None


def test_explain(joined):
    layout = JOINABLE[0]
    packed = cases.pack_unit(np.ones((64, 40), np.uint8), cases.package_plan(layout))
    explanation = gemm.explain(np.zeros((128, 40), F32), packed)
    assert explanation.family == "joined"
    assert [choice.family for choice in explanation.segments] == ["joined", "joined"]
    assert "joined as one segment of W4A8, forced by planner.use" in explanation.reason


@pytest.mark.parametrize("tier", TIERS)
def test_joined_panels_are_kept(tier, rng):
    """Without the portable copy they serve on, whatever is forced."""
    layout = JOINABLE[0]
    x, w = cases.x_codes(rng, (9, 40), layout), cases.w_codes(rng, (33, 40), layout)
    packed, acc = cases.pack_unit(w, cases.package_plan(layout)), oracle.matmul(x, w, layout)
    with isa.use(tier):
        with planner.use("joined"):
            packed.drop_portable()
        with planner.use("dot"):
            cases.assert_same(gemm.matmul(cases.activations(x, packed.plan), packed), acc)
            assert {family for _, family, _ in packed.built(9).kernels} == {"joined"}


# ---- networks ------------------------------------------------------------------------------------------------------------
MIXED = Layout((0, 1, 0, 0) * 10, ((Grid("bipolar", 1), Grid("bipolar", 1)), (Grid("bipolar", 4), Grid("bipolar", 4))))
IMAGE = oracle.uniform(3, Grid("bipolar", 8), Grid("bipolar", 8))
DOUBLE = Layout(MIXED.segment * 2, MIXED.pairs)


def layer(rng, layout: Layout, shape: tuple[int, ...]) -> packing.PackedWeights:
    scale, bias = rng.normal(size=(2, shape[0])).astype(F32) * F32(0.1)
    return packing.pack(cases.w_codes(rng, shape, layout), cases.package_plan(layout), scale, bias)


def graph() -> Network:
    """Every operation that may read or write joined codes; `b` and `e`, which no layer multiplies, and the ends are not joined."""
    rng = np.random.default_rng(5)
    plans = {
        "image": IMAGE,
        "a": MIXED,
        "p": MIXED,
        "b": MIXED,
        "c": MIXED,
        "d": DOUBLE,
        "e": MIXED,
        "f": MIXED,
        "y": MIXED,
    }
    scales = {"image": 1.0, "a": 0.5, "p": 0.5, "b": 0.75}
    tensors = {name: Codes(cases.package_plan(layout), F32(scales.get(name, 0.3))) for name, layout in plans.items()}
    nodes = [
        Node("quantize", ("x",), ("image",)),
        Node("conv2d", ("image",), ("a",), layer="first", padding=1),
        Node("max_pool2d", ("a",), ("p",), kernel=(3, 3), stride=2, padding=1),
        Node("conv2d", ("p",), ("b",), layer="one", padding=1, residual="p", activation="relu"),
        Node("add", ("p", "b"), ("c",)),
        Node("concat", ("c", "b"), ("d",)),
        Node("conv2d", ("d",), ("e",), layer="double", activation=("hardtanh", -1.0, 1.0)),
        Node("conv2d", ("c",), ("f",), layer="one", residual="e", padding=(1, 1)),
        Node("conv2d", ("f",), ("y",), layer="one"),
        Node("global_avg_pool", ("f",), ("z",)),
    ]
    layers = {
        "first": layer(rng, IMAGE, (40, 3, 3, 3)), "one": layer(rng, MIXED, (40, 3, 3, 40)), "double": layer(rng, DOUBLE, (40, 1, 1, 80)),
    }  # fmt: skip
    return Network(nodes, layers, {"x": None, **tensors, "z": None}, outputs=("y", "z"))


def joined_names(net: Network, x: np.ndarray) -> set[str]:
    return set(net._program([x])._joined)


@pytest.mark.parametrize("tier", TIERS)
def test_tensors_of_a_network(tier, rng):
    """The same bits as the reference tier, which knows one way only; and as without joining. The convolution before "p" pools "a"."""
    net, x = graph(), rng.normal(size=(2, 9, 9, 3)).astype(F32)
    with isa.use("reference"):
        expected = net(x)
        assert joined_names(net, x) == set()
    for family, names in (("joined", {"p", "c", "d", "f"}), ("dot", set())):
        for threads in (1, 3):
            with isa.use(tier), planner.use(family), cases.threads(threads):
                y, z = net(x)
                assert joined_names(net, x) == names
                cases.assert_same(y, expected[0], family)
                cases.assert_same_bits(z, expected[1], family)


@pytest.mark.parametrize("tier", TIERS)
def test_the_profile_names_the_kernel_that_runs(tier, rng):
    net, x = graph(), rng.normal(size=(2, 9, 9, 3)).astype(F32)
    with isa.use(tier), planner.use("joined"):
        kernels = [row.kernel.split(".")[1] for row in net.explain(x).rows if row.kernel]
        assert kernels == ["dot", "joined", "joined", "joined", "joined"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_layers_read_joined_codes(tier, rng, stride):
    """Each group is a channel of one segment or the other; a convolution reads the same tensor."""
    layers = {
        "first": layer(rng, IMAGE, (40, 1, 1, 3)),
        "deep": layer(rng, MIXED, (40, 3, 3, 1)),
        "one": layer(rng, MIXED, (8, 40)),
    }
    image, mixed = Codes(cases.package_plan(IMAGE), F32(1)), Codes(cases.package_plan(MIXED), F32(0.5))
    tensors = {"x": image, "a": mixed, "b": mixed, "y": None, "z": None}
    nodes = [
        Node("conv2d", ("x",), ("a",), layer="first"),
        Node("conv2d", ("a",), ("b",), layer="deep", padding=1, stride=stride, activation="relu6"),
        Node("conv2d", ("b",), ("y",), layer="one"),
        Node("conv2d", ("a",), ("z",), layer="one"),
    ]
    net = Network(nodes, layers, tensors, outputs=("y", "z"))
    images = cases.x_codes(rng, (2, 7, 9, 3), IMAGE)
    with isa.use("reference"):
        expected = net(images)
    with isa.use(tier), planner.use("joined"):
        found = net(images)
        assert joined_names(net, Activations.from_codes(images, *image)) == {"a", "b"}
        assert "depthwise" in net.explain(images).rows[1].kernel
    for got, right in zip(found, expected, strict=True):
        cases.assert_same_bits(got, right)


@pytest.mark.parametrize("tier", TIERS)
def test_readers_must_agree(tier, rng):
    """Two layers with other grids of the weights read one tensor: their activations would be joined in two ways."""
    other = Layout(MIXED.segment, ((Grid("bipolar", 2), Grid("bipolar", 1)), (Grid("bipolar", 4), Grid("bipolar", 4))))
    layers = {
        "first": layer(rng, IMAGE, (40, 1, 1, 3)),
        "one": layer(rng, MIXED, (8, 40)),
        "two": layer(rng, other, (8, 40)),
    }
    tensors = {
        "x": Codes(cases.package_plan(IMAGE), F32(1)),
        "a": Codes(cases.package_plan(MIXED), F32(0.5)),
        "y": None,
        "z": None,
    }
    nodes = [
        Node("conv2d", ("x",), ("a",), layer="first"),
        Node("conv2d", ("a",), ("y",), layer="one"),
        Node("conv2d", ("a",), ("z",), layer="two"),
    ]  # fmt: skip
    images = cases.x_codes(rng, (1, 4, 4, 3), IMAGE)
    for last, names in ((3, set()), (2, {"a"})):
        net = network.Network(nodes[:last], layers, tensors, outputs=("y", "z")[: last - 1])
        with isa.use("reference"):
            expected = net(images)
        with isa.use(tier), planner.use("joined"):
            found = net(images)
            assert set(net._program(net._values([images]))._joined) == names
        for got, right in zip(found if last == 3 else [found], expected if last == 3 else [expected], strict=True):
            cases.assert_same_bits(got, right)
