/* What the passes over a row share. */
#ifndef FA_ROWS_PASSES_H
#define FA_ROWS_PASSES_H

#include "instance.h"

/* Elements whose sum is made on its own before it joins the rest: in one long chain rounding errors gather. */
#define RUN (64 * LANES)

/* The row to prefetch while this one is at work, of which `left` are still to come: far enough ahead to hide the way to
 * memory, 8 KB and at least two rows (softmax has the next in hand already). At the end it is the row itself, which
 * costs next to nothing. */
FA_INLINE const char *row_ahead(const char *row, ptrdiff_t stride, ptrdiff_t bytes, ptrdiff_t left) {
    ptrdiff_t rows = 8192 / bytes + 2;
    return rows < left ? row + rows * stride : row;
}

FA_INLINE void prefetch_l2(const void *address) { __builtin_prefetch(address, 0, 2); }

#endif
