// Goal: sums of products of codes on the tensor cores' one-bit instruction, which counts common bits (AND, POPC).
//
//   S[m, n] = sum_k c_w[n, k] * c_a[m, k] = sum over planes i, j of 2^(i+j) * popcount(w_i[n] and a_j[m])
//
// Weights are the left operand, 16 outputs a tile. Planes of the activations are columns of the right one, 8 a tile. Planes
// of the weights are passes over K, highest first: the sums are doubled between them (Horner), so they need no more
// registers for 8 bits than for one. Two segments are more passes; a pass is a plane of a segment, in falling order of the
// power of two it counts, and `factor` brings the sums from one power to the next. Everything is exact modulo 2^32.
//
// Panels: a block is 512 channels. Words stand in the order in which a lane needs them, lane = 4 * g + t:
//   weights      [segment][tile of 16 outputs][plane][block][half][lane]: 16 bytes = a0..a3, word w = (output g or g + 8, b)
//   activations  [segment][tile of 8 columns][block][lane]:               16 bytes = b0, b1 of half 0, then of half 1
//   bit i of a word is channel 512 * block + 256 * half + 128 * b + 32 * t + i,       b = 0 or 1
// so one 16-byte load of each of 32 lanes is one operand of one instruction. Padding has code 0 and adds nothing.
//
// Columns: a tile holds `pack` planes of 8 / pack rows: column = row * pack + plane. With pack = 1 the planes of 8 rows are
// as many tiles. Small batches pack planes (no column is wasted), large ones do not (no lane has to ask another).
//
// Cost: gemv reads weights once at 16 bytes a lane, two instructions of 32768 products for each kilobyte and column tile:
// memory is the limit up to about eight column tiles on H100. gemm: 64 instructions of a warp for 8 KB of shared memory.
#include "cuda_epilogue.cuh"

struct Pass {
  u32 w, w_stride;           // of the plane in 16-byte units, and between tiles of outputs
  u32 x, x_stride;           // of the segment in 16-byte units, and between tiles of columns
  u32 blocks, share_blocks;  // of 512 channels: in all, and at most in one share of K
  u32 factor;                // sums are multiplied by it before the pass
};

constexpr int kMostPasses = 16;

struct Product {
  const uint4* w;
  const uint4* x;
  u32* partial;   // sums of the tiles, zeros before and after, if K is split
  u32* arrivals;  // one a tile, zeros before and after
  u32 passes, output_tiles, column_tiles, pack;
  u32 splits;     // of K over blocks of threads
  u32 factor;     // of the sums after the last pass
  Pass pass[kMostPasses];
  Output out;
};

SONIQ_DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }

// The steps of one share of K: all passes, and of each the same part of its blocks. `factor` gathers those of the passes
// that were entered since it was last taken, empty ones too.
struct Walk {
  u32 pass, block, end, factor;

  SONIQ_DEVICE void enter(const Product& p, u32 share) {
    while (pass < p.passes) {
      const Pass& now = p.pass[pass];
      factor *= now.factor;
      block = share * now.share_blocks;
      end = least(block + now.share_blocks, now.blocks);
      if (block < end) return;
      ++pass;
    }
  }
  SONIQ_DEVICE void begin(const Product& p, u32 share) {
    pass = 0, factor = 1;
    enter(p, share);
  }
  SONIQ_DEVICE void next(const Product& p, u32 share) {
    if (++block < end) return;
    ++pass;
    enter(p, share);
  }
  SONIQ_DEVICE bool more(const Product& p) const { return pass < p.passes; }
  SONIQ_DEVICE u32 take_factor() {
    const u32 taken = factor;
    factor = 1;
    return taken;
  }
};

template <int kTiles, int kColumns>
SONIQ_DEVICE void scale_sums(u32 (&sums)[kTiles][kColumns][4], u32 factor) {
  if (factor == 1) return;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int q = 0; q < 4; ++q) sums[i][j][q] *= factor;
}

SONIQ_DEVICE void multiply_half(u32 (&sums)[4], const uint4& w, const uint4& x, int half) {
  mma_and_popc(sums, w.x, w.y, w.z, w.w, half ? x.z : x.x, half ? x.w : x.y);
}

// ---- a tile of sums in shared memory becomes outputs -------------------------------------------------------------------

struct Tile {
  u32* sums;  // [rows][stride], `width` of each row count
  u32 rows, width, stride;
  u32 row0, output0;
  u32 index;  // of the tile in the grid
};

// True for the last block of threads that brings its share; `sums` then holds the whole. It leaves zeros behind.
SONIQ_DEVICE bool gather_splits(const Product& p, const Tile& tile, u32 threads, u32* last) {
  const u32 count = tile.rows * tile.width;
  u32* partial = p.partial + u64(tile.index) * count;
  for (u32 e = thread(); e < count; e += threads)
    add_atomic(partial + e, tile.sums[e / tile.width * tile.stride + e % tile.width]);
  fence();
  block_barrier();
  if (thread() == 0) *last = fetch_add(p.arrivals + tile.index, 1) == p.splits - 1;
  block_barrier();
  if (!*last) return false;
  fence();
  for (u32 e = thread(); e < count; e += threads) {
    tile.sums[e / tile.width * tile.stride + e % tile.width] = load_volatile(partial + e);
    partial[e] = 0;
  }
  if (thread() == 0) p.arrivals[tile.index] = 0;
  return true;
}

// Each thread finishes the elements that it gathered, so no barrier stands between.
SONIQ_DEVICE void finish_tile(const Product& p, const Tile& tile, u32 threads, u32* last) {
  if (p.splits > 1 && !gather_splits(p, tile, threads, last)) return;
  const u32 count = tile.rows * tile.width;
  for (u32 first = 0; first < count; first += threads) {
    const u32 e = first + thread(), row = e / tile.width, column = e % tile.width;
    const u32 m = tile.row0 + row, n = tile.output0 + column;
    const bool ok = e < count && m < p.out.rows && n < p.out.outputs;
    finish(p.out, m, n, ok ? tile.sums[row * tile.stride + column] : 0, ok);
  }
}

// ---- few columns: weights straight from memory to registers --------------------------------------------------------------
// Eight warps share a tile of outputs, each an eighth of K; a ring of registers keeps loads in flight.

constexpr int kGemvWarps = 8;

// Sum over the planes of a tile: column pairs (2t, 2t+1) of a lane, then of the lanes that hold the row's other planes.
SONIQ_DEVICE u32 join_planes(u32 even, u32 odd, u32 pack) {
  const u32 t = lane() & 3;
  u32 sum = even + 2 * odd;
  if (pack >= 4) {
    sum <<= pack == 4 ? 2 * (t & 1) : 2 * t;
    sum += shuffle_xor(sum, 1);
  }
  if (pack == 8) sum += shuffle_xor(sum, 2);
  return sum;
}

// The sums of one 16 x 8 tile, planes joined, to sums[row][output].
SONIQ_DEVICE void store_joined(const u32 (&sums)[4], u32 pack, u32* to, u32 stride) {
  const u32 g = lane() >> 2, t = lane() & 3;
  if (pack == 1) {
#pragma unroll
    for (int q = 0; q < 4; ++q) to[(2 * t + (q & 1)) * stride + g + 8 * (q >> 1)] = sums[q];
    return;
  }
  const u32 upper = join_planes(sums[0], sums[1], pack), lower = join_planes(sums[2], sums[3], pack);
  const u32 lanes = pack / 2;  // that hold one row
  if (t % lanes) return;
  to[t / lanes * stride + g] = upper;
  to[t / lanes * stride + g + 8] = lower;
}

// kTiles tiles of outputs times kColumns tiles of columns a warp, kAhead steps in flight.
template <int kTiles, int kColumns, int kAhead>
struct Gemv {
  u32 sums[kTiles][kColumns][4];
  uint4 w[kAhead][kTiles][2];
  u32 share, tile0, column0;

  SONIQ_DEVICE void fetch(const Product& p, const Walk& at, uint4 (&to)[kTiles][2]) const {
    const Pass& pass = p.pass[at.pass];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const u64 tile = least(tile0 + i, p.output_tiles - 1);  // one that hangs over repeats the last and is not stored
      const uint4* from = p.w + pass.w + tile * pass.w_stride + at.block * 64 + lane();
      to[i][0] = load_once(from);
      to[i][1] = load_once(from + 32);
    }
  }
  SONIQ_DEVICE void multiply(const Product& p, const Walk& at, const uint4 (&from)[kTiles][2]) {
    const Pass& pass = p.pass[at.pass];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const u64 column = least(column0 + j, p.column_tiles - 1);
      const uint4 x = load_again(p.x + pass.x + column * pass.x_stride + at.block * 32 + lane());
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        multiply_half(sums[i][j], from[i][0], x, 0);
        multiply_half(sums[i][j], from[i][1], x, 1);
      }
    }
  }
  SONIQ_DEVICE void walk(const Product& p) {
    Walk ahead = {}, now = {};
    ahead.begin(p, share);
    now.begin(p, share);
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (ahead.more(p)) fetch(p, ahead, w[u]), ahead.next(p, share);
    while (now.more(p)) {
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (!now.more(p)) break;
        scale_sums(sums, now.take_factor());
        multiply(p, now, w[u]);
        if (ahead.more(p)) fetch(p, ahead, w[u]), ahead.next(p, share);
        now.next(p, share);
      }
    }
    scale_sums(sums, now.take_factor() * p.factor);
  }
};

// Grid: tiles of outputs / kTiles, splits of K, tiles of columns / kColumns.
template <int kTiles, int kColumns, int kAhead>
SONIQ_DEVICE void gemv(const Product& p) {
  Gemv<kTiles, kColumns, kAhead> mine = {};
  mine.share = blockIdx.y * kGemvWarps + warp();
  mine.tile0 = blockIdx.x * kTiles;
  mine.column0 = blockIdx.z * kColumns;
  mine.walk(p);
  const u32 tile_rows = 8 / p.pack;
  const Tile tile = {static_cast<u32*>(shared_memory()),
                     kColumns * tile_rows,
                     16 * kTiles,
                     16 * kTiles,
                     blockIdx.z * kColumns * tile_rows,
                     blockIdx.x * 16 * kTiles,
                     blockIdx.z * gridDim.x + blockIdx.x};
  const u32 count = tile.rows * tile.width;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      store_joined(mine.sums[i][j], p.pack, tile.sums + warp() * count + j * tile_rows * tile.stride + 16 * i,
                   tile.stride);
  block_barrier();
  for (u32 e = thread(); e < count; e += 32 * kGemvWarps)
    for (int other = 1; other < kGemvWarps; ++other) tile.sums[e] += tile.sums[other * count + e];
  finish_tile(p, tile, 32 * kGemvWarps, tile.sums + kGemvWarps * count);
}

// ---- many columns: blocks of 128 outputs, both operands through shared memory --------------------------------------------
// Four warps, two by two; a warp has 4 tiles of outputs and kColumns tiles of columns, whole groups of the planes of 8 rows.

constexpr int kGemmThreads = 128, kStages = 4;
constexpr int kStageTiles = 8;                // of outputs in a block of threads
constexpr int kTileOutputs = 16 * kStageTiles;
constexpr int kSumStride = kTileOutputs + 4;  // lanes of a warp then write to 32 different banks

template <int kPlanes>
struct Gemm {
  static constexpr int kColumns = 8 / kPlanes * kPlanes;
  static constexpr int kStageW = kStageTiles * 64, kStageX = 2 * kColumns * 32, kStage = kStageW + kStageX;
  static constexpr int kGroups = kColumns / kPlanes;  // of 8 rows, in a warp
  u32 sums[4][kColumns][4];
  uint4* stages;
  u32 tile0, column0;

  // One block of 512 channels of all tiles; tiles that hang over repeat the last one.
  SONIQ_DEVICE void copy(const Product& p, const Walk& at, uint4* stage) const {
    const Pass& pass = p.pass[at.pass];
#pragma unroll
    for (int c = 0; c < kStageW; c += kGemmThreads) {
      const u32 e = c + thread();
      const u64 tile = least(tile0 + e / 64, p.output_tiles - 1);
      copy_async(stage + e, p.w + pass.w + tile * pass.w_stride + at.block * 64 + e % 64);
    }
#pragma unroll
    for (int c = 0; c < kStageX; c += kGemmThreads) {
      const u32 e = c + thread();
      if (kStageX % kGemmThreads && e >= kStageX) break;
      const u64 column = least(column0 + e / 32, p.column_tiles - 1);
      copy_async(stage + kStageW + e, p.x + pass.x + column * pass.x_stride + at.block * 32 + e % 32);
    }
  }
  SONIQ_DEVICE void multiply(const uint4* stage) {
    const uint4* w = stage + (warp() & 1) * 4 * 64 + lane();
    const uint4* x = stage + kStageW + (warp() >> 1) * kColumns * 32 + lane();
    uint4 columns[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) columns[j] = x[j * 32];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 outputs = w[i * 64 + half * 32];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) multiply_half(sums[i][j], outputs, columns[j], half);
      }
  }
  SONIQ_DEVICE void walk(const Product& p) {
    const u32 share = blockIdx.y;
    Walk ahead = {}, now = {};
    ahead.begin(p, share);
    now.begin(p, share);
    for (int s = 0; s < kStages - 1; ++s) {
      if (ahead.more(p)) copy(p, ahead, stages + s * kStage), ahead.next(p, share);
      copy_commit();
    }
    for (u32 step = 0; now.more(p); ++step) {
      copy_wait<kStages - 2>();
      block_barrier();  // the stage has arrived for all, and the one that is filled next was read by all
      if (ahead.more(p)) {
        copy(p, ahead, stages + (step + kStages - 1) % kStages * kStage);
        ahead.next(p, share);
      }
      copy_commit();
      scale_sums(sums, now.take_factor());
      multiply(stages + step % kStages * kStage);
      now.next(p, share);
    }
    copy_wait<0>();
    scale_sums(sums, now.take_factor() * p.factor);
  }
  // Planes of a row are different tiles of the same lane.
  SONIQ_DEVICE void store(u32* to) const {
    const u32 g = lane() >> 2, t = lane() & 3;
    const u32 first_row = (warp() >> 1) * kGroups * 8, first_output = (warp() & 1) * 64;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int group = 0; group < kGroups; ++group)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          u32 sum = 0;
#pragma unroll
          for (int plane = 0; plane < kPlanes; ++plane) sum += sums[i][group * kPlanes + plane][q] << plane;
          const u32 row = first_row + group * 8 + 2 * t + (q & 1), output = first_output + 16 * i + g + 8 * (q >> 1);
          to[row * kSumStride + output] = sum;
        }
  }
};

// Grid: tiles of outputs / 8, splits of K, tiles of columns / (2 kColumns). Columns come with pack = 1.
template <int kPlanes>
SONIQ_DEVICE void gemm(const Product& p) {
  using Work = Gemm<kPlanes>;
  Work mine = {};
  mine.stages = static_cast<uint4*>(shared_memory());
  mine.tile0 = blockIdx.x * kStageTiles;
  mine.column0 = blockIdx.z * 2 * Work::kColumns;
  mine.walk(p);
  block_barrier();  // nobody reads the stages any more
  const u32 rows = 2 * Work::kGroups * 8;
  const Tile tile = {
      static_cast<u32*>(shared_memory()), rows, kTileOutputs, kSumStride, blockIdx.z * rows, blockIdx.x * kTileOutputs,
      blockIdx.z * gridDim.x + blockIdx.x};
  mine.store(tile.sums);
  block_barrier();
  finish_tile(p, tile, kGemmThreads, tile.sums + rows * kSumStride);
}

#define SONIQ_GEMV(tiles, columns, ahead)                                                                     \
  SONIQ_KERNEL void __launch_bounds__(32 * kGemvWarps) b1_gemv_##columns(const __grid_constant__ Product p) { \
    gemv<tiles, columns, ahead>(p);                                                                           \
  }
#define SONIQ_GEMM(planes)                                                                                   \
  SONIQ_KERNEL void __launch_bounds__(kGemmThreads, 2) b1_gemm_##planes(const __grid_constant__ Product p) { \
    gemm<planes>(p);                                                                                         \
  }

SONIQ_GEMV(1, 1, 4)
SONIQ_GEMV(1, 2, 4)
SONIQ_GEMV(2, 4, 2)
SONIQ_GEMV(2, 8, 2)
SONIQ_GEMM(1)
SONIQ_GEMM(2)
SONIQ_GEMM(3)
SONIQ_GEMM(4)
SONIQ_GEMM(5)
SONIQ_GEMM(6)
SONIQ_GEMM(7)
SONIQ_GEMM(8)
