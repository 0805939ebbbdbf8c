// The popcount family: both operands as bit planes, S = sum over planes i, j of 2^(i+j) * popcount(w_i and a_j).
//
// AND, not XOR: a padded channel or tap has code 0 in both operands and adds nothing, whatever its neighbour holds.
//
//   weights, one brick and plane:     [word of 64 channels][column] uint64, all lines of a convolution's kernel if they are short
//   activations, one block:           [plane][row] of words, kRowStride bytes a row: up to 64 words, 4096 channels; half as
//                                     many where the tier wants each word twice (PopcountFamily::word_bytes)
#include <algorithm>
#include <cstring>

#include "segment_kernel.h"

namespace soniq {
namespace {

constexpr int kWord = 64;

// Channels whose plane fills kBlock bytes.
int plane_block(const PopcountFamily& family) { return kBlock / family.word_bytes * kWord; }

class PopcountSegment final : public SegmentKernel {
 public:
  PopcountSegment(const CodeMatrix& weights, const Taps& taps, const Tier& tier)
      : SegmentKernel(weights, taps, tier,
                      {tier.table->popcount->columns, tier.table->popcount->columns, kWord,
                       plane_block(*tier.table->popcount), kWord, 3 * plane_block(*tier.table->popcount) / 2}),
        family_(*tier.table->popcount),
        plane_block_(plane_block(family_)),
        w_bits_(weights.w_bits),
        a_bits_(weights.a_bits) {
    build(weights);
  }

  Family family() const override { return Family::popcount; }
  const char* form() const override { return family_.name; }
  int tile_rows() const override { return family_.tile_rows; }

  int64_t prepared_bytes(int rows) const override {
    return int64_t((k_padded() + plane_block_ - 1) / plane_block_) * block_stride(rows);
  }
  PreparedRows gathered_rows(const uint8_t* prepared, int rows) const override {
    return {prepared, rows, rows, kRowStride, 0, block_stride(rows), int64_t(rows) * kRowStride};
  }

  // Gathered blocks of 512 codes become 8 words of each plane.
  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    const int64_t plane_stride = int64_t(rows) * kRowStride;
    for (int k = 0; k < k_padded(); k += kBlock) {
      const int words = std::min(kBlock, k_padded() - k) / kWord;
      uint8_t* block = prepared + k / plane_block_ * block_stride(rows) + k % plane_block_ / kWord * family_.word_bytes;
      const uint8_t* codes = gathered + k / kBlock * plane_stride;
      for (int row = 0; row < rows; ++row)
        family_.planes[a_bits_](codes + int64_t(row) * kRowStride, words, block + int64_t(row) * kRowStride,
                                plane_stride);
    }
    tier_.counters.planes[a_bits_].add(1);
  }

  void prepare_pixels(const uint8_t* codes, int pixels, int, uint8_t* out, int64_t part_stride) const override {
    family_.planes[a_bits_](codes, pixels * pixel_codes() / kWord, out, part_stride);
    tier_.counters.planes[a_bits_].add(1);
  }
  int64_t prepared_codes_bytes(int codes) const override { return int64_t(codes) / kWord * family_.word_bytes; }
  int prepared_parts() const override { return a_bits_; }

 protected:
  int64_t plane_bytes(int codes) const { return int64_t(codes) / kWord * family_.columns * 8; }
  int64_t brick_bytes(int codes) const override { return plane_bytes(codes) * w_bits_; }

  void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                  uint8_t* out) const override {
    auto* words = reinterpret_cast<uint64_t*>(out);
    for (int plane = 0; plane < w_bits_; ++plane)
      for (int k = first_k; k < first_k + codes; k += kWord)
        for (int column = 0; column < family_.columns; ++column)
          *words++ = plane_word(weights, first_output + column, k, plane);
  }

  void multiply_brick(const Brick& brick, const PreparedRows& rows, const PanelsOfSums& sums) const override {
    const uint8_t* weights = brick.weights;
    for (int i = 0; i < w_bits_; ++i, weights += plane_bytes(brick.codes * brick.lines)) {
      PreparedRows plane = rows;
      for (int j = 0; j < a_bits_; ++j, plane.first += rows.part_stride)
        multiply_planes({weights, nullptr, rows.stride, rows.line_stride, brick.codes / kWord, brick.lines, nullptr,
                         sums.shift + i + j},
                        plane, sums.first);
    }
  }

 private:
  int64_t block_stride(int rows) const { return int64_t(a_bits_) * rows * kRowStride; }

  static uint64_t plane_word(const CodeMatrix& weights, int64_t output, int first_k, int plane) {
    uint64_t word = 0;
    for (int bit = 0; bit < kWord; ++bit) word |= uint64_t((weights.at(output, first_k + bit) >> plane) & 1) << bit;
    return word;
  }

  void multiply_planes(PopcountTile tile, const PreparedRows& plane, uint32_t* sums) const {
    each_tile(plane, family_.tile_rows, tier_.counters.popcount_tile, [&](int row, int n, const uint8_t* at) {
      tile.activations = at;
      tile.sums = sums + int64_t(row) * family_.columns;
      family_.tile[n](tile);
    });
  }

  const PopcountFamily& family_;
  const int plane_block_, w_bits_, a_bits_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_popcount(const CodeMatrix& weights, const Taps& taps, const Tier& tier) {
  return std::make_unique<PopcountSegment>(weights, taps, tier);
}

}  // namespace soniq
