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
  Lut6Segment(const CodeMatrix& weights, const Taps& taps, const Tier& tier)
      : SegmentKernel(weights, taps, tier, brick_shape(*tier.table->lut6, taps)),
        family_(*tier.table->lut6),
        w_bits_(weights.w_bits),
        parts_(parts_of(weights.a_bits, kMaxLut6Bits)) {
    for (int column = 0; column < family_.columns; ++column) place_.push_back(family_.place(column));
    build(weights);
  }

  Family family() const override { return family_of_tables(family_); }
  const char* form() const override { return family_.name; }
  int tile_rows() const override { return family_.tile_rows; }

  int64_t prepared_bytes(int rows) const override {
    return int64_t(blocks()) * gathered_rows(nullptr, rows).line_stride;
  }

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
  PreparedRows gathered_rows(const uint8_t* prepared, int rows) const override {
    const int64_t part = int64_t(rows) * family_.table_stride;
    return {prepared, rows, rows, family_.table_stride, 0, int64_t(parts_.size()) * part, part};
  }

  // Tables are written a few at a time, past the last pixel's.
  void prepare_pixels(const uint8_t* codes, int pixels, int, uint8_t* out, int64_t part_stride) const override {
    static thread_local AlignedBytes buffer;
    const int count = pixels * pixel_codes();
    uint8_t* cut = scratch(buffer, count + kPixelSlack);
    for (const CodePart& part : parts_) {
      family_.tables(part.of(codes, (count + 7) / 8 * 8, cut), count / family_.codes, out);
      out += part_stride;
    }
    tier_.counters.lut6_tables.add(1);
  }
  int64_t prepared_codes_bytes(int codes) const override { return (int64_t(codes) / family_.codes) << family_.codes; }
  int prepared_parts() const override { return int(parts_.size()); }

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

  void multiply_brick(const Brick& brick, const PreparedRows& rows, const PanelsOfSums& sums) const override {
    const uint8_t* weights = brick.weights;
    for (int plane = 0; plane < w_bits_; ++plane, weights += plane_bytes(brick.codes)) {
      PreparedRows tables = rows;
      for (const CodePart& part : parts_) {
        multiply_plane(weights, tables, part.bits, groups(brick.codes), sums.shift + plane + part.shift, sums.first,
                       sums.stride);
        tables.first += rows.part_stride;
      }
    }
  }

 private:
  // Gathered rows are cut into blocks of kBlock codes, whose last table is of fewer codes; with taps all tables are full.
  static BrickShape brick_shape(const Lut6Family& family, const Taps& taps) {
    const int codes = family.codes;
    if (taps.any()) return {family.columns, family.panel, codes, kBlock / codes * codes, codes, 0};
    return {family.columns, family.panel, kUnit, kBlock, codes, 0};
  }

  static uint8_t weight_bits(const CodeMatrix& weights, int64_t output, int first_k, int count, int plane) {
    int bits = 0;
    for (int i = 0; i < count; ++i) bits |= ((weights.at(output, first_k + i) >> plane) & 1) << i;
    return uint8_t(bits);
  }

  void multiply_plane(const uint8_t* weights, const PreparedRows& tables, int a_bits, int groups, int shift,
                      uint32_t* sums, int64_t panel_sums) const {
    each_tile(tables, family_.tile_rows, tier_.counters.lut6_tile[a_bits], [&](int row, int n, const uint8_t* at) {
      family_.tile[a_bits][n](weights, at, tables.stride, groups, sums + int64_t(row) * family_.panel, panel_sums,
                              shift);
    });
  }

  const Lut6Family& family_;
  const int w_bits_;
  const std::vector<CodePart> parts_;
  std::vector<int> place_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_lut6(const CodeMatrix& weights, const Taps& taps, const Tier& tier) {
  return std::make_unique<Lut6Segment>(weights, taps, tier);
}

}  // namespace soniq
