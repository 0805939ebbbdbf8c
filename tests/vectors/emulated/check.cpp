// Are the definitions of immintrin.h what the processor does? Random and extreme operands for each of them, beside the
// processor's own instruction: all of them in a build for AVX-512, and in a build for AVX2 those that work inside 128 bits,
// whose two halves are instructions of AVX2.
//
// Prints the first difference of each, and how many comparisons there were; exits with 0 if nothing differs.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <type_traits>
#include <utility>

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>

namespace real {  // before the definitions take the place of these macros
void zero_sums() { _tile_zero(0); }
void load_sums(const void* p, long stride) { _tile_loadd(0, p, stride); }
void load_left(const void* p, long stride) { _tile_loadd(4, p, stride); }
void load_right(const void* p, long stride) { _tile_loadd(6, p, stride); }
void multiply() { _tile_dpbusd(0, 4, 6); }
void store_sums(void* p, long stride) { _tile_stored(0, p, stride); }
}  // namespace real
#endif

#include "emulated/immintrin.h"

namespace {

// ---- operands ------------------------------------------------------------------------------------------------------------
uint32_t random32() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(state >> 32);
}
uint64_t random64() { return uint64_t(random32()) << 32 | random32(); }

// Ends of the ranges of bytes, words, integers and floats; NaN, infinities, denormals; floats at the ends of int32.
uint32_t extreme() {
  static const uint32_t kBits[] = {0,          ~0u,        0x80808080, 0x7f7f7f7f, 0x80008000, 0x7fff7fff, 0x80000000,
                                   0x7fffffff, 0x00ff00ff, 0xff00ff00, 0x0000ffff, 0xffff8000, 0x00007fff, 0x00008000,
                                   0xffff7fff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f7fffff, 0xff7fffff, 0x00800000,
                                   0x007fffff, 0x3f800000, 0xbf800000, 0x4f000000, 0xcf000000, 0x4effffff, 0xcf000001,
                                   0x437f0000, 0x3effffff, 0x33800000, 0x3f7fffff};
  return kBits[random32() % (sizeof kBits / sizeof *kBits)];
}
float moderate() { return float(int32_t(random32())) / float(1 << (random32() % 32)); }

// One register, as this file's, the processor's or half of the processor's.
struct Operand {
  alignas(64) uint32_t lane[16];
  template <class T>
  T first(int offset = 0) const {
    T v;
    std::memcpy(static_cast<void*>(&v), reinterpret_cast<const char*>(lane) + offset, sizeof v);
    return v;
  }
  template <class T, std::enable_if_t<sizeof(T) == 64, int> = 0>
  operator T() const {
    return first<T>();
  }
};
struct Half {
  const Operand& whole;
  int offset;
  template <class T>
  operator T() const {
    return whole.first<T>(offset);
  }
};

Operand operand() {
  Operand o;
  const int style = random32() % 4;
  for (uint32_t& lane : o.lane) {
    const float f = moderate();
    lane = random32();
    if (style == 0 || (style == 1 && random32() % 2)) lane = extreme();
    if (style == 2) std::memcpy(&lane, &f, 4);
  }
  return o;
}

// Half of an argument: a register's half, or a number that both halves take.
Half half_of(const Operand& o, int offset) { return {o, offset}; }
template <class T>
T half_of(T number, int) {
  return number;
}

// ---- comparison ----------------------------------------------------------------------------------------------------------
std::set<std::string> wrong, compared;
long comparisons = 0;

// Floats as bits, but all NaNs are one: which of two an operation hands on depends on the order of its operands.
template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}
bool same_floats(const float* a, const float* b) {
  for (int i = 0; i < 16; ++i)
    if (!(a[i] != a[i] && b[i] != b[i]) && !same_bits(a[i], b[i])) return false;
  return true;
}
template <class A, class B>
bool same(const A& emulated, const B& real) {
  static_assert(sizeof emulated == sizeof real);
  if constexpr (std::is_same_v<A, soniq::__m512>) {
    float a[16], b[16];
    std::memcpy(a, &emulated, 64), std::memcpy(b, &real, 64);
    return same_floats(a, b);
  } else {
    return std::memcmp(&emulated, &real, sizeof emulated) == 0;
  }
}
template <class A, class B>
void compare(const char* name, const A& emulated, const B& real) {
  ++comparisons;
  compared.insert(name);
  if (!same(emulated, real) && wrong.insert(name).second) std::printf("%s differs\n", name);
}

template <class Emulated, class Real, class... Arguments>
void compare_halves(const char* name, Emulated emulated, Real real, const Arguments&... arguments) {
  const auto result = emulated(arguments...);
  const auto lower = real(half_of(arguments, 0)...), upper = real(half_of(arguments, 32)...);
  Operand both;
  std::memcpy(both.lane, &lower, 32), std::memcpy(both.lane + 8, &upper, 32);
  compare(name, result, both);
}

template <int... I, class Body>
void for_constants(std::integer_sequence<int, I...>, Body&& body) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int Count, class Body>
void for_constants(Body&& body) {
  for_constants(std::make_integer_sequence<int, Count>(), body);
}

// WHOLE: against the instruction of that name. HALVES: where there is no AVX-512, against two of a half.
#define CALL(function) [&](const auto&... x) { return function(x...); }
#if defined(__AVX512VBMI__)
#define WHOLE(name, ...) compare(#name, soniq::name(__VA_ARGS__), ::name(__VA_ARGS__))
#define HALVES(name, half, ...) WHOLE(name, __VA_ARGS__)
#else
#define WHOLE(name, ...)
#define HALVES(name, half, ...) compare_halves(#name, CALL(soniq::name), CALL(half), ##__VA_ARGS__)
#endif

// What AVX2 has under another name.
__m256i words_to_sums(__m256i sums, __m256i a, __m256i b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }
__m256i count_bits(__m256i a) {
  const auto count = [](long long lane) { return static_cast<long long>(_mm_popcnt_u64(uint64_t(lane))); };
  return _mm256_setr_epi64x(count(a[0]), count(a[1]), count(a[2]), count(a[3]));
}

__m256i all_bytes_shuffled(uint64_t, __m256i a, __m256i index) { return _mm256_shuffle_epi8(a, index); }
#if defined(__AVX512VBMI__)
template <class T>
__m256i lower(const T& v) {
  __m256i half;
  std::memcpy(&half, &v, 32);
  return half;
}
#endif

// ---- every definition ----------------------------------------------------------------------------------------------------
void check_memory(const Operand& a, uint64_t mask) {
  WHOLE(_mm512_loadu_si512, a.lane);
  WHOLE(_mm512_loadu_ps, a.lane);
  WHOLE(_mm512_maskz_loadu_epi8, mask, a.lane);
  WHOLE(_mm512_maskz_loadu_ps, __mmask16(mask), a.lane);
#if defined(__AVX512VBMI__)
  Operand emulated = operand(), real = emulated;
  soniq::_mm512_storeu_si512(emulated.lane, a), ::_mm512_storeu_si512(real.lane, a);
  compare("_mm512_storeu_si512", emulated, real);
  real = emulated = operand();
  soniq::_mm512_mask_storeu_epi8(emulated.lane, mask, a), ::_mm512_mask_storeu_epi8(real.lane, mask, a);
  compare("_mm512_mask_storeu_epi8", emulated, real);
#endif
}

void check_constants(const Operand& a) {
  const uint32_t* const n = a.lane;
  const float f = moderate();
  const auto pair = [&](int i) { return static_cast<long long>(uint64_t(n[i]) << 32 | n[i + 1]); };
  HALVES(_mm512_setzero_si512, _mm256_setzero_si256);
  HALVES(_mm512_setzero_ps, _mm256_setzero_ps);
  HALVES(_mm512_set1_epi8, _mm256_set1_epi8, char(n[0]));
  HALVES(_mm512_set1_epi16, _mm256_set1_epi16, short(n[0]));
  HALVES(_mm512_set1_epi32, _mm256_set1_epi32, int(n[0]));
  HALVES(_mm512_set1_epi64, _mm256_set1_epi64x, pair(0));
  HALVES(_mm512_set1_ps, _mm256_set1_ps, f);
  WHOLE(_mm512_set_epi64, pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7));
  WHOLE(_mm512_setr_epi32, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13],
        n[14], n[15]);
}

void check_integers(const Operand& a, const Operand& b, const Operand& c) {
  HALVES(_mm512_add_epi8, _mm256_add_epi8, a, b);
  HALVES(_mm512_add_epi16, _mm256_add_epi16, a, b);
  HALVES(_mm512_add_epi32, _mm256_add_epi32, a, b);
  HALVES(_mm512_add_epi64, _mm256_add_epi64, a, b);
  HALVES(_mm512_sub_epi16, _mm256_sub_epi16, a, b);
  HALVES(_mm512_sub_epi32, _mm256_sub_epi32, a, b);
  HALVES(_mm512_sad_epu8, _mm256_sad_epu8, a, b);
  HALVES(_mm512_dpwssd_epi32, words_to_sums, a, b, c);
  WHOLE(_mm512_dpbusd_epi32, a, b, c);
  WHOLE(_mm512_reduce_add_epi64, a);
}

void check_bits(const Operand& a, const Operand& b, const Operand& c) {
  const __m128i count = _mm_set_epi64x(int64_t(random64()), random32() % 4 ? random32() % 40 : int64_t(random64()));
  HALVES(_mm512_and_si512, _mm256_and_si256, a, b);
  HALVES(_mm512_or_si512, _mm256_or_si256, a, b);
  HALVES(_mm512_sll_epi32, _mm256_sll_epi32, a, count);
  HALVES(_mm512_sllv_epi32, _mm256_sllv_epi32, a, b);
  HALVES(_mm512_popcnt_epi64, count_bits, a);
  WHOLE(_mm512_test_epi8_mask, a, b);
  for_constants<40>([&](auto by) {
    HALVES(_mm512_slli_epi16, _mm256_slli_epi16, a, by());
    HALVES(_mm512_slli_epi64, _mm256_slli_epi64, a, by());
    HALVES(_mm512_srli_epi16, _mm256_srli_epi16, a, by());
    HALVES(_mm512_slli_epi32, _mm256_slli_epi32, a, by());
    HALVES(_mm512_srli_epi32, _mm256_srli_epi32, a, by());
  });
  for_constants<256>([&](auto table) { WHOLE(_mm512_ternarylogic_epi32, a, b, c, table()); });
}

void check_moves(const Operand& a, const Operand& b, uint64_t mask) {
  HALVES(_mm512_unpacklo_epi8, _mm256_unpacklo_epi8, a, b);
  HALVES(_mm512_unpackhi_epi8, _mm256_unpackhi_epi8, a, b);
  HALVES(_mm512_unpacklo_epi16, _mm256_unpacklo_epi16, a, b);
  HALVES(_mm512_unpackhi_epi16, _mm256_unpackhi_epi16, a, b);
  HALVES(_mm512_unpacklo_epi64, _mm256_unpacklo_epi64, a, b);
  HALVES(_mm512_unpackhi_epi64, _mm256_unpackhi_epi64, a, b);
  HALVES(_mm512_packs_epi32, _mm256_packs_epi32, a, b);
  HALVES(_mm512_packus_epi16, _mm256_packus_epi16, a, b);
  HALVES(_mm512_maskz_shuffle_epi8, all_bytes_shuffled, ~uint64_t(0), a, b);
  WHOLE(_mm512_maskz_shuffle_epi8, mask, a, b);
  WHOLE(_mm512_permutexvar_epi8, a, b);
  WHOLE(_mm512_permutexvar_epi32, a, b);
  WHOLE(_mm512_maskz_permutexvar_epi8, mask, a, b);
  WHOLE(_mm512_maskz_compress_epi8, mask, a);
  WHOLE(_mm512_cvtepi64_epi32, a);
  WHOLE(_mm512_castsi512_si256, a);
  WHOLE(_mm512_extracti64x4_epi64, a, 0);
  WHOLE(_mm512_extracti64x4_epi64, a, 1);
  WHOLE(_mm512_broadcast_i32x4, a.first<__m128i>());
#if defined(__AVX512VBMI__)
  const auto half = a.first<__m256i>();
  compare("_mm512_castsi256_si512", lower(soniq::_mm512_castsi256_si512(half)), lower(::_mm512_castsi256_si512(half)));
#endif
}

void check_floats(const Operand& a, const Operand& b, const Operand& c) {
  HALVES(_mm512_add_ps, _mm256_add_ps, a, b);
  HALVES(_mm512_mul_ps, _mm256_mul_ps, a, b);
  HALVES(_mm512_min_ps, _mm256_min_ps, a, b);
  HALVES(_mm512_fmadd_ps, _mm256_fmadd_ps, a, b, c);
  HALVES(_mm512_cvttps_epi32, _mm256_cvttps_epi32, a);
  for_constants<32>([&](auto predicate) {
    const __mmask16 emulated = soniq::_mm512_cmp_ps_mask(a, b, predicate());
#if defined(__AVX512VBMI__)
    const __mmask16 real = ::_mm512_cmp_ps_mask(a, b, predicate());
#else
    const auto half = [&](int at) { return _mm256_movemask_ps(_mm256_cmp_ps(Half{a, at}, Half{b, at}, predicate())); };
    const auto real = __mmask16(half(0) | half(32) << 8);
#endif
    compare("_mm512_cmp_ps_mask", emulated, real);
  });
}

// Sums [rows][16] of bytes [rows][64] by [16][64], from what is there and from 0; other tiles are not looked at.
void check_tiles() {
#if defined(__AMX_INT8__)
  constexpr int kStride = 80;
  alignas(64) uint8_t configuration[64] = {1}, left[16 * kStride], right[16 * kStride];
  uint8_t emulated[16 * kStride] = {}, processed[16 * kStride];
  const int rows = 1 + int(random32() % 16);
  for (int tile = 0; tile < 8; ++tile)
    configuration[16 + 2 * tile] = 64, configuration[48 + tile] = uint8_t(tile < 6 ? rows : 16);
  for (int i = 0; i < 16 * kStride; i += 64) {
    const Operand a = operand(), b = operand(), c = operand();
    const int bytes = std::min(64, 16 * kStride - i);
    std::memcpy(left + i, &a, bytes), std::memcpy(right + i, &b, bytes), std::memcpy(emulated + i, &c, bytes);
  }
  std::memcpy(processed, emulated, sizeof emulated);
  ::_tile_loadconfig(configuration), soniq::_tile_loadconfig(configuration);
  for (int from_zero = 0; from_zero < 2; ++from_zero) {
    real::load_sums(processed, kStride), soniq::_tile_loadd(0, emulated, kStride);
    if (from_zero) real::zero_sums(), soniq::_tile_zero(0);
    real::load_left(left, kStride), soniq::_tile_loadd(4, left, kStride);
    real::load_right(right, kStride), soniq::_tile_loadd(6, right, kStride);
    real::multiply(), soniq::_tile_dpbusd(0, 4, 6);
    real::store_sums(processed, kStride), soniq::_tile_stored(0, emulated, kStride);
    for (const char* name : {"_tile_loadconfig", "_tile_loadd", "_tile_zero", "_tile_dpbusd", "_tile_stored"})
      compare(name, *reinterpret_cast<const uint8_t (*)[sizeof emulated]>(&emulated),
              *reinterpret_cast<const uint8_t (*)[sizeof emulated]>(&processed));
  }
  ::_tile_release(), soniq::_tile_release();
#endif
}

bool may_use_tiles() {
#if defined(__AMX_INT8__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, tile data
#else
  return false;
#endif
}

}  // namespace

int main() {
  const bool tiles = may_use_tiles();
  for (int round = 0; round < 20000; ++round) {
    const Operand a = operand(), b = operand(), c = operand();
    const uint64_t mask = random32() % 8 ? random64() : random32() % 2 ? ~uint64_t(0) : 0;
    check_memory(a, mask);
    check_constants(a);
    check_integers(a, b, c);
    check_bits(a, b, c);
    check_moves(a, b, mask);
    check_floats(a, b, c);
    if (tiles) check_tiles();
  }
  std::printf("%zu definitions, %ld comparisons, %zu differ\n", compared.size(), comparisons, wrong.size());
  return wrong.empty() ? 0 : 1;
}
