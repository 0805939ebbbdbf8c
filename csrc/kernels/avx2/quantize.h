// quantize and sum_bytes on AVX2. Goal: as fast as floats arrive from L3; where N is below a thousand they cost as much as a
// tenth of the products.
//
//   8 floats: mul, add, min, convert and one fused multiply for the check; 32 codes: 3 packs and a permutation
//
// The packs saturate, which is the clamp at 0; min(cmax, v) gives v where v is NaN, whose conversion is the most negative
// integer, and that saturates to code 0 too. x * 0 is a zero for every finite x, and NaN for the others: summed, one
// register remembers whether any was not finite.
#pragma once

#include <cstring>

#include "kernels/avx2/vocabulary.h"
#include "kernels/dot_loop.h"
#include "kernels/floats.h"

namespace soniq {
namespace {

struct Avx2Quantizer {
  __m256 r, z, cmax;
  __m256 not_finite[4] = {};  // four sums: one would wait for itself longer than all the rest takes

  __m256i integers(const float* from, __m256& sum) {
    const __m256 x = _mm256_loadu_ps(from), product = _mm256_mul_ps(x, r);
    sum = _mm256_fmadd_ps(x, _mm256_setzero_ps(), sum);
    return _mm256_cvttps_epi32(_mm256_min_ps(cmax, _mm256_add_ps(product, z)));
  }

  void thirty_two(const float* x, uint8_t* codes) {
    Integers i32x8[4];
    repeat<4>([&](auto v) { i32x8[v] = Integers(integers(x + 8 * v, not_finite[v])); });
    store_ymm(codes, bytes_of_four(i32x8));
  }

  bool all_finite() const {
    const __m256 sum =
        _mm256_add_ps(_mm256_add_ps(not_finite[0], not_finite[1]), _mm256_add_ps(not_finite[2], not_finite[3]));
    return _mm256_movemask_ps(_mm256_cmp_ps(sum, sum, _CMP_UNORD_Q)) == 0;
  }
};

bool quantize_avx2(const float* x, int64_t count, float r, float z, float cmax, uint8_t* codes) {
  Avx2Quantizer q{_mm256_set1_ps(r), _mm256_set1_ps(z), _mm256_set1_ps(cmax)};
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) q.thirty_two(x + i, codes + i);
  if (i < count) {
    float rest[32] = {};
    uint8_t rest_codes[32];
    std::memcpy(rest, x + i, size_t(count - i) * sizeof(float));
    q.thirty_two(rest, rest_codes);
    std::memcpy(codes + i, rest_codes, size_t(count - i));
  }
  return q.all_finite();
}

// Four sums whose sum is that of a run.
inline __m256i sum_run_avx2(const uint8_t* bytes, int count) {
  __m256i sums_u64x4 = _mm256_setzero_si256();
  int i = 0;
  for (; i + 32 <= count; i += 32)
    sums_u64x4 = _mm256_add_epi64(sums_u64x4, _mm256_sad_epu8(load_ymm(bytes + i), _mm256_setzero_si256()));
  for (; i + 8 <= count; i += 8) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i));
    sums_u64x4 = _mm256_add_epi64(sums_u64x4, _mm256_zextsi128_si256(_mm_sad_epu8(eight, _mm_setzero_si128())));
  }
  uint64_t rest = 0;
  for (; i < count; ++i) rest += bytes[i];
  return _mm256_add_epi64(sums_u64x4, _mm256_zextsi128_si256(_mm_cvtsi64_si128(int64_t(rest))));
}

// Four runs share the additions that lead to one sum each: a run in every dword of 16 bytes.
void sum_bytes_avx2(const uint8_t* bytes, int64_t stride, int count, int runs, uint32_t* sums) {
  for (int run = 0; run < runs; run += 4) {
    const auto of = [&](int i) { return sum_run_avx2(bytes + least(run + i, runs - 1) * stride, count); };
    const __m256i first_u32x8 = _mm256_or_si256(of(0), _mm256_slli_epi64(of(1), 32));
    const __m256i second_u32x8 = _mm256_or_si256(of(2), _mm256_slli_epi64(of(3), 32));
    const __m256i sums_u32x8 = _mm256_add_epi32(_mm256_unpacklo_epi64(first_u32x8, second_u32x8),
                                                _mm256_unpackhi_epi64(first_u32x8, second_u32x8));
    const __m128i sums_u32x4 =
        _mm_add_epi32(_mm256_castsi256_si128(sums_u32x8), _mm256_extracti128_si256(sums_u32x8, 1));
    uint32_t four[4];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(four), sums_u32x4);
    std::memcpy(sums + run, four, size_t(least(4, runs - run)) * sizeof(uint32_t));
  }
}

}  // namespace
}  // namespace soniq
