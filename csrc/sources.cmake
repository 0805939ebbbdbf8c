# The core library without Python: drivers at the baseline of the platform, kernels with the flags of their tier.
include(CheckCXXCompilerFlag)
find_package(OpenMP REQUIRED COMPONENTS CXX)

set(SONIQ_CSRC ${CMAKE_CURRENT_LIST_DIR})
add_library(soniq_core STATIC
  ${SONIQ_CSRC}/cpu.cpp
  ${SONIQ_CSRC}/dispatch.cpp
  ${SONIQ_CSRC}/threads.cpp
  ${SONIQ_CSRC}/pack.cpp
  ${SONIQ_CSRC}/epilogue.cpp
  ${SONIQ_CSRC}/gemm.cpp
  ${SONIQ_CSRC}/span.cpp
  ${SONIQ_CSRC}/winograd.cpp
  ${SONIQ_CSRC}/join.cpp
  ${SONIQ_CSRC}/image_run.cpp
  ${SONIQ_CSRC}/pooling.cpp
  ${SONIQ_CSRC}/dot.cpp
  ${SONIQ_CSRC}/popcount.cpp
  ${SONIQ_CSRC}/lut.cpp
  ${SONIQ_CSRC}/lut6.cpp
  ${SONIQ_CSRC}/conv2d.cpp
  ${SONIQ_CSRC}/depthwise.cpp
  ${SONIQ_CSRC}/quantize.cpp
  ${SONIQ_CSRC}/tensor.cpp
  ${SONIQ_CSRC}/ops.cpp
  ${SONIQ_CSRC}/kernels/reference/table.cpp)
target_include_directories(soniq_core PUBLIC ${SONIQ_CSRC})
target_link_libraries(soniq_core PUBLIC OpenMP::OpenMP_CXX)

set(SONIQ_OPTIMIZE -O3 CACHE STRING "How the core is optimized; builds with sanitizers take less time with -O1")

# -ffp-contract=off: the float32 epilogue rounds every step; a fused multiply-add would change bits.
# -fno-trapping-math: nobody reads the exception flags, and GCC vectorises selects only with it.
target_compile_options(soniq_core PRIVATE
  ${SONIQ_OPTIMIZE} -ffp-contract=off -fno-trapping-math -fno-math-errno -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi)

# What GCC 12 does to vector sums carried around a loop: on x86 it gives them a second register and spills half of them (89
# moves for 24 products in the inner loop of dot on avx512, half the speed), and not coalescing variables gives them one (no
# move at all). On AArch64 that very flag makes moves (17 for 64 udot, none without it).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(tier_flags -fno-tree-coalesce-vars)
endif()

option(SONIQ_EMULATE_AVX512 "For tests: loops in place of the instructions of AVX-512 (tests/vectors/emulated)" OFF)

# soniq_tier(NAME flags...): the files of csrc/kernels/NAME/ with these flags, and SONIQ_HAVE_NAME for the dispatcher.
function(soniq_tier name)
  string(TOUPPER ${name} upper)
  set(file ${SONIQ_CSRC}/kernels/${name}/table.cpp)
  target_sources(soniq_core PRIVATE ${file})
  set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${ARGN};${tier_flags}")
  target_compile_definitions(soniq_core PRIVATE SONIQ_HAVE_${upper})
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(avx2 -mavx2 -mfma -mbmi2)
  # -Wno-*uninitialized: GCC 12 warns about its own AVX-512 header (GCC bug 105593).
  set(avx512 -Wno-uninitialized -Wno-maybe-uninitialized -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni ${avx2} -mprefer-vector-width=512)
  soniq_tier(avx2 ${avx2})
  check_cxx_compiler_flag(-mavxvnni SONIQ_COMPILER_HAS_AVXVNNI)  # GCC 11, Clang 12
  if(SONIQ_COMPILER_HAS_AVXVNNI)
    soniq_tier(avxvnni ${avx2} -mavxvnni)
  endif()
  set(avx512_vbmi ${avx512} -mavx512vbmi -mavx512vbmi2 -mavx512vpopcntdq -mavx512bitalg)
  if(SONIQ_EMULATE_AVX512)
    set(avx512 ${avx2} -I${SONIQ_CSRC}/../tests/vectors/emulated)
    set(avx512_vbmi ${avx512})
    target_compile_definitions(soniq_core PRIVATE SONIQ_EMULATE_AVX512)
  endif()
  soniq_tier(avx512 ${avx512})
  soniq_tier(avx512_vbmi ${avx512_vbmi})
  check_cxx_compiler_flag(-mamx-int8 SONIQ_COMPILER_HAS_AMX)  # GCC 11, Clang 12
  if(SONIQ_EMULATE_AVX512)
    soniq_tier(amx ${avx512_vbmi})
  elseif(SONIQ_COMPILER_HAS_AMX)
    soniq_tier(amx ${avx512_vbmi} -mamx-tile -mamx-int8)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  soniq_tier(neon -march=armv8-a)
  soniq_tier(neon_dotprod -march=armv8.2-a+dotprod)
  # GCC's scheduling before registers are allocated overlaps so many loads here that the sums spill.
  soniq_tier(neon_i8mm -march=armv8.2-a+dotprod+i8mm $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>)
endif()
