// The lut family: for four activations, a table of their 16 subset sums; four weight bits of a plane look one up.
//
// Exact because a sum of four codes of at most 6 bits fits a byte (4 * 63 = 252): nothing is rounded, and S is the same.
//
//   weights, one brick and plane:    [unit of 32 codes] of 4 bytes a column, by column or by byte as the tier likes them;
//                                    byte t holds the bits of codes 4t..4t+3 in its low nibble, of codes
//                                    16+4t..16+4t+3 in its high one: one bit a weight
//   activations, one block of 512:   [part][row][unit] 128 bytes: tables of the unit's first 16 codes, then of its last 16
#include <algorithm>

#include "code_parts.h"
#include "segment_kernel.h"

namespace soniq {
namespace {

class LutSegment final : public SegmentKernel {
 public:
  LutSegment(const CodeMatrix& weights, const Tier& tier)
      : SegmentKernel(weights, tier, {tier.table->lut->columns, tier.table->lut->columns, kUnit, kBlock}),
        family_(*tier.table->lut),
        w_bits_(weights.w_bits),
        parts_(parts_of(weights.a_bits)) {
    build(weights);
  }

  Family family() const override { return Family::lut; }
  const char* form() const override { return family_.name; }
  int tile_rows() const override { return family_.tile_rows; }

  int64_t prepared_bytes(int rows) const override { return int64_t(blocks()) * block_stride(rows); }

  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    for (int k = 0; k < k_padded(); k += kBlock, gathered += int64_t(rows) * kRowStride)
      for (const CodePart& part : parts_)
        for (int row = 0; row < rows; ++row, prepared += kTableStride) {
          const int codes = std::min(kBlock, k_padded() - k);
          uint8_t buffer[kBlock];
          family_.tables(part.of(gathered + int64_t(row) * kRowStride, codes, buffer), codes / kUnit, prepared);
        }
    tier_.counters.tables.add(1);
  }

 protected:
  int64_t plane_bytes(int codes) const { return int64_t(codes) / kUnit * family_.columns * 4; }
  int64_t brick_bytes(int codes) const override { return plane_bytes(codes) * w_bits_; }

  void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                  uint8_t* out) const override {
    for (int plane = 0; plane < w_bits_; ++plane)
      for (int k = first_k; k < first_k + codes; k += kUnit, out += family_.columns * 4)
        for (int column = 0; column < family_.columns; ++column)
          for (int t = 0; t < 4; ++t)
            out[column * family_.column_stride + t * family_.group_stride] =
                uint8_t(nibble(weights, first_output + column, k + 4 * t, plane) |
                        nibble(weights, first_output + column, k + 16 + 4 * t, plane) << 4);
  }

  int64_t block_stride(int rows) const override { return int64_t(parts_.size()) * rows * kTableStride; }

  void multiply_brick(const uint8_t* weights, const uint8_t* prepared, int codes, int rows, int shift, uint32_t* sums,
                      int64_t) const override {
    for (int plane = 0; plane < w_bits_; ++plane, weights += plane_bytes(codes))
      for (int part = 0; part < int(parts_.size()); ++part)
        multiply_plane(weights, prepared + int64_t(part) * rows * kTableStride, parts_[part].bits, codes / kUnit, rows,
                       shift + plane + parts_[part].shift, sums);
  }

 private:
  static int nibble(const CodeMatrix& weights, int64_t output, int first_k, int plane) {
    int bits = 0;
    for (int i = 0; i < 4; ++i) bits |= ((weights.at(output, first_k + i) >> plane) & 1) << i;
    return bits;
  }

  void multiply_plane(const uint8_t* weights, const uint8_t* tables, int a_bits, int units, int rows, int shift,
                      uint32_t* sums) const {
    for (int row = 0, n; row < rows; row += n) {
      n = std::min(family_.tile_rows, rows - row);
      family_.tile[a_bits][n](weights, tables + int64_t(row) * kTableStride, units,
                              sums + int64_t(row) * family_.columns, shift);
    }
    count_tiles(tier_.counters.lut_tile[a_bits], family_.tile_rows, rows);
  }

  const LutFamily& family_;
  const int w_bits_;
  const std::vector<CodePart> parts_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_lut(const CodeMatrix& weights, const Tier& tier) {
  return std::make_unique<LutSegment>(weights, tier);
}

}  // namespace soniq
