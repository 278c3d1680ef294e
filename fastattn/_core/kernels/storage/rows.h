/* What the row operations share: rows read and written at any stride, and one pass over a row in whole vectors. */
#ifndef FA_STORAGE_ROWS_H
#define FA_STORAGE_ROWS_H

#include "storage/elements.h"

/* A piece of scratch memory, whole cache lines. */
FA_INLINE R *take_scratch(char **scratch, ptrdiff_t elements) {
    R *piece = (R *)*scratch;
    *scratch += (elements * (ptrdiff_t)sizeof(R) + 63) / 64 * 64;
    return piece;
}

/* n vector elements of a row; n == LANES where a whole vector is known to be there. */
FA_INLINE V load_some(const R *p, ptrdiff_t n) { return n == LANES ? load(p) : load_part(p, (int)n); }
FA_INLINE void store_some(R *p, V x, ptrdiff_t n) {
    if (n == LANES) store(p, x);
    else store_part(p, x, (int)n);
}

/* The same of any type; a part of 16-bit elements goes through a vector's worth of memory, as nothing beyond is touched. */
FA_INLINE V load_some_as(const char *p, fa_type type, ptrdiff_t n) {
    if (type == STORED) return load_some((const R *)p, n);
    if (n == LANES) return load_as(p, type);
    char part[LANES * sizeof(R)] = {0};
    memcpy(part, p, (size_t)(n * fa_size_of(type)));
    return load_as(part, type);
}
FA_INLINE void store_some_as(char *p, fa_type type, V x, ptrdiff_t n) {
    if (type == STORED) store_some((R *)p, x, n);
    else if (n == LANES) store_as(p, type, x);
    else {
        char part[LANES * sizeof(R)];
        store_as(part, type, x);
        memcpy(p, part, (size_t)(n * fa_size_of(type)));
    }
}

/* CALL(TYPE) with the type of a result as a constant. */
#if FA_REAL_IS_FLOAT
#define FA_FOR_RESULT(type, CALL)                                                                                      \
    do {                                                                                                               \
        if ((type) == FA_F32) CALL(FA_F32);                                                                            \
        else if ((type) == FA_BF16) CALL(FA_BF16);                                                                     \
        else CALL(FA_F16);                                                                                             \
    } while (0)
#else
#define FA_FOR_RESULT(type, CALL)                                                                                      \
    do {                                                                                                               \
        (void)(type);                                                                                                  \
        CALL(FA_F64);                                                                                                  \
    } while (0)
#endif

/* The first n lanes of x, and `rest` in the others. */
FA_INLINE V keep_lanes(V x, int n, R rest) {
    VI lane;
    FA_UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
    return choose(lane < (I)n, x, splat(rest));
}

/* Elements whose sum is made on its own before it joins the rest: in one long chain rounding errors gather. */
#define RUN (64 * LANES)

/* The row to prefetch while this one is at work, of which `left` are still to come: far enough ahead to hide the way to
 * memory, 8 KB and at least two rows (softmax has the next in hand already). At the end it is the row itself, which costs
 * next to nothing. */
FA_INLINE const char *row_ahead(const char *row, ptrdiff_t stride, ptrdiff_t bytes, ptrdiff_t left) {
    ptrdiff_t rows = 8192 / bytes + 2;
    return rows < left ? row + rows * stride : row;
}

FA_INLINE void prefetch_l2(const void *address) { __builtin_prefetch(address, 0, 2); }

/* How a large result is stored: around the cache, which saves reading the lines that are overwritten (copy 38 GB/s against
 * 23). That wants whole aligned vectors, so what a row leaves over at its end waits in `line` for the next row's beginning:
 * stored through the cache, rows of 128 ran at half the speed. */
typedef struct {
    V line;
    ptrdiff_t filled; /* lanes of `line` that wait */
} nontemporal_line;

/* Element i of `out` = VALUE(i, n) for the n elements from i on, a vector at a time, stored as `type`; `around` is NULL for
 * plain stores, and is meant for STORED alone. */
#define FA_MAP(out, type, count, around, VALUE)                                                                        \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        if ((type) == STORED && (around)) {                                                                            \
            R *place = (R *)(out);                                                                                     \
            i = (ptrdiff_t)(-(uintptr_t)place % FA_VECTOR_BYTES / sizeof(R));                                          \
            if (i > (count)) i = (count); /* the last run of a long row may be as short */                             \
            if (i) put_nontemporal(around, place - (around)->filled, VALUE(0, i), i);                                     \
            for (; i + LANES <= (count); i += LANES) store_nontemporal(place + i, VALUE(i, LANES));                           \
            (around)->filled = (count) - i;                                                                            \
            if (i < (count)) (around)->line = VALUE(i, (count) - i);                                                   \
        } else {                                                                                                       \
            const ptrdiff_t size = fa_size_of(type);                                                                   \
            for (; i + LANES <= (count); i += LANES) store_as((out) + i * size, type, VALUE(i, LANES));            \
            if (i < (count)) store_some_as((out) + i * size, type, VALUE(i, (count) - i), (count) - i);            \
        }                                                                                                              \
    } while (0)

/* Write the waiting elements and `more` behind them to `at`: a whole vector around the cache, a part of one through it.
 * They are joined in registers: through memory the load would wait until all stores before it have left the core. */
FA_INLINE void put_nontemporal(nontemporal_line *around, R *at, V next, ptrdiff_t more) {
    ptrdiff_t count = around->filled + more;
    V line = around->filled ? join_lanes(around->line, next, (int)around->filled) : next;
    if (count == LANES) store_nontemporal(at, line);
    else store_part(at, line, (int)count);
    around->filled = 0;
}

/* After a row that ends at `end`: its last elements wait only if the next row begins there. */
FA_INLINE void end_nontemporal_row(nontemporal_line *around, R *end, int next_follows) {
    if (around->filled && !next_follows) put_nontemporal(around, end - around->filled, (V){0}, 0);
}

/* Whether elements of that type lie side by side, each where such an element may begin. */
FA_INLINE int are_side_by_side(const void *first, ptrdiff_t row, ptrdiff_t element, fa_type type) {
    ptrdiff_t size = fa_size_of(type);
    return element == size && ((uintptr_t)first | (uintptr_t)row) % (size_t)size == 0;
}

/* Whether rows can be used as they lie. */
FA_INLINE int is_contiguous(const void *first, ptrdiff_t row, ptrdiff_t element) {
    return are_side_by_side(first, row, element, STORED);
}

#endif
