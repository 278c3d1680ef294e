/* A packed weight of few outputs, which would leave most lanes of its panel empty: for many rows of x, whose products
 * have rows of x in the lanes instead, it is brought back to rows, run by run. The chains of additions are the same. */
#ifndef FA_LINEAR_FEW_OUTPUTS_H
#define FA_LINEAR_FEW_OUTPUTS_H

#include "linear/packed.h"

#if FA_MULTIPLY_ADD

/* For hundreds of rows, half a vector of outputs or less takes 0.5 to 0.9 times as long as in its panel; so does a
 * vector if x is widened anyhow, else it takes up to 1.3 times as long. Both are even at 4 vectors of rows, and at 1.5
 * if x is widened; at one, they take up to 2.6 times as long. */
FA_INLINE int has_few_outputs(const fa_linear *l, ptrdiff_t rows) {
    const int own = l->type == STORED;
    return l->packed && !l->gated && l->features <= (own ? LANES / 2 : LANES) && rows >= (own ? 4 : 2) * LANES;
}

/* Units of `count` outputs of a packed weight with no more than a vector of them, as rows. Loops are left as such: GCC
 * unrolled them to 66 KB. */
FA_NOINLINE weight_block rows_of_panel(const fa_linear *l, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units, R *panel) {
    const ptrdiff_t group = panel_group(l->weight_type), end = unit + units;
    for (ptrdiff_t u = unit; u < end; u += LANES) {
        const ptrdiff_t n = fa_clamp(end - u, 0, LANES);
        V x[LANES + 1] = {{0}};
        _Pragma("GCC unroll 1") for (ptrdiff_t k = 0; k < n; k += group) {
            const char *from = weight_element(l, 0, u + k);
#define LOAD(TYPE) load_group(from, TYPE, x + k)
            FA_FOR_STORED(l->weight_type, LOAD);
#undef LOAD
        }
        transpose(x);
        _Pragma("GCC unroll 1") for (ptrdiff_t i = 0; i < count; i++) store_some(panel + i * units + u - unit, x[i], n);
    }
    return (weight_block){{panel, units}};
}

static weight_block weights_of(const fa_linear *l, ptrdiff_t feature, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                               R *panel) {
    return l->packed ? rows_of_panel(l, count, unit, units, panel) : weights_at(l, feature, count, unit, units, panel);
}

#else
FA_INLINE int has_few_outputs(const fa_linear *l, ptrdiff_t rows) { return 0; }
#define weights_of weights_at
#endif

#endif
