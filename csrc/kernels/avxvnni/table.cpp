// AVX-VNNI adds one instruction to AVX2; all that is not the dot product is served by avx2.
#include "kernels/avxvnni/dot.h"

namespace soniq {

extern const KernelTable avxvnni_table;
const KernelTable avxvnni_table = {/*quantize=*/nullptr,    /*abs_max=*/nullptr,  /*all_finite=*/nullptr,
                                   /*sum_bytes=*/nullptr,   /*epilogue=*/nullptr, /*depthwise=*/nullptr,
                                   &kDotFamily<AvxVnniDot>,
                                   /*popcount=*/nullptr,    /*lut=*/nullptr,      /*lut6=*/nullptr};

}  // namespace soniq
