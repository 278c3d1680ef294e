/* Target: portable
 * Machines: any
 *
 * 16-byte vectors for any compiler: SSE2 on x86-64 (16 registers, no FMA), NEON on arm64 (32 registers, FMA
 * contracted by the compiler), scalar code elsewhere. */
#ifndef FA_TARGET_PORTABLE_H
#define FA_TARGET_PORTABLE_H

#include "simd/portable.h"

#define FA_TARGET_NEEDS FA_CPU_ANY

#define FA_BLOCK_ROWS_1 8
#if defined(__aarch64__)
#define FA_BLOCK_ROWS_2 8
#define FA_BLOCK_ROWS_3 8
#define FA_PACKED_ROWS 6
#define FA_PACKED_PANELS 2
#define FA_CHAIN 128
#else
#define FA_BLOCK_ROWS_2 6
#define FA_BLOCK_ROWS_3 4
#define FA_PACKED_ROWS 3
#define FA_PACKED_PANELS 2
#define FA_CHAIN 8 /* products are rounded as well: shorter chains keep the accuracy */
#endif
#define FA_TILE_VECTORS 3
#define FA_ROWWISE_ROWS 2
#define FA_ROWWISE_VECTORS 4

#endif
