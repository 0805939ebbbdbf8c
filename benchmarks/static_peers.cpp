// The plain INT8 loops that static_throughput.py puts beside ours: signed bytes, both operands packed for the instruction, a
// tile of sums that stays in registers. Compiled with the flags of a tier and read as machine code, never run.
#include "kernels/dot_loop.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

using soniq::repeat;

#if defined(__ARM_FEATURE_MATMUL_INT8)
// 8 rows x 12 columns, 8 codes: smmla takes 2 rows by 2 columns.
extern "C" void int8_smmla(const int8_t* weights, const int8_t* activations, const int8_t* end, int32_t* sums) {
  int32x4_t s[4][6];
  repeat<4>([&](auto pair) { repeat<6>([&](auto c) { s[pair][c] = vdupq_n_s32(0); }); });
  do {
    int8x16_t a[4];
    repeat<4>([&](auto pair) { a[pair] = vld1q_s8(activations + 16 * pair); });
    repeat<6>([&](auto c) {
      const int8x16_t w = vld1q_s8(weights + 16 * c);
      repeat<4>([&](auto pair) { s[pair][c] = vmmlaq_s32(s[pair][c], a[pair], w); });
    });
    activations += 64, weights += 96;
  } while (activations != end);
  repeat<4>([&](auto pair) { repeat<6>([&](auto c) { vst1q_s32(sums + (pair * 6 + c) * 4, s[pair][c]); }); });
}

#elif defined(__ARM_FEATURE_DOTPROD)
// 8 rows x 8 columns, 16 codes: sdot takes 4 codes of 4 columns, and those of a row by lane.
extern "C" void int8_sdot(const int8_t* weights, const int8_t* activations, const int8_t* end, int32_t* sums) {
  int32x4_t s[8][2];
  repeat<8>([&](auto row) { repeat<2>([&](auto c) { s[row][c] = vdupq_n_s32(0); }); });
  do {
    int8x16_t w[4][2];
    repeat<4>([&](auto step) { repeat<2>([&](auto c) { w[step][c] = vld1q_s8(weights + (step * 2 + c) * 16); }); });
    repeat<8>([&](auto row) {
      const int8x16_t a = vld1q_s8(activations + row * 16);
      repeat<2>([&](auto c) {
        s[row][c] = vdotq_laneq_s32(vdotq_laneq_s32(s[row][c], w[0][c], a, 0), w[1][c], a, 1);
        s[row][c] = vdotq_laneq_s32(vdotq_laneq_s32(s[row][c], w[2][c], a, 2), w[3][c], a, 3);
      });
    });
    activations += 128, weights += 128;
  } while (activations != end);
  repeat<8>([&](auto row) { repeat<2>([&](auto c) { vst1q_s32(sums + (row * 2 + c) * 4, s[row][c]); }); });
}

#elif defined(__aarch64__)
// 4 rows x 4 columns, 16 codes in lanes: two products of -127..127 fit 16 bits, and are widened together.
extern "C" void int8_smull(const int8_t* weights, const int8_t* activations, const int8_t* end, int32_t* sums) {
  int32x4_t s[4][4];
  repeat<4>([&](auto row) { repeat<4>([&](auto c) { s[row][c] = vdupq_n_s32(0); }); });
  do {
    int8x16_t a[4];
    repeat<4>([&](auto row) { a[row] = vld1q_s8(activations + 16 * row); });
    repeat<4>([&](auto c) {
      const int8x16_t w = vld1q_s8(weights + 16 * c);
      repeat<4>([&](auto row) {
        const int16x8_t products = vmull_s8(vget_low_s8(w), vget_low_s8(a[row]));
        s[row][c] = vpadalq_s16(s[row][c], vmlal_high_s8(products, w, a[row]));
      });
    });
    activations += 64, weights += 64;
  } while (activations != end);
  repeat<4>([&](auto row) { repeat<4>([&](auto c) { vst1q_s32(sums + (row * 4 + c) * 4, s[row][c]); }); });
}

#elif defined(__AVXVNNI__)
// 6 rows x 2 registers of 8 columns, 4 codes of unsigned activations.
extern "C" void int8_vpdpbusd(const int8_t* weights, const int32_t* activations, const int32_t* end, __m256i* sums) {
  __m256i s[6][2];
  repeat<6>([&](auto row) { repeat<2>([&](auto c) { s[row][c] = _mm256_setzero_si256(); }); });
  do {
    __m256i w[2];
    repeat<2>([&](auto c) { w[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights) + c); });
    repeat<6>([&](auto row) {
      const __m256i a = _mm256_set1_epi32(activations[row]);
      repeat<2>([&](auto c) { s[row][c] = _mm256_dpbusd_avx_epi32(s[row][c], a, w[c]); });
    });
    activations += 6, weights += 64;
  } while (activations != end);
  repeat<6>([&](auto row) { repeat<2>([&](auto c) { _mm256_storeu_si256(sums + row * 2 + c, s[row][c]); }); });
}
#endif
