/* Addresses of keys and values: consecutive rows, or rows in pages. */
#ifndef FA_ATTENTION_PAGES_H
#define FA_ATTENTION_PAGES_H

#include "abi/table.h"

/* Addresses of `count` rows from key `first` on. `data` is the item's pointer to these rows or to their scales. */
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

/* Whether these rows are consecutive. */
static inline int fa_in_a_row(const fa_attention *a, const fa_attention_item *item, ptrdiff_t first, ptrdiff_t count) {
    return !item->pages || first % a->page_rows + count <= a->page_rows;
}

#endif
