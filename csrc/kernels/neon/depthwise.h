// depthwise on NEON: 16 channels a block, 8 a group. Nothing adds neighbours for free here, so a strip is one row, widened.
//
//   strip   | c0 | c1 | ... | c7 |     one column of a group: 16 bytes, a word a channel
//
//   form      instructions for 8 channels and a tap      exact while
//   words16   mla                                        the sum of all taps fits 16 bits
//   words     smlal, smlal2                              always
//
// 3x3, 16 channels and an output: 9 instructions widen (3 loads, 6 stores shared with the outputs above and below are not); words16
// then takes 2 x 24, words 2 x 33. The products alone are 8 and 4 a cycle on Neoverse N1.
#pragma once

#include "kernels/depthwise_loop.h"
#include "kernels/neon/vocabulary.h"

namespace soniq {
namespace {

void widen_neon(const DepthwiseRow* rows, int64_t columns, uint8_t* to, int64_t group_bytes) {
  const DepthwiseRow row = rows[0];
  for (int64_t x = 0; x < columns; ++x, to += 16) {
    const uint8x16_t codes = vld1q_u8(row.codes + x * row.step);
    vst1q_u8(to, vreinterpretq_u8_u16(vmovl_u8(vget_low_u8(codes))));
    vst1q_u8(to + group_bytes, vreinterpretq_u8_u16(vmovl_high_u8(codes)));
  }
}

void merge_neon(const MergePiece* pieces, int count, const uint8_t* stored, int64_t stored_step, int64_t pixels,
                uint8_t* to, int64_t step) {
  for (int i = 0; i < count; ++i) {
    const uint8x16_t from_low = vld1q_u8(pieces[i].from_low), from_high = vld1q_u8(pieces[i].from_high);
    const uint8_t *low = stored + pieces[i].low, *high = stored + pieces[i].high;
    uint8_t* merged = to + pieces[i].to;
    for (int64_t x = 0; x < pixels; ++x, low += stored_step, high += stored_step, merged += step)
      vst1q_u8(merged, vorrq_u8(vqtbl1q_u8(vld1q_u8(low), from_low), vqtbl1q_u8(vld1q_u8(high), from_high)));
  }
}

struct NeonDepthwiseGroup {
  static constexpr int kLanes = 8, kGroups = 2, kColumnBytes = 16, kWeightBytes = 16;
  using Codes = int16x8_t;
  using Weights = int16x8_t;
  struct Scale {
    int32x4_t low, high;
  };
  static Codes load(const uint8_t* p) { return vreinterpretq_s16_u8(vld1q_u8(p)); }
  static Weights load_weights(const uint8_t* p) { return load(p); }
  static Scale scale(const uint32_t* shifts) {
    return {vreinterpretq_s32_u32(vld1q_u32(shifts)), vreinterpretq_s32_u32(vld1q_u32(shifts + 4))};
  }
  static void store_eight(uint32_t* to, int32x4_t low, int32x4_t high, Scale shift) {
    vst1q_u32(to, vreinterpretq_u32_s32(vshlq_s32(low, shift.low)));
    vst1q_u32(to + 4, vreinterpretq_u32_s32(vshlq_s32(high, shift.high)));
  }
};

struct NeonDepthwiseWords16 : NeonDepthwiseGroup {
  using Sums = int16x8_t;
  static bool exact(const DepthwiseBounds& b) { return b.most_sum <= 32767; }
  static Sums zero() { return vdupq_n_s16(0); }
  static Sums first(Codes c, Weights w) { return vmulq_s16(c, w); }
  static Sums add(Sums s, Codes c, Weights w) { return vmlaq_s16(s, c, w); }
  static void store(uint32_t* to, Sums s, Scale shift) {
    store_eight(to, vmovl_s16(vget_low_s16(s)), vmovl_high_s16(s), shift);
  }
};

struct NeonDepthwiseWords : NeonDepthwiseGroup {
  struct Sums {
    int32x4_t low, high;
  };
  static bool exact(const DepthwiseBounds&) { return true; }
  static Sums zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Sums first(Codes c, Weights w) { return {vmull_s16(vget_low_s16(c), vget_low_s16(w)), vmull_high_s16(c, w)}; }
  static Sums add(Sums s, Codes c, Weights w) {
    return {vmlal_s16(s.low, vget_low_s16(c), vget_low_s16(w)), vmlal_high_s16(s.high, c, w)};
  }
  static void store(uint32_t* to, Sums s, Scale shift) { store_eight(to, s.low, s.high, shift); }
};

constexpr int by_lane(int lane, int) { return lane; }

constexpr DepthwiseFamily kNeonDepthwise = {/*channels=*/16,
                                            /*lanes=*/8,
                                            /*rows=*/1,
                                            /*column_bytes=*/16,
                                            widen_neon,
                                            merge_neon,
                                            /*forms=*/2,
                                            {depthwise_form<NeonDepthwiseWords16, 3>("words16", 2, by_lane),
                                             depthwise_form<NeonDepthwiseWords, 3>("words", 2, by_lane)}};

}  // namespace
}  // namespace soniq
