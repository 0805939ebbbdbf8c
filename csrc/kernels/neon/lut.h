// lut on NEON: tables of the 16 sums of four activations. Goal: several times the byte products for weights of one and two
// bits, with activations of up to 6.
//
//   two tables, for two groups of four codes, in two registers; tbl looks up 8 outputs of each group at a time
//   | sums of codes 0..3 | sums of codes 4..7 |
//   index bytes  | c0 g0 | c0 g1 | c1 g0 | c1 g1 | ...      four weight bits of a column; plus 16 for the second group
//   found bytes  | c0 g0 | c0 g1 | c1 g0 | c1 g1 | ...      uadalp adds the two of a column to its sum of 16 bits
//
//   tile 4 rows x 4 registers of 8 outputs: 32 columns, four panels; 16 sums, 4 indexes, 2 tables, 8 found: 30 of 32 registers
//   a pair of groups and a row: 4 x (tbl + uadalp), 1 load of two registers       64 products for 2 instructions
//
// No sum of bytes that could overflow: 512 codes of 6 bits are at most 32256. So one kernel serves every width. In memory a
// weight has one bit a plane, and indexes are made once for all rows of a block.
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//   rows          1       2       3       4       SMULL   SDOT
//   Cortex-A53    12      16      18      19      3.2
//   Cortex-A72    19      21      21      21      8.0
//   Neoverse N1   64      64      64      63      8.0     32
//   Neoverse V1   57      60      61      61      15      64
//   Cortex-A76    19      21      21      21      8.0     32
//
// Divided by w_bits. The models differ in tbl with two registers: of Neoverse N1 two start a cycle, of V1 one, and Cortex-A72
// (whose model llvm-mca has for Cortex-A76 too) needs two and a half cycles for each.
#pragma once

#include "kernels/neon/vocabulary.h"

namespace soniq {
namespace {

constexpr int kNeonPanel = 8;
constexpr int kNeonLutRows = 4, kNeonLutRegisters = 4, kNeonLutColumns = kNeonPanel * kNeonLutRegisters;

// ---- tables --------------------------------------------------------------------------------------------------------
struct LutIndex {
  uint8_t byte[16];
};
constexpr uint8_t kNoCode = 0xff;  // tbl gives 0

// Of four pairs of codes: byte 4 p + e takes the first code of pair p if e is odd, and the second one if e has its second bit.
constexpr LutIndex pair_index(int first_pair, int second) {
  LutIndex index{};
  for (int b = 0; b < 16; ++b)
    index.byte[b] = b % 4 >> second & 1 ? uint8_t(2 * (first_pair + b / 4) + second) : kNoCode;
  return index;
}
// Entry e of a group is entry e % 4 of its first pair plus entry e / 4 of its second one.
constexpr LutIndex entry_index(int group, int second) {
  LutIndex index{};
  for (int e = 0; e < 16; ++e) index.byte[e] = uint8_t(4 * (2 * group + second) + (second ? e / 4 : e % 4));
  return index;
}
template <int FirstPair, int Second>
constexpr LutIndex kPairIndex = pair_index(FirstPair, Second);
template <int Group, int Second>
constexpr LutIndex kEntryIndex = entry_index(Group, Second);

void lut_tables_neon(const uint8_t* codes, int units, uint8_t* tables) {
  const auto look_up = [](uint8x16_t in, const LutIndex& index)
                           __attribute__((always_inline)) { return vqtbl1q_u8(in, vld1q_u8(index.byte)); };
  for (int sixteen = 0; sixteen < 2 * units; ++sixteen, codes += 16) {
    const uint8x16_t codes_u8x16 = vld1q_u8(codes);
    repeat<2>([&](auto half) {
      const uint8x16_t pairs_u8x16 =
          vaddq_u8(look_up(codes_u8x16, kPairIndex<4 * half, 0>), look_up(codes_u8x16, kPairIndex<4 * half, 1>));
      repeat<2>([&](auto group) {
        vst1q_u8(tables,
                 vaddq_u8(look_up(pairs_u8x16, kEntryIndex<group, 0>), look_up(pairs_u8x16, kEntryIndex<group, 1>)));
        tables += 16;
      });
    });
  }
}

// ---- indexes -------------------------------------------------------------------------------------------------------
// Groups 0 and 1, or 2 and 3, of a column stand next to each other; four and five, or six and seven, in the high nibbles.
constexpr int lut_place_neon(int column, int group) {
  return (group / 2 * kNeonLutRegisters + column / 8) * 16 + column % 8 * 2 + group % 2;
}

void lut_indexes_neon(const uint8_t* packed, int units, uint8_t* indexes) {
  constexpr int half_bytes = 2 * kNeonLutRegisters * 16;
  const uint8x16_t second_table = vreinterpretq_u8_u16(vdupq_n_u16(0x1000)), low_nibble = vdupq_n_u8(0x0f);
  for (int unit = 0; unit < units; ++unit, packed += half_bytes, indexes += 2 * half_bytes)
    repeat<2 * kNeonLutRegisters>([&](auto i) {
      const uint8x16_t both = vld1q_u8(packed + i * 16);
      vst1q_u8(indexes + i * 16, vorrq_u8(vandq_u8(both, low_nibble), second_table));
      vst1q_u8(indexes + half_bytes + i * 16, vorrq_u8(vshrq_n_u8(both, 4), second_table));
    });
}

// ---- look up -------------------------------------------------------------------------------------------------------
template <int Rows>
SONIQ_AS_WRITTEN void lut_tile_neon(const uint8_t* indexes, const uint8_t* tables, int64_t row_stride, int units,
                                    uint32_t* sums, int64_t panel_sums, int shift) {
  constexpr int registers = kNeonLutRegisters;
  uint16x8_t sums_u16x8[Rows][registers];
  repeat<Rows>([&](auto row) { repeat<registers>([&](auto v) { sums_u16x8[row][v] = vdupq_n_u16(0); }); });

  const uint8_t* const end = tables + units * 128;
  do {
    // What a row found is added while the next row is looked up: in-order processors do not wait for it.
    repeat<4>([&](auto pair) {
      uint8x16_t index_u8x16[registers], found_u8x16[Rows][registers];
      repeat<registers>([&](auto v) { index_u8x16[v] = vld1q_u8(indexes + (pair * registers + v) * 16); });
      repeat<Rows + 1>([&](auto next) {
        if constexpr (next < Rows) {
          const uint8x16x2_t tables_u8x32 = vld1q_u8_x2(tables + next * row_stride + pair * 32);
          repeat<registers>(
              [&](auto v) { found_u8x16[next][v] = in_register(vqtbl2q_u8(tables_u8x32, index_u8x16[v])); });
        }
        if constexpr (next > 0)
          repeat<registers>(
              [&](auto v) { sums_u16x8[next - 1][v] = vpadalq_u8(sums_u16x8[next - 1][v], found_u8x16[next - 1][v]); });
      });
    });
    tables += 128;
    indexes += 4 * registers * 16;
  } while (tables != end);

  const int32x4_t by = vdupq_n_s32(shift);
  repeat<Rows>([&](auto row) {
    repeat<registers>([&](auto v) { add_eight(sums + v * panel_sums + row * kNeonPanel, sums_u16x8[row][v], by); });
  });
}

template <int... Rows>
constexpr LutFamily lut_family_neon(int rate, double table_cycles, std::integer_sequence<int, Rows...>) {
  LutFamily family{};
  family.name = "tbl";
  family.columns = kNeonLutColumns;
  family.panel = kNeonPanel;
  family.place = lut_place_neon;
  family.tables = lut_tables_neon;
  family.pixel = 8;
  family.table_cycles = table_cycles;
  family.indexes = lut_indexes_neon;
  for (int a_bits = 1; a_bits <= kMaxLutBits; ++a_bits) {
    family.rate[a_bits] = rate;
    ((family.tile[a_bits][Rows + 1] = lut_tile_neon<Rows + 1>), ...);
  }
  return family;
}

constexpr LutFamily lut_family_neon(int rate, double table_cycles) {
  return lut_family_neon(rate, table_cycles, std::make_integer_sequence<int, kNeonLutRows>());
}

}  // namespace
}  // namespace soniq
