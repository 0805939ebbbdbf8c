// Runs the CUDA sources of triton_kernels/ on a CPU, exactly: every GPU thread is a fiber with a stack of its own, and gives
// way only where threads wait for each other. So a warp may run as far ahead as the barriers let it, in an order that the
// test chooses; copies to shared memory arrive as late as the waits allow; a lane that does not come to a warp's
// instruction, a load outside of what was passed, or a write past the shared memory ends the launch with a message.
//
// The matrix instruction follows the fragment layout of the PTX manual (mma.m16n8k256): with g = lane / 4, t = lane % 4,
//   a0: row g, columns 32 t ..   a1: row g + 8   a2: row g, columns 128 + 32 t ..   a3: row g + 8, the same
//   b0: rows 32 t .., column g   b1: rows 128 + 32 t ..    sums: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

struct uint4 {
  u32 x, y, z, w;
};

struct Dim {
  u32 x, y, z;
};

#define SONIQ_DEVICE inline
#define SONIQ_KERNEL static
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulator {

struct MmaOperands {
  u32* sums;
  u32 a[4], b[2];
};

extern Dim block_index, grid_size;
extern uint4* shared;

u32 thread_index();
void barrier();
void require_readable(const void* p, size_t bytes);
void start_copy(uint4* to, const uint4* from);
void commit_copies();
void wait_for_copies(size_t pending);
u32 ballot(u32 bit);
u32 shuffle_xor(u32 value, int mask);
void mma(const MmaOperands& operands);

}  // namespace emulator

#define blockIdx emulator::block_index
#define gridDim emulator::grid_size

inline u32 thread() { return emulator::thread_index(); }
inline u32 lane() { return thread() & 31; }
inline u32 warp() { return thread() >> 5; }
inline void* shared_memory() { return emulator::shared; }
inline void block_barrier() { emulator::barrier(); }

inline void mma_and_popc(u32 (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  emulator::mma({sums, {a0, a1, a2, a3}, {b0, b1}});
}
inline u32 ballot(u32 bit) { return emulator::ballot(bit); }
inline u32 shuffle_xor(u32 value, int mask) { return emulator::shuffle_xor(value, mask); }

inline uint4 load_again(const uint4* p) {
  emulator::require_readable(p, sizeof *p);
  return *p;
}
inline uint4 load_once(const uint4* p) { return load_again(p); }
inline void copy_async(uint4* to, const uint4* from) { emulator::start_copy(to, from); }
inline void copy_commit() { emulator::commit_copies(); }
template <int kPending>
inline void copy_wait() {
  emulator::wait_for_copies(kPending);
}

inline u32 fetch_add(u32* p, u32 value) {
  emulator::require_readable(p, sizeof *p);
  const u32 before = *p;
  *p += value;
  return before;
}
inline void add_atomic(u32* p, u32 value) { fetch_add(p, value); }
inline u32 load_volatile(const u32* p) { return *p; }
inline void fence() {}

inline float as_float(u32 bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline u32 as_bits(float value) {
  u32 bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float divide(float a, float b) { return a / b; }
inline float if_greater(float a, float b, float chosen, float other) { return a > b ? chosen : other; }
inline float from_int(u32 acc) { return float(int32_t(acc)); }
inline u32 truncate(float value) { return u32(value); }
inline float from_half(u16 bits) {
  const u32 exponent = bits >> 10 & 31, fraction = bits & 1023, sign = u32(bits >> 15) << 31;
  if (exponent == 31) return as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return std::ldexp(float(fraction), -24) * (sign ? -1.0f : 1.0f);
  return as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
