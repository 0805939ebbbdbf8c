// dot on AMX. Goal: the INT8 rate of the matrix unit, eight times that of vpdpbusd, for every width.
//
// A tile register is 16 rows of 64 bytes. tdpbusd multiplies 16 rows x 64 codes of activations by 64 codes x 16 outputs of
// weights, 16,384 products in 16 cycles, sums modulo 2^32. The weights it wants, [k / 4][output][k % 4], are the bytes that the
// dot family of avx512 has: half of each 128-byte row of a panel of 32 outputs.
//
//                          weights 6: outputs 0..15   weights 7: outputs 16..31      64 codes of K
//   activations 4: group 0     sums 0                     sums 1
//   activations 5: group 1     sums 2                     sums 3
//
//   a step of 64 codes: 4 tdpbusd (64 cycles), 4 tileloadd (32 cycles): 1024 products a cycle, half of the load ports' time
//   the sums of a brick of 576 codes: 4 tileloadd and 4 tilestored, in place, or to L1 where they are complete
//
// Measured on an Intel Xeon with AMX, of cycles of the clock that scalar code has (the unit is slower under power limits): a step
// takes 74 to 79 with operands in registers, 80 to 95 from L1, 90 to 120 with the sums of a brick; 150 where both operands come
// from L2, hence bricks whose bytes stay in L1. 128 x 4096 x 4096 in all, quantization and epilogue included: 1220 GMAC/s at
// 1 x 1 and 814 at 8 x 8 bits, where the best INT8 reaches 614 (benchmarks/results/xeon_amx/gemm.md).
//
// A group is up to 16 rows that stand a constant apart, as many as the tile registers are configured for: ldtilecfg takes 200
// cycles, as much as three steps, so a call of the driver configures once, and rows are cut into groups of one size; the last
// one of a run may overlap the one before it. Two groups may lie anywhere. One that is left has two sums an output, for steps
// in turn: a sum waits 52 cycles for its product. Groups of 7 rows take as long as groups of 16.
//
// Vector instructions between the products gain little: while the unit multiplies they run at 0.8 a cycle in place of 2, as if it held one
// of their ports. Finishing a pair's rows in the steps of the next one took as long as finishing them between the two.
// Handing rows over a pair later, so that their sums have long been stored, or those of four pairs together, is slower.
//
// vpdpbusd's signs: activations are the unsigned side, weights are levels, and those of 8 bits are stored as c ^ 0x80 = c - 128.
#pragma once

#include <immintrin.h>

#include "kernels/avx512/dot.h"

namespace soniq {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64, kTileCodes = 64;
constexpr int kPanelRow = 2 * kTileBytes;  // bytes of 4 codes of a panel's outputs, and of a row of its sums

// What ldtilecfg reads: the palette, then bytes and rows of each tile register.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr explicit TileConfiguration(int group) {
    for (int tile = 0; tile < 8; ++tile) bytes[tile] = kTileBytes, rows[tile] = uint8_t(tile < 6 ? group : kTileRows);
  }
};
// Constants: the compiler's intrinsic reads the first bytes only, as far as the compiler knows.
constexpr TileConfiguration kTileConfigurations[kTileRows] = {
    TileConfiguration(1),  TileConfiguration(2),  TileConfiguration(3),  TileConfiguration(4),
    TileConfiguration(5),  TileConfiguration(6),  TileConfiguration(7),  TileConfiguration(8),
    TileConfiguration(9),  TileConfiguration(10), TileConfiguration(11), TileConfiguration(12),
    TileConfiguration(13), TileConfiguration(14), TileConfiguration(15), TileConfiguration(16)};

void amx_configure(int group) { _tile_loadconfig(&kTileConfigurations[group - 1]); }
void amx_release() { _tile_release(); }

// Where a step's weights are, and how far behind the first code of a row its codes.
struct MatrixSteps {
  const uint8_t* bytes;
  int64_t codes = 0;
  const int steps_of_line;
  const int64_t to_next_line;
  int left, left_in_line;

  explicit MatrixSteps(const MatrixWeights& weights)
      : bytes(weights.bytes),
        steps_of_line(weights.k / kTileCodes),
        to_next_line(weights.line_stride - weights.k),
        left(steps_of_line * weights.lines),
        left_in_line(steps_of_line) {}
  bool next() {
    bytes += kTileCodes / 4 * kPanelRow;
    codes += kTileCodes;
    if (--left_in_line == 0) codes += to_next_line, left_in_line = steps_of_line;
    return --left > 0;
  }
};

void amx_pair(const MatrixWeights& weights, const MatrixGroup& first, const MatrixGroup& second, int64_t row_stride,
              const uint8_t* ahead, int lines) {
  if (!first.begin) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, first.begin, kPanelRow);
    _tile_loadd(1, first.begin + 16, kPanelRow);
    _tile_loadd(2, second.begin, kPanelRow);
    _tile_loadd(3, second.begin + 16, kPanelRow);
  }
  MatrixSteps at(weights);
  do {
    _tile_loadd(6, at.bytes, kPanelRow);
    _tile_loadd(4, first.rows + at.codes, row_stride);
    _tile_loadd(7, at.bytes + kTileBytes, kPanelRow);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(5, second.rows + at.codes, row_stride);
    _tile_dpbusd(1, 4, 7);
    for (int line = 0; line < lines; ++line, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  } while (at.next());
  _tile_stored(0, first.sums, kPanelRow);
  _tile_stored(1, first.sums + 16, kPanelRow);
  _tile_stored(2, second.sums, kPanelRow);
  _tile_stored(3, second.sums + 16, kPanelRow);
}

// The sums of one group, of the two halves of its steps: [half][row][output].
struct GroupSums {
  alignas(64) uint32_t half[2][kTileRows * 32];
};

[[gnu::always_inline]] inline void multiply_single(const MatrixWeights& weights, const uint8_t* rows,
                                                   int64_t row_stride, GroupSums& sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  MatrixSteps at(weights);
  do {
    _tile_loadd(4, rows + at.codes, row_stride);
    _tile_loadd(6, at.bytes, kPanelRow);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, at.bytes + kTileBytes, kPanelRow);
    _tile_dpbusd(1, 4, 7);
    if (!at.next()) break;
    _tile_loadd(5, rows + at.codes, row_stride);
    _tile_loadd(6, at.bytes, kPanelRow);
    _tile_dpbusd(2, 5, 6);
    _tile_loadd(7, at.bytes + kTileBytes, kPanelRow);
    _tile_dpbusd(3, 5, 7);
  } while (at.next());
  _tile_stored(0, sums.half[0], kPanelRow);
  _tile_stored(1, sums.half[0] + 16, kPanelRow);
  _tile_stored(2, sums.half[1], kPanelRow);
  _tile_stored(3, sums.half[1] + 16, kPanelRow);
}

void amx_single(const MatrixWeights& weights, const MatrixGroup& group, int64_t row_stride, int count, int skip) {
  GroupSums sums;
  multiply_single(weights, group.rows, row_stride, sums);
  for (int at = skip * 32; at < count * 32; at += 16) {
    __m512i sum = _mm512_add_epi32(_mm512_loadu_si512(sums.half[0] + at), _mm512_loadu_si512(sums.half[1] + at));
    if (group.begin) sum = _mm512_add_epi32(sum, _mm512_loadu_si512(group.begin + at));
    _mm512_storeu_si512(group.sums + at, sum);
  }
}

void amx_shift_left(uint32_t* sums, int64_t count, int by) {
  const __m128i shift = _mm_cvtsi32_si128(by);
  for (int64_t at = 0; at < count; at += 16)
    _mm512_storeu_si512(sums + at, _mm512_sll_epi32(_mm512_loadu_si512(sums + at), shift));
}

constexpr MatrixTiles kAmxTiles = {kTileRows, kTileCodes, amx_configure, amx_release,
                                   amx_pair,  amx_single, amx_shift_left};

// Columns, unpacking and up to four rows are those of avx512.
struct AmxDot : Avx512Dot {
  static constexpr bool kFetchesAhead = false;  // pair() does, evenly
};
constexpr DotFamily amx_dot_family() {
  DotFamily family = with_one_bit_avx512(family_without_tiles<AmxDot>(std::make_integer_sequence<int, 1>()));
  family.rate[0] = 1024;
  family.form_name = [](int) { return "amx"; };
  family.tile_rows[0] = 2 * kTileRows;
  family.step[0] = kTileCodes;
  family.matrix = &kAmxTiles;
  return family;
}

constexpr DotFamily kAmxDot = amx_dot_family();

}  // namespace
}  // namespace soniq
