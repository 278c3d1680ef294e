/* Products of bfloat16 by dot products of pairs (AVX512_BF16, FEAT_BF16): each lane adds two products at a time to a
 * float32 sum. A unit is a pair; R stands for its 32 bits where it is only moved. */
#ifndef FA_PRODUCTS_BF16_H
#define FA_PRODUCTS_BF16_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET avx512_bf16
#endif
#include "instance.h"

#define UNIT 2
#define MULTIPLY_TILES tile_multiply_bf16
#define MULTIPLY_SWAPPED tile_multiply_bf16

typedef struct {
    const R *data;
    ptrdiff_t stride;
} unit_rows; /* stride in units */

#if FA_HAS_ELEMENT_PRODUCTS
typedef R spread;
FA_INLINE V add_product(V sum, spread unit, V lanes) { return add_element_products_bf16(sum, lanes, unit); }
FA_INLINE spread spread_unit(const R *unit) { return *unit; }
#else
typedef V spread;
FA_INLINE V add_product(V sum, spread a, V b) { return add_products_bf16(sum, a, b); }
FA_INLINE spread spread_unit(const R *unit) {
    int32_t bits;
    memcpy(&bits, unit, sizeof bits);
    return splat_bits(bits);
}
#endif

FA_INLINE R unit_of_halves(const char *low, const char *high) {
    uint16_t halves[2] = {0, 0};
    R unit;
    memcpy(&halves[0], low, sizeof halves[0]);
    if (high) memcpy(&halves[1], high, sizeof halves[1]);
    memcpy(&unit, halves, sizeof unit);
    return unit;
}

FA_INLINE V load_units(const char *from, ptrdiff_t unit, fa_type type) {
    return load((const R *)(from + unit * (ptrdiff_t)sizeof(R)));
}
FA_INLINE V load_some_units(const char *from, ptrdiff_t unit, ptrdiff_t n, fa_type type) {
    return load_part((const R *)(from + unit * (ptrdiff_t)sizeof(R)), (int)n);
}
FA_INLINE R read_unit(const char *from, ptrdiff_t element, ptrdiff_t unit, ptrdiff_t size, fa_type type) {
    const char *low = from + 2 * unit * element;
    return unit_of_halves(low, 2 * unit + 1 < size ? low + element : NULL);
}

#endif
