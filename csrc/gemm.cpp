// The dot family's driver: blocks, threads, and nothing of any instruction set. A GEMM is the 1x1 convolution.
//
//   for each share of rows or panels (threads)
//     for each block of rows, group:      gather the rows they read, cut along K into blocks of 512 codes
//       for each panel of columns:        sums of the panel stay in L1/L2
//         for each block of K:            unpack the weights to bytes (L1), multiply all rows by them
//         epilogue of the panel while its sums are hot
#include <algorithm>
#include <cstring>

#include "conv2d.h"
#include "layer.h"
#include "threads.h"

namespace soniq {
namespace {

constexpr int64_t kGatherBytes = 1 << 20;  // gathered rows stay in L2 while all panels pass over them
constexpr int kMaxRows = 384;

// Grows, never shrinks: a call must not pay for page faults of fresh megabytes.
uint8_t* scratch(AlignedBytes& buffer, int64_t bytes) {
  if (int64_t(buffer.size()) < bytes) buffer.resize(bytes);
  return buffer.data();
}

class DotRun {
 public:
  DotRun(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output)
      : layer_(layer),
        codes_(codes),
        geometry_(geometry),
        dot_(layer.dot()),
        panels_(div_up(layer.shape().group_outputs(), layer.dot().columns)),
        border_(layer.border(geometry)),
        epilogue_(layer, output, geometry, border_.get()) {}

  // Panels are numbered through all groups.
  void share(Range rows, Range panels) {
    const int block = rows_per_block(rows.end - rows.begin);
    for (int64_t m0 = rows.begin; m0 < rows.end; m0 += block)
      for (int64_t panel = panels.begin; panel < panels.end;) {
        const int group = int(panel / panels_);
        const int64_t end = std::min(panels.end, int64_t(group + 1) * panels_);
        rows_of_group(m0, int(std::min<int64_t>(block, rows.end - m0)), group, panel, end);
        panel = end;
      }
    count();
  }

  static int div_up(int n, int unit) { return (n + unit - 1) / unit; }

 private:
  int rows_per_block(int64_t rows) const {
    int64_t row_bytes = 1;
    for (int g = 0; g < layer_.shape().groups; ++g) row_bytes = std::max(row_bytes, k_blocks(layer_, g, 1).bytes);
    const int64_t most = std::clamp<int64_t>(kGatherBytes / row_bytes, dot_.tile_rows, kMaxRows);
    const int64_t blocks = (rows + most - 1) / most;  // even blocks: no small one at the end
    return int((rows + blocks * dot_.tile_rows - 1) / (blocks * dot_.tile_rows)) * dot_.tile_rows;
  }

  void rows_of_group(int64_t m0, int rows, int group, int64_t panel, int64_t panel_end) {
    static thread_local AlignedBytes gathered_bytes, sums_bytes, unpacked_bytes;
    const KBlocks k = k_blocks(layer_, group, rows);
    uint8_t* gathered = scratch(gathered_bytes, k.bytes);
    auto* sums = reinterpret_cast<uint32_t*>(scratch(sums_bytes, int64_t(rows) * dot_.columns * 4));
    uint8_t* unpacked = scratch(unpacked_bytes, int64_t(dot_.columns) * kBlock);
    row_terms_.resize(rows);
    gather_rows(layer_, geometry_, codes_, group, k, m0, rows, gathered, row_terms_.data());

    for (; panel < panel_end; ++panel) {
      const int local = int(panel % panels_), outputs = layer_.shape().group_outputs();
      std::memset(sums, 0, size_t(rows) * dot_.columns * 4);
      for (const KBlock& block : k.blocks) multiply(block, group, local, rows, gathered + block.offset, unpacked, sums);
      const int n0 = local * dot_.columns;
      epilogue_(sums, dot_.columns, k.final_shift, row_terms_.data(), m0, rows, group * outputs + n0,
                std::min(dot_.columns, outputs - n0));
    }
  }

  void multiply(const KBlock& block, int group, int panel, int rows, const uint8_t* gathered, uint8_t* unpacked,
                uint32_t* sums) {
    const Layer::Panels& panels = layer_.panels(group, block.segment);
    const int bits = layer_.shape().segments[block.segment].weight.bits;
    const uint8_t* weights = panels.bytes.data() + panel * panels.bytes_each +
                             int64_t(block.unit0) * dot_.columns * 4 * bits;
    if (dot_.unpack[bits]) {
      dot_.unpack[bits](weights, block.units, unpacked);
      weights = unpacked;
      unpacks_[bits] = true;
    }
    for (int row = 0; row < rows; row += dot_.tile_rows) {
      const int tile = std::min(dot_.tile_rows, rows - row);
      dot_.tile[panels.form][tile](weights, gathered + int64_t(row) * kRowStride, block.units * kUnit,
                                   sums + int64_t(row) * dot_.columns, block.shift);
      tiles_[panels.form][tile] = true;
    }
  }

  void count() {
    KernelCounters& counters = layer_.kernel_tier().counters;
    for (int bits = 1; bits <= 8; ++bits) counters.unpack[bits] += unpacks_[bits];
    for (int form = 0; form < dot_.forms; ++form)
      for (int rows = 1; rows <= dot_.tile_rows; ++rows) counters.tile[form][rows] += tiles_[form][rows];
  }

  const Layer& layer_;
  const uint8_t* codes_;
  const Geometry& geometry_;
  const DotFamily& dot_;
  const int panels_;  // of one group
  std::shared_ptr<const BorderTable> border_;
  TileEpilogue epilogue_;
  std::vector<uint32_t> row_terms_;
  bool unpacks_[9] = {};
  bool tiles_[3][kMaxTileRows + 1] = {};
};

}  // namespace

void run_dot(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output) {
  const int tile_rows = layer.dot().tile_rows;
  const int64_t rows = geometry.rows();
  const int64_t panels = int64_t(layer.shape().groups) * DotRun::div_up(layer.shape().group_outputs(), layer.dot().columns);
  const int64_t row_tiles = (rows + tile_rows - 1) / tile_rows;
  const bool by_rows = row_tiles > panels;
  const int threads = int(std::min<int64_t>(num_threads(), std::max(row_tiles, panels)));
  parallel(threads, [&](int share, int shares) {
    const Range my_rows = by_rows ? share_of(rows, tile_rows, share, shares) : Range{0, rows};
    const Range my_panels = by_rows ? Range{0, panels} : share_of(panels, 1, share, shares);
    if (my_rows.begin < my_rows.end && my_panels.begin < my_panels.end)
      DotRun(layer, codes, geometry, output).share(my_rows, my_panels);
  });
}

void Layer::run(const uint8_t* codes, const Geometry& geometry, const Output& output) const {
  if (geometry.rows() == 0) return;
  switch (family_) {
    case Family::dot: return run_dot(*this, codes, geometry, output);
    case Family::depthwise: return run_depthwise(*this, codes, geometry, output);
    case Family::reference: return run_reference(*this, codes, geometry, output);
  }
}

}  // namespace soniq
