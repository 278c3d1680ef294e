/* Partial vectors, at the end of a row. */
#ifndef FA_STORAGE_PARTIAL_H
#define FA_STORAGE_PARTIAL_H

#include "storage/elements.h"

/* The first n elements of a vector; n == LANES if a whole vector is known to be there. */
FA_INLINE V load_some(const R *p, ptrdiff_t n) { return n == LANES ? load(p) : load_part(p, (int)n); }
FA_INLINE void store_some(R *p, V x, ptrdiff_t n) {
    if (n == LANES) store(p, x);
    else store_part(p, x, (int)n);
}

/* The same for any type. A partial vector of narrower elements is copied through memory, so that nothing beyond it is
 * touched. */
FA_INLINE V load_part_as(const char *p, fa_type type, ptrdiff_t n) {
    if (type == STORED) return load_part((const R *)p, (int)n);
    char part[LANES * sizeof(R)] = {0};
    if (fa_size_of(type) == 2) read_halves(part, p, (int)n);
    else memcpy(part, p, (size_t)(n * fa_size_of(type)));
    return load_as(part, type);
}
FA_INLINE V load_some_as(const char *p, fa_type type, ptrdiff_t n) {
    return n == LANES ? load_as(p, type) : load_part_as(p, type, n);
}
FA_INLINE void store_some_as(char *p, fa_type type, V x, ptrdiff_t n) {
    if (type == STORED) store_some((R *)p, x, n);
    else if (n == LANES) store_as(p, type, x);
    else {
        char part[LANES * sizeof(R)];
        store_as(part, type, x);
        if (fa_size_of(type) == 2) copy_halves(p, part, (int)n);
        else memcpy(p, part, (size_t)(n * fa_size_of(type)));
    }
}

/* The elements of as many whole vectors as hold `size` elements. */
FA_INLINE ptrdiff_t whole_vectors(ptrdiff_t size) { return (size + LANES - 1) / LANES * LANES; }

/* The first n lanes of x, and `rest` in the others. */
FA_INLINE V keep_lanes(V x, int n, R rest) {
    VI lane;
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) lane[i] = i;
    return choose(lane < (I)n, x, splat(rest));
}

/* Whole vectors of a row, the last of them overlapping the one before, then zeros up to `width`. */
FA_INLINE void widen_row(R *to, ptrdiff_t width, const char *from, ptrdiff_t size, const fa_type type) {
    const ptrdiff_t rest = size % LANES, last = size - LANES;
    if (last < 0) {
        store_some(to, load_some_as(from, type, size), width < LANES ? width : LANES);
        return;
    }
    if (rest) store(to + width - LANES, (V){0});
    for (ptrdiff_t d = 0; d <= last; d += LANES) store(to + d, load_as(from + d * fa_size_of(type), type));
    if (rest) store(to + last, load_as(from + last * fa_size_of(type), type));
}

/* to[t] = elements of row t, for t < count, `size` of them, `step` bytes apart, and zeros up to `width`, which is less
 * than a vector more. */
FA_NOINLINE void widen_rows(R *to, ptrdiff_t width, const char *const *from, fa_type type, ptrdiff_t step,
                            ptrdiff_t count, ptrdiff_t size) {
    ptrdiff_t t = 0;
#define WIDEN(TYPE)                                                                                                    \
    for (; t < count; t++) widen_row(to + t * width, width, from[t], size, TYPE)
    if (step == fa_size_of(type)) FA_FOR_STORED(type, WIDEN);
#undef WIDEN
    for (; t < count; t++)
        for (ptrdiff_t d = 0; d < width; d++) to[t * width + d] = d < size ? read_element(from[t] + d * step, type) : 0;
}

#endif
