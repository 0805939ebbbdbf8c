// lut on AVX2. Goal: well ahead of byte products for weights of one and two bits.
//
//   one table: 16 bytes, the subset sums of four activations, in both 128-bit lanes (vbroadcasti128)
//   index byte = four weight bits of one output: vpshufb looks up 32 outputs, vpaddb adds bytes; before a byte could
//   overflow, even and odd bytes are widened into two registers of 16-bit sums; those hold a whole block of 512 codes:
//   512 * 63 = 32256
//
//   tile 4 rows x 32 outputs: 4 byte sums, 8 sums of 16 bits, 2 indexes, 1 table
//   a step of 4 codes: 4 x (vpshufb + vpaddb), 1.5 for the index, 4 loads of tables, and 5 / lookups_per_byte a row to widen
//   128 products for vpshufb + vpaddb: 210 a cycle on Zen 4 in registers alone. The loop has a load of a table for every
//   lookup and the widening beside them: llvm-mca (static, znver3) gives 90 to 113, divided by w_bits; `rate` is that.
//   vpmaddubsw gives 32.
#pragma once

#include <immintrin.h>

#include "kernels/dot_loop.h"
#include "kernels/lut_tables.h"

namespace soniq {
namespace {

constexpr int kAvx2LutRows = 4;

inline __m256i load_ymm(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// The entries that take code i, as bytes of ones.
template <int I>
inline __m256i has_bit_mask() {
  alignas(32) uint8_t mask[32];
  for (int e = 0; e < 32; ++e) mask[e] = kHasBit[I] >> (e % 16) & 1 ? 0xff : 0;
  return load_ymm(mask);
}

void tables_avx2(const uint8_t* codes, int units, uint8_t* tables) {
  for (int pair = 0; pair < 4 * units; ++pair) {  // two tables: eight codes
    int64_t eight;
    std::memcpy(&eight, codes + pair * 8, 8);
    const __m256i codes_u8x32 = _mm256_set1_epi64x(eight);
    __m256i sums_u8x32 = _mm256_setzero_si256();
    repeat<4>([&](auto i) {
      const __m256i code = _mm256_set_m128i(_mm_set1_epi8(4 + i), _mm_set1_epi8(i));
      const __m256i taken_u8x32 = _mm256_and_si256(_mm256_shuffle_epi8(codes_u8x32, code), has_bit_mask<i>());
      sums_u8x32 = _mm256_add_epi8(sums_u8x32, taken_u8x32);
    });
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(tables + pair * 32), sums_u8x32);
  }
}

// One row's sums: bytes, and what has been widened of them.
struct LutSums {
  __m256i bytes_u8x32, even_u16x16, odd_u16x16;

  void clear() { bytes_u8x32 = even_u16x16 = odd_u16x16 = _mm256_setzero_si256(); }
  void widen() {
    even_u16x16 = _mm256_add_epi16(even_u16x16, _mm256_and_si256(bytes_u8x32, _mm256_set1_epi16(0xff)));
    odd_u16x16 = _mm256_add_epi16(odd_u16x16, _mm256_srli_epi16(bytes_u8x32, 8));
    bytes_u8x32 = _mm256_setzero_si256();
  }
  // Interleaving even and odd brings columns back into order: 0-7 and 16-23, 8-15 and 24-31.
  void add_to(uint32_t* sums, __m128i shift) const {
    const __m256i low = _mm256_unpacklo_epi16(even_u16x16, odd_u16x16);
    const __m256i high = _mm256_unpackhi_epi16(even_u16x16, odd_u16x16);
    add_eight(sums, _mm256_castsi256_si128(low), shift);
    add_eight(sums + 8, _mm256_castsi256_si128(high), shift);
    add_eight(sums + 16, _mm256_extracti128_si256(low, 1), shift);
    add_eight(sums + 24, _mm256_extracti128_si256(high, 1), shift);
  }
  static void add_eight(uint32_t* sums, __m128i u16x8, __m128i shift) {
    const __m256i added = _mm256_sll_epi32(_mm256_cvtepu16_epi32(u16x8), shift);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), _mm256_add_epi32(load_ymm(sums), added));
  }
};

template <int ABits, int Rows>
void lut_tile_avx2(const uint8_t* weights, const uint8_t* tables, int units, uint32_t* sums, int shift) {
  constexpr int per_byte = lookups_per_byte(ABits), units_per_byte = per_byte / 8;
  const __m256i low_nibble = _mm256_set1_epi8(0x0f);
  LutSums s[Rows];
  repeat<Rows>([&](auto row) { s[row].clear(); });

  const uint8_t* const end = tables + units * 128;
  int until_full = units_per_byte;
  do {
    repeat<4>([&](auto t) {
      const __m256i packed = load_ymm(weights + t * 32);
      const __m256i index_u8x32[2] = {_mm256_and_si256(packed, low_nibble),
                                      _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_nibble)};
      repeat<2>([&](auto half) {
        constexpr int lookup = 2 * t + half + 1;  // of this unit
        repeat<Rows>([&](auto row) {
          const auto* table = reinterpret_cast<const __m128i*>(tables + row * kTableStride + (t + 4 * half) * 16);
          const __m256i table_u8x32 = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
          s[row].bytes_u8x32 = _mm256_add_epi8(s[row].bytes_u8x32, _mm256_shuffle_epi8(table_u8x32, index_u8x32[half]));
          if constexpr (units_per_byte == 0 && lookup % per_byte == 0) s[row].widen();
        });
      });
    });
    tables += 128;
    weights += 128;
    if (units_per_byte > 0 && (--until_full == 0 || tables == end)) {
      repeat<Rows>([&](auto row) { s[row].widen(); });
      until_full = units_per_byte;
    }
  } while (tables != end);

  const __m128i by = _mm_cvtsi32_si128(shift);
  repeat<Rows>([&](auto row) { s[row].add_to(sums + row * 32, by); });
}

template <int ABits, int... Rows>
constexpr void fill_lut_tiles_avx2(LutFamily& family, std::integer_sequence<int, Rows...>) {
  ((family.tile[ABits][Rows + 1] = lut_tile_avx2<ABits, Rows + 1>), ...);
}

constexpr LutFamily lut_family_avx2() {
  LutFamily family{};
  family.name = "vpshufb";
  family.columns = 32;
  family.tile_rows = kAvx2LutRows;
  family.rate = 90;
  family.column_stride = 1;
  family.group_stride = 32;
  family.tables = tables_avx2;
  constexpr auto rows = std::make_integer_sequence<int, kAvx2LutRows>();
  fill_lut_tiles_avx2<1>(family, rows), fill_lut_tiles_avx2<2>(family, rows), fill_lut_tiles_avx2<3>(family, rows);
  fill_lut_tiles_avx2<4>(family, rows), fill_lut_tiles_avx2<5>(family, rows), fill_lut_tiles_avx2<6>(family, rows);
  return family;
}

constexpr LutFamily kAvx2Lut = lut_family_avx2();

}  // namespace
}  // namespace soniq
