/* Target: amx
 * Machines: x86_64 amd64
 * Flags: avx512_bf16 -mamx-tile -mamx-bf16 -mamx-int8
 * Emulated by: avx512
 * float64: avx512
 *
 * The same with tiles of 16 rows by 64 bytes, and their products. */
#ifndef FA_TARGET_AMX_H
#define FA_TARGET_AMX_H

#include "simd/amx.h"
#include "targets/avx512_sizes.h"

#ifdef FA_EMULATE
#define FA_TARGET_NEEDS FA_CPU_AVX512
#else
#define FA_TARGET_NEEDS (FA_CPU_AVX512 | FA_CPU_AVX512_VNNI | FA_CPU_AVX512_BF16 | FA_CPU_AMX)
#endif

#define FA_ROWWISE_UP_TO_BF16 4 /* tiles of 16 rows are the faster way even with 5 */

#endif
