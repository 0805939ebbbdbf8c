// What a convolution asks for beyond a GEMM: rows gathered from pixels, and constants per border class.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace soniq {

// K of one group, cut into cache blocks: segments with the larger factor first, so that one shift between two
// segments puts both into one accumulator.
struct KBlock {
  int segment;
  int unit0, units;       // of the segment's padded K
  int shift;              // of the sums before this block is added: not 0 at the start of the second segment
  int64_t offset;         // of the gathered rows of this block
};

struct KBlocks {
  std::vector<KBlock> blocks;
  int final_shift = 0;
  int64_t bytes = 0;      // of all gathered rows
};

KBlocks k_blocks(const Layer& layer, int group, int rows);

// Copies the codes that output rows [m0, m0 + rows) of one group read into `out`, kRowStride bytes a row and block, zeros
// where a tap is in the padding and past the true K; row_terms[m] = the activations' sums times their factors.
void gather_rows(const Layer& layer, const Geometry& geometry, const uint8_t* codes, int group, const KBlocks& k,
                 int64_t m0, int rows, uint8_t* out, uint32_t* row_terms);

}  // namespace soniq
