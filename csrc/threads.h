// Threads: how many, and the float environment every one of them works in.
#pragma once

#include <cstdint>

namespace soniq {

int num_threads();            // 1 in a forked child: libgomp's pool does not survive a fork
void set_num_threads(int n);  // n >= 1

// How many threads `work` is worth: waking one costs microseconds. Work counts products of the fastest loop, about
// 200 to 1000 a nanosecond; slower loops count each step for more.
int threads_for(int64_t work, int64_t most);
void set_work_per_thread(int64_t work);  // tests set 1, so that small cases are split too

// Round to nearest even with denormals kept, whatever the caller had set; restored at the end of the scope.
// The epilogue's bits are part of the contract, and torch.set_flush_denormal(True) must not change them.
class ContractFloatEnvironment {
 public:
  ContractFloatEnvironment();
  ~ContractFloatEnvironment();
  ContractFloatEnvironment(const ContractFloatEnvironment&) = delete;
  ContractFloatEnvironment& operator=(const ContractFloatEnvironment&) = delete;

 private:
  uint64_t saved_;
};

// Calls body(thread, threads) on `threads` threads, each in the contract's float environment.
template <class Body>
void parallel(int threads, const Body& body) {
  if (threads <= 1) {
    ContractFloatEnvironment environment;
    body(0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    ContractFloatEnvironment environment;
    // The runtime may grant fewer threads than asked for: the loop hands out every share all the same.
#pragma omp for schedule(static, 1)
    for (int share = 0; share < threads; ++share) body(share, threads);
  }
}

struct Range {
  int64_t begin, end;
};

// Share `index` of `count` in [0, total), cut at multiples of `unit`.
inline Range share_of(int64_t total, int64_t unit, int index, int count) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t begin = units * index / count * unit, end = units * (index + 1) / count * unit;
  return {begin < total ? begin : total, end < total ? end : total};
}

}  // namespace soniq
