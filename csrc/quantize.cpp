#include "quantize.h"

#include <algorithm>
#include <atomic>

#include "threads.h"

namespace soniq {
namespace {

constexpr int64_t kFloatWork = 64;  // of reading and converting a float, in products (threads.h)

// One segment in the original order: rows that share a scale are one run of floats, however short the rows are.
bool quantize_runs(const Tier& tier, const QuantizeTask& task, uint8_t* codes) {
  const int64_t total = task.rows * task.channels, run = task.channels * std::min(task.rows_per_scale, task.rows);
  const SegmentQuantizer& s = task.segments[0];
  std::atomic<bool> finite{true};
  parallel(threads_for(total * kFloatWork, total), [&](int share, int shares) {
    const Range mine = share_of(total, 64, share, shares);
    for (int64_t at = mine.begin, end; at < mine.end; at = end) {
      end = std::min(mine.end, (at / run + 1) * run);
      const float r = s.r_numerator / task.scales[at / run];
      if (!tier.table->quantize(task.x + at, end - at, r, s.z, s.cmax, codes + at)) finite = false;
    }
  });
  return finite;
}

bool quantize_rows(const Tier& tier, const QuantizeTask& task, uint8_t* codes) {
  const int channels = task.channels;
  std::atomic<bool> finite{true};
  parallel(threads_for(task.rows * channels * kFloatWork, task.rows), [&](int share, int shares) {
    const Range mine = share_of(task.rows, 1, share, shares);
    std::vector<float> stored(channels);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const float* x = task.x + row * channels;
      for (int c = 0; c < channels; ++c) stored[c] = x[task.original[c]];
      for (const SegmentQuantizer& s : task.segments) {
        const float r = s.r_numerator / task.scales[row / task.rows_per_scale];
        const int first = s.first_channel;
        uint8_t* to = codes + row * channels + first;
        if (!tier.table->quantize(stored.data() + first, s.channels, r, s.z, s.cmax, to)) finite = false;
      }
    }
  });
  return finite;
}

}  // namespace

bool quantize(const Tier& asked, const QuantizeTask& task, uint8_t* codes) {
  if (task.rows == 0) return true;
  const Tier& tier = tier_with(asked, &KernelTable::quantize);
  tier.counters.quantize.fetch_add(1, std::memory_order_relaxed);
  return task.original ? quantize_rows(tier, task, codes) : quantize_runs(tier, task, codes);
}

void dynamic_scales(const Tier& asked, const float* x, int64_t groups, int64_t group_size, float factor,
                    float* scales) {
  const Tier& tier = tier_with(asked, &KernelTable::abs_max);
  parallel(threads_for(groups * group_size * kFloatWork, groups), [&](int share, int shares) {
    const Range mine = share_of(groups, 1, share, shares);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const float scale = tier.table->abs_max(x + i * group_size, group_size) * factor;
      scales[i] = std::min(std::max(scale, 0x1p-100f), 0x1p100f);
    }
  });
  tier.counters.abs_max.fetch_add(1, std::memory_order_relaxed);
}

bool all_finite(const Tier& asked, const float* x, int64_t count) {
  const Tier& tier = tier_with(asked, &KernelTable::all_finite);
  std::atomic<bool> finite{true};
  const int threads = threads_for(count * kFloatWork, count);
  parallel(threads, [&](int share, int shares) {
    const Range mine = share_of(count, 1, share, shares);
    if (!tier.table->all_finite(x + mine.begin, mine.end - mine.begin)) finite = false;
  });
  tier.counters.all_finite.fetch_add(1, std::memory_order_relaxed);
  return finite;
}

}  // namespace soniq
