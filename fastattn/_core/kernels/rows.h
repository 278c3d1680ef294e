/* What the row operations share: rows read and written at any stride, and one pass over a row in whole vectors. */

/* n vector elements of a row; n == LANES where a whole vector is known to be there. */
FA_INLINE V OP(load_some)(const R *p, ptrdiff_t n) { return n == LANES ? OP(load)(p) : OP(load_part)(p, (int)n); }

/* The first n lanes of x, and `rest` in the others. */
FA_INLINE V OP(keep_lanes)(V x, int n, R rest) {
    VI lane;
    FA_UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
    return OP(select)(lane < (I)n, x, OP(splat)(rest));
}

/* Elements whose sum is made on its own before it joins the rest: in one long chain rounding errors gather. */
#define RUN (64 * LANES)

/* out[i] = VALUE(i, n) for the n elements from i on, a vector at a time. Streaming stores bypass the cache: they save
 * reading the lines that are overwritten (copy 38 GB/s against 23) and want aligned addresses, hence the head. */
#define FA_MAP(out, count, streaming, VALUE)                                                                           \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        if (streaming) {                                                                                               \
            ptrdiff_t head = (ptrdiff_t)(-(uintptr_t)(out) % FA_VECTOR_BYTES / sizeof(R));                             \
            if (head > (count)) head = (count);                                                                        \
            if (head) OP(store_part)((out), VALUE(0, head), (int)head);                                                \
            for (i = head; i + LANES <= (count); i += LANES) OP(stream)((out) + i, VALUE(i, LANES));                   \
        } else {                                                                                                       \
            for (; i + LANES <= (count); i += LANES) OP(store)((out) + i, VALUE(i, LANES));                            \
        }                                                                                                              \
        if (i < (count)) OP(store_part)((out) + i, VALUE(i, (count) - i), (int)((count) - i));                         \
    } while (0)

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
