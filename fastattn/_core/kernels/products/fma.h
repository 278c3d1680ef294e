/* Products by multiply-add: units are reals of the kernel's own type. */
#ifndef FA_PRODUCTS_FMA_H
#define FA_PRODUCTS_FMA_H

#include "storage/partial.h"

#define UNIT 1 /* elements along the sum of a product that one lane takes at a time */

typedef struct {
    const R *data;
    ptrdiff_t stride;
} unit_rows; /* stride in R */

#if FA_HAS_ELEMENT_PRODUCTS
typedef R spread;
FA_INLINE V add_product(V sum, spread unit, V lanes) { return add_element_product(sum, lanes, unit); }
FA_INLINE spread spread_unit(const R *unit) { return *unit; }
#else
typedef V spread;
FA_INLINE V add_product(V sum, spread a, V b) { return sum + a * b; }
FA_INLINE spread spread_unit(const R *unit) { return splat(*unit); }
#endif

/* Units of a row in memory: a vector of them, and one. */
FA_INLINE V load_units(const char *from, ptrdiff_t unit, fa_type type) {
    return load_as(from + unit * fa_size_of(type), type);
}
FA_INLINE V load_some_units(const char *from, ptrdiff_t unit, ptrdiff_t n, fa_type type) {
    return load_some_as(from + unit * fa_size_of(type), type, n);
}
FA_INLINE R read_unit(const char *from, ptrdiff_t element, ptrdiff_t unit, ptrdiff_t size, fa_type type) {
    return read_element(from + unit * element, type);
}

#endif
