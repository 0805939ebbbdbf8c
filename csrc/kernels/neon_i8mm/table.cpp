// Adds matrix multiplication to neon_dotprod; all that is not the dot product is served by it: counts and tables too.
#include "kernels/neon_i8mm/dot.h"

namespace soniq {

extern const KernelTable neon_i8mm_table;
const KernelTable neon_i8mm_table = {
    /*quantize=*/nullptr, /*abs_max=*/nullptr,   /*all_finite=*/nullptr,      /*sum_bytes=*/nullptr,
    /*epilogue=*/nullptr, /*depthwise=*/nullptr, /*dot=*/&kNeonI8mmDotFamily, /*popcount=*/nullptr,
    /*lut=*/nullptr,
    /*lut6=*/nullptr};

}  // namespace soniq
