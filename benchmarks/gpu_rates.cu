// What a GPU multiplies at most: the same instruction again and again, registers only, independent sums so that none waits.
// A block of 256 threads; `turns` of kSums instructions a thread or warp.
#include "cuda_intrinsics.cuh"

constexpr int kSums = 8;

// 32768 one-bit products an instruction of a warp.
SONIQ_KERNEL void __launch_bounds__(256) b1_rate(u32* out, u32 turns) {
  u32 sums[kSums][4] = {}, a = lane() * 0x9e3779b9u, b = thread() * 0x85ebca6bu + 1;
  for (u32 i = 0; i < turns; ++i)
#pragma unroll
    for (int s = 0; s < kSums; ++s) mma_and_popc(sums[s], a, a ^ 1, a ^ 2, b, b ^ i, a);
  u32 total = 0;
#pragma unroll
  for (int s = 0; s < kSums; ++s) total += sums[s][0] + sums[s][1] + sums[s][2] + sums[s][3];
  if (total == 1) out[0] = total;
}

// 4 products of bytes an instruction of a thread.
SONIQ_KERNEL void __launch_bounds__(256) dp4a_rate(u32* out, u32 turns) {
  int sums[kSums] = {};
  const int a = int(lane() * 0x9e3779b9u);
  for (u32 i = 0; i < turns; ++i)
#pragma unroll
    for (int s = 0; s < kSums; ++s) sums[s] = __dp4a(a, int(i) + s, sums[s]);
  int total = 0;
#pragma unroll
  for (int s = 0; s < kSums; ++s) total += sums[s];
  if (total == 1) out[0] = u32(total);
}
