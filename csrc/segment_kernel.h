// One segment of one group, packed for one family on one tier: what a GEMM or convolution is made of.
//
//   gathered rows  --prepare-->  the form the family reads  --multiply, panel by panel-->  sums += S << shift
//
// Families of one tier share the width of a panel, so that two segments of different families add into the same sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "aligned.h"
#include "dispatch.h"

namespace soniq {

enum class Family { reference, dot, popcount, lut, lut5, lut6, depthwise };
const char* family_name(Family family);
Family family_of(const std::string& name);
inline Family family_of_tables(const Lut6Family& family) { return family.codes == 6 ? Family::lut6 : Family::lut5; }

// The weight codes of one segment and group: `outputs` rows of k codes, [tap][channel].
struct CodeMatrix {
  const uint8_t* codes;
  int outputs, k;
  int w_bits, a_bits;
  int w_alpha = 1, w_beta = 0;     // levels: alpha * code + beta
  const int32_t* order = nullptr;  // packed position -> code of a row, negative: none; null: as they are
  int positions = 0;               // of `order`

  bool has(int64_t output, int position) const {
    return output < outputs && (order ? position < positions && order[position] >= 0 : position < k);
  }
  // 0 past the true K and past the last output.
  uint8_t at(int64_t output, int position) const {
    return has(output, position) ? codes[output * k + (order ? order[position] : position)] : uint8_t(0);
  }
};

// The taps of a layer whose activations are prepared pixel by pixel (image_run.cpp): a row of the kernel reads neighbouring
// pixels, one run of memory. 0 x 0: a layer whose rows are gathered. `tall`: the pixels of a column of the kernel are one,
// [row of the kernel][channel], so that few channels make a run that is worth a tile's while.
constexpr int kFewChannels = 8;
struct Taps {
  int h = 0, w = 0;
  bool tall = false;
  bool any() const { return h > 0; }
  int count() const { return h * w; }
  int lines() const { return tall ? 1 : h; }  // that a position reads
  int pixels_in_one() const { return tall ? h : 1; }
};

// Rows of prepared activations, a multiple of `run` of them: those of a run stand `stride` bytes apart.
struct PreparedRows {
  const uint8_t* first;
  int rows, run;
  int64_t stride, run_stride;
  int64_t line_stride;  // to what the next row of the kernel reads; of gathered rows: to the next block of K
  int64_t part_stride;  // to the next plane or part of the same codes
};

// Lines of neighbouring rows as one run, with what lies between them: from line to line are `pitch` rows.
inline PreparedRows in_one_run(PreparedRows lines, int pitch) {
  lines.rows = lines.run = (lines.rows / lines.run - 1) * pitch + lines.run;
  return lines;
}

// A segment of 3 x 3 taps as 16 matrices that multiply what WinogradFamily makes of pixels (winograd.cpp), a panel at a time.
class WinogradWeights {
 public:
  virtual ~WinogradWeights() = default;
  int offset = 0;       // of the pixels
  int64_t largest = 0;  // that S may be
  // 16 matrices of matrix_bytes() each, made of the packed weights.
  virtual int64_t matrix_bytes() const = 0;
  virtual void panel(int panel, uint8_t* to) const = 0;
  // What the offset takes of the outputs of a tile, [output][column], four times too large as they are.
  virtual const uint32_t* of_offset(int panel) const = 0;
  // sums[row][column of the panel] += rows of channels x a matrix << shift; `fresh`: nothing stands there yet
  virtual void multiply(const uint8_t* matrix, const PreparedRows& rows, uint32_t* sums, int shift,
                        bool fresh) const = 0;
};

// Takes rows of a panel as soon as their sums are complete, [row][column of the panel], while they are hot.
class RowsDone {
 public:
  virtual void rows_done(int panel, int row, int rows, const uint32_t* sums) = 0;

 protected:
  ~RowsDone() = default;
};

// Where a segment adds its S << shift: panels stand `stride` apart, each [rows][columns of a panel].
struct PanelsOfSums {
  uint32_t* first;
  int64_t stride;
  int shift;
  bool fresh;        // nothing stands there yet, not even zeros
  RowsDone* done;    // where complete rows go, in place of `first`; or null
  int panel = 0;     // the number of the first one
  bool last = true;  // nothing will be added
};

// Weights lie in bricks: the columns that a tile works on, times one block of K. The bricks of a few neighbouring panels
// follow one another block by block:
//
//   | block 0: brick of panel 0, 1, 2, 3 | block 1: brick of panel 0, 1, 2, 3 | ...    then panels 4, 5, 6, 7
//
// so a GEMV reads one stream, and a block of activations or tables in L1 serves several panels before the next one.
constexpr int kPanelsTogether = 4;
// Bytes behind the codes and the prepared codes of a line of pixels that may be read, or written, past its end.
constexpr int kPixelSlack = 2048;

struct BrickShape {
  int columns;      // of a tile: one panel, or several that a wide kernel works on at once
  int panel;        // columns of a panel, the same for all families of a tier
  int unit;         // codes that K is padded to
  int block;        // codes of K in a brick
  int pixel;        // codes that a pixel's are padded to where pixels are prepared by themselves
  int lines_block;  // codes of K in a brick of several whole lines; 0: a brick has one
};

constexpr int kRowsAtOnce = 256;

// S is the sum of (alpha * code of the weight + beta) * code of the activation.
struct WeightForm {
  int alpha = 1, beta = 0;
};

class SegmentKernel {
 public:
  SegmentKernel(const CodeMatrix& weights, const Taps& taps, const Tier& tier, const BrickShape& shape);
  virtual ~SegmentKernel() = default;

  virtual Family family() const = 0;
  virtual const char* form() const = 0;  // the variant inside the family
  virtual int tile_rows() const = 0;     // of the inner loop
  // What S has of the weights, with so many rows; where pixels are shared, with any.
  virtual WeightForm weight_form(int /*rows*/) const { return {}; }

  // Bytes that prepare() writes for `rows` rows; 0: multiply reads the gathered rows themselves.
  virtual int64_t prepared_bytes(int) const { return 0; }
  virtual void prepare(const uint8_t*, int, uint8_t*) const {}
  // Codes that multiply reads of each of `rows` rows of a matrix, `stride` bytes apart, where it reads the matrix itself; -1: it
  // does not.
  virtual int codes_read_in_place(int, int64_t) const { return -1; }
  // Where `rows` rows stand that prepare() wrote, or that were gathered where it has nothing to do.
  virtual PreparedRows gathered_rows(const uint8_t* activations, int rows) const = 0;

  // With taps: `pixels` pixels of pixel_codes() codes each, zeros behind them for `ahead` pixels more, to
  // prepared_codes_bytes() of each part. `ahead`: how many pixels the next row of a pair stands behind.
  virtual void prepare_pixels(const uint8_t* codes, int pixels, int ahead, uint8_t* out, int64_t part_stride) const = 0;
  virtual int64_t prepared_codes_bytes(int codes) const = 0;  // of one part, a whole number of units or of pixels
  virtual int prepared_parts() const { return 1; }
  int pixel_codes() const { return pixel_codes_; }
  const Taps& taps() const { return taps_; }

  // `first` is a multiple of panels_together(). Where shifts_all(), what the sums held before may be shifted with S.
  void multiply(int first, int panels, const PreparedRows& rows, const PanelsOfSums& sums) const;

  virtual bool shifts_all() const { return false; }
  // Whether multiply() can hand over rows that are done.
  virtual bool completes_rows(const PreparedRows&) const { return false; }
  // Whether it multiplies one run over the ends of lines, `pitch` rows from line to line, in less time than the lines.
  virtual bool prefers_one_run(const PreparedRows& /*lines*/, int /*pitch*/) const { return false; }
  // For how many rows a brick should be read: sums that wait for others must stay close.
  virtual int rows_at_once() const { return kRowsAtOnce; }
  // Winograd's form of it, of 3 x 3 taps; null where it does not fit.
  virtual const WinogradWeights* winograd() const { return nullptr; }

  const Tier& tier() const { return tier_; }
  int k() const { return k_; }
  int k_padded() const { return k_padded_; }
  int k_gathered() const { return (k_ + shape_.unit - 1) / shape_.unit * shape_.unit; }  // of rows without pixels
  int columns() const { return shape_.columns; }
  int panel_columns() const { return shape_.panel; }
  int panels_together() const { return bricks_together_ * shape_.columns / shape_.panel; }
  int64_t panel_bytes() const { return int64_t(bytes_.size()); }
  // Gathered rows of this segment: blocks of kBlock codes, kRowStride bytes a row.
  int blocks() const { return (k_padded_ + kBlock - 1) / kBlock; }
  int64_t gathered_bytes(int rows) const { return int64_t(blocks()) * rows * kRowStride; }

 protected:
  // To be called at the end of a constructor: packs all bricks, on all threads.
  void build(CodeMatrix weights);

  virtual int64_t brick_bytes(int codes) const = 0;
  virtual void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                          uint8_t* out) const = 0;
  // Before and behind the bricks of a call of multiply(). begin() says whether bricks write sums that are fresh; else those
  // are cleared before.
  virtual bool begin(const PreparedRows&) const { return false; }
  virtual void end(const PreparedRows&, int /*panels*/, const PanelsOfSums&) const {}
  // The first `used` codes of each line of the brick have weights.
  struct Brick {
    const uint8_t* weights;
    int codes, used, lines;
  };
  virtual void multiply_brick(const Brick& brick, const PreparedRows& rows, const PanelsOfSums& sums) const = 0;
  // body(line, codes before it in the line, brick) for all that a column of bricks consists of.
  template <class Body>
  void each_brick(int column, Body&& body) const {
    const int group = column / bricks_together_, brick = column % bricks_together_;
    for (const Piece& piece : pieces_)
      body(piece.line, piece.codes_before,
           Brick{bytes_.data() + brick_offset(group, piece, brick), piece.codes, piece.used, piece.lines});
  }
  // body(first row, rows, where they stand) for tiles of up to `most` rows, none across the end of a run; counts them. Where
  // less than `least` would be left of a run, its last two tiles share what they have.
  template <class Counts, class Body>
  static void each_tile(const PreparedRows& rows, int most, Counts& counts, Body&& body, int least = 1) {
    const uint8_t* run = rows.first;
    for (int first = 0; first < rows.rows; first += rows.run, run += rows.run_stride)
      for (int row = 0, n; row < rows.run; row += n) {
        const int left = rows.run - row;
        n = left > most && left < most + least ? (left + 1) / 2 : std::min(most, left);
        body(first + row, n, run + row * rows.stride);
        counts[n].add(1);
      }
  }

  const Tier& tier_;

 private:
  // A part of K whose weights are one brick: a block, or with taps what a row of the kernel reads of neighbouring pixels; or
  // several of these, whole lines.
  struct Piece {
    int first_position, codes, used, lines;
    int line, codes_before;  // of the line
    int64_t bytes_before;    // of a column of bricks
  };
  void cut();
  std::vector<int32_t> order() const;
  int bricks_of_group(int group) const { return std::min(bricks_together_, bricks_ - group * bricks_together_); }
  int64_t brick_offset(int group, const Piece& piece, int brick) const {
    return group * bricks_together_ * column_bytes_ + piece.bytes_before * bricks_of_group(group) +
           brick * brick_bytes(piece.codes * piece.lines);
  }

  const BrickShape shape_;
  const Taps taps_;
  const int k_, pixel_codes_, k_padded_, bricks_, bricks_together_;
  std::vector<Piece> pieces_;
  int64_t column_bytes_ = 0;  // all bricks over each other
  AlignedBytes bytes_;
};

std::unique_ptr<SegmentKernel> make_dot(const CodeMatrix& weights, const Taps& taps, const Tier& tier);
std::unique_ptr<SegmentKernel> make_popcount(const CodeMatrix& weights, const Taps& taps, const Tier& tier);
std::unique_ptr<SegmentKernel> make_lut(const CodeMatrix& weights, const Taps& taps, const Tier& tier);
std::unique_ptr<SegmentKernel> make_lut6(const CodeMatrix& weights, const Taps& taps, const Tier& tier);

// A family that can multiply these widths on a tier, or on one below it; its products a cycle where nothing but the inner
// loop counts; and the cycles that a code of a row costs before, where they are known to count.
struct Candidate {
  Family family;
  const Tier* tier;
  int rate;
  double prepare = 0;
};
// Fastest first.
std::vector<Candidate> candidates(const Tier& tier, int w_bits, int a_bits);

std::unique_ptr<SegmentKernel> make_segment_kernel(const CodeMatrix& weights, const Taps& taps,
                                                   const Candidate& candidate);

// Scratch of one thread and purpose. Grows, never shrinks: a call must not pay for page faults of fresh megabytes.
inline uint8_t* scratch(AlignedBytes& buffer, int64_t bytes) {
  if (int64_t(buffer.size()) < bytes) buffer.resize(bytes);
  return buffer.data();
}

}  // namespace soniq
