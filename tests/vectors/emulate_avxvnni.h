// AVX-VNNI for processors without it: its one instruction that the kernels use raises SIGILL, and the handler does its work.
// Slow, but it is the tier's own machine code that runs, operand order and all.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace avxvnni {

// The registers that the kernel saved for the handler and restores behind it: xmm in the FXSAVE area, the upper halves of
// ymm in the XSAVE area (standard format, component 2).
class Registers {
 public:
  explicit Registers(ucontext_t* context)
      : general_(context->uc_mcontext.gregs), area_(reinterpret_cast<uint8_t*>(context->uc_mcontext.fpregs)) {
    uint64_t present;
    std::memcpy(&present, area_ + kHeader, 8);
    if (!(present & kUpperHalves)) std::memset(area_ + kUpper, 0, 16 * 16);
    present |= kUpperHalves;
    std::memcpy(area_ + kHeader, &present, 8);
  }

  int64_t general(int number) const {
    static const int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return general_[kOrder[number]];
  }
  const uint8_t* instruction() const { return reinterpret_cast<const uint8_t*>(general_[REG_RIP]); }
  void next(int length) { general_[REG_RIP] += length; }

  void read(int number, uint8_t* ymm) const {
    std::memcpy(ymm, area_ + kLower + 16 * number, 16);
    std::memcpy(ymm + 16, area_ + kUpper + 16 * number, 16);
  }
  void write(int number, const uint8_t* ymm) {
    std::memcpy(area_ + kLower + 16 * number, ymm, 16);
    std::memcpy(area_ + kUpper + 16 * number, ymm + 16, 16);
  }

 private:
  static constexpr int kLower = 160, kHeader = 512, kUpper = 576;
  static constexpr uint64_t kUpperHalves = 4;
  greg_t* general_;
  uint8_t* area_;
};

// VEX.256.66.0F38.W0 50 /r: vpdpbusd ymm1, ymm2, ymm3/m256.
struct Instruction {
  int sums, unsigned_bytes, signed_bytes = -1;  // registers; the last one is -1 where memory holds them
  const uint8_t* memory = nullptr;
  int length;

  static bool is_here(const uint8_t* code) {
    return code[0] == 0xc4 && (code[1] & 0x1f) == 2 && (code[2] & 0x87) == 0x05 && code[3] == 0x50;
  }

  Instruction(const Registers& registers) {
    const uint8_t* code = registers.instruction();
    const int modrm = code[4], low = modrm & 7;
    int mod = modrm >> 6;
    const int high_reg = ~code[1] >> 4 & 8, high_index = ~code[1] >> 3 & 8, high_base = ~code[1] >> 2 & 8;
    sums = (modrm >> 3 & 7) | high_reg;
    unsigned_bytes = ~code[2] >> 3 & 15;
    length = 5;
    if (mod == 3) {
      signed_bytes = low | high_base;
      return;
    }
    int base = low;
    int64_t address = 0;
    if (low == 4) {
      const int sib = code[length++], index = (sib >> 3 & 7) | high_index;
      if (index != 4) address += registers.general(index) << (sib >> 6);
      base = sib & 7;
    }
    const bool no_base = mod == 0 && base == 5, relative = no_base && low == 5;
    if (no_base)
      mod = 2;
    else
      address += registers.general(base | high_base);
    address += displacement(code + length, mod);
    if (relative) address += int64_t(code) + length;
    memory = reinterpret_cast<const uint8_t*>(address);
  }

  void run(Registers& registers) const {
    uint8_t u[32], s[32];
    int32_t sum[8];
    registers.read(unsigned_bytes, u);
    registers.read(sums, reinterpret_cast<uint8_t*>(sum));
    if (memory)
      std::memcpy(s, memory, 32);
    else
      registers.read(signed_bytes, s);
    for (int i = 0; i < 32; ++i) sum[i / 4] = int32_t(uint32_t(sum[i / 4]) + uint32_t(u[i] * int8_t(s[i])));
    registers.write(sums, reinterpret_cast<const uint8_t*>(sum));
    registers.next(length);
  }

 private:
  int64_t displacement(const uint8_t* at, int mod) {
    int32_t four;
    std::memcpy(&four, at, 4);
    length += mod == 1 ? 1 : mod == 2 ? 4 : 0;
    return mod == 1 ? int8_t(*at) : mod == 2 ? four : 0;
  }
};

inline void on_illegal_instruction(int, siginfo_t*, void* context) {
  Registers registers(static_cast<ucontext_t*>(context));
  if (!Instruction::is_here(registers.instruction())) {
    signal(SIGILL, SIG_DFL);  // somebody else's: it happens again, and ends the process
    return;
  }
  do Instruction(registers).run(registers);
  while (Instruction::is_here(registers.instruction()));
}

inline void emulate() {
  struct sigaction action{};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  if (sigaction(SIGILL, &action, nullptr) != 0) throw std::runtime_error("SIGILL cannot be handled");
}

}  // namespace avxvnni
#endif
