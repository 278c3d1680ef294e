/* Transposes LANES rows into the lanes, unit by unit; the next unit follows `step` vectors on. `plain`: the elements
 * of a row are side by side and aligned. */
#ifndef FA_PRODUCTS_ROWS_INTO_LANES_H
#define FA_PRODUCTS_ROWS_INTO_LANES_H

#include "products/units.h"
#include "simd/lanes.h"

static void rows_into_lanes(const char *const *from, ptrdiff_t element, fa_type type, ptrdiff_t size, int plain, R *to,
                            ptrdiff_t step) {
    const ptrdiff_t whole = size / UNIT;
    ptrdiff_t u = 0;
    for (; plain && u + LANES <= whole; u += LANES) {
        V x[LANES];
        FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) x[lane] = load_units(from[lane], u, type);
        transpose(x);
        FA_UNROLL_FOR(int i = 0; i < LANES; i++) store(to + (u + i) * step * LANES, x[i]);
    }
    if (plain && whole - u > LANES / 4) { /* fewer are copied sooner */
        V x[LANES];
        for (int lane = 0; lane < LANES; lane++) x[lane] = load_some_units(from[lane], u, whole - u, type);
        transpose(x);
        for (int i = 0; u < whole; i++, u++) store(to + u * step * LANES, x[i]);
    }
    for (; u < UNITS(size); u++)
        for (int lane = 0; lane < LANES; lane++)
            to[u * step * LANES + lane] = read_unit(from[lane], element, u, size, type);
}

#endif
