// Depthwise layers, one output per input channel: the weights of a tier's kernels, by blocks of channels.
//
// An output is the sum over its taps of (level of the weight) * (code of the activation), times alpha of the activations; their
// beta times the weights of the valid taps is the constant of a border class (Layer::border), as in every other family.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.h"
#include "dispatch.h"
#include "format.h"

namespace soniq {

// A kernel works on all lanes of a block, channels in their original order. The last block of a pixel begins early enough to end
// with it: lanes that are others' have weights of 0 and results that nobody reads.
struct DepthwiseBlock {
  int first_channel;   // of lane 0
  int lane, channels;  // of the block's own
  int form;
  int64_t weights;     // of output row 0
  int64_t row_bytes;   // to those of the next output row
};

class DepthwiseWeights {
 public:
  // streams: as of Layer
  DepthwiseWeights(const LayerShape& shape, const uint8_t* const* streams, const Tier& tier);

  // The tier at or below whose blocks are no wider than a pixel, if there is one.
  static const Tier& tier_for(const Tier& asked, int channels);

  const DepthwiseFamily& family() const { return family_; }
  const DepthwiseForm& form(const DepthwiseBlock& block) const { return family_.form[block.form]; }
  const std::vector<DepthwiseBlock>& blocks() const { return blocks_; }
  const uint8_t* weights(const DepthwiseBlock& block) const { return bytes_.data() + block.weights; }
  int strips() const { return strips_; }                  // that an output row reads
  int shared_rows() const { return shared_rows_; }        // output rows one below the other that read the same strips
  int pixel_channels() const { return pixel_channels_; }  // of a pixel that kernels read: at least a block
  const uint32_t* shifts(const DepthwiseBlock& block) const { return shifts_.data() + block.first_channel; }
  // Whether stored pixels are what kernels read; others have to go through `merge` first.
  bool reads_stored_pixels() const { return stored_.empty(); }
  // Whether it was a kernel that merged.
  bool merge(const uint8_t* stored, int64_t pixels, uint8_t* merged) const;
  int64_t bytes() const { return int64_t(bytes_.size()); }

 private:
  struct Channel {
    int stored, shift, a_max;
    std::vector<int> levels;  // [tap]
  };
  static std::vector<Channel> channels_of(const LayerShape& shape, const uint8_t* const* streams);

  void add_bounds(const Channel& channel, DepthwiseBounds& bounds) const;
  void pack(const std::vector<Channel>& channels, DepthwiseBlock& block);
  void make_pieces(int low_channels);

  const DepthwiseFamily& family_;
  const int channels_, kernel_h_, kernel_w_, strips_, shared_rows_, pixel_channels_;
  std::vector<uint32_t> shifts_;    // [pixel_channels]
  std::vector<int32_t> stored_;     // original channel -> stored position, where pixels have to be merged
  std::vector<MergePiece> pieces_;  // empty: byte by byte
  std::vector<DepthwiseBlock> blocks_;
  AlignedBytes bytes_;
};

}  // namespace soniq
