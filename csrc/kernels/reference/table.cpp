// The definition of right: plain loops over the contract as it is written, one value at a time, levels multiplied as
// integers and no algebra. Nothing here is shared with the fast tiers but the nouns.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernel_table.h"
#include "layer.h"
#include "threads.h"

namespace soniq {
namespace {

uint8_t quantize_one(float x, float r, float z, float cmax) {
  const float product = x * r;
  const float sum = product + z;
  if (!(sum > 0.0f)) return 0;
  return uint8_t(sum < cmax ? sum : cmax);
}

bool quantize(const float* x, int64_t count, float r, float z, float cmax, uint8_t* codes) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = quantize_one(x[i], r, z, cmax);
    finite = finite && std::isfinite(x[i]);
  }
  return finite;
}

float abs_max(const float* x, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i)
    if (std::fabs(x[i]) > most) most = std::fabs(x[i]);
  return most;
}

bool all_finite(const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}

template <class Tile>
float activate(float y, const Tile& t) {
  switch (t.activation) {
    case Activation::none: return y;
    case Activation::relu: return y > 0.0f ? y : 0.0f;
    case Activation::relu6: {
      const float v = y > 0.0f ? y : 0.0f;
      return v < 6.0f ? v : 6.0f;
    }
    default: return y > t.lo ? (y < t.hi ? y : t.hi) : t.lo;
  }
}

float value_one(const CodeSource& s, int m, int n) {
  const int code = s.codes[int64_t(m) * s.channels + s.position[s.first + n]];
  const int level = int(s.alpha[n]) * code + int(s.beta[n]);
  const float step = s.scale[m] * s.step[n];
  return float(level) * step;
}

void write_one(const TileResults& to, int m, int n, float y) {
  if (to.y) to.y[m * to.ld + n] = y;
  for (int i = 0; i < to.sinks; ++i) {
    const CodeSink& s = to.sink[i];
    const uint8_t code = quantize_one(y, s.r[n], s.z[n], s.cmax[n]);
    s.codes[int64_t(m) * s.channels + s.position[s.first + n]] =
        s.shift ? uint8_t((code << s.shift[n]) + s.add[n]) : code;
  }
}

int32_t integer(const EpilogueTile& t, const TilePart& part, int m, int n) {
  const int column = n - part.column;
  const uint32_t sum = part.sums[column / t.panel_cols * part.panel_stride + int64_t(m - part.row) * t.panel_cols +
                                 column % t.panel_cols];
  return int32_t((sum << t.shift) + t.row_terms[m] + t.column_terms[m][t.first_column + n]);
}

void epilogue_one(const EpilogueTile& t, const TilePart& part, int m, int n) {
  int32_t acc = integer(t, part, t.windows ? t.windows[m * t.taps] : m, n);
  for (int tap = 1; t.windows && tap < t.taps; ++tap) {
    const int32_t other = integer(t, part, t.windows[m * t.taps + tap], n);
    acc = t.w_scale[n] < 0 ? std::min(acc, other) : std::max(acc, other);
  }
  if (t.acc) {
    t.acc[m * t.acc_ld + n] = acc;
    return;
  }
  const float scaled = float(acc) * t.row_scale[m];
  float y = scaled * t.w_scale[n];
  if (t.bias) y = y + t.bias[n];
  if (t.residual) y = y + t.residual[m * t.residual_ld + n];
  if (t.residual_codes.codes) y = y + value_one(t.residual_codes, m, n);
  y = activate(y, t);
  if (t.post_scale) y = y * t.post_scale[n];
  if (t.post_bias) y = y + t.post_bias[n];
  write_one(t.results, m, n, y);
}

void epilogue(const EpilogueTile& t, const TilePart& part) {
  for (int m = part.row; m < part.row + part.rows; ++m)
    for (int n = part.column; n < part.column + part.columns; ++n) epilogue_one(t, part, m, n);
}

void combine(const CombineTile& t) {
  for (int m = 0; m < t.rows; ++m)
    for (int n = 0; n < t.cols; ++n) {
      float y = t.x ? t.x[m * t.x_ld + n] : value_one(t.a, m, n);
      if (t.x && t.a.codes) y = y + value_one(t.a, m, n);
      if (t.b.codes) y = y + value_one(t.b, m, n);
      write_one(t.results, m, n, activate(y, t));
    }
}

void max_codes(const uint8_t* const* taps, int count, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = taps[0][i];
    for (int t = 1; t < count; ++t) out[i] = std::max(out[i], taps[t][i]);
  }
}

void sum_codes(const uint8_t* const* taps, int count, int64_t n, int32_t* sums) {
  for (int64_t i = 0; i < n; ++i) {
    sums[i] = 0;
    for (int t = 0; t < count; ++t) sums[i] += taps[t][i];
  }
}

// One integer of the result: every valid tap, every channel of the group, level times level.
int64_t dot_product(const Layer& layer, const Geometry& g, const uint8_t* codes, const OutputPosition& p, int output,
                    const std::vector<const uint8_t*>& weights) {
  const LayerShape& shape = layer.shape();
  const int group = output / shape.group_outputs();
  int64_t acc = 0;
  for (int s = 0; s < layer.segments(); ++s) {
    const Segment& segment = shape.segments[s];
    const int channels = segment.group_channels(group), first = segment.first_channel + segment.group_start[group];
    int64_t sum = 0;
    for (int tap = 0; tap < shape.taps(); ++tap) {
      const int64_t pixel = tap_pixel(g, p, tap / shape.kernel_w, tap % shape.kernel_w);
      if (pixel < 0) continue;  // padding is exactly 0
      for (int c = 0; c < channels; ++c) {
        const int64_t w = segment.weight.alpha * weights[s][tap * channels + c] + segment.weight.beta;
        const int64_t a =
            segment.activation.alpha * codes[pixel * shape.channels + first + c] + segment.activation.beta;
        sum += w * a;
      }
    }
    acc += sum * (int64_t(1) << (segment.exponent() - shape.exponent()));
  }
  return acc;
}

// Where the codes of each output begin: [segment][output].
std::vector<std::vector<const uint8_t*>> weight_rows(const Layer& layer) {
  const LayerShape& shape = layer.shape();
  std::vector<std::vector<const uint8_t*>> rows(shape.outputs);
  for (int s = 0; s < layer.segments(); ++s) {
    const uint8_t* at = layer.stream(s);
    for (int n = 0; n < shape.outputs; ++n) {
      rows[n].push_back(at);
      at += int64_t(shape.taps()) * shape.segments[s].group_channels(n / shape.group_outputs());
    }
  }
  return rows;
}

}  // namespace

void run_reference(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output) {
  const int outputs = layer.shape().outputs;
  const auto weights = weight_rows(layer);
  constexpr int64_t kPlainWork = 256;  // a product in plain loops takes the time of so many in a kernel
  const int threads = threads_for(geometry.rows() * layer.shape().products_per_row() * kPlainWork, geometry.rows());
  parallel(threads, [&](int share, int shares) {
    const Range mine = share_of(geometry.rows(), 1, share, shares);
    TileEpilogue epilogue(layer, output, geometry, nullptr);
    std::vector<uint32_t> sums(outputs);
    const uint32_t no_row_term = 0;
    for (int64_t m = mine.begin; m < mine.end; ++m) {
      const OutputPosition p = output_position(geometry, m);
      for (int n = 0; n < outputs; ++n) sums[n] = uint32_t(dot_product(layer, geometry, codes, p, n, weights[n]));
      epilogue.begin({m, 1, 0, outputs}, {outputs, 0}, &no_row_term);
      epilogue.finish(sums.data(), 0);
    }
  });
}

extern const KernelTable reference_table;
const KernelTable reference_table = {quantize,
                                     abs_max,
                                     all_finite,
                                     /*sum_bytes=*/nullptr,
                                     epilogue,
                                     /*depthwise=*/nullptr,
                                     /*dot=*/nullptr,
                                     /*popcount=*/nullptr,
                                     /*lut=*/nullptr,
                                     /*lut6=*/nullptr,
                                     /*quantize_split=*/nullptr,
                                     combine,
                                     max_codes,
                                     sum_codes};

}  // namespace soniq
