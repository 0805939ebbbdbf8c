"""Panels of GPU weights: what they hold, and that the PTX of unpacking means what its twin in Triton's language does."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is not installed; pip install soniq_kernels[gpu]")

import cases
from soniq_kernels.triton_kernels import panels, unpack
from soniq_kernels.triton_kernels.layout import row_layout
from triton_cases import Grid, layer, oracle, two_segments


def run_ptx(text: str, words: np.ndarray) -> np.ndarray:
    """What the three instructions of a field do to uint32 words."""
    operations = re.findall(r"(shr\.u32|shl\.b32|mov\.b32|and\.b32) [$\w]+, [$\w]+(?:, (\w+))?;", text)
    for name, value in operations:
        number = np.uint32(int(value, 0)) if value else None
        words = {"shr.u32": np.right_shift, "shl.b32": np.left_shift, "and.b32": np.bitwise_and}.get(
            name, lambda a, _: a
        )(words, number)
    assert len(operations) == 2
    return words


@pytest.mark.parametrize("bits", range(1, 8))
def test_the_ptx_of_a_field_takes_it_out_of_every_byte(bits):
    bytes_ = np.arange(256, dtype=np.uint8)
    low = 0
    for width in panels.parts_of(bits):
        for slot in range(8 // width):
            got = run_ptx(unpack._field_ptx(width, slot, low), bytes_.view(np.uint32)).view(np.uint8)
            assert np.array_equal(got, ((bytes_ >> (width * slot)) & (2**width - 1)) << low)
        low += width
    assert low == bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_panels_take_their_bits_and_hold_every_code(rng, bits):
    """Unpacked by the drawing in panels.py, byte row by byte row."""
    channels, outputs = 1024, 64
    packed = layer(rng, oracle.uniform(channels, Grid("bipolar", bits), Grid("bipolar", 8)), (outputs, channels))
    built = panels.build(packed)
    (array,) = built.arrays
    assert array.size == outputs * channels * bits // 8
    rows = array.reshape(-1, panels.rows_of(bits), 64, 64)
    codes, row, low = np.zeros((outputs, channels), np.uint8), 0, 0
    for width in panels.parts_of(bits):
        for slice_ in range(panels.slices_of(bits)):
            at = rows[:, row + slice_ * width // 8]
            field = (at >> (slice_ * width % 8)) & (2**width - 1)
            codes.reshape(outputs, -1, panels.slices_of(bits), 64)[:, :, slice_] |= field.transpose(1, 0, 2) << low
        row, low = row + panels.slices_of(bits) * width // 8, low + width
    assert np.array_equal(codes ^ 0x80 if bits == 8 else codes, packed.codes())


def test_rows_hold_each_channel_once_and_parts_begin_at_16_bytes(rng):
    pairs = (Grid("bipolar", 2), Grid("unsigned", 2)), (Grid("bipolar", 8), Grid("bipolar", 8))
    plan = cases.package_plan(two_segments(rng, 30, 42, pairs))
    for groups in (1, 2, 9):
        layout = row_layout(plan, groups)
        assert sorted(layout.source[layout.source >= 0]) == list(range(72))
        assert np.array_equal(layout.source[layout.position], np.arange(72))
        assert all(at % 16 == 0 for at in (*layout.first, *layout.padded, layout.row_bytes))
