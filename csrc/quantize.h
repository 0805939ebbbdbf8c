// Floats to codes of a plan, in stored order.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch.h"

namespace soniq {

// The activation half of one segment, as the quantizer needs it: r = r_numerator / scale, an exact power of two above.
struct SegmentQuantizer {
  int first_channel = 0, channels = 0;
  float r_numerator = 1, z = 0, cmax = 255;
};

// How floats of one tensor become codes.
struct Quantizer {
  int channels = 0;
  std::vector<int32_t> original;  // [channels]: stored position -> original channel; empty: the same, and one segment
  std::vector<SegmentQuantizer> segments;
  std::vector<uint64_t> second;   // with two segments: bit c of word c / 64 is set if channel c is in the second one

  Quantizer(int channels, std::vector<int32_t> original, std::vector<SegmentQuantizer> segments);
};

struct QuantizeTask {
  const Quantizer* quantizer = nullptr;
  const float* x = nullptr;       // [rows][channels], original order
  int64_t rows = 0;
  const float* scales = nullptr;  // one per `rows_per_scale` rows
  int64_t rows_per_scale = 1;
};

// False if some value is not finite; the codes are written all the same.
bool quantize(const Tier& tier, const QuantizeTask& task, uint8_t* codes);

// The same for rows [m0, m0 + rows), straight into the form that gather_rows gives (conv2d.h) for each segment, zeros up to
// its k_padded: a GEMM whose rows are read once need not store its codes anywhere else.
bool quantize_gathered(const Tier& tier, const QuantizeTask& task, int64_t m0, int rows, const int* k_padded,
                       uint8_t* const* gathered);

// scales[i] = clamp(largest |x| of its rows * factor, 2^-100, 2^100): the `per_row` rule.
void dynamic_scales(const Tier& tier, const float* x, int64_t groups, int64_t group_size, float factor, float* scales);

bool all_finite(const Tier& tier, const float* x, int64_t count);

}  // namespace soniq
