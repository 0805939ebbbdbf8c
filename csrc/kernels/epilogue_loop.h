// Goal: what happens to integers and to the values between layers, at a fraction of a cycle a value.
//
//   sums -> float32 -> scales, bias, residual, activation, batch norm          epilogue
//   codes, or float32 -> values, their sum, activation                         combine
//                     -> float32, codes of one tensor, codes of another one    both
//
// A run of columns stays in registers from the integers to the store. Each step of the contract is one operation that rounds
// once (-ffp-contract=off), integers wrap modulo 2^32. With 8 lanes, for 8 columns from sums to codes:
//
//   sums, shift, two terms; conversion; two scales, bias, relu; r, z, cmax; conversion, packs: 14 instructions
//   weights that are levels, and activations without a shift:                                   12
//
// Measured on an Intel Xeon (two 512-bit ports), 32 rows of 64 columns in L1, plain sums, cycles for 16 outputs: codes of one tensor 7.6, of
// two 10.8, with a residual and two 13.6 (shifted sums: 9.0, 11.9, 14.7); with AVX2 10.3, 14.9, 20.9. 16 columns take half as long again, and
// four rows of 32 columns four times as long: 150 cycles to load what the columns need.
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
  [[gnu::always_inline]] void load(const float* values) {
    each([&](F& v, int at) __attribute__((always_inline)) { v = load_as<F>(values + at); });
  }
  [[gnu::always_inline]] void multiply(const float* by) {
    each([&](F& v, int at) __attribute__((always_inline)) { v *= load_as<F>(by + at); });
  }
  [[gnu::always_inline]] void add(const float* more) {
    each([&](F& v, int at) __attribute__((always_inline)) { v += load_as<F>(more + at); });
  }
  [[gnu::always_inline]] void multiply(const Run& by) {
    each([&](F& v, int at) __attribute__((always_inline)) { v *= by.y[at / lanes]; });
  }
  [[gnu::always_inline]] void add(const Run& more) {
    each([&](F& v, int at) __attribute__((always_inline)) { v += more.y[at / lanes]; });
  }
  [[gnu::always_inline]] void relu() {
    each([&](F& v, int) __attribute__((always_inline)) { v = greater_of(v, all<F>(0)); });
  }

  [[gnu::always_inline]] void at_most(float most) {
    each([&](F& v, int) __attribute__((always_inline)) { v = less_of(v, all<F>(most)); });
  }

  template <class Tile>
  [[gnu::always_inline]] void activate(const Tile& t) {
    if (t.activation == Activation::none) return;
    if (t.activation != Activation::hardtanh) relu();
    if (t.activation == Activation::relu6) at_most(6);
    if (t.activation == Activation::hardtanh) {
      const F low = all<F>(t.lo), high = all<F>(t.hi);
      each([&](F& v, int) __attribute__((always_inline)) { v = where_greater(v, low, less_of(v, high), low); });
    }
  }

  // The values of codes, added to y or put there. `unit`: the scale times the step.
  template <bool Add>
  [[gnu::always_inline]] void values(const Run& alpha, const Run& beta, const Run& unit, const uint8_t* codes) {
    each([&](F& v, int at) __attribute__((always_inline)) {
      const int i = at / lanes;
      const F value = exact_sum(floats_of_codes<F>(codes + at), alpha.y[i], beta.y[i]) * unit.y[i];
      v = Add ? v + value : value;
    });
  }
};

// What the columns of a run need stays in registers for all its rows: a store of codes might change any float in memory, for all
// that the compiler knows.
template <class Run>
struct RunQuantizer;
template <class F, int Count>
struct RunQuantizer<Run<F, Count>> {
  Run<F, Count> r{}, z{}, cmax{};
  const int32_t *shift = nullptr, *add = nullptr;  // of the first column
  [[gnu::always_inline]] void load(const CodeSink& s, int column) {
    r.load(s.r + column), z.load(s.z + column), cmax.load(s.cmax + column);
    shift = s.shift ? s.shift + column : nullptr, add = s.add + (s.shift ? column : 0);
  }
  // min(y, most) comes to nothing in front of quantizing if the largest code is that of `most` at most.
  [[gnu::always_inline]] void limit(float most) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) cmax.y[i] = less_of(all<F>(most) * r.y[i] + z.y[i], cmax.y[i]);
  }
  // The codes of `Rows` rows. `Floor`: some value, or z, may be below 0 or NaN, which becomes 0. Packs saturate, and make 0 of what
  // NaN is converted to.
  template <bool Floor, int Rows>
  [[gnu::always_inline]] void codes(const F (&y)[Rows * Count], Ints<F> (&codes)[Rows * Count]) const {
    constexpr bool packed = packs<F>(Rows * Count);
#pragma GCC unroll 8
    for (int j = 0; j < Rows * Count; ++j) {
      const int i = j % Count;
      F sum = y[j] * r.y[i] + z.y[i];
      if (Floor && !packed) sum = greater_of(sum, all<F>(0));
      codes[j] = cut(less_of(cmax.y[i], sum));
    }
    if (shift)
#pragma GCC unroll 8
      for (int j = 0; j < Rows * Count; ++j) {
        const int at = j % Count * Shape<F>::lanes;
        if (Floor && packed) codes[j] = greater_of(codes[j], Ints<F>{});
        codes[j] = (codes[j] << load_as<Ints<F>>(shift + at)) + load_as<Ints<F>>(add + at);
      }
  }
  template <bool Floor, int Rows>
  [[gnu::always_inline]] void store(const F (&y)[Rows * Count], uint8_t* to, int64_t to_next_row) const {
    Ints<F> codes[Rows * Count];
    this->template codes<Floor, Rows>(y, codes);
    store_rows<Rows>(to, to_next_row, codes);
  }
};
constexpr int kLoadedSinks = 2;
template <class Run>
struct RunQuantizers {
  RunQuantizer<Run> of_sink[kLoadedSinks];
  [[gnu::always_inline]] void load(const TileResults& results, int column) {
#pragma GCC unroll 2
    for (int i = 0; i < kLoadedSinks; ++i)
      if (i < results.sinks) of_sink[i].load(results.sink[i], column);
  }
};
template <class Run>
struct RunSource;
template <class F, int Count>
struct RunSource<Run<F, Count>> {
  Run<F, Count> alpha{}, beta{}, unit{};
  const float* step = nullptr;  // of the first column
  float scale = 0;              // of the rows that `unit` is for
  [[gnu::always_inline]] void load(const CodeSource& s, int column) {
    alpha.load(s.alpha + column), beta.load(s.beta + column);
    step = s.step + column;
  }
  template <bool Add>
  [[gnu::always_inline]] void values(Run<F, Count>& run, float scale_of_row, const uint8_t* codes) {
    if (scale_of_row != scale) {
      scale = scale_of_row;
      unit.load(step);
      unit.each([&](F& v, int) __attribute__((always_inline)) { v = all<F>(scale) * v; });
    }
    run.template values<Add>(alpha, beta, unit, codes);
  }
};

// Calls work(run, panel, first column) for columns [begin, end), in runs that stay inside a panel. The last whole register of a panel
// may overlap the one before it: its columns come out the same twice.
template <class Work>
[[gnu::always_inline]] inline void for_each_run(int panel_cols, int begin, int end, Work&& work) {
  int panel = begin / panel_cols;
  for (int first = begin; first < end; ++panel) {
    const int panel_end = min_of(end, (panel + 1) * panel_cols);
    for (; panel_end - first >= kRun; first += kRun) work(Run<Floats, kRun / kLanes>{}, panel, first);
    for (; panel_end - first >= kLanes; first += kLanes) work(Run<Floats, 1>{}, panel, first);
    const int panel_begin = begin > panel * panel_cols ? begin : panel * panel_cols;
    if (first < panel_end && panel_end - panel_begin >= kLanes) {
      work(Run<Floats, 1>{}, panel, panel_end - kLanes);
      first = panel_end;
    }
    for (; first < panel_end; ++first) work(Run<float, 1>{}, panel, first);
  }
}

// Rows that are worked on together, a run of columns after the other: what a run needs is set up once for all of them. A run
// of a row is 70 instructions, and setting one up as many.
constexpr int kRowsTogether = 16;

struct Block {
  int row, rows, column, columns;
};
// Calls work(block) for blocks of at most so many rows and kChunk columns.
template <int Rows = kRowsTogether, class Work>
[[gnu::always_inline]] inline void for_each_block(const Block& all, Work&& work) {
  const int end_row = all.row + all.rows, end_column = all.column + all.columns;
  for (int row = all.row; row < end_row; row += Rows)
    for (int column = all.column; column < end_column; column += kChunk)
      work(Block{row, min_of(Rows, end_row - row), column, min_of(kChunk, end_column - column)});
}

// Where a block goes. Codes go to their place at once where channels are in order, and through a buffer where there are two
// segments.
class BlockWriter {
 public:
  [[gnu::always_inline]] void begin(const TileResults& results, const Block& b) {
    y_ = results.y ? results.y + b.row * results.ld : nullptr;
    for (int i = 0; i < results.sinks; ++i) {
      const CodeSink& s = results.sink[i];
      codes_[i] = s.second ? staged_[i][0] - b.column : s.codes + int64_t(b.row) * s.channels + s.first;
      stride_[i] = s.second ? kChunk + kSlack : s.channels;
    }
  }
  // `line`: the row in the block.
  template <class Run>
  [[gnu::always_inline]] void write(const TileResults& results, int line, int column, const Run& run,
                                    const RunQuantizers<Run>& loaded) const {
    if (y_)
#pragma GCC unroll 8
      for (int i = 0; i < Run::columns / Run::lanes; ++i)
        store_as(y_ + line * results.ld + column + i * Run::lanes, run.y[i]);
#pragma GCC unroll 2
    for (int i = 0; i < kLoadedSinks; ++i)
      if (i < results.sinks) quantize(loaded.of_sink[i], i, line, column, run);
    for (int i = kLoadedSinks; i < results.sinks; ++i) {
      RunQuantizer<Run> q;
      q.load(results.sink[i], column);
      quantize(q, i, line, column, run);
    }
  }
  [[gnu::always_inline]] void end(const TileResults& results, const Block& b) const {
    for (int i = 0; i < results.sinks; ++i)
      for (int line = 0; results.sink[i].second && line < b.rows; ++line)
        write_in_place(results.sink[i], b.row + line, b.column, b.columns, staged_[i][line]);
  }

 private:
  template <class Run>
  [[gnu::always_inline]] void quantize(const RunQuantizer<Run>& q, int sink, int line, int column,
                                       const Run& run) const {
    q.template store<true, 1>(run.y, codes_[sink] + line * stride_[sink] + column, 0);
  }

  float* y_;
  uint8_t* codes_[kMaxSinks];  // of the block's first row and of column 0
  int64_t stride_[kMaxSinks];
  uint8_t staged_[kMaxSinks][kRowsTogether][kChunk + kSlack];
};

// The codes of a block, in the order of the channels.
class BlockReader {
 public:
  [[gnu::always_inline]] void begin(const CodeSource& s, const Block& b) {
    for (int line = 0; s.codes && line < b.rows; ++line)
      codes_[line] = codes_in_order(s, b.row + line, b.column, b.columns, room_[line]) - b.column;
  }
  [[gnu::always_inline]] const uint8_t* at(int line, int column) const { return codes_[line] + column; }

 private:
  const uint8_t* codes_[kRowsTogether];  // of column 0
  uint8_t room_[kRowsTogether][kChunk + kSlack];
};

// ---- epilogue --------------------------------------------------------------------------------------------------------
enum class SumsOf { any, plain, windows };

// The integers of a run. Rows that follow one another mostly have the same column terms, which stay in registers.
template <class Run>
class RunSums;
template <class F, int Count>
class RunSums<Run<F, Count>> {
 public:
  // `panel`: of the tile, as the column.
  RunSums(const EpilogueTile& t, const TilePart& part, int panel, int column)
      : sums_(part.sums + (panel - part.column / t.panel_cols) * (part.panel_stride - t.panel_cols) + column -
              part.column),
        column_(t.first_column + column),
        row_(part.row),
        panel_cols_(t.panel_cols),
        shift_(t.shift),
        row_terms_(t.row_terms),
        column_terms_(t.column_terms),
        same_terms_(t.same_terms),
        windows_(t.windows),
        taps_(t.taps) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i)
      turned_[i] = windows_ ? load_as<Ints<F>>(t.w_scale + column + i * Shape<F>::lanes) >> 31 : Ints<F>{};
  }

  // Sets the terms of a row, and says how many rows from it on, before `end`, have the same.
  [[gnu::always_inline]] int alike(int row, int end) {
    if (windows_) return end - row;
    const uint32_t* const terms = column_terms_[row];
    if (terms != terms_of_) take_terms(terms);
    if (same_terms_) return end - row;
    int next = row + 1;
    while (next < end && column_terms_[next] == terms) ++next;
    return next - row;
  }
  // The integers of a row of those.
  template <SumsOf Kind>
  [[gnu::always_inline]] void of_row(int row, Ints<F>* integers) const {
    if (Kind == SumsOf::windows) return largest(windows_ + int64_t(row) * taps_, integers);
    const uint32_t* const sums = sums_ + int64_t(row - row_) * panel_cols_;
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) {
      const Ints<F> sum = load_as<Ints<F>>(sums + i * Shape<F>::lanes);
      integers[i] =
          Kind == SumsOf::plain ? plain_sum(sum, terms_[i]) : shifted_sum(sum, shift_, terms_[i], row_terms_[row]);
    }
  }
  // with(integers, their number) for each register of any row.
  template <class With>
  [[gnu::always_inline]] void each(int row, With&& with) {
    Ints<F> integers[Count];
    if (windows_) {
      of_row<SumsOf::windows>(row, integers);
    } else {
      if (column_terms_[row] != terms_of_) take_terms(column_terms_[row]);
      of_row<SumsOf::any>(row, integers);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) with(integers[i], i);
  }

 private:
  // What makes the largest value: the smallest integer where the scale is negative, ~ turning their order.
  [[gnu::always_inline]] void largest(const int32_t* window, Ints<F>* most) const {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) most[i] = at_tap(window[0], i) ^ turned_[i];
    for (int tap = 1; tap < taps_; ++tap)
#pragma GCC unroll 8
      for (int i = 0; i < Count; ++i) most[i] = greater_of(most[i], at_tap(window[tap], i) ^ turned_[i]);
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) most[i] ^= turned_[i];
  }
  [[gnu::always_inline]] Ints<F> at_tap(int row, int i) const {
    const int at = i * Shape<F>::lanes;
    return shifted_sum(load_as<Ints<F>>(sums_ + int64_t(row) * panel_cols_ + at), shift_,
                       load_as<Ints<F>>(column_terms_[row] + column_ + at), row_terms_[row]);
  }
  [[gnu::always_inline]] void take_terms(const uint32_t* terms) {
    terms_of_ = terms;
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) terms_[i] = load_as<Ints<F>>(terms + column_ + i * Shape<F>::lanes);
  }

  const uint32_t *sums_, *terms_of_ = nullptr;
  const int column_, row_, panel_cols_, shift_;
  const uint32_t* const row_terms_;
  const uint32_t* const* const column_terms_;
  const bool same_terms_;
  const int32_t* const windows_;
  const int taps_;
  Ints<F> terms_[Count] = {}, turned_[Count];  // -1 where the scale is negative
};

void integer_epilogue(const EpilogueTile& t, const TilePart& part) {
  for_each_run(t.panel_cols, part.column, part.column + part.columns,
               [&](auto run, int panel, int first) __attribute__((always_inline)) {
                 using F = std::remove_reference_t<decltype(run.y[0])>;
                 RunSums<decltype(run)> sums(t, part, panel, first);
                 for (int row = part.row; row < part.row + part.rows; ++row)
                   sums.each(row, [&](Ints<F> sum, int i) __attribute__((always_inline)) {
                     store_as(t.acc + row * t.acc_ld + first + i * Shape<F>::lanes, sum);
                   });
               });
}

// What a layer has beside its scales. `Any`: look at every run what there is.
enum Steps { kScales = 0, kBias = 1, kRelu = 2, kCodes = 4, kRelu6 = 8, kAny = 16 };

// What a layer inside a network mostly writes: codes alone, of one or two tensors, in the order of the channels.
bool writes_codes_in_order(const EpilogueTile& t) {
  for (int i = 0; i < t.results.sinks; ++i)
    if (t.results.sink[i].second) return false;
  const bool adds_to_pooled = t.windows && t.residual_codes.codes;
  return !t.results.y && t.results.sinks > 0 && t.results.sinks <= kLoadedSinks && !t.residual_codes.second &&
         !adds_to_pooled;
}
bool needs_no_floor(const EpilogueTile& t) {
  for (int i = 0; i < t.results.sinks; ++i)
    if (!t.results.sink[i].positive) return false;
  return t.activation == Activation::relu || t.activation == Activation::relu6;
}

// Where codes of a column go, or come from.
template <class Byte>
struct ColumnOfCodes {
  Byte* codes = nullptr;
  int64_t to_next_row = 0;
  [[gnu::always_inline]] void begin(const CodeRows& rows, Byte* all, int column) {
    codes = all + rows.first + column, to_next_row = rows.channels;
  }
  [[gnu::always_inline]] Byte* at(int row) const { return codes + row * to_next_row; }
};

// A block of codes, a run of columns after the other. Stores of codes might change anything in memory, for all that the compiler
// knows: so all that a row needs is in variables.
template <class Run, int Steps, SumsOf Kind>
class RunToCodes;
template <class F, int Count, int Steps, SumsOf Kind>
class RunToCodes<Run<F, Count>, Steps, Kind> {
 public:
  RunToCodes(const EpilogueTile& t, const TilePart& part, int panel, int first)
      : sums_(t, part, panel, first),
        row_scale_(t.row_scale),
        residual_scale_(t.residual_codes.scale),
        sinks_(t.results.sinks) {
    w_scale_.load(t.w_scale + first);
    bias_.load(t.bias + first);
    quantizers_.load(t.results, first);
    if (Steps & kCodes) source_.load(t.residual_codes, first);
    if (Steps & kCodes) residual_.begin(t.residual_codes, t.residual_codes.codes, first);
    for (int i = 0; i < sinks_; ++i) to_[i].begin(t.results.sink[i], t.results.sink[i].codes, first);
    for (int i = 0; Steps & kRelu6 && i < sinks_; ++i) quantizers_.of_sink[i].limit(6);
  }
  [[gnu::always_inline]] void rows(int row, int end) {
    while (row < end) {
      const int last = row + sums_.alike(row, end);
      for (; row + kTogether <= last; row += kTogether) step<kTogether>(row);
      for (; kTogether > 1 && row < last; ++row) step<1>(row);
    }
  }

 private:
  static constexpr int kTogether = Kind == SumsOf::windows ? 1 : rows_of_store<F>(Count);
  static constexpr bool kFloor = !(Steps & (kRelu | kRelu6));

  template <int Rows>
  [[gnu::always_inline]] void step(int row) {
    F y[Rows * Count];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) one_row(row + i, y + i * Count);
    quantizers_.of_sink[0].template store<kFloor, Rows>(y, to_[0].at(row), to_[0].to_next_row);
    if (sinks_ > 1) quantizers_.of_sink[1].template store<kFloor, Rows>(y, to_[1].at(row), to_[1].to_next_row);
  }
  [[gnu::always_inline]] void one_row(int row, F* y) {
    Ints<F> integers[Count];
    sums_.template of_row<Kind>(row, integers);
    const F scale = all<F>(row_scale_[row]);
    Run<F, Count> run;
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) run.y[i] = to_floats(integers[i]) * scale;
    run.multiply(w_scale_);
    run.add(bias_);
    if (Steps & kCodes) source_.template values<true>(run, residual_scale_[row], residual_.at(row));
    if (Steps & (kRelu | kRelu6)) run.relu();
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) y[i] = run.y[i];
  }

  RunSums<Run<F, Count>> sums_;
  Run<F, Count> w_scale_, bias_;
  RunQuantizers<Run<F, Count>> quantizers_;
  RunSource<Run<F, Count>> source_;
  ColumnOfCodes<const uint8_t> residual_;
  ColumnOfCodes<uint8_t> to_[kLoadedSinks];
  const float *const row_scale_, *const residual_scale_;
  const int sinks_;
};

template <int Steps, SumsOf Kind>
void epilogue_to_codes(const EpilogueTile& t, const TilePart& part) {
  constexpr int kRows = 2 * kRowsTogether;  // nothing of them is in a buffer
  const Block whole{part.row, part.rows, part.column, part.columns};
  for_each_block<kRows>(whole, [&](const Block& b) __attribute__((always_inline)) {
    const auto work = [&](auto run, int panel, int first) __attribute__((always_inline)) {
      RunToCodes<decltype(run), Steps, Kind> codes(t, part, panel, first);
      codes.rows(b.row, b.row + b.rows);
    };
    for_each_run(t.panel_cols, b.column, b.column + b.columns, work);
  });
}
using EpilogueOfTile = void (*)(const EpilogueTile&, const TilePart&);
template <int Steps>
EpilogueOfTile to_codes(const EpilogueTile& t) {
  if constexpr (!(Steps & kCodes))
    if (t.windows) return epilogue_to_codes<Steps, SumsOf::windows>;
  return t.plain_sums ? epilogue_to_codes<Steps, SumsOf::plain> : epilogue_to_codes<Steps, SumsOf::any>;
}

template <int Steps>
void epilogue_of(const EpilogueTile& tile, const TilePart& part) {
  const EpilogueTile t = tile;
  const bool adds_codes = Steps & kCodes || (Steps & kAny && t.residual_codes.codes);
  BlockWriter writer;
  BlockReader residual;
  const Block whole{part.row, part.rows, part.column, part.columns};
  for_each_block(whole, [&](const Block& b) __attribute__((always_inline)) {
    if (adds_codes) residual.begin(t.residual_codes, b);
    writer.begin(t.results, b);
    const auto work = [&](auto run, int panel, int first) __attribute__((always_inline)) {
      using F = std::remove_reference_t<decltype(run.y[0])>;
      decltype(run) w_scale, bias;
      RunQuantizers<decltype(run)> quantizers;
      RunSource<decltype(run)> source;
      w_scale.load(t.w_scale + first);
      const bool adds_bias = Steps & kBias || (Steps & kAny && t.bias);
      if (adds_bias) bias.load(t.bias + first);
      if (adds_codes) source.load(t.residual_codes, first);
      RunSums<decltype(run)> sums(t, part, panel, first);
      quantizers.load(t.results, first);
      for (int line = 0; line < b.rows; ++line) {
        const int row = b.row + line;
        const F row_scale = all<F>(t.row_scale[row]);
        sums.each(row,
                  [&](Ints<F> sum, int i) __attribute__((always_inline)) { run.y[i] = to_floats(sum) * row_scale; });
        run.multiply(w_scale);
        if (adds_bias) run.add(bias);
        if (Steps & kAny && t.residual) run.add(t.residual + row * t.residual_ld + first);
        if (adds_codes) source.template values<true>(run, t.residual_codes.scale[row], residual.at(line, first));
        if (Steps & (kRelu | kRelu6)) run.relu();
        if (Steps & kRelu6) run.at_most(6);
        if (Steps & kAny) run.activate(t);
        if (Steps & kAny && t.post_scale) run.multiply(t.post_scale + first);
        if (Steps & kAny && t.post_bias) run.add(t.post_bias + first);
        writer.write(t.results, line, first, run, quantizers);
      }
    };
    for_each_run(t.panel_cols, b.column, b.column + b.columns, work);
    writer.end(t.results, b);
  });
}

void epilogue(const EpilogueTile& t, const TilePart& part) {
  if (t.acc) return integer_epilogue(t, part);
  const bool common = t.activation != Activation::hardtanh && !t.residual && !t.post_scale && !t.post_bias;
  const int activation = t.activation == Activation::relu ? kRelu : t.activation == Activation::relu6 ? kRelu6 : 0;
  const int steps = (t.bias ? kBias : 0) | activation | (t.residual_codes.codes ? kCodes : 0);
  const bool codes = common && t.bias && writes_codes_in_order(t);
  if (codes && needs_no_floor(t)) {
    if (steps == (kBias | kRelu)) return to_codes<kBias | kRelu>(t)(t, part);
    if (steps == (kBias | kRelu6)) return to_codes<kBias | kRelu6>(t)(t, part);
    if (steps == (kBias | kCodes | kRelu)) return to_codes<kBias | kCodes | kRelu>(t)(t, part);
  }
  if (codes && steps == kBias) return to_codes<kBias>(t)(t, part);
  if (codes && steps == (kBias | kCodes)) return to_codes<kBias | kCodes>(t)(t, part);
  switch (common ? steps : kAny) {
    case kScales: return epilogue_of<kScales>(t, part);
    case kBias: return epilogue_of<kBias>(t, part);
    case kRelu: return epilogue_of<kRelu>(t, part);
    case kBias | kRelu: return epilogue_of<kBias | kRelu>(t, part);
    case kBias | kRelu6: return epilogue_of<kBias | kRelu6>(t, part);
    case kBias | kCodes | kRelu: return epilogue_of<kBias | kCodes | kRelu>(t, part);
    default: return epilogue_of<kAny>(t, part);
  }
}

// ---- between layers --------------------------------------------------------------------------------------------------
void combine(const CombineTile& tile) {
  const CombineTile t = tile;
  BlockWriter writer;
  BlockReader a, b;
  for_each_block({0, t.rows, 0, t.cols}, [&](const Block& block) __attribute__((always_inline)) {
    a.begin(t.a, block);
    b.begin(t.b, block);
    writer.begin(t.results, block);
    const auto work = [&](auto run, int, int first) __attribute__((always_inline)) {
      using F = std::remove_reference_t<decltype(run.y[0])>;
      RunQuantizers<decltype(run)> quantizers;
      RunSource<decltype(run)> of_a, of_b;
      quantizers.load(t.results, first);
      if (t.a.codes) of_a.load(t.a, first);
      if (t.b.codes) of_b.load(t.b, first);
      for (int line = 0; line < block.rows; ++line) {
        const int row = block.row + line;
        const float* x = t.x + row * t.x_ld + first;
        if (t.a.codes)
          of_a.template values<false>(run, t.a.scale[row], a.at(line, first));
        else
          run.each([&](F& v, int at) { v = load_as<F>(x + at); });
        if (t.a.codes && t.x) run.add(x);
        if (t.b.codes) of_b.template values<true>(run, t.b.scale[row], b.at(line, first));
        run.activate(t);
        writer.write(t.results, line, first, run, quantizers);
      }
    };
    for_each_run(kChunk, block.column, block.column + block.columns, work);
    writer.end(t.results, block);
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
