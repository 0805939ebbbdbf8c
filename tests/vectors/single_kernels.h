// Kernels by themselves, on operands that end where they should: what drivers hand over is longer, so that reading or writing
// past the end would not show in the cases. Guards see what is written; AddressSanitizer, and guard pages in builds without
// it, also what is read.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "report.h"
#include "segment_kernel.h"

namespace {

class Random {
 public:
  uint32_t next() { return uint32_t((state_ = state_ * 6364136223846793005u + 1442695040888963407u) >> 32); }
  AlignedBytes codes(size_t size, int bits) {  // every fourth is the largest
    AlignedBytes values(size);
    for (uint8_t& v : values) v = uint8_t(next() % 4 == 0 ? (1u << bits) - 1 : next() % (1u << bits));
    return values;
  }

 private:
  uint64_t state_ = 1;
};

// A segment: packed, prepared and multiplied by one family.
struct SegmentCase {
  int rows, outputs, k, w_bits, a_bits, w_alpha, w_beta;
  AlignedBytes w, a;  // codes [outputs][k], [rows][k]

  uint32_t product(int row, int output, WeightForm form) const {
    uint32_t sum = 0;
    for (int i = 0; i < k; ++i) sum += uint32_t(form.alpha * w[output * k + i] + form.beta) * a[row * k + i];
    return sum;
  }
};

// As gather_rows leaves them: zeros up to the padded K; what stands behind that is nobody's. prepare() may read a row to the
// end of its stride, multiply() may not.
AlignedBytes gathered_rows(const SegmentCase& c, const SegmentKernel& kernel) {
  const int last_codes = kernel.k_padded() - (kernel.blocks() - 1) * kBlock;
  const int64_t unread = kernel.prepared_bytes(c.rows) > 0 ? 0 : kRowStride - last_codes;
  AlignedBytes gathered(size_t(kernel.gathered_bytes(c.rows) - unread), 0xff);
  for (int k = 0; k < kernel.k_padded(); ++k)
    for (int row = 0; row < c.rows; ++row)
      gathered[(size_t(k / kBlock) * c.rows + row) * kRowStride + k % kBlock] = k < c.k ? c.a[row * c.k + k] : 0;
  return gathered;
}

void check_segment(const Candidate& candidate, const SegmentCase& c, Random& random, Report& report) {
  constexpr int gap = 8;  // between the sums of two panels
  const auto kernel =
      make_segment_kernel({c.w.data(), c.outputs, c.k, c.w_bits, c.a_bits, c.w_alpha, c.w_beta}, {}, candidate);
  // Half of the numbers of rows write sums that are fresh; others add to what is there, which some may not shift.
  const bool fresh = c.rows % 2 == 0;
  const int shift = kernel->shifts_all() && !fresh ? 0 : 2;
  const AlignedBytes gathered = gathered_rows(c, *kernel);
  AlignedBytes prepared(size_t(kernel->prepared_bytes(c.rows)), 0xff);
  if (!prepared.empty()) kernel->prepare(gathered.data(), c.rows, prepared.data());

  const int panel = kernel->panel_columns(), panel_sums = c.rows * panel + gap;
  const int tiles = (c.outputs + kernel->columns() - 1) / kernel->columns();
  const int panels = tiles * kernel->columns() / panel;
  const auto at = [&](int row, int column) { return column / panel * panel_sums + row * panel + column % panel; };
  Guarded<int32_t> sums(size_t(panels) * panel_sums - gap);
  Ints expected(size_t(panels) * panel_sums - gap);
  for (int32_t& sum : expected) sum = int32_t(random.next());
  std::copy(expected.begin(), expected.end(), sums.data());
  for (int row = 0; row < c.rows; ++row)
    for (int column = 0; column < panels * panel; ++column) {
      int32_t& sum = expected[at(row, column)];
      if (column < c.outputs)
        sum = int32_t((fresh ? 0 : uint32_t(sum)) + (c.product(row, column, kernel->weight_form(c.rows)) << shift));
    }
  const uint8_t* rows = prepared.empty() ? gathered.data() : prepared.data();
  kernel->multiply(0, panels, kernel->gathered_rows(rows, c.rows),
                   {reinterpret_cast<uint32_t*>(sums.data()), panel_sums, shift, fresh});
  // Columns past the last output hold no weights, and nobody reads them.
  for (int row = 0; row < c.rows; ++row)
    for (int column = c.outputs; column < panels * panel; ++column)
      expected[at(row, column)] = sums.data()[at(row, column)];
  sums.compare(expected, std::to_string(c.rows) + " rows, K " + std::to_string(c.k), report);
}

// Every number of rows that a tile takes, alone and behind a full one; K across a block's end; and the longest run of the
// largest codes.
void check_family(const Candidate& candidate, int w_bits, int a_bits, Random& random, Report& report) {
  const auto kernel = make_segment_kernel({nullptr, 0, 0, w_bits, a_bits}, {}, candidate);
  const int tail = 1 + int(random.next() % kUnit);
  const int largest = (1 << w_bits) - 1;
  for (int rows = 1; rows <= kernel->tile_rows() + kMaxFewRows; ++rows) {
    const int k = (rows % 3 == 0 ? kBlock : 0) + tail, outputs = (rows == 2 ? kernel->columns() : 0) + 9;
    const AlignedBytes w = random.codes(outputs * k, w_bits), a = random.codes(rows * k, a_bits);
    if (rows % 4 < 2)  // bipolar, else signed
      check_segment(candidate, {rows, outputs, k, w_bits, a_bits, 2, -largest, w, a}, random, report);
    else
      check_segment(candidate, {rows, outputs, k, w_bits, a_bits, 1, -(largest + 1) / 2, w, a}, random, report);
  }
  const int k = 8 * kBlock + tail, rows = kernel->tile_rows(), outputs = 3;
  const AlignedBytes w(size_t(k) * outputs, uint8_t(largest));
  const AlignedBytes a(size_t(k) * rows, uint8_t((1 << a_bits) - 1));
  check_segment(candidate, {rows, outputs, k, w_bits, a_bits, 2, -largest, w, a}, random, report);
}

// Of 64 pairs of widths, one after the other, every ninth has each width once.
constexpr int kOfEachWidth = 9;

Count check_families(const Tier& tier, int every, Report& report) {
  every = std::min(every, kOfEachWidth);
  Count count;
  Random random;
  int number = 0;
  for (int w = 1; w <= 8; ++w)
    for (int a = 1; a <= 8; ++a)
      for (const Candidate& candidate : candidates(tier, w, a)) {
        if (candidate.tier != &tier || number++ % every != 0) continue;
        report.begin(std::string(family_name(candidate.family)) + " of " + std::to_string(w) + " and " +
                         std::to_string(a) + " bits",
                     tier);
        check_family(candidate, w, a, random, report);
        count += report.end();
      }
  return count;
}

}  // namespace
