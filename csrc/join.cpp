// Eight codes of a word at once: a joined code is a byte, so nothing is carried from one to the next.
//
// A run is read and written in whole steps. What lies behind its end belongs to the next run, or to the next pixel, and is
// written again; only the last pixels of a share, with nothing behind them, are written exactly.
#include "join.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace soniq {
namespace {

constexpr int kStep = 16;
constexpr int64_t kCodeWork = 4;  // of a code, in products (threads.h)

void map_steps(const uint8_t* from, int count, const CodeMap& map, uint8_t* to) {
  const uint64_t add = uint64_t(map.add) * 0x0101010101010101u;
  for (int i = 0; i < count; i += kStep) {
    uint64_t words[kStep / 8];
    std::memcpy(words, from + i, kStep);
    for (uint64_t& word : words) word = (word << map.shift) + add;
    std::memcpy(to + i, words, kStep);
  }
}

void map_exactly(const uint8_t* from, int count, const CodeMap& map, uint8_t* to) {
  const int whole = count / kStep * kStep;
  map_steps(from, whole, map, to);
  for (int i = whole; i < count; ++i) to[i] = uint8_t((from[i] << map.shift) + map.add);
}

}  // namespace

void join_codes(const std::vector<CodeMap>& maps, int channels, const uint8_t* codes, int64_t pixels, uint8_t* out) {
  parallel(threads_for(pixels * channels * kCodeWork, pixels), [&](int share, int shares) {
    const Range mine = share_of(pixels, 1, share, shares);
    const int64_t last = mine.end - 1 - kStep / channels;  // before this one a step of any run ends in the share
    for (int64_t pixel = mine.begin; pixel < mine.end; ++pixel)
      for (const CodeMap& map : maps) {
        const int64_t at = pixel * channels + map.first_channel;
        (pixel < last ? map_steps : map_exactly)(codes + at, map.channels, map, out + at);
      }
  });
}

}  // namespace soniq
