// popcount on AVX-512 with VPOPCNTDQ. Goal: 1x1 at five times the INT8 rate.
//
//   tile 6 rows x 4 registers of 8 outputs (64-bit lanes, one word of 64 channels each) = 24 sums, 4 weights, 1 broadcast
//   a step of 64 channels: 24 x (vpandq + vpopcntq + vpaddq), 4 + 6 loads
//   512 products of a plane pair for 3 instructions; Zen 4 does two zmm in three cycles of those: 341 a cycle,
//   divided by w_bits * a_bits. INT8 is 64.
//
// N in lanes: no horizontal sums, and an activation word is loaded once for 32 outputs. A tile ends in 24 x 5 instructions, as many as a step
// and a half: where a line of a convolution's kernel is three steps, all lines are one brick.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx512Popcount {
  static constexpr int kLanes = 8, kVectors = 4, kRows = 6, kRate = 341;
};

// vptestmb makes a plane of 64 codes one mask register: one load, then a test and a store for each plane.
template <int Bits>
void planes_avx512(const uint8_t* codes, int words, uint8_t* planes, int64_t plane_stride) {
  for (int word = 0; word < words; ++word) {
    const __m512i codes_u8x64 = _mm512_loadu_si512(codes + word * 64);
    repeat<Bits>([&](auto plane) {
      const uint64_t bits = _mm512_test_epi8_mask(codes_u8x64, _mm512_set1_epi8(1 << plane));
      std::memcpy(planes + plane * plane_stride + word * 8, &bits, 8);
    });
  }
}

template <int Rows, class Stride>
[[gnu::always_inline]] inline void popcount_tile_strided(const PopcountTile& tile, Stride stride) {
  constexpr int vectors = Avx512Popcount::kVectors;
  __m512i sums_u64x8[Rows][vectors];
  repeat<Rows>([&](auto row) { repeat<vectors>([&](auto v) { sums_u64x8[row][v] = _mm512_setzero_si512(); }); });

  const uint8_t *weights = tile.weights, *line = tile.activations;
  int lines = tile.lines;
  do {
    const uint8_t* activations = line;
    const uint8_t* const end = activations + tile.words * 8;
    do {
      __m512i weights_b512[vectors];
      repeat<vectors>([&](auto v) { weights_b512[v] = _mm512_loadu_si512(weights + v * 64); });
      repeat<Rows>([&](auto row) {
        int64_t word;
        std::memcpy(&word, activations + row * stride, 8);
        const __m512i word_b512 = _mm512_set1_epi64(word);
        repeat<vectors>([&](auto v) {
          const __m512i counts_u64x8 = _mm512_popcnt_epi64(_mm512_and_si512(weights_b512[v], word_b512));
          sums_u64x8[row][v] = _mm512_add_epi64(sums_u64x8[row][v], counts_u64x8);
        });
      });
      activations += 8;
      weights += vectors * 64;
    } while (activations != end);
    line += tile.line_stride;
  } while (--lines > 0);

  const __m128i by = _mm_cvtsi32_si128(tile.shift);
  repeat<Rows>([&](auto row) {
    repeat<vectors>([&](auto v) {
      auto* to = reinterpret_cast<__m256i*>(tile.sums + (row * vectors + v) * 8);
      const __m256i sums_u32x8 = _mm512_cvtepi64_epi32(sums_u64x8[row][v]);
      _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_sll_epi32(sums_u32x8, by)));
    });
  });
}

template <int Rows>
[[gnu::flatten]] void popcount_tile_avx512(const PopcountTile& tile) {
  with_stride<kRowStride>(
      tile.row_stride, [&](auto stride) __attribute__((always_inline)) { popcount_tile_strided<Rows>(tile, stride); });
}

template <int... Rows>
constexpr PopcountFamily popcount_family_avx512(std::integer_sequence<int, Rows...>) {
  PopcountFamily family{};
  family.name = "vpopcntq";
  family.columns = Avx512Popcount::kLanes * Avx512Popcount::kVectors;
  family.tile_rows = Avx512Popcount::kRows;
  family.rate = Avx512Popcount::kRate;
  family.planes[1] = planes_avx512<1>, family.planes[2] = planes_avx512<2>, family.planes[3] = planes_avx512<3>;
  ((family.tile[Rows + 1] = popcount_tile_avx512<Rows + 1>), ...);
  return family;
}

constexpr PopcountFamily kAvx512Popcount =
    popcount_family_avx512(std::make_integer_sequence<int, Avx512Popcount::kRows>());

}  // namespace
}  // namespace soniq
