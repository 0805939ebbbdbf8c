// AMX multiplies matrices of bytes; every other slot is served by avx512_vbmi and what is below it.
#include "kernels/amx/dot.h"

namespace soniq {

extern const KernelTable amx_table;
const KernelTable amx_table = {
    /*quantize=*/nullptr,  /*abs_max=*/nullptr,  /*all_finite=*/nullptr,
    /*sum_bytes=*/nullptr, /*epilogue=*/nullptr, /*depthwise=*/nullptr,  &kAmxDot,
    /*popcount=*/nullptr,  /*lut=*/nullptr,      /*lut6=*/nullptr};

}  // namespace soniq
