// What this processor and operating system can run. Asked once; no kernel is entered before.
#pragma once

#include <cstdint>
#include <string>

namespace soniq {

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, BMI2, and the OS saves ymm
  bool avxvnni = false;      // adds VPDPBUSD in its VEX encoding
  bool avx512 = false;       // F, BW, DQ, VL, VNNI, and the OS saves zmm and the masks
  bool avx512_vbmi = false;  // adds VBMI, VPOPCNTDQ, BITALG
  bool amx = false;          // adds AMX-TILE and AMX-INT8, and the OS lets this process use the tiles
  bool neon = false;
  bool neon_dotprod = false;
  bool neon_i8mm = false;
};

const CpuFeatures& cpu_features();
void spin(uint64_t turns);  // a cycle each
std::string cpu_name();     // as the processor or the kernel spells it; "unknown" where neither says

}  // namespace soniq
