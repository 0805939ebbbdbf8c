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
//
// Few channels (Taps::tall), which would make short runs, mostly padding: a line is made for each output line, of columns of as
// many pixels as the kernel has rows, and there is one run for a position:
//
//   | 0,0  1,0  2,0 | 0,1  1,1  2,1 | 0,2  1,2  2,2 | ...        row of the kernel, column of the image: a pixel's channels
#include <algorithm>
#include <array>
#include <cstring>

#include "conv2d.h"
#include "layer.h"
#include "threads.h"

namespace soniq {
namespace {

constexpr int64_t kPreparedBytes = 640 << 10;  // prepared lines stay in L2 while all panels pass
constexpr int64_t kPooledSums = 128 << 10;     // of lines that are pooled, which stay there too

int div_up(int64_t n, int64_t unit) { return int((n + unit - 1) / unit); }

// One segment's prepared lines: [part][line][pixel].
struct Lines {
  int codes = 0, first_channel = 0, channels = 0;  // codes: of a pixel, padded
  int64_t line_bytes = 0;
  uint32_t factor = 0;                             // of the sum of its codes in the integer result
  uint8_t* prepared = nullptr;
  int64_t part_stride = 0;
  std::vector<uint8_t> padded;  // a line before it is prepared
  int image = -1, h = 0;        // whose columns those are

  bool is_next(int of_image, int line, int stride) const { return image == of_image && line == h + stride; }
};

class ImageRun {
 public:
  ImageRun(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output)
      : layer_(layer),
        codes_(codes),
        g_(geometry),
        taps_(layer.kernel(0, 0).taps()),
        stride_h_(taps_.tall ? 1 : g_.stride_h),
        dilation_h_(taps_.tall ? 1 : g_.dilation_h),
        pixels_((g_.out_w - 1) * g_.stride_w + taps_.w),
        rows_at_once_(rows_at_once(layer)),
        border_(layer.border(geometry)),
        pooling_(output.pooling),
        epilogue_(layer, output, geometry, border_.get()) {
    for (int s = 0; s < layer.segments(); ++s) {
      const Segment& segment = layer.shape().segments[s];
      const SegmentKernel& kernel = layer.kernel(0, s);
      Lines& lines = lines_[s];
      lines.codes = kernel.pixel_codes();
      lines.first_channel = segment.first_channel;
      lines.channels = segment.channels;
      lines.line_bytes = kernel.prepared_codes_bytes(pixels_ * lines.codes);
      lines.factor = layer.row_factor(s, rows_at_once_);
      has_row_terms_ |= lines.factor != 0;
      lines.padded.assign(size_t(int64_t(pixels_ + g_.stride_w) * lines.codes + kPixelSlack), 0);
    }
    if (taps_.tall) zeros_.assign(size_t(g_.in_w + 1) * layer.shape().channels + kFewChannels, 0);
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

  // The same of lines of windows: only what is largest in one is finished. Lines that two blocks read are multiplied twice.
  void share_pooled(Range lines, Range spans) {
    const Geometry& p = pooling_.geometry;
    const int most = pooled_lines_of_block();
    for (int64_t line = lines.begin; line < lines.end;) {
      const int oh = int(line % p.out_h), count = int(std::min<int64_t>({most, lines.end - line, p.out_h - oh}));
      const int image = int(line / p.out_h), first = oh * p.stride_h - p.pad_top;
      const int begin = std::max(first, 0);
      const int end = std::min(first + (count - 1) * p.stride_h + pooling_.kernel_h, g_.out_h);
      prepare(image, begin, end - begin);
      take_windows(oh, count, begin);
      const Windows windows{line * p.out_w, count * p.out_w, pooling_.kernel_h * pooling_.kernel_w, windows_.data()};
      multiply_rows(int64_t(image) * g_.out_h + begin, 0, end - begin, 0, g_.out_w, spans, &windows);
      line += count;
    }
  }

 private:
  int pooled_lines_of_block() const {
    const int64_t sums = int64_t(g_.out_w) * layer_.shape().outputs;
    const int lines = int(std::min<int64_t>(lines_of_block(), kPooledSums / sums));
    return std::max(1, (lines - pooling_.kernel_h) / pooling_.geometry.stride_h + 1);
  }
  // Of windows of lines [oh, oh + count), as rows of outputs from a line on. A tap in the padding is another one's twin.
  void take_windows(int oh, int count, int first_line) {
    const Geometry& p = pooling_.geometry;
    const int height = pooling_.kernel_h, width = pooling_.kernel_w;
    if (window_columns_.empty())
      for (int ow = 0; ow < p.out_w; ++ow)
        for (int kw = 0; kw < width; ++kw)
          window_columns_.push_back(std::clamp(ow * p.stride_w - p.pad_left + kw, 0, g_.out_w - 1));
    windows_.resize(size_t(count) * p.out_w * height * width);
    int32_t* to = windows_.data();
    for (int i = 0; i < count; ++i, to += p.out_w * height * width)
      for (int kh = 0; kh < height; ++kh) {
        const int h = std::clamp((oh + i) * p.stride_h - p.pad_top + kh, 0, g_.out_h - 1);
        const int32_t* column = window_columns_.data();
        for (int ow = 0; ow < p.out_w; ++ow)
          for (int kw = 0; kw < width; ++kw)
            to[(ow * height + kh) * width + kw] = (h - first_line) * g_.out_w + *column++;
      }
  }

  // Prepared lines that output lines read.
  int lines_read(int lines) const { return (lines - 1) * stride_h_ + (taps_.lines() - 1) * dilation_h_ + 1; }
  int lines_of_block() const {
    int64_t bytes = 1;
    for (int s = 0; s < layer_.segments(); ++s) bytes += lines_[s].line_bytes * layer_.kernel(0, s).prepared_parts();
    const int64_t fit = kPreparedBytes / bytes, halo = lines_read(1);
    return fit <= halo ? 1 : int((fit - halo) / stride_h_) + 1;
  }

  // ---- pixels ------------------------------------------------------------------------------------------------------
  void prepare(int image, int first_oh, int count) {
    static thread_local AlignedBytes prepared[kMaxSegments];
    const int lines = lines_read(count), first = first_oh * g_.stride_h - g_.pad_top;
    if (has_row_terms_) line_terms_.assign(size_t(lines) * g_.out_w, 0);
    for (int s = 0; s < layer_.segments(); ++s) {
      if (lines_[s].channels == 0) continue;
      lines_[s].part_stride = lines * lines_[s].line_bytes + kPixelSlack;
      lines_[s].prepared = scratch(prepared[s], lines_[s].part_stride * layer_.kernel(0, s).prepared_parts());
      for (int line = 0; line < lines; ++line)
        prepare_line(s, image, first + line * (taps_.tall ? g_.stride_h : 1), line);
    }
  }

  // A line of the padding has code 0 everywhere, and what is prepared of it is 0 in every family.
  void prepare_line(int s, int image, int h, int line) {
    const SegmentKernel& kernel = layer_.kernel(0, s);
    uint8_t* out = lines_[s].prepared + line * lines_[s].line_bytes;
    if (taps_.tall || in_image(h)) {
      fill_padded_line(lines_[s], image, h);
      const uint8_t* const padded = lines_[s].padded.data();
      add_line_terms(lines_[s], padded, line_terms_.data() + int64_t(line) * g_.out_w);
      kernel.prepare_pixels(padded, pixels_, g_.stride_w, out, lines_[s].part_stride);
    } else {
      for (int part = 0; part < kernel.prepared_parts(); ++part, out += lines_[s].part_stride)
        std::memset(out, 0, size_t(lines_[s].line_bytes + kPixelSlack / 2));
    }
  }

  bool in_image(int h) const { return h >= 0 && h < g_.in_h; }

  // The segment's channels of every pixel, or column of pixels, that taps read. The zeros beside them, and behind the last one,
  // are there for all lines.
  void fill_padded_line(Lines& lines, int image, int h) {
    const int count = std::clamp(pixels_ - g_.pad_left, 0, g_.in_w);
    uint8_t* to = lines.padded.data() + int64_t(g_.pad_left) * lines.codes;
    if (taps_.tall)
      copy_columns(lines, image, h, count, to);
    else
      copy_pixels(to, lines.codes, line_of(lines, image, h), layer_.shape().channels, lines.channels, count);
  }
  const uint8_t* line_of(const Lines& lines, int image, int h) const {
    return codes_ + (int64_t(image) * g_.in_h + h) * g_.in_w * layer_.shape().channels + lines.first_channel;
  }

  // Column by column, some bytes at once where those behind a row's channels are written later: they are the next row's, or the
  // next column's. The last columns are copied by themselves, so that nothing is read or written past the line.
  void copy_columns(Lines& lines, int image, int h, int count, uint8_t* to) {
    const int step = layer_.shape().channels, channels = lines.channels, wide = channels <= 4 ? 4 : 8;
    const int moved = lines.is_next(image, h, g_.stride_h) ? rows_to_move(channels, wide) : 0;
    lines.image = image, lines.h = h;
    rows_.clear();
    for (int i = moved; i < taps_.h; ++i) {
      const int row = h + i * g_.dilation_h;
      rows_.push_back(in_image(row) ? line_of(lines, image, row) : zeros_.data());
    }
    const bool reaches_two = wide - channels > taps_.h * channels;
    const int last = channels > wide || reaches_two ? 0 : std::max(0, count - (wide - 1) / step - 1);
    if (wide == 4) copy_columns_of<4>(last, channels, step, lines.codes, to);
    if (wide == 8) copy_columns_of<8>(last, channels, step, lines.codes, to);
    for (int pixel = last; pixel < count; ++pixel) {
      uint8_t* const column = to + int64_t(pixel) * lines.codes;
      if (moved > 0) std::memmove(column, column + g_.stride_h * channels, size_t(moved * channels));
      for (int i = moved; i < taps_.h; ++i)
        copy_codes(column + i * channels, rows_[i - moved] + int64_t(pixel) * step, channels);
    }
  }

  // A column has most of its rows from the line before, some places further down, and moves them at once. What the column before wrote
  // behind its own must end before them.
  using Moved = std::array<uint8_t, 16>;
  int rows_to_move(int channels, int wide) const {
    const int from = g_.stride_h * channels, all = taps_.h * channels, whole = int(sizeof(Moved));
    const bool fit = all - from > whole / 2 && all - from <= whole && whole <= all;
    return fit && g_.dilation_h == 1 && wide - channels <= from ? taps_.h - g_.stride_h : 0;
  }
  template <int Bytes>
  void copy_columns_of(int count, int channels, int64_t step, int64_t to_step, uint8_t* to) const {
    if (int(rows_.size()) < taps_.h) switch (rows_.size()) {
        case 1: return copy_columns_of<Bytes, 1, true>(count, channels, step, to_step, to);
        case 2: return copy_columns_of<Bytes, 2, true>(count, channels, step, to_step, to);
        default: return copy_columns_of<Bytes, 0, true>(count, channels, step, to_step, to);
      }
    switch (taps_.h) {
      case 3: return copy_columns_of<Bytes, 3, false>(count, channels, step, to_step, to);
      case 5: return copy_columns_of<Bytes, 5, false>(count, channels, step, to_step, to);
      case 7: return copy_columns_of<Bytes, 7, false>(count, channels, step, to_step, to);
      default: return copy_columns_of<Bytes, 0, false>(count, channels, step, to_step, to);
    }
  }
  // `Rows` that are copied, or 0: any.
  template <int Bytes, int Rows, bool Moves>
  void copy_columns_of(int count, int channels, int64_t step, int64_t to_step, uint8_t* to) const {
    const int all = taps_.h * channels, fresh = Rows ? Rows : int(rows_.size()), first = all - fresh * channels;
    const int64_t from = int64_t(taps_.h - first / channels) * channels;
    const uint8_t* rows[Rows ? Rows : 1];
    for (int i = 0; i < Rows; ++i) rows[i] = rows_[i];
    const uint8_t* const* row = Rows ? rows : rows_.data();
    for (int64_t at = 0; count > 0; --count, at += step, to += to_step) {
      if (Moves) {
        Moved chunk;
        std::memcpy(&chunk, to + from, sizeof chunk);
        std::memcpy(to, &chunk, sizeof chunk);
      }
#pragma GCC unroll 8
      for (int i = 0; i < fresh; ++i) std::memcpy(to + first + i * channels, row[i] + at, Bytes);
      // What a pixel is padded with stays 0: sums of codes count it.
      if (to_step > all) std::memset(to + all, 0, size_t(Bytes - channels));
    }
  }

  // Of the codes that each position of a line reads: of its columns, which are one run, or of its pixels, which others read too.
  void add_line_terms(const Lines& lines, const uint8_t* padded, uint32_t* terms) {
    if (lines.factor == 0) return;
    const int step = g_.stride_w, taps = taps_.tall ? 1 : taps_.w, sums = taps_.tall ? g_.out_w : pixels_;
    pixel_sums_.resize(sums);
    if (taps_.tall)
      sum_codes(padded, taps_.w * lines.codes, step * lines.codes, lines.factor);
    else
      sum_codes(padded, lines.codes, lines.codes, lines.factor);
    const int apart = taps_.tall ? 1 : step;
    for (int kw = 0; kw < taps; ++kw) add_apart(pixel_sums_.data() + kw, apart, g_.out_w, terms);
  }

  // factor * the sum of `codes` codes, for as many runs as there are pixel_sums_.
  void sum_codes(const uint8_t* run, int codes, int64_t run_stride, uint32_t factor) {
    const Tier& tier = tier_with(layer_.tier(), &KernelTable::sum_bytes);
    const int runs = int(pixel_sums_.size());
    block_sums_.resize(size_t(runs));
    std::fill(pixel_sums_.begin(), pixel_sums_.end(), 0);
    for (int k = 0; k < codes; k += kBlock) {
      tier.table->sum_bytes(run + k, run_stride, std::min(kBlock, codes - k), runs, block_sums_.data());
      for (int i = 0; i < runs; ++i) pixel_sums_[i] += factor * block_sums_[i];
    }
    tier.counters.sum_bytes.add(1);
  }

  static void add_apart(const uint32_t* from, int apart, int count, uint32_t* to) {
    if (apart == 1)
      for (int i = 0; i < count; ++i) to[i] += from[i];
    else
      for (int i = 0; i < count; ++i) to[i] += from[i * apart];
  }

  // ---- products ----------------------------------------------------------------------------------------------------
  // Whole lines together, or a part of one that is longer than that.
  void multiply(int64_t first_line, int count, Range spans) {
    const int lines = std::max(1, rows_at_once_ / g_.out_w), width = std::min(g_.out_w, 4 * rows_at_once_);
    for (int line = 0; line < count; line += lines)
      for (int ow = 0; ow < g_.out_w; ow += width)
        multiply_rows(first_line, line, std::min(lines, count - line), ow, std::min(width, g_.out_w - ow), spans);
  }

  void multiply_rows(int64_t first_line, int line, int lines, int ow, int width, Range spans,
                     const Windows* windows = nullptr) {
    if (has_row_terms_) take_row_terms(line, lines, ow, width);
    PreparedRows rows[kMaxSegments];
    for (int s = 0; s < layer_.segments(); ++s) rows[s] = prepared_rows(s, line, lines, ow, width);
    const LinesInRun in_run = windows ? LinesInRun{} : join_lines(rows[0], width);
    for (int64_t span = spans.begin; span < spans.end; ++span)
      finish_span(layer_, 0, int(span), rows, (first_line + line) * g_.out_w + ow, lines * width,
                  has_row_terms_ ? row_terms_.data() : nullptr, epilogue_, in_run, windows);
  }

  // Whole lines one pixel apart, whose positions go on over the zeros between them: a matrix unit's groups are then full.
  LinesInRun join_lines(PreparedRows& rows, int width) const {
    const bool one_apart = width == g_.out_w && g_.stride_w == 1 && stride_h_ == 1;
    if (!one_apart || !layer_.kernel(0, 0).prefers_one_run(rows, pixels_)) return {};
    const PreparedRows run = in_one_run(rows, pixels_);
    if (!completes_rows(layer_, 0, run, epilogue_)) return {};
    rows = run;
    return {width, pixels_};
  }

  PreparedRows prepared_rows(int s, int line, int lines, int ow, int width) const {
    const Lines& from = lines_[s];
    const int64_t pixel_bytes = layer_.kernel(0, s).prepared_codes_bytes(from.codes);
    const uint8_t* first = from.prepared + int64_t(line) * stride_h_ * from.line_bytes + ow * g_.stride_w * pixel_bytes;
    return {first,
            lines * width,
            width,
            g_.stride_w * pixel_bytes,
            stride_h_ * from.line_bytes,
            dilation_h_ * from.line_bytes,
            from.part_stride};
  }

  // What the algebra wants of the sum of codes that a position reads.
  void take_row_terms(int line, int lines, int ow, int width) {
    row_terms_.assign(size_t(lines) * width, 0);
    uint32_t* term = row_terms_.data();
    for (int i = line; i < line + lines; ++i, term += width)
      for (int kh = 0; kh < taps_.lines(); ++kh)
        add_apart(line_terms_.data() + (int64_t(i) * stride_h_ + kh * dilation_h_) * g_.out_w + ow, 1, width, term);
  }

  const Layer& layer_;
  const uint8_t* codes_;
  const Geometry& g_;
  const Taps taps_;
  const int stride_h_, dilation_h_;  // in prepared lines
  const int pixels_;                 // of a line that taps read
  const int rows_at_once_;
  bool has_row_terms_ = false;
  std::shared_ptr<const BorderTable> border_;
  const PoolTask& pooling_;
  TileEpilogue epilogue_;
  Lines lines_[kMaxSegments];
  std::vector<uint8_t> zeros_;        // a line of the padding
  std::vector<const uint8_t*> rows_;  // of a column
  std::vector<uint32_t> pixel_sums_, block_sums_, line_terms_, row_terms_;
  std::vector<int32_t> windows_, window_columns_;
};

}  // namespace

void run_image(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output) {
  const int64_t lines = int64_t(geometry.batch) * (output.pools ? output.pooling.geometry.out_h : geometry.out_h);
  const int64_t spans = spans_of_group(layer);
  const int threads = threads_for(geometry.rows() * layer.shape().products_per_row(), std::max(lines, spans));
  const bool by_lines = lines >= 4 * threads || lines >= spans;
  parallel(threads, [&](int share, int shares) {
    const Range my_lines = by_lines ? share_of(lines, 1, share, shares) : Range{0, lines};
    const Range my_spans = by_lines ? Range{0, spans} : share_of(spans, 1, share, shares);
    if (my_lines.begin == my_lines.end || my_spans.begin == my_spans.end) return;
    ImageRun run(layer, codes, geometry, output);
    output.pools ? run.share_pooled(my_lines, my_spans) : run.share(my_lines, my_spans);
  });
}

}  // namespace soniq
