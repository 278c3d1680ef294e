/* The vocabulary in AVX-512 with dot products, and AMX: eight registers of tiles, 16 rows of 64 bytes.
 *
 * Tiles are named by constants, hence macros. GCC's intrinsics do not say that they read and write memory: callers put
 * tile_barrier() around them. */
#ifndef FA_SIMD_AMX_H
#define FA_SIMD_AMX_H

#include "simd/avx512_bf16.h"

#define FA_HAS_TILES 1

/* GCC's intrinsic says that it reads 8 of the 64 bytes, so the compiler could leave out the stores of the others. */
FA_INLINE void tiles_configure(const void *shapes) {
    __asm__ volatile("" ::"r"(shapes) : "memory");
    _tile_loadconfig(shapes);
    __asm__ volatile("" ::"r"(shapes) : "memory");
}
FA_INLINE void tiles_release(void) { _tile_release(); }
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_barrier() __asm__ volatile("" ::: "memory")

/* sums += rows · lanes: pairs of bfloat16; signed bytes in the rows, unsigned in the lanes; and the other way round. */
#define tile_multiply_bf16(sums, rows, lanes) _tile_dpbf16ps(sums, rows, lanes)
#define tile_multiply_s8_u8(sums, rows, lanes) _tile_dpbsud(sums, rows, lanes)
#define tile_multiply_u8_s8(sums, rows, lanes) _tile_dpbusd(sums, rows, lanes)

#endif
