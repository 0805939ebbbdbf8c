// The lut6 family: for six activations, a table of their 64 subset sums; six weight bits of a plane look one up. Where
// registers hold a table of 32 sums, five activations at a time: lut5.
//
//   weights, one brick and plane:    [group of codes][output] one byte each, bit i for code i of the group, outputs in the
//                                    order that the tier likes
//   activations, one block of 512:   [part][row][group] a table; a block's last group has two codes, its other bits are 0
#include <algorithm>

#include "code_parts.h"
#include "segment_kernel.h"

namespace soniq {
namespace {

class Lut6Segment final : public SegmentKernel {
 public:
  Lut6Segment(const CodeMatrix& weights, const Tier& tier)
      : SegmentKernel(weights, tier, {tier.table->lut6->columns, tier.table->lut6->panel, kUnit, kBlock}),
        family_(*tier.table->lut6),
        w_bits_(weights.w_bits),
        parts_(parts_of(weights.a_bits, kMaxLut6Bits)) {
    for (int column = 0; column < family_.columns; ++column) place_.push_back(family_.place(column));
    build(weights);
  }

  Family family() const override { return family_of_tables(family_); }
  const char* form() const override { return family_.name; }
  int tile_rows() const override { return family_.tile_rows; }

  int64_t prepared_bytes(int rows) const override { return int64_t(blocks()) * block_stride(rows); }

  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    for (int k = 0; k < k_padded(); k += kBlock, gathered += int64_t(rows) * kRowStride)
      for (const CodePart& part : parts_)
        for (int row = 0; row < rows; ++row, prepared += family_.table_stride) {
          const int codes = std::min(kBlock, k_padded() - k);
          uint8_t buffer[kRowStride];
          family_.tables(part.of(gathered + int64_t(row) * kRowStride, codes, buffer), groups(codes), prepared);
        }
    tier_.counters.lut6_tables.add(1);
  }

 protected:
  int groups(int codes) const { return (codes + family_.codes - 1) / family_.codes; }
  int64_t plane_bytes(int codes) const { return int64_t(groups(codes)) * family_.columns; }
  int64_t brick_bytes(int codes) const override { return plane_bytes(codes) * w_bits_; }

  // Bricks are made of zeros: columns past the last output stay so.
  void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                  uint8_t* out) const override {
    const int columns = int(std::min<int64_t>(family_.columns, weights.outputs - first_output));
    for (int plane = 0; plane < w_bits_; ++plane)
      for (int k = 0; k < codes; k += family_.codes, out += family_.columns)
        for (int column = 0; column < columns; ++column)
          out[place_[column]] =
              weight_bits(weights, first_output + column, first_k + k, std::min(family_.codes, codes - k), plane);
  }

  int64_t block_stride(int rows) const override { return int64_t(parts_.size()) * rows * family_.table_stride; }

  void multiply_brick(const uint8_t* weights, const uint8_t* prepared, int codes, int rows, int shift, uint32_t* sums,
                      int64_t panel_sums) const override {
    for (int plane = 0; plane < w_bits_; ++plane, weights += plane_bytes(codes))
      for (int part = 0; part < int(parts_.size()); ++part)
        multiply_plane(weights, prepared + int64_t(part) * rows * family_.table_stride, parts_[part].bits,
                       groups(codes), rows, shift + plane + parts_[part].shift, sums, panel_sums);
  }

 private:
  static uint8_t weight_bits(const CodeMatrix& weights, int64_t output, int first_k, int count, int plane) {
    int bits = 0;
    for (int i = 0; i < count; ++i) bits |= ((weights.at(output, first_k + i) >> plane) & 1) << i;
    return uint8_t(bits);
  }

  void multiply_plane(const uint8_t* weights, const uint8_t* tables, int a_bits, int groups, int rows, int shift,
                      uint32_t* sums, int64_t panel_sums) const {
    for (int row = 0, n; row < rows; row += n) {
      n = std::min(family_.tile_rows, rows - row);
      family_.tile[a_bits][n](weights, tables + int64_t(row) * family_.table_stride, groups,
                              sums + int64_t(row) * family_.panel, panel_sums, shift);
    }
    count_tiles(tier_.counters.lut6_tile[a_bits], family_.tile_rows, rows);
  }

  const Lut6Family& family_;
  const int w_bits_;
  const std::vector<CodePart> parts_;
  std::vector<int> place_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_lut6(const CodeMatrix& weights, const Tier& tier) {
  return std::make_unique<Lut6Segment>(weights, tier);
}

}  // namespace soniq
