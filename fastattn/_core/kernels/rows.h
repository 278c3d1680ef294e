/* What the row operations share: rows read and written at any stride, and one pass over a row in whole vectors. */

/* n vector elements of a row; n == LANES where a whole vector is known to be there. */
FA_INLINE V OP(load_some)(const R *p, ptrdiff_t n) { return n == LANES ? OP(load)(p) : OP(load_part)(p, (int)n); }
FA_INLINE void OP(store_some)(R *p, V x, ptrdiff_t n) {
    if (n == LANES) OP(store)(p, x);
    else OP(store_part)(p, x, (int)n);
}

/* The first n lanes of x, and `rest` in the others. */
FA_INLINE V OP(keep_lanes)(V x, int n, R rest) {
    VI lane;
    FA_UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
    return OP(select)(lane < (I)n, x, OP(splat)(rest));
}

/* Elements whose sum is made on its own before it joins the rest: in one long chain rounding errors gather. */
#define RUN (64 * LANES)

/* The row to prefetch while this one is at work, of which `left` are still to come: far enough ahead to hide the way to
 * memory, 8 KB and at least two rows (softmax has the next in hand already). At the end it is the row itself, which costs
 * next to nothing. */
FA_INLINE const R *OP(row_ahead)(const R *row, ptrdiff_t stride, ptrdiff_t length, ptrdiff_t left) {
    ptrdiff_t rows = 8192 / (length * (ptrdiff_t)sizeof(R)) + 2;
    return rows < left ? (const R *)((const char *)row + rows * stride) : row;
}

FA_INLINE void OP(prefetch)(const R *address) { __builtin_prefetch(address, 0, 2); }

/* How a large result is stored: around the cache, which saves reading the lines that are overwritten (copy 38 GB/s against
 * 23). That wants whole aligned vectors, so what a row leaves over at its end waits in `line` for the next row's beginning:
 * stored through the cache, rows of 128 ran at half the speed. */
typedef struct {
    V line;
    ptrdiff_t filled; /* lanes of `line` that wait */
} OP(around);

/* out[i] = VALUE(i, n) for the n elements from i on, a vector at a time; `around` is NULL for plain stores. */
#define FA_MAP(out, count, around, VALUE)                                                                              \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        if (around) {                                                                                                  \
            i = (ptrdiff_t)(-(uintptr_t)(out) % FA_VECTOR_BYTES / sizeof(R));                                          \
            if (i) OP(put_line)(around, (out) - (around)->filled, VALUE(0, i), i);                                     \
            for (; i + LANES <= (count); i += LANES) OP(stream)((out) + i, VALUE(i, LANES));                           \
            (around)->filled = (count) - i;                                                                            \
            if (i < (count)) (around)->line = VALUE(i, (count) - i);                                                   \
        } else {                                                                                                       \
            for (; i + LANES <= (count); i += LANES) OP(store)((out) + i, VALUE(i, LANES));                            \
            if (i < (count)) OP(store_part)((out) + i, VALUE(i, (count) - i), (int)((count) - i));                     \
        }                                                                                                              \
    } while (0)

/* Write the waiting elements and `more` behind them to `at`: a whole vector around the cache, a part of one through it.
 * They are joined in registers: through memory the load would wait until all stores before it have left the core. */
FA_INLINE void OP(put_line)(OP(around) *around, R *at, V next, ptrdiff_t more) {
    ptrdiff_t count = around->filled + more;
    V line = around->filled ? OP(join)(around->line, next, (int)around->filled) : next;
    if (count == LANES) OP(stream)(at, line);
    else OP(store_part)(at, line, (int)count);
    around->filled = 0;
}

/* After a row that ends at `end`: its last elements wait only if the next row begins there. */
FA_INLINE void OP(end_row)(OP(around) *around, R *end, int next_follows) {
    if (around->filled && !next_follows) OP(put_line)(around, end - around->filled, (V){0}, 0);
}

/* Whether rows can be used as they lie. */
FA_INLINE int OP(plain)(const void *first, ptrdiff_t row, ptrdiff_t element) {
    return element == (ptrdiff_t)sizeof(R) && ((uintptr_t)first | (uintptr_t)row) % sizeof(R) == 0;
}

static void OP(gather)(R *to, const char *from, ptrdiff_t element, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) memcpy(to + i, from + i * element, sizeof *to);
}

static void OP(scatter)(char *to, ptrdiff_t element, const R *from, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) memcpy(to + i * element, from + i, sizeof *from);
}
