#include "kernels/avx2/depthwise.h"
#include "kernels/avx2/dot.h"
#include "kernels/avx2/lut.h"
#include "kernels/avx2/quantize.h"
#include "kernels/elementwise.h"
#include "kernels/epilogue_loop.h"
#include "kernels/winograd_loop.h"

namespace soniq {

extern const KernelTable avx2_table;
const KernelTable avx2_table = {quantize_avx2,
                                abs_max,
                                all_finite,
                                sum_bytes_avx2,
                                epilogue,
                                &kAvx2Depthwise,
                                &kAvx2Dot,
                                /*popcount=*/nullptr,
                                &kAvx2Lut,
                                /*lut6=*/nullptr,
                                /*quantize_split=*/nullptr,
                                combine,
                                max_codes,
                                sum_codes,
                                &kWinograd};

}  // namespace soniq
