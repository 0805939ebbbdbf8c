// The popcount family: both operands as bit planes, S = sum over planes i, j of 2^(i+j) * popcount(w_i and a_j).
//
// AND, not XOR: a padded channel or tap has code 0 in both operands and adds nothing, whatever its neighbour holds.
//
//   weights, one panel and plane:     [word of 64 channels][column] uint64
//   activations, one block:           [plane][row] of up to 64 words, kRowStride bytes a row: 4096 channels a block
#include <algorithm>
#include <cstring>

#include "segment_kernel.h"

namespace soniq {
namespace {

constexpr int kWord = 64;
constexpr int kPlaneBlock = kBlock * 8;  // channels whose plane fills kBlock bytes
constexpr int kBlockWords = kPlaneBlock / kWord;

class PopcountSegment final : public SegmentKernel {
 public:
  PopcountSegment(const CodeMatrix& weights, const Tier& tier)
      : SegmentKernel(weights, tier, kWord),
        family_(*tier.table->popcount),
        w_bits_(weights.w_bits),
        a_bits_(weights.a_bits),
        words_(k_padded() / kWord) {
    build(weights.outputs, family_.columns, plane_bytes() * w_bits_, [&](int64_t output, uint8_t* out) {
      auto* words = reinterpret_cast<uint64_t*>(out);
      for (int plane = 0; plane < w_bits_; ++plane)
        for (int word = 0; word < words_; ++word)
          for (int column = 0; column < family_.columns; ++column)
            *words++ = plane_word(weights, output + column, word * kWord, plane);
    });
  }

  Family family() const override { return Family::popcount; }
  const char* form() const override { return family_.name; }
  std::pair<int, int> tile() const override { return {family_.tile_rows, family_.columns}; }

  int64_t prepared_bytes(int rows) const override {
    return int64_t((words_ + kBlockWords - 1) / kBlockWords) * a_bits_ * rows * kRowStride;
  }

  // Gathered blocks of 512 codes become 8 words of each plane.
  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    const int64_t plane_stride = int64_t(rows) * kRowStride;
    for (int k = 0; k < k_padded(); k += kBlock) {
      const int words = std::min(kBlock, k_padded() - k) / kWord;
      uint8_t* block = prepared + k / kPlaneBlock * a_bits_ * plane_stride + k % kPlaneBlock / 8;
      const uint8_t* codes = gathered + k / kBlock * plane_stride;
      for (int row = 0; row < rows; ++row)
        family_.planes[a_bits_](codes + int64_t(row) * kRowStride, words, block + int64_t(row) * kRowStride,
                                plane_stride);
    }
    tier_.counters.planes[a_bits_].fetch_add(1, std::memory_order_relaxed);
  }

  void multiply(int index, const uint8_t* prepared, int rows, int shift, uint32_t* sums) const override {
    const int64_t plane_stride = int64_t(rows) * kRowStride;
    for (int word = 0; word < words_; word += kBlockWords, prepared += a_bits_ * plane_stride) {
      const int words = std::min(kBlockWords, words_ - word);
      for (int i = 0; i < w_bits_; ++i) {
        const uint8_t* weights = panel(index) + i * plane_bytes() + int64_t(word) * family_.columns * 8;
        for (int j = 0; j < a_bits_; ++j)
          multiply_planes(weights, prepared + j * plane_stride, words, rows, shift + i + j, sums);
      }
    }
  }

 private:
  int64_t plane_bytes() const { return int64_t(words_) * family_.columns * 8; }

  static uint64_t plane_word(const CodeMatrix& weights, int64_t output, int first_k, int plane) {
    uint64_t word = 0;
    for (int bit = 0; bit < kWord; ++bit) word |= uint64_t((weights.at(output, first_k + bit) >> plane) & 1) << bit;
    return word;
  }

  void multiply_planes(const uint8_t* weights, const uint8_t* rows_of_plane, int words, int rows, int shift,
                       uint32_t* sums) const {
    const int full = family_.tile_rows;
    int row = 0;
    for (; row < rows; row += full) {
      const int tile = std::min(full, rows - row);
      family_.tile[tile](weights, rows_of_plane + int64_t(row) * kRowStride, words,
                         sums + int64_t(row) * family_.columns, shift);
    }
    auto& counts = tier_.counters.popcount_tile;
    counts[full].fetch_add(rows / full, std::memory_order_relaxed);
    if (rows % full) counts[rows % full].fetch_add(1, std::memory_order_relaxed);
  }

  const PopcountFamily& family_;
  const int w_bits_, a_bits_, words_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_popcount(const CodeMatrix& weights, const Tier& tier) {
  return std::make_unique<PopcountSegment>(weights, tier);
}

}  // namespace soniq
