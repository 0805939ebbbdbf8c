// Cases counted and differences printed; outputs whose surroundings nobody may touch.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "dispatch.h"

namespace {

using namespace soniq;
using Bytes = std::vector<uint8_t>;
using Ints = std::vector<int32_t>;

struct Count {
  int cases = 0, failed = 0;
  void operator+=(const Count& other) {
    cases += other.cases;
    failed += other.failed;
  }
};

inline char running[256] = "nothing";  // tier and case, for the last words of a crash

class Report {
 public:
  void begin(const std::string& name, const Tier& tier) {
    name_ = name;
    tier_ = &tier;
    failed_ = false;
    std::snprintf(running, sizeof running, "%s: %s", tier.name, name.c_str());
  }
  Count end() { return {1, failed_ ? 1 : 0}; }
  // Words that stand in front of what fails, until forgotten.
  void add(const std::string& word) { words_ += word + ", "; }
  void forget() { words_.clear(); }

  void fail(const std::string& what) {
    failed_ = true;
    if (++lines_ > kMaxLines) return;
    std::printf("%s differs: %s: %s\n", tier_->name, name_.c_str(), (words_ + what).c_str());
  }

 private:
  static constexpr int kMaxLines = 20;
  std::string name_, words_;
  const Tier* tier_ = nullptr;
  bool failed_ = false;
  int lines_ = 0;
};

// Floats are compared as bits, so that -0 and +0 differ; which NaN an operation gives is the processor's choice.
int64_t key(uint8_t v) { return v; }
int64_t key(int32_t v) { return v; }
int64_t key(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return v != v ? 0x7fc00000 : bits;
}

// An output of exactly `size` values, with guards around it that nobody may touch.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t size) : bytes_(size * sizeof(T) + 2 * kGuard, kPattern), size_(size) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }

  void compare(const std::vector<T>& expected, const std::string& what, Report& report) {
    for (size_t i = 0; i < size_; ++i)
      if (key(data()[i]) != key(expected[i])) {
        std::ostringstream text;
        text.precision(9);
        text << what << "[" << i << "] of " << size_ << " is " << +data()[i] << ", expected " << +expected[i];
        report.fail(text.str());
        break;
      }
    for (size_t i = 0; i < kGuard; ++i)
      if (bytes_[i] != kPattern || bytes_[bytes_.size() - 1 - i] != kPattern) {
        report.fail(what + " was written outside its bounds");
        break;
      }
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kPattern = 0xa5;
  Bytes bytes_;
  size_t size_;
};

}  // namespace
