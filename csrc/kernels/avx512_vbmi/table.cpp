// The tier adds vector population counts (popcount) and byte permutes (lut); every other slot is served by avx512.
#include "kernels/avx512_vbmi/lut.h"
#include "kernels/avx512_vbmi/lut6.h"
#include "kernels/avx512_vbmi/popcount.h"

namespace soniq {

extern const KernelTable avx512_vbmi_table;
const KernelTable avx512_vbmi_table = {/*quantize=*/nullptr,
                                       /*abs_max=*/nullptr,
                                       /*all_finite=*/nullptr,
                                       /*sum_bytes=*/nullptr,
                                       /*epilogue=*/nullptr,
                                       /*depthwise=*/nullptr,
                                       /*dot=*/nullptr,        &kAvx512Popcount, &kVbmiLut, &kVbmiLut6};

}  // namespace soniq
