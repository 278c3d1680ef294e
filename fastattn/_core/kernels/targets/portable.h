/* Target: portable
 * Machines: any
 *
 * 16-byte vectors, whatever the machine makes of them. SSE2 on x86-64 (16 registers, no FMA), NEON on arm64 (32 registers, FMA
 * contracted by the compiler), scalar code elsewhere. */
#ifndef FA_TARGET_PORTABLE_H
#define FA_TARGET_PORTABLE_H

#include "simd/portable.h"

#define FA_TARGET_NEEDS FA_CPU_ANY

#define FA_TILE_ROWS_1 8
#if defined(__aarch64__)
#define FA_TILE_ROWS_2 8
#define FA_TILE_ROWS_3 8
#define FA_TILE_RUN 128
#else
#define FA_TILE_ROWS_2 6
#define FA_TILE_ROWS_3 4
#define FA_TILE_RUN 8 /* products are rounded as well: shorter chains keep the accuracy */
#endif
#define FA_TILE_WIDEST 3
#define FA_FEW_ROWS 2
#define FA_FEW_COLUMNS 4
#define FA_FEW_BEST 2

#endif
