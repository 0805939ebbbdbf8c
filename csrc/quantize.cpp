#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "aligned.h"
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

// One row at a time, segment by segment, in stored order.
class RowQuantizer {
 public:
  RowQuantizer(const Tier& asked, const QuantizeTask& task)
      : task_(task),
        quantizer_(*task.quantizer),
        tier_(tier_with(asked, &KernelTable::quantize)),
        split_tier_(tier_with(asked, &KernelTable::quantize_split)),
        splits_(quantizer_.segments.size() == 2 && split_tier_.table->quantize_split) {
    (splits_ ? split_tier_.counters.quantize_split : tier_.counters.quantize).add(1);
    if (quantizer_.original.empty()) return;
    floats_.resize(quantizer_.channels);
    for (const SegmentQuantizer& s : quantizer_.segments) codes_.emplace_back(s.channels + kSlack);
  }

  // codes(s): those of segment s, until the next row.
  void row(int64_t row) {
    if (splits_) return split(row);
    for (int s = 0; s < int(quantizer_.segments.size()); ++s) {
      const SegmentQuantizer& segment = quantizer_.segments[s];
      const CodeRange range = range_of(segment, row);
      const int32_t* original = quantizer_.original.data() + segment.first_channel;
      const float* x = task_.x + row * quantizer_.channels;
      for (int c = 0; c < segment.channels; ++c) floats_[c] = x[original[c]];
      finite_ &=
          tier_.table->quantize(floats_.data(), segment.channels, range.r, range.z, range.cmax, codes_[s].data());
    }
  }
  const uint8_t* codes(int segment) const { return codes_[segment].data(); }

  // `count` channels of a row from `first` on, where there is one segment in the original order.
  void piece(int64_t row, int64_t first, int count, uint8_t* codes) {
    const CodeRange range = range_of(quantizer_.segments[0], row);
    finite_ &=
        tier_.table->quantize(task_.x + row * quantizer_.channels + first, count, range.r, range.z, range.cmax, codes);
  }
  bool finite() const { return finite_; }

 private:
  static constexpr int kSlack = 64;

  CodeRange range_of(const SegmentQuantizer& s, int64_t row) const {
    return {s.r_numerator / task_.scales[row / task_.rows_per_scale], s.z, s.cmax};
  }
  void split(int64_t row) {
    const CodeRange ranges[2] = {range_of(quantizer_.segments[0], row), range_of(quantizer_.segments[1], row)};
    finite_ &= split_tier_.table->quantize_split(task_.x + row * quantizer_.channels, quantizer_.channels,
                                                 quantizer_.second.data(), ranges, codes_[0].data(), codes_[1].data());
  }

  const QuantizeTask& task_;
  const Quantizer& quantizer_;
  const Tier &tier_, &split_tier_;
  const bool splits_;
  std::vector<float> floats_;
  std::vector<AlignedBytes> codes_;  // [segment]
  bool finite_ = true;
};

bool quantize_rows(const Tier& tier, const QuantizeTask& task, uint8_t* codes) {
  const int64_t channels = task.quantizer->channels;
  std::atomic<bool> finite{true};
  parallel(threads_for(task.rows * channels * kFloatWork, task.rows), [&](int share, int shares) {
    const Range mine = share_of(task.rows, 1, share, shares);
    RowQuantizer quantizer(tier, task);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      quantizer.row(row);
      for (int s = 0; s < int(task.quantizer->segments.size()); ++s) {
        const SegmentQuantizer& segment = task.quantizer->segments[s];
        std::memcpy(codes + row * channels + segment.first_channel, quantizer.codes(s), segment.channels);
      }
    }
    if (!quantizer.finite()) finite = false;
  });
  return finite;
}

}  // namespace

Quantizer::Quantizer(int channels, std::vector<int32_t> original, std::vector<SegmentQuantizer> segments)
    : channels(channels), original(std::move(original)), segments(std::move(segments)) {
  if (this->segments.size() != 2) return;
  second.assign((channels + 63) / 64, 0);
  for (int position = this->segments[1].first_channel; position < channels; ++position) {
    const int32_t channel = this->original[position];
    second[channel / 64] |= uint64_t(1) << channel % 64;
  }
}

bool quantize(const Tier& asked, const QuantizeTask& task, uint8_t* codes) {
  if (task.rows == 0) return true;
  if (!task.quantizer->original.empty()) return quantize_rows(asked, task, codes);
  const Tier& tier = tier_with(asked, &KernelTable::quantize);
  tier.counters.quantize.add(1);
  return quantize_runs(tier, task, codes);
}

bool quantize_gathered(const Tier& asked, const QuantizeTask& task, int64_t m0, int rows, const int* k_padded,
                       uint8_t* const* gathered) {
  const bool in_order = task.quantizer->original.empty();
  RowQuantizer quantizer(asked, task);
  for (int i = 0; i < rows; ++i) {
    if (!in_order) quantizer.row(m0 + i);
    for (int s = 0; s < int(task.quantizer->segments.size()); ++s)
      for (int k = 0; k < k_padded[s]; k += kBlock) {
        uint8_t* codes = gathered[s] + (int64_t(k) / kBlock * rows + i) * kRowStride;
        const int count = std::clamp(task.quantizer->segments[s].channels - k, 0, kBlock);
        if (in_order)
          quantizer.piece(m0 + i, k, count, codes);
        else
          std::memcpy(codes, quantizer.codes(s) + k, count);
        std::memset(codes + count, 0, std::min(kBlock, k_padded[s] - k) - count);
      }
  }
  return quantizer.finite();
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
