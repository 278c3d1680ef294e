/* Pairs of bfloat16: what their dot products and their tiles have in common. */
#ifndef FA_PRODUCTS_BF16_PAIRS_H
#define FA_PRODUCTS_BF16_PAIRS_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET avx512_bf16
#endif
#include "products/units.h"
#include "storage/partial.h"

/* Half `half` of a unit, as a number. */
FA_INLINE R read_half(const R *unit, ptrdiff_t half) {
    uint16_t bits;
    memcpy(&bits, (const char *)unit + 2 * half, sizeof bits);
    return bf16_to_float(bits);
}
FA_INLINE void write_half(R *unit, ptrdiff_t half, R x) {
    uint16_t bits[2] = {float_to_bf16(x), 0};
    memcpy((char *)unit + half * 2, bits, half ? 2 : 4);
}
FA_INLINE R weight_at(const R *weights, ptrdiff_t lanes, ptrdiff_t t, ptrdiff_t lane) {
    return read_half(weights + t / 2 * lanes + lane, t % 2);
}

/* `units` units of a row of `size` elements that lie side by side; zeros behind it. The next vector of them follows
 * `step` reals on. */
FA_INLINE void copy_units(const char *from, ptrdiff_t size, R *to, ptrdiff_t units, ptrdiff_t step) {
    ptrdiff_t u = 0;
    for (; u + LANES <= units; u += LANES, to += step) store(to, load_word_part(from + UNIT * 2 * u, size - UNIT * u));
    if (u < units) store_part(to, load_word_part(from + UNIT * 2 * u, size - UNIT * u), (int)(units - u));
}

/* Whether some half of a vector of units is infinite or NaN. */
FA_INLINE VI has_special(V units) {
    const VW_f32 low = (VW_f32){0} + 0x7f80, high = low << 16, bits = (VW_f32)units;
    return ((bits & low) == low) | ((bits & high) == high);
}

/* Whether a tile's results must be computed again: see FA_LEAST_SUM. Decided for each tile, as results must not
 * depend on the rest of the item. Lanes with NaN do not count, or other rows would be computed again for them. */
#define is_flushed is_flushed
static int is_flushed(const R *out, const V *sum, ptrdiff_t vectors, ptrdiff_t value_size) {
    for (ptrdiff_t j = 0; j < vectors; j++) {
        V top = {0};
        for (ptrdiff_t d = 0; d < value_size; d++) {
            V x = load(out + (d * vectors + j) * LANES);
            top = maximum(x, maximum(-x, top));
        }
        VI lost = (top < splat(FA_LEAST_SUM)) & (sum[j] > (V){0});
        for (ptrdiff_t d = 0; any_lane(lost) && d < value_size; d++) {
            V x = load(out + (d * vectors + j) * LANES);
            lost &= x == x;
        }
        if (any_lane(lost)) return 1;
    }
    return 0;
}

#endif
