// Shared by the lut families: which of the 16 subset sums take a code, and the flush count of byte sums.
#pragma once

#include <cstdint>

namespace soniq {
namespace {

// Entry e of a table is the sum of the codes i with bit i of e set. Bit e of kHasBit[i]: entry e takes code i.
constexpr uint16_t kHasBit[4] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};

// How many looked-up sums of four codes a byte can add up.
constexpr int lookups_per_byte(int a_bits) { return 255 / (4 * ((1 << a_bits) - 1)); }
static_assert(lookups_per_byte(6) == 1 && lookups_per_byte(4) == 4 && lookups_per_byte(1) == 63);

}  // namespace
}  // namespace soniq
