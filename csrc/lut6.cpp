// The lut6 family: for six activations, a table of their 64 subset sums; six weight bits of a plane look one up.
//
//   weights, one span and plane:     [group of six codes][vector of 64 outputs] one byte each, bit i for code i of the group;
//                                    output 16 q + lane of a vector stands in byte 4 lane + q
//   activations, one block of 512:   [row][group] 64 bytes; a block's last group has two codes and four zeros
#include <algorithm>

#include "segment_kernel.h"

namespace soniq {
namespace {

class Lut6Segment final : public SegmentKernel {
 public:
  Lut6Segment(const CodeMatrix& weights, const Tier& tier)
      : SegmentKernel(weights, tier, kUnit),
        family_(*tier.table->lut6),
        planes_(weights.w_bits),
        a_bits_(weights.a_bits) {
    build(weights.outputs, family_.columns, plane_bytes() * planes_, [&](int64_t output, uint8_t* out) {
      for (int plane = 0; plane < planes_; ++plane)
        for (int block = 0; block < blocks(); ++block)
          for (int group = 0; group < groups(block); ++group, out += family_.columns)
            for (int column = 0; column < family_.columns; ++column)
              out[column / 64 * 64 + column % 16 * 4 + column % 64 / 16] =
                  six_bits(weights, output + column, block, group, plane);
    });
  }

  Family family() const override { return Family::lut6; }
  const char* form() const override { return family_.name; }
  std::pair<int, int> tile() const override { return {family_.tile_rows, family_.columns}; }
  int span() const override { return family_.columns / 32; }

  int64_t prepared_bytes(int rows) const override { return int64_t(blocks()) * rows * kLut6Stride; }

  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    for (int block = 0; block < blocks(); ++block)
      for (int row = 0; row < rows; ++row, gathered += kRowStride, prepared += kLut6Stride)
        family_.tables(gathered, groups(block), prepared);
    tier_.counters.lut6_tables.fetch_add(1, std::memory_order_relaxed);
  }

  void multiply(int index, const uint8_t* prepared, int rows, int shift, uint32_t* sums) const override {
    const uint8_t* weights = panel(index);
    for (int plane = 0; plane < planes_; ++plane) {
      const uint8_t* tables = prepared;
      for (int block = 0; block < blocks(); ++block, tables += int64_t(rows) * kLut6Stride) {
        multiply_block(weights, tables, groups(block), rows, shift + plane, sums);
        weights += int64_t(groups(block)) * family_.columns;
      }
    }
  }

 private:
  int codes(int block) const { return std::min(kBlock, k_padded() - block * kBlock); }
  int groups(int block) const { return (codes(block) + 5) / 6; }
  int64_t plane_bytes() const {
    int64_t total = 0;
    for (int block = 0; block < blocks(); ++block) total += groups(block) * family_.columns;
    return total;
  }

  uint8_t six_bits(const CodeMatrix& weights, int64_t output, int block, int group, int plane) const {
    int bits = 0;
    for (int i = 0; i < 6 && 6 * group + i < codes(block); ++i)
      bits |= ((weights.at(output, block * kBlock + 6 * group + i) >> plane) & 1) << i;
    return uint8_t(bits);
  }

  void multiply_block(const uint8_t* weights, const uint8_t* tables, int groups, int rows, int shift,
                      uint32_t* sums) const {
    const int full = family_.tile_rows;
    for (int row = 0; row < rows; row += full)
      family_.tile[a_bits_][std::min(full, rows - row)](weights, tables + int64_t(row) * kLut6Stride, groups,
                                                        sums + int64_t(row) * 32, int64_t(rows) * 32, shift);
    auto& counts = tier_.counters.lut6_tile[a_bits_];
    counts[full].fetch_add(rows / full, std::memory_order_relaxed);
    if (rows % full) counts[rows % full].fetch_add(1, std::memory_order_relaxed);
  }

  const Lut6Family& family_;
  const int planes_, a_bits_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_lut6(const CodeMatrix& weights, const Tier& tier) {
  return std::make_unique<Lut6Segment>(weights, tier);
}

}  // namespace soniq
