// From the caller's whole-matrix description of the output to the tiles that kernels finish.
#include <algorithm>

#include "layer.h"

namespace soniq {

TileResults Results::tile(int64_t row, int column, int64_t ld) const {
  TileResults tile{y ? y + row * ld + column : nullptr, ld, sinks, {}};
  for (int i = 0; i < sinks; ++i)
    tile.sink[i] = sink[i].format->sink(sink[i].codes + row * sink[i].format->channels, column);
  return tile;
}

TileEpilogue::TileEpilogue(const Layer& layer, const Output& output, const Geometry& geometry,
                           const BorderTable* border)
    : layer_(layer),
      output_(output),
      geometry_(geometry),
      border_(border),
      epilogue_tier_(tier_with(layer.tier(), &KernelTable::epilogue)),
      same_terms_(!border || int64_t(border->terms.size()) == layer.shape().outputs),
      no_terms_(border ? 0 : layer.shape().outputs) {}

namespace {

// Which of the scales is row m0's, and how many of the next rows'.
class RowsOfScale {
 public:
  RowsOfScale(int64_t m0, int64_t rows_per_scale)
      : rows_(rows_per_scale), at_(m0 / rows_per_scale), left_(rows_per_scale - m0 % rows_per_scale) {}
  int64_t left() const { return left_; }
  // And so many rows on, not more than are left.
  int64_t next(int64_t rows) {
    const int64_t at = at_;
    if ((left_ -= rows) == 0) ++at_, left_ = rows_;
    return at;
  }

 private:
  const int64_t rows_;
  int64_t at_, left_;
};

}  // namespace

// Scales and border classes belong to rows: found once for all panels of a block.
void TileEpilogue::take_rows(int64_t m0, int rows) {
  if (m0 == first_row_ && rows == int(column_terms_.size())) return;
  first_row_ = m0;
  column_terms_.assign(rows, border_ ? border_->terms.data() : no_terms_.data());
  row_scale_.resize(rows);
  residual_scale_.resize(output_.residual_codes.codes ? rows : 0);
  if (!same_terms_) take_borders(m0, rows);
  if (output_.acc) return;
  const CodesIn& residual = output_.residual_codes;
  RowsOfScale scale(m0, output_.rows_per_scale), residual_scale(m0, residual.rows_per_scale);
  for (int i = 0, of_scale; i < rows; i += of_scale) {
    of_scale = int(std::min<int64_t>(rows - i, scale.left()));
    std::fill_n(row_scale_.begin() + i, of_scale, output_.activation_scale[scale.next(of_scale)] * output_.unit);
  }
  for (int i = 0, of_scale; residual.codes && i < rows; i += of_scale) {
    of_scale = int(std::min<int64_t>(rows - i, residual_scale.left()));
    std::fill_n(residual_scale_.begin() + i, of_scale, residual.scales[residual_scale.next(of_scale)]);
  }
}

void TileEpilogue::take_borders(int64_t m0, int rows) {
  OutputPosition p = output_position(geometry_, m0);
  const int outputs = layer_.shape().outputs, out_w = geometry_.out_w;
  const uint32_t* of_line_before = nullptr;
  for (int i = 0, here; i < rows; i += here) {
    here = std::min(rows - i, out_w - p.ow);
    const uint32_t* const of_line =
        border_->terms.data() + int64_t(border_->row_class[p.oh]) * border_->col_classes * outputs;
    const uint32_t** const to = &column_terms_[i];
    if (i >= out_w && of_line == of_line_before)
      std::copy_n(to - out_w, here, to);
    else
      for (int j = 0; j < here; ++j) to[j] = of_line + int64_t(border_->col_class[p.ow + j]) * outputs;
    of_line_before = of_line;
    p.ow = out_w - 1;
    advance(geometry_, p);
  }
}

// What is read where float32 values are wanted, and not the integers.
void TileEpilogue::values(int64_t m0, int n0) {
  EpilogueTile& tile = tile_;
  const int outputs = layer_.shape().outputs;
  const auto at = [n0](const auto* p) { return p ? p + n0 : nullptr; };
  tile.row_scale = row_scale_.data();
  tile.w_scale = at(output_.w_scale);
  tile.bias = at(output_.bias);
  tile.residual = output_.residual ? output_.residual + m0 * outputs + n0 : nullptr;
  tile.residual_ld = outputs;
  const CodesIn& residual = output_.residual_codes;
  if (residual.codes)
    tile.residual_codes = residual.format->source(residual.codes + m0 * outputs, n0, residual_scale_.data());
  tile.activation = output_.activation;
  tile.lo = output_.lo;
  tile.hi = output_.hi;
  tile.post_scale = at(output_.post_scale);
  tile.post_bias = at(output_.post_bias);
  tile.results = output_.results.tile(m0, n0, outputs);
}

// A window lies in one image, whose rows have one scale.
void TileEpilogue::take_windows(const Windows& windows, int n0) {
  window_scale_.resize(windows.rows);
  for (int i = 0; i < windows.rows; ++i) window_scale_[i] = row_scale_[windows.tap[i * windows.taps]];
  tile_.row_scale = window_scale_.data();
  tile_.windows = windows.tap;
  tile_.taps = windows.taps;
  tile_.results = output_.results.tile(windows.m0, n0, layer_.shape().outputs);
  rows_ = windows.rows;
}

void TileEpilogue::begin(const TileShape& shape, const SumsShape& sums, const uint32_t* row_terms,
                         const Windows* windows) {
  const int outputs = layer_.shape().outputs;
  take_rows(shape.m0, shape.rows);
  shape_ = shape;
  rows_ = shape.rows;
  tile_.panel_cols = sums.columns;
  tile_.shift = sums.shift;
  tile_.first_column = shape.n0;
  if (!row_terms && int(no_row_terms_.size()) < shape.rows) no_row_terms_.resize(shape.rows);
  tile_.row_terms = row_terms ? row_terms : no_row_terms_.data();
  tile_.plain_sums = !row_terms && sums.shift == 0;
  tile_.column_terms = column_terms_.data();
  tile_.same_terms = same_terms_;
  tile_.acc = output_.acc ? output_.acc + shape.m0 * outputs + shape.n0 : nullptr;
  tile_.acc_ld = outputs;
  if (!output_.acc) values(shape.m0, shape.n0);
  if (windows) take_windows(*windows, shape.n0);
  epilogue_tier_.counters.epilogue.add(1);
}

void TileEpilogue::finish(const uint32_t* sums, int64_t stride) {
  epilogue_tier_.table->epilogue(tile_, {sums, stride, 0, rows_, 0, shape_.columns});
}

void TileEpilogue::rows_done(int panel, int row, int rows, const uint32_t* sums) {
  const int column = panel * tile_.panel_cols, columns = std::min(tile_.panel_cols, shape_.columns - column);
  epilogue_tier_.table->epilogue(tile_, {sums, 0, row, rows, column, columns});
}

bool TileEpilogue::takes_rows() const {
  const auto two = [](const TensorFormat* format) { return format && !format->second.empty(); };
  for (int i = 0; i < output_.results.sinks; ++i)
    if (two(output_.results.sink[i].format)) return false;
  return !output_.results.y && !output_.acc && !two(output_.residual_codes.format);
}

}  // namespace soniq
