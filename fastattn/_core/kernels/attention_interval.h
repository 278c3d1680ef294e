/* Which keys a query sees: one interval [begin, end). The kernels know causal, window and length in no other form. */
#ifndef FA_ATTENTION_INTERVAL_H
#define FA_ATTENTION_INTERVAL_H

#include "table.h"

typedef struct { ptrdiff_t begin, end; } fa_interval;

static inline ptrdiff_t fa_clamp(ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
    return x < low ? low : x > high ? high : x;
}

/* Keys of `query` within [low, high); end >= begin always. */
static inline fa_interval fa_keys_of(const fa_attention *a, ptrdiff_t query, ptrdiff_t low, ptrdiff_t high) {
    ptrdiff_t position = query + a->q_offset;
    fa_interval keys;
    keys.begin = fa_clamp(position - a->left, low, high);
    keys.end = fa_clamp(position + a->right + 1, keys.begin, high);
    return keys;
}

#endif
