/* The keys that a query sees: one interval [begin, end). Causal masks, windows and lengths all reach the kernels in
 * this form. */
#ifndef FA_ATTENTION_INTERVAL_H
#define FA_ATTENTION_INTERVAL_H

#include "abi/table.h"
#include "simd/common.h"

typedef struct {
    ptrdiff_t begin, end;
} fa_interval;

/* The keys of `query` among those of the item; end >= begin always. */
static inline fa_interval fa_keys_of(const fa_attention_item *item, ptrdiff_t query) {
    fa_interval keys;
    keys.begin = fa_clamp(query + item->begin_offset, item->key_begin, item->key_end);
    keys.end = fa_clamp(query + item->end_offset, keys.begin, item->key_end);
    return keys;
}

#endif
