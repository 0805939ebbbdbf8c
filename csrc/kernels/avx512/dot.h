// dot on AVX-512 VNNI. Goal: the INT8 rate for every width, weights unpacked once a cache block.
//
//   tile 12 rows x 2 registers of 16 outputs = 24 sums, 2 weights, 1 broadcast: 27 of 32 registers
//   a step of 4 codes: 24 vpdpbusd, 2 + 12 loads       64 MAC an instruction, one zmm vpdpbusd a cycle on Zen 4
//   unpack: one shift, one mask (and one or) a field and 64 codes, spread over the rows of the block
//
// vpdpbusd multiplies unsigned by signed bytes and wraps modulo 2^32 (vpdpbusds would saturate): activations are the
// unsigned side; weights of 8 bits are stored as c ^ 0x80 = c - 128.
#pragma once

#include <immintrin.h>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx512Dot {
  using Bytes = __m512i;
  using Sums = __m512i;
  static constexpr int kLanes = 16, kVectors = 2, kSteps = 1, kRows = 12, kFewRows = 4, kForms = 1;
  static constexpr int kRate = 64;
  static constexpr bool kFlips8BitWeights = true, kFetchesAhead = true;

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

}  // namespace
}  // namespace soniq
