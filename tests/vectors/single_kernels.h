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

// The widths with the largest products that a form is exact for; flipped weights would be another operand.
std::pair<int, int> widest(const DotFamily& dot, int form) {
  std::pair<int, int> best(0, 0);
  const auto product = [](std::pair<int, int> bits) { return ((1 << bits.first) - 1) * ((1 << bits.second) - 1); };
  for (int w = 1; w <= (dot.flips_8bit_weights ? 7 : 8); ++w)
    for (int a = 1; a <= 8; ++a)
      if (dot.form(w, a) == form && product({w, a}) > product(best)) best = {w, a};
  return best;
}

void check_tile(const DotFamily& dot, int form, int rows, Random& random, Report& report) {
  const auto [w_bits, a_bits] = widest(dot, form);
  const int columns = dot.columns, k = 3 * kUnit, shift = 2;
  const AlignedBytes w = random.codes(size_t(columns) * k, w_bits);
  const AlignedBytes a = random.codes(size_t(rows - 1) * kRowStride + k, a_bits);
  Guarded<int32_t> sums(size_t(rows) * columns);
  Ints expected(size_t(rows) * columns);
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      uint32_t sum = 0;
      for (int i = 0; i < k; ++i)  // [k / 4][column][k % 4]
        sum += uint32_t(w[(i / 4 * columns + column) * 4 + i % 4]) * a[row * kRowStride + i];
      const uint32_t before = random.next();
      sums.data()[row * columns + column] = int32_t(before);
      expected[row * columns + column] = int32_t(before + (sum << shift));
    }
  dot.tile[form][rows](w.data(), a.data(), k, reinterpret_cast<uint32_t*>(sums.data()), shift);
  sums.compare(expected, "sums", report);
}

// One byte of an unpacked unit: fields of 4, 2 and 1 bits, high to low; a field of f bits of 8 rows shares f rows.
uint8_t unpacked(const uint8_t* unit, int bits, int row_bytes, int row, int byte) {
  int code = 0, position = bits;
  for (int field = 4; field >= 1; field /= 2) {
    if (!(bits & field)) continue;
    position -= field;
    const int shared = unit[row % field * row_bytes + byte] >> (row / field * field);
    code |= (shared & ((1 << field) - 1)) << position;
    unit += field * row_bytes;
  }
  return uint8_t(code);
}

void check_unpack(const DotFamily& dot, int bits, Random& random, Report& report) {
  const int units = 3, row_bytes = dot.columns * 4;
  const AlignedBytes panel = random.codes(size_t(units) * bits * row_bytes, 8);
  Guarded<uint8_t> bytes(size_t(units) * 8 * row_bytes);
  Bytes expected;
  for (int unit = 0; unit < units; ++unit)
    for (int row = 0; row < 8; ++row)
      for (int byte = 0; byte < row_bytes; ++byte)
        expected.push_back(unpacked(panel.data() + unit * bits * row_bytes, bits, row_bytes, row, byte));
  dot.unpack[bits](panel.data(), units, bytes.data());
  bytes.compare(expected, "bytes", report);
}

// ---- segments: packed, prepared and multiplied by one family ---------------------------------------------------------
struct SegmentCase {
  int rows, outputs, k, w_bits, a_bits;
  AlignedBytes w, a;  // codes [outputs][k], [rows][k]

  uint32_t product(int row, int output) const {
    uint32_t sum = 0;
    for (int i = 0; i < k && output < outputs; ++i) sum += uint32_t(w[output * k + i]) * a[row * k + i];
    return sum;
  }
  uint32_t code_sum(int row) const {
    uint32_t sum = 0;
    for (int i = 0; i < k; ++i) sum += a[row * k + i];
    return sum;
  }
};

// As gather_rows leaves them: zeros up to the padded K; what stands behind that is nobody's.
AlignedBytes gathered_rows(const SegmentCase& c, const SegmentKernel& kernel) {
  AlignedBytes gathered(size_t(kernel.gathered_bytes(c.rows)), 0xff);
  for (int k = 0; k < kernel.k_padded(); ++k)
    for (int row = 0; row < c.rows; ++row)
      gathered[(size_t(k / kBlock) * c.rows + row) * kRowStride + k % kBlock] = k < c.k ? c.a[row * c.k + k] : 0;
  return gathered;
}

void check_segment(const Candidate& candidate, const SegmentCase& c, Random& random, Report& report) {
  constexpr int gap = 8, shift = 2;  // between the sums of two panels
  const auto kernel = make_segment_kernel({c.w.data(), c.outputs, c.k, c.w_bits, c.a_bits}, candidate);
  const AlignedBytes gathered = gathered_rows(c, *kernel);
  AlignedBytes prepared(size_t(kernel->prepared_bytes(c.rows)), 0xff);
  if (!prepared.empty()) kernel->prepare(gathered.data(), c.rows, prepared.data());

  const int panel = kernel->panel_columns(),
            panels = (c.outputs + kernel->columns() - 1) / kernel->columns() * kernel->columns() / panel;
  const int panel_sums = c.rows * panel + gap;
  Guarded<int32_t> sums(size_t(panels) * panel_sums - gap);
  Ints expected(size_t(panels) * panel_sums - gap);
  for (int32_t& sum : expected) sum = int32_t(random.next());
  std::copy(expected.begin(), expected.end(), sums.data());
  for (int row = 0; row < c.rows; ++row)
    for (int column = 0; column < panels * panel; ++column) {
      const uint32_t lacks = uint32_t(kernel->activation_repair()) * c.code_sum(row);
      int32_t& sum = expected[column / panel * panel_sums + row * panel + column % panel];
      sum = int32_t(uint32_t(sum) + ((c.product(row, column) - lacks) << shift));
    }
  kernel->multiply(0, panels, prepared.empty() ? gathered.data() : prepared.data(), c.rows, shift,
                   reinterpret_cast<uint32_t*>(sums.data()), panel_sums);
  sums.compare(expected, std::to_string(c.rows) + " rows, K " + std::to_string(c.k), report);
}

// Every number of rows that a tile takes, K across a block's end, and the longest run of the largest codes.
void check_family(const Candidate& candidate, int w_bits, int a_bits, Random& random, Report& report) {
  const int tile_rows = make_segment_kernel({nullptr, 0, 0, w_bits, a_bits}, candidate)->tile_rows();
  const int outputs = 9, tail = 1 + int(random.next() % kUnit);
  for (int rows = 1; rows <= tile_rows + 1; ++rows) {
    const int k = (rows % 3 == 0 ? kBlock : 0) + tail;
    check_segment(candidate,
                  {rows, outputs, k, w_bits, a_bits, random.codes(outputs * k, w_bits), random.codes(rows * k, a_bits)},
                  random, report);
  }
  const int k = 8 * kBlock + tail, rows = tile_rows;
  const AlignedBytes w(size_t(k) * outputs, uint8_t((1 << w_bits) - 1)),
      a(size_t(k) * rows, uint8_t((1 << a_bits) - 1));
  check_segment(candidate, {rows, outputs, k, w_bits, a_bits, w, a}, random, report);
}

Count check_families(const Tier& tier, int every, Report& report) {
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

// The kernels of the tier's own table.
Count check_kernels(const Tier& tier, Report& report) {
  Count count;
  if (!tier.table->dot) return count;
  const DotFamily& dot = *tier.table->dot;
  Random random;
  for (int form = 0; form < dot.forms; ++form)
    for (int rows = 1; rows <= dot.tile_rows[form]; ++rows) {
      report.begin(std::string(dot.form_name(form)) + " tile of " + std::to_string(rows) + " rows", tier);
      check_tile(dot, form, rows, random, report);
      count += report.end();
    }
  for (int bits = 1; bits <= 8; ++bits) {
    if (!dot.unpack[bits]) continue;
    report.begin("unpack " + std::to_string(bits) + " bits", tier);
    check_unpack(dot, bits, random, report);
    count += report.end();
  }
  return count;
}

}  // namespace
