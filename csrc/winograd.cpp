// The driver of 3 x 3 convolutions whose segments have Winograd's form (kernels/winograd_loop.h): 16 products where there were 36.
//
//   for each share of lines of tiles, two output lines each, or of panels (threads)
//     for each block of lines of tiles:   16 matrices [tile][channel] of what becomes of 4 x 4 pixels of a tile, in L2
//       for each panel:                   16 matrices of weights, made of the packed ones
//         for each few lines of tiles:    16 products of matrices, of both segments; 2 x 2 outputs a tile; epilogue while they are hot
//
//   pixels of a line of tiles    | . . . . |        tile 0
//                                    | . . . . |    tile 1, two pixels further: pixels are read by two tiles, and by two lines
#include <algorithm>
#include <climits>
#include <cstring>

#include "conv2d.h"
#include "layer.h"
#include "threads.h"

namespace soniq {
namespace {

constexpr int64_t kMatricesBytes = 256 << 10;  // stay in L2 while all panels pass
constexpr int kChannels = 32;                  // at least: 16 sums an output are written and read
constexpr int kTilesAtOnce = 14;               // whose matrices of sums stay in L1

int half_up(int n) { return (n + 1) / 2; }

// One segment's pixels.
struct Matrices {
  const WinogradWeights* weights = nullptr;
  int channels = 0, first_channel = 0, shift = 0;  // shift: of its sums against the least
  uint8_t* first = nullptr;                        // [piece][matrix][tile][channel]
  uint8_t* of_panels = nullptr;                    // weights
};

class WinogradRun {
 public:
  WinogradRun(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output)
      : layer_(layer),
        codes_(codes),
        g_(geometry),
        tiles_(half_up(g_.out_w)),
        pixels_(2 * tiles_ + 2),
        columns_(layer.kernel(0, 0).panel_columns()),
        border_(layer.border(geometry)),
        epilogue_(layer, output, geometry, border_.get()),
        panels_together_(epilogue_.takes_rows() ? 1 : panels_of_span(layer)) {
    for (int s = 0; s < layer.segments(); ++s) {
      const Segment& segment = layer.shape().segments[s];
      if (segment.channels == 0) continue;
      const int shift = layer.shift(s, kRowsAtOnce);
      segments_.push_back({layer.kernel(0, s).winograd(), segment.channels, segment.first_channel, shift});
      last_shift_ = std::min(last_shift_, shift);
      tile_bytes_ += kWinogradSums * segment.channels;
    }
    for (Matrices& m : segments_) m.shift -= last_shift_;
  }

  // Lines of tiles are numbered through all images.
  void share(Range lines, Range spans) {
    const int in_image = half_up(g_.out_h), most = int(std::max<int64_t>(1, kMatricesBytes / (tile_bytes_ * tiles_)));
    for (int64_t line = lines.begin; line < lines.end;) {
      const int first = int(line % in_image), left = int(std::min<int64_t>(lines.end - line, in_image - first));
      const int blocks = (left + most - 1) / most, count = (left + blocks - 1) / blocks;
      prepare(int(line / in_image), first, count);
      multiply(int(line / in_image), first, count, spans);
      line += count;
    }
  }

 private:
  // ---- pieces ------------------------------------------------------------------------------------------------------
  // Tiles that are multiplied together, of a few lines of a block, or of a part of one.
  struct Piece {
    int first, tiles;
  };
  int lines_together() const { return std::max(1, 2 * kTilesAtOnce / tiles_); }
  // body(piece) for those of lines [line, line + lines).
  template <class Body>
  void each_piece_of(int line, int lines, Body&& body) const {
    const int count = lines * tiles_, pieces = (count + kTilesAtOnce - 1) / kTilesAtOnce,
              most = (count + pieces - 1) / pieces;
    for (int at = 0; at < count; at += most) body(Piece{line * tiles_ + at, std::min(most, count - at)});
  }
  // body(tile of the piece, line, tile of the line, tiles) for what a piece has of every line.
  template <class Body>
  void each_line_of(const Piece& piece, Body&& body) const {
    for (int at = 0, here; at < piece.tiles; at += here) {
      const int line = (piece.first + at) / tiles_, in_line = (piece.first + at) % tiles_;
      here = std::min(piece.tiles - at, tiles_ - in_line);
      body(at, line, in_line, here);
    }
  }

  // ---- pixels ------------------------------------------------------------------------------------------------------
  void prepare(int image, int first, int count) {
    static thread_local AlignedBytes matrices[kMaxSegments];
    int at = 0;
    for (Matrices& m : segments_) {
      const Tier& tier = tier_with(layer_.tier(), &KernelTable::winograd);
      const int64_t line_bytes = int64_t(pixels_) * m.channels;
      m.first = scratch(matrices[at++], int64_t(kWinogradSums) * count * tiles_ * m.channels);
      fill_lines(m, image, 2 * first - g_.pad_top, 2 * count + 2);
      for (int line = 0; line < count; line += lines_together())
        each_piece_of(line, std::min(lines_together(), count - line), [&](const Piece& piece) {
          each_line_of(piece, [&](int tile, int of_line, int in_line, int tiles) {
            tier.table->winograd->pixels({lines_.data() + 2 * (of_line * line_bytes + in_line * m.channels), line_bytes,
                                          m.channels, tiles, m.channels, m.weights->offset,
                                          matrix(m, piece, 0) + tile * m.channels, m.channels,
                                          piece.tiles * m.channels});
          });
        });
      tier.counters.winograd_pixels.add(1);
    }
  }
  uint8_t* matrix(const Matrices& m, const Piece& piece, int number) const {
    return m.first + (int64_t(kWinogradSums) * piece.first + number * piece.tiles) * m.channels;
  }

  // Lines from h on that taps read, with zeros where the image has no pixels.
  void fill_lines(const Matrices& m, int image, int h, int count) {
    const int64_t line_bytes = int64_t(pixels_) * m.channels;
    const int begin = std::clamp(g_.pad_left, 0, pixels_), end = std::clamp(g_.pad_left + g_.in_w, begin, pixels_);
    if (int64_t(lines_.size()) < count * line_bytes) lines_.resize(size_t(count * line_bytes));
    const int step = layer_.shape().channels;
    uint8_t* line = lines_.data();
    for (int i = 0; i < count; ++i, ++h, line += line_bytes) {
      if (h < 0 || h >= g_.in_h) {
        std::memset(line, 0, size_t(line_bytes));
        continue;
      }
      std::memset(line, 0, size_t(begin * m.channels));
      const int64_t from = (int64_t(image) * g_.in_h + h) * g_.in_w * step + m.first_channel;
      copy_pixels(line + begin * m.channels, m.channels, codes_ + from, step, m.channels, end - begin);
      std::memset(line + int64_t(end) * m.channels, 0, size_t((pixels_ - end) * m.channels));
    }
  }

  // ---- products ----------------------------------------------------------------------------------------------------
  void multiply(int image, int first, int count, Range spans) {
    const int together = lines_together(), panels = (layer_.shape().outputs + columns_ - 1) / columns_;
    const int begin = int(spans.begin) * panels_of_span(layer_);
    const int end = std::min(panels, int(spans.end) * panels_of_span(layer_));
    for (int panel = begin; panel < end; panel += panels_together_) {
      const int here = std::min(panels_together_, end - panel);
      make_weights(panel, here);
      take_terms(panel, here);
      for (int line = 0; line < count; line += together)
        multiply_lines(image, first, line, std::min(together, count - line), panel, here);
    }
  }

  void make_weights(int panel, int count) {
    static thread_local AlignedBytes matrices[kMaxSegments];
    int at = 0;
    for (Matrices& m : segments_) {
      const int64_t bytes = kWinogradSums * m.weights->matrix_bytes();
      m.of_panels = scratch(matrices[at++], count * bytes);
      for (int i = 0; i < count; ++i) m.weights->panel(panel + i, m.of_panels + i * bytes);
    }
  }

  // Lines of tiles [first + line, + lines) of the block.
  void multiply_lines(int image, int first, int line, int lines, int panel, int panels) {
    static thread_local AlignedBytes outputs;
    const int begin = 2 * (first + line), height = std::min(2 * lines, g_.out_h - begin), n0 = panel * columns_;
    const int64_t panel_sums = int64_t(height) * g_.out_w * columns_;
    auto* const sums = reinterpret_cast<uint32_t*>(scratch(outputs, panels * panel_sums * 4));
    for (int i = 0; i < panels; ++i) {
      each_piece_of(line, lines, [&](const Piece& piece) {
        multiply_piece(piece, i);
        scatter(piece, line, height, sums + i * panel_sums);
      });
    }
    epilogue_.begin({(int64_t(image) * g_.out_h + begin) * g_.out_w, height * g_.out_w, n0,
                     std::min(panels * columns_, layer_.shape().outputs - n0)},
                    {columns_, last_shift_});
    epilogue_.finish(sums, panel_sums);
  }

  // To four matrices of outputs, [tile][column] each, row by row of the 16.
  void multiply_piece(const Piece& piece, int index) {
    static thread_local AlignedBytes buffer;
    const Tier& tier = tier_with(layer_.tier(), &KernelTable::winograd);
    const int64_t count = int64_t(piece.tiles) * columns_, stride = count + 16;
    auto* const sums = reinterpret_cast<uint32_t*>(scratch(buffer, 2 * 4 * stride * 4));
    outputs_ = sums + 4 * stride, outputs_stride_ = stride;
    for (int row = 0; row < 4; ++row) {
      for (int j = 0; j < 4; ++j)
        for (const Matrices& s : segments_) {
          const int number = 4 * row + j;
          const uint8_t* const weights = s.of_panels + (index * kWinogradSums + number) * s.weights->matrix_bytes();
          s.weights->multiply(weights, {matrix(s, piece, number), piece.tiles, piece.tiles, s.channels, 0, 0, 0},
                              sums + j * stride, s.shift, &s == segments_.data());
        }
      tier.table->winograd->sums(
          {row, terms_.data() + index * terms_of_panel(), sums, outputs_, stride, count, columns_});
    }
    tier.counters.winograd_sums.add(1);
  }

  void copy_panel(const uint32_t* from, uint32_t* to) const {
    constexpr int usual = 32;  // whose copy is a few instructions
    if (columns_ == usual)
      std::memcpy(to, from, usual * sizeof(uint32_t));
    else
      std::memcpy(to, from, size_t(columns_) * sizeof(uint32_t));
  }

  // What offsets of the pixels have added, [panel][output of a tile][column].
  void take_terms(int panel, int count) {
    terms_.assign(size_t(count) * terms_of_panel(), 0);
    for (const Matrices& s : segments_)
      for (int i = 0; i < count; ++i) {
        const uint32_t* const more = s.weights->of_offset(panel + i);
        for (int at = 0; at < terms_of_panel(); ++at) terms_[i * terms_of_panel() + at] += more[at] << s.shift;
      }
  }
  int terms_of_panel() const { return 4 * columns_; }

  // The outputs of a piece to their places, lines of tiles from `first_line` on being `height` lines of outputs.
  void scatter(const Piece& piece, int first_line, int height, uint32_t* to) const {
    each_line_of(piece, [&](int tile, int of_line, int in_line, int tiles) {
      const int line = 2 * (of_line - first_line);
      for (int i = 0; i < 4; ++i) {
        if (line + i / 2 >= height) break;
        const uint32_t* from = outputs_ + i * outputs_stride_ + tile * columns_;
        int column = 2 * in_line + i % 2;
        uint32_t* at = to + (int64_t(line + i / 2) * g_.out_w + column) * columns_;
        for (int n = 0; n < tiles && column < g_.out_w; ++n, column += 2, from += columns_, at += 2 * columns_)
          copy_panel(from, at);
      }
    });
  }

  const Layer& layer_;
  const uint8_t* codes_;
  const Geometry& g_;
  const int tiles_, pixels_;  // of a line
  const int columns_;         // of a panel
  std::shared_ptr<const BorderTable> border_;
  TileEpilogue epilogue_;
  const int panels_together_;
  std::vector<Matrices> segments_;
  int last_shift_ = INT_MAX;
  int64_t tile_bytes_ = 0;
  std::vector<uint8_t> lines_;
  std::vector<uint32_t> terms_;
  uint32_t* outputs_ = nullptr;
  int64_t outputs_stride_ = 0;
};

}  // namespace

// Tiles of 2 x 2 outputs must not be half empty, nor so few that making matrices of weights takes as long as multiplying them; four
// times the sums must fit 32 bits.
bool takes_winograd(const Layer& layer, const Geometry& g, const Output& output) {
  const bool one_apart = g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
  if (!layer.shares_pixels() || !one_apart || output.pools || layer.shape().channels < kChannels) return false;
  const int64_t tiles = int64_t(half_up(g.out_h)) * half_up(g.out_w), positions = int64_t(g.out_h) * g.out_w;
  int64_t largest = 0;
  for (int s = 0; s < layer.segments(); ++s) {
    if (layer.shape().segments[s].channels == 0) continue;
    const WinogradWeights* const weights = layer.kernel(0, s).winograd();
    if (!weights || layer.row_factor(s, kRowsAtOnce) != 0) return false;
    largest += weights->largest << layer.shift(s, kRowsAtOnce);
  }
  return largest > 0 && 4 * largest <= INT32_MAX && 20 * tiles <= 9 * positions && tiles >= 2 * kTilesAtOnce;
}

void run_winograd(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output) {
  const int64_t lines = int64_t(geometry.batch) * half_up(geometry.out_h), spans = spans_of_group(layer);
  const int threads = threads_for(geometry.rows() * layer.shape().products_per_row() * 4 / 9, std::max(lines, spans));
  const bool by_lines = lines >= 4 * threads || lines >= spans;
  parallel(threads, [&](int share, int shares) {
    const Range my_lines = by_lines ? share_of(lines, 1, share, shares) : Range{0, lines};
    const Range my_spans = by_lines ? Range{0, spans} : share_of(spans, 1, share, shares);
    if (my_lines.begin == my_lines.end || my_spans.begin == my_spans.end) return;
    WinogradRun(layer, codes, geometry, output).share(my_lines, my_spans);
  });
}

}  // namespace soniq
