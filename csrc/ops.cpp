#include "ops.h"

#include <algorithm>

#include "threads.h"

namespace soniq {
namespace {

constexpr int kTileRows = 64;
constexpr int64_t kValueWork = 64;  // of a code that becomes a value and a code again, in products (threads.h)
constexpr int64_t kTapWork = 8;     // of a code that is compared or added

// The scale of every row of a tile.
class RowScales {
 public:
  CodeSource source(const CodesIn& in, int64_t m0, int rows) {
    if (!in.codes) return {};
    scales_.resize(rows);
    for (int i = 0; i < rows; ++i) scales_[i] = in.scales[(m0 + i) / in.rows_per_scale];
    return in.format->source(in.codes + m0 * in.format->channels, 0, scales_.data());
  }

 private:
  std::vector<float> scales_;
};

void combine_rows(const Tier& tier, const CombineTask& task, Range rows) {
  RowScales a, b;
  for (int64_t m0 = rows.begin; m0 < rows.end; m0 += kTileRows) {
    CombineTile tile{};
    tile.rows = int(std::min<int64_t>(kTileRows, rows.end - m0));
    tile.cols = task.channels;
    tile.a = a.source(task.a, m0, tile.rows);
    tile.b = b.source(task.b, m0, tile.rows);
    tile.x = task.x ? task.x + m0 * task.channels : nullptr;
    tile.x_ld = task.channels;
    tile.activation = task.activation;
    tile.lo = task.lo;
    tile.hi = task.hi;
    tile.results = task.results.tile(m0, task.first, task.result_channels);
    tier.table->combine(tile);
  }
}

// The codes that a window reads, tap by tap.
void valid_taps(const PoolTask& task, const uint8_t* codes, const OutputPosition& p,
                std::vector<const uint8_t*>& taps) {
  taps.clear();
  for (int kh = 0; kh < task.kernel_h; ++kh)
    for (int kw = 0; kw < task.kernel_w; ++kw) {
      const int64_t pixel = tap_pixel(task.geometry, p, kh, kw);
      if (pixel >= 0) taps.push_back(codes + pixel * task.channels);
    }
}

// Calls window(row, taps) for every window of a share of them.
template <class Window>
void for_each_window(const PoolTask& task, const uint8_t* codes, Range rows, Window&& window) {
  std::vector<const uint8_t*> taps;
  taps.reserve(size_t(task.kernel_h) * task.kernel_w);
  OutputPosition p = output_position(task.geometry, rows.begin);
  for (int64_t row = rows.begin; row < rows.end; ++row, advance(task.geometry, p)) {
    valid_taps(task, codes, p, taps);
    window(row, taps);
  }
}

int threads_of_pool(const PoolTask& task) {
  const int64_t rows = task.geometry.rows();
  return threads_for(rows * task.kernel_h * task.kernel_w * task.channels * kTapWork, rows);
}

// The means of one window, in the original order of the channels.
void means(const CodesIn& x, float scale, const int32_t* sums, int count, float* y) {
  const TensorFormat& f = *x.format;
  const float inverse = 1.0f / float(count);
  for (int c = 0; c < f.channels; ++c) {
    const int32_t levels = int32_t(f.alpha[c]) * sums[f.position[c]] + int32_t(f.beta[c]) * count;
    const float sum = float(levels) * (scale * f.step[c]);
    y[c] = sum * inverse;
  }
}

}  // namespace

void combine(const Tier& asked, const CombineTask& task) {
  const Tier& tier = tier_with(asked, &KernelTable::combine);
  parallel(threads_for(task.rows * task.channels * kValueWork, task.rows),
           [&](int share, int shares) { combine_rows(tier, task, share_of(task.rows, 1, share, shares)); });
  tier.counters.combine.add(task.rows > 0);
}

namespace {

// Where a window's taps are along one axis: [first, second).
std::pair<int, int> range_of_taps(int begin, int taps, int size) {
  return {std::max(begin, 0), std::min(begin + taps, size)};
}

// The largest codes of the lines that a line of windows reads, then of neighbouring pixels of those.
void max_pool_line(const Tier& tier, const PoolTask& task, const uint8_t* image, int oh, std::vector<uint8_t>& tallest,
                   uint8_t* out) {
  const Geometry& g = task.geometry;
  const int64_t line_bytes = int64_t(g.in_w) * task.channels;
  std::vector<const uint8_t*> taps;
  const auto [top, bottom] = range_of_taps(oh * g.stride_h - g.pad_top, task.kernel_h, g.in_h);
  for (int h = top; h < bottom; ++h) taps.push_back(image + h * line_bytes);
  tier.table->max_codes(taps.data(), int(taps.size()), line_bytes, tallest.data());
  for (int ow = 0; ow < g.out_w; ++ow, out += task.channels) {
    taps.clear();
    const auto [left, right] = range_of_taps(ow * g.stride_w - g.pad_left, task.kernel_w, g.in_w);
    for (int w = left; w < right; ++w) taps.push_back(tallest.data() + int64_t(w) * task.channels);
    tier.table->max_codes(taps.data(), int(taps.size()), task.channels, out);
  }
}

}  // namespace

void max_pool(const Tier& asked, const PoolTask& task, const uint8_t* codes, uint8_t* out) {
  const Tier& tier = tier_with(asked, &KernelTable::max_codes);
  const Geometry& g = task.geometry;
  const int64_t lines = int64_t(g.batch) * g.out_h, image_bytes = int64_t(g.in_h) * g.in_w * task.channels;
  parallel(std::min<int64_t>(threads_of_pool(task), std::max<int64_t>(1, lines)), [&](int share, int shares) {
    const Range mine = share_of(lines, 1, share, shares);
    std::vector<uint8_t> tallest(size_t(g.in_w) * task.channels);
    for (int64_t line = mine.begin; line < mine.end; ++line)
      max_pool_line(tier, task, codes + line / g.out_h * image_bytes, int(line % g.out_h), tallest,
                    out + line * g.out_w * task.channels);
  });
  tier.counters.max_codes.add(g.rows());
}

void avg_pool(const Tier& asked, const PoolTask& task, const CodesIn& x, const Results& results) {
  const Tier &tier = tier_with(asked, &KernelTable::sum_codes), &combine_tier = tier_with(asked, &KernelTable::combine);
  const int64_t rows = task.geometry.rows(), rows_of_image = rows / std::max(1, task.geometry.batch);
  parallel(threads_of_pool(task), [&](int share, int shares) {
    const Range mine = share_of(rows, 1, share, shares);
    std::vector<int32_t> sums(task.channels);
    std::vector<float> y(task.channels);
    CombineTile tile{};
    tile.rows = 1;
    tile.cols = task.channels;
    tile.x = y.data();
    for_each_window(task, x.codes, mine, [&](int64_t row, const std::vector<const uint8_t*>& taps) {
      tier.table->sum_codes(taps.data(), int(taps.size()), task.channels, sums.data());
      means(x, x.scales[row / rows_of_image / x.rows_per_scale], sums.data(), int(taps.size()), y.data());
      tile.results = results.tile(row, 0, task.channels);
      combine_tier.table->combine(tile);
    });
  });
  tier.counters.sum_codes.add(rows);
}

}  // namespace soniq
