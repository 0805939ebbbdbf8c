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
// vpdpbusd takes 5 cycles and two start in each, so ten sums have to be under way: a single row splits its four in two.
// (llvm-mca counts 7 where the weights come from memory, as if the sum waited for them.)
// Static throughput of the inner loop (llvm-mca 19, no memory stalls), MAC a cycle; the instruction alone could have 64:
//   rows                          1     2     3
//   Alder Lake P                  36    36    54
//   vpmaddubsw there (avx2)       27    27
//
// Unsigned by signed bytes, sums modulo 2^32: activations are the unsigned side; weights of 8 bits are stored as
// c ^ 0x80 = c - 128. The intrinsic is the one with the VEX encoding; these processors refuse the EVEX one.
#pragma once

#include "kernels/avx2/vocabulary.h"
#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct AvxVnniDot : Avx2Vocabulary {
  static constexpr int kVectors = 4, kSteps = 1, kRows = 3, kFewRows = 2, kForms = 1;
  static constexpr int kRate = 54;
  static constexpr bool kFlips8BitWeights = true;

  static constexpr int form(int, int) { return 0; }
  static constexpr int few_form(int) { return 0; }
  static const char* form_name(int) { return "vnni"; }

  template <int Form>
  static Sums dot(Sums sums, const Bytes (&steps)[kSteps], Bytes activations) {
    const Bytes weights = steps[0];
    return _mm256_dpbusd_avx_epi32(sums, activations, weights);
  }
};

// One row: even and odd steps add into sums of their own, which meet when they are stored.
struct AvxVnniRow : AvxVnniDot {
  static constexpr int kSteps = 2;
  struct Sums {
    __m256i even, odd;
  };
  struct Activations {
    Bytes even, odd;
  };
  using One = AvxVnniDot;

  static Sums zero() { return {One::zero(), One::zero()}; }
  static Sums load_sums(const uint32_t* p) { return {One::load_sums(p), One::zero()}; }
  static void store_sums(uint32_t* p, Sums v) { One::store_sums(p, One::add(v.even, v.odd)); }
  static Sums add(Sums a, Sums b) { return {One::add(a.even, b.even), One::add(a.odd, b.odd)}; }
  static Sums shift_left(Sums v, int by) { return {One::shift_left(v.even, by), One::shift_left(v.odd, by)}; }

  static Activations activations(const uint8_t* codes) {
    return {One::activations(codes), One::activations(codes + 4)};
  }
  template <int Form>
  static Sums dot(Sums sums, const Bytes (&weights)[kSteps], Activations activations) {
    sums.even = _mm256_dpbusd_avx_epi32(sums.even, activations.even, weights[0]);
    sums.odd = _mm256_dpbusd_avx_epi32(sums.odd, activations.odd, weights[1]);
    asm("" : "+x"(sums.even), "+x"(sums.odd));  // each in one register: GCC copies one of them to and fro otherwise
    return sums;
  }
};

constexpr DotFamily avxvnni_dot_family() {
  DotFamily family = kDotFamily<AvxVnniDot>;
  family.tile[0][1] = dot_tile<AvxVnniRow, 0, 1>;
  return family;
}

constexpr DotFamily kAvxVnniDotFamily = avxvnni_dot_family();

}  // namespace
}  // namespace soniq
