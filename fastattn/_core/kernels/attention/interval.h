/* Which keys a query sees: one interval [begin, end). The kernels know causal, window and length in no other form. */
#ifndef FA_ATTENTION_INTERVAL_H
#define FA_ATTENTION_INTERVAL_H

#include "abi/table.h"
#include "simd/common.h"

typedef struct {
    ptrdiff_t begin, end;
} fa_interval;

/* Keys of `query` within those of the item; end >= begin always. */
static inline fa_interval fa_keys_of(const fa_attention_item *item, ptrdiff_t query) {
    fa_interval keys;
    keys.begin = fa_clamp(query + item->begin_offset, item->key_begin, item->key_end);
    keys.end = fa_clamp(query + item->end_offset, keys.begin, item->key_end);
    return keys;
}

#endif
