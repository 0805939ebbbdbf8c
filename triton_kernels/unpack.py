"""From bytes that hold several codes to int8 operands, 4 bytes in one 32-bit instruction.

Each helper that is written in PTX has a twin in Triton's own language beside it, which the interpreter runs and which says what
the PTX means; ASM chooses. Both are tested to be the same for every byte.
"""

import triton
import triton.language as tl

from soniq_kernels.triton_kernels.panels import parts_of, slices_of


@triton.constexpr_function
def part_width(bits, index):
    """Bits of part `index` (0: the lowest) of a code, 0 if there is no such part."""
    parts = parts_of(bits)
    return parts[index] if index < len(parts) else 0


@triton.constexpr_function
def part_low(bits, index):
    """The bit of the code at which a part begins."""
    return sum(parts_of(bits)[:index])


@triton.constexpr_function
def part_row(bits, index):
    """The first byte row of a part inside a block."""
    return sum(slices_of(bits) * width // 8 for width in parts_of(bits)[:index])


@triton.constexpr_function
def _field_ptx(width, slot, low):
    """4 fields of `width` bits at bit width * slot of 4 bytes, moved to bit `low` of each byte."""
    shift, mask = width * slot - low, (((1 << width) - 1) << low) * 0x01010101
    move = f"shr.u32 t, $1, {shift};" if shift > 0 else f"shl.b32 t, $1, {-shift};" if shift < 0 else "mov.b32 t, $1;"
    return "{ .reg .b32 t; " + move + f" and.b32 $0, t, {mask:#x};" + " }"


@triton.jit
def field(row, WIDTH: tl.constexpr, SLOT: tl.constexpr, LOW: tl.constexpr, ASM: tl.constexpr):
    """uint8 bytes -> int8: field SLOT of WIDTH bits of each byte, times 2^LOW."""
    if ASM:
        return tl.inline_asm_elementwise(
            _field_ptx(WIDTH, SLOT, LOW), "=r,r", [row], dtype=tl.int8, is_pure=True, pack=4
        )
    return (((row >> (WIDTH * SLOT)) & ((1 << WIDTH) - 1)) << LOW).to(tl.int8)


@triton.jit
def load_rows(rows, pointers, stride, mask, BITS: tl.constexpr, SLICE: tl.constexpr):
    """The byte rows that slice SLICE of a block needs: those of the slice before, and new ones where it crosses over."""
    part0, part1, part2 = rows
    if SLICE % (8 // part_width(BITS, 0)) == 0:
        part0 = tl.load(pointers + (SLICE * part_width(BITS, 0) // 8) * stride, mask=mask)
    if part_width(BITS, 1) != 0 and SLICE * part_width(BITS, 1) % 8 == 0:
        part1 = tl.load(pointers + (part_row(BITS, 1) + SLICE * part_width(BITS, 1) // 8) * stride, mask=mask)
    if part_width(BITS, 2) != 0 and SLICE * part_width(BITS, 2) % 8 == 0:
        part2 = tl.load(pointers + (part_row(BITS, 2) + SLICE * part_width(BITS, 2) // 8) * stride, mask=mask)
    return part0, part1, part2


@triton.jit
def codes_of(rows, BITS: tl.constexpr, SLICE: tl.constexpr, ASM: tl.constexpr):
    """int8 codes of slice SLICE of a block, from the byte rows of `load_rows`."""
    part0, part1, part2 = rows
    if BITS == 8:
        return part0.to(tl.int8, bitcast=True)
    codes = field(part0, part_width(BITS, 0), SLICE % (8 // part_width(BITS, 0)), 0, ASM)
    if part_width(BITS, 1) != 0:
        codes |= field(part1, part_width(BITS, 1), SLICE % (8 // part_width(BITS, 1)), part_low(BITS, 1), ASM)
    if part_width(BITS, 2) != 0:
        codes |= field(part2, part_width(BITS, 2), SLICE % (8 // part_width(BITS, 2)), part_low(BITS, 2), ASM)
    return codes


@triton.constexpr_function
def word_mask(width, low):
    """`width` bits from bit `low` of each byte of a word, as int32."""
    mask = (((1 << width) - 1) << low) * 0x01010101
    return mask - (1 << 32) if mask >= 1 << 31 else mask


@triton.jit
def word_field(row, WIDTH: tl.constexpr, SLOT: tl.constexpr, LOW: tl.constexpr):
    """int32 words of four bytes: field SLOT of WIDTH bits of each byte, times 2^LOW."""
    SHIFT: tl.constexpr = WIDTH * SLOT - LOW
    if SHIFT > 0:
        row = row >> SHIFT
    if SHIFT < 0:
        row = row << -SHIFT
    return row & word_mask(WIDTH, LOW)


@triton.jit
def code_words(rows, BITS: tl.constexpr, SLICE: tl.constexpr, SHIFTED: tl.constexpr):
    """Words of four codes of slice SLICE; without SHIFTED, of a width of one part, each 2^(BITS * field) times its code."""
    part0, part1, part2 = rows
    SLOTS: tl.constexpr = 8 // part_width(BITS, 0)
    if BITS == 8:
        return part0
    if not SHIFTED:
        return part0 & word_mask(BITS, BITS * (SLICE % SLOTS))
    codes = word_field(part0, part_width(BITS, 0), SLICE % SLOTS, 0)
    if part_width(BITS, 1) != 0:
        codes |= word_field(part1, part_width(BITS, 1), SLICE % (8 // part_width(BITS, 1)), part_low(BITS, 1))
    if part_width(BITS, 2) != 0:
        codes |= word_field(part2, part_width(BITS, 2), SLICE % (8 // part_width(BITS, 2)), part_low(BITS, 2))
    return codes
