// dot with the int8 matrix multiply extension. Goal: ummla multiplies 2 rows by 2 columns by 8 codes, 32 MAC where udot
// has 16, in the order in which it wants them: nothing is moved inside the loop.
//
//   tile 8 rows (4 pairs) x 4 pairs of columns = 16 sums, 4 weights, 4 activations: 24 of 32 registers
//
//        weights, 8 codes, as packed         | c0 k0..7 | c1 k0..7 |   | c2 | c3 |   | c4 | c5 |   | c6 | c7 |
//        activations of two rows, prepared   | r0 k0..7 | r1 k0..7 |
//        ummla                               | r0 c0 | r0 c1 | r1 c0 | r1 c1 |        zips at the end sort the sums
//
//   8 codes: 16 ummla, 4 + 4 loads       32 MAC an arithmetic instruction, udot 16
//
// A sum waits 3 cycles for its last product, and the widest cores start four a cycle: up to 4 rows have several sums for an
// output, its chains. One row is paired with itself and has what udot would give it.
//
// Static, MAC a cycle (benchmarks/results/neon_static.md), beside plain INT8 loops:
//   rows          1       2       4       8       SDOT    SMMLA
//   Neoverse V1   38      77      128     128     64      128
//   Neoverse N2   32      64      64      64      32      64
//   Neoverse V2   38      77      128     128     64      128
//
// At any width: twice SDOT, so 1x2 reaches its aim on Neoverse V1, where tables do not.
#pragma once

#include "kernels/neon_dotprod/dot.h"

namespace soniq {
namespace {

struct NeonI8mmDot : NeonVocabulary {
  static constexpr int kRows = 8, kColumnPairs = 4, kCodes = 8;
  static const char* form_name(int) { return "ummla"; }

  // Eights of codes to the first halves of 16 bytes.
  static void expand(const uint8_t* codes, int units, uint8_t* halves) {
    for (const uint8_t* const end = codes + units * kUnit; codes != end; codes += 16, halves += 32) {
      const uint64x2_t eights = vreinterpretq_u64_u8(load(codes));
      vst1_u8(halves, vreinterpret_u8_u64(vget_low_u64(eights)));
      vst1_u8(halves + 16, vreinterpret_u8_u64(vget_high_u64(eights)));
    }
  }

  // The sums of one row of a pair in 4 columns, times 2^shift, onto what is in memory.
  static void add_to(uint32_t* to, uint64x2_t sums, int shift) {
    store_sums(to, add(load_sums(to), shift_left(vreinterpretq_u32_u64(sums), shift)));
  }

  template <int Rows>
  static void tile(const uint8_t* weights, const uint8_t* activations, int64_t row_stride, int k, uint32_t* sums,
                   int shift) {
    constexpr int pairs = (Rows + 1) / 2, chains = pairs == 1 ? 4 : pairs == 2 ? 2 : 1;
    Sums s[pairs][kColumnPairs][chains];
    repeat<pairs>([&](auto pair) {
      repeat<kColumnPairs>([&](auto c) { repeat<chains>([&](auto chain) { s[pair][c][chain] = zero(); }); });
    });

    const uint8_t* const end = weights + k * 2 * kColumnPairs;
    do {
      repeat<chains>([&](auto chain) {
        Bytes w[kColumnPairs];
        repeat<kColumnPairs>([&](auto c) { w[c] = load(weights + c * 16); });
        repeat<pairs>([&](auto pair) {
          const Bytes a = load(activations + pair * row_stride);
          repeat<kColumnPairs>([&](auto c) { s[pair][c][chain] = vmmlaq_u32(s[pair][c][chain], a, w[c]); });
        });
        activations += 2 * kCodes;
        weights += kColumnPairs * 16;
      });
    } while (weights != end);

    repeat<pairs>([&](auto pair) {
      uint64x2_t of_columns[kColumnPairs];
      repeat<kColumnPairs>([&](auto c) {
        repeat<chains - 1>([&](auto chain) { s[pair][c][0] = add(s[pair][c][0], s[pair][c][chain + 1]); });
        of_columns[c] = vreinterpretq_u64_u32(s[pair][c][0]);
      });
      repeat<2>([&](auto v) {
        const uint64x2_t left = of_columns[2 * v], right = of_columns[2 * v + 1];
        uint32_t* to = sums + 2 * pair * 8 + v * 4;
        add_to(to, vzip1q_u64(left, right), shift);
        if constexpr (2 * pair + 1 < Rows) add_to(to + 8, vzip2q_u64(left, right), shift);
      });
    });
  }

  // Columns, unpacking and widths are those of neon_dotprod.
  template <int... Rows>
  static constexpr DotFamily family(std::integer_sequence<int, Rows...>) {
    DotFamily f = family_without_tiles<NeonDotprodDot>(std::make_integer_sequence<int, 1>());
    f.rate[0] =
        82;  // beside rates of neon_dotprod: more than lut5 by what Neoverse V1, N2 and V2 have, the geometric mean
    f.form_name = form_name;
    f.pairs = true;
    f.expand[0] = expand;
    f.tile_rows[0] = kRows;
    f.step[0] = kUnit;
    ((f.tile[0][Rows + 1] = tile<Rows + 1>), ...);
    return f;
  }
};

constexpr DotFamily kNeonI8mmDotFamily = NeonI8mmDot::family(std::make_integer_sequence<int, NeonI8mmDot::kRows>());

}  // namespace
}  // namespace soniq
