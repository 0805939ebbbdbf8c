// dot with the int8 matrix multiply extension. Goal: ummla multiplies 2 rows by 2 columns by 8 codes, 32 MAC where udot
// has 16; panels and unpacking are those of neon_dotprod.
//
//   tile 8 rows (4 pairs) x 4 pairs of columns = 16 sums, 8 weights, 2 activations: 26 of 32 registers
//
//        weights, steps 0 and 1     | c0 k0..3 | c1 k0..3 | c2 k0..3 | c3 k0..3 |     | c0 k4..7 | c1 k4..7 | ...
//        zip1, zip2 of 32 bits      | c0 k0..7 | c1 k0..7 |                           | c2 k0..7 | c3 k0..7 |
//        activations, rows 0 and 1  | r0 k0..7 | r0 k8..15 |                          | r1 k0..7 | r1 k8..15 |
//        zip1, zip2 of 64 bits      | r0 k0..7 | r1 k0..7 |                           | r0 k8..15 | r1 k8..15 |
//        ummla                      | r0 c0 | r0 c1 | r1 c0 | r1 c1 |                 one more zip, at the end, sorts the sums
//
//   16 codes: 32 ummla, 16 zips, 16 loads       21 MAC an arithmetic instruction, udot 16
//
// Static throughput of the inner loop (llvm-mca 19, no memory stalls), MAC a cycle:
//   rows          4     8     udot, 4 or 8 rows
//   Neoverse V1   72    85    64
//   Neoverse N2   36    43    32
//   Neoverse V2   72    85    64
#pragma once

#include "kernels/neon_dotprod/dot.h"

namespace soniq {
namespace {

struct NeonI8mmDot : NeonVocabulary {
  static constexpr int kRows = NeonDotprodDot::kRows, kUdotRows = 2, kCodes = 16, kColumnPairs = 4;
  static const char* form_name(int) { return "ummla"; }

  // Two registers that ummla reads, 8 codes of two columns or two rows each.
  struct Two {
    Bytes first, second;
  };
  static Two zip_words(Bytes a, Bytes b) {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    return {vreinterpretq_u8_u32(vzip1q_u32(x, y)), vreinterpretq_u8_u32(vzip2q_u32(x, y))};
  }
  static Two zip_halves(Bytes a, Bytes b) {
    const uint64x2_t x = vreinterpretq_u64_u8(a), y = vreinterpretq_u64_u8(b);
    return {vreinterpretq_u8_u64(vzip1q_u64(x, y)), vreinterpretq_u8_u64(vzip2q_u64(x, y))};
  }

  // w[column pair]: its k0..7 and its k8..15, of 16 codes of 8 columns.
  static void load_weights(const uint8_t* weights, Two (&w)[kColumnPairs]) {
    repeat<2>([&](auto v) {
      const uint8_t* from = weights + v * 16;
      const Two low = zip_words(load(from), load(from + 32)), high = zip_words(load(from + 64), load(from + 96));
      w[2 * v] = {low.first, high.first};
      w[2 * v + 1] = {low.second, high.second};
    });
  }

  // The sums of one row of a pair in 4 columns, times 2^shift, onto what is in memory.
  static void add_to(uint32_t* to, Bytes sums, int shift) {
    store_sums(to, add(load_sums(to), shift_left(vreinterpretq_u32_u8(sums), shift)));
  }

  template <int Rows>
  static void tile(const uint8_t* weights, const uint8_t* activations, int k, uint32_t* sums, int shift) {
    constexpr int pairs = (Rows + 1) / 2;
    Sums s[pairs][kColumnPairs];
    repeat<pairs>([&](auto pair) { repeat<kColumnPairs>([&](auto c) { s[pair][c] = zero(); }); });

    const uint8_t* const end = activations + k;
    do {
      Two w[kColumnPairs];
      load_weights(weights, w);
      repeat<pairs>([&](auto pair) {
        constexpr bool alone = 2 * pair + 1 == Rows;  // paired with itself, and half of the sums dropped
        const uint8_t* row = activations + 2 * pair * kRowStride;
        const Two a = zip_halves(load(row), load(alone ? row : row + kRowStride));
        repeat<kColumnPairs>([&](auto c) {
          s[pair][c] = vmmlaq_u32(vmmlaq_u32(s[pair][c], a.first, w[c].first), a.second, w[c].second);
        });
      });
      activations += kCodes;
      weights += kCodes * 8;
    } while (activations != end);

    repeat<pairs>([&](auto pair) {
      repeat<2>([&](auto v) {
        const auto left = vreinterpretq_u8_u32(s[pair][2 * v]), right = vreinterpretq_u8_u32(s[pair][2 * v + 1]);
        const Two rows = zip_halves(left, right);
        uint32_t* to = sums + 2 * pair * 8 + v * 4;
        add_to(to, rows.first, shift);
        if constexpr (2 * pair + 1 < Rows) add_to(to + 8, rows.second, shift);
      });
    });
  }

  // One or two rows keep udot: a pair does not repay the zips of its weights.
  template <int... Rows>
  static constexpr DotFamily family(std::integer_sequence<int, Rows...>) {
    DotFamily f = kDotFamily<NeonDotprodDot>;
    f.rate[0] = 43;
    f.form_name = form_name;
    ((f.tile[0][kUdotRows + 1 + Rows] = tile<kUdotRows + 1 + Rows>), ...);
    return f;
  }
};

constexpr DotFamily kNeonI8mmDotFamily =
    NeonI8mmDot::family(std::make_integer_sequence<int, NeonI8mmDot::kRows - NeonI8mmDot::kUdotRows>());

}  // namespace
}  // namespace soniq
