/* The form of a packed weight: what linear/packed.h reads. */
#ifndef FA_ABI_PANELS_H
#define FA_ABI_PANELS_H

#include <stddef.h>

/* A panel holds `lanes` rows of a weight, unit by unit: [units][lanes][group] elements, padded with zeros. If run_units
 * is not 0, the sums of each run of that many units follow: [runs][lanes] 32-bit integers. A gated panel holds half as
 * many rows of the gate, then the same rows of the weight. */
typedef struct {
    ptrdiff_t rows, inputs;   /* of the weight, and of its gate */
    ptrdiff_t element, group; /* bytes of an element; elements of a unit */
    ptrdiff_t lanes, units, run_units;
    int gated;
} fa_panels;

/* A weight as an array holds it; strides in bytes. */
typedef struct {
    char *first;
    ptrdiff_t row, element;
} fa_matrix;

static inline ptrdiff_t fa_panel_rows(const fa_panels *form) { return form->gated ? form->lanes / 2 : form->lanes; }
static inline ptrdiff_t fa_panel_runs(const fa_panels *form) {
    if (!form->run_units) return 0;
    return form->units ? (form->units + form->run_units - 1) / form->run_units : 1; /* of no inputs: a sum of nothing */
}
static inline ptrdiff_t fa_panel_bytes(const fa_panels *form) {
    return (form->units * form->group * form->element + fa_panel_runs(form) * 4) * form->lanes;
}

/* Fill a panel from the weight and, if it is gated, its gate, or write it back to them. */
void fa_pack_panel(const fa_panels *form, ptrdiff_t panel, fa_matrix weight, fa_matrix gate, char *to);
void fa_unpack_panel(const fa_panels *form, ptrdiff_t panel, char *from, fa_matrix weight, fa_matrix gate);

#endif
