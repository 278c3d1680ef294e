/* A packed weight's panels, as the kernels read them. See linear/packed.h. */
#ifndef FA_LINEAR_PANELS_H
#define FA_LINEAR_PANELS_H

#include "linear/products.h"

typedef struct {
    const fa_linear *l;
    const char *first;
    ptrdiff_t next; /* bytes from a panel to the next one */
    ptrdiff_t unit; /* bytes from a unit to the next one: two vectors of lanes */
} panels;

/* Rows of x as units, `row` bytes apart. If tile registers read them in place, `rest` holds what follows the last whole
 * tile: one vector for each row, filled up with zeros. */
typedef struct {
    const char *first;
    ptrdiff_t row;
    const R *rest; /* NULL: there is none */
} packed_x;

FA_INLINE panels panels_of(const fa_linear *l) {
    const ptrdiff_t element = PANEL * fa_size_of(l->weight_type);
    return (panels){l, l->weight, l->weight_row_stride, element * UNIT};
}

/* int8: the totals of the weights of a run, which follow a panel's units. */
FA_INLINE const I *panel_totals(const panels *w, ptrdiff_t panel, ptrdiff_t run) {
    const ptrdiff_t units = PADDED(UNITS(w->l->in_features));
    return (const I *)(w->first + panel * w->next + units * w->unit) + run * PANEL;
}

#endif
