#include "tensor.h"

#include <cmath>

namespace soniq {

TensorFormat::TensorFormat(const std::vector<uint8_t>& segment_of, const std::vector<ChannelGrid>& grids, float scale)
    : channels(int(segment_of.size())), low_channels(0), scale(scale), position(segment_of.size()) {
  for (uint8_t s : segment_of) low_channels += s == 0;
  int32_t next[2] = {0, low_channels};
  for (int c = 0; c < channels; ++c) position[c] = next[segment_of[c]]++;
  for (uint8_t s : segment_of) {
    const ChannelGrid& g = grids[s];
    alpha.push_back(g.alpha);
    beta.push_back(g.beta);
    step.push_back(g.step);
    r.push_back(g.r_numerator / scale);
    z.push_back(g.z);
    cmax.push_back(g.cmax);
    positive &= r.back() > 0 && std::isfinite(r.back()) && g.z >= 0;
  }
  if (grids.size() < 2) return;
  second.assign(channels / 64 + 2, 0);
  for (int c = 0; c < channels; ++c) second[c / 64] |= uint64_t(segment_of[c]) << (c % 64);
}

TensorFormat::TensorFormat(const std::vector<uint8_t>& segment_of, const std::vector<ChannelGrid>& grids, float scale,
                           const JoinedFormat& joined)
    : TensorFormat(segment_of, grids, scale) {
  low_channels = channels;
  second.clear();
  for (int c = 0; c < channels; ++c) {
    const int s = segment_of[c];
    position[c] = c;
    alpha[c] = joined.alpha;
    beta[c] = joined.beta;
    step[c] = joined.step[s];
    shift.push_back(joined.shift[s]);
    add.push_back(joined.add[s]);
  }
}

namespace {

template <class T>
const T* or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

CodeSource TensorFormat::source(const uint8_t* row, int first, const float* scales) const {
  return {{channels, first, low_channels, position.data(), or_null(second)},
          row,
          alpha.data() + first,
          beta.data() + first,
          step.data() + first,
          scales};
}

CodeSink TensorFormat::sink(uint8_t* row, int first) const {
  return {{channels, first, low_channels, position.data(), or_null(second)},
          row,
          r.data() + first,
          z.data() + first,
          cmax.data() + first,
          shift.empty() ? nullptr : shift.data() + first,
          add.empty() ? nullptr : add.data() + first,
          positive};
}

}  // namespace soniq
