/* Which keys a query sees: one interval [begin, end). The kernels know causal, window and length in no other form. */
#ifndef FA_ATTENTION_INTERVAL_H
#define FA_ATTENTION_INTERVAL_H

#include "table.h"

typedef struct { ptrdiff_t begin, end; } fa_interval;

/* What some elements of a block of the mask do. */
enum { BLOCK_EXCLUDES = 1, BLOCK_ADMITS = 2, BLOCK_BIASES = 4 };

static inline ptrdiff_t fa_clamp(ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
    return x < low ? low : x > high ? high : x;
}

/* Keys of `query` within those of the item; end >= begin always. */
static inline fa_interval fa_keys_of(const fa_attention *a, const fa_attention_item *item, ptrdiff_t query) {
    ptrdiff_t position = query + item->q_offset;
    fa_interval keys;
    keys.begin = fa_clamp(position - a->left, item->key_begin, item->key_end);
    keys.end = fa_clamp(position + a->right + 1, keys.begin, item->key_end);
    return keys;
}

#endif
