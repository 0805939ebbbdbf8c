#include "kernels/elementwise.h"
#include "kernels/quantize_loop.h"
#include "kernels/neon/dot.h"

namespace soniq {

extern const KernelTable neon_table;
const KernelTable neon_table = {quantize,
                                abs_max,
                                all_finite,
                                sum_bytes,
                                epilogue,
                                depthwise,
                                &kDotFamily<NeonDot>,
                                /*popcount=*/nullptr,
                                /*lut=*/nullptr,
                                /*lut6=*/nullptr};

}  // namespace soniq
