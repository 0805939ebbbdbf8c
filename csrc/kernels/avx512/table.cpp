#include "kernels/avx512/dot.h"
#include "kernels/elementwise.h"

namespace soniq {

extern const KernelTable avx512_table;
const KernelTable avx512_table = {quantize,
                                  abs_max,
                                  all_finite,
                                  sum_bytes,
                                  epilogue,
                                  depthwise,
                                  &kDotFamily<Avx512Dot>,
                                  /*popcount=*/nullptr,
                                  /*lut=*/nullptr,
                                  /*lut6=*/nullptr};

}  // namespace soniq
