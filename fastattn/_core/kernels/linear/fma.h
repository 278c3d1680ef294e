/* Linear by multiply-add. A weight of the kernel's own type is read in place, others are widened, as many rows and
 * columns as are used together at a time; int8 as the whole numbers they are: their scale follows the sum. */
#ifndef FA_LINEAR_FMA_H
#define FA_LINEAR_FMA_H

#include "linear/block.h"
#include "products/rows_into_lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"

#define LINEAR_RUN(l) linear_run((l)->in_features)

/* Units whose products are added up in one chain. About as many as there are chains leave the smallest error, twice as
 * many take 3 % less time. NumPy makes several sums of a product of few rows and so must we: one chain of 128 was up to
 * twice as far off as allowed. */
static ptrdiff_t linear_run(ptrdiff_t in_features) {
    ptrdiff_t run = FA_CHAIN < 32 ? FA_CHAIN : 32;
    while (run * run < 2 * in_features) run *= 2;
    return run;
}

static weight_block weights_at(const fa_linear *l, ptrdiff_t feature, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                               R *panel) {
    const char *from = l->weight + feature * l->weight_row_stride + unit * l->weight_stride;
    if (l->contiguous_weight && l->weight_type == STORED)
        return (weight_block){{(const R *)from, l->weight_row_stride / (ptrdiff_t)sizeof(R)}};
    const char *rows[LINEAR_FEATURES];
    for (ptrdiff_t i = 0; i < count; i++) rows[i] = from + i * l->weight_row_stride;
    widen_rows(panel, units, rows, l->weight_type, l->weight_stride, count, units);
    return (weight_block){{panel, units}};
}

/* A row of x as reals: as it lies, or in `memory`. */
FA_INLINE const R *gather_row(const fa_linear *l, const char *from, R *memory, ptrdiff_t units, R *scale, I *zero) {
    if (l->contiguous_x && l->type == STORED) return (const R *)from;
    widen(memory, from, l->type, l->x_stride, units);
    return memory;
}

#endif
