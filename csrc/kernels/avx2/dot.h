// dot on AVX2. Goal: exact products of every pair of widths at the rate of the cheapest exact form.
//
//   tile 2 registers of 8 outputs, half a panel, x 3 to 6 rows
//
//        w0    w1        weights of 4 codes x 8 outputs, signed bytes: levels (those of 8 bits are stored as c ^ 0x80 = c - 128)
//   a0  s00   s01        s += the 4 products of an output; a0: 4 codes of a row, broadcast from memory
//   ...                  6 rows: 12 sums, 2 weights, 1 broadcast, 1 product: all 16 registers
//
// vpmaddubsw makes 16-bit sums of two products and saturates, so runs of steps of 4 codes, whose sums fit 16 bits for the
// widths at hand, are added up before vpmaddwd by 1 widens them to 32 bits. p: the largest product, 128 * (2^a - 1) for w = 8. No
// level is larger than the largest code.
//
//   form    exact while   a step, 32 MAC                                             MAC a cycle (ceiling)   128 x 4096 x 4096
//   run64   p <= 255      vpmaddubsw, vpaddw                                             47.6  (51)          172 GMAC/s, W4A4
//   run8    p <= 2047     and an eighth of vpmaddwd, vpaddd, less a vpaddw               45.6  (48)          163        W4A5
//   run4    p <= 4095     a quarter of them                                              42.7  (45)          154        W4A8
//   run2    p <= 8191     a half                                                         37.9  (40)          135        W5A8
//   run1    p <= 16383    vpmaddubsw, vpmaddwd, vpaddd                                   30.5  (32)          107        W7A7
//   words   always        even and odd bytes as words: 2 vpmaddwd, 2 vpaddd              23.4  (25)           86        W8A8
//
// Measured on Zen 4 at 3.67 GHz: the tile with its activations in L2, and a call from codes to float32, where oneDNN's INT8
// held to AVX2 has 94 to 108 GMAC/s. Ceilings are of the instructions: 3.2 of them a cycle, multiplications 2.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/vocabulary.h"
#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx2Dot : Avx2Vocabulary {
  static constexpr int kVectors = 4, kSteps = 1, kFewRows = 2, kForms = 6;
  static constexpr bool kSignedWeights = true;
  static constexpr int kRun[kForms] = {64, 8, 4, 2, 1, 0};  // steps whose sums of products fit 16 bits
  static constexpr int kTileRows[kForms] = {6, 3, 3, 3, 4, 6};
  static constexpr int kRate[kForms] = {48, 46, 43, 38, 31, 23};
  static constexpr int kRun1 = 4, kWords = 5;

  static constexpr int form(int w_bits, int a_bits) {
    const int largest_weight = w_bits == 8 ? 128 : (1 << w_bits) - 1, largest_code = (1 << a_bits) - 1;
    int form = 0;
    while (form < kWords && kRun[form] * 2 * largest_weight * largest_code > INT16_MAX) ++form;
    return form;
  }
  static const char* form_name(int form) {
    constexpr const char* names[kForms] = {"run64", "run8", "run4", "run2", "run1", "words"};
    return names[form];
  }

  static Sums plus_products(Sums sums_i32x8, __m256i a_i16x16, __m256i b_i16x16) {
    return plus_i32(sums_i32x8, _mm256_madd_epi16(a_i16x16, b_i16x16));
  }
  static Sums widened(__m256i sums_i16x16) { return _mm256_madd_epi16(sums_i16x16, _mm256_set1_epi16(1)); }

  // For few rows, which wait for weights: every run is of one step.
  static constexpr int few_form(int form) { return form == kWords ? kWords : kRun1; }
  template <int Form>
  static Sums dot(Sums sums, const Bytes (&weights)[kSteps], Bytes activations) {
    const Bytes w_i8x32 = weights[0];
    if constexpr (Form == kRun1) return add(sums, widened(_mm256_maddubs_epi16(activations, w_i8x32)));
    const __m256i first_two = _mm256_set1_epi32(int(0x80018000)), last_two = _mm256_set1_epi32(int(0x80038002));
    const __m256i even_w = _mm256_srai_epi16(_mm256_slli_epi16(w_i8x32, 8), 8);
    sums = plus_products(sums, _mm256_shuffle_epi8(activations, first_two), even_w);
    return plus_products(sums, _mm256_shuffle_epi8(activations, last_two), _mm256_srai_epi16(w_i8x32, 8));
  }
};
static_assert(Avx2Dot::form(4, 4) == 0 && Avx2Dot::form(8, 1) == 0 && Avx2Dot::form(8, 4) == 1);
static_assert(Avx2Dot::form(7, 7) == Avx2Dot::kRun1 && Avx2Dot::form(7, 8) == Avx2Dot::kWords);

constexpr int kStepBytes = 128;  // of weights: 4 codes of the 32 columns of a panel
constexpr int kHalfVectors = 2;  // registers of outputs of a tile, which works on half a panel

// The sums of a tile: a register for 8 outputs of a row.
template <int Rows>
struct DotSums {
  __m256i lanes[Rows][kHalfVectors];

  template <class Body>
  [[gnu::always_inline]] static void each(Body&& body) {
    repeat<Rows>([&](auto row) { repeat<kHalfVectors>([&](auto v) { body(row, v); }); });
  }
  [[gnu::always_inline]] DotSums() {
    each([&](auto row, auto v) { lanes[row][v] = _mm256_setzero_si256(); });
  }
  // sums[row][32] += convert(lanes) << shift
  template <class Convert>
  [[gnu::always_inline]] void add_to(uint32_t* sums, int shift, Convert&& convert) {
    const __m128i by = _mm_cvtsi32_si128(shift);
    each([&](auto row, auto v) { add_eight(sums + row * 32 + v * 8, convert(lanes[row][v]), by); });
  }
};

// One step of 4 codes: use(row, v, two sums of two products for each output).
template <int Rows, class Stride, class Use>
[[gnu::always_inline]] inline void multiply_step(const uint8_t* weights, const uint8_t* activations, Stride stride,
                                                 Use&& use) {
  __m256i w_i8x32[kHalfVectors];
  repeat<kHalfVectors>([&](auto v) { w_i8x32[v] = in_register(load_ymm(weights + v * 32)); });
  repeat<Rows>([&](auto row) {
    const __m256i a_u8x32 = Avx2Dot::activations(activations + row * stride);
    __m256i pairs_i16x16[kHalfVectors];
    repeat<kHalfVectors>([&](auto v) { pairs_i16x16[v] = in_register(_mm256_maddubs_epi16(a_u8x32, w_i8x32[v])); });
    repeat<kHalfVectors>([&](auto v) { use(row, v, pairs_i16x16[v]); });
  });
}

// Runs of up to `Run` steps; there are few of them, and they are widened into memory.
template <int Run, int Rows, class Stride>
[[gnu::always_inline]] inline void multiply_long_runs(const uint8_t* weights, const uint8_t* activations, Stride stride,
                                                      int k, uint32_t* sums, int shift) {
  const uint8_t* const end = activations + k;
  do {
    const uint8_t* const run_end = least(activations + 4 * Run, end);
    DotSums<Rows> run;
    do {
      repeat<2>([&](auto step) {
        const auto add = [&](auto row, auto v, __m256i pairs_i16x16) {
          run.lanes[row][v] = plus_i16(run.lanes[row][v], pairs_i16x16);
        };
        multiply_step<Rows>(weights + step * kStepBytes, activations + step * 4, stride, add);
      });
      weights += 2 * kStepBytes;
      activations += 2 * 4;
    } while (activations != run_end);
    run.add_to(sums, shift, [](__m256i v) __attribute__((always_inline)) { return Avx2Dot::widened(v); });
  } while (activations != end);
}

// Runs of exactly `Run` steps, widened in registers.
constexpr int unrolled_steps(int run) { return most(run, 4); }
template <int Run, int Rows, class Stride>
[[gnu::always_inline]] inline void multiply_short_runs(const uint8_t* weights, const uint8_t* activations,
                                                       Stride stride, int k, uint32_t* sums, int shift) {
  constexpr int unrolled = unrolled_steps(Run);
  DotSums<Rows> all;
  __m256i run[Rows][kHalfVectors];
  const uint8_t* const end = activations + k;
  do {
    repeat<unrolled>([&](auto step) {
      const auto add = [&](auto row, auto v, __m256i pairs_i16x16) {
        if constexpr (step % Run > 0) pairs_i16x16 = plus_i16(run[row][v], pairs_i16x16);
        run[row][v] = pairs_i16x16;
        if constexpr (step % Run == Run - 1)
          all.lanes[row][v] = Avx2Dot::plus_products(all.lanes[row][v], pairs_i16x16, _mm256_set1_epi16(1));
      };
      multiply_step<Rows>(weights + step * kStepBytes, activations + step * 4, stride, add);
    });
    weights += unrolled * kStepBytes;
    activations += unrolled * 4;
  } while (activations != end);
  all.add_to(sums, shift, [](__m256i v) { return v; });
}

// ---- words ---------------------------------------------------------------------------------------------------------
void expand_avx2(const uint8_t* codes, int units, uint8_t* words) {
  for (int half = 0; half < 2 * units; ++half, codes += 16, words += 32)
    store_ymm(words, _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

// Weights as words, times 256: a shift brings the even bytes there, signs and all, a mask leaves the odd ones. The even bytes
// of a step are its first two codes (dot.cpp).
template <int Odd>
inline __m256i scaled_words(__m256i w_i8x32) {
  return in_register(Odd ? _mm256_and_si256(w_i8x32, _mm256_set1_epi16(short(0xff00))) : _mm256_slli_epi16(w_i8x32, 8));
}

// Codes whose products with weights, times 256, a 32-bit sum holds.
constexpr int kWordsRun = 256;
static_assert(int64_t(256) * kWordsRun * 128 * 255 <= INT32_MAX);

template <int Rows, class Stride>
[[gnu::always_inline]] inline void multiply_words(const uint8_t* weights, const uint8_t* activations, Stride stride,
                                                  int k, uint32_t* sums, int shift) {
  const uint8_t* const end = activations + 2 * k;
  do {
    const uint8_t* const run_end = least(activations + 2 * kWordsRun, end);
    DotSums<Rows> run;
    do {
      repeat<2>([&](auto step) {
        repeat<2>([&](auto odd) {
          __m256i w_i16x16[kHalfVectors];
          repeat<kHalfVectors>(
              [&](auto v) { w_i16x16[v] = scaled_words<odd>(load_ymm(weights + step * kStepBytes + v * 32)); });
          repeat<Rows>([&](auto row) {
            const __m256i a_i16x16 = Avx2Dot::activations(activations + row * stride + step * 8 + odd * 4);
            repeat<kHalfVectors>(
                [&](auto v) { run.lanes[row][v] = Avx2Dot::plus_products(run.lanes[row][v], a_i16x16, w_i16x16[v]); });
          });
        });
      });
      weights += 2 * kStepBytes;
      activations += 2 * 8;
    } while (activations != run_end);
    run.add_to(sums, shift, [](__m256i v) { return _mm256_srai_epi32(v, 8); });
  } while (activations != end);
}

// ---- the family's table --------------------------------------------------------------------------------------------
template <int Form, int Rows>
[[gnu::flatten]] void dot_tile_avx2(const uint8_t* weights, const uint8_t* activations, int64_t row_stride, int k,
                                    uint32_t* sums, int shift) {
  constexpr int run = Avx2Dot::kRun[Form], usual = Form == Avx2Dot::kWords ? kExpandStride : kRowStride;
  with_stride<usual>(row_stride, [=](auto stride) __attribute__((always_inline)) {
    for (int half = 0; half < 2; ++half) {
      const uint8_t* const half_weights = weights + half * kStepBytes / 2;
      uint32_t* const half_sums = sums + half * 16;
      if constexpr (Form == Avx2Dot::kWords)
        multiply_words<Rows>(half_weights, activations, stride, k, half_sums, shift);
      else if constexpr (run > 8)
        multiply_long_runs<run, Rows>(half_weights, activations, stride, k, half_sums, shift);
      else
        multiply_short_runs<run, Rows>(half_weights, activations, stride, k, half_sums, shift);
    }
  });
}

template <int Form, int... Rows>
constexpr void fill_dot_tiles_avx2(DotFamily& family, std::integer_sequence<int, Rows...>) {
  ((family.tile[Form][Rows + 1] = dot_tile_avx2<Form, Rows + 1>), ...);
  family.tile_rows[Form] = sizeof...(Rows);
  constexpr int run = Avx2Dot::kRun[Form];
  family.step[Form] = run == 0 || run > 8 ? 8 : 4 * unrolled_steps(run);
}

template <int... Forms>
constexpr DotFamily dot_family_avx2(std::integer_sequence<int, Forms...> forms) {
  DotFamily family = family_without_tiles<Avx2Dot>(forms);
  (fill_dot_tiles_avx2<Forms>(family, std::make_integer_sequence<int, Avx2Dot::kTileRows[Forms]>()), ...);
  family.expand[Avx2Dot::kWords] = expand_avx2;
  return family;
}

constexpr DotFamily kAvx2Dot = dot_family_avx2(std::make_integer_sequence<int, Avx2Dot::kForms>());

}  // namespace
}  // namespace soniq
