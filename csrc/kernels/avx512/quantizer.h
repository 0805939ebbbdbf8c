// The one quantizer on 16 floats, and 64 of its codes in a register: what quantize.h and avx512_vbmi/quantize_split.h share.
//
// The packs saturate, which is the clamp at 0; min(cmax, v) gives v where v is NaN, whose conversion is the most negative
// integer, and that saturates to code 0 too. x * 0 is a zero for every finite x, and NaN for the others: summed, one
// register remembers whether any was not finite.
#pragma once

#include <immintrin.h>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

struct Avx512Quantizer {
  __m512 r, z, cmax, not_finite = _mm512_setzero_ps();

  __m512i integers(__m512 x) {
    const __m512 product = _mm512_mul_ps(x, r);
    not_finite = _mm512_fmadd_ps(x, _mm512_setzero_ps(), not_finite);
    return _mm512_cvttps_epi32(_mm512_min_ps(cmax, _mm512_add_ps(product, z)));
  }
  bool all_finite() const { return _mm512_cmp_ps_mask(not_finite, not_finite, _CMP_UNORD_Q) == 0; }
};

// Packs work inside 128-bit lanes: four registers of 16 integers come out as dwords 0, 4, 8, 12, 1, 5, ...
inline __m512i pack_codes(const __m512i (&i32x16)[4]) {
  const __m512i low = _mm512_packs_epi32(i32x16[0], i32x16[1]), high = _mm512_packs_epi32(i32x16[2], i32x16[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

}  // namespace
}  // namespace soniq
