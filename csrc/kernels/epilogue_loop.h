// Goal: what happens to integers and to the values between layers, as plain loops that the compiler vectorises for each tier.
//
//   sums -> float32 -> scales, bias, residual, activation, batch norm          epilogue
//   codes, or float32 -> values, their sum, activation                         combine
//                     -> float32, codes of one tensor, codes of another one    both
//
// One step of the contract is one loop over a run of columns: each statement rounds once to float32 (-ffp-contract=off),
// selects keep their NaN side, integers wrap modulo 2^32. With 8 lanes the way from sums to codes is about 20 instructions for 8
// columns: 5 loads, 2 to integers, 1 conversion, 2 scales, 1 bias, 1 relu; r, z, cmax, 0, conversion, 2 packs.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/code_rows.h"
#include "kernels/elementwise.h"

namespace soniq {
namespace {

// A panel's columns: with the count a constant, a run of results stays in registers from the integers to the store.
constexpr int kRun = 32;

template <class Tile>
[[gnu::always_inline]] inline void activate(float* __restrict y, int n, const Tile& t) {
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

// ---- a chunk of one row --------------------------------------------------------------------------------------------------
// Codes go to their place at once where channels are in order, and through a buffer where there are two segments.
struct SinkRow {
  uint8_t* to[kMaxSinks];  // of the chunk's first column
  uint8_t staged[kMaxSinks][kChunk + kSlack];

  [[gnu::always_inline]] void begin(const TileResults& results, int row, int column) {
    for (int i = 0; i < results.sinks; ++i) {
      const CodeSink& s = results.sink[i];
      to[i] = s.second ? staged[i] : s.codes + int64_t(row) * s.channels + s.first + column;
    }
  }
  [[gnu::always_inline]] void end(const TileResults& results, int row, int column, int n) const {
    for (int i = 0; i < results.sinks; ++i)
      if (results.sink[i].second) write_in_place(results.sink[i], row, column, n, staged[i]);
  }
};

// y of n columns from `column` on, which is `at` columns into the chunk.
[[gnu::always_inline]] inline void write_run(const TileResults& to, int row, int column, int at, int n,
                                             const float* __restrict y, SinkRow& sinks) {
  if (to.y) store_run(to.y + row * to.ld + column, y, n);
  for (int i = 0; i < to.sinks; ++i) {
    const CodeSink& s = to.sink[i];
    const float* __restrict r = s.r + column;
    const float* __restrict z = s.z + column;
    const float* __restrict cmax = s.cmax + column;
    uint8_t codes[kRun];
    for (int j = 0; j < n; ++j) {
      const float product = y[j] * r[j];
      codes[j] = uint8_t(int32_t(clamp_code(product + z[j], cmax[j])));
    }
    store_run(sinks.to[i] + at, codes, n);
  }
}

// The values of n codes, added to y or put there.
template <bool Add>
[[gnu::always_inline]] inline void take_values(const CodeSource& s, int row, int column, int n,
                                               const uint8_t* __restrict codes, float* __restrict y) {
  const float* __restrict alpha = s.alpha + column;
  const float* __restrict beta = s.beta + column;
  const float* __restrict step = s.step + column;
  const float scale = s.scale[row];
  for (int j = 0; j < n; ++j) {
    float level = float(codes[j]) * alpha[j];
    level += beta[j];
    const float value = level * (scale * step[j]);
    y[j] = Add ? y[j] + value : value;
  }
}

// Calls work(row, first column, columns) for chunks, a row after the other: the result is written in long runs.
template <class Work>
[[gnu::always_inline]] inline void for_each_chunk(int rows, int cols, Work&& work) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < cols; column += kChunk) work(row, column, min_of(kChunk, cols - column));
}

// ---- epilogue --------------------------------------------------------------------------------------------------------
[[gnu::always_inline]] inline void integers(const EpilogueTile& t, int row, int first, int n, int32_t* __restrict acc) {
  const int panel = first / t.panel_cols, in_panel = first % t.panel_cols;
  const uint32_t* __restrict sums = t.sums + panel * t.panel_stride + int64_t(row) * t.panel_cols + in_panel;
  const uint32_t* __restrict column = t.column_terms[row] + t.first_column + first;
  const uint32_t row_term = t.row_terms[row];
  for (int j = 0; j < n; ++j) acc[j] = int32_t(sums[j] + row_term + column[j]);
}

// residual: codes in the order of the channels, from the run's first column on, or null.
[[gnu::always_inline]] inline void values_of_run(const EpilogueTile& t, int row, int first, int n,
                                                 const uint8_t* residual, const int32_t* __restrict acc,
                                                 float* __restrict y) {
  const float row_scale = t.row_scale[row];
  for (int j = 0; j < n; ++j) y[j] = float(acc[j]) * row_scale;
  for (int j = 0; j < n; ++j) y[j] *= t.w_scale[first + j];
  if (t.bias)
    for (int j = 0; j < n; ++j) y[j] += t.bias[first + j];
  if (t.residual)
    for (int j = 0; j < n; ++j) y[j] += t.residual[row * t.residual_ld + first + j];
  if (residual) take_values<true>(t.residual_codes, row, first, n, residual, y);
  activate(y, n, t);
  if (t.post_scale)
    for (int j = 0; j < n; ++j) y[j] *= t.post_scale[first + j];
  if (t.post_bias)
    for (int j = 0; j < n; ++j) y[j] += t.post_bias[first + j];
}

// Calls work(first column, columns) for the runs of columns [begin, end): whole ones, and the rests of panels.
template <class Work>
[[gnu::always_inline]] inline void for_each_run(int panel_cols, int begin, int end, Work&& work) {
  for (int first = begin, n; first < end; first += n) {
    n = min_of(end - first, min_of(kRun, panel_cols - first % panel_cols));
    if (n == kRun)
      work(first, kRun);
    else
      work(first, n);
  }
}

void integer_epilogue(const EpilogueTile& t) {
  for (int row = 0; row < t.rows; ++row)
    for_each_run(t.panel_cols, 0, t.cols, [&](int first, int n) __attribute__((always_inline)) {
      int32_t acc[kRun];
      integers(t, row, first, n, acc);
      store_run(t.acc + row * t.acc_ld + first, acc, n);
    });
}

void epilogue_of_all_kinds(const EpilogueTile& t) {
  SinkRow sinks;
  uint8_t room[kChunk + kSlack];
  for_each_chunk(t.rows, t.cols, [&](int row, int column, int columns) {
    const uint8_t* residual =
        t.residual_codes.codes ? codes_in_order(t.residual_codes, row, column, columns, room) : nullptr;
    sinks.begin(t.results, row, column);
    for_each_run(t.panel_cols, column, column + columns, [&](int first, int n) __attribute__((always_inline)) {
      int32_t acc[kRun];
      float y[kRun];
      integers(t, row, first, n, acc);
      values_of_run(t, row, first, n, residual ? residual + (first - column) : nullptr, acc, y);
      write_run(t.results, row, first, first - column, n, y, sinks);
    });
    sinks.end(t.results, row, column, columns);
  });
}

// What most layers want, without asking at every run what else there might be.
template <bool Bias, bool Relu>
void scaled_floats(const EpilogueTile& tile) {
  const EpilogueTile t = tile;
  for (int row = 0; row < t.rows; ++row) {
    const float row_scale = t.row_scale[row];
    for_each_run(t.panel_cols, 0, t.cols, [&](int first, int n) __attribute__((always_inline)) {
      int32_t acc[kRun];
      float y[kRun];
      integers(t, row, first, n, acc);
      const float* __restrict scale = t.w_scale + first;
      const float* __restrict bias = Bias ? t.bias + first : nullptr;
      for (int j = 0; j < n; ++j) {
        y[j] = float(acc[j]) * row_scale;
        y[j] *= scale[j];
        if (Bias) y[j] += bias[j];
        if (Relu) y[j] = y[j] > 0.0f ? y[j] : 0.0f;
      }
      store_run(t.results.y + row * t.results.ld + first, y, n);
    });
  }
}

void epilogue(const EpilogueTile& t) {
  if (t.acc) return integer_epilogue(t);
  const bool floats = t.results.y && t.results.sinks == 0;
  const bool plain = floats && !t.residual && !t.residual_codes.codes && !t.post_scale && !t.post_bias;
  if (plain && t.activation == Activation::none)
    return t.bias ? scaled_floats<true, false>(t) : scaled_floats<false, false>(t);
  if (plain && t.activation == Activation::relu)
    return t.bias ? scaled_floats<true, true>(t) : scaled_floats<false, true>(t);
  epilogue_of_all_kinds(t);
}

// ---- between layers --------------------------------------------------------------------------------------------------
void combine(const CombineTile& t) {
  SinkRow sinks;
  uint8_t room_a[kChunk + kSlack], room_b[kChunk + kSlack];
  for_each_chunk(t.rows, t.cols, [&](int row, int column, int columns) {
    const uint8_t* a = t.a.codes ? codes_in_order(t.a, row, column, columns, room_a) : nullptr;
    const uint8_t* b = t.b.codes ? codes_in_order(t.b, row, column, columns, room_b) : nullptr;
    sinks.begin(t.results, row, column);
    for_each_run(kRun, column, column + columns, [&](int first, int n) __attribute__((always_inline)) {
      const int at = first - column;
      float y[kRun];
      if (t.x)
        for (int j = 0; j < n; ++j) y[j] = t.x[row * t.x_ld + first + j];
      if (a && t.x)
        take_values<true>(t.a, row, first, n, a + at, y);
      else if (a)
        take_values<false>(t.a, row, first, n, a + at, y);
      if (b) take_values<true>(t.b, row, first, n, b + at, y);
      activate(y, n, t);
      write_run(t.results, row, first, at, n, y, sinks);
    });
    sinks.end(t.results, row, column, columns);
  });
}

void max_codes(const uint8_t* const* taps, int count, int64_t n, uint8_t* __restrict out) {
  std::memcpy(out, taps[0], size_t(n));
  for (int t = 1; t < count; ++t) {
    const uint8_t* __restrict tap = taps[t];
    for (int64_t i = 0; i < n; ++i) out[i] = tap[i] > out[i] ? tap[i] : out[i];
  }
}

void sum_codes(const uint8_t* const* taps, int count, int64_t n, int32_t* __restrict sums) {
  std::memset(sums, 0, size_t(n) * sizeof(int32_t));
  for (int t = 0; t < count; ++t) {
    const uint8_t* __restrict tap = taps[t];
    for (int64_t i = 0; i < n; ++i) sums[i] += tap[i];
  }
}

}  // namespace
}  // namespace soniq
