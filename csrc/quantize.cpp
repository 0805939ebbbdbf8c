#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "threads.h"

namespace soniq {
namespace {

constexpr int64_t kFloatWork = 64;  // of reading and converting a float, in products (threads.h)

// One segment in the original order: rows that share a scale are one run of floats, however short the rows are.
bool quantize_runs(const Tier& tier, const QuantizeTask& task, uint8_t* codes) {
  const int64_t channels = task.quantizer->channels, total = task.rows * channels;
  const int64_t run = channels * std::min(task.rows_per_scale, task.rows);
  const SegmentQuantizer& s = task.quantizer->segments[0];
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

// The floats of a segment in stored order: in place where that is the original one.
const float* stored_floats(const QuantizeTask& task, const SegmentQuantizer& s, int64_t row, float* buffer) {
  const Quantizer& q = *task.quantizer;
  const float* x = task.x + row * q.channels;
  if (q.original.empty()) return x + s.first_channel;
  const int32_t* original = q.original.data() + s.first_channel;
  for (int c = 0; c < s.channels; ++c) buffer[c] = x[original[c]];
  return buffer;
}

bool quantize_rows(const Tier& tier, const QuantizeTask& task, uint8_t* codes) {
  const int64_t channels = task.quantizer->channels;
  std::atomic<bool> finite{true};
  parallel(threads_for(task.rows * channels * kFloatWork, task.rows), [&](int share, int shares) {
    const Range mine = share_of(task.rows, 1, share, shares);
    std::vector<float> buffer(channels);
    for (int64_t row = mine.begin; row < mine.end; ++row)
      for (const SegmentQuantizer& s : task.quantizer->segments) {
        const float r = s.r_numerator / task.scales[row / task.rows_per_scale];
        const float* x = stored_floats(task, s, row, buffer.data());
        if (!tier.table->quantize(x, s.channels, r, s.z, s.cmax, codes + row * channels + s.first_channel))
          finite = false;
      }
  });
  return finite;
}

}  // namespace

bool quantize(const Tier& asked, const QuantizeTask& task, uint8_t* codes) {
  if (task.rows == 0) return true;
  const Tier& tier = tier_with(asked, &KernelTable::quantize);
  tier.counters.quantize.add(1);
  const bool in_order = task.quantizer->original.empty();
  return in_order ? quantize_runs(tier, task, codes) : quantize_rows(tier, task, codes);
}

bool quantize_gathered(const Tier& asked, const QuantizeTask& task, int segment, int64_t m0, int rows, int k_padded,
                       uint8_t* gathered) {
  static thread_local std::vector<float> buffer;
  const Tier& tier = tier_with(asked, &KernelTable::quantize);
  const SegmentQuantizer& s = task.quantizer->segments[segment];
  if (!task.quantizer->original.empty()) buffer.resize(s.channels);
  bool finite = true;
  for (int i = 0; i < rows; ++i) {
    const float* x = stored_floats(task, s, m0 + i, buffer.data());
    const float r = s.r_numerator / task.scales[(m0 + i) / task.rows_per_scale];
    for (int k = 0; k < k_padded; k += kBlock) {
      uint8_t* codes = gathered + (int64_t(k) / kBlock * rows + i) * kRowStride;
      const int count = std::clamp(s.channels - k, 0, kBlock);
      finite &= tier.table->quantize(x + k, count, r, s.z, s.cmax, codes);
      std::memset(codes + count, 0, std::min(kBlock, k_padded - k) - count);
    }
  }
  tier.counters.quantize.add(1);
  return finite;
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
  tier.counters.abs_max.add(1);
}

bool all_finite(const Tier& asked, const float* x, int64_t count) {
  const Tier& tier = tier_with(asked, &KernelTable::all_finite);
  std::atomic<bool> finite{true};
  const int threads = threads_for(count * kFloatWork, count);
  parallel(threads, [&](int share, int shares) {
    const Range mine = share_of(count, 1, share, shares);
    if (!tier.table->all_finite(x + mine.begin, mine.end - mine.begin)) finite = false;
  });
  tier.counters.all_finite.add(1);
  return finite;
}

}  // namespace soniq
