// Goal: activations become the bit planes that b1.cu reads, in one pass: the quantizer of the contract, a ballot of 32 lanes
// for every plane of 32 channels, and the sum of the codes for the row's term.
//
// A warp takes a block of 512 channels of one row: 16 words a plane. Lane 4 * plane + t keeps the four words whose place in
// the block is t modulo 4, which are the 16 bytes that lane 4 * g + t of the product reads (drawing in b1.cu).
#include "cuda_epilogue.cuh"

enum Source { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kCodes = 3 };

struct SegmentPlanes {
  u32 first, channels, blocks;
  u32 planes;       // 16-byte units to the segment's panel
  u32 term_factor;  // of a sum of codes in the row's term
  u32 flip;         // of the bits of a code as it lies in memory: 128 where 8-bit codes are signed bytes
  float r_numerator, z, cmax;
};

struct PlanesCall {
  const void* x;        // [rows][x_stride] of `source`
  const u32* original;  // stored position -> channel of x; null: the same
  float* scale;         // one; with per_row one a row, written here
  uint4* planes;
  u32* row_terms;       // [rows][parts]
  u32 rows, channels, x_stride, source, segments;
  u32 per_row;
  float dynamic_factor;
  u32 pack, group_tiles, parts;
  SegmentPlanes segment[2];
};

constexpr int kPlanesWarps = 8;
constexpr u32 kInfinity = 0x7f800000u;

SONIQ_DEVICE float load_float(const PlanesCall& c, u64 at) {
  if (c.source == kFloat32) return static_cast<const float*>(c.x)[at];
  const u16 half = static_cast<const u16*>(c.x)[at];
  return c.source == kFloat16 ? from_half(half) : as_float(u32(half) << 16);
}

// Bits of magnitudes order as the magnitudes do; NaN counts as 0.
SONIQ_DEVICE u32 magnitude(float x) {
  const u32 bits = as_bits(x) & 0x7fffffffu;
  return bits > kInfinity ? 0 : bits;
}

SONIQ_DEVICE u32 most(u32 a, u32 b) { return a > b ? a : b; }

SONIQ_DEVICE u32 warp_most(u32 value) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) value = most(value, shuffle_xor(value, mask));
  return value;
}

SONIQ_DEVICE u32 warp_sum(u32 value) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// clamp(largest |x| * factor, 2^-100, 2^100); every block of threads of a row finds the same.
SONIQ_DEVICE float dynamic_scale(const PlanesCall& c, u32 row, u32* shared) {
  u32 largest = 0;
#pragma unroll 8
  for (u32 k = thread(); k < c.channels; k += 32 * kPlanesWarps)
    largest = most(largest, magnitude(load_float(c, u64(row) * c.x_stride + k)));
  largest = warp_most(largest);
  if (lane() == 0) shared[warp()] = largest;
  block_barrier();
  largest = warp_most(shared[lane() % kPlanesWarps]);
  block_barrier();
  const float least_scale = as_float(27u << 23), most_scale = as_float(227u << 23);  // 2^-100, 2^100
  const float scale = mul(as_float(largest), c.dynamic_factor);
  return if_greater(scale, least_scale, if_greater(most_scale, scale, scale, most_scale), least_scale);
}

SONIQ_DEVICE u32 load_code(const PlanesCall& c, const SegmentPlanes& s, u32 row, u32 k, float r) {
  if (k >= s.channels) return 0;
  const u32 stored = s.first + k;
  const u64 at = u64(row) * c.x_stride + (c.original ? c.original[stored] : stored);
  if (c.source == kCodes) return static_cast<const u8*>(c.x)[at] ^ s.flip;
  return quantize_one(load_float(c, at), r, s.z, s.cmax);
}

// One block of one row: 16 bytes of every plane to their lane; the sum of this lane's codes.
SONIQ_DEVICE u32 write_block(const PlanesCall& c, const SegmentPlanes& s, u32 row, u32 block, float r) {
  const u32 planes = c.group_tiles * c.pack, plane = lane() >> 2, t = lane() & 3;
  u32 codes[16], words[4], sum = 0;
#pragma unroll
  for (int w = 0; w < 16; ++w) codes[w] = load_code(c, s, row, block * 512 + 32 * w + lane(), r);
#pragma unroll
  for (int w = 0; w < 16; ++w) {
    sum += codes[w];
    for (u32 j = 0; j < planes; ++j) {
      const u32 word = ballot(codes[w] >> j & 1);
      if (j == plane && u32(w & 3) == t) words[w >> 2] = word;
    }
  }
  if (plane >= planes) return sum;
  const u32 rows = 8 / c.pack, tile = row / rows * c.group_tiles + plane / c.pack;
  const u32 column = row % rows * c.pack + plane % c.pack;
  const uint4 four = {words[0], words[1], words[2], words[3]};
  c.planes[s.planes + (u64(tile) * s.blocks + block) * 32 + column * 4 + t] = four;
  return sum;
}

// Grid: rows, parts of a row.
SONIQ_KERNEL void __launch_bounds__(32 * kPlanesWarps) write_planes(const __grid_constant__ PlanesCall c) {
  u32* shared = static_cast<u32*>(shared_memory());
  const u32 row = blockIdx.x;
  const float scale = c.source == kCodes ? 1.0f : c.per_row ? dynamic_scale(c, row, shared) : c.scale[0];
  if (c.per_row && blockIdx.y == 0 && thread() == 0) c.scale[row] = scale;
  u32 term = 0, before = 0;
  for (u32 index = 0; index < c.segments; ++index) {
    const SegmentPlanes& s = c.segment[index];
    const float r = divide(s.r_numerator, scale);
    const u32 warps = c.parts * kPlanesWarps, mine = blockIdx.y * kPlanesWarps + warp();
    // Warps go on where the segment before ended, so that small segments do not all fall to the first ones.
    for (u32 block = (mine + warps - before % warps) % warps; block < s.blocks; block += warps)
      term += s.term_factor * write_block(c, s, row, block, r);
    before += s.blocks;
  }
  term = warp_sum(term);
  if (lane() == 0) shared[warp()] = term;
  block_barrier();
  if (thread()) return;
  term = 0;
  for (int other = 0; other < kPlanesWarps; ++other) term += shared[other];
  c.row_terms[u64(row) * c.parts + blockIdx.y] = term;
}
