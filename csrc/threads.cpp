#include "threads.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace soniq {
namespace {

std::atomic<bool> in_forked_child{false};
std::atomic<int64_t> work_per_thread{1 << 20};

// A container's CPU quota in whole cores (cgroup v2); 0 where there is none.
int cgroup_cores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::max(1, int(std::ceil(std::stod(quota) / period)));
}

// omp_get_max_threads honours OMP_NUM_THREADS and the affinity mask, but not a container's quota.
int default_threads() {
  const int threads = omp_get_max_threads(), cores = cgroup_cores();
  return cores > 0 ? std::min(threads, cores) : threads;
}

std::atomic<int>& thread_count() {
  static std::atomic<int> count{default_threads()};
  return count;
}

void after_fork_in_child() { in_forked_child = true; }

const int fork_guard = [] {
#if defined(__unix__) || defined(__APPLE__)
  return pthread_atfork(nullptr, nullptr, after_fork_in_child);
#else
  return 0;
#endif
}();

#if defined(__x86_64__)
// MXCSR: flush-to-zero is bit 15, denormals-are-zero bit 6, the rounding mode bits 13-14 (0 = nearest even).
constexpr unsigned kClear = (1u << 15) | (1u << 6) | (3u << 13);
uint64_t control() { return _mm_getcsr(); }
void set_control(uint64_t word) { _mm_setcsr(unsigned(word)); }
#elif defined(__aarch64__)
// FPCR: flush-to-zero is bit 24, the rounding mode bits 22-23 (0 = nearest even).
constexpr uint64_t kClear = (1ull << 24) | (3ull << 22);
uint64_t control() {
  uint64_t word;
  __asm__ volatile("mrs %0, fpcr" : "=r"(word));
  return word;
}
void set_control(uint64_t word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
#else
constexpr uint64_t kClear = 0;
uint64_t control() { return 0; }
void set_control(uint64_t) {}
#endif

}  // namespace

int num_threads() { return in_forked_child ? 1 : thread_count().load(); }
void set_num_threads(int n) { thread_count() = n; }

int threads_for(int64_t work, int64_t most) {
  return int(std::max<int64_t>(1, std::min({int64_t(num_threads()), most, work / work_per_thread})));
}
void set_work_per_thread(int64_t work) { work_per_thread = work; }

ContractFloatEnvironment::ContractFloatEnvironment() : saved_(control()) { set_control(saved_ & ~uint64_t(kClear)); }
ContractFloatEnvironment::~ContractFloatEnvironment() { set_control(saved_); }

}  // namespace soniq
