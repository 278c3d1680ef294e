/* Where elements lie. */
#ifndef FA_STORAGE_LAYOUT_H
#define FA_STORAGE_LAYOUT_H

#include "instance.h"

/* Whether elements of that type lie side by side, each where such an element may begin. */
FA_INLINE int are_side_by_side(const void *first, ptrdiff_t row, ptrdiff_t element, fa_type type) {
    ptrdiff_t size = fa_size_of(type);
    return element == size && ((uintptr_t)first | (uintptr_t)row) % (size_t)size == 0;
}

/* Whether rows can be used as they lie. */
FA_INLINE int is_contiguous(const void *first, ptrdiff_t row, ptrdiff_t element) {
    return are_side_by_side(first, row, element, STORED);
}

#endif
