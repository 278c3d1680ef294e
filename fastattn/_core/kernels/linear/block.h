/* A block of a weight's rows, and what is known of the rows of x. */
#ifndef FA_LINEAR_BLOCK_H
#define FA_LINEAR_BLOCK_H

#include "products/units.h"

#define LINEAR_FEATURES 64 /* rows of a block: see linear.h */

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
