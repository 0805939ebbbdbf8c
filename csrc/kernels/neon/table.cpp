#include "kernels/elementwise.h"
#include "kernels/neon/depthwise.h"
#include "kernels/epilogue_loop.h"
#include "kernels/neon/dot.h"
#include "kernels/neon/lut.h"
#include "kernels/neon/popcount.h"
#include "kernels/quantize_loop.h"

namespace soniq {
namespace {

// Static rates: the geometric mean of Cortex-A53 and Cortex-A72.
constexpr PopcountFamily kNeonPopcount = popcount_family_neon<NeonCounts>("cnt", /*rate=*/52);
constexpr LutFamily kNeonLut = lut_family_neon(/*rate=*/20, /*table_cycles=*/1.9);

}  // namespace

extern const KernelTable neon_table;
const KernelTable neon_table = {quantize,
                                abs_max,
                                all_finite,
                                sum_bytes,
                                epilogue,
                                &kNeonDepthwise,
                                &kDotFamily<NeonDot>,
                                &kNeonPopcount,
                                &kNeonLut,
                                /*lut6=*/nullptr,
                                /*quantize_split=*/nullptr,
                                combine,
                                max_codes,
                                sum_codes};

}  // namespace soniq
