// dot on AVX-512 VNNI. Goal: the INT8 rate for every width, weights unpacked once a cache block.
//
//   tile 14 rows x 2 registers of 16 outputs = 28 sums, 2 weights, 1 broadcast: 31 of 32 registers
//   a step of 4 codes: 28 vpdpbusd, 2 + 14 loads       64 MAC an instruction, one zmm vpdpbusd a cycle on Zen 4, two on Xeon
//
// 14 rows divide the lines of most networks, 112, 56, 28 and 14 long. On a Xeon a tile reaches 1.48 vpdpbusd a cycle from L1 (registers
// alone: 1.8); one of two rows 0.88, since a sum waits five cycles for the next product, so what is left of a run shares the last
// full tile's rows.
//
//   unpack: one shift, one mask (and one or) a field and 64 codes, a sum for 64, spread over the rows of the block
//
// vpdpbusd multiplies unsigned by signed bytes and wraps modulo 2^32 (vpdpbusds would saturate): activations are the
// unsigned side, weights are levels, and those of 8 bits are stored as c ^ 0x80 = c - 128.
#pragma once

#include <immintrin.h>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx512Dot {
  using Bytes = __m512i;
  using Sums = __m512i;
  static constexpr int kLanes = 16, kVectors = 2, kSteps = 1, kRows = 14, kFewRows = 4, kForms = 1;
  static constexpr int kRate = 64;
  static constexpr bool kSignedWeights = true, kFetchesAhead = true;

  static constexpr int form(int, int) { return 0; }
  static constexpr int few_form(int) { return 0; }
  static const char* form_name(int) { return "vnni"; }

  static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Bytes v) { _mm512_storeu_si512(p, v); }
  template <int Shift, int Mask>
  static Bytes field(Bytes v) {
    if constexpr (Shift > 0) v = _mm512_srli_epi16(v, Shift);
    if constexpr (Shift < 0) v = _mm512_slli_epi16(v, -Shift);
    return _mm512_and_si512(v, _mm512_set1_epi8(char(Mask)));
  }
  static Bytes combine(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
  static Bytes plus(Bytes v, int by) { return _mm512_add_epi8(v, _mm512_set1_epi8(char(by))); }

  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums load_sums(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store_sums(uint32_t* p, Sums v) { _mm512_storeu_si512(p, v); }
  static Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static Sums shift_left(Sums v, int by) { return _mm512_sll_epi32(v, _mm_cvtsi32_si128(by)); }

  static Bytes activations(const uint8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
  }
  template <int Form>
  static Sums dot(Sums sums, const Bytes (&steps)[kSteps], Bytes activations) {
    const Bytes weights = steps[0];
    return _mm512_dpbusd_epi32(sums, activations, weights);
  }
};

// One row by weights of one bit, which a GEMV reads from far away: no weight is moved. A bit that is masked where it stands,
// bit i of a byte, counts 2^i times, in a sum of its own, which is shifted back at the end; bit 7 is the sign and counts -128
// times. Two instructions for 64 products, where unpacking takes three.
void dot_one_bit_avx512(const uint8_t* weights, const uint8_t* activations, int64_t, int k, uint32_t* sums, int shift) {
  __m512i sums_i32x16[8][Avx512Dot::kVectors];
  repeat<8>(
      [&](auto bit) { repeat<Avx512Dot::kVectors>([&](auto v) { sums_i32x16[bit][v] = _mm512_setzero_si512(); }); });
  const uint8_t* const end = activations + k;
  do {
    repeat<Avx512Dot::kVectors>([&](auto v) {
      const __m512i bits_b512 = _mm512_loadu_si512(weights + v * 64);
      _mm_prefetch(weights + v * 64 + 2 * kFewPrefetch, _MM_HINT_T0);
      repeat<8>([&](auto bit) {
        const __m512i weights_i8x64 = _mm512_and_si512(bits_b512, _mm512_set1_epi8(char(1 << bit)));
        sums_i32x16[bit][v] =
            _mm512_dpbusd_epi32(sums_i32x16[bit][v], Avx512Dot::activations(activations + 4 * bit), weights_i8x64);
      });
    });
    activations += kUnit;
    weights += Avx512Dot::kVectors * 64;
  } while (activations != end);

  repeat<Avx512Dot::kVectors>([&](auto v) {
    __m512i sum = _mm512_srli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sums_i32x16[7][v]), 7);
    repeat<7>([&](auto bit) { sum = _mm512_add_epi32(sum, _mm512_srli_epi32(sums_i32x16[bit][v], bit)); });
    uint32_t* const to = sums + v * 16;
    Avx512Dot::store_sums(to, _mm512_add_epi32(_mm512_loadu_si512(to), Avx512Dot::shift_left(sum, shift)));
  });
}
static_assert(int64_t(kBlock) / 8 * 255 * 128 <= INT32_MAX);  // of a sum: every eighth code of a block

// A family of these columns, with that kernel in the place of the general one.
constexpr DotFamily with_one_bit_avx512(DotFamily family) {
  family.few[0][1][1] = dot_one_bit_avx512;
  return family;
}

constexpr DotFamily avx512_dot_family() {
  DotFamily family = with_one_bit_avx512(kDotFamily<Avx512Dot>);
  family.least_rows = 5;
  return family;
}

constexpr DotFamily kAvx512Dot = avx512_dot_family();

}  // namespace
}  // namespace soniq
