// quantize of a tensor with two segments on AVX-512 with VBMI2. Goal: floats read once, in order, although their codes go to two
// places; picking them out one by one takes more than a cycle a float.
//
//   64 floats become 64 codes by either segment's rule, and vpcompressb closes the gaps of those that are the other's:
//
//        channels   l h l l h l h l ...     second  0 1 0 0 1 0 1 0 ...
//        low        l l l l l ...           high    h h h ...            each appended to what was there
//
//   about 50 instructions for 64 floats: 0.4 cycles a float
#pragma once

#include "kernels/avx512/quantizer.h"

namespace soniq {
namespace {

inline __m512i codes_of(const __m512 (&x)[4], Avx512Quantizer& q) {
  __m512i i32x16[4];
  repeat<4>([&](auto v) { i32x16[v] = q.integers(x[v]); });
  return pack_codes(i32x16);
}

bool quantize_split_vbmi2(const float* x, int64_t count, const uint64_t* second, const CodeRange* ranges, uint8_t* low,
                          uint8_t* high) {
  Avx512Quantizer q[2] = {{_mm512_set1_ps(ranges[0].r), _mm512_set1_ps(ranges[0].z), _mm512_set1_ps(ranges[0].cmax)},
                          {_mm512_set1_ps(ranges[1].r), _mm512_set1_ps(ranges[1].z), _mm512_set1_ps(ranges[1].cmax)}};
  for (int64_t i = 0; i < count; i += 64) {
    const uint64_t there = count - i >= 64 ? ~uint64_t(0) : ~uint64_t(0) >> (64 - (count - i));
    __m512 floats[4];
    repeat<4>([&](auto v) { floats[v] = _mm512_maskz_loadu_ps(__mmask16(there >> (16 * v)), x + i + 16 * v); });
    const uint64_t to_high = second[i / 64], to_low = there & ~to_high;
    _mm512_storeu_si512(low, _mm512_maskz_compress_epi8(to_low, codes_of(floats, q[0])));
    _mm512_storeu_si512(high, _mm512_maskz_compress_epi8(to_high, codes_of(floats, q[1])));
    low += _mm_popcnt_u64(to_low);
    high += _mm_popcnt_u64(to_high);
  }
  return q[0].all_finite();
}

}  // namespace
}  // namespace soniq
