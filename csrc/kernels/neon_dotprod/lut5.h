// lut5, for processors with the dot product extension (which it does not use): tables of the 32 sums of five activations. Goal:
// twice the products of udot for 1-bit weights with activations of 2 to 4 bits, and more than lut has.
//
//   one table: 32 bytes in two registers; entry e is the sum of the codes whose bit is set in e
//   | 0 a0 a1 a0+a1 ... a0+a1+a2+a3 | a4 a0+a4 ... a0+a1+a2+a3+a4 |
//   index byte = five weight bits of one output, stored as it is looked up: tbl finds 16 outputs' sums of five products
//
//   tile 3 rows x 2 registers of 16 outputs: 32 columns, four panels
//
//        i0          i1              indexes of 16 outputs each, loaded once a group of five codes
//   T0   b00         b01             per row and register: 1 sum of bytes, 2 of 16 bits; 18 sums + 2 indexes + a table of two
//   T1   b10         b11             + 2 that were found: 24 of 32 registers
//   T2   b20         b21
//
//   a group and row: 2 x (tbl + add), 1 load of two registers        80 products for 2 instructions
//
// Before a byte could overflow it is widened: uaddw and uaddw2 into sums of 16 bits, which hold a block of 512 codes. A run of
// bytes starts with what was found first, so r lookups cost 2 r + 1 instructions: 6 at most, though bytes hold 17 lookups with 2
// bits and 7 with 3 (4 has 3), since longer runs gain 4 % and outgrow what GCC keeps in registers. With 5 bits a byte holds one
// lookup, and lut is faster.
//
// An index takes a byte, so a weight has 1.6 bits a plane in memory, where lut has one.
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//                 runs of 6   runs of 6   runs of 6   runs of 3   SDOT
//   rows          1       2       3       3
//   Neoverse N1   71      74      73      67      32
//   Neoverse V1   74      74      74      69      64
//   Cortex-A76    22      25      25      25      32
//   Neoverse N2   71      74      73      67      32
//   Neoverse V2   120     137     137     120     64
//
// Divided by w_bits. 1x2 is to have twice the products of SDOT. 13 instructions for six lookups of 80 products fill two pipes at
// 74, 2.3x, and four at 148. llvm-mca lets Neoverse V1 start one tbl a cycle, half as many as V2, and gives Cortex-A76 the model
// of Cortex-A57, where a tbl of two registers takes five slots of two pipes.
#pragma once

#include "kernels/neon/lut.h"

namespace soniq {
namespace {

constexpr int kLut5Codes = 5, kLut5Table = 32;
constexpr int kLut5Rows = 3, kLut5Registers = 2, kLut5Columns = 16 * kLut5Registers;
constexpr int kLut5Stride = 53 * 64;  // bytes between two rows of tables: 103 groups a block, written three at a time
static_assert(kLut5Stride >= (kBlock + 14) / 15 * 3 * kLut5Table);

// ---- tables --------------------------------------------------------------------------------------------------------
// Of three groups: byte 4 g + e takes code `first` of group g if e is odd, and code first + 1 if e has its second bit.
constexpr LutIndex lut5_pair(int first, int second) {
  LutIndex index{};
  for (int b = 0; b < 16; ++b)
    index.byte[b] = b < 12 && (b % 4 >> second & 1) ? uint8_t(kLut5Codes * (b / 4) + first + second) : kNoCode;
  return index;
}
// Entry e of group g is entry e % 4 of its first pair plus entry e / 4 of its second one.
constexpr LutIndex lut5_entry(int group, int divisor) {
  LutIndex index{};
  for (int e = 0; e < 16; ++e) index.byte[e] = uint8_t(4 * group + e / divisor % 4);
  return index;
}
template <int First, int Second>
constexpr LutIndex kLut5Pair = lut5_pair(First, Second);
template <int Group, int Divisor>
constexpr LutIndex kLut5Entry = lut5_entry(Group, Divisor);

template <int First>
inline uint8x16_t sums_of_pairs(uint8x16_t codes_u8x15) {
  return vaddq_u8(vqtbl1q_u8(codes_u8x15, vld1q_u8(kLut5Pair<First, 0>.byte)),
                  vqtbl1q_u8(codes_u8x15, vld1q_u8(kLut5Pair<First, 1>.byte)));
}

void lut5_tables_neon(const uint8_t* codes, int groups, uint8_t* tables) {
  for (int group = 0; group < groups; group += 3, codes += 15) {
    const uint8x16_t codes_u8x15 = vld1q_u8(codes);
    const uint8x16_t first_u8x12 = sums_of_pairs<0>(codes_u8x15), second_u8x12 = sums_of_pairs<2>(codes_u8x15);
    repeat<3>([&](auto g) {
      const uint8x16_t four_u8x16 = vaddq_u8(vqtbl1q_u8(first_u8x12, vld1q_u8(kLut5Entry<g, 1>.byte)),
                                             vqtbl1q_u8(second_u8x12, vld1q_u8(kLut5Entry<g, 4>.byte)));
      vst1q_u8(tables, four_u8x16);
      vst1q_u8(tables + 16, vaddq_u8(four_u8x16, vdupq_laneq_u8(codes_u8x15, kLut5Codes * g + 4)));
      tables += kLut5Table;
    });
  }
}

// ---- look up -------------------------------------------------------------------------------------------------------
constexpr int lut5_lookups_per_byte(int a_bits) { return 255 / (kLut5Codes * ((1 << a_bits) - 1)); }
constexpr int kMostLookups = 6;
constexpr int lut5_run(int a_bits) {
  return lut5_lookups_per_byte(a_bits) < kMostLookups ? lut5_lookups_per_byte(a_bits) : kMostLookups;
}
static_assert(lut5_run(3) == 6 && lut5_run(4) == 3);
static_assert((kBlock + 4) / 5 * kLut5Codes * 15 <= 65535);  // 16 bits hold a block

template <int Run, int Rows>
SONIQ_AS_WRITTEN void lut5_tile_neon(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int groups,
                                     uint32_t* sums, int64_t panel_sums, int shift) {
  constexpr int registers = kLut5Registers;
  uint8x16_t bytes_u8x16[Rows][registers];
  uint16x8_t low_u16x8[Rows][registers], high_u16x8[Rows][registers];
  repeat<Rows>(
      [&](auto row) { repeat<registers>([&](auto v) { low_u16x8[row][v] = high_u16x8[row][v] = vdupq_n_u16(0); }); });

  // What a row found is added while the next row is looked up: in-order processors do not wait for it.
  const auto look_up = [&](auto first) __attribute__((always_inline)) {
    uint8x16_t index_u8x16[registers], found_u8x16[Rows][registers];
    repeat<registers>([&](auto v) { index_u8x16[v] = vld1q_u8(weights + v * 16); });
    repeat<Rows + 1>([&](auto next) {
      if constexpr (next < Rows) {
        const uint8x16x2_t table_u8x32 = vld1q_u8_x2(tables + next * row_stride);
        repeat<registers>([&](auto v) { found_u8x16[next][v] = in_register(vqtbl2q_u8(table_u8x32, index_u8x16[v])); });
      }
      if constexpr (next > 0) {
        constexpr int row = next - 1;
        repeat<registers>([&](auto v) {
          if constexpr (!first) found_u8x16[row][v] = vaddq_u8(bytes_u8x16[row][v], found_u8x16[row][v]);
          bytes_u8x16[row][v] = in_register(found_u8x16[row][v]);
        });
      }
    });
    weights += kLut5Columns;
    tables += kLut5Table;
  };
  const auto widen = [&]() __attribute__((always_inline)) {
    repeat<Rows>([&](auto row) {
      repeat<registers>([&](auto v) {
        low_u16x8[row][v] = vaddw_u8(low_u16x8[row][v], vget_low_u8(bytes_u8x16[row][v]));
        high_u16x8[row][v] = vaddw_high_u8(high_u16x8[row][v], bytes_u8x16[row][v]);
      });
    });
  };

  const uint8_t* const end = tables + groups * kLut5Table;
  const uint8_t* const full_end = tables + groups / Run * Run * kLut5Table;
  while (tables != full_end) {
    look_up(std::true_type());
    repeat<Run - 1>([&](auto) { look_up(std::false_type()); });
    widen();
  }
  if (tables != end) {
    look_up(std::true_type());
    while (tables != end) look_up(std::false_type());
    widen();
  }

  const int32x4_t by = vdupq_n_s32(shift);
  repeat<Rows>([&](auto row) {
    repeat<registers>([&](auto v) {
      uint32_t* const to = sums + 2 * v * panel_sums + row * kNeonPanel;
      add_eight(to, low_u16x8[row][v], by);
      add_eight(to + panel_sums, high_u16x8[row][v], by);
    });
  });
}

// ---- the family's table --------------------------------------------------------------------------------------------
constexpr int in_order(int column) { return column; }

template <int ABits, int... Rows>
constexpr void fill_lut5_tiles(Lut6Family& family, int rate, std::integer_sequence<int, Rows...>) {
  family.rate[ABits] = rate;
  ((family.tile[ABits][Rows + 1] = lut5_tile_neon<lut5_run(ABits), Rows + 1>), ...);
}

// Rates by a_bits, from 2: one bit is popcount's.
constexpr Lut6Family lut5_family_neon(int two_or_three, int four, double table_cycles) {
  Lut6Family family{};
  family.table_cycles = table_cycles;
  family.name = "tbl";
  family.columns = kLut5Columns;
  family.panel = kNeonPanel;
  family.tile_rows = kLut5Rows;
  family.codes = kLut5Codes;
  family.table_stride = kLut5Stride;
  family.place = in_order;
  family.tables = lut5_tables_neon;
  constexpr auto rows = std::make_integer_sequence<int, kLut5Rows>();
  fill_lut5_tiles<2>(family, two_or_three, rows), fill_lut5_tiles<3>(family, two_or_three, rows);
  fill_lut5_tiles<4>(family, four, rows);
  return family;
}

}  // namespace
}  // namespace soniq
