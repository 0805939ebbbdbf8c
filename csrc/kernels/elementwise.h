// Goal: everything of a call that is not the dot product, as plain loops that the compiler vectorises for each tier.
// Included by each tier's table.cpp inside its own flags. Anonymous namespace: the linker must never take one tier's
// copy for all. The loops are written so that no step can be fused or reordered: each statement rounds once to float32
// (-ffp-contract=off), selects keep their NaN side, integers wrap modulo 2^32.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel_table.h"

namespace soniq {
namespace {

inline float clamp_code(float v, float cmax) {
  v = v > 0.0f ? v : 0.0f;  // NaN compares false: code 0
  return v < cmax ? v : cmax;
}

// An exponent of all ones is infinity or NaN.
inline int32_t not_finite(const float* x) {
  int32_t bits;
  std::memcpy(&bits, x, 4);
  return (bits & 0x7f800000) == 0x7f800000;
}

// Bits of |x| order as integers do, and integer maxima may be taken in any order; NaN sorts above infinity and is left out.
float abs_max(const float* __restrict x, int64_t count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    bits = bits > 0x7f800000 ? 0 : bits;
    most = bits > most ? bits : most;
  }
  float result;
  std::memcpy(&result, &most, 4);
  return result;
}

bool all_finite(const float* __restrict x, int64_t count) {
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= not_finite(x + i);
  return bad == 0;
}

}  // namespace
}  // namespace soniq
