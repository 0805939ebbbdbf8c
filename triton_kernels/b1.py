"""Linear layers on the tensor cores' one-bit instruction: AND and count on bit planes, for few bits or few rows.

The kernels are CUDA sources (`b1.cu`, `cuda_planes.cu`, where the layouts are drawn); here are the panels that they read,
the choice of a launch, and the layer. Nothing in this file touches a GPU: a `Device` (cuda.py; in the tests an emulator)
owns memory and launches. Integers and floats are those of the CPU, bit for bit.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from soniq_kernels.packing import PackedWeights, Plan

BLOCK = 512  # channels of one step
TILE_OUTPUTS, TILE_COLUMNS = 16, 8
WEIGHT_UNITS, COLUMN_UNITS = 64, 32  # of 16 bytes: a block of a tile of outputs, of a tile of columns
MOST_PASSES = 16
MOST_WORK = 4  # pairs of planes: the one-bit instruction does about four times the products of the int8 one

# {tiles of columns: tiles of outputs} of a warp: the forms of b1_gemv_<columns>.
GEMV_FORMS = {1: 1, 2: 1, 4: 2, 8: 2}
GEMV_WARPS = 8
GEMM_OUTPUTS, GEMM_STAGES, GEMM_THREADS = 128, 4, 128
SOURCES = {"float32": 0, "float16": 1, "bfloat16": 2, "uint8": 3}
ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "hardtanh": 3}


# ---- what kernels take by value: the structs of the CUDA sources -----------------------------------------------------------
def _struct(addresses: str, words: str, floats: str = "", **more: Any) -> np.dtype[Any]:
    """A struct of addresses, then uint32 numbers, then float32 numbers, then what is named."""
    fields = (
        [(n, "u8") for n in addresses.split()]
        + [(n, "u4") for n in words.split()]
        + [(n, "f4") for n in floats.split()]
    )
    return np.dtype([*fields, *more.items()], align=True)


_PASS = _struct("", "w w_stride x x_stride blocks share_blocks factor")
_OUTPUT = _struct(
    "acc y codes sums activation_scale vectors residual residual_codes residual_scale residual_steps residual_ints quantizers "
    "code_ints column_terms row_terms",
    "rows outputs row_parts rows_per_scale residual_stride rows_per_residual_scale residual_signed tensors codes_stride "
    "sums_stride has activation",
    "unit low high",
)
PRODUCT = np.dtype(
    [(name, "u8") for name in ("w", "x", "partial", "arrivals")]
    + [(name, "u4") for name in ("passes", "output_tiles", "column_tiles", "pack", "splits", "factor")]
    + [("pass", _PASS, MOST_PASSES), ("out", _OUTPUT)],
    align=True,
)  # fmt: skip
_SEGMENT = _struct("", "first channels blocks planes term_factor flip", "r_numerator z cmax")
PLANES_CALL = np.dtype(
    [(name, "u8") for name in ("x", "original", "scale", "planes", "row_terms")]
    + [(name, "u4") for name in ("rows", "channels", "x_stride", "source", "segments", "per_row")]
    + [("dynamic_factor", "f4")]
    + [(name, "u4") for name in ("pack", "group_tiles", "parts")]
    + [("segment", _SEGMENT, 2)],
    align=True,
)  # fmt: skip
# What changes from call to call is written over a copy of the rest; one instruction of Python each, since a call has to be short.
Output = namedtuple("Output", _OUTPUT.names, defaults=[0] * len(_OUTPUT.names))  # type: ignore[misc]
_pack_output = struct.Struct(
    "<" + "".join({"u8": "Q", "u4": "I", "f4": "f"}[_OUTPUT[n].str[1:]] for n in _OUTPUT.names)
).pack_into
_OUTPUT_AT = PRODUCT.fields["out"][1]
_pack_addresses = {count: struct.Struct(f"<{count}Q").pack_into for count in (4, 5)}


def _copy_of(call: NDArray[Any]) -> Any:
    """The bytes of a struct, for the call that writes the rest of them."""
    return (ctypes.c_char * call.nbytes).from_buffer_copy(call)


class Device(Protocol):
    """What owns memory and launches kernels. Arrays are the device's own kind, or the caller's (torch, CuPy)."""

    processors: int

    def put(self, array: NDArray[Any]) -> Any:
        """A copy on the device."""

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any = None) -> Any:
        """Uninitialised memory, an array of the same library as `like`."""

    def zeros(self, words: int, like: Any = None) -> Any:
        """int32 zeros, an array of the same library as `like`."""

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], str]:
        """(address, shape, dtype name) of a caller's contiguous array on this device, else TypeError or ValueError."""

    def address(self, array: Any) -> int:
        """Of an array that this device made."""

    def order_of_launches(self) -> int | None:
        """What launches follow each other in: the current stream. None while a CUDA graph records, which is replayed in any."""

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, shared: int, arguments: Any) -> None:
        """Runs a kernel of the CUDA sources on one struct, a ctypes array of its bytes, which is copied before this returns."""


# ---- weights -----------------------------------------------------------------------------------------------------------
class SegmentPanel(NamedTuple):
    """One segment: `base` in 16-byte units; `power` of two that its plane 0 counts in the sums."""

    w_bits: int
    a_bits: int
    channels: int
    blocks: int
    base: int
    power: int
    term_factor: int  # of the activations' sum of codes, modulo 2^32


class Panels(NamedTuple):
    """Weights as the kernels read them."""

    words: NDArray[np.uint32]
    segments: tuple[SegmentPanel, ...]
    column_terms: NDArray[np.uint32]  # [outputs]: what does not depend on the activations
    outputs: int

    @property
    def output_tiles(self) -> int:
        return -(-self.outputs // TILE_OUTPUTS)

    @property
    def planes(self) -> int:
        """Of the widest activations."""
        return max(s.a_bits for s in self.segments)

    @property
    def most_blocks(self) -> int:
        return max(s.blocks for s in self.segments)


def weight_panels(packed: PackedWeights) -> Panels:
    """The panels of a linear layer's packed weights (b1.cu draws them)."""
    if len(packed.shape) != 2:
        raise ValueError(f"packed has shape {packed.shape}, a convolution; b1 multiplies linear layers [N, K] only")
    codes = packed.codes()[:, packed.plan.permutation]
    words, segments, base = [], [], 0
    terms = np.zeros(codes.shape[0], np.int64)
    for first, s in zip(packed.plan.first_channels, packed.plan.segments, strict=True):
        mine = codes[:, first : first + s.channels]
        panel = _weight_words(mine, s.w.bits)
        up = s.exponent - packed.exponent
        sums = mine.sum(axis=1, dtype=np.int64)
        terms += (s.w.alpha * s.a.beta * sums + s.channels * s.w.beta * s.a.beta) << up
        power = up + (s.w.alpha * s.a.alpha).bit_length() - 1
        factor = (s.w.beta * s.a.alpha << up) % 2**32
        segments.append(SegmentPanel(s.w.bits, s.a.bits, s.channels, _blocks(s.channels), base, power, factor))
        words.append(panel.ravel())
        base += panel.size // 4
    return Panels(np.concatenate(words), tuple(segments), (terms % 2**32).astype(np.uint32), codes.shape[0])


def _blocks(channels: int) -> int:
    return -(-channels // BLOCK)


def _weight_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """uint32 [tile][plane, highest first][block][half][lane = g, t][b, upper or lower eight outputs]."""
    n, k = codes.shape
    tiles, blocks = -(-n // TILE_OUTPUTS), _blocks(k)
    padded = np.zeros((tiles * TILE_OUTPUTS, blocks * BLOCK), np.uint8)
    padded[:n, :k] = codes
    planes = []
    for bit in reversed(range(bits)):
        stream = np.packbits(padded >> bit & 1, axis=1, bitorder="little").view("<u4")
        # [tile, upper or lower, g, block, half, b, t] -> [tile, block, half, g, t, b, upper or lower]
        planes.append(stream.reshape(tiles, 2, 8, blocks, 2, 2, 4).transpose(0, 3, 4, 2, 6, 5, 1))
    return np.ascontiguousarray(np.stack(planes, axis=1)).astype(np.uint32, copy=False)


# ---- the choice of a launch ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Launch:
    """How a product of so many rows runs. `shares` of K are splits, times the warps of a gemv."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    pack: int
    group_tiles: int
    column_tiles: int
    splits: int
    shares: int
    tile_words: int

    @property
    def tiles(self) -> int:
        return self.grid[0] * self.grid[2]

    @property
    def tile_outputs(self) -> int:
        """128 of a gemm, 16 or 32 of a gemv."""
        gemv = self.kernel.removeprefix("b1_gemv_")
        return TILE_OUTPUTS * GEMV_FORMS[int(gemv)] if gemv != self.kernel else GEMM_OUTPUTS


def choose(panels: Panels, rows: int, processors: int, form: str | None = None, splits: int | None = None) -> Launch:
    """gemv while the planes of all rows fit eight tiles of columns, else gemm; `form` and `splits` force."""
    pack = 1 << (panels.planes - 1).bit_length()
    tiles = -(-rows * pack // TILE_COLUMNS)
    if form == "gemm" or (form is None and tiles > max(GEMV_FORMS)):
        return _gemm(panels, rows, processors, splits)
    return _gemv(panels, pack, tiles, processors, splits)


def _gemv(panels: Panels, pack: int, tiles: int, processors: int, splits: int | None) -> Launch:
    columns = next((c for c in GEMV_FORMS if c >= tiles), max(GEMV_FORMS))
    outputs = GEMV_FORMS[columns]
    x, z = -(-panels.output_tiles // outputs), -(-tiles // columns)
    splits = splits or _splits(x * z, 2 * processors, panels.most_blocks // GEMV_WARPS)
    words = columns * (TILE_COLUMNS // pack) * TILE_OUTPUTS * outputs
    shared = 4 * (GEMV_WARPS * words + 1)
    return Launch(
        f"b1_gemv_{columns}",
        (x, splits, z),
        32 * GEMV_WARPS,
        shared,
        pack,
        1,
        tiles,
        splits,
        splits * GEMV_WARPS,
        words,
    )


def _gemm(panels: Panels, rows: int, processors: int, splits: int | None) -> Launch:
    planes = panels.planes
    groups = 8 // planes  # of 8 rows in a warp; two warps side by side
    tiles = -(-rows // 8) * planes
    x, z = -(-panels.output_tiles * TILE_OUTPUTS // GEMM_OUTPUTS), -(-tiles // (2 * groups * planes))
    splits = splits or _splits(x * z, 2 * processors, panels.most_blocks // 4)
    stage = GEMM_OUTPUTS // TILE_OUTPUTS * WEIGHT_UNITS + 2 * groups * planes * COLUMN_UNITS
    block_rows = 2 * groups * 8
    shared = max(16 * GEMM_STAGES * stage, 4 * (block_rows * (GEMM_OUTPUTS + 4) + 1))
    words = block_rows * GEMM_OUTPUTS
    return Launch(f"b1_gemm_{planes}", (x, splits, z), GEMM_THREADS, shared, 1, planes, tiles, splits, splits, words)


def _splits(blocks: int, wanted: int, most: int) -> int:
    return max(1, min(wanted // max(1, blocks), most))


def suits(packed: Any, rows: int) -> str | None:
    """Why one-bit products are the way for a call of so many rows; None where another way is expected to be faster.

    packed: PackedWeights, or what has their shape and plan.
    """
    if len(packed.shape) != 2:
        return None
    work = max(s.w.bits * s.a.bits for s in packed.plan.segments)
    columns = rows << (max(s.a.bits for s in packed.plan.segments) - 1).bit_length()
    if columns <= max(GEMV_FORMS) * TILE_COLUMNS:
        return f"{rows} rows are {columns} columns of bit planes: weights are read once and need no unpacking"
    if work <= MOST_WORK:
        return f"{work} one-bit products for one of bytes, at about four times the rate"
    return None


# ---- the structs of a call -----------------------------------------------------------------------------------------------
def _passes(panels: Panels, launch: Launch) -> tuple[list[tuple[int, ...]], int]:
    """(w, w_stride, x, x_stride, blocks, share_blocks, factor) of every plane in falling order; the factor after the last."""
    x_base = np.cumsum([0, *(launch.column_tiles * s.blocks * COLUMN_UNITS for s in panels.segments)]).tolist()
    planes = sorted(
        ((s.power + bit, index, bit) for index, s in enumerate(panels.segments) for bit in range(s.w_bits)),
        reverse=True,
    )
    passes, before = [], planes[0][0]
    for power, index, bit in planes:
        s = panels.segments[index]
        row = s.blocks * WEIGHT_UNITS
        passes.append((
            s.base + (s.w_bits - 1 - bit) * row, s.w_bits * row, x_base[index], s.blocks * COLUMN_UNITS, s.blocks,
            -(-s.blocks // launch.shares), 2 ** (before - power) % 2**32,
        ))  # fmt: skip
        before = power
    return passes, 2**before % 2**32


def product_call(panels: Panels, launch: Launch) -> NDArray[Any]:
    """PRODUCT with everything but addresses and the epilogue."""
    call = np.zeros((), PRODUCT)
    passes, factor = _passes(panels, launch)
    call["pass"][: len(passes)] = passes
    call["passes"], call["factor"], call["splits"] = len(passes), factor, launch.splits
    call["output_tiles"], call["column_tiles"], call["pack"] = panels.output_tiles, launch.column_tiles, launch.pack
    return call


class Rows(NamedTuple):
    """How activations lie in memory.

    Attributes:
        source: of SOURCES. stride: values from row to row. first: of each segment, where channels stand in stored order.
        flips: per segment, 128 where codes of 8 bits are signed bytes. permuted: whether channels stand in their original order.
    """

    source: int
    stride: int
    first: tuple[int, ...]
    flips: tuple[int, ...]
    permuted: bool


def planes_call(panels: Panels, plan: Plan, launch: Launch, rows: int, processors: int, lie: Rows) -> NDArray[Any]:
    """PLANES_CALL with everything but addresses and the scale."""
    call = np.zeros((), PLANES_CALL)
    call["rows"], call["channels"], call["segments"] = rows, plan.channels, len(plan.segments)
    call["source"], call["x_stride"] = lie.source, lie.stride
    call["pack"], call["group_tiles"] = launch.pack, launch.group_tiles
    blocks, planes = sum(s.blocks for s in panels.segments), 0
    call["parts"] = max(1, min(-(-blocks // 8), processors // max(1, rows)))
    for index, (panel, s) in enumerate(zip(panels.segments, plan.segments, strict=True)):
        call["segment"][index] = (
            lie.first[index], panel.channels, panel.blocks, planes, panel.term_factor, lie.flips[index], s.a.r_numerator,
            s.a.z, s.a.cmax,
        )  # fmt: skip
        planes += launch.column_tiles * panel.blocks * COLUMN_UNITS
    return call


# ---- a layer -------------------------------------------------------------------------------------------------------------
class Planes(NamedTuple):
    """Activations as columns of bit planes, for one launch. What it points to stays alive with it."""

    launch: Launch
    rows: int
    words: Any
    row_terms: int  # address, behind the planes
    parts: int
    scale: Any
    rows_per_scale: int


class Linear:
    """A linear layer on one device: `linear` and `matmul` as in soniq_kernels.gemm, on arrays of that device.

    Args:
        packed: PackedWeights [N, K].
        device: where it runs.
        panels: of `weight_panels(packed)`, if they were made before.

    Attributes:
        words: the panels on the device.
    """

    def __init__(self, packed: PackedWeights, device: Device, panels: Panels | None = None) -> None:
        self.packed, self.device = packed, device
        self.panels = panels or weight_panels(packed)
        self.words = device.put(self.panels.words)
        self.column_terms = device.put(self.panels.column_terms)
        plan = packed.plan
        self._original = None if plan.in_order else device.put(plan.permutation.astype(np.uint32))
        vectors = [packed.scale, packed.bias, packed.post_scale, packed.post_bias]
        nothing = np.zeros(self.panels.outputs, np.float32)
        self._vectors = device.put(np.stack([nothing if v is None else v for v in vectors]))
        self._has = sum(1 << i for i, v in enumerate(vectors) if v is not None)
        self._scales: dict[float, Any] = {}
        self._codes: dict[Any, tuple[Any, Any]] = {}
        self._workspace: dict[Any, tuple[Any, Any]] = {}
        self._ready = lru_cache(maxsize=256)(self._prepared)

    def launch_for(self, rows: int, form: str | None = None, splits: int | None = None) -> Launch:
        """The launch that serves so many rows."""
        return self._ready(choose, rows, self.device.processors, form, splits)

    def _prepared(self, make: Any, *arguments: Any) -> Any:
        """make(panels, ...), kept for calls that ask for the same."""
        return make(self.panels, *arguments)

    # ---- activations
    def quantize(self, x: Any, scale: Any = None, launch: Launch | None = None) -> Planes:
        """Bit planes of x.

        Args:
            x: float32, float16 or bfloat16 [..., K], or uint8 codes [..., K] in the original order of channels.
            scale: of codes: a float, or a float32 array [rows] on the device. Of floats: None takes the layer's own.
            launch: of `launch_for`; None chooses.
        """
        address, shape, dtype = self.device.describe(x)
        plan = self.packed.plan
        if not shape or shape[-1] != plan.channels:
            raise ValueError(
                f"x has shape {shape} but the packed weights have {plan.channels} channels; pad x or repack"
            )
        if dtype not in SOURCES:
            raise TypeError(f"x is {dtype}, expected one of {', '.join(SOURCES)}")
        rows = math.prod(shape[:-1])
        scale, per_row, rows_per_scale = self._scale(scale, rows, x)
        lie = Rows(SOURCES[dtype], plan.channels, tuple(plan.first_channels), (0,) * len(plan.segments), True)
        return self.planes(address, lie, rows, x, scale, per_row, rows_per_scale, launch)

    def planes(
        self, address: int, lie: Rows, rows: int, like: Any, scale: Any, per_row: bool, rows_per_scale: int,
        launch: Launch | None = None,
    ) -> Planes:  # fmt: skip
        """Bit planes of what lies at an address; a `per_row` scale is written, another one read."""
        launch = launch or self.launch_for(rows)
        device, plan = self.device, self.packed.plan
        template = self._ready(planes_call, plan, launch, rows, device.processors, lie)
        units = launch.column_tiles * sum(s.blocks for s in self.panels.segments) * COLUMN_UNITS
        parts = int(template["parts"])
        words = device.empty((units * 4 + rows * parts,), "int32", like=like)  # planes, then the rows' terms
        at = device.address(words)
        made = Planes(launch, rows, words, at + 16 * units, parts, scale, rows_per_scale)
        if rows:
            call = template
            if per_row:
                call = template.copy()
                call["per_row"], call["dynamic_factor"] = 1, plan.widest_activation.dynamic_factor
            original = device.address(self._original) if lie.permuted and self._original is not None else 0
            arguments = _copy_of(call)
            _pack_addresses[5](arguments, 0, address, original, device.address(scale), at, made.row_terms)
            device.launch("write_planes", (rows, parts, 1), 256, 64, arguments)
        return made

    def _scale(self, scale: Any, rows: int, x: Any) -> tuple[Any, bool, int]:
        """(array, whether the kernel writes it, rows for each of its values)."""
        dtype = self.device.describe(x)[2]
        scale = self.packed.activation_scale if scale is None else scale
        if scale is None:
            raise ValueError('x has no scale; pass scale=, or pack with activation_scale= a float or "per_row"')
        if isinstance(scale, str):
            if dtype == "uint8":
                raise ValueError('x holds codes and scale is "per_row"; pass the scale that the codes were made with')
            return self.device.empty((rows,), "float32", like=x), True, 1
        if np.ndim(scale) == 0:
            value = float(np.float32(scale))
            if value not in self._scales:
                self._scales[value] = self.device.put(np.array([value], np.float32))
            return self._scales[value], False, max(1, rows)
        if dtype != "uint8":
            raise ValueError(f'scale has {np.ndim(scale)} axes and x holds floats, expected a float or "per_row"')
        return scale, False, 1

    # ---- products
    def matmul(self, x: Any, scale: Any = None) -> Any:
        """int32 [..., N], exact, in units of 2**packed.exponent. x: as `quantize` takes it, or Planes of it."""
        planes, shape = self._planes(x, scale)
        acc = self.device.empty(shape, "int32", like=x)
        self.run(planes, Output(acc=self.device.address(acc)), x)
        return acc

    def linear(
        self,
        x: Any,
        residual: Any = None,
        activation: Any = None,
        out: tuple[Plan, float] | None = None,
        scale: Any = None,
    ) -> Any:
        """float32 [..., N]; uint8 codes [..., N] in stored order where `out` is (plan, scale) of the next layer.

        Args:
            x: as `quantize` takes it, or its Planes (then the result has shape [rows, N]).
            residual: float32 [..., N].
            activation: None, "relu", "relu6" or ("hardtanh", low, high).
        """
        planes, shape = self._planes(x, scale)
        if residual is not None and self.device.describe(residual)[1:] != (shape, "float32"):
            raise ValueError(f"residual is {self.device.describe(residual)[1:]}, expected float32 of shape {shape}")
        address = self.device.address
        result = self.device.empty(shape, "float32" if out is None else "uint8", like=x)
        function, low, high = activation_of(activation)
        steps = Output(
            activation_scale=address(planes.scale), rows_per_scale=planes.rows_per_scale, vectors=address(self._vectors),
            has=self._has, unit=2.0**self.packed.exponent, activation=function, low=low, high=high,
            residual=0 if residual is None else address(residual),
        )  # fmt: skip
        if out is None:
            steps = steps._replace(y=address(result))
        else:
            quantizers, ints = map(address, self._output_codes(*out))
            steps = steps._replace(
                codes=address(result), codes_stride=shape[-1], tensors=1, quantizers=quantizers, code_ints=ints
            )
        self.run(planes, steps, x)
        return result

    def _planes(self, x: Any, scale: Any) -> tuple[Planes, tuple[int, ...]]:
        if isinstance(x, Planes):
            return x, (x.rows, self.panels.outputs)
        planes = self.quantize(x, scale)
        return planes, (*self.device.describe(x)[1][:-1], self.panels.outputs)

    def _output_codes(self, plan: Plan, scale: float) -> tuple[Any, Any]:
        """The tables of one tensor of codes in stored order, whose sums nobody wants."""
        if plan.channels != self.panels.outputs:
            raise ValueError(
                f"out names a plan of {plan.channels} channels, this layer has {self.panels.outputs} outputs"
            )
        key = plan, float(scale)
        if key not in self._codes:
            index, grids = plan.segment_of(), [s.a for s in plan.segments]
            numerator, z, cmax = (
                np.array([getattr(g, name) for g in grids], np.float32)[index] for name in ("r_numerator", "z", "cmax")
            )
            quantizers, nothing = np.stack([numerator / np.float32(scale), z, cmax]), np.zeros(plan.channels, np.uint32)
            ints = np.stack([plan.position.astype(np.uint32), nothing, nothing])
            self._codes[key] = self.device.put(quantizers), self.device.put(ints)
        return self._codes[key]

    def run(self, planes: Planes, steps: Any, like: Any = None) -> None:
        """The product with an epilogue: `steps` is an Output of everything but what the layer and the planes know."""
        launch, device = planes.launch, self.device
        if not planes.rows:
            return
        space = (0, 0) if launch.splits == 1 else tuple(map(device.address, self._zeros(launch, like)))
        call = _copy_of(self._ready(product_call, launch))
        _pack_addresses[4](call, 0, device.address(self.words), device.address(planes.words), *space)
        out = steps._replace(
            column_terms=device.address(self.column_terms), row_terms=planes.row_terms, rows=planes.rows,
            outputs=self.panels.outputs, row_parts=planes.parts,
        )  # fmt: skip
        _pack_output(call, _OUTPUT_AT, *out)
        device.launch(launch.kernel, launch.grid, launch.threads, launch.shared, call)

    def _zeros(self, launch: Launch, like: Any) -> tuple[Any, Any]:
        """Sums and arrivals of the tiles when K is split: zeros, which the kernels leave as zeros.

        Launches that follow each other share them. What a CUDA graph records gets its own, which live in the graph's memory.
        """
        order, words = self.device.order_of_launches(), launch.tiles * launch.tile_words
        if order is None:
            return self.device.zeros(words, like), self.device.zeros(launch.tiles, like)
        key = words, launch.tiles, order
        if key not in self._workspace:
            self._workspace[key] = self.device.zeros(words, like), self.device.zeros(launch.tiles, like)
        return self._workspace[key]


def activation_of(activation: Any) -> tuple[int, float, float]:
    """(number, low, high) of an activation function."""
    if isinstance(activation, (tuple, list)) and len(activation) == 3 and activation[0] == "hardtanh":
        low, high = float(activation[1]), float(activation[2])
        if not low <= high:
            raise ValueError(f"hardtanh has low {low} and high {high}, expected low <= high")
        return ACTIVATIONS["hardtanh"], low, high
    if not isinstance(activation, (str, type(None))) or activation not in (None, "relu", "relu6"):
        raise ValueError(f'activation is {activation!r}, expected None, "relu", "relu6" or ("hardtanh", low, high)')
    return ACTIVATIONS[activation], 0.0, 0.0
