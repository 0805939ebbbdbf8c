// depthwise on AVX-512 with VNNI: 64 channels a block, 16 a group, four rows to a strip. Narrower layers are served by AVX2.
//
//   strip   | c0 r0..3 | c1 r0..3 | ... | c15 r0..3 |     one column of a group: 64 bytes, a dword a channel
//
//   form    instructions for 16 channels, 1 column, 1 strip                    exact while
//   bytes   vpdpbusd                                                           weights are bytes
//   words   2 vpdpwssd; vpandd and vpsrlw once for two output rows             always
//
// 3x3, two output rows, 64 channels and a column: 16 instructions interleave (4 of them stores); bytes then takes 4 x 13, words
// 4 x 25. At one product and two instructions a cycle (Zen 4) that is 34 and 20 products a cycle.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/merge.h"
#include "kernels/depthwise_loop.h"

namespace soniq {
namespace {

// Unpacking works inside 128-bit lanes, twice: dword i of 64 channels is put where it ends in register i / 4, lane i % 4.
inline __m512i channels_for_unpacking(const uint8_t* codes) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes));
}

void interleave_avx512(const DepthwiseRow* rows, int64_t columns, uint8_t* to, int64_t group_bytes) {
  const DepthwiseRow r[4] = {rows[0], rows[1], rows[2], rows[3]};
  for (int64_t x = 0; x < columns; ++x, to += 64) {
    __m512i row[4];
    repeat<4>([&](auto i) { row[i] = channels_for_unpacking(r[i].codes + x * r[i].step); });
    const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low01, low23));
    _mm512_storeu_si512(to + group_bytes, _mm512_unpackhi_epi16(low01, low23));
    _mm512_storeu_si512(to + 2 * group_bytes, _mm512_unpacklo_epi16(high01, high23));
    _mm512_storeu_si512(to + 3 * group_bytes, _mm512_unpackhi_epi16(high01, high23));
  }
}

struct Avx512DepthwiseGroup {
  static constexpr int kLanes = 16, kGroups = 4, kColumnBytes = 64;
  using Sums = __m512i;
  using Scale = __m512i;
  static Sums zero() { return _mm512_setzero_si512(); }
  static Scale scale(const uint32_t* shifts) { return _mm512_loadu_si512(shifts); }
  static void store(uint32_t* to, Sums s, Scale shifts) { _mm512_storeu_si512(to, _mm512_sllv_epi32(s, shifts)); }
};

struct Avx512DepthwiseBytes : Avx512DepthwiseGroup {
  using Codes = __m512i;
  using Weights = __m512i;
  static constexpr int kWeightBytes = 64;
  static bool exact(const DepthwiseBounds& b) { return b.least_weight >= -128 && b.most_weight <= 127; }
  static Codes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Weights load_weights(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Sums add(Sums s, Codes c, Weights w) { return _mm512_dpbusd_epi32(s, c, w); }
  static Sums first(Codes c, Weights w) { return add(zero(), c, w); }
};

struct Avx512DepthwiseWords : Avx512DepthwiseGroup {
  struct Codes {
    __m512i even, odd;  // rows 0 and 2, rows 1 and 3
  };
  using Weights = Codes;
  static constexpr int kWeightBytes = 128;
  static bool exact(const DepthwiseBounds&) { return true; }
  static Codes load(const uint8_t* p) {
    const __m512i codes = _mm512_loadu_si512(p);
    return {_mm512_and_si512(codes, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(codes, 8)};
  }
  static Weights load_weights(const uint8_t* p) { return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)}; }
  static Sums add(Sums s, Codes c, const Weights& w) {
    return _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(s, c.even, w.even), c.odd, w.odd);
  }
  static Sums first(Codes c, const Weights& w) { return add(zero(), c, w); }
};

constexpr DepthwiseFamily kAvx512Depthwise = {
    /*channels=*/64,
    /*lanes=*/16,
    /*rows=*/4,
    /*column_bytes=*/64,
    interleave_avx512,
    merge_x86,
    /*forms=*/2,
    {depthwise_form<Avx512DepthwiseBytes, 1>("bytes", 1, beside_rows<4>),
     depthwise_form<Avx512DepthwiseWords, 1>("words", 2, even_and_odd_rows<16>)}};

}  // namespace
}  // namespace soniq
