#include "kernels/elementwise.h"
#include "kernels/neon/dot.h"
#include "kernels/neon/lut5.h"
#include "kernels/neon/popcount.h"
#include "kernels/quantize_loop.h"

namespace soniq {
namespace {

// Static rates: the geometric mean of Cortex-A53 and Cortex-A72.
constexpr PopcountFamily kNeonPopcount = popcount_family_neon<NeonCounts>("cnt", /*rate=*/52);
constexpr Lut6Family kNeonLut5 = lut5_family_neon(19, 18, 15, /*table_cycles=*/2.1);

}  // namespace

extern const KernelTable neon_table;
const KernelTable neon_table = {quantize,        abs_max,   all_finite,           sum_bytes,
                                epilogue,        depthwise, &kDotFamily<NeonDot>, &kNeonPopcount,
                                /*lut=*/nullptr, &kNeonLut5};

}  // namespace soniq
