// dot on AVX2. Goal: exact products of every pair of widths at the rate of the cheapest exact form.
//
//   tile 2 rows x 4 registers of 8 outputs: 32 columns, as the lut family has
//   form         exact while                               a step of 4 codes and register
//   activations  2 * (2^a - 1) * (2^w - 1) <= 32767, w <= 7  vpmaddubsw + vpmaddwd + vpaddd: 32 MAC
//   weights      the same bound, a <= 7                      the same, operands swapped
//   words        always                                      even and odd bytes as 16-bit words, 2 vpmaddwd + 2 vpaddd
//
// vpmaddubsw multiplies unsigned by signed bytes and saturates pairs at 16 bits, so it is entered only inside its bound,
// and the operand of 8 bits must be the unsigned one.
#pragma once

#include <immintrin.h>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx2Dot {
  using Bytes = __m256i;
  using Sums = __m256i;
  static constexpr int kLanes = 8, kVectors = 4, kSteps = 1, kRows = 2, kFewRows = 2, kForms = 3;
  static constexpr int kRate = 32;
  static constexpr bool kFlips8BitWeights = false;
  static constexpr int kUnsignedActivations = 0, kUnsignedWeights = 1, kWords = 2;

  static constexpr int form(int w_bits, int a_bits) {
    const int pair = 2 * ((1 << w_bits) - 1) * ((1 << a_bits) - 1);
    if (pair > 32767) return kWords;
    return w_bits <= 7 ? kUnsignedActivations : kUnsignedWeights;
  }
  static const char* form_name(int form) {
    return form == kUnsignedActivations ? "activations" : form == kUnsignedWeights ? "weights" : "words";
  }

  static Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(uint8_t* p, Bytes v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  template <int Shift, int Mask>
  static Bytes field(Bytes v) {
    if constexpr (Shift > 0) v = _mm256_srli_epi16(v, Shift);
    if constexpr (Shift < 0) v = _mm256_slli_epi16(v, -Shift);
    return _mm256_and_si256(v, _mm256_set1_epi8(char(Mask)));
  }
  static Bytes combine(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }

  static Sums zero() { return _mm256_setzero_si256(); }
  static Sums load_sums(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_sums(uint32_t* p, Sums v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
  static Sums shift_left(Sums v, int by) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(by)); }

  static Bytes activations(const uint8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, 4);
    return _mm256_set1_epi32(four);
  }
  static Bytes even_words(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi16(0xff)); }
  static Bytes odd_words(Bytes v) { return _mm256_srli_epi16(v, 8); }

  template <int Form>
  static Sums dot(Sums sums, const Bytes (&steps)[kSteps], Bytes activations) {
    const Bytes weights = steps[0];
    if constexpr (Form == kWords) {
      const auto even = _mm256_madd_epi16(even_words(weights), even_words(activations));
      const auto odd = _mm256_madd_epi16(odd_words(weights), odd_words(activations));
      return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
    } else {
      const auto pairs = Form == kUnsignedActivations ? _mm256_maddubs_epi16(activations, weights)
                                                      : _mm256_maddubs_epi16(weights, activations);
      return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
};

}  // namespace
}  // namespace soniq
