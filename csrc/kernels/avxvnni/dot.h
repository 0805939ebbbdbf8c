// dot on AVX-VNNI, for processors that have it without AVX-512. Goal: the INT8 rate for every width.
//
//   tile 3 rows x 4 registers of 8 outputs: 32 columns, as the lut family of avx2 has
//
//        w0 ... w3 of 4 codes x 8 columns: three in registers, the last one read where it is multiplied
//   a0   s00 ... s03
//   a1   s10 ... s13        12 sums + 3 weights + 1 broadcast: all 16 registers
//   a2   s20 ... s23
//
//   a step of 4 codes: 12 vpdpbusd, 4 + 3 loads     32 MAC an instruction
//
// vpdpbusd takes 5 cycles and two start in each, so ten sums have to be under way: hence three rows. (llvm-mca counts 7 where
// the weights come from memory, as if the sum waited for them.) One row and two have dot_few, with eight sums.
//
// Static throughput of the inner loops (llvm-mca 19, Alder Lake P core, no memory stalls), MAC a cycle; vpdpbusd alone: 64
//   rows                              1       2       3
//   tile                              18      36      54
//   few, packed weights of 8, 4, 1    37 38 32  37 51 44
//   avx2, the cheapest form           27      28
//
// Unsigned by signed bytes, sums modulo 2^32: activations are the unsigned side, weights are levels, and those of 8 bits are
// stored as c ^ 0x80 = c - 128. The intrinsic is the one with the VEX encoding; these processors refuse the EVEX one.
#pragma once

#include "kernels/avx2/vocabulary.h"
#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct AvxVnniDot : Avx2Vocabulary {
  static constexpr int kVectors = 4, kSteps = 1, kRows = 3, kFewRows = 2, kForms = 1;
  static constexpr int kRate = 54;
  static constexpr bool kSignedWeights = true;

  static constexpr int form(int, int) { return 0; }
  static constexpr int few_form(int) { return 0; }
  static const char* form_name(int) { return "vnni"; }

  template <int Form>
  static Sums dot(Sums sums, const Bytes (&steps)[kSteps], Bytes activations) {
    const Bytes weights = steps[0];
    return _mm256_dpbusd_avx_epi32(sums, activations, weights);
  }
};

}  // namespace
}  // namespace soniq
