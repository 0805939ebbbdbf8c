// Every vector of AlignedBytes ends where a page ends that nobody may touch: panels, planes, tables, exact operands. A kernel
// that reads past one crashes, and the crash says which case it was. To be included once: it replaces the aligned operator new.
//
// AddressSanitizer has guards of its own.
#pragma once

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <new>

#include "report.h"

namespace guard_pages {

// [a page: the size of the mapping | ... | the bytes][a page that nobody may touch]
inline std::size_t page() {
  static const std::size_t size = std::size_t(sysconf(_SC_PAGESIZE));
  return size;
}

inline void* allocate(std::size_t bytes) {
  const std::size_t content = (bytes + page() - 1) / page() * page(), total = content + 2 * page();
  void* const mapped = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const first = static_cast<char*>(mapped);
  *reinterpret_cast<std::size_t*>(first) = total;
  mprotect(first + page() + content, page(), PROT_NONE);
  return first + page() + content - bytes;
}

inline void release(void* bytes) {
  if (!bytes) return;
  char* const first = reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(bytes) / page() * page()) - page();
  // An empty vector's pointer is the guard page itself, which stands behind the first one.
  munmap(first, *reinterpret_cast<std::size_t*>(first));
}

inline void on_crash(int) {
  std::fprintf(stderr, "soniq_vectors: crashed, outside its memory or in a kernel that is not there: %s\n", running);
  _exit(1);
}

inline void report_crashes() {
  signal(SIGSEGV, on_crash);
  signal(SIGBUS, on_crash);
}

}  // namespace guard_pages

void* operator new(std::size_t bytes, std::align_val_t) { return guard_pages::allocate(bytes); }
void operator delete(void* p, std::align_val_t) noexcept { guard_pages::release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { guard_pages::release(p); }
#else
namespace guard_pages {
inline void report_crashes() {}
}  // namespace guard_pages
#endif
