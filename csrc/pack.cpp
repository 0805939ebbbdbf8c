// From streams of codes to what a tier's kernels read: panels, levels, and the constants of the algebra.
//
// A packed unit of the dot family: 32 codes of each of `columns` outputs. Unpacked it is 8 rows (one per 4 codes) of
// `columns` * 4 bytes. Packed, a code of p bits is cut into fields of 8, 4, 2 and 1 bits (7 = 4 + 2 + 1), high to low, and
// a field of f bits of the 8 rows shares f rows:
//
//   field of 4 bits, byte of packed row r (0..3):     | row r + 4 | row r |         high nibble | low nibble
//   field of 2 bits, byte of packed row r (0..1):     | row r + 6 | row r + 4 | row r + 2 | row r |
//   field of 1 bit,  byte of the only packed row:     | row 7 | row 6 | ... | row 0 |
//
// so that unpacking is one shift and one mask per field and row, and p bits a weight is all that memory holds.
#include <algorithm>
#include <cstring>

#include "layer.h"
#include "threads.h"

namespace soniq {

const char* family_name(Family family) {
  switch (family) {
    case Family::reference: return "reference";
    case Family::dot: return "dot";
    default: return "depthwise";
  }
}

namespace {

// The codes of one output in one segment and group: k -> code, 0 past the true K and past the last output.
struct CodeRow {
  const uint8_t* codes;
  int k;
  uint8_t at(int index) const { return codes != nullptr && index < k ? codes[index] : 0; }
};

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

void pack_unit(const std::vector<CodeRow>& rows, int first_k, int bits, uint8_t flip, uint8_t* out) {
  const int columns = int(rows.size()), row_bytes = columns * 4;
  int position = bits;
  for (int field = 8; field >= 1; field /= 2) {
    if (!(bits == 8 ? field == 8 : (field < 8 && (bits & field)))) continue;
    position -= field;
    const int mask = (1 << field) - 1;
    for (int j = 0; j < 8; ++j) {
      uint8_t* packed = out + (j % field) * row_bytes;
      const int place = j / field * field;
      for (int column = 0; column < columns; ++column)
        for (int i = 0; i < 4; ++i) {
          const uint8_t code = rows[column].at(first_k + 4 * j + i) ^ flip;
          packed[column * 4 + i] |= uint8_t(((code >> position) & mask) << place);
        }
    }
    out += field * row_bytes;
  }
}

uint32_t term_of_tap(const Segment& s, int exponent, const uint8_t* codes, int channels) {
  uint32_t code_sum = 0;
  for (int c = 0; c < channels; ++c) code_sum += codes[c];
  const Grid &w = s.weight, &a = s.activation;
  const uint32_t term = uint32_t(w.alpha * a.beta) * code_sum + uint32_t(channels) * uint32_t(w.beta * a.beta);
  return term << (s.exponent() - exponent);
}

}  // namespace

Layer::Layer(LayerShape shape, const uint8_t* const* streams, const Tier& tier)
    : shape_(std::move(shape)), tier_(tier), kernel_tier_(&tier) {
  choose_family();
  if (family_ == Family::dot) build_panels(streams);
  if (family_ == Family::depthwise) build_levels(streams);
  if (family_ == Family::dot) sum_taps(streams);
  if (family_ == Family::reference)
    for (int s = 0; s < segments(); ++s) {
      int64_t size = 0;
      for (int g = 0; g < shape_.groups; ++g)
        size += int64_t(shape_.group_outputs()) * shape_.taps() * shape_.segments[s].group_channels(g);
      streams_.emplace_back(streams[s], streams[s] + size);
    }
}

void Layer::choose_family() {
  const bool depthwise = shape_.groups > 1 && shape_.groups == shape_.channels && shape_.outputs == shape_.channels;
  const Tier& dot_tier = tier_with(tier_, &KernelTable::dot);
  const Tier& depthwise_tier = tier_with(tier_, &KernelTable::depthwise);
  family_ = Family::reference;
  if (depthwise && depthwise_tier.table->depthwise) {
    family_ = Family::depthwise;
    kernel_tier_ = &depthwise_tier;
  } else if (dot_tier.table->dot) {
    family_ = Family::dot;
    kernel_tier_ = &dot_tier;
  } else {
    kernel_tier_ = &dot_tier;
  }
}

void Layer::build_panels(const uint8_t* const* streams) {
  const DotFamily& dot = this->dot();
  const int outputs = shape_.group_outputs(), count = (outputs + dot.columns - 1) / dot.columns;
  panels_.resize(shape_.groups * segments());
  for (int s = 0; s < segments(); ++s) {
    const Segment& segment = shape_.segments[s];
    const int bits = segment.weight.bits;
    const uint8_t flip = dot.flips_8bit_weights && bits == 8 ? 0x80 : 0;
    const uint8_t* group_stream = streams[s];
    for (int g = 0; g < shape_.groups; ++g) {
      Panels& p = panels_[g * segments() + s];
      p.k = shape_.taps() * segment.group_channels(g);
      p.k_padded = round_up(p.k, kUnit);
      p.form = dot.form(bits, segment.activation.bits);
      p.bytes_each = int64_t(p.k_padded) * dot.columns * bits / 8;
      p.bytes.assign(p.bytes_each * count, 0);
      parallel(std::min(num_threads(), count), [&](int share, int shares) {
        const Range mine = share_of(count, 1, share, shares);
        for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
          std::vector<CodeRow> rows(dot.columns, CodeRow{nullptr, p.k});
          for (int column = 0; column < dot.columns; ++column) {
            const int64_t n = panel * dot.columns + column;
            if (n < outputs) rows[column].codes = group_stream + n * p.k;
          }
          uint8_t* out = p.bytes.data() + panel * p.bytes_each;
          for (int k = 0; k < p.k_padded; k += kUnit, out += dot.columns * 4 * bits) pack_unit(rows, k, bits, flip, out);
        }
      });
      group_stream += int64_t(outputs) * p.k;
    }
  }
  form_ = panels_[0].form;
}

void Layer::build_levels(const uint8_t* const* streams) {
  for (int s = 0; s < segments(); ++s) {
    const Segment& segment = shape_.segments[s];
    const int channels = segment.channels, taps = shape_.taps();
    levels_.emplace_back(size_t(taps) * channels);
    for (int c = 0; c < channels; ++c)
      for (int t = 0; t < taps; ++t)
        levels_[s][size_t(t) * channels + c] =
            int16_t(segment.weight.alpha * streams[s][size_t(c) * taps + t] + segment.weight.beta);
  }
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

int Layer::shift(int segment) const {
  const Segment& s = shape_.segments[segment];
  const int alphas = s.weight.alpha * s.activation.alpha;  // 1, 2 or 4
  return alphas / 2 + (s.exponent() - shape_.exponent());
}

uint32_t Layer::row_factor(int segment) const {
  const Segment& s = shape_.segments[segment];
  const bool flipped = dot().flips_8bit_weights && s.weight.bits == 8;
  const int repair = flipped ? 128 * s.weight.alpha * s.activation.alpha : 0;
  return uint32_t(s.weight.beta * s.activation.alpha + repair) << (s.exponent() - shape_.exponent());
}

int64_t Layer::panel_bytes() const {
  int64_t total = 0;
  for (const Panels& p : panels_) total += int64_t(p.bytes.size());
  for (const auto& s : streams_) total += int64_t(s.size());
  for (const auto& l : levels_) total += int64_t(l.size() * sizeof(int16_t));
  return total;
}

}  // namespace soniq
