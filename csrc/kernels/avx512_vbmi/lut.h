// lut on AVX-512 with VBMI. Goal: three times the INT8 rate for 1-bit weights with activations of up to 6 bits.
//
//   one register of tables: four 16-entry tables of bytes, for four groups of four activations
//   | sums of codes 0..3 | sums of codes 4..7 | sums of codes 8..11 | sums of codes 12..15 |
//   index byte = (group << 4) | four weight bits: vpermb looks up four different groups in every 32-bit lane,
//   vpdpbusd adds the four bytes (at most 252 each) to the lane's 32-bit sum
//
//   tile 12 rows x 2 registers of 16 outputs = 24 sums, 4 indexes, 1 table, 3 constants: all 32 registers
//   a step of 32 codes of one plane: 48 x (vpermb + vpdpbusd), 2 shifts, 4 vpternlogd, 2 + 24 loads
//   256 products for two instructions: 193 a cycle on Zen 4, divided by w_bits. INT8 is 64.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/dot_loop.h"
#include "kernels/lut_tables.h"

namespace soniq {
namespace {

constexpr int kLutRows = 12, kLutVectors = 2;

// Entry e of a table is the sum of the codes whose bit is set in e: four masked broadcasts of a code within its 128-bit
// lane, added.
void tables_vbmi(const uint8_t* codes, int units, uint8_t* tables) {
  const __m512i lanes_u8x64 = _mm512_set_epi64(0x0c0c0c0c0c0c0c0c, 0x0c0c0c0c0c0c0c0c, 0x0808080808080808,
                                               0x0808080808080808, 0x0404040404040404, 0x0404040404040404, 0, 0);
  for (int half = 0; half < 2 * units; ++half) {
    const __m512i codes_u8x64 =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + half * 16)));
    __m512i sums_u8x64 = _mm512_setzero_si512();
    repeat<4>([&](auto i) {
      const __m512i code = _mm512_add_epi8(lanes_u8x64, _mm512_set1_epi8(i));
      sums_u8x64 =
          _mm512_add_epi8(sums_u8x64, _mm512_maskz_shuffle_epi8(kHasBit[i] * 0x0001000100010001u, codes_u8x64, code));
    });
    _mm512_storeu_si512(tables + half * 64, sums_u8x64);
  }
}

// (packed & 0x0f) | group << 4: the truth table of (a & b) | c.
inline __m512i lut_index(__m512i packed, __m512i low_nibble, __m512i group) {
  return _mm512_ternarylogic_epi32(packed, low_nibble, group, 0xea);
}

constexpr int kLutPrefetch = 4096;  // bytes ahead: a GEMV's weights come from far away, and across pages

// With a row or two an output has two sums, one a half: a sum takes part in a product every few cycles only.
template <int Rows, class Stride>
[[gnu::always_inline]] inline void lut_tile_strided(const uint8_t* weights, const uint8_t* tables, Stride stride,
                                                    int units, uint32_t* sums, int shift) {
  constexpr int chains = Rows <= 2 ? 2 : 1;
  const __m512i low_nibble = _mm512_set1_epi8(0x0f), group = _mm512_set1_epi32(0x30201000), ones = _mm512_set1_epi8(1);
  __m512i sums_i32x16[Rows][kLutVectors][chains];
  repeat<Rows>([&](auto row) {
    repeat<kLutVectors>(
        [&](auto v) { repeat<chains>([&](auto c) { sums_i32x16[row][v][c] = _mm512_setzero_si512(); }); });
  });

  const uint8_t* const end = tables + units * 128;
  do {
    __m512i index_u8x64[2][kLutVectors];
    repeat<kLutVectors>([&](auto v) {
      const __m512i packed = _mm512_loadu_si512(weights + v * 64);
      if constexpr (Rows <= 2) _mm_prefetch(weights + v * 64 + kLutPrefetch, _MM_HINT_T0);
      index_u8x64[0][v] = lut_index(packed, low_nibble, group);
      index_u8x64[1][v] = lut_index(_mm512_srli_epi16(packed, 4), low_nibble, group);
    });
    repeat<2>([&](auto half) {
      constexpr int chain = half % chains;
      repeat<Rows>([&](auto row) {
        const __m512i tables_u8x64 = _mm512_loadu_si512(tables + row * stride + half * 64);
        repeat<kLutVectors>([&](auto v) {
          const __m512i found_u8x64 = _mm512_permutexvar_epi8(index_u8x64[half][v], tables_u8x64);
          sums_i32x16[row][v][chain] = _mm512_dpbusd_epi32(sums_i32x16[row][v][chain], found_u8x64, ones);
        });
      });
    });
    tables += 128;
    weights += kLutVectors * 64;
  } while (tables != end);

  const __m128i by = _mm_cvtsi32_si128(shift);
  repeat<Rows>([&](auto row) {
    repeat<kLutVectors>([&](auto v) {
      __m512i sum = sums_i32x16[row][v][0];
      if constexpr (chains == 2) sum = _mm512_add_epi32(sum, sums_i32x16[row][v][1]);
      uint32_t* to = sums + (row * kLutVectors + v) * 16;
      _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_sll_epi32(sum, by)));
    });
  });
}

template <int Rows>
[[gnu::flatten]] void lut_tile_vbmi(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int units,
                                    uint32_t* sums, int64_t, int shift) {
  with_stride<kTableStride>(row_stride, [=](auto stride) __attribute__((always_inline)) {
    lut_tile_strided<Rows>(weights, tables, stride, units, sums, shift);
  });
}

template <int... Rows>
constexpr LutFamily lut_family_vbmi(std::integer_sequence<int, Rows...>) {
  LutFamily family{};
  family.name = "vpermb";
  family.columns = 16 * kLutVectors;
  family.place = [](int column, int group) { return column * 4 + group; };
  family.tables = tables_vbmi;
  family.pixel = 16;
  for (int a_bits = 2; a_bits <= kMaxLutBits;
       ++a_bits) {  // sums go straight to 32 bits: one kernel; 1 bit is popcount's
    family.rate[a_bits] = 193;
    ((family.tile[a_bits][Rows + 1] = lut_tile_vbmi<Rows + 1>), ...);
  }
  return family;
}

constexpr LutFamily kVbmiLut = lut_family_vbmi(std::make_integer_sequence<int, kLutRows>());

}  // namespace
}  // namespace soniq
