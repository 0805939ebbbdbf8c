// Pixels of two segments back in the original order of their channels: two loads, two vpshufb and a store for 16 of them. On
// AVX-512 too, inside its own flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernel_table.h"

namespace soniq {
namespace {

void merge_x86(const MergePiece* pieces, int count, const uint8_t* stored, int64_t stored_step, int64_t pixels,
               uint8_t* to, int64_t step) {
  const auto load = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  for (int i = 0; i < count; ++i) {
    const __m128i from_low = load(pieces[i].from_low), from_high = load(pieces[i].from_high);
    const uint8_t *low = stored + pieces[i].low, *high = stored + pieces[i].high;
    uint8_t* merged = to + pieces[i].to;
    for (int64_t x = 0; x < pixels; ++x, low += stored_step, high += stored_step, merged += step) {
      const __m128i both = _mm_or_si128(_mm_shuffle_epi8(load(low), from_low), _mm_shuffle_epi8(load(high), from_high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(merged), both);
    }
  }
}

}  // namespace
}  // namespace soniq
