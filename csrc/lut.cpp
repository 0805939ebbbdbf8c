// The lut family: for four activations, a table of their 16 subset sums; four weight bits of a plane look one up.
//
// Exact because a sum of four codes of at most 6 bits fits a byte (4 * 63 = 252): nothing is rounded, and S is the same.
//
//   weights, one panel and plane:    [unit of 32 codes] of 4 bytes a column, by column or by byte as the tier likes them;
//                                    byte t holds the bits of codes 4t..4t+3 in its low nibble, of codes
//                                    16+4t..16+4t+3 in its high one: one bit a weight
//   activations, one block of 512:   [row][unit] 128 bytes: tables of the unit's first 16 codes, then of its last 16
#include <algorithm>

#include "segment_kernel.h"

namespace soniq {
namespace {

constexpr int kUnitsPerBlock = kBlock / kUnit;

class LutSegment final : public SegmentKernel {
 public:
  LutSegment(const CodeMatrix& weights, const Tier& tier)
      : SegmentKernel(weights, tier, kUnit),
        family_(*tier.table->lut),
        planes_(weights.w_bits),
        a_bits_(weights.a_bits) {
    build(weights.outputs, family_.columns, plane_bytes() * planes_, [&](int64_t output, uint8_t* out) {
      for (int plane = 0; plane < planes_; ++plane)
        for (int k = 0; k < k_padded(); k += kUnit, out += family_.columns * 4)
          for (int column = 0; column < family_.columns; ++column)
            for (int t = 0; t < 4; ++t)
              out[column * family_.column_stride + t * family_.group_stride] =
                  uint8_t(nibble(weights, output + column, k + 4 * t, plane) |
                          nibble(weights, output + column, k + 16 + 4 * t, plane) << 4);
    });
  }

  Family family() const override { return Family::lut; }
  const char* form() const override { return family_.name; }
  std::pair<int, int> tile() const override { return {family_.tile_rows, family_.columns}; }

  int64_t prepared_bytes(int rows) const override { return int64_t(blocks()) * rows * kTableStride; }

  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    for (int k = 0; k < k_padded(); k += kBlock)
      for (int row = 0; row < rows; ++row, gathered += kRowStride, prepared += kTableStride)
        family_.tables(gathered, std::min(kBlock, k_padded() - k) / kUnit, prepared);
    tier_.counters.tables.fetch_add(1, std::memory_order_relaxed);
  }

  void multiply(int index, const uint8_t* prepared, int rows, int shift, uint32_t* sums) const override {
    const int units = k_padded() / kUnit, unit_bytes = family_.columns * 4;
    for (int unit = 0; unit < units; unit += kUnitsPerBlock, prepared += int64_t(rows) * kTableStride)
      for (int plane = 0; plane < planes_; ++plane)
        multiply_plane(panel(index) + plane * plane_bytes() + int64_t(unit) * unit_bytes, prepared,
                       std::min(kUnitsPerBlock, units - unit), rows, shift + plane, sums);
  }

 private:
  int64_t plane_bytes() const { return int64_t(k_padded()) / kUnit * family_.columns * 4; }

  static int nibble(const CodeMatrix& weights, int64_t output, int first_k, int plane) {
    int bits = 0;
    for (int i = 0; i < 4; ++i) bits |= ((weights.at(output, first_k + i) >> plane) & 1) << i;
    return bits;
  }

  void multiply_plane(const uint8_t* weights, const uint8_t* tables, int units, int rows, int shift,
                      uint32_t* sums) const {
    const int full = family_.tile_rows;
    for (int row = 0; row < rows; row += full)
      family_.tile[a_bits_][std::min(full, rows - row)](weights, tables + int64_t(row) * kTableStride, units,
                                                        sums + int64_t(row) * family_.columns, shift);
    auto& counts = tier_.counters.lut_tile[a_bits_];
    counts[full].fetch_add(rows / full, std::memory_order_relaxed);
    if (rows % full) counts[rows % full].fetch_add(1, std::memory_order_relaxed);
  }

  const LutFamily& family_;
  const int planes_, a_bits_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_lut(const CodeMatrix& weights, const Tier& tier) {
  return std::make_unique<LutSegment>(weights, tier);
}

}  // namespace soniq
