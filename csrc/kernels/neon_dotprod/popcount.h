// popcount with the dot product extension: udot with ones adds counts straight into 32-bit sums. The loop costs what it costs
// on neon, with an addition of bytes in its place; nothing has to be widened, and a row of 8 columns ends in 6 instructions
// instead of 12.
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//   rows          1       2       3       4       SDOT
//   Neoverse N1   85      85      85      85      32
//   Neoverse V1   171     171     171     171     64
//   Cortex-A76    64      79      85      85      32
//   Neoverse N2   85      85      85      85      32
//   Neoverse V2   171     171     171     171     64
//
// Divided by w_bits * a_bits: three instructions for 128 products of a plane pair, where udot makes 16 with one. That is 2.67x for
// 1x1, and 1.33x for 1x2 on any number of pipes.
#pragma once

#include "kernels/neon/popcount.h"

namespace soniq {
namespace {

struct NeonDotprodCounts {
  using Sums = uint32x4_t;  // two lanes a column
  static constexpr int kMostSteps = kBlock;

  static Sums zero() { return vdupq_n_u32(0); }
  static Sums add(Sums sums, uint8x16_t counts_u8x16) { return vdotq_u32(sums, counts_u8x16, vdupq_n_u8(1)); }
  static uint32x4_t columns(Sums left, Sums right) { return vpaddq_u32(left, right); }
};

}  // namespace
}  // namespace soniq
