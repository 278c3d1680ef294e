/* Which keys a query sees: one interval [begin, end). The kernels know causal, window and length in no other form. */
#ifndef FA_ATTENTION_INTERVAL_H
#define FA_ATTENTION_INTERVAL_H

#include "abi/table.h"
#include "simd/common.h"

typedef struct { ptrdiff_t begin, end; } fa_interval;

/* What some elements of a block of the mask do. */
enum { BLOCK_EXCLUDES = 1, BLOCK_ADMITS = 2, BLOCK_BIASES = 4 };

/* Keys of `query` within those of the item; end >= begin always. */
static inline fa_interval fa_keys_of(const fa_attention_item *item, ptrdiff_t query) {
    fa_interval keys;
    keys.begin = fa_clamp(query + item->begin_offset, item->key_begin, item->key_end);
    keys.end = fa_clamp(query + item->end_offset, keys.begin, item->key_end);
    return keys;
}

/* Addresses of `count` rows from key `first` on; `data` is what the item says of `rows`, or of their scales. */
static inline void fa_addresses(const fa_attention *a, const fa_attention_item *item, const char *data, ptrdiff_t row,
                                ptrdiff_t page, ptrdiff_t first, ptrdiff_t count, const char **to) {
    if (!item->pages) {
        for (ptrdiff_t i = 0; i < count; i++) to[i] = data + (first + i) * row;
        return;
    }
    for (ptrdiff_t i = 0, in_page = first % a->page_rows, n = first / a->page_rows; i < count; in_page = 0, n++)
        for (const char *from = data + item->pages[n] * page; in_page < a->page_rows && i < count; in_page++, i++)
            to[i] = from + in_page * row;
}

/* Whether these rows lie one behind the other. */
static inline int fa_in_a_row(const fa_attention *a, const fa_attention_item *item, ptrdiff_t first, ptrdiff_t count) {
    return !item->pages || first % a->page_rows + count <= a->page_rows;
}

#endif
