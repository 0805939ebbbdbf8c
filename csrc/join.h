// Two segments as one: codes of each become codes of a grid that has the levels of both (python/soniq_kernels/_joined.py).
#pragma once

#include <cstdint>
#include <vector>

namespace soniq {

// The codes of a run of channels become (code << shift) + add, a byte.
struct CodeMap {
  int first_channel, channels;
  int shift, add;
};

// codes [pixels][channels] to `out`, of the same shape; not in place. The maps follow one another and cover all channels.
void join_codes(const std::vector<CodeMap>& maps, int channels, const uint8_t* codes, int64_t pixels, uint8_t* out);

}  // namespace soniq
