/* Rows written a vector at a time, through the cache or past it by non-temporal stores. */
#ifndef FA_STORAGE_STREAMING_H
#define FA_STORAGE_STREAMING_H

#include "storage/partial.h"

/* Large results are stored past the cache, by non-temporal stores, which saves reading the lines that are overwritten
 * (copy 38 GB/s instead of 23). These need whole aligned vectors, so the elements left over at the end of a row wait
 * in `line` for the beginning of the next row: stored through the cache, rows of 128 ran at half the speed. */
typedef struct {
    V line;
    ptrdiff_t filled; /* lanes of `line` that wait */
} nontemporal_line;

/* Element i of `out` = VALUE(i, n) for the n elements from i on, a vector at a time, stored as `type`; `nontemporal` is
 * NULL for plain stores, and is meant for STORED alone. */
#define FA_MAP(out, type, count, nontemporal, VALUE)                                                                   \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        if ((type) == STORED && (nontemporal)) {                                                                       \
            R *place = (R *)(out);                                                                                     \
            i = (ptrdiff_t)(-(uintptr_t)place % FA_VECTOR_BYTES / sizeof(R));                                          \
            if (i > (count)) i = (count); /* the last run of a long row may be as short */                             \
            if (i) put_nontemporal(nontemporal, place - (nontemporal)->filled, VALUE(0, i), i);                        \
            for (; i + LANES <= (count); i += LANES) store_nontemporal(place + i, VALUE(i, LANES));                    \
            (nontemporal)->filled = (count) - i;                                                                       \
            if (i < (count)) (nontemporal)->line = VALUE(i, (count) - i);                                              \
        } else {                                                                                                       \
            const ptrdiff_t size = fa_size_of(type);                                                                   \
            for (; i + LANES <= (count); i += LANES) store_as((out) + i * size, type, VALUE(i, LANES));                \
            if (i < (count)) store_some_as((out) + i * size, type, VALUE(i, (count) - i), (count) - i);                \
        }                                                                                                              \
    } while (0)

/* Write the waiting elements and `more` behind them to `at`: a whole vector past the cache, a part of one through it.
 * They are joined in registers: through memory the load would wait until all stores before it have left the core. */
FA_INLINE void put_nontemporal(nontemporal_line *nontemporal, R *at, V next, ptrdiff_t more) {
    ptrdiff_t count = nontemporal->filled + more;
    V line = nontemporal->filled ? join_lanes(nontemporal->line, next, (int)nontemporal->filled) : next;
    if (count == LANES) store_nontemporal(at, line);
    else store_part(at, line, (int)count);
    nontemporal->filled = 0;
}

/* After a row that ends at `end`: its last elements wait only if the next row begins there. */
FA_INLINE void end_nontemporal_row(nontemporal_line *nontemporal, R *end, int next_follows) {
    if (nontemporal->filled && !next_follows) put_nontemporal(nontemporal, end - nontemporal->filled, (V){0}, 0);
}

#endif
