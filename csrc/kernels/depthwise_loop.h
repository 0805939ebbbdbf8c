// Goal: the depthwise family's loops, written once for every ISA. A form F brings
//
//   F::Codes, F::Weights, F::Sums        a group's codes of one column and strip, their weights, and what they add up in
//   F::kLanes, F::kGroups                channels of a group, groups of a block
//   F::kColumnBytes, F::kWeightBytes     of a group's codes of one column, of its weights of one tap
//   F::load, F::load_weights
//   F::zero, F::first, F::add            sums of nothing; codes x weights, alone or added to sums
//   F::Scale, F::scale, F::store         sums << shift, as 32 bits
//
// An instruction multiplies kLanes channels by the taps of one column in one strip. Two output rows read the same strip of four
// rows with three taps each:
//
//    row of the strip   0  1  2  3         weights stay in registers along the row,
//    output row 0       w0 w1 w2 0         a column's codes are loaded for both output rows,
//    output row 1       0  w0 w1 w2        and a fourth of the products is 0
#pragma once

#include <cstdint>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

template <class F, int Columns>
[[gnu::always_inline]] inline void depthwise_columns(const DepthwiseTile& t, const uint8_t* codes,
                                                     const uint8_t* weights, typename F::Scale scale, uint32_t* sums) {
  typename F::Sums columns[Columns];
  repeat<Columns>([&](auto c) { columns[c] = F::zero(); });
  for (int strip = 0; strip < t.strip_count; ++strip)
    for (int tap = 0; tap < t.taps; ++tap, weights += F::kWeightBytes) {
      const uint8_t* at = codes + strip * t.strip_bytes + tap * t.tap_bytes;
      const auto w = F::load_weights(weights);
      repeat<Columns>([&](auto c) { columns[c] = F::add(columns[c], F::load(at + c * t.output_bytes), w); });
    }
  repeat<Columns>([&](auto c) { F::store(sums + c * F::kLanes * F::kGroups, columns[c], scale); });
}

// Any number of taps and strips: four columns share a load of weights.
template <class F>
void depthwise_any(const DepthwiseTile& tile) {
  const DepthwiseTile t = tile;  // nobody else's: stores to the sums cannot change it
  constexpr int channels = F::kLanes * F::kGroups;
  for (int row = 0; row < t.out_rows; ++row)
    for (int group = 0; group < F::kGroups; ++group) {
      const uint8_t* codes = t.strips + group * t.group_bytes;
      const uint8_t* weights = t.weights + row * t.weights_row + group * t.strip_count * t.taps * F::kWeightBytes;
      uint32_t* sums = t.sums + row * t.columns * channels + group * F::kLanes;
      const auto scale = F::scale(t.shifts + group * F::kLanes);
      int64_t x = 0;
      for (; x + 4 <= t.columns; x += 4, codes += 4 * t.output_bytes, sums += 4 * channels)
        depthwise_columns<F, 4>(t, codes, weights, scale, sums);
      for (; x < t.columns; ++x, codes += t.output_bytes, sums += channels)
        depthwise_columns<F, 1>(t, codes, weights, scale, sums);
    }
}

// Three taps, `Strips` strips, `Rows` output rows.
template <class F, int Strips, int Rows>
void depthwise_three(const DepthwiseTile& tile) {
  const DepthwiseTile t = tile;
  constexpr int channels = F::kLanes * F::kGroups;
  for (int group = 0; group < F::kGroups; ++group) {
    typename F::Weights weights[Rows][Strips * 3];
    repeat<Rows>([&](auto row) {
      const uint8_t* from = t.weights + row * t.weights_row + group * Strips * 3 * F::kWeightBytes;
      repeat<Strips * 3>([&](auto i) { weights[row][i] = F::load_weights(from + i * F::kWeightBytes); });
    });
    const uint8_t* codes = t.strips + group * t.group_bytes;
    uint32_t* sums = t.sums + group * F::kLanes;
    const auto scale = F::scale(t.shifts + group * F::kLanes);
    for (int64_t x = 0; x < t.columns; ++x, codes += t.output_bytes, sums += channels) {
      typename F::Sums rows[Rows];
      repeat<Strips * 3>([&](auto i) {
        const auto c = F::load(codes + i / 3 * t.strip_bytes + i % 3 * t.tap_bytes);
        repeat<Rows>([&](auto row) {
          if constexpr (i == 0)
            rows[row] = F::first(c, weights[row][i]);
          else
            rows[row] = F::add(rows[row], c, weights[row][i]);
        });
      });
      repeat<Rows>([&](auto row) { F::store(sums + row * t.columns * channels, rows[row], scale); });
    }
  }
}

// Where a weight stands: beside those of the other rows of its lane, or in two registers, of the even and of the odd rows.
template <int Rows>
constexpr int beside_rows(int lane, int row) {
  return lane * Rows + row;
}
template <int Lanes>
constexpr int even_and_odd_rows(int lane, int row) {
  return row % 2 * 2 * Lanes + lane * 2 + row / 2;
}

// Strips: what three rows need. One strip serves two output rows.
template <class F, int Strips>
constexpr DepthwiseForm depthwise_form(const char* name, int weight_size, int (*place)(int lane, int row)) {
  DepthwiseForm form{name, F::exact, weight_size, place, depthwise_any<F>, {depthwise_three<F, Strips, 1>, nullptr}};
  if constexpr (Strips == 1) form.three[1] = depthwise_three<F, 1, 2>;
  return form;
}

}  // namespace
}  // namespace soniq
