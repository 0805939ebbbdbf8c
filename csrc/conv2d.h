// What a convolution asks for beyond a GEMM: rows gathered from pixels.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace soniq {

// Copies the codes that output rows [m0, m0 + rows) read of one group and segment into `out`: blocks of kBlock codes,
// [block][row], kRowStride bytes a row, zeros where a tap is in the padding and past the true K.
void gather_rows(const Layer& layer, const Geometry& geometry, const uint8_t* codes, int group, int segment, int64_t m0,
                 int rows, uint8_t* out);

// memcpy for the few channels of a pixel.
void copy_codes(uint8_t* to, const uint8_t* from, int count);
// The same of some channels of `count` neighbouring pixels: `step` and `to_step` codes from one to the next.
void copy_pixels(uint8_t* to, int to_step, const uint8_t* from, int step, int channels, int count);

}  // namespace soniq
