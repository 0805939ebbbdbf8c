// One instruction each. Float steps are PTX by name: a compiler that is told -ftz=true (CuPy always tells so) flushes
// denormals in every float operation of C++, __fmul_rn and comparisons included, and fuses what looks like a product and a
// sum; it leaves named instructions alone. tests/cuda_emulator/emulator.h gives the same names a meaning on a CPU.
#pragma once

#ifdef SONIQ_EMULATOR
#include "emulator.h"
#else

#define SONIQ_DEVICE __device__ __forceinline__
#define SONIQ_KERNEL extern "C" __global__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

SONIQ_DEVICE u32 thread() { return threadIdx.x; }
SONIQ_DEVICE u32 lane() { return threadIdx.x & 31; }
SONIQ_DEVICE u32 warp() { return threadIdx.x >> 5; }

SONIQ_DEVICE void* shared_memory() {
  extern __shared__ uint4 dynamic_shared[];
  return dynamic_shared;
}

SONIQ_DEVICE void block_barrier() { __syncthreads(); }

// sums += counts of common bits of a 16 x 256 and a 256 x 8 matrix of bits.
SONIQ_DEVICE void mma_and_popc(u32 (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

SONIQ_DEVICE u32 ballot(u32 bit) { return __ballot_sync(0xffffffffu, bit); }
SONIQ_DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Weights are read once: they may not push what is read again out of L1.
SONIQ_DEVICE uint4 load_once(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}

SONIQ_DEVICE uint4 load_again(const uint4* p) { return __ldg(p); }

// 16 bytes from global to shared memory, past the registers; complete after the wait for their group.
SONIQ_DEVICE void copy_async(uint4* shared, const uint4* global) {
  const u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
SONIQ_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
SONIQ_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

SONIQ_DEVICE void add_atomic(u32* p, u32 value) { atomicAdd(p, value); }
SONIQ_DEVICE u32 fetch_add(u32* p, u32 value) { return atomicAdd(p, value); }
SONIQ_DEVICE u32 load_volatile(const u32* p) { return *reinterpret_cast<const volatile u32*>(p); }
SONIQ_DEVICE void fence() { __threadfence(); }

SONIQ_DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
SONIQ_DEVICE u32 as_bits(float value) { return __float_as_uint(value); }

SONIQ_DEVICE float mul(float a, float b) {
  float r;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
SONIQ_DEVICE float add(float a, float b) {
  float r;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
SONIQ_DEVICE float divide(float a, float b) {
  float r;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
// chosen if a > b, otherwise other; NaN compares false.
SONIQ_DEVICE float if_greater(float a, float b, float chosen, float other) {
  float r;
  asm("{.reg .pred p; setp.gt.f32 p, %1, %2; selp.f32 %0, %3, %4, p;}"
      : "=f"(r)
      : "f"(a), "f"(b), "f"(chosen), "f"(other));
  return r;
}
SONIQ_DEVICE float from_int(u32 acc) {
  float r;
  asm("cvt.rn.f32.s32 %0, %1;" : "=f"(r) : "r"(acc));
  return r;
}
SONIQ_DEVICE u32 truncate(float value) {
  u32 r;
  asm("cvt.rzi.u32.f32 %0, %1;" : "=r"(r) : "f"(value));
  return r;
}
SONIQ_DEVICE float from_half(u16 bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}

#endif
