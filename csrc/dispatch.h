// The ordered list of ISA tiers: query it, force one of it, and find who serves a kernel.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernel_table.h"

namespace soniq {

// Threads that count at the same time may count as one: a locked addition would hold up the loads of a GEMV at every brick
// of weights, and only zero matters.
class Count {
 public:
  void add(int64_t n) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  operator int64_t() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

// How often each kernel of a tier ran. The suite fails for a kernel that never did.
struct KernelCounters {
  Count quantize, quantize_split, abs_max, all_finite, sum_bytes, epilogue, combine, max_codes, sum_codes;
  Count depthwise_interleave, depthwise_merge;
  std::array<Count, kMaxDepthwiseForms> depthwise_any{};
  std::array<std::array<Count, 2>, kMaxDepthwiseForms> depthwise_three{};
  std::array<std::array<Count, 9>, 2> unpack{};
  Count expand, matrix_pair, matrix_single;
  std::array<std::array<Count, kMaxTileRows + 1>, kMaxDotForms> tile{};
  std::array<std::array<std::array<Count, kMaxFewRows + 1>, 9>, kMaxDotForms> few{};
  std::array<Count, 9> planes{};
  std::array<Count, kMaxTileRows + 1> popcount_tile{};
  std::array<std::array<Count, kMaxTileRows + 1>, kMaxLutBits + 1> lut_tile{};
  std::array<std::array<Count, kMaxFewRows + 1>, kMaxLutBits + 1> lut_few{};
  Count tables, indexes;
  std::array<std::array<Count, kMaxTileRows + 1>, kMaxLut6Bits + 1> lut6_tile{};
  Count lut6_tables;
  Count winograd_pixels, winograd_weights, winograd_sums;
};

struct Tier {
  const char* name;
  const char* needs;         // in words, for messages
  const KernelTable* table;  // null: not built for this platform
  bool usable;               // built, and this CPU and operating system have it
  int below;                 // index of the tier that serves what this one lacks, a usable one; -1 for the reference
  mutable KernelCounters counters;
};

const std::vector<Tier*>& tiers();               // slowest first; "reference" is always there
const Tier& best_tier();
const Tier* find_tier(const std::string& name);  // null: no such name
const Tier& active_tier();
void set_active_tier(const Tier& tier);          // process-wide

// The first tier at or below `tier` whose table has the slot.
template <class Slot>
const Tier& tier_with(const Tier& tier, Slot KernelTable::* slot) {
  const Tier* t = &tier;
  while (t->table->*slot == nullptr && t->below >= 0) t = tiers()[t->below];
  return *t;
}

// "tier.family.kernel" -> runs in this process, for every kernel of every usable tier.
std::map<std::string, int64_t> kernel_counts();

}  // namespace soniq
