// The driver of all families that work on panels: blocks, threads, and nothing of any instruction set. A GEMM is the 1x1
// convolution.
//
//   for each share of rows or panels (threads)
//     for each block of rows, group:      gather the rows they read, segment by segment, and prepare them for its family
//       for each span of panels:          all segments add into the sums of its panels, which stay in L1/L2
//         epilogue of each panel while its sums are hot
#include <algorithm>
#include <atomic>

#include "conv2d.h"
#include "layer.h"
#include "threads.h"

namespace soniq {

namespace {

constexpr int64_t kGatherBytes = 640 << 10;  // gathered rows, planes or tables stay in L2 while all panels pass
constexpr int kMaxRows = 384;
// Threads that share columns gather and prepare every row each; with so many rows for each of them they share rows.
constexpr int kRowsWorthSharing = 32;

int div_up(int n, int unit) { return (n + unit - 1) / unit; }

class PanelRun {
 public:
  PanelRun(const Layer& layer, const Input& input, const Geometry& geometry, const Output& output)
      : layer_(layer),
        input_(input),
        geometry_(geometry),
        spans_(spans_of_group(layer)),
        border_(layer.border(geometry)),
        epilogue_(layer, output, geometry, border_.get()) {}

  // Spans are numbered through all groups. False if some float is not finite.
  bool share(Range rows, Range spans) {
    const int block = rows_per_block(rows.end - rows.begin);
    for (int64_t m0 = rows.begin; m0 < rows.end; m0 += block)
      for (int64_t span = spans.begin; span < spans.end;) {
        const int group = int(span / spans_);
        const int64_t end = std::min(spans.end, int64_t(group + 1) * spans_);
        rows_of_group(m0, int(std::min<int64_t>(block, rows.end - m0)), group, span, end);
        span = end;
      }
    return finite_;
  }

 private:
  // Even blocks of whole tiles, so that none is left with a few rows.
  int rows_per_block(int64_t rows) const {
    int64_t row_bytes = 1;
    for (int g = 0; g < layer_.shape().groups; ++g) {
      int64_t bytes = 0;
      for (int s = 0; s < layer_.segments(); ++s)
        bytes += layer_.kernel(g, s).gathered_bytes(1) + layer_.kernel(g, s).prepared_bytes(1);
      row_bytes = std::max(row_bytes, bytes);
    }
    const int tile = layer_.kernel(0, 0).tile_rows();
    const int64_t most = std::clamp<int64_t>(kGatherBytes / row_bytes, tile, kMaxRows);
    const int64_t blocks = (rows + most - 1) / most;
    return div_up(int((rows + blocks - 1) / blocks), tile) * tile;
  }

  void rows_of_group(int64_t m0, int rows, int group, int64_t span, int64_t end) {
    PreparedRows prepared[kMaxSegments];
    has_row_terms_ = false;
    for (int s = 0; s < layer_.segments(); ++s) has_row_terms_ |= layer_.row_factor(s, rows) != 0;
    if (has_row_terms_) row_terms_.assign(rows, 0);
    if (reads_in_place(m0, rows))
      point_at_rows(m0, rows, prepared);
    else
      gather(m0, rows, group, prepared);
    for (; span < end; ++span)
      finish_span(layer_, group, int(span % spans_), prepared, m0, rows, has_row_terms_ ? row_terms_.data() : nullptr,
                  epilogue_);
  }

  // One tap that takes every pixel: the rows are there, if no kernel wants them in another form or reads past the last one.
  bool reads_in_place(int64_t m0, int rows) const {
    const LayerShape& shape = layer_.shape();
    const bool every_pixel = shape.taps() == 1 && geometry_.stride_h == 1 && geometry_.stride_w == 1 &&
                             geometry_.in_h == geometry_.out_h && geometry_.in_w == geometry_.out_w;
    if (!input_.codes || shape.groups > 1 || !every_pixel) return false;
    for (int s = 0; s < layer_.segments(); ++s) {
      const int read = layer_.kernel(0, s).codes_read_in_place(rows, shape.channels),
                first = shape.segments[s].first_channel;
      if (read < 0 || (m0 + rows - 1) * shape.channels + first + read > geometry_.rows() * shape.channels) return false;
    }
    return true;
  }

  void point_at_rows(int64_t m0, int rows, PreparedRows* prepared) {
    const int64_t channels = layer_.shape().channels;
    for (int s = 0; s < layer_.segments(); ++s) {
      const uint8_t* first = input_.codes + m0 * channels + layer_.shape().segments[s].first_channel;
      prepared[s] = {first, rows, rows, channels, 0, kBlock, 0};
      add_row_terms(layer_.row_factor(s, rows), layer_.kernel(0, s).k(), prepared[s]);
    }
  }

  void gather(int64_t m0, int rows, int group, PreparedRows* prepared) {
    static thread_local AlignedBytes gathered[kMaxSegments], changed[kMaxSegments];
    uint8_t* codes[kMaxSegments];
    for (int s = 0; s < layer_.segments(); ++s)
      codes[s] = scratch(gathered[s], layer_.kernel(group, s).gathered_bytes(rows));
    gather_codes(m0, rows, group, codes);
    for (int s = 0; s < layer_.segments(); ++s) {
      const SegmentKernel& kernel = layer_.kernel(group, s);
      if (kernel.k() == 0) continue;
      add_row_terms(layer_.row_factor(s, rows), kernel.k_padded(),
                    {codes[s], rows, rows, kRowStride, 0, rows * kRowStride, 0});
      const int64_t bytes = kernel.prepared_bytes(rows);
      uint8_t* const to = bytes ? scratch(changed[s], bytes) : codes[s];
      if (bytes) kernel.prepare(codes[s], rows, to);
      prepared[s] = kernel.gathered_rows(to, rows);
    }
  }

  void gather_codes(int64_t m0, int rows, int group, uint8_t* const* codes) {
    int k_padded[kMaxSegments];
    for (int s = 0; s < layer_.segments(); ++s) {
      k_padded[s] = layer_.kernel(group, s).k_padded();
      if (input_.codes && k_padded[s] > 0) gather_rows(layer_, geometry_, input_.codes, group, s, m0, rows, codes[s]);
    }
    if (!input_.codes) finite_ &= quantize_gathered(layer_.tier(), *input_.floats, m0, rows, k_padded, codes);
  }

  // The sum of the codes that a row reads, times what the algebra wants of it.
  void add_row_terms(uint32_t factor, int k, PreparedRows codes) {
    if (factor == 0) return;
    const Tier& tier = tier_with(layer_.tier(), &KernelTable::sum_bytes);
    for (int left = k; left > 0; left -= kBlock, codes.first += codes.line_stride) {
      block_sums_.resize(size_t(codes.rows));
      tier.table->sum_bytes(codes.first, codes.stride, std::min(kBlock, left), codes.rows, block_sums_.data());
      for (int i = 0; i < codes.rows; ++i) row_terms_[i] += factor * block_sums_[i];
    }
    tier.counters.sum_bytes.add(1);
  }

  const Layer& layer_;
  const Input& input_;
  const Geometry& geometry_;
  const int spans_;  // of a group
  std::shared_ptr<const BorderTable> border_;
  TileEpilogue epilogue_;
  std::vector<uint32_t> row_terms_, block_sums_;
  bool has_row_terms_ = false;
  bool finite_ = true;
};

// Rows that are the rows of a matrix are read once by whoever works on them, and can be quantized there.
bool quantizes_in_place(const Layer& layer, const Geometry& g) {
  return layer.shape().taps() == 1 && layer.shape().groups == 1 && g.in_h * g.in_w == 1 && g.out_h * g.out_w == 1;
}

bool run_quantized(const Layer& layer, const QuantizeTask& floats, const Geometry& geometry, const Output& output) {
  static thread_local AlignedBytes room;
  uint8_t* codes = scratch(room, floats.rows * floats.quantizer->channels);
  const bool finite = quantize(layer.tier(), floats, codes);
  layer.run({codes, nullptr}, geometry, output);
  return finite;
}

}  // namespace

bool run_panels(const Layer& layer, const Input& input, const Geometry& geometry, const Output& output) {
  const int64_t rows = geometry.rows(), unit = layer.kernel(0, 0).tile_rows();
  const int64_t spans = int64_t(layer.shape().groups) * spans_of_group(layer);
  const int64_t row_tiles = (rows + unit - 1) / unit;
  const int threads = threads_for(rows * layer.shape().products_per_row(), std::max(row_tiles, spans));
  const bool by_rows = row_tiles > spans || rows >= int64_t(kRowsWorthSharing) * threads;
  const bool shares_rows = threads > 1 && !by_rows;
  if (!input.codes && (shares_rows || !quantizes_in_place(layer, geometry)))
    return run_quantized(layer, *input.floats, geometry, output);
  std::atomic<bool> finite{true};
  parallel(threads, [&](int share, int shares) {
    const Range my_rows = by_rows ? share_of(rows, unit, share, shares) : Range{0, rows};
    const Range my_spans = by_rows ? Range{0, spans} : share_of(spans, 1, share, shares);
    if (my_rows.begin == my_rows.end || my_spans.begin == my_spans.end) return;
    if (!PanelRun(layer, input, geometry, output).share(my_rows, my_spans)) finite = false;
  });
  return finite;
}

// Codes are joined once, before any of the drivers; from there on they are codes of one segment.
bool Layer::run_joined(const Input& input, const Geometry& geometry, const Output& output) const {
  if (!input.codes) return run_quantized(*this, *input.floats, geometry, output);
  static thread_local AlignedBytes room;
  const int64_t pixels = int64_t(geometry.batch) * geometry.in_h * geometry.in_w;
  uint8_t* const joined = scratch(room, pixels * shape_.channels);
  join_codes(joins_, shape_.channels, input.codes, pixels, joined);
  return run_drivers({joined, nullptr}, geometry, output);
}

bool Layer::run(const Input& input, const Geometry& geometry, const Output& output) const {
  if (geometry.rows() == 0) return true;
  if (output.pools && !finishes_pooled(*this, geometry, output)) return run_and_pool(*this, input, geometry, output);
  return joins_.empty() ? run_drivers(input, geometry, output) : run_joined(input, geometry, output);
}

bool Layer::run_drivers(const Input& input, const Geometry& geometry, const Output& output) const {
  if (has_kernels() && !shares_pixels()) return run_panels(*this, input, geometry, output);
  if (!input.codes) return run_quantized(*this, *input.floats, geometry, output);
  if (takes_winograd(*this, geometry, output)) return run_winograd(*this, input.codes, geometry, output), true;
  if (shares_pixels()) run_image(*this, input.codes, geometry, output);
  if (family_ == Family::depthwise) run_depthwise(*this, input.codes, geometry, output);
  if (family_ == Family::reference) run_reference(*this, input.codes, geometry, output);
  return true;
}

}  // namespace soniq
