// AVX-512 and AMX for processors without them: a build that finds this file in front of the compiler's runs the kernels of
// avx512, avx512_vbmi and amx wherever AVX2 is (tests/test_avx512_emulated.py). Slow; for tests alone.
//
// Each intrinsic that these kernels use has a definition here, a plain loop over lanes, written from Intel's description of
// the operation. It stands in namespace soniq, where a kernel finds it before the compiler's own, which is in the global one;
// so do the types. An intrinsic that has no definition here is the compiler's: it does not take these types, its instruction
// set is not enabled, and the build stops.
//
//   a new intrinsic   its definition below, under the name and with the parameters that Intel gives it;
//                     a line in check.cpp, which compares it with the processor's where there is one
#pragma once

#include_next <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

// Some compilers have macros for those that take a constant.
#undef _mm512_cmp_ps_mask
#undef _mm512_extracti64x4_epi64
#undef _mm512_permutexvar_epi8
#undef _mm512_permutexvar_epi32
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_slli_epi64
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _mm512_ternarylogic_epi32
#undef _tile_dpbusd
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero

// A call each: a kernel is then compiled in no time, and the loops are vectorised once.
#define EMULATED [[gnu::noinline, gnu::unused]] static

namespace soniq {
namespace {

// A register, and its lanes as whatever an operation takes them for.
struct Emulated512 {
  alignas(64) unsigned char bytes[64];

  template <class T>
  T lane(int i) const {
    T v;
    std::memcpy(&v, bytes + i * sizeof(T), sizeof(T));
    return v;
  }
  uint8_t u8(int i) const { return bytes[i]; }
  int8_t i8(int i) const { return int8_t(bytes[i]); }
  uint16_t u16(int i) const { return lane<uint16_t>(i); }
  int16_t i16(int i) const { return lane<int16_t>(i); }
  uint32_t u32(int i) const { return lane<uint32_t>(i); }
  int32_t i32(int i) const { return lane<int32_t>(i); }
  uint64_t u64(int i) const { return lane<uint64_t>(i); }
  float f32(int i) const { return lane<float>(i); }
};
struct __m512i : Emulated512 {};
struct __m512 : Emulated512 {};

// The register whose lane i is of(i), of which a narrower lane keeps the low bits.
template <class T, class Register = __m512i, class Of>
[[gnu::always_inline]] inline Register lanes(Of&& of) {
  constexpr int count = 64 / sizeof(T);
  T values[count];
  for (int i = 0; i < count; ++i) values[i] = T(of(i));
  Register v;
  std::memcpy(v.bytes, values, 64);
  return v;
}

template <class To, class From>
constexpr To saturated(From v) {
  constexpr From least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
  return To(v < least ? least : v > most ? most : v);
}

// ---- memory: a lane that the mask leaves out is not touched --------------------------------------------------------------
EMULATED __m512i _mm512_loadu_si512(const void* p) {
  __m512i v;
  std::memcpy(v.bytes, p, 64);
  return v;
}
EMULATED __m512 _mm512_loadu_ps(const void* p) {
  __m512 v;
  std::memcpy(v.bytes, p, 64);
  return v;
}
EMULATED void _mm512_storeu_si512(void* p, const __m512i& v) { std::memcpy(p, v.bytes, 64); }
EMULATED __m512i _mm512_maskz_loadu_epi8(__mmask64 mask, const void* p) {
  return lanes<uint8_t>([&](int i) { return mask >> i & 1 ? static_cast<const uint8_t*>(p)[i] : 0; });
}
EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  __m512 v{};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) std::memcpy(v.bytes + 4 * i, static_cast<const char*>(p) + 4 * i, 4);
  return v;
}
EMULATED void _mm512_mask_storeu_epi8(void* p, __mmask64 mask, const __m512i& v) {
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1) static_cast<uint8_t*>(p)[i] = v.u8(i);
}

// ---- constants -----------------------------------------------------------------------------------------------------------
EMULATED __m512i _mm512_setzero_si512() { return {}; }
EMULATED __m512 _mm512_setzero_ps() { return {}; }
EMULATED __m512i _mm512_set1_epi8(char a) {
  return lanes<char>([&](int) { return a; });
}
EMULATED __m512i _mm512_set1_epi16(short a) {
  return lanes<short>([&](int) { return a; });
}
EMULATED __m512i _mm512_set1_epi32(int a) {
  return lanes<int>([&](int) { return a; });
}
EMULATED __m512i _mm512_set1_epi64(long long a) {
  return lanes<long long>([&](int) { return a; });
}
EMULATED __m512 _mm512_set1_ps(float a) {
  return lanes<float, __m512>([&](int) { return a; });
}
EMULATED __m512i _mm512_set_epi64(long long e7, long long e6, long long e5, long long e4, long long e3, long long e2,
                                  long long e1, long long e0) {
  const long long e[8] = {e0, e1, e2, e3, e4, e5, e6, e7};
  return _mm512_loadu_si512(e);
}
EMULATED __m512i _mm512_setr_epi32(int e0, int e1, int e2, int e3, int e4, int e5, int e6, int e7, int e8, int e9,
                                   int e10, int e11, int e12, int e13, int e14, int e15) {
  const int e[16] = {e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14, e15};
  return _mm512_loadu_si512(e);
}

// ---- integers: sums wrap -------------------------------------------------------------------------------------------------
EMULATED __m512i _mm512_add_epi8(const __m512i& a, const __m512i& b) {
  return lanes<uint8_t>([&](int i) { return a.u8(i) + b.u8(i); });
}
EMULATED __m512i _mm512_add_epi16(const __m512i& a, const __m512i& b) {
  return lanes<uint16_t>([&](int i) { return a.u16(i) + b.u16(i); });
}
EMULATED __m512i _mm512_add_epi32(const __m512i& a, const __m512i& b) {
  return lanes<uint32_t>([&](int i) { return a.u32(i) + b.u32(i); });
}
EMULATED __m512i _mm512_add_epi64(const __m512i& a, const __m512i& b) {
  return lanes<uint64_t>([&](int i) { return a.u64(i) + b.u64(i); });
}
EMULATED __m512i _mm512_sub_epi32(const __m512i& a, const __m512i& b) {
  return lanes<uint32_t>([&](int i) { return a.u32(i) - b.u32(i); });
}
EMULATED __m512i _mm512_sub_epi16(const __m512i& a, const __m512i& b) {
  return lanes<uint16_t>([&](int i) { return a.u16(i) - b.u16(i); });
}
EMULATED long long _mm512_reduce_add_epi64(const __m512i& a) {
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += a.u64(i);
  return static_cast<long long>(sum);
}
// A lane sums the absolute differences of its eight bytes.
EMULATED __m512i _mm512_sad_epu8(const __m512i& a, const __m512i& b) {
  return lanes<uint64_t>([&](int i) {
    int sum = 0;
    for (int j = 8 * i; j < 8 * i + 8; ++j) sum += a.u8(j) < b.u8(j) ? b.u8(j) - a.u8(j) : a.u8(j) - b.u8(j);
    return sum;
  });
}
// Unsigned bytes of a by signed bytes of b, four products to a lane.
EMULATED __m512i _mm512_dpbusd_epi32(const __m512i& sums, const __m512i& a, const __m512i& b) {
  return lanes<uint32_t>([&](int i) {
    const int j = 4 * i;
    return sums.u32(i) + uint32_t(a.u8(j) * b.i8(j) + a.u8(j + 1) * b.i8(j + 1) + a.u8(j + 2) * b.i8(j + 2) +
                                  a.u8(j + 3) * b.i8(j + 3));
  });
}
// Signed words, two products to a lane.
EMULATED __m512i _mm512_dpwssd_epi32(const __m512i& sums, const __m512i& a, const __m512i& b) {
  return lanes<uint32_t>([&](int i) {
    const int j = 2 * i;
    return sums.u32(i) + uint32_t(a.i16(j) * b.i16(j)) + uint32_t(a.i16(j + 1) * b.i16(j + 1));
  });
}

// ---- bits ----------------------------------------------------------------------------------------------------------------
EMULATED __m512i _mm512_and_si512(const __m512i& a, const __m512i& b) {
  return lanes<uint64_t>([&](int i) { return a.u64(i) & b.u64(i); });
}
EMULATED __m512i _mm512_or_si512(const __m512i& a, const __m512i& b) {
  return lanes<uint64_t>([&](int i) { return a.u64(i) | b.u64(i); });
}
// Every bit is looked up in the truth table, at 4 a + 2 b + c.
EMULATED __m512i _mm512_ternarylogic_epi32(const __m512i& a, const __m512i& b, const __m512i& c, int table) {
  return lanes<uint64_t>([&](int i) {
    uint64_t bits = 0;
    for (int at = 0; at < 8; ++at)
      if (table >> at & 1)
        bits |= (at & 4 ? a.u64(i) : ~a.u64(i)) & (at & 2 ? b.u64(i) : ~b.u64(i)) & (at & 1 ? c.u64(i) : ~c.u64(i));
    return bits;
  });
}
// A shift by all bits of a lane, or by more, leaves 0.
EMULATED __m512i _mm512_slli_epi16(const __m512i& a, unsigned by) {
  return lanes<uint16_t>([&](int i) { return by < 16 ? a.u16(i) << by : 0; });
}
EMULATED __m512i _mm512_srli_epi16(const __m512i& a, unsigned by) {
  return lanes<uint16_t>([&](int i) { return by < 16 ? a.u16(i) >> by : 0; });
}
EMULATED __m512i _mm512_srli_epi32(const __m512i& a, unsigned by) {
  return lanes<uint32_t>([&](int i) { return by < 32 ? a.u32(i) >> by : 0; });
}
EMULATED __m512i _mm512_slli_epi32(const __m512i& a, unsigned by) {
  return lanes<uint32_t>([&](int i) { return by < 32 ? a.u32(i) << by : 0; });
}
EMULATED __m512i _mm512_slli_epi64(const __m512i& a, unsigned by) {
  return lanes<uint64_t>([&](int i) { return by < 64 ? a.u64(i) << by : 0; });
}
// All lanes by the lower half of `count`.
EMULATED __m512i _mm512_sll_epi32(const __m512i& a, __m128i count) {
  const auto by = uint64_t(_mm_cvtsi128_si64(count));
  return lanes<uint32_t>([&](int i) { return by < 32 ? a.u32(i) << by : 0; });
}
// Each lane by its own.
EMULATED __m512i _mm512_sllv_epi32(const __m512i& a, const __m512i& by) {
  return lanes<uint32_t>([&](int i) { return by.u32(i) < 32 ? a.u32(i) << by.u32(i) : 0; });
}
EMULATED __m512i _mm512_popcnt_epi64(const __m512i& a) {
  return lanes<uint64_t>([&](int i) { return __builtin_popcountll(a.u64(i)); });
}
EMULATED __mmask64 _mm512_test_epi8_mask(const __m512i& a, const __m512i& b) {
  uint64_t mask = 0;
  for (int i = 0; i < 64; ++i) mask |= uint64_t((a.u8(i) & b.u8(i)) != 0) << i;
  return mask;
}

// ---- lanes from other places ---------------------------------------------------------------------------------------------
// Any byte of the register, by the low six bits of an index.
EMULATED __m512i _mm512_permutexvar_epi8(const __m512i& index, const __m512i& a) {
  return lanes<uint8_t>([&](int i) { return a.u8(index.u8(i) & 63); });
}
EMULATED __m512i _mm512_maskz_permutexvar_epi8(__mmask64 mask, const __m512i& index, const __m512i& a) {
  return lanes<uint8_t>([&](int i) { return mask >> i & 1 ? a.u8(index.u8(i) & 63) : 0; });
}
EMULATED __m512i _mm512_permutexvar_epi32(const __m512i& index, const __m512i& a) {
  return lanes<uint32_t>([&](int i) { return a.u32(index.u32(i) & 15); });
}
// A byte of the same 128 bits, by the low four bits of an index; 0 where the highest one is set.
EMULATED __m512i _mm512_maskz_shuffle_epi8(__mmask64 mask, const __m512i& a, const __m512i& index) {
  return lanes<uint8_t>(
      [&](int i) { return (mask >> i & 1) && index.i8(i) >= 0 ? a.u8(i / 16 * 16 + (index.u8(i) & 15)) : 0; });
}
// The bytes whose bit is set, closed up; 0 behind them.
EMULATED __m512i _mm512_maskz_compress_epi8(__mmask64 mask, const __m512i& a) {
  __m512i v{};
  for (int i = 0, to = 0; i < 64; ++i)
    if (mask >> i & 1) v.bytes[to++] = a.u8(i);
  return v;
}
// Within each 128 bits, lanes of the lower or upper half of a and b in turn.
template <class T>
__m512i unpacked(const __m512i& a, const __m512i& b, bool upper) {
  constexpr int n = 16 / sizeof(T);
  return lanes<T>([&](int i) { return (i % 2 ? b : a).template lane<T>(i / n * n + (upper ? n / 2 : 0) + i % n / 2); });
}
EMULATED __m512i _mm512_unpacklo_epi8(const __m512i& a, const __m512i& b) { return unpacked<uint8_t>(a, b, false); }
EMULATED __m512i _mm512_unpackhi_epi8(const __m512i& a, const __m512i& b) { return unpacked<uint8_t>(a, b, true); }
EMULATED __m512i _mm512_unpacklo_epi16(const __m512i& a, const __m512i& b) { return unpacked<uint16_t>(a, b, false); }
EMULATED __m512i _mm512_unpackhi_epi16(const __m512i& a, const __m512i& b) { return unpacked<uint16_t>(a, b, true); }
EMULATED __m512i _mm512_unpacklo_epi64(const __m512i& a, const __m512i& b) { return unpacked<uint64_t>(a, b, false); }
EMULATED __m512i _mm512_unpackhi_epi64(const __m512i& a, const __m512i& b) { return unpacked<uint64_t>(a, b, true); }
// Within each 128 bits, all lanes of a, then all of b: signed, saturated to half their width.
template <class To, class From>
__m512i packed(const __m512i& a, const __m512i& b) {
  constexpr int n = 16 / sizeof(From);
  return lanes<To>(
      [&](int i) { return saturated<To>((i / n % 2 ? b : a).template lane<From>(i / (2 * n) * n + i % n)); });
}
EMULATED __m512i _mm512_packs_epi32(const __m512i& a, const __m512i& b) { return packed<int16_t, int32_t>(a, b); }
EMULATED __m512i _mm512_packus_epi16(const __m512i& a, const __m512i& b) { return packed<uint8_t, int16_t>(a, b); }
EMULATED __m512i _mm512_broadcast_i32x4(__m128i a) {
  __m512i v;
  for (int i = 0; i < 4; ++i) std::memcpy(v.bytes + 16 * i, &a, 16);
  return v;
}
// The upper half is undefined: no result may depend on it, and here it is not even zeros.
EMULATED __m512i _mm512_castsi256_si512(__m256i a) {
  __m512i v = _mm512_set1_epi8(char(0xa5));
  std::memcpy(v.bytes, &a, 32);
  return v;
}
// Four lanes from number 4 * half on.
EMULATED __m256i _mm512_extracti64x4_epi64(const __m512i& a, int half) {
  __m256i v;
  std::memcpy(&v, a.bytes + 32 * (half & 1), 32);
  return v;
}
EMULATED __m256i _mm512_castsi512_si256(const __m512i& a) { return _mm512_extracti64x4_epi64(a, 0); }
EMULATED __m256i _mm512_cvtepi64_epi32(const __m512i& a) {
  uint32_t low[8];
  for (int i = 0; i < 8; ++i) low[i] = uint32_t(a.u64(i));
  __m256i v;
  std::memcpy(&v, low, 32);
  return v;
}

// ---- floats --------------------------------------------------------------------------------------------------------------
EMULATED __m512 _mm512_add_ps(const __m512& a, const __m512& b) {
  return lanes<float, __m512>([&](int i) { return a.f32(i) + b.f32(i); });
}
EMULATED __m512 _mm512_mul_ps(const __m512& a, const __m512& b) {
  return lanes<float, __m512>([&](int i) { return a.f32(i) * b.f32(i); });
}
// Rounded once.
EMULATED __m512 _mm512_fmadd_ps(const __m512& a, const __m512& b, const __m512& c) {
  return lanes<float, __m512>([&](int i) { return __builtin_fmaf(a.f32(i), b.f32(i), c.f32(i)); });
}
// The second where one of them is NaN or both are zeros.
EMULATED __m512 _mm512_min_ps(const __m512& a, const __m512& b) {
  return lanes<float, __m512>([&](int i) { return a.f32(i) < b.f32(i) ? a.f32(i) : b.f32(i); });
}
// Towards zero. What an int32 cannot hold, NaN with it, becomes the most negative one.
EMULATED __m512i _mm512_cvttps_epi32(const __m512& a) {
  return lanes<int32_t>([&](int i) {
    const float v = a.f32(i);
    return v >= -0x1p31f && v < 0x1p31f ? int32_t(v) : std::numeric_limits<int32_t>::min();
  });
}
// Predicates 0 to 15 in the order of their numbers: what each says of less, equal, greater and unordered. 16 to 31 say the
// same and differ in the exceptions that they raise.
EMULATED __mmask16 _mm512_cmp_ps_mask(const __m512& a, const __m512& b, int predicate) {
  static const char* const kSays[16] = {"0100", "1000", "1100", "0001", "1011", "0111", "0011", "1110",
                                        "0101", "1001", "1101", "0000", "1010", "0110", "0010", "1111"};
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) {
    const float x = a.f32(i), y = b.f32(i);
    mask |= unsigned(kSays[predicate & 15][x < y ? 0 : x == y ? 1 : x > y ? 2 : 3] == '1') << i;
  }
  return __mmask16(mask);
}

// ---- tiles ---------------------------------------------------------------------------------------------------------------
// A thread's eight registers, and how many rows and bytes of each are in use; more than that is refused by the processor.
struct EmulatedTiles {
  int rows[8], row_bytes[8];
  uint8_t bytes[8][16][64];
};
inline EmulatedTiles& tiles() {
  static thread_local EmulatedTiles all{};
  return all;
}
inline void require(bool holds) {
  if (!holds) __builtin_trap();
}
EMULATED void _tile_release() { tiles() = {}; }
EMULATED void _tile_loadconfig(const void* configuration) {
  const auto* bytes = static_cast<const uint8_t*>(configuration);
  require(bytes[0] == 1 && bytes[1] == 0);
  _tile_release();
  for (int tile = 0; tile < 8; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
    tiles().row_bytes[tile] = row_bytes, tiles().rows[tile] = bytes[48 + tile];
    require(row_bytes <= 64 && bytes[48 + tile] <= 16);
  }
}
EMULATED void _tile_zero(int tile) {
  require(tiles().rows[tile] > 0);
  std::memset(tiles().bytes[tile], 0, sizeof tiles().bytes[tile]);
}
EMULATED void _tile_loadd(int tile, const void* from, long stride) {
  _tile_zero(tile);
  for (int row = 0; row < tiles().rows[tile]; ++row)
    std::memcpy(tiles().bytes[tile][row], static_cast<const uint8_t*>(from) + row * stride, tiles().row_bytes[tile]);
}
EMULATED void _tile_stored(int tile, void* to, long stride) {
  require(tiles().rows[tile] > 0);
  for (int row = 0; row < tiles().rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles().bytes[tile][row], tiles().row_bytes[tile]);
}
// Unsigned bytes of a by signed bytes of b, of which a row holds four codes of every column.
EMULATED void _tile_dpbusd(int sums, int a, int b) {
  const EmulatedTiles& t = tiles();
  require(t.rows[sums] > 0 && t.rows[sums] == t.rows[a] && t.row_bytes[sums] == t.row_bytes[b]);
  require(t.rows[b] * 4 == t.row_bytes[a]);
  for (int row = 0; row < t.rows[sums]; ++row)
    for (int step = 0; step < t.rows[b]; ++step)
      for (int column = 0; column < t.row_bytes[sums] / 4; ++column) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i) sum += t.bytes[a][row][4 * step + i] * int8_t(t.bytes[b][step][4 * column + i]);
        uint32_t total;
        uint8_t* const at = tiles().bytes[sums][row] + 4 * column;
        std::memcpy(&total, at, 4);
        total += uint32_t(sum);
        std::memcpy(at, &total, 4);
      }
}

}  // namespace
}  // namespace soniq

#undef EMULATED

// Kernels hold values in registers by empty asm statements, and without AVX-512 there is no register of 512 bits.
#define asm(...) static_assert(true)
