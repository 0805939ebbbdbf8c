// The tier adds vector population counts (popcount), byte permutes (lut) and byte compression (quantize_split); every other slot is served by avx512.
#include "kernels/avx512_vbmi/lut.h"
#include "kernels/avx512_vbmi/lut6.h"
#include "kernels/avx512_vbmi/popcount.h"
#include "kernels/avx512_vbmi/quantize_split.h"

namespace soniq {

extern const KernelTable avx512_vbmi_table;
const KernelTable avx512_vbmi_table = {/*quantize=*/nullptr,
                                       /*abs_max=*/nullptr,
                                       /*all_finite=*/nullptr,
                                       /*sum_bytes=*/nullptr,
                                       /*epilogue=*/nullptr,
                                       /*depthwise=*/nullptr,
                                       /*dot=*/nullptr,        &kAvx512Popcount, &kVbmiLut, &kVbmiLut6,
                                       quantize_split_vbmi2};

}  // namespace soniq
