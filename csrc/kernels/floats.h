// A register of floats, and one float, with the same words, so that a loop is written once for whole registers and for what is
// left of a row:  Floats for kLanes values, float for one.
//
// Comparisons select as the contract writes them: greater_of(a, b) is a > b ? a : b, so b where a is NaN.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace soniq {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Unsigned __attribute__((vector_size(kLanes * 4)));  // whose sums wrap
typedef uint8_t Bytes32 __attribute__((vector_size(32)));

// What belongs to a type of values: as many integers, and how many there are.
template <class F>
struct Shape;
template <>
struct Shape<Floats> {
  using Ints = Integers;
  static constexpr int lanes = kLanes;
};
template <>
struct Shape<float> {
  using Ints = int32_t;
  static constexpr int lanes = 1;
};
template <class F>
using Ints = typename Shape<F>::Ints;

template <class To, class From>
[[gnu::always_inline]] inline To load_as(const From* p) {
  To value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <class V, class T>
[[gnu::always_inline]] inline void store_as(T* p, V value) {
  std::memcpy(p, &value, sizeof value);
}

// One value in every lane. With F{} + value the compiler adds, because of -0.
template <class F>
F all(float value);
template <>
[[gnu::always_inline]] inline float all<float>(float value) {
  return value;
}
template <>
[[gnu::always_inline]] inline Floats all<Floats>(float value) {
#if defined(__AVX512F__)
  return Floats(_mm512_set1_ps(value));
#elif defined(__AVX2__)
  return Floats(_mm256_set1_ps(value));
#elif defined(__aarch64__)
  return Floats(vdupq_n_f32(value));
#else
  return Floats{value, value, value, value};
#endif
}

// (sum << by) + more + row, modulo 2^32. x86 shifts all lanes by one count with two instructions, and each by its own with one.
[[gnu::always_inline]] inline int32_t shifted_sum(int32_t sum, int by, int32_t more, uint32_t row) {
  return int32_t((uint32_t(sum) << by) + uint32_t(more) + row);
}
[[gnu::always_inline]] inline Integers shifted_sum(Integers sum, int by, Integers more, uint32_t row) {
#if defined(__AVX512F__)
  const __m512i shifted = _mm512_sllv_epi32(__m512i(sum), _mm512_set1_epi32(by));
  return Integers(_mm512_add_epi32(_mm512_add_epi32(shifted, __m512i(more)), _mm512_set1_epi32(int(row))));
#elif defined(__AVX2__)
  const __m256i shifted = _mm256_sllv_epi32(__m256i(sum), _mm256_set1_epi32(by));
  return Integers(_mm256_add_epi32(_mm256_add_epi32(shifted, __m256i(more)), _mm256_set1_epi32(int(row))));
#else
  return Integers((Unsigned(sum) << by) + Unsigned(more) + row);
#endif
}

// sum + more, modulo 2^32.
[[gnu::always_inline]] inline int32_t plain_sum(int32_t sum, int32_t more) {
  return int32_t(uint32_t(sum) + uint32_t(more));
}
[[gnu::always_inline]] inline Integers plain_sum(Integers sum, Integers more) {
  return Integers(Unsigned(sum) + Unsigned(more));
}

inline float to_floats(int32_t v) { return float(v); }
inline float greater_of(float a, float b) { return a > b ? a : b; }
inline float less_of(float a, float b) { return a < b ? a : b; }
inline float where_greater(float a, float b, float yes, float no) { return a > b ? yes : no; }

// a * b + c of integers, which float32 holds whatever the order: not for sums that round.
inline float exact_sum(float a, float b, float c) { return a * b + c; }
#if defined(__AVX512F__)
inline Floats exact_sum(Floats a, Floats b, Floats c) {
  return Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
#elif defined(__AVX2__)
inline Floats exact_sum(Floats a, Floats b, Floats c) {
  return Floats(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
#elif defined(__aarch64__)
inline Floats exact_sum(Floats a, Floats b, Floats c) {
  return Floats(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
#else
inline Floats exact_sum(Floats a, Floats b, Floats c) { return a * b + c; }
#endif

inline int32_t greater_of(int32_t a, int32_t b) { return a > b ? a : b; }
inline Integers greater_of(Integers a, Integers b) { return a > b ? a : b; }

inline int32_t cut(float v) { return int32_t(v); }

inline Floats to_floats(Integers v) { return __builtin_convertvector(v, Floats); }
inline Integers cut(Floats v) { return __builtin_convertvector(v, Integers); }
#if defined(__AVX512F__)
inline Floats greater_of(Floats a, Floats b) { return Floats(_mm512_max_ps(__m512(a), __m512(b))); }
inline Floats less_of(Floats a, Floats b) { return Floats(_mm512_min_ps(__m512(a), __m512(b))); }
#elif defined(__AVX2__)
inline Floats greater_of(Floats a, Floats b) { return Floats(_mm256_max_ps(__m256(a), __m256(b))); }
inline Floats less_of(Floats a, Floats b) { return Floats(_mm256_min_ps(__m256(a), __m256(b))); }
#else
inline Floats greater_of(Floats a, Floats b) { return a > b ? a : b; }
inline Floats less_of(Floats a, Floats b) { return a < b ? a : b; }
#endif
inline Floats where_greater(Floats a, Floats b, Floats yes, Floats no) { return a > b ? yes : no; }

// ---- codes -------------------------------------------------------------------------------------------------------------
// Codes as floats.
template <class F>
F floats_of_codes(const uint8_t* codes);
template <>
[[gnu::always_inline]] inline float floats_of_codes<float>(const uint8_t* codes) {
  return float(*codes);
}
template <>
[[gnu::always_inline]] inline Floats floats_of_codes<Floats>(const uint8_t* codes) {
#if defined(__AVX512F__)
  const __m128i u8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return Floats(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(u8x16)));
#elif defined(__AVX2__)
  const __m128i u8x8 = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return Floats(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(u8x8)));
#else
  uint8_t four[4];
  std::memcpy(four, codes, 4);
  const Integers i32x4 = {four[0], four[1], four[2], four[3]};
  return to_floats(i32x4);
#endif
}

// Rows of a run of `count` registers whose codes are best stored together: four registers make one of bytes.
template <class F>
constexpr int rows_of_store(int count) {
  return Shape<F>::lanes > 1 && count < 4 ? 4 / count : 1;
}

// Whether so many registers are packed: then what is below 0 becomes 0.
template <class F>
constexpr bool packs(int registers) {
  return Shape<F>::lanes > 1 && registers % 4 == 0;
}

// Integers up to 255 as bytes: the codes of `Rows` rows, or of one, of all registers. Where they are not packed none is below 0.
template <int Rows, int All>
[[gnu::always_inline]] inline void store_rows(uint8_t* to, int64_t, const int32_t (&v)[All]) {
  static_assert(Rows == 1);
  for (int i = 0; i < All; ++i) to[i] = uint8_t(v[i]);
}
#if defined(__AVX512F__)
// packs work inside 128-bit lanes: dwords 0, 4, 8, 12, 1, ... of four registers.
[[gnu::always_inline]] inline __m512i bytes_of_four(const Integers* v) {
  const auto words = [&](int i) { return _mm512_packs_epi32(__m512i(v[i]), __m512i(v[i + 1])); };
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words(0), words(2)));
}
template <int Rows, int All>
[[gnu::always_inline]] inline void store_rows(uint8_t* to, int64_t to_next_row, const Integers (&v)[All]) {
  if constexpr (Rows == 4 && All == 4) {
    const __m512i bytes = bytes_of_four(v);
    store_as(to, _mm512_castsi512_si128(bytes));
    store_as(to + to_next_row, _mm512_extracti32x4_epi32(bytes, 1));
    store_as(to + 2 * to_next_row, _mm512_extracti32x4_epi32(bytes, 2));
    store_as(to + 3 * to_next_row, _mm512_extracti32x4_epi32(bytes, 3));
  } else if constexpr (Rows == 2 && All == 4) {
    const __m512i bytes = bytes_of_four(v);
    store_as(to, _mm512_castsi512_si256(bytes));
    store_as(to + to_next_row, _mm512_extracti64x4_epi64(bytes, 1));
  } else {
    static_assert(Rows == 1);
    for (int i = 0; i < All; ++i) store_as(to + 16 * i, _mm512_cvtepi32_epi8(__m512i(v[i])));
  }
}
#elif defined(__AVX2__)
// packs work inside 128-bit lanes: dwords 0, 4, 1, 5, 2, 6, 3, 7 of four registers.
[[gnu::always_inline]] inline __m256i bytes_of_four(const Integers* v) {
  const auto words = [&](int i) { return _mm256_packs_epi32(__m256i(v[i]), __m256i(v[i + 1])); };
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words(0), words(2)), order);
}
template <int Rows, int All>
[[gnu::always_inline]] inline void store_rows(uint8_t* to, int64_t to_next_row, const Integers (&v)[All]) {
  if constexpr (All % 4 == 0) {
    static_assert(Rows == 1 || All == 4);
    for (int i = 0; i < All; i += 4) {
      const __m256i bytes = bytes_of_four(v + i);
      if constexpr (Rows == 1) {
        store_as(to + 8 * i, bytes);
      } else {
        static_assert(Rows == 4);
        const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
        store_as(to, _mm_extract_epi64(low, 0));
        store_as(to + to_next_row, _mm_extract_epi64(low, 1));
        store_as(to + 2 * to_next_row, _mm_extract_epi64(high, 0));
        store_as(to + 3 * to_next_row, _mm_extract_epi64(high, 1));
      }
    }
  } else {
    static_assert(Rows == 1);
    for (int i = 0; i < All; ++i) {
      const __m256i one = __m256i(v[i]);
      const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 8 * i), _mm_packus_epi16(words, words));
    }
  }
}
#elif defined(__aarch64__)
[[gnu::always_inline]] inline uint8x16_t bytes_of_four(const Integers* v) {
  const auto words = [&](int i) {
    return vcombine_u16(vqmovun_s32(int32x4_t(v[i])), vqmovun_s32(int32x4_t(v[i + 1])));
  };
  return vcombine_u8(vmovn_u16(words(0)), vmovn_u16(words(2)));
}
template <int Rows, int All>
[[gnu::always_inline]] inline void store_rows(uint8_t* to, int64_t to_next_row, const Integers (&v)[All]) {
  if constexpr (All % 4 == 0) {
    static_assert(Rows == 1 || All == 4);
    for (int i = 0; i < All; i += 4) {
      const uint8x16_t bytes = bytes_of_four(v + i);
      if constexpr (Rows == 1) {
        vst1q_u8(to + 4 * i, bytes);
      } else {
        static_assert(Rows == 4);
        const uint32x4_t fours = vreinterpretq_u32_u8(bytes);
        store_as(to, vgetq_lane_u32(fours, 0));
        store_as(to + to_next_row, vgetq_lane_u32(fours, 1));
        store_as(to + 2 * to_next_row, vgetq_lane_u32(fours, 2));
        store_as(to + 3 * to_next_row, vgetq_lane_u32(fours, 3));
      }
    }
  } else {
    static_assert(Rows == 1 && All == 1);
    const uint16x4_t words = vmovn_u32(uint32x4_t(v[0]));
    store_as(to, vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0));
  }
}
#endif

}  // namespace
}  // namespace soniq
