/* What the passes over a row share. */
#ifndef FA_ROWS_PASSES_H
#define FA_ROWS_PASSES_H

#include "instance.h"

/* Elements that are summed in one chain: rounding errors grow with the length of a chain. */
#define RUN (64 * LANES)

/* The row to prefetch while this one is processed, with `left` rows still to come. 8 KB and at least two rows ahead
 * is far enough to hide the latency of memory (softmax already holds the next row). At the end it is the row itself,
 * which costs next to nothing. */
FA_INLINE ptrdiff_t rows_ahead(ptrdiff_t bytes) { return 8192 / bytes + 2; }
FA_INLINE const char *row_ahead(const char *row, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t left) {
    return rows < left ? row + rows * stride : row;
}

FA_INLINE void prefetch_l2(const void *address) { __builtin_prefetch(address, 0, 2); }

#endif
