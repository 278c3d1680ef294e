/* Merges the results of several parts of the keys. The parts are added in their order, whichever thread computed
 * them. */
#ifndef FA_ATTENTION_MERGE_H
#define FA_ATTENTION_MERGE_H

#include "attention/rows.h"
#include "storage/elements.h"

static void EXPORT(attention_merge)(const fa_attention *a, const fa_attention_item *item, ptrdiff_t parts) {
    const R *out = item->part_out, *max = item->part_max, *sum = item->part_sum;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        ptrdiff_t at = item->first_row + row;
        char *to = item->out + row_offset(a, at, a->out_head_stride, a->out_row_stride);
        R top = (R)-INFINITY, total = 0, weight[FA_MOST_PARTS];
        for (ptrdiff_t p = 0; p < parts; p++) top = max[p * item->rows + row] > top ? max[p * item->rows + row] : top;
        R shift = top == (R)-INFINITY ? 0 : top;
        for (ptrdiff_t p = 0; p < parts; p++) {
            weight[p] = exp_by_exp2(splat(max[p * item->rows + row] - shift))[0] * sum[p * item->rows + row];
            total += weight[p];
        }
        R divisor = total == 0 ? 1 : total;
        for (ptrdiff_t d = 0; d < a->value_size; d++) {
            R x = 0;
            for (ptrdiff_t p = 0; p < parts; p++) x += weight[p] * out[(p * item->rows + row) * a->value_size + d];
            x /= divisor;
            write_element(to + d * a->out_stride, a->type, x);
        }
        if (item->lse) {
            R lse = log_sum(top, total);
            memcpy(item->lse + row_offset(a, at, a->lse_head_stride, a->lse_row_stride), &lse, sizeof lse);
        }
    }
}

#endif
