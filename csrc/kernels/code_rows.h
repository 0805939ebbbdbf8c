// Goal: rows of codes with two segments, [low | high], read and written in the order of the channels at a fraction of a cycle a
// code. One byte at a time, by position, takes a cycle or more: as long as all the rest of an epilogue.
//
//   eight channels at once, by a shuffle whose order is looked up by their eight bits of `second`:
//
//      channels   l h l l h l h l    second  0 1 0 0 1 0 1 0
//      written    l l l l l h h h    the lows are appended to the row's lows, the highs to its highs
//      read       the next eight lows and the next eight highs, of which the shuffle takes what is wanted
//
//   load, shuffle, two stores and the counting: about 12 instructions for 8 codes
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernel_table.h"

namespace soniq {
namespace {

constexpr int kChunk = 256;  // columns of a row that are worked on together; what is staged of them stays in L1
constexpr int kSlack = 8;    // bytes that eight at once may touch behind the end

inline int min_of(int a, int b) { return a < b ? a : b; }

// Byte orders by eight bits: `part` moves lows in front of highs, `join` takes bytes 0-7 where a bit is clear and 8-15 where set.
struct Shuffles {
  uint64_t part[256] = {}, join[256] = {};
  constexpr Shuffles() {
    for (int bits = 0; bits < 256; ++bits) {
      int lows = 0, highs = 0, low_count = 0;
      for (int i = 0; i < 8; ++i) low_count += !(bits >> i & 1);
      for (int i = 0; i < 8; ++i) {
        const bool high = bits >> i & 1;
        join[bits] |= uint64_t(high ? 8 + highs : lows) << (8 * i);
        part[bits] |= uint64_t(i) << (8 * (high ? low_count + highs : lows));
        (high ? highs : lows)++;
      }
    }
  }
};
constexpr Shuffles kShuffles{};

inline uint64_t load_word(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}
inline void store_word(uint8_t* p, uint64_t word) { std::memcpy(p, &word, 8); }

#if defined(__x86_64__)
inline uint64_t shuffled(uint64_t low, uint64_t high, uint64_t order) {
  const __m128i bytes = _mm_set_epi64x(int64_t(high), int64_t(low));
  return uint64_t(_mm_cvtsi128_si64(_mm_shuffle_epi8(bytes, _mm_cvtsi64_si128(int64_t(order)))));
}
#elif defined(__aarch64__)
inline uint64_t shuffled(uint64_t low, uint64_t high, uint64_t order) {
  const uint8x16_t bytes = vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high)));
  return vget_lane_u64(vreinterpret_u64_u8(vqtbl1_u8(bytes, vcreate_u8(order))), 0);
}
#endif

// Which of eight channels are in the second segment. Behind the last word there is one more.
inline int eight_bits(const uint64_t* second, int channel) {
  uint16_t two;
  std::memcpy(&two, reinterpret_cast<const uint8_t*>(second) + channel / 8, 2);
  return two >> (channel % 8) & 0xff;
}
inline int bits_set(int eight) { return __builtin_popcount(unsigned(eight)); }

// Where in a row the next low and the next high code are, from a channel on.
struct Places {
  int low, high;
};
inline Places places(const CodeRows& rows, int channel) {
  const int at = rows.position[channel];
  const bool is_high = at >= rows.low_channels;
  const int highs = is_high ? at - rows.low_channels : channel - at;
  return {channel - highs, rows.low_channels + highs};
}

// Eight bytes of a row of `size`, from `at` on; what lies behind the row is read as anything, but not touched.
inline uint64_t eight_of_row(const uint8_t* row, int at, int size) {
  if (at + 8 <= size) return load_word(row + at);
  uint64_t word = 0;
  if (size >= 8) {
    if (at < size) word = load_word(row + size - 8) >> (8 * (at + 8 - size));
  } else {
    for (int i = at; i < size; ++i) word |= uint64_t(row[i]) << (8 * (i - at));
  }
  return word;
}

// The codes of columns [column, column + n) of a row, in the order of the channels: in place, or gathered in `room`, which
// has n + kSlack bytes.
inline const uint8_t* codes_in_order(const CodeSource& s, int row, int column, int n, uint8_t* room) {
  const uint8_t* codes = s.codes + int64_t(row) * s.channels;
  const int channel = s.first + column;
  if (!s.second) return codes + channel;
  Places at = places(s, channel);
  for (int j = 0; j < n; j += 8) {
    const int bits = eight_bits(s.second, channel + j), highs = bits_set(bits);
    const uint64_t low = eight_of_row(codes, at.low, s.channels), high = eight_of_row(codes, at.high, s.channels);
    store_word(room + j, shuffled(low, high, kShuffles.join[bits]));
    at.low += 8 - highs;
    at.high += highs;
  }
  return room;
}

// Without a call, which these few bytes would wait for: GCC makes memcpy of any plain loop.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int count) {
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    store_word(to + i, load_word(from + i));
    asm("");
  }
  for (; i < count; ++i) {
    to[i] = from[i];
    asm("");
  }
}

// The other way round: n codes in the order of the channels (and kSlack bytes more) to their places. n is at most kChunk.
inline void write_in_place(const CodeSink& s, int row, int column, int n, const uint8_t* codes) {
  uint8_t* to = s.codes + int64_t(row) * s.channels;
  const int channel = s.first + column;
  const Places at = places(s, channel);
  // Staged: eight bytes at once would reach into codes that somebody else has written.
  uint8_t low[kChunk + kSlack], high[kChunk + kSlack];
  int lows = 0, highs = 0;
  for (int j = 0; j < n; j += 8) {
    const int left = n - j, there = left >= 8 ? 0xff : (1 << left) - 1;
    const int bits = eight_bits(s.second, channel + j) & there, more = bits_set(bits);
    const int low_count = bits_set(there) - more;
    const uint64_t word = shuffled(load_word(codes + j), 0, kShuffles.part[bits | (there ^ 0xff)]);
    store_word(low + lows, word);
    store_word(high + highs, word >> (4 * low_count) >> (4 * low_count));
    lows += low_count;
    highs += more;
  }
  copy_bytes(to + at.low, low, lows);
  copy_bytes(to + at.high, high, highs);
}

}  // namespace
}  // namespace soniq
