// Goal: what happens to integers and to the values between layers, at a fraction of a cycle a value.
//
//   sums -> float32 -> scales, bias, residual, activation, batch norm          epilogue
//   codes, or float32 -> values, their sum, activation                         combine
//                     -> float32, codes of one tensor, codes of another one    both
//
// A run of columns stays in registers from the integers to the store. Each step of the contract is one operation that rounds
// once (-ffp-contract=off), integers wrap modulo 2^32. With 8 lanes, for 8 columns from sums to codes:
//
//   sums, two terms; conversion; two scales, bias, relu; r, z, cmax and 0; conversion, packs: 15 instructions, 7 of them load
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/code_rows.h"
#include "kernels/floats.h"

namespace soniq {
namespace {

constexpr int kRun = 32;  // columns of a run, at most

// A run of `Count` registers, or the single columns that are left of a row.
template <class F, int Count>
struct Run {
  static constexpr int lanes = Shape<F>::lanes, columns = lanes * Count;
  F y[Count];

  // One operation on every register: with(register, its first column).
  template <class With>
  [[gnu::always_inline]] void each(With&& with) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) with(y[i], i * lanes);
  }
  [[gnu::always_inline]] void multiply(const float* by) {
    each([&](F& v, int at) __attribute__((always_inline)) { v *= load_as<F>(by + at); });
  }
  [[gnu::always_inline]] void add(const float* more) {
    each([&](F& v, int at) __attribute__((always_inline)) { v += load_as<F>(more + at); });
  }
  [[gnu::always_inline]] void relu() {
    each([&](F& v, int) __attribute__((always_inline)) { v = greater_of(v, all<F>(0)); });
  }

  template <class Tile>
  [[gnu::always_inline]] void activate(const Tile& t) {
    if (t.activation == Activation::none) return;
    if (t.activation != Activation::hardtanh) relu();
    if (t.activation == Activation::relu6)
      each([&](F& v, int) __attribute__((always_inline)) { v = less_of(v, all<F>(6)); });
    if (t.activation == Activation::hardtanh) {
      const F low = all<F>(t.lo), high = all<F>(t.hi);
      each([&](F& v, int) __attribute__((always_inline)) { v = where_greater(v, low, less_of(v, high), low); });
    }
  }

  // The values of codes, added to y or put there.
  template <bool Add>
  [[gnu::always_inline]] void values(const CodeSource& s, int row, int column, const uint8_t* codes) {
    const float *alpha = s.alpha + column, *beta = s.beta + column, *step = s.step + column;
    const F scale = all<F>(s.scale[row]);
    each([&](F& v, int at) __attribute__((always_inline)) {
      const F level = floats_of_codes<F>(codes + at) * load_as<F>(alpha + at) + load_as<F>(beta + at);
      const F value = level * (scale * load_as<F>(step + at));
      v = Add ? v + value : value;
    });
  }

  // Codes of the columns from `column` on.
  [[gnu::always_inline]] void quantized(const CodeSink& s, int column, uint8_t* to) const {
    F codes[Count];
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) {
      const int at = column + i * lanes;
      const F sum = y[i] * load_as<F>(s.r + at) + load_as<F>(s.z + at);
      codes[i] = less_of(greater_of(sum, all<F>(0)), load_as<F>(s.cmax + at));  // NaN becomes 0
    }
    store_codes(to, codes, Count);
  }
};

// Calls work(run, first column) for columns [begin, end), in runs that stay inside a panel, and enter(panel) before its first.
template <class Enter, class Work>
[[gnu::always_inline]] inline void for_each_run(int panel_cols, int begin, int end, Enter&& enter, Work&& work) {
  int panel = begin / panel_cols;
  for (int first = begin; first < end; ++panel) {
    const int panel_end = min_of(end, (panel + 1) * panel_cols);
    enter(panel);
    for (; panel_end - first >= kRun; first += kRun) work(Run<Floats, kRun / kLanes>{}, first);
    for (; panel_end - first >= kLanes; first += kLanes) work(Run<Floats, 1>{}, first);
    for (; first < panel_end; ++first) work(Run<float, 1>{}, first);
  }
}

// Calls work(row, first column, columns) for chunks, a row after the other: the result is written in long runs.
template <class Work>
[[gnu::always_inline]] inline void for_each_chunk(int rows, int cols, Work&& work) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < cols; column += kChunk) work(row, column, min_of(kChunk, cols - column));
}

// Where a chunk of one row goes. Codes go to their place at once where channels are in order, and through a buffer where there
// are two segments.
class ChunkWriter {
 public:
  [[gnu::always_inline]] void begin(const TileResults& results, int row, int column) {
    y_ = results.y ? results.y + row * results.ld : nullptr;
    for (int i = 0; i < results.sinks; ++i) {
      const CodeSink& s = results.sink[i];
      codes_[i] = s.second ? staged_[i] - column : s.codes + int64_t(row) * s.channels + s.first;
    }
  }
  template <class Run>
  [[gnu::always_inline]] void write(const TileResults& results, int column, const Run& run) {
    if (y_)
#pragma GCC unroll 8
      for (int i = 0; i < Run::columns / Run::lanes; ++i) store_as(y_ + column + i * Run::lanes, run.y[i]);
    for (int i = 0; i < results.sinks; ++i) run.quantized(results.sink[i], column, codes_[i] + column);
  }
  [[gnu::always_inline]] void end(const TileResults& results, int row, int column, int columns) const {
    for (int i = 0; i < results.sinks; ++i)
      if (results.sink[i].second) write_in_place(results.sink[i], row, column, columns, staged_[i]);
  }

 private:
  float* y_;
  uint8_t* codes_[kMaxSinks];  // of column 0
  uint8_t staged_[kMaxSinks][kChunk + kSlack];
};

// ---- epilogue --------------------------------------------------------------------------------------------------------
// The integers of a row, register by register.
class RowSums {
 public:
  RowSums(const EpilogueTile& t, int row)
      : row_(t.sums + int64_t(row) * t.panel_cols),
        column_(t.column_terms[row] + t.first_column),
        next_panel_(t.panel_stride - t.panel_cols),
        row_term_(t.row_terms[row]) {}

  [[gnu::always_inline]] void enter(int panel) { sums_ = row_ + panel * next_panel_; }
  [[gnu::always_inline]] int32_t at(int32_t, int column) const {
    return int32_t(sums_[column] + column_[column] + row_term_);
  }
  [[gnu::always_inline]] Integers at(Integers, int column) const {
    typedef uint32_t Unsigned __attribute__((vector_size(kLanes * 4)));  // because sums wrap
    return Integers(load_as<Unsigned>(sums_ + column) + load_as<Unsigned>(column_ + column) + row_term_);
  }

 private:
  const uint32_t *row_, *column_, *sums_ = nullptr;  // all of column 0
  int64_t next_panel_;
  uint32_t row_term_;
};

void integer_epilogue(const EpilogueTile& t) {
  for (int row = 0; row < t.rows; ++row) {
    RowSums sums(t, row);
    int32_t* to = t.acc + row * t.acc_ld;
    const auto enter = [&](int panel) { sums.enter(panel); };
    for_each_run(t.panel_cols, 0, t.cols, enter, [&](auto run, int first) __attribute__((always_inline)) {
      using F = std::remove_reference_t<decltype(run.y[0])>;
      const auto store = [&](F&, int at) { store_as(to + first + at, sums.at(Ints<F>{}, first + at)); };
      run.each(store);
    });
  }
}

// What a layer has beside its scales. `Any`: look at every run what there is.
enum Steps { kScales = 0, kBias = 1, kRelu = 2, kCodes = 4, kAny = 8 };

template <int Steps>
void epilogue_of(const EpilogueTile& tile) {
  const EpilogueTile t = tile;
  ChunkWriter writer;
  uint8_t room[kChunk + kSlack];
  for_each_chunk(t.rows, t.cols, [&](int row, int column, int columns) __attribute__((always_inline)) {
    const bool adds_codes = Steps & kCodes || (Steps & kAny && t.residual_codes.codes);
    const uint8_t* codes = adds_codes ? codes_in_order(t.residual_codes, row, column, columns, room) - column : nullptr;
    RowSums sums(t, row);
    const auto enter = [&](int panel) { sums.enter(panel); };
    const float row_scale = t.row_scale[row];
    writer.begin(t.results, row, column);
    const auto work = [&](auto run, int first) __attribute__((always_inline)) {
      using F = std::remove_reference_t<decltype(run.y[0])>;
      run.each([&](F& v, int at) __attribute__((always_inline)) {
        v = to_floats(sums.at(Ints<F>{}, first + at)) * all<F>(row_scale);
      });
      run.multiply(t.w_scale + first);
      if (Steps & kBias || (Steps & kAny && t.bias)) run.add(t.bias + first);
      if (Steps & kAny && t.residual) run.add(t.residual + row * t.residual_ld + first);
      if (adds_codes) run.template values<true>(t.residual_codes, row, first, codes + first);
      if (Steps & kRelu) run.relu();
      if (Steps & kAny) run.activate(t);
      if (Steps & kAny && t.post_scale) run.multiply(t.post_scale + first);
      if (Steps & kAny && t.post_bias) run.add(t.post_bias + first);
      writer.write(t.results, first, run);
    };
    for_each_run(t.panel_cols, column, column + columns, enter, work);
    writer.end(t.results, row, column, columns);
  });
}

void epilogue(const EpilogueTile& t) {
  if (t.acc) return integer_epilogue(t);
  const bool relu = t.activation == Activation::relu;
  const bool common = (relu || t.activation == Activation::none) && !t.residual && !t.post_scale && !t.post_bias;
  const int steps = (t.bias ? kBias : 0) | (relu ? kRelu : 0) | (t.residual_codes.codes ? kCodes : 0);
  switch (common ? steps : kAny) {
    case kScales: return epilogue_of<kScales>(t);
    case kBias: return epilogue_of<kBias>(t);
    case kRelu: return epilogue_of<kRelu>(t);
    case kBias | kRelu: return epilogue_of<kBias | kRelu>(t);
    case kBias | kCodes: return epilogue_of<kBias | kCodes>(t);
    case kBias | kCodes | kRelu: return epilogue_of<kBias | kCodes | kRelu>(t);
    default: return epilogue_of<kAny>(t);
  }
}

// ---- between layers --------------------------------------------------------------------------------------------------
void combine(const CombineTile& tile) {
  const CombineTile t = tile;
  ChunkWriter writer;
  uint8_t room_a[kChunk + kSlack], room_b[kChunk + kSlack];
  for_each_chunk(t.rows, t.cols, [&](int row, int column, int columns) __attribute__((always_inline)) {
    const uint8_t* a = t.a.codes ? codes_in_order(t.a, row, column, columns, room_a) - column : nullptr;
    const uint8_t* b = t.b.codes ? codes_in_order(t.b, row, column, columns, room_b) - column : nullptr;
    writer.begin(t.results, row, column);
    const auto work = [&](auto run, int first) __attribute__((always_inline)) {
      using F = std::remove_reference_t<decltype(run.y[0])>;
      const float* x = t.x + row * t.x_ld + first;
      if (a)
        run.template values<false>(t.a, row, first, a + first);
      else
        run.each([&](F& v, int at) { v = load_as<F>(x + at); });
      if (a && t.x) run.add(x);
      if (b) run.template values<true>(t.b, row, first, b + first);
      run.activate(t);
      writer.write(t.results, first, run);
    };
    for_each_run(kChunk, column, column + columns, [](int) {}, work);
    writer.end(t.results, row, column, columns);
  });
}

// out[0..n) of whole vectors of 32 bytes; the last one overlaps the one before it.
template <class Step>
[[gnu::always_inline]] inline void for_each_32(int64_t n, Step&& step) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) step(i);
  if (i < n) step(n - 32);
}

void max_codes(const uint8_t* const* taps, int count, int64_t n, uint8_t* out) {
  if (n < 32) {
    for (int64_t i = 0; i < n; ++i) {
      uint8_t most = taps[0][i];
      for (int t = 1; t < count; ++t) most = taps[t][i] > most ? taps[t][i] : most;
      out[i] = most;
    }
    return;
  }
  for_each_32(n, [&](int64_t i) {
    Bytes32 most = load_as<Bytes32>(taps[0] + i);
    for (int t = 1; t < count; ++t) {
      const Bytes32 tap = load_as<Bytes32>(taps[t] + i);
      most = tap > most ? tap : most;
    }
    store_as(out + i, most);
  });
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
