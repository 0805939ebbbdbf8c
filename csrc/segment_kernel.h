// One segment of one group, packed for one family on one tier: what a GEMM or convolution is made of.
//
//   gathered rows  --prepare-->  the form the family reads  --multiply, panel by panel-->  sums += S << shift
//
// Families of one tier share the width of a panel, so that two segments of different families add into the same sums. A
// kernel may work on several neighbouring panels at once, its span; their sums stand one panel behind the other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "aligned.h"
#include "dispatch.h"

namespace soniq {

enum class Family { reference, dot, popcount, lut, lut6, depthwise };
const char* family_name(Family family);
Family family_of(const std::string& name);

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

class SegmentKernel {
 public:
  SegmentKernel(const CodeMatrix& weights, const Tier& tier, int unit)
      : tier_(tier), k_(weights.k), k_padded_((weights.k + unit - 1) / unit * unit) {}
  virtual ~SegmentKernel() = default;

  virtual Family family() const = 0;
  virtual const char* form() const = 0;                // the variant inside the family
  virtual std::pair<int, int> tile() const = 0;        // rows, columns of the inner loop
  virtual int span() const { return 1; }               // panels that one multiply works on
  virtual int activation_repair() const { return 0; }  // S lacks this many times Ca

  // Bytes that prepare() writes for `rows` rows; 0: multiply reads the gathered rows themselves.
  virtual int64_t prepared_bytes(int) const { return 0; }
  virtual void prepare(const uint8_t*, int, uint8_t*) const {}
  // sums [span][rows][columns of a panel] += the sums of products of codes, shifted left; `index` counts spans.
  virtual void multiply(int index, const uint8_t* activations, int rows, int shift, uint32_t* sums) const = 0;

  const Tier& tier() const { return tier_; }
  int columns() const { return tile().second / span(); }  // of a panel
  int k() const { return k_; }
  int k_padded() const { return k_padded_; }
  int64_t panel_bytes() const { return int64_t(panels_.size()); }
  // Gathered rows of this segment: blocks of kBlock codes, kRowStride bytes a row.
  int blocks() const { return (k_padded_ + kBlock - 1) / kBlock; }
  int64_t gathered_bytes(int rows) const { return int64_t(blocks()) * rows * kRowStride; }

 protected:
  // pack(first output, out) for every panel, on all threads.
  void build(int outputs, int columns, int64_t bytes_each, const std::function<void(int64_t, uint8_t*)>& pack);
  const uint8_t* panel(int index) const { return panels_.data() + index * bytes_each_; }

  const Tier& tier_;

 private:
  int k_, k_padded_;
  int64_t bytes_each_ = 0;
  AlignedBytes panels_;
};

std::unique_ptr<SegmentKernel> make_dot(const CodeMatrix& weights, const Tier& tier);
std::unique_ptr<SegmentKernel> make_popcount(const CodeMatrix& weights, const Tier& tier);
std::unique_ptr<SegmentKernel> make_lut(const CodeMatrix& weights, const Tier& tier);
std::unique_ptr<SegmentKernel> make_lut6(const CodeMatrix& weights, const Tier& tier);

// A family that can multiply these widths on a tier, or on one below it, and its products a cycle where nothing but the
// inner loop counts.
struct Candidate {
  Family family;
  const Tier* tier;
  int rate;
};
// Fastest first.
std::vector<Candidate> candidates(const Tier& tier, int w_bits, int a_bits);

std::unique_ptr<SegmentKernel> make_segment_kernel(const CodeMatrix& weights, const Candidate& candidate);

// Scratch of one thread and purpose. Grows, never shrinks: a call must not pay for page faults of fresh megabytes.
inline uint8_t* scratch(AlignedBytes& buffer, int64_t bytes) {
  if (int64_t(buffer.size()) < bytes) buffer.resize(bytes);
  return buffer.data();
}

}  // namespace soniq
