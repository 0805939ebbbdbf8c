// Goal: the dot family's two loops, written once for every ISA. A tier brings a vocabulary V:
//
//   V::Bytes, V::Sums       a register of codes, and one of 32-bit sums (one lane an output)
//   V::kLanes, V::kVectors  sums in a register; registers across a panel's columns
//   V::load, V::store       unaligned bytes
//   V::field<shift, mask>   every byte's bits moved right by `shift` (left if negative), then masked
//   V::combine              bitwise or
//   V::kSignedWeights       weights are multiplied as signed bytes; then
//   V::plus                 every byte plus one number
//   V::zero, V::load_sums, V::store_sums, V::add, V::shift_left
//   V::kSteps               steps of 4 codes that are multiplied together: what one load of activations serves
//   V::activations          the 4 * kSteps codes of one row, as dot wants them
//   V::kFetchesAhead        unpacking fetches the next brick
//   V::kFewRows             up to how many rows dot_few serves (0 where kSteps is not 1)
//   V::few_form             the form that dot_few takes in place of another
//   V::dot<form>            sums + the products of the codes of kSteps registers of weights and those activations
//
// Sum S = sum c_w * c_a over unsigned codes; what the levels need beyond it is the epilogue's (format.h, arithmetic.md).
//
//   tile of R rows x kVectors registers:      weights w0 w1 ... are loaded once a step of 4 codes,
//        w0    w1                              activations once a row and kSteps steps, so a step costs
//   a0  s00   s01                              R * kVectors dots, kVectors + R / kSteps loads
//   a1  s10   s11
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel_table.h"

namespace soniq {
namespace {

// Of our own: the linker might keep the copy of std::min that was compiled for AVX-512 for everybody.
template <class T>
constexpr T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T most(T a, T b) {
  return a < b ? b : a;
}

// ---- unpack --------------------------------------------------------------------------------------------------------
// Fields of 8, 4, 2, 1 bits, high to low, as dot.cpp writes them. One field of one row: a shift and a mask, at once
// moved to its position in the byte.
template <class V, int Field, int Position, int Row>
inline typename V::Bytes unpack_field(const uint8_t* packed, int vector) {
  constexpr int row_bytes = V::kVectors * V::kLanes * 4;
  constexpr int place = Row / Field * Field;
  constexpr int mask = ((1 << Field) - 1) << Position;
  const auto bytes = V::load(packed + (Row % Field) * row_bytes + vector * V::kLanes * 4);
  return V::template field<place - Position, mask>(bytes);
}

template <class V, int Bits, int Row, int Alpha = 1>
inline typename V::Bytes unpack_row(const uint8_t* packed, int vector) {
  constexpr int row_bytes = V::kVectors * V::kLanes * 4;
  constexpr int top = Bits >= 4 ? 4 : Bits >= 2 ? 2 : 1;
  const auto high = unpack_field<V, top, Bits - top + Alpha - 1, Row>(packed, vector);
  if constexpr (Bits == top)
    return high;
  else
    return V::combine(high, unpack_row<V, Bits - top, Row, Alpha>(packed + top * row_bytes, vector));
}

template <class V, int Bits, int Row, int Alpha>
inline typename V::Bytes unpack_level(const uint8_t* packed, int vector, int beta) {
  const auto bytes = unpack_row<V, Bits, Row, Alpha>(packed, vector);
  if constexpr (V::kSignedWeights)
    return V::plus(bytes, beta);
  else
    return bytes;
}

template <class V, int Bits, int Alpha, int... Rows>
inline void unpack_unit(const uint8_t* packed, uint8_t* bytes, int beta, std::integer_sequence<int, Rows...>) {
  constexpr int register_bytes = V::kLanes * 4;
  for (int v = 0; v < V::kVectors; ++v)
    (V::store(bytes + (Rows * V::kVectors + v) * register_bytes, unpack_level<V, Bits, Rows, Alpha>(packed, v, beta)),
     ...);
}

template <class V, int Bits, int Alpha>
void unpack(const uint8_t* panel, int units, uint8_t* bytes, int beta) {
  constexpr int row_bytes = V::kVectors * V::kLanes * 4;
  constexpr int unit_bytes = Bits * row_bytes, brick_bytes = kBlock / kUnit * unit_bytes;
  for (int unit = 0; unit < units; ++unit, panel += unit_bytes, bytes += 8 * row_bytes) {
    // The next brick is unpacked when all rows have passed this one: time enough to fetch it into L2.
    for (int line = 0; V::kFetchesAhead && line < unit_bytes; line += 64)
      __builtin_prefetch(panel + brick_bytes + line, 0, 2);
    unpack_unit<V, Bits, Alpha>(panel, bytes, beta, std::make_integer_sequence<int, 8>());
  }
}

// ---- multiply ------------------------------------------------------------------------------------------------------
// body(0), body(1), ... with the index a constant. A loop, even one the compiler unrolls, indexes the sums before it is
// unrolled, and GCC then keeps them in memory: half the speed.
template <class Body, int... I>
[[gnu::always_inline]] inline void repeat(std::integer_sequence<int, I...>, Body&& body) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int Count, class Body>
[[gnu::always_inline]] inline void repeat(Body&& body) {
  repeat(std::make_integer_sequence<int, Count>(), body);
}

// Gathered rows stand a constant apart, which the compiler folds into the loads; for rows of a convolution's image the
// stride is a variable. Functions that use it are [[gnu::flatten]]: with two bodies GCC would make functions of the lambdas
// inside, and keep the sums in memory.
template <int64_t Usual, class Body>
[[gnu::always_inline]] inline void with_stride(int64_t stride, Body&& body) {
  if (stride == Usual)
    body(std::integral_constant<int64_t, Usual>());
  else
    body(stride);
}

template <class V, int Form, int Rows, bool Fresh, class Stride>
[[gnu::always_inline]] inline void dot_tile_strided(const uint8_t* weights, const uint8_t* activations, Stride stride,
                                                    int k, uint32_t* sums, int shift) {
  constexpr int register_bytes = V::kLanes * 4;
  typename V::Sums s[Rows][V::kVectors];
  repeat<Rows>([&](auto row) { repeat<V::kVectors>([&](auto v) { s[row][v] = V::zero(); }); });

  // k is never 0. With the test at the end no path skips the loop, and the sums need no second home behind it.
  const uint8_t* const end = activations + k;
  do {
    typename V::Bytes w[V::kVectors][V::kSteps];
    repeat<V::kSteps>([&](auto step) {
      repeat<V::kVectors>([&](auto v) { w[v][step] = V::load(weights + (step * V::kVectors + v) * register_bytes); });
    });
    repeat<Rows>([&](auto row) {
      const auto a = V::activations(activations + row * stride);
      repeat<V::kVectors>([&](auto v) { s[row][v] = V::template dot<Form>(s[row][v], w[v], a); });
    });
    activations += 4 * V::kSteps;
    weights += V::kSteps * V::kVectors * register_bytes;
  } while (activations != end);

  repeat<Rows>([&](auto row) {
    repeat<V::kVectors>([&](auto v) {
      uint32_t* to = sums + (row * V::kVectors + v) * V::kLanes;
      const auto sum = V::shift_left(s[row][v], shift);
      V::store_sums(to, Fresh ? sum : V::add(V::load_sums(to), sum));
    });
  });
}

template <class V, int Form, int Rows, bool Fresh>
[[gnu::flatten]] void dot_tile(const uint8_t* weights, const uint8_t* activations, int64_t row_stride, int k,
                               uint32_t* sums, int shift) {
  with_stride<kRowStride>(row_stride, [=](auto stride) __attribute__((always_inline)) {
    dot_tile_strided<V, Form, Rows, Fresh>(weights, activations, stride, k, sums, shift);
  });
}

// ---- few rows ------------------------------------------------------------------------------------------------------
// With a row or two the weights are read once, from far away: they are unpacked in registers, on their way into the
// products, and not stored. A sum takes part in a product every few cycles only, so each output has several, its chains.
template <class V, int Bits, int Row>
inline typename V::Bytes weights_of_step(const uint8_t* packed, int vector) {
  if constexpr (Bits == 8)
    return V::load(packed + (Row * V::kVectors + vector) * V::kLanes * 4);
  else
    return unpack_row<V, Bits, Row>(packed, vector);
}

constexpr int kFewPrefetch = 2048;  // bytes ahead, of weights that come from far away

template <class V, int Form, int Bits, int Rows>
void dot_few(const uint8_t* weights, const uint8_t* activations, int64_t row_stride, int k, uint32_t* sums, int shift) {
  constexpr int chains = Rows * V::kVectors <= 2 ? 4 : Rows * V::kVectors <= 4 ? 2 : 1;
  constexpr int unit_bytes = V::kVectors * V::kLanes * 4 * Bits;
  typename V::Sums s[Rows][V::kVectors][chains];
  repeat<Rows>([&](auto row) {
    repeat<V::kVectors>([&](auto v) { repeat<chains>([&](auto c) { s[row][v][c] = V::zero(); }); });
  });

  const uint8_t* const end = activations + k;
  do {
    for (int line = 0; Rows <= 2 && line < unit_bytes; line += 64)
      __builtin_prefetch(weights + kFewPrefetch + line, 0, 3);
    repeat<8>([&](auto step) {
      constexpr int chain = step % chains;
      typename V::Bytes w[V::kVectors][1];
      repeat<V::kVectors>([&](auto v) { w[v][0] = weights_of_step<V, Bits, step>(weights, v); });
      repeat<Rows>([&](auto row) {
        const auto a = V::activations(activations + row * row_stride + 4 * step);
        repeat<V::kVectors>([&](auto v) { s[row][v][chain] = V::template dot<Form>(s[row][v][chain], w[v], a); });
      });
    });
    activations += kUnit;
    weights += unit_bytes;
  } while (activations != end);

  repeat<Rows>([&](auto row) {
    repeat<V::kVectors>([&](auto v) {
      repeat<chains - 1>([&](auto c) { s[row][v][0] = V::add(s[row][v][0], s[row][v][c + 1]); });
      uint32_t* to = sums + (row * V::kVectors + v) * V::kLanes;
      V::store_sums(to, V::add(V::load_sums(to), V::shift_left(s[row][v][0], shift)));
    });
  });
}

// ---- the family's table --------------------------------------------------------------------------------------------
// constexpr: a table that is filled at load time would run its tier's instructions on CPUs that lack them.
template <class V, int Form, int... Rows>
constexpr void fill_tiles(DotFamily& family, std::integer_sequence<int, Rows...>) {
  ((family.tile[Form][Rows + 1] = dot_tile<V, Form, Rows + 1, false>), ...);
  ((family.fresh[Form][Rows + 1] = dot_tile<V, Form, Rows + 1, true>), ...);
  family.tile_rows[Form] = V::kRows;
  family.step[Form] = 4 * V::kSteps;
}

// Whether weights of so many bits take a form with activations of some width.
template <class V>
constexpr bool takes_form(int form, int w_bits) {
  for (int a_bits = 1; a_bits <= 8; ++a_bits)
    if (V::form(w_bits, a_bits) == form) return true;
  return false;
}

template <class V, int Form, int Bits, int... Rows>
constexpr void fill_few(DotFamily& family, std::integer_sequence<int, Rows...>) {
  if constexpr (takes_form<V>(Form, Bits))
    ((family.few[Form][Bits][Rows + 1] = dot_few<V, V::few_form(Form), Bits, Rows + 1>), ...);
}
template <class V, int Form, int... Bits>
constexpr void fill_few_widths(DotFamily& family, std::integer_sequence<int, Bits...>) {
  (fill_few<V, Form, Bits + 1>(family, std::make_integer_sequence<int, V::kFewRows>()), ...);
}

template <class V, int Alpha, int... Bits>
constexpr void fill_unpack(DotFamily& family, std::integer_sequence<int, Bits...>) {
  ((family.unpack[Alpha - 1][Bits + 1] = unpack<V, Bits + 1, Alpha>), ...);
}

// One rate, or one a form.
template <class V>
constexpr int dot_rate(int form) {
  if constexpr (std::is_array_v<decltype(V::kRate)>)
    return V::kRate[form];
  else
    return V::kRate;
}

// All but the tiles.
template <class V, int... Forms>
constexpr DotFamily family_without_tiles(std::integer_sequence<int, Forms...>) {
  DotFamily family{};
  family.columns = V::kLanes * V::kVectors;
  family.signed_weights = V::kSignedWeights;
  ((family.rate[Forms] = dot_rate<V>(Forms)), ...);
  family.forms = V::kForms;
  family.form = V::form;
  family.form_name = V::form_name;
  fill_unpack<V, 1>(family, std::make_integer_sequence<int, 7>());  // 8 bits: packed is unpacked
  if constexpr (V::kSignedWeights) fill_unpack<V, 2>(family, std::make_integer_sequence<int, 7>());
  if constexpr (V::kFewRows > 0) (fill_few_widths<V, Forms>(family, std::make_integer_sequence<int, 8>()), ...);
  family.few_rows = V::kFewRows;
  return family;
}

template <class V, int... Forms>
constexpr DotFamily dot_family(std::integer_sequence<int, Forms...> forms) {
  DotFamily family = family_without_tiles<V>(forms);
  (fill_tiles<V, Forms>(family, std::make_integer_sequence<int, V::kRows>()), ...);
  return family;
}

template <class V>
constexpr DotFamily kDotFamily = dot_family<V>(std::make_integer_sequence<int, V::kForms>());

}  // namespace
}  // namespace soniq
