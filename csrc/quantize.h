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

struct QuantizeTask {
  const float* x = nullptr;  // [rows][channels], original order
  int64_t rows = 0;
  int channels = 0;
  const int32_t* original =
      nullptr;                    // [channels]: stored position -> original channel; null: the same, and one segment
  std::vector<SegmentQuantizer> segments;
  const float* scales = nullptr;  // one per `rows_per_scale` rows
  int64_t rows_per_scale = 1;
};

// False if some value is not finite; the codes are written all the same.
bool quantize(const Tier& tier, const QuantizeTask& task, uint8_t* codes);

// scales[i] = clamp(largest |x| of its rows * factor, 2^-100, 2^100): the `per_row` rule.
void dynamic_scales(const Tier& tier, const float* x, int64_t groups, int64_t group_size, float factor, float* scales);

bool all_finite(const Tier& tier, const float* x, int64_t count);

}  // namespace soniq
