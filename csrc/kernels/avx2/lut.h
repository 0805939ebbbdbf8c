// lut on AVX2. Goal: five times the rate of byte products for weights of one bit, and well ahead of them for two and three.
//
//   table        16 bytes, the subset sums of four activations, in both 128-bit lanes (vbroadcasti128)
//   index byte   four weight bits of one output: vpshufb looks up 32 outputs, vpaddb adds bytes
//
//   tile 2 rows x 2 registers of 32 outputs: a table is read once for 64 outputs, or L2 could not deliver tables fast enough
//
//               i0          i1          4 sums of bytes; before a byte could overflow it is widened into
//   row 0, t0   t0[i0]      t0[i1]        words += bytes          (even + 256 * odd, modulo 2^16)
//   row 1, t1   t1[i0]      t1[i1]        odd += bytes >> 8       (even = words - 256 * odd, once, at the end)
//                                       4 bytes + 8 wide sums + 2 indexes + 1 table + 1 found: all 16 registers
//
//   index bytes are unpacked from nibbles once a brick, into L1, for all rows (346 cycles a brick, of which 256 are stores);
//   with a row or two they are made in registers instead (few)
//
// Outputs stand so that widening to 32 bits is masks and shifts alone: output 8 q + lane of a panel in byte 4 lane + q.
//
// Activations of one bit: a table entry is at most 4, so the tables of two rows share the bytes of one, a nibble each, and a
// lookup serves both (NibbleSums): tile 4 rows x 64.
//
// A lookup is 32 outputs x 4 codes for vpshufb + vpaddb, and each widening is three instructions more and an addition less.
// Zen 4 starts 3.3 of them a cycle at best, which is the ceiling here. Measured at 3.67 GHz: MAC a cycle of the tile with its
// tables in L2, and 128 x 4096 x 4096 from codes to float32, where oneDNN's INT8 held to AVX2 has 94 to 108 GMAC/s.
//
//   a_bits                          1     2     3     4     5     6
//   lookups between two widenings  56    16     8     4     2     1
//   ceiling, MAC a cycle          274   201   190   171   142   107
//   tile                          219   176   166   154   134   104
//   W1, GMAC/s                    721   566   546   505   446   354       W2A2: 292
//
// Tables cost 0.25 cycles a code and row, from pairs (PairSums): 12 shuffles and shifts for 32 codes.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/vocabulary.h"
#include "kernels/dot_loop.h"
#include "kernels/lut_tables.h"

namespace soniq {
namespace {

constexpr int kAvx2LutRows = 2, kAvx2LutVectors = 2;
constexpr int kPackedUnit =
    128 * kAvx2LutVectors;  // bytes of 32 codes of a plane; 8 indexes of each output are twice that

// Bytes 4j..4j+3 of a register: the sums of 0, 1 or 2 codes of pair j: 0, a, b, a + b. Both halves of a unit's pairs.
struct PairSums {
  __m256i pairs_u8x32[2];

  // Every second group of four codes to each half of the register, so that tables come out in the order of their codes.
  explicit PairSums(const uint8_t* codes) {
    const __m256i codes_u8x32 = _mm256_permutevar8x32_epi32(load_ymm(codes), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    const __m256i first_u16x16 = _mm256_slli_epi16(codes_u8x32, 8);  // 0, a
    const __m256i second_u16x16 = _mm256_add_epi16(                  // b, a + b
        _mm256_add_epi16(first_u16x16, _mm256_srli_epi16(codes_u8x32, 8)),
        _mm256_and_si256(codes_u8x32, _mm256_set1_epi16(short(0xff00))));
    pairs_u8x32[0] = _mm256_unpacklo_epi16(first_u16x16, second_u16x16);
    pairs_u8x32[1] = _mm256_unpackhi_epi16(first_u16x16, second_u16x16);
  }
};

// A table is every sum of one pair plus every sum of the next: entry e = pair[e % 4] + next[e / 4].
template <int Pair>
inline __m256i table_of_pairs(__m256i pairs_u8x32) {
  const __m256i next = _mm256_set1_epi32(0x01010101 * (4 * Pair + 4));
  const __m256i entry = _mm256_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0, 0x01010101, 0x02020202, 0x03030303);
  return _mm256_add_epi8(_mm256_shuffle_epi32(pairs_u8x32, Pair * 0x55),
                         _mm256_shuffle_epi8(pairs_u8x32, _mm256_add_epi8(next, entry)));
}

void tables_avx2(const uint8_t* codes, int units, uint8_t* tables) {
  for (int unit = 0; unit < units; ++unit, tables += 128) {
    const PairSums sums(codes + unit * 32);
    repeat<2>([&](auto half) {
      store_ymm(tables + half * 64, table_of_pairs<0>(sums.pairs_u8x32[half]));
      store_ymm(tables + half * 64 + 32, table_of_pairs<2>(sums.pairs_u8x32[half]));
    });
  }
}

// Groups of low nibbles, 0..3, and those of high ones, 4..7, take turns.
constexpr int group_of_turn(int turn) { return turn / 2 + turn % 2 * 4; }
template <int Turn>
inline __m256i index_of_turn(const uint8_t* packed) {
  const __m256i bytes = load_ymm(packed + Turn / 2 * kAvx2LutVectors * 32);
  return _mm256_and_si256(Turn % 2 ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(0x0f));
}

// The next plane or brick is unpacked when all rows have passed this one: time enough to fetch it into L2.
inline void prefetch_next_plane(const uint8_t* packed_unit) {
  constexpr int plane_bytes = kBlock * 32 * kAvx2LutVectors / 8;
  const char* const next = reinterpret_cast<const char*>(packed_unit) + plane_bytes;
  repeat<kPackedUnit / 64>([&](auto line) { _mm_prefetch(next + line * 64, _MM_HINT_T1); });
}

void indexes_avx2(const uint8_t* weights, int units, uint8_t* indexes) {
  for (int unit = 0; unit < units; ++unit, weights += kPackedUnit, indexes += 2 * kPackedUnit) {
    prefetch_next_plane(weights);
    repeat<8>([&](auto turn) {
      repeat<kAvx2LutVectors>([&](auto v) {
        store_ymm(indexes + (turn * kAvx2LutVectors + v) * 32, index_of_turn<turn>(weights + v * 32));
      });
    });
  }
}

// What tiles read of the weights: index bytes, or packed weights where there are too few rows to repay unpacking them.
template <bool Packed>
struct LutWeights {
  static constexpr int kUnitBytes = Packed ? kPackedUnit : 2 * kPackedUnit;

  template <int Turn>
  [[gnu::always_inline]] static __m256i index(const uint8_t* weights) {
    if constexpr (Packed) return in_register(index_of_turn<Turn>(weights));
    return in_register(load_ymm(weights + Turn * kAvx2LutVectors * 32));
  }
};

// The group of four codes of a turn: use(row, v, what 32 outputs find). A row looks up all before anything is added: a tenth faster
// than by turns.
template <bool Packed, int Turn, int Rows, class Use>
[[gnu::always_inline]] inline void look_up(const uint8_t* weights, const uint8_t* tables, int64_t row_stride,
                                           Use&& use) {
  __m256i index_u8x32[kAvx2LutVectors];
  repeat<kAvx2LutVectors>([&](auto v) { index_u8x32[v] = LutWeights<Packed>::template index<Turn>(weights + v * 32); });
  repeat<Rows>([&](auto row) {
    const auto* table = reinterpret_cast<const __m128i*>(tables + row * row_stride + group_of_turn(Turn) * 16);
    const __m256i table_u8x32 = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
    __m256i found_u8x32[kAvx2LutVectors];
    repeat<kAvx2LutVectors>(
        [&](auto v) { found_u8x32[v] = in_register(_mm256_shuffle_epi8(table_u8x32, index_u8x32[v])); });
    repeat<kAvx2LutVectors>([&](auto v) { use(row, v, found_u8x32[v]); });
  });
}

// body(row, v) for every register of a tile.
template <int Rows, class Body>
[[gnu::always_inline]] inline void each_register(Body&& body) {
  repeat<Rows>([&](auto row) { repeat<kAvx2LutVectors>([&](auto v) { body(row, v); }); });
}

// What has been widened of a register of bytes: words are even bytes + 256 * odd bytes, modulo 2^16.
struct WideSums {
  __m256i words_u16x16, odd_u16x16;

  void clear() { words_u16x16 = odd_u16x16 = _mm256_setzero_si256(); }
  [[gnu::always_inline]] void add(__m256i bytes_u8x32) {
    words_u16x16 = plus_i16(words_u16x16, bytes_u8x32);
    odd_u16x16 = plus_i16(odd_u16x16, _mm256_srli_epi16(bytes_u8x32, 8));
  }
  // sums[0..31] of a panel: output 8 q + lane stands in byte 4 lane + q.
  [[gnu::always_inline]] void add_to(uint32_t* sums, __m128i shift) const {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i even_u16x16 = _mm256_sub_epi16(words_u16x16, _mm256_slli_epi16(odd_u16x16, 8));
    add_eight(sums, _mm256_and_si256(even_u16x16, low), shift);
    add_eight(sums + 8, _mm256_and_si256(odd_u16x16, low), shift);
    add_eight(sums + 16, _mm256_srli_epi32(even_u16x16, 16), shift);
    add_eight(sums + 24, _mm256_srli_epi32(odd_u16x16, 16), shift);
  }
};
static_assert(kBlock * ((1 << kMaxLutBits) - 1) <= UINT16_MAX);  // 16 bits hold a block

template <int Rows>
[[gnu::always_inline]] inline void add_tile(const WideSums (&wide)[Rows][kAvx2LutVectors], uint32_t* sums,
                                            int64_t panel_sums, int shift) {
  const __m128i by = _mm_cvtsi32_si128(shift);
  each_register<Rows>([&](auto row, auto v) { wide[row][v].add_to(sums + v * panel_sums + row * 32, by); });
}

template <int ABits, int Rows, bool Packed>
void lut_tile_avx2(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int units, uint32_t* sums,
                   int64_t panel_sums, int shift) {
  constexpr int per_byte = lookups_per_byte(ABits), units_per_byte = most(1, per_byte / 8);
  constexpr int run = least(per_byte, 8);
  __m256i bytes_u8x32[Rows][kAvx2LutVectors];
  WideSums wide[Rows][kAvx2LutVectors];
  const auto widen = [&](auto row, auto v) __attribute__((always_inline)) { wide[row][v].add(bytes_u8x32[row][v]); };
  const auto unit = [&](auto first) __attribute__((always_inline)) {
    repeat<8>([&](auto turn) {
      look_up<Packed, turn, Rows>(weights, tables, row_stride, [&](auto row, auto v, __m256i found_u8x32) {
        constexpr bool starts = units_per_byte > 1 ? first && turn == 0 : turn % run == 0;
        if constexpr (!starts) found_u8x32 = plus_i8(bytes_u8x32[row][v], found_u8x32);
        bytes_u8x32[row][v] = found_u8x32;
        if constexpr (units_per_byte == 1 && turn % run == run - 1) widen(row, v);
      });
    });
    tables += 128;
    weights += LutWeights<Packed>::kUnitBytes;
  };

  each_register<Rows>([&](auto row, auto v) { wide[row][v].clear(); });
  const uint8_t* const end = tables + units * 128;
  do {
    const uint8_t* const full = least(tables + units_per_byte * 128, end);
    unit(std::true_type());
    if constexpr (units_per_byte > 1) {
      while (tables != full) unit(std::false_type());
      each_register<Rows>(widen);
    }
  } while (tables != end);
  add_tile(wide, sums, panel_sums, shift);
}

// One bit: a table for two rows, the first in the low nibbles. Three looked-up sums of at most 4 fill a nibble; `both` is
// their sum modulo 2^8, `second` what the high nibbles add up to, and so the first row's sum is both - 16 * second.
struct NibbleSums {
  __m256i nibbles_u4x64, both_u8x32, second_u8x32;

  void clear() { both_u8x32 = second_u8x32 = _mm256_setzero_si256(); }
  template <bool First>
  [[gnu::always_inline]] void add(__m256i found_u4x64) {
    nibbles_u4x64 = First ? found_u4x64 : plus_i8(nibbles_u4x64, found_u4x64);
  }
  [[gnu::always_inline]] void widen() {
    const __m256i high_u8x32 = _mm256_and_si256(_mm256_srli_epi16(nibbles_u4x64, 4), _mm256_set1_epi8(0x0f));
    both_u8x32 = plus_i8(both_u8x32, nibbles_u4x64);
    second_u8x32 = plus_i8(second_u8x32, high_u8x32);
  }
  __m256i first_u8x32() const {
    const __m256i second_times_16 = _mm256_and_si256(_mm256_slli_epi16(second_u8x32, 4), _mm256_set1_epi8(char(0xf0)));
    return _mm256_sub_epi8(both_u8x32, second_times_16);
  }
};

template <int Rows>
void lut_pair_tile_avx2(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int units, uint32_t* sums,
                        int64_t panel_sums, int shift) {
  constexpr int pairs = (Rows + 1) / 2, units_per_byte = lookups_per_byte(1) / 8;
  static_assert(3 * 4 <= 15 && units_per_byte * 8 * 4 <= 255);  // nibbles, and bytes of `second`
  NibbleSums narrow[pairs][kAvx2LutVectors];
  WideSums wide[Rows][kAvx2LutVectors];
  each_register<Rows>([&](auto row, auto v) { wide[row][v].clear(); });

  const uint8_t* const end = tables + units * 128;
  do {
    const uint8_t* const full = least(tables + units_per_byte * 128, end);
    each_register<pairs>([&](auto pair, auto v) { narrow[pair][v].clear(); });
    do {
      repeat<8>([&](auto turn) {
        look_up<false, turn, pairs>(weights, tables, row_stride, [&](auto pair, auto v, __m256i found_u4x64) {
          narrow[pair][v].template add<turn % 3 == 0>(found_u4x64);
          if constexpr (turn % 3 == 2 || turn == 7) narrow[pair][v].widen();
        });
      });
      tables += 128;
      weights += LutWeights<false>::kUnitBytes;
    } while (tables != full);
    each_register<Rows>([&](auto row, auto v) {
      const NibbleSums& both = narrow[row / 2][v];
      wide[row][v].add(row % 2 ? both.second_u8x32 : both.first_u8x32());
    });
  } while (tables != end);
  add_tile(wide, sums, panel_sums, shift);
}

template <int... Rows>
constexpr void fill_lut_pair_tiles_avx2(LutFamily& family, std::integer_sequence<int, Rows...>) {
  ((family.tile[1][Rows + 1] = lut_pair_tile_avx2<Rows + 1>), ...);
}

template <int ABits, int... Rows>
constexpr void fill_lut_tiles_avx2(LutFamily& family, std::integer_sequence<int, Rows...>) {
  if constexpr (ABits > 1) ((family.tile[ABits][Rows + 1] = lut_tile_avx2<ABits, Rows + 1, false>), ...);
  ((family.few[ABits][Rows + 1] = lut_tile_avx2<ABits, Rows + 1, true>), ...);
}

constexpr int lut_place_avx2(int column, int group) {
  return (group * kAvx2LutVectors + column / 32) * 32 + column % 8 * 4 + column % 32 / 8;
}

template <int... ABits>
constexpr LutFamily lut_family_avx2(std::integer_sequence<int, ABits...>) {
  LutFamily family{};
  family.name = "vpshufb";
  family.columns = 32 * kAvx2LutVectors;
  family.place = lut_place_avx2;
  family.tables = tables_avx2;
  family.pixel = 4;
  family.indexes = indexes_avx2;
  family.paired_bits = 1;
  family.few_rows = kAvx2LutRows;
  fill_lut_pair_tiles_avx2(family, std::make_integer_sequence<int, 2 * kAvx2LutRows>());
  (fill_lut_tiles_avx2<ABits + 1>(family, std::make_integer_sequence<int, kAvx2LutRows>()), ...);
  constexpr int rates[] = {219, 176, 166, 154, 134, 104};
  ((family.rate[ABits + 1] = rates[ABits]), ...);
  return family;
}

constexpr LutFamily kAvx2Lut = lut_family_avx2(std::make_integer_sequence<int, kMaxLutBits>());

}  // namespace
}  // namespace soniq
