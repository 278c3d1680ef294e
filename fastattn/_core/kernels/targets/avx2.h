/* Target: avx2
 * Machines: x86_64 amd64
 * Flags: -mavx2 -mfma -mf16c
 *
 * 16 registers of 32 bytes. Two FMAs and two loads a cycle on every core since Haswell and Zen 2. */
#ifndef FA_TARGET_AVX2_H
#define FA_TARGET_AVX2_H

#include "simd/avx2.h"

#define FA_TARGET_NEEDS (FA_CPU_FMA | FA_CPU_F16C | FA_CPU_AVX | FA_CPU_AVX2)

/* 16 registers: 12 accumulators, the query vectors and one broadcast. */
#define FA_BLOCK_ROWS_1 8
#define FA_BLOCK_ROWS_2 6
#define FA_BLOCK_ROWS_3 4
#define FA_TILE_VECTORS 3
#define FA_CHAIN 128 /* components whose products are added up in one chain */

#define FA_ROWWISE_ROWS 2
#define FA_ROWWISE_VECTORS 4

/* A full tile with a packed weight: rows of x, and panels of two vectors side by side; 12 sums. */
#define FA_PACKED_ROWS 6
#define FA_PACKED_PANELS 1

#endif
