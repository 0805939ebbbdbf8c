// Layers and tensors of two segments as the runner joins them (csrc/join.h), from their grids alone.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "layer.h"
#include "report.h"

namespace {

struct JoinedGrid {
  soniq::Grid grid;
  int shift[2], add[2];
};

// The grid of the levels of two, each times a power of two; none where it has more than a byte.
inline std::optional<JoinedGrid> join_grids(const soniq::Grid& low, const soniq::Grid& high, int low_power,
                                            int high_power) {
  const int first[2] = {low.beta * (1 << low_power), high.beta * (1 << high_power)};
  const int step[2] = {low.alpha << low_power, high.alpha << high_power};
  const int codes[2] = {1 << low.bits, 1 << high.bits};
  JoinedGrid joined{};
  joined.grid.alpha = (step[0] | step[1] | (first[0] - first[1])) % 2 ? 1 : 2;
  joined.grid.beta = std::min(first[0], first[1]);
  joined.grid.bits = 1;
  for (int s = 0; s < 2; ++s) {
    while (joined.grid.alpha << joined.shift[s] < step[s]) ++joined.shift[s];
    joined.add[s] = (first[s] - joined.grid.beta) / joined.grid.alpha;
    while (((codes[s] - 1) << joined.shift[s]) + joined.add[s] >= 1 << joined.grid.bits) ++joined.grid.bits;
  }
  if (joined.grid.bits > 8) return {};
  return joined;
}

struct JoinedLayer {
  soniq::LayerShape shape;
  Bytes stream;
  std::vector<soniq::CodeMap> maps;
};

inline std::optional<JoinedLayer> join_layer(const soniq::LayerShape& shape, const std::vector<Bytes>& streams) {
  if (shape.segments.size() != 2 || shape.groups > 1) return {};
  const soniq::Segment &low = shape.segments[0], &high = shape.segments[1];
  const int power[2] = {low.exponent() - shape.exponent(), high.exponent() - shape.exponent()};
  for (int of_low = 0; of_low <= power[0]; ++of_low)
    for (int of_high = 0; of_high <= power[1]; ++of_high) {
      const auto w = join_grids(low.weight, high.weight, of_low, of_high);
      const auto a = join_grids(low.activation, high.activation, power[0] - of_low, power[1] - of_high);
      if (!w || !a) continue;
      JoinedLayer joined{shape, {}, {}};
      joined.shape.segments = {{w->grid, a->grid, shape.channels, 0, {0, shape.channels}}};
      for (int row = 0; row < shape.outputs * shape.taps(); ++row)
        for (int s = 0; s < 2; ++s) {
          const int channels = shape.segments[s].channels;
          for (int c = 0; c < channels; ++c)
            joined.stream.push_back(uint8_t((streams[s][row * channels + c] << w->shift[s]) + w->add[s]));
        }
      for (int s = 0; s < 2; ++s)
        joined.maps.push_back({shape.segments[s].first_channel, shape.segments[s].channels, a->shift[s], a->add[s]});
      return joined;
    }
  return {};
}

// Codes of two segments, written joined: what an operation should then write of what it writes otherwise.
struct JoinedSink {
  std::shared_ptr<const soniq::TensorFormat> format;
  soniq::JoinedFormat joined;

  JoinedSink(const std::vector<uint8_t>& segment_of, const std::vector<soniq::ChannelGrid>& grids, float scale) {
    for (int s = 0; s < 2; ++s) {
      const int most = int(grids[s].cmax);
      joined.step[s] = 1;
      joined.shift[s] = s == 0 && most < 128;
      joined.add[s] = 255 - (most << joined.shift[s]);
    }
    format = std::make_shared<const soniq::TensorFormat>(segment_of, grids, scale, joined);
    segment_of_ = segment_of;
  }

  // codes: rows in stored order, whose channels stand at these positions.
  Bytes expected(const Bytes& codes, const std::vector<int32_t>& position) const {
    Bytes result(codes.size());
    for (size_t i = 0; i < codes.size(); ++i) {
      const size_t c = i % position.size(), s = segment_of_[c];
      result[i] = uint8_t((codes[i - c + position[c]] << joined.shift[s]) + joined.add[s]);
    }
    return result;
  }

 private:
  std::vector<uint8_t> segment_of_;
};

}  // namespace
