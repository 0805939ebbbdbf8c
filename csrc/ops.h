// Operations between layers, on tensors of codes.
#pragma once

#include "layer.h"

namespace soniq {

// y = activation(a + b): a and b are codes, or a is and x is float32, or there is one of them only. Rows are [channels].
struct CombineTask {
  int64_t rows = 0;
  int channels = 0;
  CodesIn a, b;
  const float* x = nullptr;
  Activation activation = Activation::none;
  float lo = 0, hi = 0;
  Results results;
  int first = 0, result_channels = 0;  // the columns of the results: [first, first + channels) of so many
};
void combine(const Tier& tier, const CombineTask& task);

// The largest code of every window, which must not be empty; `out` is in the same stored order.
void max_pool(const Tier& tier, const PoolTask& task, const uint8_t* codes, uint8_t* out);
// float32(sum of levels) * (scale * 2^e), then * float32(1 / count); no padding. rows_per_scale of x
// counts images.
void avg_pool(const Tier& tier, const PoolTask& task, const CodesIn& x, const Results& results);

}  // namespace soniq
