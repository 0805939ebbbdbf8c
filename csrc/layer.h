// A layer ready to run on one tier: weights as panels, the sums the algebra needs, and the call itself.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "aligned.h"
#include "depthwise.h"
#include "dispatch.h"
#include "format.h"
#include "join.h"
#include "quantize.h"
#include "segment_kernel.h"
#include "tensor.h"

namespace soniq {

// What a layer reads: codes in stored order, or floats that it quantizes on the way in.
struct Input {
  const uint8_t* codes = nullptr;        // [batch][in_h][in_w][channels], or
  const QuantizeTask* floats = nullptr;  // one row a pixel
};

// Codes of a tensor: what an operation reads, and what it writes.
struct CodesIn {
  const uint8_t* codes = nullptr;  // [rows][channels] in stored order; null: there are none
  const TensorFormat* format = nullptr;
  const float* scales = nullptr;   // one per `rows_per_scale` rows
  int64_t rows_per_scale = 1;
};
struct CodesOut {
  uint8_t* codes = nullptr;
  const TensorFormat* format = nullptr;
};

// What the caller wants of the values of a tensor, [rows][channels], dense: float32, or codes, or both.
struct Results {
  float* y = nullptr;
  int sinks = 0;
  CodesOut sink[kMaxSinks];

  TileResults tile(int64_t row, int column, int64_t ld) const;
};

// What the caller wants of the integers; pointers that may be null say so. Outputs are [rows][outputs], dense.
struct Output {
  int32_t* acc = nullptr;  // the integers themselves, or
  Results results;

  const float* activation_scale = nullptr;  // one per `rows_per_scale` output rows, times
  float unit = 1;                           // 2^E, exactly: neither leaves the normal range
  int64_t rows_per_scale = 1;
  const float* w_scale = nullptr;           // [outputs]
  const float* bias = nullptr;              // [outputs] or null
  const float* residual = nullptr;          // [rows][outputs] or null
  CodesIn residual_codes;
  Activation activation = Activation::none;
  float lo = 0, hi = 0;
  const float* post_scale = nullptr;  // [outputs] or null
  const float* post_bias = nullptr;   // [outputs] or null

  bool pools = false;                 // codes alone, and of every window of outputs only the largest
  PoolTask pooling;
};

// Integer terms per output that depend on which taps are valid. Taps outside the image are exactly 0: activation
// code 0, and weights' sums and K over the valid taps alone. Interior positions share one class.
struct BorderTable {
  std::vector<int32_t> row_class;  // [out_h], and
  std::vector<int32_t> col_class;  // [out_w]: the class is row_class * col_classes + col_class
  int col_classes = 1;
  std::vector<uint32_t> terms;     // [classes][outputs]
};

class Layer {
 public:
  // streams[s]: codes of segment s, [output][tap][channel of the output's group]. families: one a segment, of its
  // candidates; none: those with the highest ceilings. share_pixels: a convolution without dilation along its lines and
  // without groups prepares each pixel once for all taps, unless that is mostly padding; otherwise rows are gathered, which
  // serves every geometry.
  // joins: the shape has one segment, of codes that these maps make of the caller's.
  Layer(LayerShape shape, const uint8_t* const* streams, const Tier& tier, const std::vector<Family>& families = {},
        bool share_pixels = false, std::vector<CodeMap> joins = {});

  // False if some float is not finite; the output is written all the same.
  bool run(const Input& input, const Geometry& geometry, const Output& output) const;
  void run(const uint8_t* codes, const Geometry& geometry, const Output& output) const {
    run(Input{codes, nullptr}, geometry, output);
  }

  const LayerShape& shape() const { return shape_; }
  Family family() const { return family_; }                  // of the first segment, where segments have families
  const Tier& tier() const { return tier_; }                 // asked for
  const Tier& kernel_tier() const { return *kernel_tier_; }  // whose kernel runs
  int64_t panel_bytes() const;

  bool has_kernels() const { return !kernels_.empty(); }
  bool shares_pixels() const { return has_kernels() && kernel(0, 0).taps().any(); }
  const SegmentKernel& kernel(int group, int segment) const { return *kernels_[group * segments() + segment]; }
  int segments() const { return int(shape_.segments.size()); }
  // log2 of the factor that S of this segment carries in the integer result.
  int shift(int segment, int rows) const;
  // The factor of Ca in the integer result, with so many rows: of what S does not have of the weights.
  uint32_t row_factor(int segment, int rows) const;
  const uint8_t* stream(int segment) const { return streams_[segment].data(); }  // reference family
  const DepthwiseWeights& depthwise() const { return *depthwise_; }              // depthwise family
  // Whether valid taps add a constant, that of their border class.
  bool has_activation_terms() const;
  std::shared_ptr<const BorderTable> border(const Geometry& geometry) const;

 private:
  Family choose_family();
  bool run_drivers(const Input& input, const Geometry& geometry, const Output& output) const;
  bool run_joined(const Input& input, const Geometry& geometry, const Output& output) const;
  std::shared_ptr<const BorderTable> make_border(const Geometry& geometry) const;
  void build_kernels(const uint8_t* const* streams, const std::vector<Family>& families, const Taps& taps);
  bool has_few_channels() const;
  bool mostly_padding() const;
  void copy_streams(const uint8_t* const* streams);
  void sum_taps(const uint8_t* const* streams);

  using KnownBorder = std::pair<std::array<int, 10>, std::shared_ptr<const BorderTable>>;

  LayerShape shape_;
  const std::vector<CodeMap> joins_;
  const Tier& tier_;
  const Tier* kernel_tier_;
  Family family_;
  std::vector<std::unique_ptr<SegmentKernel>> kernels_;  // [group][segment]
  std::vector<std::vector<uint8_t>> streams_;
  std::unique_ptr<const DepthwiseWeights> depthwise_;
  std::vector<uint32_t> tap_terms_;           // [tap][output]: what a valid tap adds to the constant of an output
  mutable std::mutex border_mutex_;
  mutable std::vector<KnownBorder> borders_;  // those of the last few geometries, latest first
};

// The drivers.
bool run_panels(const Layer& layer, const Input& input, const Geometry& geometry, const Output& output);
// Of a layer that shares pixels; the geometry has dilation_w 1.
void run_image(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output);
// The same with Winograd's form of 3 x 3 taps, one apart, where segments have it.
bool takes_winograd(const Layer& layer, const Geometry& geometry, const Output& output);
void run_winograd(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output);
void run_depthwise(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output);
// Whether run_image writes what is left of a pooling; where it does not, all outputs are written and pooled.
bool finishes_pooled(const Layer& layer, const Geometry& geometry, const Output& output);
bool run_and_pool(const Layer& layer, const Input& input, const Geometry& geometry, const Output& output);
void run_reference(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output);

// Panels that drivers finish together, and how often that covers the outputs of a group.
int panels_of_span(const Layer& layer);
int spans_of_group(const Layer& layer);
int rows_at_once(const Layer& layer);

// The output position of a row, and the pixel that a tap of it reads.
struct OutputPosition {
  int image, oh, ow;
};
inline OutputPosition output_position(const Geometry& g, int64_t row) {
  const int64_t plane = int64_t(g.out_h) * g.out_w;
  return {int(row / plane), int(row % plane / g.out_w), int(row % g.out_w)};
}
// The next row's, without dividing.
inline void advance(const Geometry& g, OutputPosition& p) {
  if (++p.ow < g.out_w) return;
  p.ow = 0;
  if (++p.oh < g.out_h) return;
  p.oh = 0;
  ++p.image;
}
// Index of the pixel, or -1 in the padding.
inline int64_t tap_pixel(const Geometry& g, const OutputPosition& p, int tap_h, int tap_w) {
  const int h = p.oh * g.stride_h - g.pad_top + tap_h * g.dilation_h;
  const int w = p.ow * g.stride_w - g.pad_left + tap_w * g.dilation_w;
  if (h < 0 || h >= g.in_h || w < 0 || w >= g.in_w) return -1;
  return (int64_t(p.image) * g.in_h + h) * g.in_w + w;
}

// The sums of a tile lie in panels of so many columns, each [rows][columns], and are still to be shifted left.
struct SumsShape {
  int columns, shift;
};
// Rows [m0, m0 + rows) and columns [n0, n0 + columns) of the output.
struct TileShape {
  int64_t m0;
  int rows, n0, columns;
};
// Max pooling: what is written of a tile are rows [m0, m0 + rows), each the largest of `taps` rows of the tile.
struct Windows {
  int64_t m0;
  int rows, taps;
  const int32_t* tap;  // [rows][taps]
};

// Finishes sums, tile by tile.
class TileEpilogue final : public RowsDone {
 public:
  TileEpilogue(const Layer& layer, const Output& output, const Geometry& geometry, const BorderTable* border);

  // The next tile. row_terms [rows], or null: none
  void begin(const TileShape& tile, const SumsShape& sums, const uint32_t* row_terms = nullptr,
             const Windows* windows = nullptr);
  // All of it: its panels stand `stride` apart.
  void finish(const uint32_t* sums, int64_t stride);
  // Or some rows of a panel.
  void rows_done(int panel, int row, int rows, const uint32_t* sums) override;
  // Whether that takes no longer: codes of two segments are put in their places many channels at a time, and floats of neighbouring
  // panels lie together.
  bool takes_rows() const;

 private:
  void take_rows(int64_t m0, int rows);
  void take_borders(int64_t m0, int rows);
  void values(int64_t m0, int n0);
  void take_windows(const Windows& windows, int n0);

  const Layer& layer_;
  const Output& output_;
  const Geometry& geometry_;
  const BorderTable* border_;
  const Tier& epilogue_tier_;
  const bool same_terms_;  // of all rows
  std::vector<float> row_scale_, residual_scale_, window_scale_;
  std::vector<uint32_t> no_terms_, no_row_terms_;
  std::vector<const uint32_t*> column_terms_;
  int64_t first_row_ = -1;
  TileShape shape_{};
  int rows_ = 0;  // that are written
  EpilogueTile tile_{};
};

// Whether rows are handed over to the epilogue one by one, in a layer of one segment.
bool completes_rows(const Layer& layer, int group, const PreparedRows& rows, const TileEpilogue& epilogue);
// Multiplies all segments of a group for a span of panels and so many rows from m0 on, and finishes them. Rows that are handed over
// may be lines in one run: the first `width` of every `pitch` rows are wanted.
struct LinesInRun {
  int width = 1, pitch = 1;
};
void finish_span(const Layer& layer, int group, int span, const PreparedRows* rows_of_segments, int64_t m0, int rows,
                 const uint32_t* row_terms, TileEpilogue& epilogue, LinesInRun lines = {},
                 const Windows* windows = nullptr);

}  // namespace soniq
