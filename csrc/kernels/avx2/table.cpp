#include "kernels/avx2/dot.h"
#include "kernels/avx2/lut.h"
#include "kernels/elementwise.h"
#include "kernels/quantize_loop.h"

namespace soniq {

extern const KernelTable avx2_table;
const KernelTable avx2_table = {quantize,
                                abs_max,
                                all_finite,
                                sum_bytes,
                                epilogue,
                                depthwise,
                                &kDotFamily<Avx2Dot>,
                                /*popcount=*/nullptr,
                                &kAvx2Lut,
                                /*lut6=*/nullptr};

}  // namespace soniq
