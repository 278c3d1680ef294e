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

/* The same for any type. A partial vector of 16-bit elements is copied through memory, so that nothing beyond it is
 * touched. */
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

/* The first n lanes of x, and `rest` in the others. */
FA_INLINE V keep_lanes(V x, int n, R rest) {
    VI lane;
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) lane[i] = i;
    return choose(lane < (I)n, x, splat(rest));
}

#endif
