#include "cpu.h"

#include <cstdint>
#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace soniq {
namespace {

#if defined(__x86_64__)
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return Registers{};
  return r;
}

bool bit(unsigned word, int position) { return (word >> position) & 1u; }

// The CPU may have wide registers that the operating system does not save on a context switch.
uint64_t enabled_state() {
  if (!bit(cpuid(1).c, 27)) return 0;  // OSXSAVE
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}

// The kernel saves tiles only for processes that asked, since they take 8 KB of each thread; all threads may use them then.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  constexpr uint64_t kYmm = 0x06, kZmm = 0xE6, kTiles = 0x60000;
  const uint64_t state = enabled_state();
  const Registers one = cpuid(1), seven = cpuid(7), seven_one = cpuid(7, 1);
  CpuFeatures f;
  f.avx2 = (state & kYmm) == kYmm && bit(one.c, 12) && bit(seven.b, 5) && bit(seven.b, 8);
  f.avxvnni = f.avx2 && seven.a >= 1 && bit(seven_one.a, 4);
  f.avx512 = f.avx2 && (state & kZmm) == kZmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) &&
             bit(seven.b, 31) && bit(seven.c, 11);
  f.avx512_vbmi = f.avx512 && bit(seven.c, 1) && bit(seven.c, 6) && bit(seven.c, 12) && bit(seven.c, 14);
  f.amx = f.avx512_vbmi && (state & kTiles) == kTiles && bit(seven.d, 24) && bit(seven.d, 25) && may_use_tiles();
#if defined(SONIQ_EMULATE_AVX512)
  f.avx512 = f.avx512_vbmi = f.amx = f.avx2;  // a test's build: their kernels are made of AVX2
#endif
  return f;
}

std::string brand() {
  if (cpuid(0x80000000u).a < 0x80000004u) return "";
  char text[49] = {};
  for (unsigned i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(text + 16 * i, &r, 16);
  }
  return text;
}
#elif defined(__aarch64__)
CpuFeatures detect() {
  CpuFeatures f;
  f.neon = true;  // part of the base architecture
#if defined(__linux__)
  f.neon_dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#if defined(HWCAP2_I8MM)
  f.neon_i8mm = f.neon_dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
#endif
#endif
  return f;
}

std::string brand() { return ""; }
#else
CpuFeatures detect() { return CpuFeatures{}; }
std::string brand() { return ""; }
#endif

std::string name_of_the_kernel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (colon != std::string::npos && line.rfind("model name", 0) == 0) return line.substr(colon + 2);
  }
  return "";
}

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

// x86 since 2008 and Arm's 64-bit cores take a cycle for a count down and the branch behind it.
void spin(uint64_t turns) {
  if (turns == 0) return;
#if defined(__x86_64__)
  asm volatile("1: dec %0\n\tjnz 1b" : "+r"(turns) : : "cc");
#elif defined(__aarch64__)
  asm volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r"(turns) : : "cc");
#else
  for (volatile uint64_t left = turns; left > 0;) left = left - 1;
#endif
}

std::string cpu_name() {
  std::string name = trimmed(brand());
  if (name.empty()) name = trimmed(name_of_the_kernel());
  return name.empty() ? "unknown" : name;
}

}  // namespace soniq
