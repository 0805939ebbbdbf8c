// From streams of codes to what a tier's kernels read: panels by family, and the constants of the algebra.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "layer.h"
#include "threads.h"

namespace soniq {

namespace {

constexpr std::pair<Family, const char*> kFamilyNames[] = {
    {Family::reference, "reference"}, {Family::dot, "dot"},   {Family::popcount, "popcount"},  {Family::lut, "lut"},
    {Family::lut5, "lut5"},           {Family::lut6, "lut6"}, {Family::depthwise, "depthwise"}};

}  // namespace

const char* family_name(Family family) {
  for (const auto& [known, name] : kFamilyNames)
    if (known == family) return name;
  return "";
}

Family family_of(const std::string& name) {
  for (const auto& [family, known] : kFamilyNames)
    if (name == known) return family;
  throw std::invalid_argument("there is no kernel family " + name);
}

namespace {

int div_up(int n, int unit) { return (n + unit - 1) / unit; }

}  // namespace

SegmentKernel::SegmentKernel(const CodeMatrix& weights, const Taps& taps, const Tier& tier, const BrickShape& shape)
    : tier_(tier),
      shape_(shape),
      taps_(taps),
      k_(weights.k),
      pixel_codes_(taps.any() ? div_up(weights.k / taps.count() * taps.pixels_in_one(), shape.pixel) * shape.pixel : 0),
      k_padded_(taps.any() ? taps.lines() * div_up(taps.w * pixel_codes_, shape.unit) * shape.unit
                           : div_up(weights.k, shape.unit) * shape.unit),
      bricks_(div_up(weights.outputs, shape.columns)),
      bricks_together_(std::max(1, kPanelsTogether * shape.panel / shape.columns)) {}

// One piece a block and line, or as many whole lines as a brick may have. A line is a row of the kernel, or all of K in blocks
// that are a line each.
void SegmentKernel::cut() {
  if (k_padded_ == 0) return;
  const int lines_in_all = taps_.any() ? taps_.lines() : div_up(k_padded_, shape_.block);
  const int line_codes = taps_.any() ? k_padded_ / lines_in_all : std::min(k_padded_, shape_.block);
  const int together = line_codes <= shape_.block ? std::max(1, shape_.lines_block / line_codes) : 1;
  for (int line = 0; line < lines_in_all;) {
    const int first = line * line_codes, codes_left = std::min(line_codes, k_padded_ - first);
    const int used = taps_.any() ? taps_.w * pixel_codes_ : std::min(codes_left, k_ - first);
    const int lines = std::max(1, std::min(together, (k_padded_ - first) / line_codes));
    for (int at = 0; at < codes_left; at += shape_.block) {
      const int codes = std::min(shape_.block, codes_left - at);
      pieces_.push_back({first + at, codes, std::min(codes, used - at), lines, line, at, column_bytes_});
      column_bytes_ += brick_bytes(codes * lines);
    }
    line += lines;
  }
}

// Of every packed position the code of a row of weights, [tap][channel]; -1 where a pixel or a line is padded.
std::vector<int32_t> SegmentKernel::order() const {
  std::vector<int32_t> order(k_padded_, -1);
  const int channels = k_ / taps_.count(), row_codes = taps_.tall ? channels : k_padded_ / taps_.h;
  for (int tap = 0; tap < taps_.count(); ++tap)
    for (int c = 0; c < channels; ++c)
      order[tap / taps_.w * row_codes + tap % taps_.w * pixel_codes_ + c] = tap * channels + c;
  return order;
}

void SegmentKernel::build(CodeMatrix weights) {
  const std::vector<int32_t> order = taps_.any() ? this->order() : std::vector<int32_t>();
  if (taps_.any()) weights.order = order.data(), weights.positions = int(order.size());
  cut();
  bytes_.assign(size_t(bricks_ * column_bytes_), 0);
  parallel(int(std::min<int64_t>(num_threads(), bricks_)), [&](int share, int shares) {
    const Range mine = share_of(bricks_, 1, share, shares);
    for (int64_t at = mine.begin; at < mine.end; ++at)
      for (const Piece& piece : pieces_) {
        const int group = int(at) / bricks_together_, brick = int(at) % bricks_together_;
        pack_brick(weights, at * shape_.columns, piece.first_position, piece.codes * piece.lines,
                   bytes_.data() + brick_offset(group, piece, brick));
      }
  });
}

void SegmentKernel::multiply(int first, int panels, const PreparedRows& rows, const PanelsOfSums& sums) const {
  const int together = panels_together(), panels_of_brick = shape_.columns / shape_.panel;
  const bool writes = begin(rows);
  if (sums.fresh && !writes)
    for (int panel = 0; panel < panels; ++panel)
      std::memset(sums.first + panel * sums.stride, 0, size_t(rows.rows) * shape_.panel * sizeof(uint32_t));
  PanelsOfSums of_group = sums;
  for (int panel = 0; panel < panels; panel += together, of_group.first += together * sums.stride) {
    const int group = (first + panel) / together;
    for (const Piece& piece : pieces_) {
      PreparedRows at = rows;
      at.first += piece.line * rows.line_stride + prepared_codes_bytes(piece.codes_before);
      PanelsOfSums to = of_group;
      to.fresh = sums.fresh && writes && &piece == &pieces_.front();
      to.last = &piece == &pieces_.back();
      to.panel = panel;
      for (int brick = 0; brick < bricks_of_group(group);
           ++brick, to.first += panels_of_brick * sums.stride, to.panel += panels_of_brick)
        multiply_brick({bytes_.data() + brick_offset(group, piece, brick), piece.codes, piece.used, piece.lines}, at,
                       to);
    }
  }
  end(rows, panels, sums);
}

namespace {

// Activations in two parts are looked up twice.
int lut_rate(const LutFamily& lut, int a_bits) {
  if (a_bits <= kMaxLutBits) return lut.rate[a_bits];
  const int low = lut.rate[4], high = lut.rate[a_bits - 4];
  return low * high / (low + high);
}

}  // namespace

// dot's rate is that of the form that is exact for the widths, popcount pays for every pair of planes, the tables for every weight plane.
std::vector<Candidate> candidates(const Tier& tier, int w, int a) {
  std::vector<Candidate> found;
  const Tier& dot = tier_with(tier, &KernelTable::dot);
  if (dot.table->dot) found.push_back({Family::dot, &dot, dot.table->dot->rate[dot.table->dot->form(w, a)]});
  const Tier& popcount = tier_with(tier, &KernelTable::popcount);
  if (popcount.table->popcount && popcount.table->popcount->planes[a])
    found.push_back({Family::popcount, &popcount, popcount.table->popcount->rate / (w * a)});
  const Tier& lut = tier_with(tier, &KernelTable::lut);
  if (lut.table->lut && (a > kMaxLutBits || lut.table->lut->tile[a][1]))
    found.push_back({Family::lut, &lut, lut_rate(*lut.table->lut, a) / w,
                     (a > kMaxLutBits ? 2 : 1) * lut.table->lut->table_cycles});
  const Tier& lut6 = tier_with(tier, &KernelTable::lut6);
  if (lut6.table->lut6 && (a > kMaxLutBits || (a <= kMaxLut6Bits && lut6.table->lut6->tile[a][1]))) {
    const Lut6Family& tables = *lut6.table->lut6;
    const int parts = a > kMaxLutBits ? 2 : 1, rate = tables.rate[parts == 2 ? 4 : a] / w / parts;
    found.push_back({family_of_tables(tables), &lut6, rate, parts * tables.table_cycles});
  }
  std::stable_sort(found.begin(), found.end(), [](const Candidate& x, const Candidate& y) { return x.rate > y.rate; });
  return found;
}

std::unique_ptr<SegmentKernel> make_segment_kernel(const CodeMatrix& weights, const Taps& taps,
                                                   const Candidate& candidate) {
  switch (candidate.family) {
    case Family::popcount: return make_popcount(weights, taps, *candidate.tier);
    case Family::lut: return make_lut(weights, taps, *candidate.tier);
    case Family::lut5:
    case Family::lut6: return make_lut6(weights, taps, *candidate.tier);
    default: return make_dot(weights, taps, *candidate.tier);
  }
}

namespace {

uint32_t term_of_tap(const Segment& s, int exponent, const uint8_t* codes, int channels) {
  uint32_t code_sum = 0;
  for (int c = 0; c < channels; ++c) code_sum += codes[c];
  const Grid &w = s.weight, &a = s.activation;
  const uint32_t term = uint32_t(w.alpha * a.beta) * code_sum + uint32_t(channels) * uint32_t(w.beta * a.beta);
  return term << (s.exponent() - exponent);
}

}  // namespace

Layer::Layer(LayerShape shape, const uint8_t* const* streams, const Tier& tier, const std::vector<Family>& families,
             bool share_pixels, std::vector<CodeMap> joins)
    : shape_(std::move(shape)), joins_(std::move(joins)), tier_(tier), kernel_tier_(&tier), family_(choose_family()) {
  if (family_ == Family::depthwise) depthwise_ = std::make_unique<DepthwiseWeights>(shape_, streams, *kernel_tier_);
  if (family_ == Family::dot) {
    share_pixels &= shape_.groups == 1 && shape_.taps() > 1;
    if (share_pixels && !has_few_channels()) build_kernels(streams, families, {shape_.kernel_h, shape_.kernel_w});
    if (share_pixels && mostly_padding()) build_kernels(streams, families, {shape_.kernel_h, shape_.kernel_w, true});
    if (mostly_padding()) build_kernels(streams, families, {});
  }
  if (family_ != Family::reference) sum_taps(streams);
  if (family_ == Family::reference) copy_streams(streams);
}

Family Layer::choose_family() {
  const bool depthwise = shape_.groups > 1 && shape_.groups == shape_.channels && shape_.outputs == shape_.channels;
  kernel_tier_ = &tier_with(tier_, &KernelTable::dot);
  if (!kernel_tier_->table->dot) return Family::reference;
  if (!depthwise) return Family::dot;
  kernel_tier_ = &DepthwiseWeights::tier_for(tier_, shape_.channels);
  return Family::depthwise;
}

namespace {

// The family asked for, else the one with the highest ceiling.
Candidate candidate(const Tier& tier, const Segment& segment, const Family* asked) {
  const std::vector<Candidate> all = candidates(tier, segment.weight.bits, segment.activation.bits);
  if (!asked) return all.front();
  for (const Candidate& c : all)
    if (c.family == *asked) return c;
  throw std::invalid_argument(std::string(family_name(*asked)) + " does not serve these widths on " + tier.name);
}

}  // namespace

void Layer::build_kernels(const uint8_t* const* streams, const std::vector<Family>& families, const Taps& taps) {
  kernels_.clear();
  std::vector<const uint8_t*> at(streams, streams + segments());
  for (int g = 0; g < shape_.groups; ++g)
    for (int s = 0; s < segments(); ++s) {
      const Segment& segment = shape_.segments[s];
      const CodeMatrix weights{at[s],
                               shape_.group_outputs(),
                               shape_.taps() * segment.group_channels(g),
                               segment.weight.bits,
                               segment.activation.bits,
                               segment.weight.alpha,
                               segment.weight.beta};
      const Family* asked = families.empty() ? nullptr : &families[s];
      kernels_.push_back(make_segment_kernel(weights, taps, candidate(tier_, segment, asked)));
      at[s] += int64_t(weights.outputs) * weights.k;
    }
  family_ = kernels_[0]->family();
  kernel_tier_ = &kernels_[0]->tier();
}

// A row of the kernel is then a short run, at whose ends the sums would be written and read again. Pixels of columns are
// prepared once for every row of the kernel instead.
bool Layer::has_few_channels() const { return shape_.channels <= kFewChannels; }

// Few channels in pixels that are padded to a register, say: products with zeros, which gathered rows have less of, cost more
// than gathering does. Also before there are kernels.
bool Layer::mostly_padding() const {
  int64_t gathered = 0, k_padded = 0;
  for (const auto& kernel : kernels_) gathered += kernel->k_gathered(), k_padded += kernel->k_padded();
  return kernels_.empty() || k_padded * 3 > gathered * 4;
}

void Layer::copy_streams(const uint8_t* const* streams) {
  for (int s = 0; s < segments(); ++s) {
    int64_t size = 0;
    for (int g = 0; g < shape_.groups; ++g)
      size += int64_t(shape_.group_outputs()) * shape_.taps() * shape_.segments[s].group_channels(g);
    streams_.emplace_back(streams[s], streams[s] + size);
  }
}

bool Layer::has_activation_terms() const {
  for (const Segment& s : shape_.segments)
    if (s.activation.beta != 0) return true;
  return false;
}

// Cw and K, tap by tap, already multiplied: the constant of an output is the sum over its valid taps.
void Layer::sum_taps(const uint8_t* const* streams) {
  tap_terms_.assign(size_t(shape_.taps()) * shape_.outputs, 0);
  for (int s = 0; s < segments(); ++s) {
    const uint8_t* codes = streams[s];
    for (int n = 0; n < shape_.outputs; ++n) {
      const int channels = shape_.segments[s].group_channels(n / shape_.group_outputs());
      for (int t = 0; t < shape_.taps(); ++t, codes += channels)
        tap_terms_[size_t(t) * shape_.outputs + n] +=
            term_of_tap(shape_.segments[s], shape_.exponent(), codes, channels);
    }
  }
}

//   sum l_w * l_a = a_a * sum (a_w * c_w + b_w) * c_a + ... = a_a * (a_w / alpha * S + (b_w - a_w / alpha * beta) * Ca) + ...
int Layer::shift(int segment, int rows) const {
  const Segment& s = shape_.segments[segment];
  const int alphas = s.weight.alpha / kernel(0, segment).weight_form(rows).alpha * s.activation.alpha;  // 1, 2 or 4
  return alphas / 2 + (s.exponent() - shape_.exponent());
}

uint32_t Layer::row_factor(int segment, int rows) const {
  const Segment& s = shape_.segments[segment];
  const WeightForm form = kernel(0, segment).weight_form(rows);
  const int missing = s.weight.beta - s.weight.alpha / form.alpha * form.beta;
  return uint32_t(missing * s.activation.alpha) << (s.exponent() - shape_.exponent());
}

int64_t Layer::panel_bytes() const {
  int64_t total = 0;
  for (const auto& k : kernels_) total += k->panel_bytes();
  for (const auto& s : streams_) total += int64_t(s.size());
  if (depthwise_) total += depthwise_->bytes();
  return total;
}

}  // namespace soniq
