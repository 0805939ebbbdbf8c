// Depthwise convolution: no reuse between columns, so lanes are channels.
//
//   for each tile of output rows and block of channels (threads)
//     for each few output rows that share strips:   interleave the rows they read, zeros where the image ends
//                                                   multiply: sums of the tile, which stay in L1 or L2
//     epilogue of the tile
#include "depthwise.h"

#include <algorithm>
#include <cstring>

#include "layer.h"
#include "threads.h"

namespace soniq {

// ---- weights -------------------------------------------------------------------------------------------------------------
namespace {

constexpr int kPieceChannels = sizeof(MergePiece::from_low);

int div_up(int n, int unit) { return (n + unit - 1) / unit; }

// The most that some products add up to in magnitude, in any order and for any codes up to a_max.
class Extremes {
 public:
  void add(int level) { (level < 0 ? negative_ : positive_) += std::abs(level); }
  int64_t most(int a_max) const { return std::max(negative_, positive_) * a_max; }

 private:
  int64_t negative_ = 0, positive_ = 0;
};

}  // namespace

const Tier& DepthwiseWeights::tier_for(const Tier& asked, int channels) {
  const Tier* found = &tier_with(asked, &KernelTable::depthwise);
  for (const Tier* t = found; t->table->depthwise && found->table->depthwise->channels > channels && t->below >= 0;) {
    t = &tier_with(*tiers()[t->below], &KernelTable::depthwise);
    if (t->table->depthwise) found = t;
  }
  return *found;
}

// Groups are single channels, so a group is a channel.
std::vector<DepthwiseWeights::Channel> DepthwiseWeights::channels_of(const LayerShape& shape,
                                                                     const uint8_t* const* streams) {
  std::vector<Channel> channels(shape.channels);
  for (size_t s = 0; s < shape.segments.size(); ++s) {
    const Segment& segment = shape.segments[s];
    const int shift = (segment.activation.alpha == 2 ? 1 : 0) + segment.exponent() - shape.exponent();
    for (int c = 0; c < shape.channels; ++c) {
      if (segment.group_channels(c) == 0) continue;
      const uint8_t* codes = streams[s] + int64_t(segment.group_start[c]) * shape.taps();
      channels[c] = {segment.first_channel + segment.group_start[c], shift, (1 << segment.activation.bits) - 1,
                     std::vector<int>(codes, codes + shape.taps())};
      for (int& level : channels[c].levels) level = segment.weight.alpha * level + segment.weight.beta;
    }
  }
  return channels;
}

DepthwiseWeights::DepthwiseWeights(const LayerShape& shape, const uint8_t* const* streams, const Tier& tier)
    : family_(*tier.table->depthwise),
      channels_(shape.channels),
      kernel_h_(shape.kernel_h),
      kernel_w_(shape.kernel_w),
      strips_(div_up(shape.kernel_h, family_.rows)),
      shared_rows_(strips_ * family_.rows - shape.kernel_h + 1),
      pixel_channels_(std::max(shape.channels, family_.channels)),
      shifts_(pixel_channels_) {
  const std::vector<Channel> channels = channels_of(shape, streams);
  for (int c = 0; c < channels_; ++c) shifts_[c] = uint32_t(channels[c].shift);
  for (int own = 0; own < channels_; own += family_.channels) {
    const int first = std::min(own, pixel_channels_ - family_.channels);
    DepthwiseBlock block{first, own - first, std::min(family_.channels, channels_ - own), 0, 0, 0};
    DepthwiseBounds bounds{};
    for (int c = own; c < own + block.channels; ++c) add_bounds(channels[c], bounds);
    while (!family_.form[block.form].exact(bounds)) ++block.form;
    pack(channels, block);
    blocks_.push_back(block);
  }
  if (shape.segments.size() == 1 && channels_ == pixel_channels_) return;
  for (const Channel& channel : channels) stored_.push_back(channel.stored);
  if (shape.segments.size() == 2 && channels_ >= kPieceChannels) make_pieces(shape.segments[0].channels);
}

void DepthwiseWeights::add_bounds(const Channel& channel, DepthwiseBounds& b) const {
  const int pairs = div_up(family_.rows, 2);
  b.most_shift = std::max(b.most_shift, channel.shift);
  for (int row = 0; row < shared_rows_; ++row) {
    std::vector<Extremes> sum(pairs), pair(size_t(strips_) * pairs * kernel_w_);
    for (int kh = 0; kh < kernel_h_; ++kh)
      for (int kw = 0; kw < kernel_w_; ++kw) {
        const int level = channel.levels[kh * kernel_w_ + kw], at = (kh + row) % family_.rows / 2;
        sum[at].add(level);
        pair[((kh + row) / family_.rows * pairs + at) * kernel_w_ + kw].add(level);
        b.least_weight = std::min(b.least_weight, level);
        b.most_weight = std::max(b.most_weight, level);
      }
    for (const Extremes& e : sum) b.most_sum = std::max(b.most_sum, e.most(channel.a_max));
    for (const Extremes& e : pair) b.most_pair = std::max(b.most_pair, e.most(channel.a_max));
  }
}

// [output row][group][strip][tap][as the form has it]
void DepthwiseWeights::pack(const std::vector<Channel>& channels, DepthwiseBlock& block) {
  const DepthwiseForm& form = family_.form[block.form];
  const int64_t tap_bytes = int64_t(family_.lanes) * family_.rows * form.weight_size;
  block.row_bytes = family_.channels / family_.lanes * strips_ * kernel_w_ * tap_bytes;
  block.weights = int64_t(bytes_.size());
  bytes_.resize(bytes_.size() + size_t(shared_rows_ * block.row_bytes), 0);
  for (int row = 0; row < shared_rows_; ++row)
    for (int lane = block.lane; lane < block.lane + block.channels; ++lane)
      for (int kh = 0; kh < kernel_h_; ++kh)
        for (int kw = 0; kw < kernel_w_; ++kw) {
          const int group = lane / family_.lanes, strip = (kh + row) / family_.rows;
          const int place = form.place(lane % family_.lanes, (kh + row) % family_.rows);
          uint8_t* tap = bytes_.data() + block.weights + row * block.row_bytes +
                         ((int64_t(group) * strips_ + strip) * kernel_w_ + kw) * tap_bytes;
          const auto level = int16_t(channels[block.first_channel + lane].levels[kh * kernel_w_ + kw]);
          std::memcpy(tap + place * form.weight_size, &level, form.weight_size);  // little-endian
        }
}

// The last piece, and runs that would end behind the pixel, begin early enough to end with it.
void DepthwiseWeights::make_pieces(int low_channels) {
  const int last = channels_ - kPieceChannels;
  for (int c = 0; c < channels_; c += kPieceChannels) {
    const int to = std::min(c, last);
    const auto mine = [&](bool high) {  // the first stored position of a segment among the piece's
      for (int i = to; i < to + kPieceChannels; ++i)
        if ((stored_[i] >= low_channels) == high) return std::min<int>(stored_[i], last);
      return 0;
    };
    MergePiece piece{to, mine(false), mine(true), {}, {}};
    for (int i = 0; i < kPieceChannels; ++i) {
      const int stored = stored_[to + i];
      const bool high = stored >= low_channels;
      piece.from_low[i] = uint8_t(high ? 0x80 : stored - piece.low);
      piece.from_high[i] = uint8_t(high ? stored - piece.high : 0x80);
    }
    pieces_.push_back(piece);
  }
}

bool DepthwiseWeights::merge(const uint8_t* stored, int64_t pixels, uint8_t* merged) const {
  if (!pieces_.empty()) {
    family_.merge(pieces_.data(), int(pieces_.size()), stored, channels_, pixels, merged, pixel_channels_);
    return true;
  }
  for (int64_t x = 0; x < pixels; ++x)
    for (int c = 0; c < channels_; ++c) merged[x * pixel_channels_ + c] = stored[x * channels_ + stored_[c]];
  return false;
}

// ---- the run -------------------------------------------------------------------------------------------------------------
namespace {

constexpr int kTilePositions = 64;  // of the output, at least, for one call of the epilogue
alignas(64) constexpr uint8_t kZeros[64] = {};

class DepthwiseRun {
 public:
  DepthwiseRun(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output)
      : layer_(layer),
        weights_(layer.depthwise()),
        family_(weights_.family()),
        g_(geometry),
        codes_(codes),
        shared_rows_(shared_rows(layer, geometry)),
        rows_(tile_rows(layer, geometry)),
        columns_(int64_t(g_.out_w - 1) * g_.stride_w + int64_t(layer.shape().kernel_w - 1) * g_.dilation_w + 1),
        border_(layer.has_activation_terms() ? layer.border(geometry) : nullptr),
        epilogue_(layer, output, geometry, border_.get()) {
    if (!weights_.reads_stored_pixels()) make_room_for_merged_rows();
  }

  static int shared_rows(const Layer& layer, const Geometry& g) {
    return g.stride_h == 1 && g.dilation_h == 1 ? layer.depthwise().shared_rows() : 1;
  }
  static int tile_rows(const Layer& layer, const Geometry& g) {
    const int shared = shared_rows(layer, g);
    return std::min(g.out_h, shared * std::max(1, kTilePositions / (shared * g.out_w)));
  }

  // Items are blocks of tiles: all blocks of a tile, then the tile below, then the next image.
  void share(Range items) {
    const int tiles = div_up(g_.out_h, rows_);
    const auto blocks = int64_t(weights_.blocks().size());
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t tile = item / blocks;
      finish(weights_.blocks()[item % blocks], int(tile / tiles), int(tile % tiles) * rows_);
    }
  }

 private:
  void finish(const DepthwiseBlock& block, int image, int oh) {
    const int64_t first_row = (int64_t(image) * g_.out_h + oh) * g_.out_w;
    const uint32_t* sums = multiply(block, image, oh);
    const int rows = std::min(rows_, g_.out_h - oh) * g_.out_w;
    epilogue_.begin({first_row, rows, block.first_channel + block.lane, block.channels}, {family_.channels, 0});
    epilogue_.finish(sums + block.lane, 0);
  }

  // The sums of a tile, [position][channel of the block].
  const uint32_t* multiply(const DepthwiseBlock& block, int image, int oh) {
    static thread_local AlignedBytes sums_bytes;
    auto* sums = reinterpret_cast<uint32_t*>(scratch(sums_bytes, int64_t(rows_) * g_.out_w * family_.channels * 4));
    const int end = std::min(oh + rows_, g_.out_h);
    for (int row = oh; row < end; row += shared_rows_) {
      const int rows = std::min(shared_rows_, end - row);
      multiply_rows(block, interleave(block, image, row, rows), rows,
                    sums + int64_t(row - oh) * g_.out_w * family_.channels);
    }
    return sums;
  }

  int64_t group_bytes() const { return columns_ * family_.column_bytes; }
  int64_t strip_bytes() const { return group_bytes() * (family_.channels / family_.lanes); }

  const uint8_t* interleave(const DepthwiseBlock& block, int image, int oh, int out_rows) {
    static thread_local AlignedBytes strips_bytes;
    uint8_t* strips = scratch(strips_bytes, weights_.strips() * strip_bytes());
    const int64_t left = std::min<int64_t>(g_.pad_left, columns_);
    const int64_t inside = std::clamp<int64_t>(columns_ - left, 0, g_.in_w), right = columns_ - left - inside;
    const int used = layer_.shape().kernel_h + out_rows - 1;
    for (int s = 0; s < weights_.strips(); ++s) {
      DepthwiseRow rows[kMaxStripRows];
      for (int i = 0; i < family_.rows; ++i) {
        const int tap = s * family_.rows + i;
        rows[i] = tap < used ? row_of(block, image, oh * g_.stride_h - g_.pad_top + tap * g_.dilation_h) : kNoRow;
      }
      uint8_t* to = strips + s * strip_bytes();
      for (int64_t group = 0; group < strip_bytes(); group += group_bytes()) {
        std::memset(to + group, 0, size_t(left) * family_.column_bytes);
        std::memset(to + group + (left + inside) * family_.column_bytes, 0, size_t(right) * family_.column_bytes);
      }
      family_.interleave(rows, inside, to + left * family_.column_bytes, group_bytes());
    }
    layer_.kernel_tier().counters.depthwise_interleave.add(1);
    return strips;
  }

  static constexpr int kMaxStripRows = 4;
  static constexpr DepthwiseRow kNoRow{kZeros, 0};

  DepthwiseRow row_of(const DepthwiseBlock& block, int image, int h) {
    if (h < 0 || h >= g_.in_h) return kNoRow;
    const int64_t row = int64_t(image) * g_.in_h + h, step = weights_.pixel_channels();
    const uint8_t* pixels = weights_.reads_stored_pixels() ? codes_ + row * g_.in_w * step : merged_row(row);
    return {pixels + block.first_channel, step};
  }

  // A tile's rows, and what the next one needs of them, are merged once: row h is kept in place h modulo as many as a tile spans.
  void make_room_for_merged_rows() {
    const int64_t spanned = int64_t(rows_ - 1) * g_.stride_h + int64_t(layer_.shape().kernel_h - 1) * g_.dilation_h + 1;
    merged_.resize(size_t(std::min<int64_t>(spanned, g_.in_h)), -1);
    merged_codes_.resize(merged_.size() * g_.in_w * weights_.pixel_channels());
  }
  const uint8_t* merged_row(int64_t row) {
    const size_t place = size_t(row % g_.in_h) % merged_.size();
    uint8_t* pixels = merged_codes_.data() + place * g_.in_w * weights_.pixel_channels();
    if (merged_[place] != row) {
      merged_[place] = row;
      if (weights_.merge(codes_ + row * g_.in_w * layer_.shape().channels, g_.in_w, pixels))
        layer_.kernel_tier().counters.depthwise_merge.add(1);
    }
    return pixels;
  }

  void multiply_rows(const DepthwiseBlock& block, const uint8_t* strips, int out_rows, uint32_t* sums) const {
    DepthwiseTile t;
    t.strips = strips;
    t.strip_bytes = strip_bytes();
    t.group_bytes = group_bytes();
    t.output_bytes = int64_t(g_.stride_w) * family_.column_bytes;
    t.tap_bytes = int64_t(g_.dilation_w) * family_.column_bytes;
    t.strip_count = weights_.strips();
    t.taps = layer_.shape().kernel_w;
    t.weights = weights_.weights(block);
    t.weights_row = block.row_bytes;
    t.out_rows = out_rows;
    t.shifts = weights_.shifts(block);
    t.columns = g_.out_w;
    t.sums = sums;
    KernelCounters& counters = layer_.kernel_tier().counters;
    const DepthwiseForm& form = weights_.form(block);
    const bool three = t.taps == 3 && t.strip_count == div_up(3, family_.rows) && out_rows <= 2;
    if (three && form.three[out_rows - 1]) {
      form.three[out_rows - 1](t);
      counters.depthwise_three[block.form][out_rows - 1].add(1);
    } else {
      form.any(t);
      counters.depthwise_any[block.form].add(1);
    }
  }

  const Layer& layer_;
  const DepthwiseWeights& weights_;
  const DepthwiseFamily& family_;
  const Geometry& g_;
  const uint8_t* codes_;   // [batch][in_h][in_w][channels], stored order
  const int shared_rows_;  // output rows that read the same strips
  const int rows_;         // of a tile
  const int64_t columns_;  // of a strip
  std::shared_ptr<const BorderTable> border_;
  TileEpilogue epilogue_;
  std::vector<int64_t> merged_;  // place -> the row that is there
  AlignedBytes merged_codes_;
};

}  // namespace

void run_depthwise(const Layer& layer, const uint8_t* codes, const Geometry& geometry, const Output& output) {
  constexpr int64_t kDepthwiseWork = 8;  // a product, with its share of an epilogue, takes the time of so many
  const int tiles = div_up(geometry.out_h, DepthwiseRun::tile_rows(layer, geometry));
  const int64_t items = int64_t(geometry.batch) * tiles * int64_t(layer.depthwise().blocks().size());
  const int threads = threads_for(geometry.rows() * layer.shape().products_per_row() * kDepthwiseWork, items);
  parallel(threads, [&](int share, int shares) {
    DepthwiseRun(layer, codes, geometry, output).share(share_of(items, 1, share, shares));
  });
}

}  // namespace soniq
