/* What the kernels of attention are told. */
#ifndef FA_ABI_ATTENTION_H
#define FA_ABI_ATTENTION_H

#include "abi/types.h"

/* How the keys or the values of a kv head lie. Rows stand one behind the other or in pages; int8 rows have a scale
 * each. */
typedef struct {
    fa_type type;
    ptrdiff_t row, element, page; /* to the next row of a page, element, page */
    ptrdiff_t scale_row, scale_page;
} fa_rows;

/* Attention: what the items of one sequence share.
 *
 * A row is one query of one head. The rows of a kv head are numbered query by query, the heads of the group side by
 * side: row = query · group + head in group. So neighbouring rows stand at neighbouring positions, see nearly the same
 * keys, and one stream of keys serves the whole group. */
typedef struct {
    fa_type type; /* of query and result; the lse is in the kernel's own */
    ptrdiff_t group, keys, head_size, value_size;
    ptrdiff_t query_head_stride, query_row_stride, query_stride;
    fa_rows key, value;
    ptrdiff_t page_rows; /* rows of a page, where the items have pages */
    ptrdiff_t out_head_stride, out_row_stride, out_stride, lse_head_stride, lse_row_stride;
    ptrdiff_t mask_head_stride, mask_row_stride, mask_stride;
    int mask_type;         /* an fa_type, FA_MASK_BOOL or FA_NO_MASK */
    double scale, softcap; /* softcap 0: none */
    ptrdiff_t bias_reach;  /* of position_bias: a row of it has 2 · bias_reach + 1 biases; -1: there is none */
} fa_attention;

enum { FA_NO_MASK = -1, FA_MASK_BOOL = -2 };

/* Rows [first_row, first_row + rows) of one kv head against the keys [key_begin, key_end).
 * Where part_sum is given the result is one part of several, left normalised in part_out (rows, value_size), with the
 * maximum and the sum of its weights (rows,) for attention_merge. */
typedef struct {
    const char *query, *key, *value, *mask; /* the kv head's first row, in pages that of page 0 */
    const char *key_scale, *value_scale;    /* likewise */
    const int64_t *pages;                   /* key j is row j % page_rows of page pages[j / page_rows]; or NULL */
    char *out, *lse;                        /* likewise; lse may be NULL */
    const void *sinks, *slopes;             /* of the group's heads, in the kernel's type; or NULL */
    const void *position_bias;              /* of the group's heads, in the kernel's type, C order; or NULL */
    ptrdiff_t q_offset;                     /* query i stands at i + q_offset: any number, for ALiBi and biases alone */
    ptrdiff_t begin_offset, end_offset;     /* and sees the keys i + begin_offset <= j < i + end_offset: saturated */
    ptrdiff_t first_row, rows, key_begin, key_end;
    int few_scores; /* whether the whole head has so few that their sums are made of short chains of additions */
    void *part_out, *part_max, *part_sum;
} fa_attention_item;

enum { FA_MOST_PARTS = 64, FA_MOST_ROWWISE = 16, FA_MOST_ROWS = 512 };

#endif
