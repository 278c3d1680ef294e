/* The limit of dot products of bfloat16 pairs, or of their tiles. */
#ifndef FA_TARGETS_PROBE_DOT_H
#define FA_TARGETS_PROBE_DOT_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET avx512_bf16
#endif
#include "products/products.h"
#include "simd/lanes.h"

double EXPORT(probe_dot)(ptrdiff_t rounds) {
#if FA_HAS_TILES
    configure_registers(16);
    for (ptrdiff_t n = 0; n < rounds / 8; n++) {
        tile_multiply_bf16(0, 4, 6);
        tile_multiply_bf16(1, 4, 7);
        tile_multiply_bf16(2, 5, 6);
        tile_multiply_bf16(3, 5, 7);
    }
    release_registers();
    return 4.0 * 2 * 16 * 16 * 32 * (double)(rounds / 8);
#else
    V acc[FA_CHAINS];
    const V factor = splat_bits(0x3f803f80); /* pairs of 1 */
    FA_UNROLL_FOR(int i = 0; i < FA_CHAINS; i++) acc[i] = splat((R)i);
    for (ptrdiff_t n = 0; n < rounds; n++) {
        FA_UNROLL_FOR(int i = 0; i < FA_CHAINS; i++) acc[i] = add_products_bf16(acc[i], factor, factor);
    }
    FA_UNROLL_FOR(int i = 1; i < FA_CHAINS; i++) acc[0] += acc[i];
    return 4.0 * FA_CHAINS * LANES * (double)rounds + 0 * (double)lane_sum(acc[0]);
#endif
}

#endif
