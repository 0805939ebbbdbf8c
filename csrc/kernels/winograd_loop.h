// Goal: 3 x 3 convolutions of few bits with 16 products where there were 36. What Winograd's F(2 x 2, 3 x 3) makes of operands of up to
// four bits and six still fits the bytes that dot products take, so it is exact: nothing is rounded, and the sums are the same.
//
//   four pixels and three weights of a line:      d0 - d2   d1 + d2   d2 - d1   d1 - d3         times
//                                                 2 g0   g0 + g1 + g2   g0 - g1 + g2   2 g2     are m0 m1 m2 m3, and
//   twice the two outputs of the line:            m0 + m1 + m2   m1 - m2 - m3
//
// and the same down the columns: 4 x 4 pixels and 3 x 3 weights become 16 bytes each, 16 products 2 x 2 outputs, four times too large.
//
//   pixels, codes 0..c    plus and plus: 0..4c; all others: -2c..2c, stored + 2c, and what that adds is taken away at the end
//   levels -w..w          the four in the middle: -9w..9w; the others: -4w..4w, -6w..6w
//
// Ceiling: 2.25 times the products a cycle of dot's tile. A tile of 2 x 2 outputs costs besides, with AVX-512:
//
//   pixels, 64 channels     47 additions, 32 loads and stores; once for all panels
//   weights, 64 bytes       28 additions, 25 loads and stores; once for all tiles of a block
//   sums, 16 outputs        30 additions and shifts, 40 loads and stores
//
// Measured on an Intel Xeon, of the time that nine taps take, epilogue included: ResNet-18's layers of 64, 128 and 256 channels 0.79,
// 0.72 and 0.69, at avx2 0.76, 0.70 and 0.66. With 64 channels a product of 14 tiles is 16 steps, and reaches 1.2 vpdpbusd a cycle of
// the 1.48 of longer ones; pixels, sums and the epilogue take a tenth of the time each.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "kernels/floats.h"

namespace soniq {
namespace {

typedef uint8_t WideBytes __attribute__((vector_size(kLanes * 4)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// What becomes of four in a line: of pixels, and of what is left of them down the columns.
template <class V>
[[gnu::always_inline]] inline void transform_four(V d0, V d1, V d2, V d3, V* to, int step) {
  to[0] = d0 - d2, to[step] = d1 + d2, to[2 * step] = d2 - d1, to[3 * step] = d1 - d3;
}

// An address that is computed here and now: left alone, GCC keeps each of forty in memory and adds to all of them.
template <class Byte>
[[gnu::always_inline]] inline Byte* here(Byte* address) {
  asm volatile("" : "+r"(address));
  return address;
}

// Sixteen vectors of channels, to_stride apart.
template <class V>
[[gnu::always_inline]] inline void transform_pixels(const uint8_t* pixels, const WinogradPixels& p, uint8_t* to) {
  const V offset = V{} + uint8_t(p.offset);
  V down[16], across[16];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const uint8_t* const column = here(pixels + j * p.pixel_stride);
    transform_four(load_as<V>(column), load_as<V>(column + p.line_stride), load_as<V>(column + 2 * p.line_stride),
                   load_as<V>(column + 3 * p.line_stride), down + j, 4);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    transform_four(down[4 * i], down[4 * i + 1], down[4 * i + 2], down[4 * i + 3], across + 4 * i, 1);
    uint8_t* const row = here(to + 4 * i * p.to_stride);
#pragma GCC unroll 4
    for (int j = 4 * i; j < 4 * i + 4; ++j)
      store_as(row + j % 4 * p.to_stride, j == kPlusAndPlus ? across[j] : across[j] + offset);
  }
}

void winograd_pixels(const WinogradPixels& pixels) {
  const WinogradPixels p = pixels;
  const uint8_t* from = p.pixels;
  uint8_t* to = p.to;
  for (int tile = 0; tile < p.tiles; ++tile, from += 2 * p.pixel_stride, to += p.row_stride) {
    int c = 0;
    for (; c + int(sizeof(WideBytes)) <= p.channels; c += sizeof(WideBytes))
      transform_pixels<WideBytes>(here(from + c), p, here(to + c));
    for (; c < p.channels; c += 16) transform_pixels<Bytes16>(here(from + c), p, here(to + c));
  }
}

template <class V>
[[gnu::always_inline]] inline void transform_three(V g0, V g1, V g2, V* to, int step) {
  const V ends = g0 + g2;
  to[0] = g0 + g0, to[step] = ends + g1, to[2 * step] = ends - g1, to[3 * step] = g2 + g2;
}

void winograd_weights(const uint8_t* taps, int64_t line_stride, int64_t tap_stride, int64_t count, uint8_t* to,
                      int64_t to_stride) {
  using V = WideBytes;
  for (int64_t at = 0; at < count; at += sizeof(V)) {
    V down[12], across[16];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const uint8_t* const column = taps + j * tap_stride + at;
      transform_three(load_as<V>(column), load_as<V>(column + line_stride), load_as<V>(column + 2 * line_stride),
                      down + j, 3);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) transform_three(down[3 * i], down[3 * i + 1], down[3 * i + 2], across + 4 * i, 1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_as(to + i * to_stride + at, across[i]);
  }
}

// Unsigned, since sums wrap on their way. Row by row, so that no more than four matrices wait.
template <int Row>
void add_row(const WinogradSums& sums) {
  const WinogradSums s = sums;
  for (int64_t at = 0, column = 0; at < s.count;
       at += kLanes, column = column + kLanes < s.columns ? column + kLanes : 0) {
    const auto m = [&](int j) { return load_as<Unsigned>(s.sums + j * s.stride + at); };
    const auto y = [&](int i) { return s.outputs + i * s.stride + at; };
    const Unsigned middle = m(1), left = m(0) + middle + m(2), right = middle - m(2) - m(3);
    const Unsigned of_row[2] = {left, right};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const auto term = [&](int output) { return load_as<Unsigned>(s.terms + output * s.columns + column); };
      if (Row == 0) store_as(y(i), of_row[i] + term(i));
      if (Row == 1) store_as(y(i), load_as<Unsigned>(y(i)) + of_row[i]);
      if (Row == 1) store_as(y(i + 2), of_row[i] + term(i + 2));
      if (Row == 2) store_as(y(i), Integers(load_as<Unsigned>(y(i)) + of_row[i]) >> 2);
      if (Row == 2) store_as(y(i + 2), load_as<Unsigned>(y(i + 2)) - of_row[i]);
      if (Row == 3) store_as(y(i + 2), Integers(load_as<Unsigned>(y(i + 2)) - of_row[i]) >> 2);
    }
  }
}
void winograd_sums(const WinogradSums& sums) {
  if (sums.row == 0) add_row<0>(sums);
  if (sums.row == 1) add_row<1>(sums);
  if (sums.row == 2) add_row<2>(sums);
  if (sums.row == 3) add_row<3>(sums);
}

constexpr WinogradFamily kWinograd = {winograd_pixels, winograd_weights, winograd_sums};

}  // namespace
}  // namespace soniq
