#include "kernels/avx512/depthwise.h"
#include "kernels/avx512/dot.h"
#include "kernels/avx512/quantize.h"
#include "kernels/elementwise.h"
#include "kernels/epilogue_loop.h"
#include "kernels/winograd_loop.h"

namespace soniq {

extern const KernelTable avx512_table;
const KernelTable avx512_table = {quantize_avx512,
                                  abs_max,
                                  all_finite,
                                  sum_bytes_avx512,
                                  epilogue,
                                  &kAvx512Depthwise,
                                  &kAvx512Dot,
                                  /*popcount=*/nullptr,
                                  /*lut=*/nullptr,
                                  /*lut6=*/nullptr,
                                  /*quantize_split=*/nullptr,
                                  combine,
                                  max_codes,
                                  sum_codes,
                                  &kWinograd};

}  // namespace soniq
