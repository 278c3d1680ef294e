/* The products of linear in the arithmetic of this instance, and the contract of what prepares and finishes them.
 *
 * linear/{fma,bf16,int8}.h define the hooks below; those with a default only where they differ, and say so by
 * `#define hook hook`.
 *
 *   LINEAR_RUN(l)                    units whose products are added up in one chain
 *   weight_block weights_at(l, feature, count, unit, units, panel)
 *                                    units [unit, unit + units) of `count` rows of W: in place, or in `panel`
 *   const R *gather_row(l, from, memory, units, scale, zero)
 *                                    a row of x as units, zeros behind it: as it lies, or in `memory`
 *
 *   gather_rows        transposed    LANES rows of x into the lanes of vector j of a tile
 *   sum_weights        nothing       the sums of a block's rows
 *   as_real            their sum     a sum of products of row `row` of the block, of vector j of rows of x, as a real;
 *                                    added to `earlier`, that of earlier runs, unless it is NULL
 *   recompute_flushed  nothing       sums that may have been flushed to 0, by multiply-adds: see FA_LEAST_SUM
 *
 * and, where rows of x stand in the tiles' rows:
 *   LINEAR_MOST_UNITS  any           units of a row at most
 *   add_weights        nothing       a vector of weights added to the total of each feature
 *   row_as_real        the sum       a vector of sums of one row of x as reals
 *
 * and of a packed weight:
 *   add_product_of_lanes  add_product  with weights in the lanes and x broadcast
 *   join_sums             a + b        sums of the same run
 *   RUN_OF_TOTALS         1            units of a run, whose weights are totalled behind the panel */
#ifndef FA_LINEAR_PRODUCTS_H
#define FA_LINEAR_PRODUCTS_H

#include "products/products.h"
#include "products/rows_into_lanes.h"

#if FA_MULTIPLY_ADD
#include "linear/fma.h"
#elif FA_ARITHMETIC == FA_BFLOAT16
#include "linear/bf16.h"
#else
#include "linear/int8.h"
#endif

#ifndef gather_rows
static void gather_rows(const fa_linear *l, const char *const *from, R *to, ptrdiff_t vectors, R *bytes,
                        row_quantisation *quantised, ptrdiff_t j) {
    rows_into_lanes(from, l->x_stride, l->type, l->in_features, l->contiguous_x, to, vectors);
}
#endif
#ifndef sum_weights
FA_INLINE void sum_weights(weight_block *weights, ptrdiff_t count, ptrdiff_t units) {}
#endif
#ifndef as_real
FA_INLINE V as_real(V sum, const weight_block *weights, ptrdiff_t row, const row_quantisation *quantised, int j,
                    const R *earlier) {
    if (earlier) sum += load(earlier);
    return sum;
}
#endif
#ifndef recompute_flushed
FA_INLINE void recompute_flushed(const fa_linear *l, const char *const *x, ptrdiff_t lanes, ptrdiff_t feature,
                                 ptrdiff_t features, V *sums) {}
#endif

#ifndef LINEAR_MOST_UNITS
#define LINEAR_MOST_UNITS PTRDIFF_MAX
#endif
#ifndef add_weights
FA_INLINE VI add_weights(VI total, V weights) { return total; }
#endif
#ifndef add_product_of_lanes
FA_INLINE V add_product_of_lanes(V sum, V lanes, spread unit) { return add_product(sum, unit, lanes); }
#endif
#ifndef RUN_OF_TOTALS
#define RUN_OF_TOTALS 1
#endif
#ifndef join_sums
FA_INLINE V join_sums(V a, V b) { return a + b; }
#endif
#ifndef row_as_real
FA_INLINE V row_as_real(V sum, const I *total, const R *scale, const I *zero, const R *earlier) { return sum; }
#endif

#endif
