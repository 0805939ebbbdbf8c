// The driver of convolutions with several taps: activations are prepared pixel by pixel, once for all taps that read them.
//
//   for each share of output lines or panels (threads)
//     for each block of lines of an image:    the lines of pixels that they read, padded with zeros, prepared for each segment
//       for each few output lines and span:   every line of the kernel multiplies runs of neighbouring pixels
//         epilogue while the sums are hot
//
//   a line, padding included:   | pixel 0 | pixel 1 | pixel 2 | pixel 3 | ...        pixel_codes() codes each
//   three taps of position 0:   |---------- a run -----------|
//   of position 1, stride 1:              |---------- a run -----------|
//
// A run is padded to the family's unit by weights of 0, which meet the next pixel's codes and add nothing.
#include <algorithm>
#include <cstring>

#include "conv2d.h"
#include "layer.h"
#include "threads.h"

namespace soniq {
namespace {

constexpr int64_t kPreparedBytes = 640 << 10;  // prepared lines stay in L2 while all panels pass
constexpr int kRows = 128;                     // sums of a span stay close

int div_up(int64_t n, int64_t unit) { return int((n + unit - 1) / unit); }

// One segment's prepared lines: [part][line][pixel].
struct Lines {
  int codes = 0, first_channel = 0, channels = 0;  // codes: of a pixel, padded
  int64_t line_bytes = 0;
  uint32_t factor = 0;                             // of the sum of its codes in the integer result
  uint8_t* prepared = nullptr;
  int64_t part_stride = 0;
};

class ImageRun {
 public:
  ImageRun(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output)
      : layer_(layer),
        codes_(codes),
        g_(geometry),
        pixels_((g_.out_w - 1) * g_.stride_w + layer.shape().kernel_w),
        columns_(layer.kernel(0, 0).panel_columns()),
        panels_(panels_of_span(layer)),
        border_(layer.border(geometry)),
        epilogue_(layer, output, geometry, border_.get()) {
    for (int s = 0; s < layer.segments(); ++s) {
      const Segment& segment = layer.shape().segments[s];
      const SegmentKernel& kernel = layer.kernel(0, s);
      Lines& lines = lines_[s];
      lines = {kernel.pixel_codes(), segment.first_channel, segment.channels};
      lines.line_bytes = kernel.prepared_codes_bytes(pixels_ * lines.codes);
      lines.factor = layer.row_factor(s);
    }
  }

  // Output lines are numbered through all images.
  void share(Range lines, Range spans) {
    const int most = lines_of_block();
    for (int64_t line = lines.begin; line < lines.end;) {
      const int oh = int(line % g_.out_h), left = int(std::min<int64_t>(lines.end - line, g_.out_h - oh));
      const int count = div_up(left, div_up(left, most));
      prepare(int(line / g_.out_h), oh, count);
      multiply(line, count, spans);
      line += count;
    }
  }

 private:
  int input_lines(int lines) const {
    return (lines - 1) * g_.stride_h + (layer_.shape().kernel_h - 1) * g_.dilation_h + 1;
  }
  int lines_of_block() const {
    int64_t bytes = 1;
    for (int s = 0; s < layer_.segments(); ++s) bytes += lines_[s].line_bytes * layer_.kernel(0, s).prepared_parts();
    const int64_t fit = kPreparedBytes / bytes, halo = input_lines(1);
    return fit <= halo ? 1 : int((fit - halo) / g_.stride_h) + 1;
  }

  // ---- pixels ------------------------------------------------------------------------------------------------------
  void prepare(int image, int first_oh, int count) {
    static thread_local AlignedBytes prepared[kMaxSegments];
    const int lines = input_lines(count), first = first_oh * g_.stride_h - g_.pad_top;
    pixel_terms_.assign(size_t(lines) * pixels_, 0);
    for (int s = 0; s < layer_.segments(); ++s) {
      if (lines_[s].channels == 0) continue;
      lines_[s].part_stride = lines * lines_[s].line_bytes + kPixelSlack;
      lines_[s].prepared = scratch(prepared[s], lines_[s].part_stride * layer_.kernel(0, s).prepared_parts());
      for (int line = 0; line < lines; ++line) prepare_line(s, image, first + line, line);
    }
  }

  // A line of the padding has code 0 everywhere, and what is prepared of it is 0 in every family.
  void prepare_line(int s, int image, int h, int line) {
    const SegmentKernel& kernel = layer_.kernel(0, s);
    uint8_t* out = lines_[s].prepared + line * lines_[s].line_bytes;
    if (h >= 0 && h < g_.in_h) {
      const uint8_t* padded = padded_line(lines_[s], codes_ + (int64_t(image) * g_.in_h + h) * line_codes());
      add_pixel_terms(lines_[s], padded, pixel_terms_.data() + int64_t(line) * pixels_);
      kernel.prepare_pixels(padded, pixels_, g_.stride_w, out, lines_[s].part_stride);
    } else {
      for (int part = 0; part < kernel.prepared_parts(); ++part, out += lines_[s].part_stride)
        std::memset(out, 0, size_t(lines_[s].line_bytes + kPixelSlack / 2));
    }
  }

  int64_t line_codes() const { return int64_t(g_.in_w) * layer_.shape().channels; }

  // The segment's channels of every pixel that taps read, zeros beside them, and behind the last one.
  const uint8_t* padded_line(const Lines& lines, const uint8_t* codes) {
    const int64_t size = int64_t(pixels_ + g_.stride_w) * lines.codes + kPixelSlack;
    padded_.assign(size_t(size), 0);
    const int first = std::max(0, -first_pixel()), end = std::min(pixels_, g_.in_w - first_pixel());
    for (int pixel = first; pixel < end; ++pixel)
      copy_codes(padded_.data() + int64_t(pixel) * lines.codes,
                 codes + int64_t(first_pixel() + pixel) * layer_.shape().channels + lines.first_channel,
                 lines.channels);
    return padded_.data();
  }
  int first_pixel() const { return -g_.pad_left; }

  void add_pixel_terms(const Lines& lines, const uint8_t* padded, uint32_t* terms) {
    if (lines.factor == 0) return;
    const Tier& tier = tier_with(layer_.tier(), &KernelTable::sum_bytes);
    const int vector = lines.codes / 8 * 8;
    for (int pixel = 0; pixel < pixels_; ++pixel, padded += lines.codes) {
      uint32_t sum = 0;
      for (int k = 0; k < vector; k += kBlock)
        sum += uint32_t(tier.table->sum_bytes(padded + k, std::min(kBlock, vector - k)));
      for (int k = vector; k < lines.codes; ++k) sum += padded[k];
      terms[pixel] += lines.factor * sum;
    }
    tier.counters.sum_bytes.add(1);
  }

  // ---- products ----------------------------------------------------------------------------------------------------
  // Whole lines together, or a part of one that is longer than that.
  void multiply(int64_t first_line, int count, Range spans) {
    const int lines = std::max(1, kRows / g_.out_w), width = std::min(g_.out_w, 4 * kRows);
    for (int line = 0; line < count; line += lines)
      for (int ow = 0; ow < g_.out_w; ow += width)
        multiply_rows(first_line, line, std::min(lines, count - line), ow, std::min(width, g_.out_w - ow), spans);
  }

  void multiply_rows(int64_t first_line, int line, int lines, int ow, int width, Range spans) {
    take_row_terms(line, lines, ow, width);
    PreparedRows rows[kMaxSegments];
    for (int s = 0; s < layer_.segments(); ++s) rows[s] = prepared_rows(s, line, lines, ow, width);
    for (int64_t span = spans.begin; span < spans.end; ++span)
      multiply_span(rows, (first_line + line) * g_.out_w + ow, lines * width, int(span));
  }

  PreparedRows prepared_rows(int s, int line, int lines, int ow, int width) const {
    const Lines& from = lines_[s];
    const int64_t pixel_bytes = layer_.kernel(0, s).prepared_codes_bytes(from.codes);
    const uint8_t* first =
        from.prepared + int64_t(line) * g_.stride_h * from.line_bytes + ow * g_.stride_w * pixel_bytes;
    return {first,
            lines * width,
            width,
            g_.stride_w * pixel_bytes,
            g_.stride_h * from.line_bytes,
            g_.dilation_h * from.line_bytes,
            from.part_stride};
  }

  void multiply_span(const PreparedRows* rows, int64_t m0, int count, int span) {
    static thread_local AlignedBytes sums_bytes;
    const int64_t panel_sums = int64_t(count) * columns_;
    auto* sums = reinterpret_cast<uint32_t*>(scratch(sums_bytes, panels_ * panel_sums * 4));
    std::memset(sums, 0, size_t(panels_ * panel_sums) * 4);
    const int n0 = span * panels_ * columns_, cols = std::min(panels_ * columns_, layer_.shape().outputs - n0);
    for (int s = 0; s < layer_.segments(); ++s)
      if (lines_[s].channels > 0)
        layer_.kernel(0, s).multiply(span * panels_, div_up(cols, columns_), rows[s], layer_.shift(s), sums,
                                     panel_sums);
    epilogue_({sums, panel_sums, columns_}, row_terms_.data(), m0, count, n0, cols);
  }

  // What the algebra wants of the sum of codes that a position reads.
  void take_row_terms(int line, int lines, int ow, int width) {
    row_terms_.assign(size_t(lines) * width, 0);
    uint32_t* term = row_terms_.data();
    for (int i = line; i < line + lines; ++i, term += width)
      for (int kh = 0; kh < layer_.shape().kernel_h; ++kh) {
        const uint32_t* pixels =
            pixel_terms_.data() + (int64_t(i) * g_.stride_h + kh * g_.dilation_h) * pixels_ + ow * g_.stride_w;
        for (int kw = 0; kw < layer_.shape().kernel_w; ++kw)
          for (int j = 0; j < width; ++j) term[j] += pixels[kw + j * g_.stride_w];
      }
  }

  const Layer& layer_;
  const uint8_t* codes_;
  const Geometry& g_;
  const int pixels_;   // of a line that taps read
  const int columns_;  // of a panel
  const int panels_;   // of a span
  std::shared_ptr<const BorderTable> border_;
  TileEpilogue epilogue_;
  Lines lines_[kMaxSegments];
  std::vector<uint8_t> padded_;
  std::vector<uint32_t> pixel_terms_, row_terms_;
};

}  // namespace

void run_image(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output) {
  const int64_t lines = int64_t(geometry.batch) * geometry.out_h, spans = spans_of_group(layer);
  const int threads = threads_for(geometry.rows() * layer.shape().products_per_row(), std::max(lines, spans));
  const bool by_lines = lines >= 4 * threads || lines >= spans;
  parallel(threads, [&](int share, int shares) {
    const Range my_lines = by_lines ? share_of(lines, 1, share, shares) : Range{0, lines};
    const Range my_spans = by_lines ? Range{0, spans} : share_of(spans, 1, share, shares);
    if (my_lines.begin == my_lines.end || my_spans.begin == my_spans.end) return;
    ImageRun(layer, codes, geometry, output).share(my_lines, my_spans);
  });
}

}  // namespace soniq
