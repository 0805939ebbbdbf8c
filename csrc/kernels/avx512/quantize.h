// quantize and sum_bytes on AVX-512. Goal: as fast as floats arrive from L3; in front of popcount they cost as much as the
// products where N is about a hundred.
//
//   16 floats: mul, add, min, convert and one fused multiply for the check; 64 codes: 3 packs and a permutation
//   24 instructions for 64 floats: 12 cycles, 21 bytes of input a cycle
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/avx512/quantizer.h"

namespace soniq {
namespace {

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

// Eight sums whose sum is that of a run.
inline __m512i sum_run_avx512(const uint8_t* bytes, int count) {
  __m512i sums_u64x8 = _mm512_setzero_si512();
  int i = 0;
  for (; i + 64 <= count; i += 64)
    sums_u64x8 = _mm512_add_epi64(sums_u64x8, _mm512_sad_epu8(_mm512_loadu_si512(bytes + i), _mm512_setzero_si512()));
  if (i == count) return sums_u64x8;
  const __m512i rest = _mm512_maskz_loadu_epi8(~uint64_t(0) >> (64 - (count - i)), bytes + i);
  return _mm512_add_epi64(sums_u64x8, _mm512_sad_epu8(rest, _mm512_setzero_si512()));
}

// Four runs share the additions that lead to one sum each: a run in every dword of 16 bytes.
void sum_bytes_avx512(const uint8_t* bytes, int64_t stride, int count, int runs, uint32_t* sums) {
  int run = 0;
  for (; run + 4 <= runs; run += 4) {
    const auto two = [&](int first) {
      const uint8_t* const at = bytes + (run + first) * stride;
      return _mm512_or_si512(sum_run_avx512(at, count), _mm512_slli_epi64(sum_run_avx512(at + stride, count), 32));
    };
    const __m512i first_u32x16 = two(0), second_u32x16 = two(2);
    const __m512i sums_u32x16 = _mm512_add_epi32(_mm512_unpacklo_epi64(first_u32x16, second_u32x16),
                                                 _mm512_unpackhi_epi64(first_u32x16, second_u32x16));
    const __m256i half_u32x8 =
        _mm256_add_epi32(_mm512_castsi512_si256(sums_u32x16), _mm512_extracti64x4_epi64(sums_u32x16, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + run),
                     _mm_add_epi32(_mm256_castsi256_si128(half_u32x8), _mm256_extracti128_si256(half_u32x8, 1)));
  }
  for (; run < runs; ++run) sums[run] = uint32_t(_mm512_reduce_add_epi64(sum_run_avx512(bytes + run * stride, count)));
}

}  // namespace
}  // namespace soniq
