/* What the kernels of the row operations are told: softmax, normalization, rotary embedding, storing in a cache. */
#ifndef FA_ABI_ROWS_H
#define FA_ABI_ROWS_H

#include "abi/types.h"

/* The row operations. Arrays of rows, results included, are all stored in the same `type`. */
typedef struct {
    fa_type type;
    ptrdiff_t length;
    ptrdiff_t x_row_stride, x_stride, where_row_stride, where_stride, out_row_stride, out_stride;
    int logarithm;   /* log_softmax */
    int nontemporal; /* use non-temporal stores */
} fa_softmax;

typedef struct {
    fa_type type;
    ptrdiff_t length;
    ptrdiff_t x_row_stride, x_stride, residual_row_stride, residual_stride, out_row_stride, out_stride,
        total_row_stride, total_stride;
    const void *weight, *bias; /* (length,) side by side; or NULL */
    fa_type weight_type, bias_type;
    double eps;
    int centred;                                                             /* layer_norm: the mean is subtracted */
    int contiguous_x, contiguous_residual, contiguous_out, contiguous_total; /* elements side by side and aligned */
    int nontemporal;
} fa_normalization;

/* Rotary embedding: row i of x turns by the angles in row positions[i] of the tables; without positions, in row i. */
typedef struct {
    fa_type type, table_type;
    ptrdiff_t length, pairs; /* components of a row; how many pairs of them turn */
    ptrdiff_t x_row_stride, x_stride, out_row_stride, out_stride;
    ptrdiff_t cos_row_stride, cos_stride, sin_row_stride, sin_stride;
    ptrdiff_t position; /* bytes from a row's position, an intptr_t, to the next row's */
    int interleaved;    /* pairs are neighbours; otherwise their second halves follow all the first ones */
} fa_rotary;

/* Rows of new keys or values on their way into a cache, where they lie side by side. */
typedef struct {
    ptrdiff_t size, pairs; /* components of a row; how many pairs of them turn by a row of cos and sin */
    ptrdiff_t x_row_stride, x_stride, cos_row_stride, cos_stride, sin_row_stride, sin_stride;
    fa_type x_type, stored, table_type;
    int interleaved;
} fa_cache_rows;

#endif
