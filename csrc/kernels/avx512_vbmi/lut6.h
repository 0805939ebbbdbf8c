// lut6 on AVX-512 with VBMI. Goal: four times the INT8 rate for 1-bit weights with activations of 2 bits, more than the
// 16-entry tables of lut reach with 3 and 4.
//
//   one register is one table: the 64 subset sums of six activations of a row
//   one register of indexes: six weight bits each of 64 outputs; vpermb looks all of them up, vpaddb adds bytes
//   before a byte could overflow (14 lookups at 2 bits, 6 at 3, 2 at 4), bytes are widened: words += bytes as 16-bit words,
//   which is even bytes + 256 * odd ones, odd += bytes >> 8, and even = words - 256 * odd is left for the end of the block
//
//   tile 2 rows x 4 registers of 64 outputs: 8 byte sums, 16 word sums, 4 indexes, 1 table: 29 of 32 registers
//   a group of six codes: 8 x (vpermb + vpaddb), 4 + 2 loads; 8 x (2 vpaddw + vpsrlw) to widen
//   384 products for two instructions: 384 a cycle, with the widening 347, 329 and 256 at 2, 3 and 4 bits, over w_bits.
//   Four index registers share a table, so that tables come from L2 at 14 bytes a cycle while a block of weights (22 KB)
//   stays in L1. Measured on Zen 4 at 128 x 4096 x 4096, quantization and all: 747, 690 and 645 GMAC/s at 1 x 2, 1 x 3, 1 x 4,
//   of 1270, 1210 and 940; the rest is table building (0.5 cycles a code, bound by L2 writes of 11 bytes a code), the end
//   of a block (8 %), and the way in and out.
#pragma once

#include <immintrin.h>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

static_assert((kBlock + 5) / 6 * 6 * ((1 << kMaxLut6Bits) - 1) < 1 << 15);

// How many looked-up sums of six codes a byte can add up.
constexpr int lut6_lookups_per_byte(int a_bits) { return 255 / (6 * ((1 << a_bits) - 1)); }

struct Lut6Index {
  uint8_t byte[64];
};

// Tables of eight triples first, 8 sums each; a group of six is then a sum of two of them.
//
// Byte b of the tables of 8 triples takes code i of triple b / 8.
constexpr Lut6Index triple_index(int i) {
  Lut6Index index{};
  for (int b = 0; b < 64; ++b) index.byte[b] = uint8_t(3 * (b / 8) + i);
  return index;
}
constexpr uint64_t triple_mask(int i) {
  uint64_t mask = 0;
  for (int b = 0; b < 64; ++b) mask |= uint64_t(b >> i & 1) << b;
  return mask;
}
// Entry e of group j is entry e % 8 of triple 2j plus entry e / 8 of triple 2j + 1.
constexpr Lut6Index pair_index(int group, int half) {
  Lut6Index index{};
  for (int e = 0; e < 64; ++e) index.byte[e] = uint8_t(16 * group + 8 * half + (half ? e / 8 : e % 8));
  return index;
}
template <int I>
constexpr Lut6Index kTripleIndex = triple_index(I);
template <int Group, int Half>
constexpr Lut6Index kPairIndex = pair_index(Group, Half);

void lut6_tables_vbmi(const uint8_t* codes, int groups, uint8_t* tables) {
  for (int group = 0; group < groups; group += 4, codes += 24, tables += 256) {
    const __m512i codes_u8x24 = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    __m512i triples_u8x64 = _mm512_setzero_si512();
    repeat<3>([&](auto i) {
      const __m512i index = _mm512_loadu_si512(kTripleIndex<i>.byte);
      triples_u8x64 = _mm512_add_epi8(triples_u8x64, _mm512_maskz_permutexvar_epi8(triple_mask(i), index, codes_u8x24));
    });
    repeat<4>([&](auto j) {
      const __m512i low = _mm512_permutexvar_epi8(_mm512_loadu_si512(kPairIndex<j, 0>.byte), triples_u8x64);
      const __m512i high = _mm512_permutexvar_epi8(_mm512_loadu_si512(kPairIndex<j, 1>.byte), triples_u8x64);
      _mm512_storeu_si512(tables + j * 64, _mm512_add_epi8(low, high));
    });
  }
}

// GCC would otherwise rearrange a chain of byte additions into a tree, and keep its leaves in memory.
inline __m512i in_register(__m512i v) {
  asm("" : "+v"(v));
  return v;
}

// Output 16 q + lane of a vector stands in byte 4 lane + q: q = 0 and 2 are the words of even_u16x32, 1 and 3 of odd_u16x32,
// and vpdpwssd picks one word of a lane, shifts it (times 2^shift) and adds it, since no word of a block reaches 2^15.
struct Lut6Shift {
  __m512i low_i16x32, high_i16x32;
  __m128i rest;  // what 16 signed bits cannot hold of the shift

  explicit Lut6Shift(int shift)
      : low_i16x32(_mm512_set1_epi32(1 << (shift < 14 ? shift : 14))),
        high_i16x32(_mm512_slli_epi32(low_i16x32, 16)),
        rest(_mm_cvtsi32_si128(shift > 14 ? shift - 14 : 0)) {}
};

template <bool Rest>
inline void add_sixteen(uint32_t* sums, __m512i u16x32, __m512i factor_i16x32, __m128i rest) {
  const __m512i old = _mm512_loadu_si512(sums);
  if constexpr (Rest) {
    const __m512i picked = _mm512_dpwssd_epi32(_mm512_setzero_si512(), u16x32, factor_i16x32);
    _mm512_storeu_si512(sums, _mm512_add_epi32(old, _mm512_sll_epi32(picked, rest)));
  } else {
    _mm512_storeu_si512(sums, _mm512_dpwssd_epi32(old, u16x32, factor_i16x32));
  }
}

template <bool Rest>
inline void add_sixty_four(uint32_t* first_panel, uint32_t* second_panel, __m512i words_u16x32, __m512i odd_u16x32,
                           const Lut6Shift& by) {
  const __m512i even_u16x32 = _mm512_sub_epi16(words_u16x32, _mm512_slli_epi16(odd_u16x32, 8));
  add_sixteen<Rest>(first_panel, even_u16x32, by.low_i16x32, by.rest);
  add_sixteen<Rest>(first_panel + 16, odd_u16x32, by.low_i16x32, by.rest);
  add_sixteen<Rest>(second_panel, even_u16x32, by.high_i16x32, by.rest);
  add_sixteen<Rest>(second_panel + 16, odd_u16x32, by.high_i16x32, by.rest);
}

template <int ABits, int Rows, int Vectors>
void lut6_tile_vbmi(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int groups, uint32_t* sums,
                    int64_t panel_sums, int shift) {
  constexpr int per_byte = lut6_lookups_per_byte(ABits);
  // words: even bytes + 256 * odd bytes, modulo 2^16
  __m512i bytes_u8x64[Rows][Vectors], words_u16x32[Rows][Vectors], odd_u16x32[Rows][Vectors];
  repeat<Rows>([&](auto row) {
    repeat<Vectors>([&](auto v) { words_u16x32[row][v] = odd_u16x32[row][v] = _mm512_setzero_si512(); });
  });

  const auto look_up = [&](auto first) __attribute__((always_inline)) {
    __m512i index_u8x64[Vectors];
    repeat<Vectors>([&](auto v) { index_u8x64[v] = in_register(_mm512_loadu_si512(weights + v * 64)); });
    repeat<Rows>([&](auto row) {
      const __m512i table_u8x64 = _mm512_loadu_si512(tables + row * row_stride);
      repeat<Vectors>([&](auto v) {
        __m512i found_u8x64 = _mm512_permutexvar_epi8(index_u8x64[v], table_u8x64);
        if constexpr (!first) found_u8x64 = _mm512_add_epi8(bytes_u8x64[row][v], found_u8x64);
        bytes_u8x64[row][v] = in_register(found_u8x64);
      });
    });
    weights += Vectors * 64;
    tables += 64;
  };
  const auto widen = [&]() __attribute__((always_inline)) {
    repeat<Rows>([&](auto row) {
      repeat<Vectors>([&](auto v) {
        words_u16x32[row][v] = _mm512_add_epi16(words_u16x32[row][v], bytes_u8x64[row][v]);
        odd_u16x32[row][v] = _mm512_add_epi16(odd_u16x32[row][v], _mm512_srli_epi16(bytes_u8x64[row][v], 8));
      });
    });
  };

  const uint8_t* const end = tables + groups * 64;
  const uint8_t* const full_end = tables + groups / per_byte * per_byte * 64;
  while (tables != full_end) {
    look_up(std::true_type());
    repeat<per_byte - 1>([&](auto) { look_up(std::false_type()); });
    widen();
  }
  if (tables != end) {
    look_up(std::true_type());
    while (tables != end) look_up(std::false_type());
    widen();
  }

  const Lut6Shift by(shift);
  const auto add_all = [&](auto rest) __attribute__((always_inline)) {
    repeat<Rows>([&](auto row) {
      repeat<Vectors>([&](auto v) {
        uint32_t* const first_panel = sums + 2 * v * panel_sums + row * 32;
        add_sixty_four<rest>(first_panel, first_panel + panel_sums, words_u16x32[row][v], odd_u16x32[row][v], by);
      });
    });
  };
  if (shift <= 14)
    add_all(std::false_type());
  else
    add_all(std::true_type());
}

template <int ABits, int Vectors, int... Rows>
constexpr void fill_lut6_tiles(Lut6Family& family, std::integer_sequence<int, Rows...>) {
  ((family.tile[ABits][Rows + 1] = lut6_tile_vbmi<ABits, Rows + 1, Vectors>), ...);
}

template <int MaxRows, int Vectors>
constexpr Lut6Family lut6_family_vbmi() {
  Lut6Family family{};
  family.name = "vpermb";
  family.columns = 64 * Vectors;
  family.tile_rows = MaxRows;
  family.tables = lut6_tables_vbmi;
  constexpr auto rows = std::make_integer_sequence<int, MaxRows>();
  fill_lut6_tiles<2, Vectors>(family, rows), fill_lut6_tiles<3, Vectors>(family, rows);
  fill_lut6_tiles<4, Vectors>(family, rows);
  family.rate[2] = 347, family.rate[3] = 329, family.rate[4] = 256;
  return family;
}

constexpr Lut6Family kVbmiLut6 = lut6_family_vbmi<2, 4>();

}  // namespace
}  // namespace soniq
