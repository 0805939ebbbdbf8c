// The dot family: weights unpacked to bytes once a cache block, multiplied by byte dot products.
//
// A packed unit: 32 codes of each of `columns` outputs. Unpacked it is 8 rows (one per 4 codes) of `columns` * 4 bytes.
// Packed, a code of p bits is cut into fields of 8, 4, 2 and 1 bits (7 = 4 + 2 + 1), high to low, and a field of f bits of the
// 8 rows shares f rows:
//
//   field of 4 bits, byte of packed row r (0..3):     | row r + 4 | row r |         high nibble | low nibble
//   field of 2 bits, byte of packed row r (0..1):     | row r + 6 | row r + 4 | row r + 2 | row r |
//   field of 1 bit,  byte of the only packed row:     | row 7 | row 6 | ... | row 0 |
//
// so that unpacking is one shift and one mask per field and row, and p bits a weight is all that memory holds.
#include <algorithm>

#include "segment_kernel.h"

namespace soniq {
namespace {

void pack_unit(const CodeMatrix& weights, int64_t first_output, int columns, int first_k, uint8_t flip, uint8_t* out) {
  const int bits = weights.w_bits, row_bytes = columns * 4;
  int position = bits;
  for (int field = 8; field >= 1; field /= 2) {
    if (!(bits == 8 ? field == 8 : (field < 8 && (bits & field)))) continue;
    position -= field;
    const int mask = (1 << field) - 1;
    for (int j = 0; j < 8; ++j) {
      uint8_t* packed = out + (j % field) * row_bytes;
      const int place = j / field * field;
      for (int column = 0; column < columns; ++column)
        for (int i = 0; i < 4; ++i) {
          const uint8_t code = weights.at(first_output + column, first_k + 4 * j + i) ^ flip;
          packed[column * 4 + i] |= uint8_t(((code >> position) & mask) << place);
        }
    }
    out += field * row_bytes;
  }
}

class DotSegment final : public SegmentKernel {
 public:
  DotSegment(const CodeMatrix& weights, const Tier& tier)
      : SegmentKernel(weights, tier, kUnit),
        dot_(*tier.table->dot),
        bits_(weights.w_bits),
        form_(dot_.form(weights.w_bits, weights.a_bits)),
        flipped_(dot_.flips_8bit_weights && weights.w_bits == 8) {
    const int64_t unit_bytes = int64_t(dot_.columns) * 4 * bits_;
    build(weights.outputs, dot_.columns, k_padded() / kUnit * unit_bytes, [&](int64_t output, uint8_t* out) {
      for (int k = 0; k < k_padded(); k += kUnit, out += unit_bytes)
        pack_unit(weights, output, dot_.columns, k, flipped_ ? 0x80 : 0, out);
    });
  }

  Family family() const override { return Family::dot; }
  const char* form() const override { return dot_.form_name(form_); }
  std::pair<int, int> tile() const override { return {dot_.tile_rows, dot_.columns}; }
  // Stored as c - 128, the weights' sums lack 128 * Ca.
  int activation_repair() const override { return flipped_ ? 128 : 0; }

  void multiply(int index, const uint8_t* gathered, int rows, int shift, uint32_t* sums) const override {
    const uint8_t* packed = panel(index);
    for (int k = 0; k < k_padded(); k += kBlock, gathered += int64_t(rows) * kRowStride) {
      const int units = std::min(kBlock, k_padded() - k) / kUnit;
      multiply_block(unpacked(packed + int64_t(k) / kUnit * dot_.columns * 4 * bits_, units), units * kUnit, gathered,
                     rows, shift, sums);
    }
  }

 private:
  const uint8_t* unpacked(const uint8_t* packed, int units) const {
    static thread_local AlignedBytes buffer;
    if (!dot_.unpack[bits_]) return packed;
    uint8_t* bytes = scratch(buffer, int64_t(dot_.columns) * kBlock);
    dot_.unpack[bits_](packed, units, bytes);
    tier_.counters.unpack[bits_].fetch_add(1, std::memory_order_relaxed);
    return bytes;
  }

  void multiply_block(const uint8_t* weights, int k, const uint8_t* gathered, int rows, int shift,
                      uint32_t* sums) const {
    auto& counts = tier_.counters.tile[form_];
    const int full = dot_.tile_rows;
    int row = 0;
    for (; row + full <= rows; row += full)
      dot_.tile[form_][full](weights, gathered + int64_t(row) * kRowStride, k, sums + int64_t(row) * dot_.columns,
                             shift);
    counts[full].fetch_add(row / full, std::memory_order_relaxed);
    if (row == rows) return;
    dot_.tile[form_][rows - row](weights, gathered + int64_t(row) * kRowStride, k, sums + int64_t(row) * dot_.columns,
                                 shift);
    counts[rows - row].fetch_add(1, std::memory_order_relaxed);
  }

  const DotFamily& dot_;
  const int bits_, form_;
  const bool flipped_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_dot(const CodeMatrix& weights, const Tier& tier) {
  return std::make_unique<DotSegment>(weights, tier);
}

}  // namespace soniq
