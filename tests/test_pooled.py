"""Convolutions that write only what a max pooling behind them leaves: the same codes as one after the other, on every tier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cases
import oracle
from oracle import Epilogue, Grid
from soniq_kernels import _pooled, _programs, packing
from soniq_kernels.network import Network, Node
from soniq_kernels.tensors import Codes

F32 = np.float32
X_SCALE, Y_SCALES = F32(0.5), (F32(0.6), F32(0.9))
LOW, HIGH = (Grid("bipolar", 1), Grid("unsigned", 2)), (Grid("bipolar", 4), Grid("unsigned", 6))
EIGHT, FOUR = (Grid("bipolar", 8), Grid("unsigned", 8)), (Grid("bipolar", 4), Grid("bipolar", 4))

# kernel and padding of the convolution; kernel, stride and padding of the pooling; the image
GEOMETRIES: list[dict[str, Any]] = [
    {"conv": (3, 1), "pool": (2, 2, 0), "image": (12, 10)},
    {"conv": (3, 1), "pool": (3, 2, 1), "image": (11, 13)},
    {"conv": (5, 2), "pool": ((2, 1), (2, 1), 0), "image": (9, 70)},
    {"conv": (2, 0), "pool": (3, 1, 1), "image": (8, 8)},
    {"conv": (1, 0), "pool": (2, 2, 0), "image": (8, 8)},  # rows of a matrix: one after the other
]


class Pooled:
    """x -> convolution -> pooling of each tensor that it writes; scales of both signs."""

    def __init__(self, rng, channels: int, outputs: int, layout, sinks, geometry, activation="relu", stride=1):
        (size, padding), self.pool = geometry["conv"], geometry["pool"]
        self.layout, self.sinks, self.activation = layout, sinks, activation
        self.padding, self.stride = padding, stride
        self.w = cases.w_codes(rng, (outputs, size, size, channels), layout)
        self.scale, self.bias = rng.normal(size=(2, outputs)).astype(F32) * F32(0.1)
        self.scale[0] = 0
        shape = (2, *geometry["image"], channels)
        self.x = cases.random_codes(rng, shape, layout.segment, oracle.a_grids(layout))

    def network(self) -> Network:
        """All tensors that are pooled leave it as codes."""
        packed = packing.pack(self.w, cases.package_plan(self.layout), self.scale, self.bias, activation_scale=X_SCALE)
        kernel, stride, padding = self.pool
        names = [f"y{i}" for i in range(len(self.sinks))]
        nodes = [Node("conv2d", ("x",), tuple(names), layer="conv", activation=self.activation, padding=self.padding,
                      stride=self.stride)]  # fmt: skip
        nodes += [Node("max_pool2d", (n,), (f"p{n}",), kernel=kernel, stride=stride, padding=padding) for n in names]
        tensors: dict[str, Any] = {"x": Codes(cases.package_plan(self.layout), X_SCALE)}
        for name, sink, scale in zip(names, self.sinks, Y_SCALES, strict=False):
            tensors[name] = tensors[f"p{name}"] = Codes(cases.package_plan(sink), scale)
        return Network(nodes, {"conv": packed}, tensors, outputs=tuple(f"p{n}" for n in names))

    def expected(self) -> list[np.ndarray]:
        """Codes, each step from its definition."""
        acc = oracle.conv2d(self.x, self.w, self.layout, (self.stride,) * 2, (self.padding,) * 4)
        unit = oracle.total_exponent(self.layout)
        y = oracle.epilogue(acc, X_SCALE, unit, Epilogue(self.scale, self.bias, activation=self.activation))
        kernel, stride, padding = (v if isinstance(v, tuple) else (v, v) for v in self.pool)
        pads = (padding[0], padding[0], padding[1], padding[1])
        codes = [oracle.quantize_channels(y, s.segment, oracle.a_grids(s), scale)
                 for s, scale in zip(self.sinks, Y_SCALES, strict=False)]  # fmt: skip
        return [oracle.max_pool(c, kernel, stride, pads) for c in codes]

    def check(self, case: object = "") -> None:
        """All that leaves the network."""
        got = self.network()(self.x)
        for one, codes in zip(got if isinstance(got, tuple) else (got,), self.expected(), strict=True):
            np.testing.assert_array_equal(one, codes, str(case))


def mixed(channels: int) -> oracle.Layout:
    """Two segments in no simple pattern."""
    segment = np.random.default_rng(channels).integers(0, 2, channels)
    segment[0], segment[-1] = 0, 1
    return oracle.Layout(tuple(int(s) for s in segment), (LOW, HIGH))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("channels", "outputs"), [(3, 16), (16, 40), (64, 33)])
def test_one_segment(tier, rng, geometry, channels, outputs):
    """One tensor and two, of one and of two segments; 8 bits whose codes fill their bytes."""
    plain = oracle.uniform(outputs, *FOUR), oracle.uniform(outputs, *EIGHT)
    for layout in (oracle.uniform(channels, *EIGHT), oracle.uniform(channels, *LOW)):
        for sinks in (plain[:1], plain, (mixed(outputs), plain[1])):
            Pooled(rng, channels, outputs, layout, sinks, geometry).check((layout.pairs, sinks))


@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
@pytest.mark.parametrize("activation", [None, "relu6", ("hardtanh", -0.5, 0.5)])
def test_two_segments(tier, rng, geometry, activation):
    """Of weights and activations, with every activation function and a stride."""
    sinks = oracle.uniform(24, *FOUR), mixed(24)
    Pooled(rng, 20, 24, mixed(20), sinks, geometry, activation, stride=2).check(activation)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(rng, count):
    """Lines of windows are shared out."""
    with cases.threads(count):
        Pooled(rng, 16, 40, oracle.uniform(16, *FOUR), (oracle.uniform(40, *FOUR),), GEOMETRIES[1]).check(count)


def test_only_what_is_pooled_alone(rng):
    """A tensor that somebody else reads, or that leaves the network, is written whole."""
    pooled = Pooled(rng, 16, 24, oracle.uniform(16, *FOUR), (oracle.uniform(24, *FOUR),) * 2, GEOMETRIES[0])
    net = pooled.network()
    view = _pooled.pooled(net)
    assert [node.op for node in view.net.nodes] == ["conv2d"] and list(view.poolings) == ["py0"]
    assert "pooled" in str(net.explain(pooled.x))
    conv, *pools = net.nodes
    more = Node("requantize", ("y0",), ("z",))
    tensors = {**net.tensors, "z": net.tensors["y0"]}
    for nodes, outputs in [([conv, *pools, more], ("py0", "py1", "z")), ([conv, *pools], ("py0", "py1", "y1"))]:
        other = Network(nodes, net.layers, tensors, outputs=outputs)
        assert _pooled.pooled(other).poolings == {}
        for got, expected in zip(other(pooled.x)[:2], pooled.expected(), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_poolings_that_differ(rng):
    """Both tensors are written, and pooled by themselves."""
    pooled = Pooled(rng, 16, 24, oracle.uniform(16, *FOUR), (oracle.uniform(24, *FOUR),) * 2, GEOMETRIES[0])
    conv, first, second = pooled.network().nodes
    net = pooled.network()
    other = Network([conv, first, Node("max_pool2d", second.inputs, second.outputs, kernel=3)], net.layers, net.tensors,
                    outputs=net.outputs)  # fmt: skip
    assert _pooled.pooled(other).poolings == {}
    np.testing.assert_array_equal(other(pooled.x)[0], pooled.expected()[0])


def test_a_pooling_that_does_not_fit(rng):
    """The message names the pooling, not the convolution that would do it."""
    pooled = Pooled(rng, 16, 24, oracle.uniform(16, *FOUR), (oracle.uniform(24, *FOUR),),
                    {"conv": (3, 1), "pool": (2, 2, 2), "image": (6, 6)})  # fmt: skip
    with pytest.raises(ValueError, match=r"node 1 \(max_pool2d -> py0\).*padding must be less"):
        pooled.network()(pooled.x)


def test_steps(rng):
    """A step's shape and products are those of the convolution."""
    pooled = Pooled(rng, 16, 24, oracle.uniform(16, *FOUR), (oracle.uniform(24, *FOUR),), GEOMETRIES[0])
    program = _programs.Program(pooled.network(), [pooled.x.shape])
    (step,) = program.steps
    assert step.pools and step.shape == (2, 12, 10, 24) and step.products == 2 * 12 * 10 * 24 * 16 * 9
