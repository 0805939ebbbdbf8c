// From the caller's whole-matrix description of the output to the tiles that kernels finish.
#include <algorithm>

#include "layer.h"

namespace soniq {

TileEpilogue::TileEpilogue(const Layer& layer, const Output& output, const Geometry& geometry,
                           const BorderTable* border)
    : layer_(layer),
      output_(output),
      geometry_(geometry),
      border_(border),
      epilogue_tier_(tier_with(layer.tier(), &KernelTable::epilogue)),
      no_terms_(border ? 0 : layer.shape().outputs) {}

// Residual codes enter as float32(l) * (scale * 2^e); the integer conversion is exact.
const float* TileEpilogue::residual_tile(int64_t m0, int rows, int n0, int cols) {
  const int outputs = layer_.shape().outputs;
  if (output_.residual) return output_.residual + m0 * outputs + n0;
  if (!output_.residual_codes) return nullptr;
  residual_.resize(size_t(rows) * cols);
  for (int i = 0; i < rows; ++i) {
    const uint8_t* codes = output_.residual_codes + (m0 + i) * outputs;
    const float* factor = output_.residual_factor + (m0 + i) / output_.rows_per_residual_scale * outputs;
    for (int j = 0; j < cols; ++j) {
      const int n = n0 + j;
      const int level = output_.residual_alpha[n] * codes[output_.residual_position[n]] + output_.residual_beta[n];
      residual_[size_t(i) * cols + j] = float(level) * factor[n];
    }
  }
  return residual_.data();
}

// Scales and border classes belong to rows: found once for all panels of a block.
void TileEpilogue::take_rows(int64_t m0, int rows) {
  if (m0 == first_row_ && rows == int(column_terms_.size())) return;
  first_row_ = m0;
  column_terms_.assign(rows, no_terms_.data());
  row_scale_.resize(rows);
  OutputPosition p = output_position(geometry_, m0);
  for (int i = 0; i < rows; ++i, advance(geometry_, p)) {
    if (border_) {
      const int64_t border_class = int64_t(border_->row_class[p.oh]) * border_->col_classes + border_->col_class[p.ow];
      column_terms_[i] = border_->terms.data() + border_class * layer_.shape().outputs;
    }
    if (!output_.acc) row_scale_[i] = output_.activation_scale[(m0 + i) / output_.rows_per_scale] * output_.unit;
  }
}

void TileEpilogue::operator()(const PanelSums& sums, const uint32_t* row_terms, int64_t m0, int rows, int n0,
                              int cols) {
  const int outputs = layer_.shape().outputs;
  take_rows(m0, rows);
  const auto at = [n0](const auto* p) { return p ? p + n0 : nullptr; };
  const int64_t first = m0 * outputs + n0;
  EpilogueTile tile{};
  tile.sums = sums.first;
  tile.panel_stride = sums.stride;
  tile.panel_cols = sums.columns;
  tile.rows = rows;
  tile.cols = cols;
  tile.first_column = n0;
  tile.row_terms = row_terms;
  tile.column_terms = column_terms_.data();
  tile.acc = output_.acc ? output_.acc + first : nullptr;
  tile.y = output_.y ? output_.y + first : nullptr;
  tile.codes = output_.codes ? output_.codes + m0 * outputs : nullptr;  // `position` is of the whole row
  tile.out_ld = outputs;
  tile.position = at(output_.position);
  tile.row_scale = row_scale_.data();
  tile.w_scale = at(output_.w_scale);
  tile.bias = at(output_.bias);
  tile.residual = output_.acc ? nullptr : residual_tile(m0, rows, n0, cols);
  tile.residual_ld = output_.residual ? outputs : cols;
  tile.activation = output_.activation;
  tile.lo = output_.lo;
  tile.hi = output_.hi;
  tile.post_scale = at(output_.post_scale);
  tile.post_bias = at(output_.post_bias);
  tile.r = at(output_.r);
  tile.z = at(output_.z);
  tile.cmax = at(output_.cmax);
  epilogue_tier_.table->epilogue(tile);
  epilogue_tier_.counters.epilogue.add(1);
}

}  // namespace soniq
