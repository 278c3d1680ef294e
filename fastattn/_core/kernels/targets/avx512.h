/* Target: avx512
 * Machines: x86_64 amd64
 * Flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprfchw
 *
 * 32 registers of 64 bytes. -mprfchw is for prefetching what will be stored. */
#ifndef FA_TARGET_AVX512_H
#define FA_TARGET_AVX512_H

#include "simd/avx512.h"
#include "targets/avx512_sizes.h"

#define FA_TARGET_NEEDS FA_CPU_AVX512

#endif
