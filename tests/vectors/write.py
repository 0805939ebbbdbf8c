"""Writes the cases that runner.cpp checks a tier's kernels with: operands and what the oracle makes of them, in one file.

Only the oracle and NumPy are used, so a C++ program without Python (emulated, or built with sanitizers) is held to the same
definitions as the package. Stored orders, streams and positions are made here from their description in csrc/format.h.

    file    "SONIQVEC", cases, one byte 0          a case is its kind (a byte), its name, and its fields in the runner's order
    number  int32 or float32, little-endian
    array   a byte, the size in bytes (uint64), then 0: the bytes, or 1: runs of (count uint32, byte)
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import oracle
from oracle import Epilogue, Grid, Layout, values_near

F32 = np.float32
END, LAYER, QUANTIZE, SCALES, FINITE, COMBINE, POOL = range(7)
WIDTHS = [(w_bits, a_bits) for w_bits in range(1, 9) for a_bits in range(1, 9)]
ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}
HARDTANH = 3


# ---- the file -----------------------------------------------------------------------------------------------------------


class Writer:
    """Appends numbers, names and arrays to a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def kind(self, kind: int, name: str) -> None:
        """The head of a case."""
        self.file.write(bytes([kind]))
        self.array(np.frombuffer(name.encode(), np.uint8))

    def ints(self, *values: int) -> None:
        """int32 numbers."""
        self.file.write(struct.pack(f"<{len(values)}i", *values))

    def floats(self, *values: float) -> None:
        """float32 numbers."""
        self.file.write(np.array(values, "<f4").tobytes())

    def array(self, values: Any, dtype: str = "u1") -> None:
        """An array of uint8, int32 or float32; None is an empty one. Runs where they are shorter."""
        data = b"" if values is None else np.ascontiguousarray(values, "<" + dtype).tobytes()
        packed = runs(data)
        encoding, content = (1, packed) if len(packed) < len(data) else (0, data)
        self.file.write(struct.pack("<BQ", encoding, len(data)) + content)


def runs(data: bytes) -> bytes:
    """The bytes as runs of (count uint32, byte)."""
    values = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] ^ 1)) if len(values) else np.zeros(0, int)
    counts = np.diff(starts, append=len(values))
    return np.rec.fromarrays([counts.astype("<u4"), values[starts]]).tobytes()


# ---- layers -------------------------------------------------------------------------------------------------------------


class Conv(NamedTuple):
    """The sizes of one convolution; padding is (top, bottom, left, right). A GEMM is a batch of 1x1 images."""

    size: tuple[int, int] = (1, 1)
    taps: tuple[int, int] = (1, 1)
    batch: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out_size(self) -> tuple[int, int]:
        """Output positions along both axes."""
        before_after = self.padding[:2], self.padding[2:]
        high, wide = (
            oracle.output_size(self.size[i], self.taps[i], self.stride[i], *before_after[i], self.dilation[i])
            for i in (0, 1)
        )
        return high, wide


Codes = tuple[np.ndarray, Layout, Any]  # codes, their layout, their scale


class Result(NamedTuple):
    """One way to finish a layer, in the words of csrc/layer.h, and the float32 values of which it writes what `to` says."""

    expected: np.ndarray
    a_scale: np.ndarray
    steps: Epilogue
    to: Destinations
    residual: Codes | None = None


class Destinations(NamedTuple):
    """Where values go: float32 or not, and codes of up to two tensors of these layouts and scales."""

    floats: bool = True
    codes: tuple[tuple[Layout, Any], ...] = ()


def stored_order(layout: Layout) -> np.ndarray:
    """Stored position -> original channel: the segments one after the other, each in its original order."""
    return np.argsort(layout.segment, kind="stable")


def grid_numbers(grid: Grid) -> tuple[int, int, int, int]:
    """(bits, alpha, beta, exponent): level = alpha * code + beta."""
    first, second = oracle.level(grid, 0), oracle.level(grid, 1)
    return grid.bits, second - first, first, oracle.exponent(grid)


def write_segments(out: Writer, w: np.ndarray, layout: Layout) -> None:
    """Grids, where each group's channels begin, and the stream of weight codes, segment by segment."""
    groups = layout.channels // w.shape[-1]
    segments = np.reshape(layout.segment, (groups, -1))
    out.ints(len(layout.used))
    for s in layout.used:
        for grid in layout.pairs[s]:
            out.ints(*grid_numbers(grid))
        out.array(np.concatenate([[0], np.cumsum((segments == s).sum(axis=1))]), "i4")
        parts = zip(np.split(w, groups), segments, strict=True)
        out.array(np.concatenate([part[..., mine == s].ravel() for part, mine in parts]))


def write_layer(out: Writer, name: str, x: np.ndarray, w: np.ndarray, layout: Layout, conv: Conv, **more: Any) -> None:
    """A layer case. x NHWC, w OHWI codes; `more` holds acc (the expected integers), batches and results."""
    acc, results = more["acc"], more.get("results", [])
    out.kind(LAYER, name)
    out.ints(w.shape[0], layout.channels // w.shape[-1], *conv.taps, layout.channels)
    write_segments(out, w, layout)
    write_geometry(out, conv)
    out.array(x[..., stored_order(layout)])
    out.array(more.get("batches", sorted({1, conv.batch})), "i4")
    assert np.abs(acc).max(initial=0) <= oracle.INT32_MAX
    out.array(acc, "i4")
    out.ints(len(results))
    for result in results:
        write_result(out, result, w.shape[0], conv)


def write_geometry(out: Writer, conv: Conv) -> None:
    """Geometry of csrc/format.h."""
    out.ints(conv.batch, *conv.size, *conv.out_size(), *conv.stride, conv.padding[0], conv.padding[2], *conv.dilation)


def write_result(out: Writer, result: Result, outputs: int, conv: Conv) -> None:
    """One result: its steps, then what it must give."""
    images, steps = conv.out_size()[0] * conv.out_size()[1], result.steps
    rows = conv.batch * images
    out.array(result.a_scale, "f4")
    out.ints(rows if result.a_scale.size == 1 else images)
    out.array(steps.w_scale, "f4")
    out.array(steps.bias, "f4")
    out.array(None if result.residual else steps.residual, "f4")
    write_codes(out, result.residual, rows)
    write_activation(out, steps.activation)
    out.array(steps.post_scale, "f4")
    out.array(steps.post_bias, "f4")
    write_destinations(out, result.expected, result.to)


def write_activation(out: Writer, activation: Any) -> None:
    """Its number, low and high."""
    hardtanh = isinstance(activation, tuple)
    out.ints(HARDTANH if hardtanh else ACTIVATIONS[activation])
    out.floats(*(activation[1:] if hardtanh else (0, 0)))


def write_format(out: Writer, layout: Layout, scale: Any) -> None:
    """A tensor's segments, what a code of each means and how one is made, and its scale."""
    out.array(np.array([layout.used.index(s) for s in layout.segment]))
    out.ints(len(layout.used))
    for s in layout.used:
        grid = layout.pairs[s][1]
        _, alpha, beta, power = grid_numbers(grid)
        r, z = oracle.quantizer(grid, 1.0)  # at scale 1, r is the power of two that is divided by the scale
        out.floats(alpha, beta, 2.0**power, r, z, oracle.cmax(grid))
    out.floats(scale)


def write_codes(out: Writer, tensor: Codes | None, rows: int) -> None:
    """Codes in stored order, empty where there are none; else their format, scales and the rows of each."""
    if tensor is None:
        out.array(None)
        return
    codes, layout, scale = tensor
    scales = np.atleast_1d(np.asarray(scale, F32))
    out.array(codes[..., stored_order(layout)])
    write_format(out, layout, 1)
    out.array(scales, "f4")
    out.ints(rows // scales.size)


def write_destinations(out: Writer, y: np.ndarray, to: Destinations) -> None:
    """float32 or nothing, and codes in stored order with their formats."""
    out.array(y if to.floats else None, "f4")
    out.ints(len(to.codes))
    for layout, scale in to.codes:
        write_format(out, layout, scale)
        codes = oracle.quantize_channels(y, layout.segment, oracle.a_grids(layout), scale)
        out.array(codes[..., stored_order(layout)])


# ---- operands -----------------------------------------------------------------------------------------------------------


def random_codes(rng: np.random.Generator, shape: Sequence[int], segment: Any, grids: Sequence[Grid]) -> np.ndarray:
    """Codes [..., C]; both ends of each grid's range appear more often than chance would have them."""
    tops = np.array([oracle.cmax(grid) for grid in grids])[np.asarray(segment)]
    codes, pick = rng.integers(0, tops + 1, size=shape), rng.random(shape)
    return np.where(pick < 0.1, 0, np.where(pick > 0.9, tops, codes)).astype(np.uint8)


def operands(rng: np.random.Generator, conv: Conv, outputs: int, layout: Layout, groups: int = 1):
    """Input codes NHWC and weight codes OHWI."""
    x = random_codes(rng, (conv.batch, *conv.size, layout.channels), layout.segment, oracle.a_grids(layout))
    segments = np.reshape(layout.segment, (groups, -1))
    shape = (outputs // groups, *conv.taps, layout.channels // groups)
    return x, np.concatenate([random_codes(rng, shape, part, oracle.w_grids(layout)) for part in segments])


def integers(x: np.ndarray, w: np.ndarray, layout: Layout, conv: Conv) -> np.ndarray:
    """The oracle's accumulators, NHWC."""
    return oracle.conv2d(x, w, layout, conv.stride, conv.padding, conv.dilation)


def sums_layout(channels: int, w_bits: int, a_bits: int) -> Layout:
    """Unsigned grids on both sides: level = code, so the accumulators are S itself."""
    return oracle.uniform(channels, Grid("unsigned", w_bits), Grid("unsigned", a_bits))


def random_layer(
    out: Writer, name: str, rng, layout: Layout, outputs: int, conv: Conv, groups: int = 1, **more
) -> None:
    """A layer case of random operands."""
    x, w = operands(rng, conv, outputs, layout, groups)
    write_layer(out, name, x, w, layout, conv, acc=integers(x, w, layout, conv), **more)


# ---- GEMM: every pair of widths -----------------------------------------------------------------------------------------

ROWS = [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65]
OUTPUTS_AND_K = [(1, 1), (2, 1), (3, 2), (5, 3), (7, 33), (9, 64), (17, 63), (33, 65), (31, 129)]
LONG = [(3, 511), (9, 512), (5, 513), (2, 1025)]  # about the end of a block of 512 codes


def write_sums(out: Writer) -> None:
    """S of every pair of widths and shape; fewer rows are the first of the most."""
    for bits in WIDTHS:
        rng = np.random.default_rng(bits)
        for rows, shapes in [(ROWS, OUTPUTS_AND_K), ([1, 13], LONG)]:
            for n, k in shapes:
                name = f"sums of {bits}, N {n}, K {k}"
                random_layer(out, name, rng, sums_layout(k, *bits), n, Conv(batch=max(rows)), batches=rows)


def write_two_segments(out: Writer) -> None:
    """Every pair of widths beside another one: one channel, many, and across the end of a block."""
    for bits in WIDTHS:
        rng = np.random.default_rng(bits)
        other = (Grid("unsigned", 4), Grid("unsigned", 4)) if bits != (4, 4) else (Grid("unsigned", 2),) * 2
        pairs = ((Grid("unsigned", bits[0]), Grid("unsigned", bits[1])), other)
        for m, n, k, own in [(1, 17, 66, 1), (7, 33, 66, 65), (5, 3, 700, 600), (11, 7, 131, 64)]:
            for pair in (pairs, pairs[::-1]):
                layout = Layout(tuple(int(s) for s in rng.permutation(k) >= own), pair)
                random_layer(out, f"two segments {bits}, {own} of K {k}", rng, layout, n, Conv(batch=m))


def write_blocks(out: Writer) -> None:
    """More rows than one block of gathered rows takes: because there are many, and because K is long."""
    pairs = ((Grid("unsigned", 2), Grid("unsigned", 4)), (Grid("unsigned", 7), Grid("unsigned", 8)))
    rng = np.random.default_rng(2)
    for m, n, k in [(401, 33, 40), (61, 9, 20_000)]:
        layout = Layout(tuple(int(s) for s in rng.integers(0, 2, k)), pairs)
        random_layer(out, f"blocks, M {m}, K {k}", rng, layout, n, Conv(batch=m), batches=[m])


def extreme_codes(rows: int, k: int, grid: Grid) -> np.ndarray:
    """Rows of all-max and all-min codes in turn."""
    codes = np.zeros((rows, 1, 1, k), np.uint8)
    codes[::2] = oracle.cmax(grid)
    return codes


def write_extremes(out: Writer) -> None:
    """All-max against all-max, all-min against all-max: the largest K there is, or one that is handy."""
    for w_bits, a_bits in WIDTHS:
        for kind in ("unsigned", "bipolar"):
            w_grid, a_grid = Grid(kind, w_bits), Grid(kind, a_bits)
            k = min(oracle.largest_k(w_grid, a_grid), 70_001)
            x, w = extreme_codes(3, k, a_grid), extreme_codes(2, k, w_grid)
            acc = k * oracle.matmul(x[..., :1], w[:, 0, 0, :1], oracle.uniform(1, w_grid, a_grid))
            layout = oracle.uniform(k, w_grid, a_grid)
            write_layer(out, f"extremes of {w_grid} and {a_grid}", x, w, layout, Conv(batch=3), acc=acc)


def write_extremes_of_two_segments(out: Writer) -> None:
    """{1, 8} bits: 16,384 * K_low + 65,025 * K_high fills int32 from both segments."""
    pairs = tuple((Grid("bipolar", p), Grid("bipolar", p)) for p in (1, 8))
    high = 20_000
    layout = Layout((1,) * high + (0,) * ((oracle.INT32_MAX - 65_025 * high) // 16_384), pairs)
    top = np.array([1, 255], np.uint8)[list(layout.segment)].reshape(1, 1, 1, -1)
    x = np.concatenate([top, 0 * top, top])
    acc = oracle.bound(layout) * np.array([[1, -1], [-1, 1], [1, -1]])
    write_layer(out, "extremes of two segments", x, x[:2], layout, Conv(batch=3), acc=acc)


# ---- GEMM: grids, offsets, shifts, segments -----------------------------------------------------------------------------


def random_grid(rng: random.Random) -> Grid:
    """Any kind and width; most are moved by an offset and a shift."""
    kind = rng.choice(["bipolar", "unsigned", "signed", "ternary"])
    bits = {"ternary": 2, "signed": rng.randint(2, 8)}.get(kind, rng.randint(1, 8))
    return Grid(kind, bits, rng.choice([0, 0, 6, -9, 1023, -1023]), rng.choice([0, 0, 1, -2, 3]))


def random_layout(rng: random.Random, channels: int) -> Layout:
    """One or two segments; one may have a single channel. The bound on the sums is kept for up to 9 taps."""
    while True:
        pairs = tuple((random_grid(rng), random_grid(rng)) for _ in range(2))
        own = rng.choice([0, 1, channels // 2, channels - 1, channels])
        segment = [0] * own + [1] * (channels - own)
        rng.shuffle(segment)
        layout = Layout(tuple(segment), pairs)
        if oracle.bound(layout, taps=9) <= oracle.INT32_MAX:
            return layout


def write_grids(out: Writer) -> None:
    """Random layouts: kinds, widths, offsets, shifts and segments together."""
    choose, rng = random.Random(3), np.random.default_rng(3)
    for i in range(300):
        layout = random_layout(choose, choose.choice([1, 2, 19, 64, 67]))
        m, n = choose.choice([1, 2, 5, 17]), choose.choice([1, 3, 16, 33])
        random_layer(out, f"grids {i}: {[layout.pairs[s] for s in layout.used]}", rng, layout, n, Conv(batch=m))


# ---- convolution --------------------------------------------------------------------------------------------------------

# (sizes, inputs, outputs, groups)
CONVOLUTIONS = {
    "1x1": (Conv((5, 7), batch=2), 33, 17, 1),
    "1x1 strided": (Conv((5, 6), stride=(2, 3)), 8, 5, 1),
    "1x1 padded": (Conv((3, 2), padding=(1, 0, 2, 1)), 5, 4, 1),
    "3x3 same": (Conv((6, 5), (3, 3), 2, padding=(1, 1, 1, 1)), 16, 16, 1),
    "3x3 valid": (Conv((7, 9), (3, 3)), 3, 7, 1),
    "3x3 stride 2": (Conv((7, 8), (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)), 5, 33, 1),
    "3x3 across a block": (Conv((3, 4), (3, 3), padding=(1, 1, 1, 1)), 65, 9, 1),
    "asymmetric padding": (Conv((4, 5), (3, 2), padding=(0, 2, 3, 1)), 7, 3, 1),
    "dilated": (Conv((8, 7), (3, 3), padding=(2, 2, 3, 3), dilation=(2, 3)), 4, 5, 1),
    "rows in padding only": (Conv((2, 3), (3, 3), padding=(5, 4, 4, 6)), 5, 4, 1),
    "dilation beyond the input": (Conv((3, 3), (3, 3), padding=(4, 4, 4, 4), dilation=(4, 4)), 5, 4, 1),
    "7x7": (Conv((9, 8), (7, 7), stride=(2, 2), padding=(3, 3, 3, 3)), 3, 9, 1),
    "7x7, stride 3": (Conv((11, 8), (7, 7), stride=(3, 2), padding=(3, 3, 3, 2)), 3, 9, 1),
    "3x3, eight channels": (Conv((5, 7), (3, 3), padding=(1, 1, 1, 1)), 8, 9, 1),
    "7x7 on a smaller input": (Conv((3, 5), (7, 7), padding=(3, 3, 3, 3)), 2, 3, 1),
    "1x7": (Conv((3, 9), (1, 7), padding=(0, 0, 3, 3)), 6, 5, 1),
    "groups": (Conv((5, 5), (3, 3), 2, padding=(1, 1, 1, 1)), 12, 18, 3),
    "grouped 1x1": (Conv((3, 4)), 10, 4, 2),
    "one channel a group": (Conv((4, 3), (3, 3), padding=(1, 1, 1, 1)), 6, 12, 6),
    "depthwise": (Conv((6, 7), (3, 3), 2, padding=(1, 1, 1, 1)), 35, 35, 35),
    "depthwise strided": (Conv((7, 5), (5, 5), stride=(2, 1), padding=(2, 1, 3, 2), dilation=(1, 2)), 19, 19, 19),
    "depthwise, wide": (Conv((9, 11), (3, 3), padding=(1, 1, 1, 1)), 131, 131, 131),
    "depthwise, wide and strided": (Conv((5, 8), (3, 3), stride=(2, 2), padding=(0, 1, 1, 2)), 67, 67, 67),
    "depthwise, wide 5x5": (Conv((7, 6), (5, 5), padding=(2, 2, 2, 2)), 70, 70, 70),
    "depthwise, 7x7 on a smaller input": (Conv((3, 2), (7, 7), padding=(3, 3, 3, 3)), 33, 33, 33),
    "depthwise, one row of the kernel": (Conv((6, 5), (1, 3), padding=(0, 0, 1, 1)), 40, 40, 40),
    "one pixel": (Conv(), 1, 1, 1),
}


def write_convolutions(out: Writer) -> None:
    """Every geometry with S of some widths, all widths over all geometries, and with layouts that padding could leak into."""
    choose, rng = random.Random(4), np.random.default_rng(4)
    for i, (name, (conv, inputs, outputs, groups)) in enumerate(CONVOLUTIONS.items()):
        for bits in WIDTHS[i % 4 :: 4]:
            layout = sums_layout(inputs, *bits)
            random_layer(out, f"{name}, sums of {bits}", rng, layout, outputs, conv, groups)
        for _ in range(6):
            layout = random_layout(choose, inputs)
            random_layer(out, f"{name}, {layout}", rng, layout, outputs, conv, groups)


# Without groups and dilation along lines: layers may prepare each pixel once, if its channels fill what it is padded to.
SHARED_PIXELS = [
    (Conv((6, 5), (3, 3), 2, padding=(1, 1, 1, 1)), 64, 33),
    (Conv((9, 8), (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)), 128, 17),
    (Conv((5, 23), (1, 5), padding=(0, 0, 2, 2)), 64, 70),
    (Conv((9, 4), (5, 2), padding=(0, 3, 1, 0), dilation=(2, 1)), 96, 9),
    (Conv((4, 7), (2, 3), stride=(1, 3), padding=(0, 1, 2, 2)), 320, 5),
    (Conv((4, 3), (3, 3), padding=(1, 1, 0, 0)), 64, 40),  # lines of one position
    (Conv((13, 9), (3, 3), padding=(1, 1, 1, 1)), 32, 40),  # tiles of 2 x 2 outputs
]


def write_shared_pixels(out: Writer) -> None:
    """S of all widths over these geometries, and layouts whose padding must count for nothing."""
    choose, rng = random.Random(9), np.random.default_rng(9)
    for i, (conv, inputs, outputs) in enumerate(SHARED_PIXELS):
        for bits in WIDTHS[i % 2 :: 2]:
            random_layer(out, f"{conv}, sums of {bits}", rng, sums_layout(inputs, *bits), outputs, conv)
        for _ in range(4):
            layout = random_layout(choose, inputs)
            random_layer(out, f"{conv}, {[layout.pairs[s] for s in layout.used]}", rng, layout, outputs, conv)


def write_uneven_groups(out: Writer) -> None:
    """Groups that have no channel, or one, of a segment."""
    rng = np.random.default_rng(5)
    pairs = ((Grid("bipolar", 2), Grid("unsigned", 4)), (Grid("signed", 8, 1), Grid("bipolar", 8, 3)))
    for segment in [(0, 0, 0, 1, 1, 1), (0, 0, 0, 0, 0, 1), (1, 1, 1, 1, 0, 1), (0, 1, 1, 0, 0, 0)]:
        for conv in (Conv(batch=5), Conv((3, 4), (3, 3), padding=(1, 1, 1, 1))):
            for groups, outputs in [(2, 6), (3, 9), (6, 6), (6, 12)]:
                layout = Layout(segment, pairs)
                random_layer(out, f"{groups} groups of {segment}", rng, layout, outputs, conv, groups)


# ---- float32 results and codes ------------------------------------------------------------------------------------------

LAYERS = [
    ((Grid("bipolar", 2), Grid("unsigned", 4)),),
    ((Grid("signed", 4, 3, -1), Grid("bipolar", 3, -2, 2)),),
    ((Grid("bipolar", 1), Grid("bipolar", 2)), (Grid("bipolar", 4), Grid("unsigned", 8, 5))),
]
TENSORS = [
    (Grid("bipolar", 4),),
    (Grid("unsigned", 8, -3, 1),),
    (Grid("signed", 5, 2),),
    (Grid("ternary", 2, 0, -1),),
    (Grid("bipolar", 2, 1), Grid("unsigned", 6, 0, -2)),
]
MAGNITUDES = [1.0, 1.0, 2.0**-88, 2.0**98]  # ordinary outputs, denormal ones, ones that overflow


def spread(channels: int, pairs: Sequence[tuple[Grid, Grid]], rng: np.random.Generator) -> Layout:
    """Channels over the pairs in no simple pattern."""
    return Layout(tuple(int(s) for s in rng.integers(0, len(pairs), channels)), tuple(pairs))


def tensor(channels: int, grids: Sequence[Grid], rng: np.random.Generator) -> Layout:
    """The layout of an output or residual tensor; its weight half means nothing."""
    return spread(channels, [(Grid("bipolar", 1 + i), grid) for i, grid in enumerate(grids)], rng)


def random_steps(choose: random.Random, rng: np.random.Generator, shape: Sequence[int]):
    """(the steps, the residual's codes if it comes as codes) of one result of this shape."""
    n = shape[-1]
    w_scale = (rng.normal(size=n) * 0.05 * choose.choice(MAGNITUDES)).astype(F32)
    w_scale[rng.random(n) < 0.05] = 0
    maybe = lambda size: (rng.normal(size=n) * size).astype(F32) if choose.random() < 0.5 else None  # noqa: E731
    kind = choose.choice(["none", "float", "codes"])
    residual = codes = None
    if kind == "float":
        residual = values_near(rng, shape, 0.5)
        residual[rng.random(shape) < 0.02] = choose.choice([np.inf, -np.inf, np.nan])
    if kind == "codes":
        layout = tensor(n, choose.choice(TENSORS), rng)
        scale = F32(0.11) if choose.random() < 0.5 else rng.uniform(0.05, 0.5, shape[0]).astype(F32)
        codes = (random_codes(rng, shape, layout.segment, oracle.a_grids(layout)), layout, scale)
        per_image = np.reshape(scale, (-1,) + (1,) * (len(shape) - 1))
        residual = oracle.dequantize(codes[0], layout.segment, oracle.a_grids(layout), per_image)
    activation = choose.choice([None, "relu", "relu6", ("hardtanh", -0.3, 0.7)])
    steps = Epilogue(w_scale, maybe(1.0), residual, activation, maybe(0.5), maybe(2.0))
    return steps, codes


def random_result(choose: random.Random, rng, acc: np.ndarray, layout: Layout) -> Result:
    """One result of these accumulators, with random steps."""
    steps, residual = random_steps(choose, rng, acc.shape)
    unit = oracle.total_exponent(layout)
    a_scale = np.atleast_1d(F32(choose.choice([0.3, 2.0**-45, 2.0**60])))
    if choose.random() < 0.4:
        a_scale = rng.uniform(0.05, 2, acc.shape[0]).astype(F32)
    per_image = a_scale.reshape((-1,) + (1,) * (acc.ndim - 1))
    expected = oracle.epilogue(acc, per_image, unit, steps)
    to = destinations(choose, rng, acc.shape[-1])
    return Result(expected, oracle.times_power_of_two(a_scale, unit), steps, to, residual)


def destinations(choose: random.Random, rng: np.random.Generator, channels: int) -> Destinations:
    """float32 alone, or codes of one or two tensors, or both."""
    count = choose.choice([0, 0, 1, 1, 2])
    codes = tuple((tensor(channels, choose.choice(TENSORS), rng), F32(0.21 + i)) for i in range(count))
    return Destinations(count == 0 or choose.random() < 0.3, codes)


def write_results(out: Writer) -> None:
    """GEMM, convolution, groups and depthwise, each finished in many ways."""
    choose, rng = random.Random(6), np.random.default_rng(6)
    pad = (1, 1, 1, 1)
    for n in (1, 2, 15, 16, 33, 70):
        for pairs in LAYERS:
            for conv, inputs, groups in [
                (Conv(batch=7), 19, 1),
                (Conv((3, 2), (3, 3), 2, padding=pad), 5, 1),
                (Conv((3, 3), (3, 3), 2, padding=pad), n, n),
            ]:
                layout = spread(inputs, pairs, rng)
                x, w = operands(rng, conv, n, layout, groups)
                acc = integers(x, w, layout, conv)
                results = [random_result(choose, rng, acc, layout) for _ in range(6)]
                write_layer(out, f"results, N {n}, {pairs}", x, w, layout, conv, acc=acc, results=results)


# ---- between layers -----------------------------------------------------------------------------------------------------

PARTS_OF_ROWS = [(1,), (2,), (5, 3), (8,), (7, 33), (16,), (31,), (32, 9), (65,), (255,), (256,), (100, 1, 300)]


def random_tensor(choose: random.Random, rng: np.random.Generator, shape: Sequence[int], scales: int) -> Codes:
    """Random codes with so many scales."""
    layout = tensor(shape[-1], choose.choice(TENSORS), rng)
    scale = F32(0.11) if scales == 1 else rng.uniform(0.05, 2, scales).astype(F32)
    return random_codes(rng, shape, layout.segment, oracle.a_grids(layout)), layout, scale


def values_of(codes: Codes) -> np.ndarray:
    """float32 values of rows of codes."""
    grids = oracle.a_grids(codes[1])
    return oracle.dequantize(codes[0], codes[1].segment, grids, np.reshape(codes[2], (-1, 1)))


def write_combine(out: Writer) -> None:
    """Sums of two tensors, or one, written side by side as channels of one result: add, requantize, concat."""
    choose, rng = random.Random(9), np.random.default_rng(9)
    for widths in PARTS_OF_ROWS:
        for operands_ in ("a", "ab", "ax", "x"):
            for rows in (1, 70):
                parts, y = [], []
                for width in widths:
                    a, b = (
                        random_tensor(choose, rng, (rows, width), choose.choice([1, rows]))
                        if name in operands_
                        else None
                        for name in "ab"
                    )
                    x = values_near(rng, (rows, width), 0.5) if "x" in operands_ else None
                    terms = [values_of(t) for t in (a, b) if t is not None] + ([] if x is None else [x])
                    parts.append((a, b, x))
                    y.append(sum(terms[1:], terms[0]))
                activation = choose.choice([None, "relu", "relu6", ("hardtanh", -0.3, 0.7)])
                values = oracle.activate(np.concatenate(y, -1), activation)
                out.kind(COMBINE, f"combine {operands_} of {widths}, {rows} rows")
                out.ints(rows, len(parts))
                for (a, b, x), width in zip(parts, widths, strict=True):
                    out.ints(width)
                    write_codes(out, a, rows)
                    write_codes(out, b, rows)
                    out.array(x, "f4")
                write_activation(out, activation)
                write_destinations(out, values, destinations(choose, rng, sum(widths)))


def write_pools(out: Writer) -> None:
    """Largest codes with padding, means without."""
    choose, rng = random.Random(10), np.random.default_rng(10)
    for channels in (1, 5, 16, 31, 32, 33, 64, 95, 130):
        for kernel, stride, pad in [((3, 3), (2, 2), 1), ((2, 2), (2, 2), 0), ((3, 2), (1, 3), 0), ((5, 5), (1, 1), 0)]:
            conv = Conv((5, 6), kernel, 2, stride, (pad,) * 4)
            x = random_tensor(choose, rng, (2, 5, 6, channels), choose.choice([1, 2]))
            out.kind(POOL, f"pool {kernel} of {channels} channels")
            write_geometry(out, conv)
            out.ints(*kernel, channels)
            write_codes(out, x, conv.batch)
            out.array(oracle.max_pool(x[0], kernel, stride, conv.padding)[..., stored_order(x[1])])
            whole = conv._replace(padding=(0,) * 4)
            write_geometry(out, whole)
            means = oracle.avg_pool(x[0], x[1].segment, oracle.a_grids(x[1]), x[2], kernel, stride)
            write_destinations(out, means, destinations(choose, rng, channels))


# ---- quantize -----------------------------------------------------------------------------------------------------------

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 257]
SCALES_OF_TENSORS = [1.0, 0.37, 3.3, 2.0**-100, 2.0**-60, 2.0**100]
NOT_FINITE = np.array([np.nan, np.inf, -np.inf], F32)


def boundaries(grid: Grid, scale: float) -> np.ndarray:
    """The inputs where the code changes, and their neighbours on both sides."""
    r, z = oracle.quantizer(grid, scale)
    with np.errstate(all="ignore"):
        edges = ((np.arange(oracle.cmax(grid) + 3) - 1 - float(z)) / float(r)).astype(F32)
    edges = np.where(np.isfinite(edges), edges, F32(0))
    return np.concatenate([np.nextafter(edges, F32(-np.inf)), edges, np.nextafter(edges, F32(np.inf))])


def write_quantize_case(out: Writer, name: str, x: np.ndarray, layout: Layout, scale: np.ndarray) -> None:
    """Rows [R, C] with one scale, or one a row."""
    rows, channels = x.shape
    expected = oracle.quantize_channels(x, layout.segment, oracle.a_grids(layout), scale.reshape(-1, 1))
    order = stored_order(layout)
    out.kind(QUANTIZE, name)
    out.ints(rows, channels)
    out.array(x, "f4")
    out.array(order if len(layout.used) > 1 else None, "i4")
    out.ints(len(layout.used))
    first = 0
    for s in layout.used:
        grid = layout.pairs[s][1]
        r, z = oracle.quantizer(grid, 1.0)  # at scale 1, r is the power of two that is divided by the scale
        count = layout.segment.count(s)
        out.ints(first, count)
        out.floats(r, z, oracle.cmax(grid))
        first += count
    out.array(scale, "f4")
    out.ints(1 if scale.size > 1 else rows)
    out.array(expected[:, order])


def write_quantize(out: Writer) -> None:
    """Every grid, moved and unmoved, ordinary and extreme scales, every kind of tail; boundaries; two segments; row scales."""
    rng = np.random.default_rng(7)
    kinds = [("bipolar", 1), ("unsigned", 1), ("signed", 2)]
    grids = [Grid(kind, bits) for kind, least in kinds for bits in range(least, 9)] + [Grid("ternary", 2)]
    moves = [(0, 0), (5, 1), (-7, -2), (1023, 6), (-1023, -6)]
    for base in grids:
        for i, size in enumerate(SIZES):
            grid, scale = base._replace(offset=moves[i % 5][0], shift=moves[i % 5][1]), SCALES_OF_TENSORS[i % 6]
            x = values_near(rng, (3, size), scale)
            x = np.where(rng.random(x.shape) < 0.05, rng.choice(NOT_FINITE, x.shape), x)
            uniform = oracle.uniform(size, Grid("bipolar", 1), grid)
            write_quantize_case(out, f"quantize {grid}, {size} at {scale}", x, uniform, np.array([scale], F32))
        for scale in (1.0, 0.37):
            x = boundaries(base, scale).reshape(1, -1)
            uniform = oracle.uniform(x.size, Grid("bipolar", 1), base)
            write_quantize_case(out, f"boundaries of {base} at {scale}", x, uniform, np.array([scale], F32))
    for size in (2, 3, 17, 64, 131):
        layout = tensor(size, TENSORS[-1], rng)
        for scale in (np.array([0.3], F32), rng.uniform(0.05, 2, 5).astype(F32)):
            write_quantize_case(out, f"two segments of {size}", values_near(rng, (5, size), 0.3), layout, scale)
    wide = oracle.uniform(9001, Grid("bipolar", 1), Grid("signed", 6))  # more than one thread's share
    write_quantize_case(out, "wide", values_near(rng, (4, 9001), 0.3), wide, rng.uniform(0.05, 2, 4).astype(F32))


def write_scales(out: Writer) -> None:
    """The per-row rule: zeros, NaN, infinities, denormals and tails."""
    rng = np.random.default_rng(8)
    for i, size in enumerate([*SIZES, 20_001]):
        grid = [Grid("bipolar", 4), Grid("unsigned", 8), Grid("signed", 5, 3, 1), Grid("ternary", 2)][i % 4]
        layout = oracle.uniform(size, Grid("bipolar", 1), grid)
        x = values_near(rng, (9, size), 0.7)
        x[1], x[2], x[3, 0], x[4, -1], x[5, -1] = 0, np.nan, np.nan, -np.inf, 1e30
        x[6] = np.where(np.arange(size) % 2, F32(1e-45), F32(-1e-40))
        largest = oracle.level(grid, oracle.cmax(grid)) * 2.0 ** oracle.exponent(grid)
        out.kind(SCALES, f"scales of {grid}, {size}")
        out.ints(*x.shape)
        out.array(x, "f4")
        out.floats(0.5 if grid.kind == "bipolar" else F32(1) / F32(largest))
        out.array(oracle.row_scale(x, layout, -1), "f4")


def write_finite(out: Writer) -> None:
    """One value that is not finite, at either end, or none; the largest finite values are finite."""
    for size in [*SIZES, 40_001]:
        for position in (0, size // 2, size - 1):
            for value in (*NOT_FINITE, np.finfo(F32).max):
                x = np.full(size, -np.finfo(F32).max, F32)
                x[position] = value
                out.kind(FINITE, f"finite {size}, {value} at {position}")
                out.array(x, "f4")
                out.ints(int(np.isfinite(x).all()))


PARTS = [
    write_sums,
    write_two_segments,
    write_blocks,
    write_extremes,
    write_extremes_of_two_segments,
    write_grids,
    write_convolutions,
    write_shared_pixels,
    write_uneven_groups,
    write_results,
    write_combine,
    write_pools,
    write_quantize,
    write_scales,
    write_finite,
]


def sources() -> Iterator[bytes]:
    """What the file depends on."""
    yield Path(__file__).read_bytes()
    yield Path(oracle.__file__).read_bytes()
    yield np.__version__.encode()


def write(path: Path) -> None:
    """All cases, into one file."""
    with path.open("wb") as file:
        out = Writer(file)
        file.write(b"SONIQVEC")
        for part in PARTS:
            part(out)
        file.write(bytes([END]))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
