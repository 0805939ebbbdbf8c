// The dot family: weights unpacked to bytes once a cache block, multiplied by byte dot products.
//
// A packed unit: 32 codes of each of `columns` outputs. Unpacked it is 8 rows (one per 4 codes) of `columns` * 4 bytes.
// Packed, a code of p bits is cut into fields of 8, 4, 2 and 1 bits (7 = 4 + 2 + 1), high to low, and a field of f bits of the
// 8 rows shares f rows:
//
//   field of 4 bits, byte of packed row r (0..3):     | row r + 4 | row r |         high nibble | low nibble
//   field of 2 bits, byte of packed row r (0..1):     | row r + 6 | row r + 4 | row r + 2 | row r |
//   field of 1 bit,  byte of the only packed row:     | row 7 | row 6 | ... | row 0 |
//
// so that unpacking is one shift and one mask per field and row, and p bits a weight is all that memory holds. Signed bytes are
// levels, alpha * c + beta: twice the code is another shift, and one sum is the rest.
//
// Where an instruction takes two columns by two rows (DotFamily::pairs), bytes keep their packing and change their places:
// two rows of the unpacked unit hold 8 codes a column, and activations are prepared so that two rows share 16 bytes. Where words
// are multiplied, the second and the third of four codes change places: their first two are then the even bytes.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "segment_kernel.h"

namespace soniq {
namespace {

bool has_words(const DotFamily& dot, int form) { return dot.expand[form] && !dot.pairs; }

// Of a code among four, or of eight.
int place_of_four(int i, bool swapped) { return swapped && (i == 1 || i == 2) ? 3 - i : i; }

void pack_unit(const CodeMatrix& weights, int64_t first_output, const DotFamily& dot, int first_k, uint8_t flip,
               uint8_t* out) {
  const int bits = weights.w_bits, row_bytes = dot.columns * 4;
  const bool swapped = has_words(dot, dot.form(bits, weights.a_bits));
  const int together = dot.pairs ? 8 : 4, rows = together / 4, columns = dot.columns / rows;
  int position = bits;
  for (int field = 8; field >= 1; field /= 2) {
    if (!(bits == 8 ? field == 8 : (field < 8 && (bits & field)))) continue;
    position -= field;
    const int mask = (1 << field) - 1;
    for (int j = 0; j < 8; ++j) {
      uint8_t* packed = out + (j % field) * row_bytes;
      const int place = j / field * field;
      for (int column = 0; column < columns; ++column)
        for (int i = 0; i < together; ++i) {
          // What no weight stands at is 0, not -128, so that it adds nothing to a neighbour's codes.
          const int64_t output = first_output + j % rows * columns + column;
          const int k = first_k + j / rows * together + place_of_four(i, swapped);
          const int code = weights.at(output, k) ^ (weights.has(output, k) ? flip : 0);
          packed[column * together + i] |= uint8_t(((code >> position) & mask) << place);
        }
    }
    out += field * row_bytes;
  }
}

struct RowsOfGroup {
  const uint8_t* codes;
  int row;
};

// Where groups of a matrix unit put their sums: to all the others, or, if they are complete and somebody takes them, always to the
// same few lines of L1.
class RowsInTurn {
 public:
  RowsInTurn(const PanelsOfSums& sums, int columns)
      : sums_(sums), to_(sums.last ? sums.done : nullptr), columns_(columns) {}

  // `place`: how many rows lie before it.
  MatrixGroup group(const RowsOfGroup& g, int place) const {
    alignas(64) static thread_local uint32_t few[2 * 16 * 32];
    uint32_t* const there = sums_.first + int64_t(g.row) * columns_;
    return {g.codes, sums_.fresh ? nullptr : there, to_ ? few + place * columns_ : there};
  }
  void done(const MatrixGroup& group, int row, int rows, int skip) const {
    if (to_) to_->rows_done(sums_.panel, row + skip, rows - skip, group.sums + skip * columns_);
  }
  // Of a pair. Rows that both of them have come out the same twice.
  void done(const MatrixGroup& one, int row, int rows, const MatrixGroup& other, int other_row) const {
    const int behind = other_row - row;
    done(one, row, behind <= rows ? behind + rows : rows, 0);
    if (behind > rows) done(other, other_row, rows, 0);
  }

 private:
  const PanelsOfSums& sums_;
  RowsDone* const to_;
  const int columns_;
};

class DotSegment final : public SegmentKernel {
 public:
  DotSegment(const CodeMatrix& weights, const Taps& taps, const Tier& tier)
      : SegmentKernel(weights, taps, tier, brick_shape(*tier.table->dot)),
        dot_(*tier.table->dot),
        bits_(weights.w_bits),
        form_(dot_.form(weights.w_bits, weights.a_bits)),
        unpacked_(unpacked_form(dot_, weights)) {
    build(weights);
    if (fits_winograd(weights)) winograd_ = std::make_unique<DotWinograd>(*this, weights);
  }

  Family family() const override { return Family::dot; }
  const WinogradWeights* winograd() const override { return winograd_.get(); }
  const char* form() const override { return dot_.form_name(form_); }
  int tile_rows() const override { return dot_.tile_rows[form_]; }
  WeightForm weight_form(int rows) const override { return bits_ == 8 || takes_many(rows) ? unpacked_ : WeightForm{}; }

  int64_t prepared_bytes(int rows) const override { return expands(rows) ? blocks() * block_stride(rows) : 0; }
  void prepare(const uint8_t* gathered, int rows, uint8_t* prepared) const override {
    for (int k = 0; k < k_padded(); k += kBlock, prepared += block_stride(rows)) {
      const int units = std::min(kBlock, k_padded() - k) / kUnit;
      for (int row = 0; row < rows; ++row, gathered += kRowStride)
        dot_.expand[form_](gathered, units, prepared + offset(row, rows));
      // A row that is alone is its own neighbour: what becomes of that is not read, but it must not be what lay there.
      if (dot_.pairs && rows % 2) dot_.expand[form_](gathered - kRowStride, units, prepared + offset(rows, rows));
    }
    tier_.counters.expand.add(1);
  }
  // Few rows are read by whole units of K.
  // Rows that stand far apart are gathered for matrix registers: sixteen of them at once would share a few sets of the cache.
  int codes_read_in_place(int rows, int64_t stride) const override {
    if (dot_.expand[form_] || (dot_.matrix && rows > dot_.few_rows && stride > kBlock)) return -1;
    const int step = rows > dot_.few_rows ? dot_.step[form_] : unit(dot_);
    return (k() + step - 1) / step * step;
  }
  PreparedRows gathered_rows(const uint8_t* activations, int rows) const override {
    const int64_t stride = expands(rows) ? kExpandStride / (dot_.pairs ? 2 : 1) : kRowStride;
    return {activations, rows, rows, stride, 0, block_stride(rows), 0};
  }

  void prepare_pixels(const uint8_t* codes, int pixels, int ahead, uint8_t* out, int64_t) const override {
    const int count = pixels * pixel_codes(), units = (count + kUnit - 1) / kUnit;
    if (!dot_.expand[form_]) {
      std::memcpy(out, codes, count);
      return;
    }
    dot_.expand[form_](codes, units, out);
    if (dot_.pairs) dot_.expand[form_](codes + ahead * pixel_codes(), units, out + 8);
    tier_.counters.expand.add(1);
  }
  int64_t prepared_codes_bytes(int codes) const override { return dot_.expand[form_] ? 2 * codes : codes; }

  bool shifts_all() const override { return dot_.matrix; }
  bool completes_rows(const PreparedRows& rows) const override { return dot_.matrix && !few(rows); }
  bool prefers_one_run(const PreparedRows& lines, int pitch) const override {
    const int count = lines.rows / lines.run;
    return dot_.matrix && 16 * groups_of_run(in_one_run(lines, pitch).rows) <= 15 * count * groups_of_run(lines.run);
  }
  int rows_at_once() const override { return dot_.matrix ? kMatrixRows : kRowsAtOnce; }

 protected:
  bool begin(const PreparedRows& rows) const override {
    if (few(rows)) return false;
    if (!dot_.matrix) return dot_.fresh[form_][1];
    dot_.matrix->configure(rows_of_group(in_long_runs(rows).run));
    return true;
  }
  void end(const PreparedRows& rows, int panels, const PanelsOfSums& sums) const override {
    if (!dot_.matrix || few(rows)) return;
    dot_.matrix->release();
    for (int panel = 0; sums.shift > 0 && panel < panels; ++panel)
      dot_.matrix->shift_left(sums.first + panel * sums.stride, int64_t(rows.rows) * dot_.columns, sums.shift);
  }

  int64_t brick_bytes(int codes) const override { return int64_t(codes) / kUnit * dot_.columns * 4 * bits_; }

  void pack_brick(const CodeMatrix& weights, int64_t first_output, int first_k, int codes,
                  uint8_t* out) const override {
    for (int k = first_k; k < first_k + codes; k += kUnit, out += brick_bytes(kUnit))
      pack_unit(weights, first_output, dot_, k, bits_ == 8 && dot_.signed_weights ? 0x80 : 0, out);
  }

  void multiply_brick(const Brick& brick, const PreparedRows& rows, const PanelsOfSums& sums) const override {
    if (few(rows)) return multiply_few(brick, rows, sums);
    const uint8_t* bytes = unpacked(brick);
    if (dot_.matrix) {
      const int64_t size = brick_bytes(brick.codes * brick.lines);
      return multiply_groups({bytes, brick.codes, brick.lines, rows.line_stride}, {brick.weights + size, size},
                             in_long_runs(rows), sums);
    }
    const int k = (brick.used + dot_.step[form_] - 1) / dot_.step[form_] * dot_.step[form_];
    const auto& tile = sums.fresh ? dot_.fresh[form_] : dot_.tile[form_];
    const int64_t stride = dot_.pairs ? 2 * rows.stride : rows.stride;
    const auto multiply = [&](int row, int n, const uint8_t* activations) {
      tile[n](bytes, activations, stride, k, sums.first + int64_t(row) * dot_.columns, sums.shift);
    };
    each_tile(rows, tile_rows(), tier_.counters.tile[form_], multiply, dot_.least_rows);
  }

 private:
  static constexpr int kMatrixRows = 4096;  // unpacking a brick takes as long as multiplying a few groups
  static constexpr int kMatrixCodes = 576;  // bytes of weights that stay in L1 beside what passes: 1152 are slower
  // Two rows that share bytes have them by units of 32 codes; other pixels may begin anywhere.
  static BrickShape brick_shape(const DotFamily& dot) {
    return {dot.columns, dot.columns, unit(dot), kBlock, dot.pairs ? kUnit : 1, dot.matrix ? kMatrixCodes : 0};
  }
  // What few rows read at once, and the rest.
  static int unit(const DotFamily& dot) { return dot.matrix ? std::max(kUnit, dot.matrix->codes) : kUnit; }
  bool few(const PreparedRows& rows) const { return !takes_many(rows.rows); }
  // Where pixels are shared, always: what S has of the weights is then known before the rows are.
  bool takes_many(int rows) const { return rows > dot_.few_rows || taps().any(); }

  void multiply_few(const Brick& brick, const PreparedRows& rows, const PanelsOfSums& sums) const {
    const uint8_t* codes = rows.first;
    for (int line = 0; line < brick.lines; ++line, codes += rows.line_stride) {
      const uint8_t* const weights = brick.weights + line * brick_bytes(brick.codes);
      dot_.few[form_][bits_][rows.rows](weights, codes, rows.stride, brick.codes, sums.first, sums.shift);
      tier_.counters.few[form_][bits_][rows.rows].add(1);
    }
  }

  // Lines of one position each are one run: the rows of a group need only stand a constant apart.
  static PreparedRows in_long_runs(PreparedRows rows) {
    if (rows.run == 1) rows.run = rows.rows, rows.stride = rows.run_stride;
    return rows;
  }
  // Rows of a group, one number for all runs: the last group of a run overlaps the one before it by as little as can be.
  int rows_of_group(int run) const { return (run + groups_of_run(run) - 1) / groups_of_run(run); }
  int groups_of_run(int run) const { return (run + dot_.matrix->rows - 1) / dot_.matrix->rows; }
  // The next brick, of which every step of every pair of groups fetches a part.
  struct Ahead {
    const uint8_t* at;
    int64_t bytes;
  };
  void multiply_groups(const MatrixWeights& weights, Ahead ahead, const PreparedRows& rows,
                       const PanelsOfSums& sums) const {
    const MatrixTiles& matrix = *dot_.matrix;
    const int count = rows_of_group(rows.run), steps = weights.k / matrix.codes * weights.lines;
    const int pairs = std::max(1, rows.rows / (2 * count));
    const int lines = int((ahead.bytes + 64 * pairs * steps - 1) / (64 * pairs * steps));
    const RowsInTurn turn(sums, dot_.columns);
    const auto single = [&](const RowsOfGroup& g, int skip) {
      const MatrixGroup group = turn.group(g, 0);
      matrix.single(weights, group, rows.stride, count, skip);
      turn.done(group, g.row, count, skip);
      tier_.counters.matrix_single.add(1);
    };
    RowsOfGroup waiting{};  // for a second one
    const uint8_t* run = rows.first;
    for (int first = 0; first < rows.rows; first += rows.run, run += rows.run_stride)
      for (int at = 0; at < rows.run; at += count) {
        const int begin = std::min(at, rows.run - count);
        const RowsOfGroup next{run + begin * rows.stride, first + begin};
        const int behind = next.row - waiting.row;
        if (begin < at && !(waiting.codes && behind < count)) {
          single(next, at - begin);
        } else if (waiting.codes) {
          const MatrixGroup one = turn.group(waiting, 0), other = turn.group(next, std::min(behind, count));
          matrix.pair(weights, one, other, rows.stride, ahead.at, lines);
          turn.done(one, waiting.row, count, other, next.row);
          tier_.counters.matrix_pair.add(1);
          ahead.at += 64 * lines * steps;
          waiting = {};
        } else {
          waiting = next;
        }
      }
    if (waiting.codes) single(waiting, 0);
  }
  bool expands(int rows) const { return dot_.expand[form_] && rows > dot_.few_rows; }
  // Where the codes of a row of a block of `rows` rows begin.
  int64_t offset(int row, int rows) const {
    if (!expands(rows)) return int64_t(row) * kRowStride;
    return dot_.pairs ? int64_t(row / 2) * kExpandStride + row % 2 * 8 : int64_t(row) * kExpandStride;
  }
  int64_t block_stride(int rows) const { return offset(dot_.pairs ? rows + rows % 2 : rows, rows); }

  // Weights of less than 8 bits are multiplied as levels where instructions take them signed, and none is larger than a code, for
  // which forms are exact: nothing is then left to be done with the sum of a row's codes.
  static WeightForm unpacked_form(const DotFamily& dot, const CodeMatrix& weights) {
    if (!dot.signed_weights) return {};
    if (weights.w_bits == 8) return {1, -128};
    const int most = (1 << weights.w_bits) - 1, largest = weights.w_alpha * most + weights.w_beta;
    return weights.w_beta < -most || largest > most ? WeightForm{} : WeightForm{weights.w_alpha, weights.w_beta};
  }
  const uint8_t* unpacked(const Brick& brick) const {
    static thread_local AlignedBytes buffer;
    const UnpackFn unpack = dot_.unpack[unpacked_.alpha - 1][bits_];
    if (!unpack) return brick.weights;
    uint8_t* bytes = scratch(buffer, int64_t(dot_.columns) * (dot_.matrix ? kMatrixCodes : kBlock));
    unpack(brick.weights, brick.codes * brick.lines / kUnit, bytes, unpacked_.beta);
    tier_.counters.unpack[unpacked_.alpha - 1][bits_].add(1);
    for (int line = 0; unpacked_.beta != 0 && line < brick.lines; ++line)
      clear_behind(brick, bytes + int64_t(line) * brick.codes * dot_.columns);
    return bytes;
  }
  // What no weight stands at is multiplied with a neighbour's codes, and is 0.
  void clear_behind(const Brick& brick, uint8_t* line) const {
    const int whole = brick.used / 4 * 4, columns = dot_.columns;
    const bool swapped = has_words(dot_, form_);
    uint8_t* const last = line + whole * columns;
    for (int i = brick.used % 4; i > 0 && i < 4; ++i)
      for (int column = 0; column < columns; ++column) last[4 * column + place_of_four(i, swapped)] = 0;
    const int begin = (brick.used + 3) / 4 * 4;
    std::memset(line + begin * columns, 0, size_t(brick.codes - begin) * columns);
  }

  // ---- Winograd's form ---------------------------------------------------------------------------------------------
  static constexpr int kWinogradBits = 2;  // that its activations have more
  int winograd_form(const CodeMatrix& weights) const { return dot_.form(8, weights.a_bits + kWinogradBits); }
  // Levels, and pixels whose bytes are whole steps; a form that is exact, and no slower by more than it saves.
  bool fits_winograd(const CodeMatrix& weights) const {
    const bool three = taps().h == 3 && taps().w == 3 && !taps().tall;
    if (!three || !dot_.signed_weights || dot_.matrix || bits_ == 8 || weights.a_bits + kWinogradBits > 8) return false;
    const int form = winograd_form(weights), channels = weights.k / 9;
    const bool exact = !dot_.expand[form] && !has_words(dot_, form_);
    return exact && channels % 16 == 0 && channels % dot_.step[form] == 0 &&
           9 * dot_.rate[form] >= 5 * dot_.rate[form_] && bytes_fit(weights);
  }
  // Whether all transformed weights are signed bytes: of nine levels, each once, twice or four times.
  bool bytes_fit(const CodeMatrix& weights) const {
    const int most = level_most(weights);
    if (9 * most <= 127) return true;
    const int channels = weights.k / 9;
    for (int output = 0; output < weights.outputs; ++output)
      for (int c = 0; c < channels; ++c) {
        int down[4][3];
        for (int j = 0; j < 3; ++j) {
          const auto g = [&](int i) { return level(weights.at(output, (3 * i + j) * channels + c)); };
          down[0][j] = 2 * g(0), down[1][j] = g(0) + g(1) + g(2), down[2][j] = g(0) - g(1) + g(2),
          down[3][j] = 2 * g(2);
        }
        for (const auto& d : down)
          for (const int sum : {2 * d[0], d[0] + d[1] + d[2], d[0] - d[1] + d[2], 2 * d[2]})
            if (sum < -128 || sum > 127) return false;
      }
    return true;
  }
  int level(int code) const { return unpacked_.alpha * code + unpacked_.beta; }
  int level_most(const CodeMatrix& weights) const {
    return std::max(std::abs(level(0)), std::abs(level((1 << weights.w_bits) - 1)));
  }

  class DotWinograd final : public WinogradWeights {
   public:
    DotWinograd(const DotSegment& of, const CodeMatrix& weights)
        : of_(of), dot_(of.dot_), form_(of.winograd_form(weights)), channels_(weights.k / 9) {
      const int codes = (1 << weights.a_bits) - 1, panels = (weights.outputs + dot_.columns - 1) / dot_.columns;
      offset = 2 * codes;
      largest = int64_t(weights.k) * of.level_most(weights) * codes;
      of_offset_.resize(size_t(panels) * 4 * dot_.columns);
      std::vector<uint8_t> matrices(size_t(kWinogradSums * matrix_bytes()));
      const std::vector<uint8_t> offsets(channels_, uint8_t(offset));
      for (int panel = 0; panel < panels; ++panel) take_offsets(panel, offsets.data(), matrices.data());
    }
    // No power of two, or matrices would share a few sets of the cache.
    int64_t matrix_bytes() const override { return count() + 64; }
    void panel(int panel, uint8_t* to) const override {
      static thread_local AlignedBytes buffer;
      const int64_t line = int64_t(of_.k_padded() / 3) * dot_.columns;
      uint8_t* const taps = scratch(buffer, 3 * line);
      const UnpackFn unpack = dot_.unpack[of_.unpacked_.alpha - 1][of_.bits_];
      of_.each_brick(panel, [&](int first_line, int before, const Brick& brick) {
        unpack(brick.weights, brick.codes * brick.lines / kUnit,
               taps + first_line * line + int64_t(before) * dot_.columns, of_.unpacked_.beta);
        of_.tier_.counters.unpack[of_.unpacked_.alpha - 1][of_.bits_].add(1);
      });
      const Tier& tier = tier_with(of_.tier_, &KernelTable::winograd);
      tier.table->winograd->weights(taps, line, count(), count(), to, matrix_bytes());
      tier.counters.winograd_weights.add(1);
    }
    const uint32_t* of_offset(int panel) const override {
      return of_offset_.data() + int64_t(panel) * 4 * dot_.columns;
    }
    void multiply(const uint8_t* matrix, const PreparedRows& rows, uint32_t* sums, int shift,
                  bool fresh) const override {
      const bool writes = fresh && dot_.fresh[form_][1];
      const auto& tile = writes ? dot_.fresh[form_] : dot_.tile[form_];
      if (fresh && !writes) std::memset(sums, 0, size_t(rows.rows) * dot_.columns * 4);
      const auto multiply = [&](int row, int n, const uint8_t* codes) {
        tile[n](matrix, codes, rows.stride, channels_, sums + int64_t(row) * dot_.columns, shift);
      };
      each_tile(rows, dot_.tile_rows[form_], of_.tier_.counters.tile[form_], multiply, dot_.least_rows);
    }

   private:
    int64_t count() const { return int64_t(channels_) * dot_.columns; }
    // The outputs of a tile whose pixels are all nothing but the offset, with the other sign; no multiples of four, as those of pixels.
    void take_offsets(int panel, const uint8_t* offsets, uint8_t* matrices) {
      constexpr int kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
      const int columns = dot_.columns;
      std::vector<uint32_t> sums(size_t(kWinogradSums) * columns);
      this->panel(panel, matrices);
      for (int m = 0; m < kWinogradSums; ++m)
        if (m != kPlusAndPlus)
          multiply(matrices + m * matrix_bytes(), {offsets, 1, 1, 0, 0, 0, 0}, sums.data() + m * columns, 0, false);
      uint32_t* const to = of_offset_.data() + int64_t(panel) * 4 * columns;
      for (int output = 0; output < 4; ++output)
        for (int m = 0; m < kWinogradSums; ++m)
          for (int column = 0; column < columns; ++column)
            to[output * columns + column] -=
                uint32_t(kOutput[output / 2][m / 4] * kOutput[output % 2][m % 4]) * sums[m * columns + column];
    }

    const DotSegment& of_;
    const DotFamily& dot_;
    const int form_, channels_;
    std::vector<uint32_t> of_offset_;
  };

  const DotFamily& dot_;
  const int bits_, form_;
  const WeightForm unpacked_;  // with many rows
  std::unique_ptr<const DotWinograd> winograd_;
};

}  // namespace

std::unique_ptr<SegmentKernel> make_dot(const CodeMatrix& weights, const Taps& taps, const Tier& tier) {
  return std::make_unique<DotSegment>(weights, taps, tier);
}

}  // namespace soniq
