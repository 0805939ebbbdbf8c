// quantize and sum_bytes as plain loops, for tiers whose compiler makes them as fast as floats arrive; avx512 has its own.
//
// Cost a value with 8 lanes: 1 load, mul, add, max, min, convert, narrow, and 3 for the check: about 10 / 8 instructions.
#pragma once

#include "kernels/elementwise.h"

namespace soniq {
namespace {

bool quantize(const float* __restrict x, int64_t count, float r, float z, float cmax, uint8_t* __restrict codes) {
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float product = x[i] * r;
    codes[i] = uint8_t(int32_t(clamp_code(product + z, cmax)));
    bad |= not_finite(x + i);
  }
  return bad == 0;
}

uint32_t sum_run(const uint8_t* __restrict bytes, int count) {
  // Even and odd bytes of a word as four 16-bit sums: 128 words of at most 2 * 255 each stay below 2^16.
  constexpr uint64_t even = 0x00ff00ff00ff00ff;
  uint64_t sums_u16x4 = 0;
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    sums_u16x4 += (word & even) + ((word >> 8) & even);
  }
  uint32_t sum = 0;
  for (int lane = 0; lane < 4; ++lane) sum += uint32_t(sums_u16x4 >> (16 * lane) & 0xffff);
  for (; i < count; ++i) sum += bytes[i];
  return sum;
}
void sum_bytes(const uint8_t* bytes, int64_t stride, int count, int runs, uint32_t* sums) {
  for (int i = 0; i < runs; ++i) sums[i] = sum_run(bytes + i * stride, count);
}

}  // namespace
}  // namespace soniq
