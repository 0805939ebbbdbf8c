// dot with the dot product extension. Goal: the INT8 rate for every width; udot is u8 x u8, so no correction is needed.
//
//   tile 8 rows x 2 registers of 4 outputs = 16 sums, 8 weights, 1 activation: 25 of 32 registers
//
//   One load brings 16 activations of a row, and udot picks the 4 codes of its step by lane:
//
//        activations of a row          | k0..3 | k4..7 | k8..11 | k12..15 |
//        weights, step 0   | c0 k0..3 | c1 k0..3 | c2 k0..3 | c3 k0..3 |        udot sums, w[0], a[0]
//        weights, step 1   | c0 k4..7 | ...                                     udot sums, w[1], a[1]
//
//   4 steps of 4 codes: 64 udot, 8 + 8 loads       16 MAC an instruction
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//   rows          1       2       4       8       SDOT
//   Neoverse N1   16      32      32      32      32
//   Neoverse V1   16      32      64      64      64
//   Cortex-A76    11      21      28      32      32
//   Neoverse N2   11      21      32      32      32
//   Neoverse V2   32      64      64      64      64
#pragma once

#include "kernels/neon/vocabulary.h"

namespace soniq {
namespace {

struct NeonDotprodDot : NeonVocabulary {
  static constexpr int kVectors = 2, kSteps = 4, kRows = 8, kFewRows = 0, kForms = 1;
  static constexpr int kRate = 32;
  static constexpr bool kSignedWeights = false;

  static int form(int, int) { return 0; }
  static const char* form_name(int) { return "udot"; }

  static Bytes activations(const uint8_t* codes) { return vld1q_u8(codes); }
  template <int Form>
  static Sums dot(Sums sums, const Bytes (&weights)[kSteps], Bytes activations) {
    sums = vdotq_laneq_u32(sums, weights[0], activations, 0);
    sums = vdotq_laneq_u32(sums, weights[1], activations, 1);
    sums = vdotq_laneq_u32(sums, weights[2], activations, 2);
    return vdotq_laneq_u32(sums, weights[3], activations, 3);
  }
};

}  // namespace
}  // namespace soniq
