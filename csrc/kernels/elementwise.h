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

// ---- epilogue: one step of the contract, one loop over a run of columns ------------------------------------------------
// A panel's columns: with the count a constant, a run of results stays in registers from the integers to the store.
constexpr int kRun = 32;

[[gnu::always_inline]] inline void activate(float* __restrict y, int n, const EpilogueTile& t) {
  switch (t.activation) {
    case Activation::none: break;
    case Activation::relu:
      for (int j = 0; j < n; ++j) y[j] = y[j] > 0.0f ? y[j] : 0.0f;
      break;
    case Activation::relu6:
      for (int j = 0; j < n; ++j) {
        const float v = y[j] > 0.0f ? y[j] : 0.0f;
        y[j] = v < 6.0f ? v : 6.0f;
      }
      break;
    case Activation::hardtanh:
      for (int j = 0; j < n; ++j) {
        const float below = y[j] < t.hi ? y[j] : t.hi;
        y[j] = y[j] > t.lo ? below : t.lo;
      }
      break;
  }
}

[[gnu::always_inline]] inline void integers(const EpilogueTile& t, int row, int first, int n, int32_t* __restrict acc) {
  const int panel = first / t.panel_cols, in_panel = first % t.panel_cols;
  const uint32_t* __restrict sums = t.sums + panel * t.panel_stride + int64_t(row) * t.panel_cols + in_panel;
  const uint32_t* __restrict column = t.column_terms[row] + t.first_column + first;
  const uint32_t row_term = t.row_terms[row];
  for (int j = 0; j < n; ++j) acc[j] = int32_t(sums[j] + row_term + column[j]);
}

[[gnu::always_inline]] inline void store_codes(const EpilogueTile& t, int row, int first, int n,
                                               const float* __restrict y) {
  uint8_t codes[kRun];
  for (int j = 0; j < n; ++j) {
    const float product = y[j] * t.r[first + j];
    codes[j] = uint8_t(int32_t(clamp_code(product + t.z[first + j], t.cmax[first + j])));
  }
  uint8_t* out = t.codes + row * t.out_ld;
  for (int j = 0; j < n; ++j) out[t.position[first + j]] = codes[j];
}

// A whole run is two stores. The rest of a panel is shorter than it takes to start the `rep movs` that GCC makes of a
// memcpy or of a plain loop of unknown length.
template <class T>
[[gnu::always_inline]] inline void store_run(T* __restrict to, const T* __restrict from, int n) {
  if (n == kRun) {
    std::memcpy(to, from, kRun * sizeof(T));
    return;
  }
  for (int j = 0; j < n; ++j) {
    to[j] = from[j];
    asm("");
  }
}

[[gnu::always_inline]] inline void finish_run(const EpilogueTile& t, int row, int first, int n) {
  int32_t acc[kRun];
  float y[kRun];
  integers(t, row, first, n, acc);
  if (t.acc) {
    store_run(t.acc + row * t.out_ld + first, acc, n);
    return;
  }
  const float row_scale = t.row_scale[row];
  for (int j = 0; j < n; ++j) y[j] = float(acc[j]) * row_scale;
  for (int j = 0; j < n; ++j) y[j] *= t.w_scale[first + j];
  if (t.bias)
    for (int j = 0; j < n; ++j) y[j] += t.bias[first + j];
  if (t.residual)
    for (int j = 0; j < n; ++j) y[j] += t.residual[row * t.residual_ld + first + j];
  activate(y, n, t);
  if (t.post_scale)
    for (int j = 0; j < n; ++j) y[j] *= t.post_scale[first + j];
  if (t.post_bias)
    for (int j = 0; j < n; ++j) y[j] += t.post_bias[first + j];
  if (t.y)
    store_run(t.y + row * t.out_ld + first, y, n);
  else
    store_codes(t, row, first, n, y);
}

inline int min_of(int a, int b) { return a < b ? a : b; }

// A row of all panels before the next one: the result is written in long runs.
template <class Whole>
[[gnu::always_inline]] inline void for_each_run(const EpilogueTile& t, Whole&& whole_run) {
  for (int row = 0; row < t.rows; ++row)
    for (int first = 0, n; first < t.cols; first += n) {
      n = min_of(t.cols - first, min_of(kRun, t.panel_cols - first % t.panel_cols));
      if (n == kRun)
        whole_run(row, first);
      else
        finish_run(t, row, first, n);
    }
}

// What most layers want, without asking at every run what else there might be.
template <bool Bias, bool Relu>
void scaled_floats(const EpilogueTile& tile) {
  const EpilogueTile t = tile;
  for_each_run(t, [&t](int row, int first) __attribute__((always_inline)) {
    const uint32_t* __restrict sums =
        t.sums + first / t.panel_cols * t.panel_stride + int64_t(row) * t.panel_cols + first % t.panel_cols;
    const uint32_t* __restrict column = t.column_terms[row] + t.first_column + first;
    const float* __restrict scale = t.w_scale + first;
    const float* __restrict bias = Bias ? t.bias + first : nullptr;
    float* __restrict out = t.y + row * t.out_ld + first;
    const uint32_t row_term = t.row_terms[row];
    const float row_scale = t.row_scale[row];
    for (int j = 0; j < kRun; ++j) {
      float y = float(int32_t(sums[j] + row_term + column[j])) * row_scale;
      y *= scale[j];
      if (Bias) y += bias[j];
      if (Relu) y = y > 0.0f ? y : 0.0f;
      out[j] = y;
    }
  });
}

void epilogue(const EpilogueTile& t) {
  const bool plain = t.y && !t.acc && !t.residual && !t.post_scale && !t.post_bias;
  if (plain && t.activation == Activation::none)
    return t.bias ? scaled_floats<true, false>(t) : scaled_floats<false, false>(t);
  if (plain && t.activation == Activation::relu)
    return t.bias ? scaled_floats<true, true>(t) : scaled_floats<false, true>(t);
  for_each_run(t, [&t](int row, int first) { finish_run(t, row, first, kRun); });
}

}  // namespace
}  // namespace soniq
