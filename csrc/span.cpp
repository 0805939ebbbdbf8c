// A span: neighbouring panels that are finished together, while their sums are hot. Every segment adds into the same sums.
//
//   S of a segment counts 2^shift in the result. The last shift, which all segments share, is left to the epilogue, so that a
//   layer with one segment shifts nothing here; segments with larger shifts come first, because kernels on matrix registers
//   shift all that is there.
#include <algorithm>
#include <cstring>

#include "layer.h"

namespace soniq {

// What the widest kernel of the layer works on at once. All are powers of two, so those of narrower kernels divide it; a
// segment's kernels are alike in all groups.
int panels_of_span(const Layer& layer) {
  int panels = 1;
  for (int s = 0; s < layer.segments(); ++s) panels = std::max(panels, layer.kernel(0, s).panels_together());
  return panels;
}
// Rows whose sums stay close while a span passes.
int rows_at_once(const Layer& layer) { return layer.segments() == 1 ? layer.kernel(0, 0).rows_at_once() : kRowsAtOnce; }
int spans_of_group(const Layer& layer) {
  const int columns = layer.kernel(0, 0).panel_columns() * panels_of_span(layer);
  return (layer.shape().group_outputs() + columns - 1) / columns;
}

namespace {

// Segments that have channels, those with larger shifts first.
struct Order {
  int count = 0, segment[kMaxSegments];

  Order(const Layer& layer, int group, int rows) {
    for (int s = 0; s < layer.segments(); ++s)
      if (layer.kernel(group, s).k() > 0) segment[count++] = s;
    std::stable_sort(segment, segment + count,
                     [&](int a, int b) { return layer.shift(a, rows) > layer.shift(b, rows); });
  }
};

// Hands over what is wanted of a run.
class WantedRows final : public RowsDone {
 public:
  WantedRows(RowsDone& to, LinesInRun lines, int columns) : to_(to), lines_(lines), columns_(columns) {}

  void rows_done(int panel, int row, int rows, const uint32_t* sums) override {
    for (int here; rows > 0; row += here, rows -= here, sums += here * columns_) {
      const int line = row / lines_.pitch, at = row % lines_.pitch;
      here = std::min(rows, lines_.pitch - at);
      const int wanted = std::min(here, lines_.width - at);
      if (wanted > 0) to_.rows_done(panel, line * lines_.width + at, wanted, sums);
    }
  }

 private:
  RowsDone& to_;
  const LinesInRun lines_;
  const int columns_;
};

}  // namespace

bool completes_rows(const Layer& layer, int group, const PreparedRows& rows, const TileEpilogue& epilogue) {
  return layer.segments() == 1 && layer.kernel(group, 0).k() > 0 && epilogue.takes_rows() &&
         layer.kernel(group, 0).completes_rows(rows);
}

void finish_span(const Layer& layer, int group, int span, const PreparedRows* rows_of_segments, int64_t m0, int rows,
                 const uint32_t* row_terms, TileEpilogue& epilogue, LinesInRun lines, const Windows* windows) {
  static thread_local AlignedBytes sums_bytes;
  const int outputs = layer.shape().group_outputs(), columns = layer.kernel(0, 0).panel_columns();
  const int most = panels_of_span(layer), first = span * most, n0 = first * columns;
  const int panels = std::min(most, (outputs + columns - 1) / columns - first);

  const Order order(layer, group, rows);
  const int multiplied = order.count > 0 ? rows_of_segments[order.segment[0]].rows : rows;
  const int64_t panel_sums = int64_t(multiplied) * columns;
  auto* sums = reinterpret_cast<uint32_t*>(scratch(sums_bytes, most * panel_sums * 4));
  const int last_shift = order.count > 0 ? layer.shift(order.segment[order.count - 1], rows) : 0;
  epilogue.begin({m0, rows, group * outputs + n0, std::min(most * columns, outputs - n0)}, {columns, last_shift},
                 row_terms, windows);
  const bool in_rows = !windows && completes_rows(layer, group, rows_of_segments[0], epilogue);
  WantedRows wanted(epilogue, lines, columns);
  RowsDone* const each = lines.pitch > lines.width ? static_cast<RowsDone*>(&wanted) : &epilogue;
  if (order.count == 0) std::memset(sums, 0, size_t(panels * panel_sums) * 4);
  for (int i = 0; i < order.count; ++i) {
    const int s = order.segment[i];
    layer.kernel(group, s).multiply(
        first, panels, rows_of_segments[s],
        {sums, panel_sums, layer.shift(s, rows) - last_shift, i == 0, in_rows ? each : nullptr});
  }
  if (!in_rows) epilogue.finish(sums, panel_sums);
}

}  // namespace soniq
