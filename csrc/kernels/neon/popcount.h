// popcount on NEON. Goal: several times the byte products for 1-bit activations and weights of few bits.
//
//   tile 4 rows x 4 registers of 2 outputs (64-bit words, one of 64 channels each): 8 columns
//
//        w0 w1 w2 w3      | c0 word | c1 word | ...      and an activation word, twice in 16 bytes: plain loads, since a
//   a0   s00 ... s03                                     load that broadcasts costs an arithmetic slot here
//   ...                   16 sums + 4 weights + 1 activation + 4 counts: 25 of 32 registers
//
//   a step of 64 channels: 16 x (and + cnt + add), 4 + 4 loads       128 products of a plane pair for 3 instructions
//
// cnt counts within bytes, at most 8: 31 steps fill a byte. Then pairs of bytes, and of words, are added up to 32 bits:
//
//   sums_u8x16   | c0: 8 bytes | c1: 8 bytes |   uaddlp, addp, uaddlp  ->  | c0 | c1 | c2 | c3 |       12 instructions a row
//
// With udot (neon_dotprod) the third instruction adds into 32 bits at once, and a row ends in half of that.
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//   rows          1       2       3       4       SMULL   SDOT
//   Cortex-A53    19      27      31      32      3.2
//   Cortex-A72    64      79      85      85      8.0
//   Neoverse N1   85      85      85      85      8.0     32
//   Neoverse V1   171     171     171     171     15      64
//   Cortex-A76    64      79      85      85      8.0     32
//
// Divided by w_bits * a_bits.
#pragma once

#include <arm_neon.h>

#include "kernels/dot_loop.h"

namespace soniq {
namespace {

constexpr int kNeonWord = 16;  // bytes of an activation word, which stands there twice
constexpr int kNeonPopcountRows = 4, kNeonPopcountRegisters = 4, kNeonPopcountColumns = 8;

// Bit `plane` of 64 codes: each code's bit to its place in a byte of eight, and neighbours added until eight are one.
template <int Plane>
inline uint8x16_t plane_twice(const uint8x16_t (&codes_u8x16)[4]) {
  constexpr int8_t p = Plane;
  const int8x16_t to_place = {-p, 1 - p, 2 - p, 3 - p, 4 - p, 5 - p, 6 - p, 7 - p,
                              -p, 1 - p, 2 - p, 3 - p, 4 - p, 5 - p, 6 - p, 7 - p};
  uint8x16_t bits_u8x16[4];
  repeat<4>([&](auto i) { bits_u8x16[i] = vshlq_u8(vandq_u8(codes_u8x16[i], vdupq_n_u8(1 << p)), to_place); });
  const uint8x16_t pairs_u8x16 =
      vpaddq_u8(vpaddq_u8(bits_u8x16[0], bits_u8x16[1]), vpaddq_u8(bits_u8x16[2], bits_u8x16[3]));
  return vpaddq_u8(pairs_u8x16, pairs_u8x16);
}

template <int Bits>
void planes_neon(const uint8_t* codes, int words, uint8_t* planes, int64_t plane_stride) {
  for (int word = 0; word < words; ++word, codes += 64, planes += kNeonWord) {
    uint8x16_t codes_u8x16[4];
    repeat<4>([&](auto i) { codes_u8x16[i] = vld1q_u8(codes + i * 16); });
    repeat<Bits>([&](auto plane) { vst1q_u8(planes + plane * plane_stride, plane_twice<plane>(codes_u8x16)); });
  }
}

struct NeonCounts {
  using Sums = uint8x16_t;
  static constexpr int kMostSteps = 255 / 8;

  static Sums zero() { return vdupq_n_u8(0); }
  static Sums add(Sums sums, uint8x16_t counts_u8x16) { return vaddq_u8(sums, counts_u8x16); }
  static uint32x4_t columns(Sums left, Sums right) {
    return vpaddlq_u16(vpaddq_u16(vpaddlq_u8(left), vpaddlq_u8(right)));
  }
};

// Steps are shared evenly among as few runs as the sums allow.
inline int steps_of_run(int words, int most) {
  const int runs = (words + most - 1) / most;
  return (words + runs - 1) / runs;
}

template <class Counts, int Rows>
[[gnu::always_inline]] inline void popcount_line_neon(const uint8_t* weights, const uint8_t* activations,
                                                      int64_t row_stride, int words, uint32_t* sums, int shift) {
  constexpr int registers = kNeonPopcountRegisters;
  const int32x4_t by = vdupq_n_s32(shift);
  const uint8_t* const end = activations + words * kNeonWord;
  const int64_t run_bytes = int64_t(steps_of_run(words, Counts::kMostSteps)) * kNeonWord;
  do {
    typename Counts::Sums s[Rows][registers];
    repeat<Rows>([&](auto row) { repeat<registers>([&](auto v) { s[row][v] = Counts::zero(); }); });
    const uint8_t* const run_end = end - activations > run_bytes ? activations + run_bytes : end;
    do {
      uint8x16_t weights_b128[registers];
      repeat<registers>([&](auto v) { weights_b128[v] = vld1q_u8(weights + v * 16); });
      repeat<Rows>([&](auto row) {
        const uint8x16_t word_b128 = vld1q_u8(activations + row * row_stride);
        repeat<registers>(
            [&](auto v) { s[row][v] = Counts::add(s[row][v], vcntq_u8(vandq_u8(weights_b128[v], word_b128))); });
      });
      activations += kNeonWord;
      weights += registers * 16;
    } while (activations != run_end);

    repeat<Rows>([&](auto row) {
      repeat<2>([&](auto half) {
        uint32_t* to = sums + row * kNeonPopcountColumns + half * 4;
        const uint32x4_t columns = Counts::columns(s[row][2 * half], s[row][2 * half + 1]);
        vst1q_u32(to, vaddq_u32(vld1q_u32(to), vshlq_u32(columns, by)));
      });
    });
  } while (activations != end);
}

template <class Counts, int Rows>
void popcount_tile_neon(const PopcountTile& tile) {
  const int64_t line_bytes = int64_t(tile.words) * kNeonPopcountColumns * 8;
  for (int line = 0; line < tile.lines; ++line)
    popcount_line_neon<Counts, Rows>(tile.weights + line * line_bytes, tile.activations + line * tile.line_stride,
                                     tile.row_stride, tile.words, tile.sums, tile.shift);
}

template <class Counts, int... Rows>
constexpr PopcountFamily popcount_family_neon(const char* name, int rate, std::integer_sequence<int, Rows...>) {
  PopcountFamily family{};
  family.name = name;
  family.columns = kNeonPopcountColumns;
  family.tile_rows = kNeonPopcountRows;
  family.rate = rate;
  family.word_bytes = kNeonWord;
  family.planes[1] = planes_neon<1>, family.planes[2] = planes_neon<2>;
  ((family.tile[Rows + 1] = popcount_tile_neon<Counts, Rows + 1>), ...);
  return family;
}

template <class Counts>
constexpr PopcountFamily popcount_family_neon(const char* name, int rate) {
  return popcount_family_neon<Counts>(name, rate, std::make_integer_sequence<int, kNeonPopcountRows>());
}

}  // namespace
}  // namespace soniq
