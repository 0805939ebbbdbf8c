// quantize and sum_bytes on AVX-512. Goal: as fast as floats arrive from L3; in front of popcount they cost as much as the
// products where N is about a hundred.
//
//   16 floats: mul, add, min, convert and one fused multiply for the check; 64 codes: 3 packs and a permutation
//   24 instructions for 64 floats: 12 cycles, 21 bytes of input a cycle
//
// The packs saturate, which is the clamp at 0; min(cmax, v) gives v where v is NaN, whose conversion is the most negative
// integer, and that saturates to code 0 too. x * 0 is a zero for every finite x, and NaN for the others: summed, one
// register remembers whether any was not finite.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx512Quantizer {
  __m512 r, z, cmax, not_finite = _mm512_setzero_ps();

  __m512i integers(__m512 x) {
    const __m512 product = _mm512_mul_ps(x, r);
    not_finite = _mm512_fmadd_ps(x, _mm512_setzero_ps(), not_finite);
    return _mm512_cvttps_epi32(_mm512_min_ps(cmax, _mm512_add_ps(product, z)));
  }
  bool all_finite() const { return _mm512_cmp_ps_mask(not_finite, not_finite, _CMP_UNORD_Q) == 0; }
};

// Packs work inside 128-bit lanes: four registers of 16 integers come out as dwords 0, 4, 8, 12, 1, 5, ...
inline __m512i pack_codes(const __m512i (&i32x16)[4]) {
  const __m512i low = _mm512_packs_epi32(i32x16[0], i32x16[1]), high = _mm512_packs_epi32(i32x16[2], i32x16[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

bool quantize_avx512(const float* x, int64_t count, float r, float z, float cmax, uint8_t* codes) {
  Avx512Quantizer q{_mm512_set1_ps(r), _mm512_set1_ps(z), _mm512_set1_ps(cmax)};
  __m512i i32x16[4];
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    repeat<4>([&](auto v) { i32x16[v] = q.integers(_mm512_loadu_ps(x + i + 16 * v)); });
    _mm512_storeu_si512(codes + i, pack_codes(i32x16));
  }
  if (i < count) {
    const uint64_t left = ~uint64_t(0) >> (64 - (count - i));
    repeat<4>(
        [&](auto v) { i32x16[v] = q.integers(_mm512_maskz_loadu_ps(__mmask16(left >> (16 * v)), x + i + 16 * v)); });
    _mm512_mask_storeu_epi8(codes + i, left, pack_codes(i32x16));
  }
  return q.all_finite();
}

int32_t sum_bytes_avx512(const uint8_t* bytes, int64_t count) {
  __m512i sums_u64x8 = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    sums_u64x8 = _mm512_add_epi64(sums_u64x8, _mm512_sad_epu8(_mm512_loadu_si512(bytes + i), _mm512_setzero_si512()));
  if (i < count) {
    const __m512i rest = _mm512_maskz_loadu_epi8(~uint64_t(0) >> (64 - (count - i)), bytes + i);
    sums_u64x8 = _mm512_add_epi64(sums_u64x8, _mm512_sad_epu8(rest, _mm512_setzero_si512()));
  }
  return int32_t(_mm512_reduce_add_epi64(sums_u64x8));
}

}  // namespace
}  // namespace soniq
