// Empty as yet: the tier adds byte permutes and vector population counts, which the popcount and lut families need and
// the dot family does not. Every slot is served by avx512.
#include "kernel_table.h"

namespace soniq {

extern const KernelTable avx512_vbmi_table;
const KernelTable avx512_vbmi_table = {};

}  // namespace soniq
