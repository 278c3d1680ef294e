/* A block of a weight's rows, and what is known of the rows of x. */
#ifndef FA_LINEAR_BLOCK_H
#define FA_LINEAR_BLOCK_H

#include "products/units.h"

#define LINEAR_FEATURES 64 /* rows of a block: see linear.h */
#define PANEL (2 * LANES)  /* rows of a packed weight in a panel: see packed.h */

/* Elements along the sum that lie side by side in a panel: a unit of the type's products. bfloat16 lies in pairs for
 * multiply-adds as well, which widen it by a shift and a mask. */
FA_INLINE ptrdiff_t panel_group(fa_type type) { return type == FA_BF16 ? 2 : UNIT; }

/* Element k of a row of the weight, plain or packed. */
FA_INLINE const char *weight_element(const fa_linear *l, ptrdiff_t row, ptrdiff_t k) {
    const ptrdiff_t size = fa_size_of(l->weight_type), group = panel_group(l->weight_type);
    if (!l->packed) return l->weight + row * l->weight_row_stride + k * l->weight_stride;
    return l->weight + row / PANEL * l->weight_row_stride +
           ((k / group * PANEL + row % PANEL) * group + k % group) * size;
}

#if FA_ARITHMETIC == FA_INT8
typedef struct {
    unit_rows rows;
    I sum[LINEAR_FEATURES]; /* of each row: sum_weights */
} weight_block;
typedef struct {
    V scale[FA_TILE_VECTORS];
    VI zero[FA_TILE_VECTORS];
} row_quantisation;
#else
typedef struct {
    unit_rows rows;
} weight_block;
typedef struct {
    char none;
} row_quantisation;
#endif

#endif
