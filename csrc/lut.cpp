// The lut family: for four activations, a table of their 16 subset sums; four weight bits of a plane look one up.
//
// Exact because a sum of four codes of at most 6 bits fits a byte (4 * 63 = 252): nothing is rounded, and S is the same.
//
//   weights, one brick and plane:    [unit of 32 codes] of 4 bytes a column, in the order that the tier likes;
//                                    byte t holds the bits of codes 4t..4t+3 in its low nibble, of codes
//                                    16+4t..16+4t+3 in its high one: one bit a weight
//   activations, one block of 512:   [part][row, or pair of rows][unit] 128 bytes: 8 tables, in the order of the tier
#include <algorithm>

#include "code_parts.h"
#include "segment_kernel.h"

namespace soniq {
namespace {

class LutSegment final : public SegmentKernel {
 public:
  LutSegment(const CodeMatrix& weights, const Taps& taps, const Tier& tier)
      : SegmentKernel(weights, taps, tier,
                      {tier.table->lut->columns, tier.table->lut->panel, kUnit, kBlock, tier.table->lut->pixel, 0}),
        family_(*tier.table->lut),
        w_bits_(weights.w_bits),
        parts_(parts_of(weights.a_bits)) {
    build(weights);
  }

  Family family() const override { return Family::lut; }
  const char* form() const override { return family_.name; }
  int tile_rows() const override { return tile_rows(parts_[0].bits); }

  int64_t prepared_bytes(int rows) const override { return int64_t(blocks()) * block_stride(rows); }

  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    for (int k = 0; k < k_padded(); k += kBlock, gathered += int64_t(rows) * kRowStride)
      for (const CodePart& part : parts_)
        for (int row = 0; row < rows; row += rows_of_table(part, rows), prepared += kTableStride) {
          const int codes = std::min(kBlock, k_padded() - k);
          const bool paired = rows_of_table(part, rows) == 2 && row + 1 < rows;
          uint8_t buffer[kBlock];
          const uint8_t* first = gathered + int64_t(row) * kRowStride;
          family_.tables(paired ? pair_of(part, first, codes, buffer) : part.of(first, codes, buffer), codes / kUnit,
                         prepared);
        }
    tier_.counters.tables.add(1);
  }
  PreparedRows gathered_rows(const uint8_t* prepared, int rows) const override {
    const int64_t part =
        part_stride(parts_[0], rows);  // of all parts the same: those of two bits and more are not paired
    return {prepared, rows, rows, kTableStride / rows_of_table(parts_[0], rows), 0, int64_t(parts_.size()) * part,
            part};
  }

  void prepare_pixels(const uint8_t* codes, int pixels, int ahead, uint8_t* out, int64_t part_stride) const override {
    static thread_local AlignedBytes buffer;
    // One unit more: the weights of 0 that pad the last run look up what stands behind it, and must find 0.
    const int units = (pixels * pixel_codes() + kUnit - 1) / kUnit + 1;
    uint8_t* changed = scratch(buffer, units * kUnit);
    if (paired_pixels()) {
      pair_codes(codes, codes + ahead * pixel_codes(), units * kUnit, changed);
      codes = changed;
    }
    for (const CodePart& part : parts_) {
      family_.tables(part.of(codes, units * kUnit, changed), units, out);
      out += part_stride;
    }
    tier_.counters.tables.add(1);
  }
  int64_t prepared_codes_bytes(int codes) const override { return 4 * int64_t(codes); }
  int prepared_parts() const override { return int(parts_.size()); }

 protected:
  int64_t plane_bytes(int codes) const { return int64_t(codes) / kUnit * family_.columns * 4; }
  int64_t brick_bytes(int codes) const override { return plane_bytes(codes) * w_bits_; }

  void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                  uint8_t* out) const override {
    for (int plane = 0; plane < w_bits_; ++plane)
      for (int k = first_k; k < first_k + codes; k += kUnit, out += family_.columns * 4)
        for (int column = 0; column < family_.columns; ++column)
          for (int t = 0; t < 4; ++t)
            out[family_.place(column, t)] = uint8_t(nibble(weights, first_output + column, k + 4 * t, plane) |
                                                    nibble(weights, first_output + column, k + 16 + 4 * t, plane) << 4);
  }

  void multiply_brick(const Brick& brick, const PreparedRows& rows, const PanelsOfSums& sums) const override {
    const uint8_t* weights = brick.weights;
    for (int plane = 0; plane < w_bits_; ++plane, weights += plane_bytes(brick.codes)) {
      const uint8_t* read = what_tiles_read(weights, brick.codes / kUnit, rows.rows);
      PreparedRows tables = rows;
      for (const CodePart& part : parts_) {
        multiply_plane(read, tables, part, brick.codes / kUnit, sums.shift + plane + part.shift, sums.first,
                       sums.stride);
        tables.first += rows.part_stride;
      }
    }
  }

 private:
  int64_t block_stride(int rows) const { return int64_t(parts_.size()) * part_stride(parts_[0], rows); }
  static void pair_codes(const uint8_t* __restrict low, const uint8_t* __restrict high, int count,
                         uint8_t* __restrict both) {
    for (int i = 0; i < count; ++i) both[i] = uint8_t(low[i] | high[i] << 4);
  }

  // A row's codes in the low nibbles, the next row's in the high ones.
  static const uint8_t* pair_of(const CodePart& part, const uint8_t* row, int codes, uint8_t* both) {
    uint8_t buffer[2][kBlock];
    const uint8_t *first = part.of(row, codes, buffer[0]), *second = part.of(row + kRowStride, codes, buffer[1]);
    pair_codes(first, second, codes, both);
    return both;
  }

  static int nibble(const CodeMatrix& weights, int64_t output, int first_k, int plane) {
    int bits = 0;
    for (int i = 0; i < 4; ++i) bits |= ((weights.at(output, first_k + i) >> plane) & 1) << i;
    return bits;
  }

  bool few(int rows) const { return rows <= family_.few_rows && !taps().any(); }
  bool paired_pixels() const { return taps().any() && parts_[0].bits == family_.paired_bits; }
  int rows_of_table(const CodePart& part, int rows) const {
    return !few(rows) && part.bits == family_.paired_bits ? 2 : 1;
  }
  int64_t part_stride(const CodePart& part, int rows) const {
    const int per_table = rows_of_table(part, rows);
    return int64_t((rows + per_table - 1) / per_table) * kTableStride;
  }
  int tile_rows(int a_bits) const {
    int rows = 1;
    while (family_.tile[a_bits][rows + 1]) ++rows;
    return rows;
  }

  const uint8_t* what_tiles_read(const uint8_t* packed, int units, int rows) const {
    static thread_local AlignedBytes buffer;
    if (!family_.indexes || few(rows)) return packed;
    uint8_t* indexes = scratch(buffer, int64_t(family_.columns) * kBlock / 4);
    family_.indexes(packed, units, indexes);
    tier_.counters.indexes.add(1);
    return indexes;
  }

  void multiply_plane(const uint8_t* weights, const PreparedRows& tables, const CodePart& part, int units, int shift,
                      uint32_t* sums, int64_t panel_sums) const {
    const int rows = tables.rows;
    if (few(rows)) {
      family_.few[part.bits][rows](weights, tables.first, tables.stride, units, sums, panel_sums, shift);
      tier_.counters.lut_few[part.bits][rows].add(1);
      return;
    }
    const int64_t stride = rows_of_table(part, rows) * tables.stride;
    each_tile(tables, tile_rows(part.bits), tier_.counters.lut_tile[part.bits], [&](int row, int n, const uint8_t* at) {
      family_.tile[part.bits][n](weights, at, stride, units, sums + int64_t(row) * family_.panel, panel_sums, shift);
    });
  }

  const LutFamily& family_;
  const int w_bits_;
  const std::vector<CodePart> parts_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_lut(const CodeMatrix& weights, const Taps& taps, const Tier& tier) {
  return std::make_unique<LutSegment>(weights, taps, tier);
}

}  // namespace soniq
