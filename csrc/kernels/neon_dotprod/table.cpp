#include "kernels/elementwise.h"
#include "kernels/epilogue_loop.h"
#include "kernels/neon_dotprod/lut5.h"
#include "kernels/neon_dotprod/dot.h"
#include "kernels/neon_dotprod/popcount.h"
#include "kernels/quantize_loop.h"

namespace soniq {
namespace {

// Static rates: Neoverse N1, of which Cortex-A76 is the sibling.
constexpr PopcountFamily kNeonDotprodPopcount = popcount_family_neon<NeonDotprodCounts>("udot", /*rate=*/85);
constexpr LutFamily kNeonDotprodLut = lut_family_neon(/*rate=*/63, /*table_cycles=*/0.7);
constexpr Lut6Family kNeonDotprodLut5 = lut5_family_neon(/*two_or_three=*/73, /*four=*/67, /*table_cycles=*/0.9);

}  // namespace

extern const KernelTable neon_dotprod_table;
const KernelTable neon_dotprod_table = {quantize,
                                        abs_max,
                                        all_finite,
                                        sum_bytes,
                                        epilogue,
                                        /*depthwise=*/nullptr,
                                        &kDotFamily<NeonDotprodDot>,
                                        &kNeonDotprodPopcount,
                                        &kNeonDotprodLut,
                                        &kNeonDotprodLut5,
                                        /*quantize_split=*/nullptr,
                                        combine,
                                        max_codes,
                                        sum_codes};

}  // namespace soniq
