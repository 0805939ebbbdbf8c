// The depthwise kernels by themselves, on rows, strips, weights and sums that end where nobody may touch what follows; and with
// the largest products for which a form says that it is exact.
#pragma once

#include <string>
#include <vector>

#include "single_kernels.h"

namespace {

struct DepthwiseCase {
  int form, taps, strips, out_rows, stride, dilation, columns;
  bool three, largest;

  int input_columns() const { return (columns - 1) * stride + (taps - 1) * dilation + 1; }
};

// The largest weight for which the form is exact with 8-bit codes.
int largest_weight(const DepthwiseFamily& f, const DepthwiseCase& c) {
  for (int w = 1278;; --w) {
    const int rows = f.rows > 1 ? 2 : 1;
    if (f.form[c.form].exact({-w, w, rows * w * 255, int64_t(rows) * c.strips * c.taps * w * 255, 2})) return w;
  }
}

class DepthwiseCheck {
 public:
  DepthwiseCheck(const DepthwiseFamily& family, const DepthwiseCase& c, Random& random)
      : f_(family), c_(c), w_max_(largest_weight(family, c)) {
    for (int row = 0; row < f_.rows * c.strips; ++row) {
      rows_.push_back(random.codes(size_t(c.input_columns() - 1) * step() + f_.channels, 8));
      if (c.largest) rows_.back().assign(rows_.back().size(), 255);
    }
    levels_.resize(size_t(c.out_rows) * f_.rows * c.strips * c.taps * f_.channels);
    for (int& level : levels_) level = c.largest ? w_max_ : int(random.next() % (2 * w_max_ + 1)) - w_max_;
  }

  void run(const std::string& what, Report& report) {
    const AlignedBytes strips = interleaved(), weights = packed();
    std::vector<uint32_t> shifts;
    for (int channel = 0; channel < f_.channels; ++channel) shifts.push_back(uint32_t(channel % 3));
    Guarded<int32_t> sums(size_t(c_.out_rows) * c_.columns * f_.channels);
    DepthwiseTile t{};
    t.strips = strips.data();
    t.strip_bytes = strip_bytes();
    t.group_bytes = group_bytes();
    t.output_bytes = int64_t(c_.stride) * f_.column_bytes;
    t.tap_bytes = int64_t(c_.dilation) * f_.column_bytes;
    t.strip_count = c_.strips;
    t.taps = c_.taps;
    t.weights = weights.data();
    t.weights_row = int64_t(weights.size()) / c_.out_rows;
    t.out_rows = c_.out_rows;
    t.shifts = shifts.data();
    t.columns = c_.columns;
    t.sums = reinterpret_cast<uint32_t*>(sums.data());
    const DepthwiseForm& form = f_.form[c_.form];
    (c_.three ? form.three[c_.out_rows - 1] : form.any)(t);
    Ints expected;
    for (int row = 0; row < c_.out_rows; ++row)
      for (int x = 0; x < c_.columns; ++x)
        for (int channel = 0; channel < f_.channels; ++channel)
          expected.push_back(int32_t(uint32_t(sum(row, x, channel)) << shifts[channel]));
    sums.compare(expected, what, report);
  }

 private:
  int64_t step() const { return f_.channels + 5; }  // bytes between pixels
  int64_t group_bytes() const { return int64_t(c_.input_columns()) * f_.column_bytes; }
  int64_t strip_bytes() const { return f_.channels / f_.lanes * group_bytes(); }
  int level(int out_row, int row, int tap, int channel) const {
    return levels_[((size_t(out_row) * f_.rows * c_.strips + row) * c_.taps + tap) * f_.channels + channel];
  }

  AlignedBytes interleaved() const {
    AlignedBytes strips(size_t(c_.strips * strip_bytes()), 0xff);
    for (int s = 0; s < c_.strips; ++s) {
      DepthwiseRow rows[4];
      for (int i = 0; i < f_.rows; ++i) rows[i] = {rows_[s * f_.rows + i].data(), step()};
      f_.interleave(rows, c_.input_columns(), strips.data() + s * strip_bytes(), group_bytes());
    }
    return strips;
  }

  AlignedBytes packed() const {
    const DepthwiseForm& form = f_.form[c_.form];
    const int of_tap = f_.lanes * f_.rows;
    AlignedBytes bytes(levels_.size() * form.weight_size);
    uint8_t* to = bytes.data();
    for (int out_row = 0; out_row < c_.out_rows; ++out_row)
      for (int group = 0; group < f_.channels / f_.lanes; ++group)
        for (int s = 0; s < c_.strips; ++s)
          for (int tap = 0; tap < c_.taps; ++tap, to += of_tap * form.weight_size)
            for (int lane = 0; lane < f_.lanes; ++lane)
              for (int row = 0; row < f_.rows; ++row) {
                const auto w = int16_t(level(out_row, s * f_.rows + row, tap, group * f_.lanes + lane));
                std::memcpy(to + form.place(lane, row) * form.weight_size, &w, form.weight_size);
              }
    return bytes;
  }

  int32_t sum(int out_row, int x, int channel) const {
    int32_t total = 0;
    for (int row = 0; row < f_.rows * c_.strips; ++row)
      for (int tap = 0; tap < c_.taps; ++tap)
        total += level(out_row, row, tap, channel) * rows_[row][(x * c_.stride + tap * c_.dilation) * step() + channel];
    return total;
  }

  const DepthwiseFamily& f_;
  const DepthwiseCase c_;
  const int w_max_;
  std::vector<AlignedBytes> rows_;
  std::vector<int> levels_;  // [output row][row][tap][channel]
};

// Numbers of columns about those that a loop takes at once; strides and dilations; all largest.
void check_depthwise_kernel(const DepthwiseFamily& family, DepthwiseCase c, Random& random, Report& report) {
  const std::string name = std::string(family.form[c.form].name) + ", " + std::to_string(c.taps) + " taps, ";
  for (c.columns = 1; c.columns <= 9; ++c.columns) {
    c.stride = 1 + c.columns % 3;
    c.dilation = 1 + c.columns / 3 % 2;
    c.largest = c.columns == 5;
    DepthwiseCheck(family, c, random).run(name + std::to_string(c.columns) + " columns", report);
  }
}

Count check_depthwise_kernels(const Tier& tier, Report& report) {
  Count count;
  const DepthwiseFamily* family = tier.table->depthwise;
  if (!family) return count;
  Random random;
  const int strips_of_three = (3 + family->rows - 1) / family->rows;
  for (int form = 0; form < family->forms; ++form) {
    report.begin(std::string("depthwise kernels, ") + family->form[form].name, tier);
    for (const auto& [taps, strips, rows] : {std::tuple{1, 1, 1}, {2, 1, 3}, {5, 2, 2}, {7, 7, 1}})
      check_depthwise_kernel(*family, {form, taps, strips, rows, 1, 1, 0, false, false}, random, report);
    for (int rows = 1; rows <= 2 && family->form[form].three[rows - 1]; ++rows)
      check_depthwise_kernel(*family, {form, 3, strips_of_three, rows, 1, 1, 0, true, false}, random, report);
    count += report.end();
  }
  return count;
}

}  // namespace
