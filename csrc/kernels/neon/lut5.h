// lut5 on NEON: tables of the 32 sums of five activations. Goal: twice the products of udot for 1-bit weights with activations
// of 2 to 4 bits.
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
// bytes starts with what was found first, so a run of r lookups costs 2 r + 1 instructions: r is 51, 17, 7, 3 and 1 for 1 to 5
// bits, and at most 6 here: longer runs gain 4 % and outgrow what GCC keeps in registers.
//
// A 16-entry table (four codes, one register) would make 64 products of the same two instructions, and unpack its indexes.
//
// Static throughput of the inner loop (llvm-mca 19, no memory stalls), MAC a cycle, divided by w_bits:
//   a_bits             2, 3              4                 5
//   rows               1     2     3     1     2     3     3      byte products, the best form
//   Cortex-A53         9     12    14    9     13    14
//   Cortex-A72         22    23    26    21    24    25
//   Neoverse N1        74    65    74    68    68    69
//   Neoverse V1        74    69    74    68    68    69
//   Neoverse V2        119   126   137   118   119   120
#pragma once

#include <arm_neon.h>

#include "kernels/dot_loop.h"

// GCC's scheduling before registers are allocated overlaps so many loads here that the sums spill.
#if defined(__GNUC__) && !defined(__clang__)
#define SONIQ_AS_WRITTEN [[gnu::optimize("no-schedule-insns")]]
#else
#define SONIQ_AS_WRITTEN
#endif

namespace soniq {
namespace {

constexpr int kLut5Codes = 5, kLut5Table = 32;
constexpr int kLut5Rows = 3, kLut5Registers = 2, kLut5Columns = 16 * kLut5Registers, kLut5Panel = 8;
constexpr int kLut5Stride = 53 * 64;  // bytes between two rows of tables: 103 groups a block, written three at a time
static_assert(kLut5Stride >= (kBlock + 14) / 15 * 3 * kLut5Table);

// ---- tables --------------------------------------------------------------------------------------------------------
struct Lut5Index {
  uint8_t byte[16];
};
constexpr uint8_t kNoCode = 0xff;  // tbl gives 0

// Of three groups: byte 4 g + e takes code `first` of group g if e is odd, and code first + 1 if e has its second bit.
constexpr Lut5Index pair_index(int first, int second) {
  Lut5Index index{};
  for (int b = 0; b < 16; ++b)
    index.byte[b] = b < 12 && (b % 4 >> second & 1) ? uint8_t(kLut5Codes * (b / 4) + first + second) : kNoCode;
  return index;
}
// Entry e of group g is entry e % 4 of its first pair plus entry e / 4 of its second one.
constexpr Lut5Index entry_index(int group, int divisor) {
  Lut5Index index{};
  for (int e = 0; e < 16; ++e) index.byte[e] = uint8_t(4 * group + e / divisor % 4);
  return index;
}
template <int First, int Second>
constexpr Lut5Index kPairIndex = pair_index(First, Second);
template <int Group, int Divisor>
constexpr Lut5Index kEntryIndex = entry_index(Group, Divisor);

template <int First>
inline uint8x16_t sums_of_pairs(uint8x16_t codes_u8x15) {
  return vaddq_u8(vqtbl1q_u8(codes_u8x15, vld1q_u8(kPairIndex<First, 0>.byte)),
                  vqtbl1q_u8(codes_u8x15, vld1q_u8(kPairIndex<First, 1>.byte)));
}

void lut5_tables_neon(const uint8_t* codes, int groups, uint8_t* tables) {
  for (int group = 0; group < groups; group += 3, codes += 15) {
    const uint8x16_t codes_u8x15 = vld1q_u8(codes);
    const uint8x16_t first_u8x12 = sums_of_pairs<0>(codes_u8x15), second_u8x12 = sums_of_pairs<2>(codes_u8x15);
    repeat<3>([&](auto g) {
      const uint8x16_t four_u8x16 = vaddq_u8(vqtbl1q_u8(first_u8x12, vld1q_u8(kEntryIndex<g, 1>.byte)),
                                             vqtbl1q_u8(second_u8x12, vld1q_u8(kEntryIndex<g, 4>.byte)));
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
static_assert(lut5_run(3) == 6 && lut5_run(4) == 3 && lut5_run(5) == 1);
static_assert((kBlock + 4) / 5 * kLut5Codes * 31 <= 65535);  // 16 bits hold a block

// GCC would otherwise rearrange a chain of byte additions into a tree, and keep its leaves in memory.
inline uint8x16_t in_register(uint8x16_t v) {
  asm("" : "+w"(v));
  return v;
}

inline void add_four(uint32_t* sums, uint32x4_t u32x4, int32x4_t shift) {
  vst1q_u32(sums, vaddq_u32(vld1q_u32(sums), vshlq_u32(u32x4, shift)));
}
inline void add_eight(uint32_t* sums, uint16x8_t u16x8, int32x4_t shift) {
  add_four(sums, vmovl_u16(vget_low_u16(u16x8)), shift);
  add_four(sums + 4, vmovl_high_u16(u16x8), shift);
}

template <int Run, int Rows>
SONIQ_AS_WRITTEN void lut5_tile_neon(const uint8_t* weights, const uint8_t* tables, int groups, uint32_t* sums,
                                     int64_t panel_sums, int shift) {
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
        const uint8x16x2_t table_u8x32 = vld1q_u8_x2(tables + next * kLut5Stride);
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
      uint32_t* const to = sums + 2 * v * panel_sums + row * kLut5Panel;
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
constexpr Lut6Family lut5_family_neon(int two_or_three, int four, int five, double table_cycles) {
  Lut6Family family{};
  family.table_cycles = table_cycles;
  family.name = "tbl";
  family.columns = kLut5Columns;
  family.panel = kLut5Panel;
  family.tile_rows = kLut5Rows;
  family.codes = kLut5Codes;
  family.table_stride = kLut5Stride;
  family.place = in_order;
  family.tables = lut5_tables_neon;
  constexpr auto rows = std::make_integer_sequence<int, kLut5Rows>();
  fill_lut5_tiles<2>(family, two_or_three, rows), fill_lut5_tiles<3>(family, two_or_three, rows);
  fill_lut5_tiles<4>(family, four, rows), fill_lut5_tiles<5>(family, five, rows);
  return family;
}

}  // namespace
}  // namespace soniq
