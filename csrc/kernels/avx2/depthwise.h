// depthwise on AVX2: 32 channels a block, 8 a group, four rows to a strip.
//
//   strip   | c0 r0..3 | c1 r0..3 | ... | c7 r0..3 |     one column of a group: 32 bytes, a dword a channel
//
//   form       instructions for 8 channels, 1 column, 1 strip                       exact while
//   bytes16    vpmaddubsw, vpaddw; vpmaddwd once an output                          weights are bytes, sums of two rows 16 bits
//   bytes      vpmaddubsw, vpmaddwd, vpaddd                                         weights are bytes, pairs of products 16 bits
//   words      2 vpmaddwd, 2 vpaddd; vpand and vpsrlw once for two output rows      always
//
// 3x3, two output rows, 32 channels and a column: 16 instructions interleave (4 of them stores); bytes16 then takes 4 x 15, bytes
// 4 x 21, words 4 x 37. At four instructions a cycle (Zen 3) that is 30, 23 and 14 products a cycle.
#pragma once

#include "kernels/avx2/merge.h"
#include "kernels/avx2/vocabulary.h"
#include "kernels/depthwise_loop.h"

namespace soniq {
namespace {

// Unpacking works inside 128-bit lanes, twice: dword i of 32 channels is put where it ends in register i / 2, lane i % 2.
inline __m256i channels_for_unpacking(const uint8_t* codes) {
  return _mm256_permutevar8x32_epi32(load_ymm(codes), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

void interleave_avx2(const DepthwiseRow* rows, int64_t columns, uint8_t* to, int64_t group_bytes) {
  const DepthwiseRow r[4] = {rows[0], rows[1], rows[2], rows[3]};
  for (int64_t x = 0; x < columns; ++x, to += 32) {
    __m256i row[4];
    repeat<4>([&](auto i) { row[i] = channels_for_unpacking(r[i].codes + x * r[i].step); });
    const __m256i low01 = _mm256_unpacklo_epi8(row[0], row[1]), high01 = _mm256_unpackhi_epi8(row[0], row[1]);
    const __m256i low23 = _mm256_unpacklo_epi8(row[2], row[3]), high23 = _mm256_unpackhi_epi8(row[2], row[3]);
    store_ymm(to, _mm256_unpacklo_epi16(low01, low23));
    store_ymm(to + group_bytes, _mm256_unpackhi_epi16(low01, low23));
    store_ymm(to + 2 * group_bytes, _mm256_unpacklo_epi16(high01, high23));
    store_ymm(to + 3 * group_bytes, _mm256_unpackhi_epi16(high01, high23));
  }
}

struct Avx2DepthwiseGroup {
  static constexpr int kLanes = 8, kGroups = 4, kColumnBytes = 32;
  using Sums = __m256i;
  using Scale = __m256i;
  static Scale scale(const uint32_t* shifts) { return load_ymm(shifts); }
  static Sums zero() { return _mm256_setzero_si256(); }
};

struct Avx2DepthwiseBytes : Avx2DepthwiseGroup {
  using Codes = __m256i;
  using Weights = __m256i;
  static constexpr int kWeightBytes = 32;
  static Codes load(const uint8_t* p) { return load_ymm(p); }
  static Weights load_weights(const uint8_t* p) { return load_ymm(p); }
  static bool fits(const DepthwiseBounds& b, int64_t most_word) {
    return b.least_weight >= -128 && b.most_weight <= 127 && most_word <= 32767;
  }
};

struct Avx2DepthwiseBytes16 : Avx2DepthwiseBytes {
  // Factors of vpmaddwd, which widens and shifts in one.
  static Scale scale(const uint32_t* shifts) {
    return _mm256_sllv_epi32(_mm256_set1_epi32(0x00010001), load_ymm(shifts));
  }
  static bool exact(const DepthwiseBounds& b) { return fits(b, b.most_sum) && b.most_shift <= 14; }
  static Sums first(Codes c, Weights w) { return _mm256_maddubs_epi16(c, w); }
  static Sums add(Sums s, Codes c, Weights w) { return _mm256_add_epi16(s, _mm256_maddubs_epi16(c, w)); }
  static void store(uint32_t* to, Sums s, Scale scale) { store_ymm(to, _mm256_madd_epi16(s, scale)); }
};

struct Avx2DepthwiseBytes32 : Avx2DepthwiseBytes {
  static bool exact(const DepthwiseBounds& b) { return fits(b, b.most_pair); }
  static Sums first(Codes c, Weights w) { return _mm256_madd_epi16(_mm256_maddubs_epi16(c, w), _mm256_set1_epi16(1)); }
  static Sums add(Sums s, Codes c, Weights w) { return _mm256_add_epi32(s, first(c, w)); }
  static void store(uint32_t* to, Sums s, Scale shifts) { store_ymm(to, _mm256_sllv_epi32(s, shifts)); }
};

struct Avx2DepthwiseWords : Avx2DepthwiseGroup {
  struct Codes {
    __m256i even, odd;  // rows 0 and 2, rows 1 and 3
  };
  using Weights = Codes;
  static constexpr int kWeightBytes = 64;
  static bool exact(const DepthwiseBounds&) { return true; }
  static Codes load(const uint8_t* p) {
    const __m256i codes = load_ymm(p);
    return {_mm256_and_si256(codes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(codes, 8)};
  }
  static Weights load_weights(const uint8_t* p) { return {load_ymm(p), load_ymm(p + 32)}; }
  static Sums first(Codes c, Weights w) {
    return _mm256_add_epi32(_mm256_madd_epi16(c.even, w.even), _mm256_madd_epi16(c.odd, w.odd));
  }
  static Sums add(Sums s, Codes c, Weights w) {
    s = _mm256_add_epi32(s, _mm256_madd_epi16(c.even, w.even));
    return _mm256_add_epi32(s, _mm256_madd_epi16(c.odd, w.odd));
  }
  static void store(uint32_t* to, Sums s, Scale shifts) { store_ymm(to, _mm256_sllv_epi32(s, shifts)); }
};

constexpr DepthwiseFamily kAvx2Depthwise = {/*channels=*/32,
                                            /*lanes=*/8,
                                            /*rows=*/4,
                                            /*column_bytes=*/32,
                                            interleave_avx2,
                                            merge_x86,
                                            /*forms=*/3,
                                            {depthwise_form<Avx2DepthwiseBytes16, 1>("bytes16", 1, beside_rows<4>),
                                             depthwise_form<Avx2DepthwiseBytes32, 1>("bytes", 1, beside_rows<4>),
                                             depthwise_form<Avx2DepthwiseWords, 1>("words", 2, even_and_odd_rows<8>)}};

}  // namespace
}  // namespace soniq
