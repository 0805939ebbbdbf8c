#include "conv2d.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace soniq {

// ---- gather --------------------------------------------------------------------------------------------------------
namespace {

// Two copies that overlap in the middle cover every length between their size and twice it.
template <int Bytes>
void copy_ends(uint8_t* to, const uint8_t* from, int count) {
  uint8_t first[Bytes], last[Bytes];
  std::memcpy(first, from, Bytes);
  std::memcpy(last, from + count - Bytes, Bytes);
  std::memcpy(to, first, Bytes);
  std::memcpy(to + count - Bytes, last, Bytes);
}

}  // namespace

// memcpy for the few channels that a tap contributes: a call, or the `rep movs` a compiler makes of it, costs more than
// the bytes.
void copy_codes(uint8_t* to, const uint8_t* from, int count) {
  if (count > 64) {
    std::memcpy(to, from, count);
  } else if (count >= 16) {
    for (; count > 32; to += 16, from += 16, count -= 16) std::memcpy(to, from, 16);
    copy_ends<16>(to, from, count);
  } else if (count >= 8) {
    copy_ends<8>(to, from, count);
  } else if (count >= 4) {
    copy_ends<4>(to, from, count);
  } else {
    for (int i = 0; i < count; ++i) to[i] = from[i];
  }
}

void copy_pixels(uint8_t* to, int to_step, const uint8_t* from, int step, int channels, int count) {
  if (channels == step && to_step == step) {
    std::memcpy(to, from, size_t(count) * step);
    return;
  }
  for (int pixel = 0; pixel < count; ++pixel, from += step, to += to_step) copy_codes(to, from, channels);
}

namespace {

// Writes one row of a segment piece by piece, across the block boundaries.
class RowWriter {
 public:
  RowWriter(uint8_t* row, int64_t block_bytes) : row_(row), block_bytes_(block_bytes) {}

  // null: zeros
  void put(const uint8_t* codes, int count) {
    while (count > 0) {
      const int inside = at_ % kBlock, piece = std::min(count, kBlock - inside);
      uint8_t* to = row_ + at_ / kBlock * block_bytes_ + inside;
      if (codes) {
        copy_codes(to, codes, piece);
        codes += piece;
      } else {
        std::memset(to, 0, piece);
      }
      at_ += piece;
      count -= piece;
    }
  }
  int at() const { return at_; }

 private:
  uint8_t* row_;
  int64_t block_bytes_;
  int at_ = 0;
};

// The taps of one group and segment. Inside the image they are the same offsets from the first tap for every position,
// and a kernel row of whole neighbouring pixels is one run of memory; only the border asks tap by tap.
class TapGather {
 public:
  TapGather(const LayerShape& shape, const Geometry& geometry, const uint8_t* codes, int first, int channels)
      : shape_(shape), g_(geometry), codes_(codes + first), channels_(channels) {
    const bool whole_pixels = channels == shape.channels && geometry.dilation_w == 1;
    run_ = whole_pixels ? shape.kernel_w * channels : channels;
    for (int kh = 0; kh < shape.kernel_h; ++kh)
      for (int kw = 0; kw < (whole_pixels ? 1 : shape.kernel_w); ++kw)
        offsets_.push_back((int64_t(kh) * g_.dilation_h * g_.in_w + kw * g_.dilation_w) * shape.channels);
  }

  void row(const OutputPosition& p, RowWriter& to) const {
    const int h = p.oh * g_.stride_h - g_.pad_top, w = p.ow * g_.stride_w - g_.pad_left;
    const bool inside = h >= 0 && w >= 0 && h + (shape_.kernel_h - 1) * g_.dilation_h < g_.in_h &&
                        w + (shape_.kernel_w - 1) * g_.dilation_w < g_.in_w;
    if (!inside) return border_row(p, to);
    const uint8_t* first = codes_ + ((int64_t(p.image) * g_.in_h + h) * g_.in_w + w) * shape_.channels;
    for (const int64_t offset : offsets_) to.put(first + offset, run_);
  }

 private:
  void border_row(const OutputPosition& p, RowWriter& to) const {
    for (int kh = 0; kh < shape_.kernel_h; ++kh)
      for (int kw = 0; kw < shape_.kernel_w; ++kw) {
        const int64_t pixel = tap_pixel(g_, p, kh, kw);
        to.put(pixel < 0 ? nullptr : codes_ + pixel * shape_.channels, channels_);
      }
  }

  const LayerShape& shape_;
  const Geometry& g_;
  const uint8_t* codes_;
  int channels_, run_;
  std::vector<int64_t> offsets_;
};

}  // namespace

void gather_rows(const Layer& layer, const Geometry& geometry, const uint8_t* codes, int group, int index, int64_t m0,
                 int rows, uint8_t* out) {
  const Segment& segment = layer.shape().segments[index];
  const int k_padded = layer.kernel(group, index).k_padded();
  const TapGather taps(layer.shape(), geometry, codes, segment.first_channel + segment.group_start[group],
                       segment.group_channels(group));
  OutputPosition position = output_position(geometry, m0);
  for (int i = 0; i < rows; ++i, advance(geometry, position)) {
    RowWriter writer(out + int64_t(i) * kRowStride, int64_t(rows) * kRowStride);
    taps.row(position, writer);
    writer.put(nullptr, k_padded - writer.at());
  }
}

// ---- border classes ----------------------------------------------------------------------------------------------------
namespace {

// Along one axis, output positions whose valid taps are the same interval are one class.
struct AxisClasses {
  std::vector<int32_t> of;                     // [out]
  std::vector<std::pair<int, int>> intervals;  // [class]: valid taps [first, second)

  AxisClasses(int out, int in, int taps, int stride, int pad, int dilation) {
    for (int o = 0; o < out; ++o) {
      int begin = taps, end = 0;
      for (int t = 0; t < taps; ++t) {
        const int at = o * stride - pad + t * dilation;
        if (at < 0 || at >= in) continue;
        begin = std::min(begin, t);
        end = t + 1;
      }
      const std::pair<int, int> interval(std::min(begin, end), end);
      const auto known = std::find(intervals.begin(), intervals.end(), interval);
      of.push_back(int32_t(known - intervals.begin()));
      if (known == intervals.end()) intervals.push_back(interval);
    }
  }
};

// Images of many sizes go through one layer, and each has its table: only the latest are kept.
constexpr size_t kKnownBorders = 8;

}  // namespace

std::shared_ptr<const BorderTable> Layer::border(const Geometry& g) const {
  const std::array<int, 10> key{g.in_h,     g.in_w,    g.out_h,    g.out_w,      g.stride_h,
                                g.stride_w, g.pad_top, g.pad_left, g.dilation_h, g.dilation_w};
  const std::lock_guard<std::mutex> lock(border_mutex_);
  auto known = std::find_if(borders_.begin(), borders_.end(), [&](const KnownBorder& b) { return b.first == key; });
  if (known == borders_.end()) {
    if (borders_.size() == kKnownBorders) borders_.pop_back();
    known = borders_.insert(borders_.end(), {key, make_border(g)});
  }
  std::rotate(borders_.begin(), known, known + 1);
  return borders_.front().second;
}

std::shared_ptr<const BorderTable> Layer::make_border(const Geometry& g) const {
  const AxisClasses h(g.out_h, g.in_h, shape_.kernel_h, g.stride_h, g.pad_top, g.dilation_h);
  const AxisClasses w(g.out_w, g.in_w, shape_.kernel_w, g.stride_w, g.pad_left, g.dilation_w);
  auto table = std::make_shared<BorderTable>();
  table->row_class = h.of;
  table->col_class = w.of;
  table->col_classes = int(w.intervals.size());
  for (const auto& [h0, h1] : h.intervals)
    for (const auto& [w0, w1] : w.intervals) {
      std::vector<uint32_t> terms(shape_.outputs, 0);
      for (int kh = h0; kh < h1; ++kh)
        for (int kw = w0; kw < w1; ++kw) {
          const uint32_t* tap = tap_terms_.data() + size_t(kh * shape_.kernel_w + kw) * shape_.outputs;
          for (int n = 0; n < shape_.outputs; ++n) terms[n] += tap[n];
        }
      table->terms.insert(table->terms.end(), terms.begin(), terms.end());
    }
  return table;
}

}  // namespace soniq
