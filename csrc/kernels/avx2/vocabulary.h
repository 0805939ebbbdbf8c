// What kernels on 256-bit registers share: loads and stores, and the words of the dot family (dot_loop.h).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace soniq {
namespace {

inline __m256i load_ymm(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_ymm(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// A value that is made here and now. Left alone, GCC rearranges a chain of additions into a tree and multiplies far ahead of
// its sums; both fill more registers than there are.
[[gnu::always_inline]] inline __m256i in_register(__m256i v) {
  asm volatile("" : "+x"(v));
  return v;
}

// sums + v, in the register of the sums: left alone, GCC adds into another one and moves the sum back.
[[gnu::always_inline]] inline __m256i plus_i8(__m256i sums, __m256i v) {
  asm volatile("vpaddb %1, %0, %0" : "+x"(sums) : "x"(v));
  return sums;
}
[[gnu::always_inline]] inline __m256i plus_i16(__m256i sums, __m256i v) {
  asm volatile("vpaddw %1, %0, %0" : "+x"(sums) : "x"(v));
  return sums;
}
[[gnu::always_inline]] inline __m256i plus_i32(__m256i sums, __m256i v) {
  asm volatile("vpaddd %1, %0, %0" : "+x"(sums) : "x"(v));
  return sums;
}

// sums[0..7] += v << shift
inline void add_eight(uint32_t* sums, __m256i v_u32x8, __m128i shift) {
  store_ymm(sums, _mm256_add_epi32(load_ymm(sums), _mm256_sll_epi32(v_u32x8, shift)));
}

struct Avx2Vocabulary {
  using Bytes = __m256i;
  using Sums = __m256i;
  static constexpr bool kFetchesAhead = true;
  static constexpr int kLanes = 8;

  static Bytes load(const uint8_t* p) { return load_ymm(p); }
  static void store(uint8_t* p, Bytes v) { store_ymm(p, v); }
  template <int Shift, int Mask>
  static Bytes field(Bytes v) {
    if constexpr (Shift > 0) v = _mm256_srli_epi16(v, Shift);
    if constexpr (Shift < 0) v = _mm256_slli_epi16(v, -Shift);
    return _mm256_and_si256(v, _mm256_set1_epi8(char(Mask)));
  }
  static Bytes combine(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
  static Bytes plus(Bytes v, int by) { return _mm256_add_epi8(v, _mm256_set1_epi8(char(by))); }

  static Sums zero() { return _mm256_setzero_si256(); }
  static Sums load_sums(const uint32_t* p) { return load_ymm(p); }
  static void store_sums(uint32_t* p, Sums v) { store_ymm(p, v); }
  static Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
  static Sums shift_left(Sums v, int by) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(by)); }

  static Bytes activations(const uint8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, 4);
    return _mm256_set1_epi32(four);
  }
};

}  // namespace
}  // namespace soniq
