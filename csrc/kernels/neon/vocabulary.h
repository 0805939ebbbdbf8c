// What every NEON tier says the same way: registers of 16 codes, of 4 sums, and how to move them (dot_loop.h's vocabulary).
//
//   codes_u8x16    | c0 k0..3 | c1 k0..3 | c2 k0..3 | c3 k0..3 |     4 columns x 4 codes, as the panel stores them
//   sums_u32x4     | c0       | c1       | c2       | c3       |
//
// Included inside each tier's own flags; anonymous namespace, so that no tier's copy can serve another.
#pragma once

#include <arm_neon.h>

#include "kernels/dot_loop.h"

// GCC's scheduling before registers are allocated overlaps so many loads in some loops that their sums spill.
#if defined(__GNUC__) && !defined(__clang__)
#define SONIQ_AS_WRITTEN [[gnu::optimize("no-schedule-insns")]]
#else
#define SONIQ_AS_WRITTEN
#endif

namespace soniq {
namespace {

// GCC would otherwise rearrange a chain of byte additions into a tree, and keep its leaves in memory.
inline uint8x16_t in_register(uint8x16_t v) {
  asm("" : "+w"(v));
  return v;
}

// sums[8] += u16x8 << shift
inline void add_eight(uint32_t* sums, uint16x8_t u16x8, int32x4_t shift) {
  const uint32x4_t low = vmovl_u16(vget_low_u16(u16x8)), high = vmovl_high_u16(u16x8);
  vst1q_u32(sums, vaddq_u32(vld1q_u32(sums), vshlq_u32(low, shift)));
  vst1q_u32(sums + 4, vaddq_u32(vld1q_u32(sums + 4), vshlq_u32(high, shift)));
}

struct NeonVocabulary {
  using Bytes = uint8x16_t;
  using Sums = uint32x4_t;
  static constexpr bool kFetchesAhead = true;
  static constexpr int kLanes = 4;

  static Bytes load(const uint8_t* p) { return vld1q_u8(p); }
  static void store(uint8_t* p, Bytes v) { vst1q_u8(p, v); }
  // Shifts are per byte here, so the outermost fields need no mask.
  template <int Shift, int Mask>
  static Bytes field(Bytes v) {
    constexpr int kept = (Shift > 0 ? 0xff >> Shift : 0xff << -Shift) & 0xff;
    if constexpr (Shift > 0) v = vshrq_n_u8(v, Shift);
    if constexpr (Shift < 0) v = vshlq_n_u8(v, -Shift);
    if constexpr ((kept & ~Mask) != 0) v = vandq_u8(v, vdupq_n_u8(Mask));
    return v;
  }
  static Bytes combine(Bytes a, Bytes b) { return vorrq_u8(a, b); }

  static Sums zero() { return vdupq_n_u32(0); }
  static Sums load_sums(const uint32_t* p) { return vld1q_u32(p); }
  static void store_sums(uint32_t* p, Sums v) { vst1q_u32(p, v); }
  static Sums add(Sums a, Sums b) { return vaddq_u32(a, b); }
  static Sums shift_left(Sums v, int by) { return vshlq_u32(v, vdupq_n_s32(by)); }
};

}  // namespace
}  // namespace soniq
