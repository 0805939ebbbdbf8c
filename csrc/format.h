// Codes, grids, segments and the shapes of a layer: the nouns every driver and kernel shares.
//
//   code  c   unsigned integer of p bits, 1 <= p <= 8, one byte in memory while it is worked on
//   level l   alpha * c + beta                      an integer; what the arithmetic is about
//   value v   l * 2^exponent * scale                what the network means
//
// A layer's input channels are stored [low | high]: one segment each, a segment has one weight and one activation grid.
//
//   activations, one pixel (a GEMM row is a pixel of a 1x1 image):   | segment 0 channels | segment 1 channels |
//   weights, one stream of codes per segment:                        [output][tap][channel of the output's group]
//
// Groups split the original channels evenly. The order inside a segment is the original one, so a group's channels are
// one run inside each segment: [group_start[g], group_start[g + 1]).
#pragma once

#include <cstdint>
#include <vector>

namespace soniq {

constexpr int kMaxSegments = 2;

struct Grid {
  int bits = 8;
  int alpha = 1;     // 1, or 2 on the bipolar grid
  int beta = 0;      // level of code 0, offset included
  int exponent = 0;  // shift included
};

struct Segment {
  Grid weight;
  Grid activation;
  int channels = 0;              // of the tensor
  int first_channel = 0;         // position of the segment inside a stored pixel
  std::vector<int> group_start;  // groups + 1 entries, relative to first_channel

  int exponent() const { return weight.exponent + activation.exponent; }
  int group_channels(int group) const { return group_start[group + 1] - group_start[group]; }
};

struct LayerShape {
  int outputs = 0;
  int groups = 1;
  int kernel_h = 1;
  int kernel_w = 1;
  int channels = 0;
  std::vector<Segment> segments;  // one or two

  int taps() const { return kernel_h * kernel_w; }
  int group_outputs() const { return outputs / groups; }
  int64_t products_per_row() const { return int64_t(outputs) * taps() * (channels / groups); }
  // E of the contract: the unit 2^E of the integer result.
  int exponent() const {
    int lowest = segments[0].exponent();
    for (const Segment& s : segments) lowest = s.exponent() < lowest ? s.exponent() : lowest;
    return lowest;
  }
};

// Where a convolution reads: a GEMM is the 1x1 case with one row per pixel.
struct Geometry {
  int batch = 1, in_h = 1, in_w = 1;
  int out_h = 1, out_w = 1;
  int stride_h = 1, stride_w = 1;
  int pad_top = 0, pad_left = 0;
  int dilation_h = 1, dilation_w = 1;

  int64_t rows() const { return int64_t(batch) * out_h * out_w; }
};

// Windows of an NHWC tensor: `geometry` says where they are, dilation is 1. Positions in the padding do not count.
struct PoolTask {
  Geometry geometry;
  int kernel_h = 1, kernel_w = 1, channels = 0;
};

}  // namespace soniq
