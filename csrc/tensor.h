// A tensor of codes, channel by channel: where each one is stored, what its codes mean, how floats become them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel_table.h"

namespace soniq {

// The activation half of a grid: value = (alpha * code + beta) * (scale * step), code = int(clamp(y * r + z, 0, cmax)) with
// r = r_numerator / scale. step and r_numerator are powers of two.
struct ChannelGrid {
  float alpha = 1, beta = 0, step = 1, r_numerator = 1, z = 0, cmax = 255;
};

// Two grids as one (join.h): level = alpha * ((code << shift) + add) + beta of a grid's code, times the grid's own step.
struct JoinedFormat {
  float alpha = 1, beta = 0;
  float step[2];
  int32_t shift[2], add[2];
};

// One or two grids, [low | high], and one scale. Vectors have an entry for each channel, in the original order, in which joined
// codes are also stored.
struct TensorFormat {
  int channels, low_channels;
  float scale;
  std::vector<int32_t> position;  // where a channel is stored
  std::vector<uint64_t>
      second;  // with two grids: bit c of word c / 64 is set if channel c has the second one; one word more
  std::vector<float> alpha, beta, step, r, z, cmax;
  std::vector<int32_t> shift, add;  // of joined codes
  bool positive = true;             // CodeSink

  TensorFormat(const std::vector<uint8_t>& segment_of, const std::vector<ChannelGrid>& grids, float scale);
  TensorFormat(const std::vector<uint8_t>& segment_of, const std::vector<ChannelGrid>& grids, float scale,
               const JoinedFormat& joined);

  // Rows of this format from one on, as kernels see them; `first` is the channel of their column 0. scales has one a row.
  CodeSource source(const uint8_t* row, int first, const float* scales) const;
  CodeSink sink(uint8_t* row, int first) const;
};

}  // namespace soniq
