/* Products of 8-bit integers by dot products of four, added to 32-bit sums: of unsigned ones in the lanes with signed
 * ones that are spread over them (AVX512_VNNI), or of signed ones (FEAT_DotProd). A unit is four; R stands for its 32
 * bits, and V for sums, where they are only moved. */
#ifndef FA_PRODUCTS_INT8_H
#define FA_PRODUCTS_INT8_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_INT8
#define FA_TARGET avx512_bf16
#endif
#include "instance.h"

#define UNIT 4
#define MULTIPLY_TILES tile_multiply_s8_u8
#define MULTIPLY_SWAPPED tile_multiply_u8_s8

typedef struct {
    const R *data;
    ptrdiff_t stride;
} unit_rows; /* stride in units */

#if FA_HAS_ELEMENT_PRODUCTS
typedef R spread;
FA_INLINE V add_product(V sum, spread unit, V lanes) { return add_element_products_i8(sum, lanes, unit); }
FA_INLINE spread spread_unit(const R *unit) { return *unit; }
#else
typedef V spread;
FA_INLINE V add_product(V sum, spread unit, V lanes) { return add_products_u8(sum, lanes, unit); }
FA_INLINE spread spread_unit(const R *unit) {
    int32_t bits;
    memcpy(&bits, unit, sizeof bits);
    return splat_bits(bits);
}
#endif

FA_INLINE V load_units(const char *from, ptrdiff_t unit, fa_type type) {
    return load((const R *)(from + unit * (ptrdiff_t)sizeof(R)));
}
FA_INLINE V load_some_units(const char *from, ptrdiff_t unit, ptrdiff_t n, fa_type type) {
    return load_part((const R *)(from + unit * (ptrdiff_t)sizeof(R)), (int)n);
}
FA_INLINE R read_unit(const char *from, ptrdiff_t element, ptrdiff_t unit, ptrdiff_t size, fa_type type) {
    R bits; /* rows of bytes are padded to whole units */
    memcpy(&bits, from + unit * (ptrdiff_t)sizeof(R), sizeof bits);
    return bits;
}

#endif
