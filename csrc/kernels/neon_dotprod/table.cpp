#include "kernels/elementwise.h"
#include "kernels/quantize_loop.h"
#include "kernels/neon_dotprod/dot.h"

namespace soniq {

extern const KernelTable neon_dotprod_table;
const KernelTable neon_dotprod_table = {quantize,
                                        abs_max,
                                        all_finite,
                                        sum_bytes,
                                        epilogue,
                                        depthwise,
                                        &kDotFamily<NeonDotprodDot>,
                                        /*popcount=*/nullptr,
                                        /*lut=*/nullptr,
                                        /*lut6=*/nullptr};

}  // namespace soniq
