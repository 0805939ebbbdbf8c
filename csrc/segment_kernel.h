// One segment of one group, packed for one family on one tier: what a GEMM or convolution is made of.
//
//   gathered rows  --prepare-->  the form the family reads  --multiply, panel by panel-->  sums += S << shift
//
// Families of one tier share the width of a panel, so that two segments of different families add into the same sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "aligned.h"
#include "dispatch.h"

namespace soniq {

enum class Family { reference, dot, popcount, lut, lut5, lut6, depthwise };
const char* family_name(Family family);
Family family_of(const std::string& name);
inline Family family_of_tables(const Lut6Family& family) { return family.codes == 6 ? Family::lut6 : Family::lut5; }

// The weight codes of one segment and group: `outputs` rows of k codes.
struct CodeMatrix {
  const uint8_t* codes;
  int outputs, k;
  int w_bits, a_bits;

  // 0 past the true K and past the last output.
  uint8_t at(int64_t output, int index) const {
    return output < outputs && index < k ? codes[output * k + index] : uint8_t(0);
  }
};

// Weights lie in bricks: the columns that a tile works on, times one block of K. The bricks of a few neighbouring panels
// follow one another block by block:
//
//   | block 0: brick of panel 0, 1, 2, 3 | block 1: brick of panel 0, 1, 2, 3 | ...    then panels 4, 5, 6, 7
//
// so a GEMV reads one stream, and a block of activations or tables in L1 serves several panels before the next one.
constexpr int kPanelsTogether = 4;

struct BrickShape {
  int columns;  // of a tile: one panel, or several that a wide kernel works on at once
  int panel;    // columns of a panel, the same for all families of a tier
  int unit;     // codes that K is padded to
  int block;    // codes of K in a brick
};

class SegmentKernel {
 public:
  SegmentKernel(const CodeMatrix& weights, const Tier& tier, const BrickShape& shape);
  virtual ~SegmentKernel() = default;

  virtual Family family() const = 0;
  virtual const char* form() const = 0;                // the variant inside the family
  virtual int tile_rows() const = 0;                   // of the inner loop
  virtual int activation_repair() const { return 0; }  // S lacks this many times Ca

  // Bytes that prepare() writes for `rows` rows; 0: multiply reads the gathered rows themselves.
  virtual int64_t prepared_bytes(int) const { return 0; }
  virtual void prepare(const uint8_t*, int, uint8_t*) const {}
  // sums[panel][rows][columns of a panel] += sums of products of codes, shifted left; panels stand panel_sums apart.
  // `first` is a multiple of panels_together().
  void multiply(int first, int panels, const uint8_t* activations, int rows, int shift, uint32_t* sums,
                int64_t panel_sums) const;

  const Tier& tier() const { return tier_; }
  int k() const { return k_; }
  int k_padded() const { return k_padded_; }
  int columns() const { return shape_.columns; }
  int panel_columns() const { return shape_.panel; }
  int panels_together() const { return bricks_together_ * shape_.columns / shape_.panel; }
  int64_t panel_bytes() const { return int64_t(bytes_.size()); }
  // Gathered rows of this segment: blocks of kBlock codes, kRowStride bytes a row.
  int blocks() const { return (k_padded_ + kBlock - 1) / kBlock; }
  int64_t gathered_bytes(int rows) const { return int64_t(blocks()) * rows * kRowStride; }

 protected:
  // To be called at the end of a constructor: packs all bricks, on all threads.
  void build(const CodeMatrix& weights);

  virtual int64_t brick_bytes(int codes) const = 0;
  virtual void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                          uint8_t* out) const = 0;
  // Bytes between two blocks of activations.
  virtual int64_t block_stride(int rows) const = 0;
  virtual void multiply_brick(const uint8_t* weights, const uint8_t* activations, int codes, int rows, int shift,
                              uint32_t* sums, int64_t panel_sums) const = 0;

  const Tier& tier_;

 private:
  int codes(int block) const { return std::min(shape_.block, k_padded_ - block * shape_.block); }
  int bricks_of_group(int group) const { return std::min(bricks_together_, bricks_ - group * bricks_together_); }
  int64_t brick_offset(int group, int block, int brick) const {
    const int64_t before = brick_bytes(shape_.block) * block * bricks_of_group(group);
    return group * bricks_together_ * column_bytes_ + before + brick * brick_bytes(codes(block));
  }

  const BrickShape shape_;
  const int k_, k_padded_, bricks_, bricks_together_;
  int64_t column_bytes_ = 0;  // all bricks over each other
  AlignedBytes bytes_;
};

std::unique_ptr<SegmentKernel> make_dot(const CodeMatrix& weights, const Tier& tier);
std::unique_ptr<SegmentKernel> make_popcount(const CodeMatrix& weights, const Tier& tier);
std::unique_ptr<SegmentKernel> make_lut(const CodeMatrix& weights, const Tier& tier);
std::unique_ptr<SegmentKernel> make_lut6(const CodeMatrix& weights, const Tier& tier);

// A family that can multiply these widths on a tier, or on one below it; its products a cycle where nothing but the inner
// loop counts; and the cycles that a code of a row costs before, where they are known to count.
struct Candidate {
  Family family;
  const Tier* tier;
  int rate;
  double prepare = 0;
};
// Fastest first.
std::vector<Candidate> candidates(const Tier& tier, int w_bits, int a_bits);

std::unique_ptr<SegmentKernel> make_segment_kernel(const CodeMatrix& weights, const Candidate& candidate);

// Adds the tiles of so many rows each that `rows` rows take.
template <class Counts>
void count_tiles(Counts& counts, int tile_rows, int rows) {
  counts[tile_rows].add(rows / tile_rows);
  if (rows % tile_rows) counts[rows % tile_rows].add(1);
}

// Scratch of one thread and purpose. Grows, never shrinks: a call must not pay for page faults of fresh megabytes.
inline uint8_t* scratch(AlignedBytes& buffer, int64_t bytes) {
  if (int64_t(buffer.size()) < bytes) buffer.resize(bytes);
  return buffer.data();
}

}  // namespace soniq
