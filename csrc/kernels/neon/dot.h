// dot on base ARMv8, which has no dot product instruction. Goal: the narrowest sums that are exact for the widths, because
// a byte product costs half an instruction of a 16-bit one and a quarter of a widened one.
//
//   tile 4 rows x 2 registers of 4 outputs, 4 steps of 4 codes at a time; p = (2^w - 1) * (2^a - 1), the largest product
//   form    exact while                4 steps and a register: 64 MAC                                        instructions
//   bytes   4 * p <= 255, p <= 63      mul + 3 mla in bytes, uaddlp, uadalp                                   6
//   words   8 * p <= 65535, p <= 8191  umull/umull2 + 3 umlal/umlal2 in words, addp, uadalp                   10
//   pairs   always                     4 umull/umull2, each widened at once by uaddlp/uadalp, addp, add       18
//
// Sums of 4 steps, register by register, the lanes of column 0 (c0) spelled out; adding neighbours ends in one lane a column:
//
//   bytes   | c0 k0 | c0 k1 | c0 k2 | c0 k3 | c1 ...     uaddlp -> | c0 k0+1 | c0 k2+3 | c1 ...    uadalp -> | c0 | c1 | c2 | c3 |
//   words   low: c0 c1, high: c2 c3, a word a code       addp   -> | c0 k0+1 | c0 k2+3 | c1 ...    uadalp -> | c0 | c1 | c2 | c3 |
//
// 8 sums, 8 weights, 4 activations, up to 4 partial sums: 24 of 32 registers, the rest for what the scheduler overlaps.
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//   4 rows        bytes   words   pairs   SMULL   SDOT
//   Cortex-A53    6.0     3.9     1.9     3.2
//   Cortex-A72    7.9     8.0     6.4     8.0
//   Neoverse N1   16      7.6     5.8     8.0     32
//   Neoverse V1   32      16      12      15      64
//   Cortex-A76    7.9     8.0     6.4     8.0     32
//
// SMULL: smull, smlal2 and sadalp of signed bytes. In order a Cortex-A53 waits for every product; Cortex-A72 and its model, which
// llvm-mca has for Cortex-A76 too, multiply bytes no faster than words. Where a processor has udot, neon_dotprod serves it.
#pragma once

#include "kernels/neon/vocabulary.h"

namespace soniq {
namespace {

struct NeonDot : NeonVocabulary {
  static constexpr int kVectors = 2, kSteps = 4, kRows = 4, kFewRows = 0, kForms = 3;
  static constexpr int kRate[] = {7, 6, 4};  // by form: Cortex-A53 and A72, the geometric mean
  static constexpr bool kSignedWeights = false;
  static constexpr int kBytes = 0, kWords = 1, kPairs = 2;
  static constexpr int kMaxByteProduct = 255 / kSteps, kMaxWordProduct = 65535 / (2 * kSteps);

  static int form(int w_bits, int a_bits) {
    const int product = ((1 << w_bits) - 1) * ((1 << a_bits) - 1);
    return product <= kMaxByteProduct ? kBytes : product <= kMaxWordProduct ? kWords : kPairs;
  }
  static const char* form_name(int form) { return form == kBytes ? "bytes" : form == kWords ? "words" : "pairs"; }

  // One load and four dups: bytes have no multiply by element.
  struct Activations {
    Bytes step[kSteps];
  };
  template <int Step>
  static Bytes broadcast(uint32x4_t codes) {
    return vreinterpretq_u8_u32(vdupq_laneq_u32(codes, Step));
  }
  static Activations activations(const uint8_t* codes) {
    const uint32x4_t steps = vreinterpretq_u32_u8(vld1q_u8(codes));
    return {{broadcast<0>(steps), broadcast<1>(steps), broadcast<2>(steps), broadcast<3>(steps)}};
  }

  static uint16x8_t multiply_low(Bytes w, Bytes a) { return vmull_u8(vget_low_u8(w), vget_low_u8(a)); }
  static uint16x8_t multiply_high(Bytes w, Bytes a) { return vmull_high_u8(w, a); }

  static Sums dot_bytes(Sums sums, const Bytes (&w)[kSteps], const Activations& a) {
    Bytes products = vmulq_u8(w[0], a.step[0]);
    for (int i = 1; i < kSteps; ++i) products = vmlaq_u8(products, w[i], a.step[i]);
    return vpadalq_u16(sums, vpaddlq_u8(products));
  }

  static Sums dot_words(Sums sums, const Bytes (&w)[kSteps], const Activations& a) {
    uint16x8_t low = multiply_low(w[0], a.step[0]), high = multiply_high(w[0], a.step[0]);
    for (int i = 1; i < kSteps; ++i) {
      low = vmlal_u8(low, vget_low_u8(w[i]), vget_low_u8(a.step[i]));
      high = vmlal_high_u8(high, w[i], a.step[i]);
    }
    return vpadalq_u16(sums, vpaddq_u16(low, high));
  }

  static Sums dot_pairs(Sums sums, const Bytes (&w)[kSteps], const Activations& a) {
    Sums low = vpaddlq_u16(multiply_low(w[0], a.step[0])), high = vpaddlq_u16(multiply_high(w[0], a.step[0]));
    for (int i = 1; i < kSteps; ++i) {
      low = vpadalq_u16(low, multiply_low(w[i], a.step[i]));
      high = vpadalq_u16(high, multiply_high(w[i], a.step[i]));
    }
    return vaddq_u32(sums, vpaddq_u32(low, high));
  }

  template <int Form>
  static Sums dot(Sums sums, const Bytes (&weights)[kSteps], const Activations& activations) {
    if constexpr (Form == kBytes) return dot_bytes(sums, weights, activations);
    if constexpr (Form == kWords) return dot_words(sums, weights, activations);
    return dot_pairs(sums, weights, activations);
  }
};

}  // namespace
}  // namespace soniq
