// Activations too wide for tables, cut in two: c = low + 2^shift * high, and a product with each part.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernel_table.h"

namespace soniq {

struct CodePart {
  int bits, shift;
  bool whole;

  // The part of `count` codes, a multiple of 8; the codes themselves where nothing is cut off.
  const uint8_t* of(const uint8_t* codes, int count, uint8_t* buffer) const {
    if (whole) return codes;
    const uint64_t mask = 0x0101010101010101 * ((1u << bits) - 1);
    for (int i = 0; i < count; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, codes + i, 8);
      eight = eight >> shift & mask;
      std::memcpy(buffer + i, &eight, 8);
    }
    return buffer;
  }
};

// Widths that tables of `most` bits serve whole stay whole; 7 and 8 bits are a low part of 4 and a high one.
inline std::vector<CodePart> parts_of(int bits, int most = kMaxLutBits) {
  if (bits <= most) return {{bits, 0, true}};
  return {{4, 0, false}, {bits - 4, 4, false}};
}

}  // namespace soniq
