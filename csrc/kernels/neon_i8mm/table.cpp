// Empty as yet.
#include "kernel_table.h"

namespace soniq {

extern const KernelTable neon_i8mm_table;
const KernelTable neon_i8mm_table = {};

}  // namespace soniq
