/* Moves rows of a weight to panels and back: elements of 1, 2, 4 or 8 bytes, whatever their type. */

#include "abi/panels.h"

#include <stdint.h>
#include <string.h>

enum { BLOCK = 64 }; /* units: all lanes of a block are filled while it is in L1 */

/* The row that belongs in a lane of a panel; NULL for padding. */
static char *row_of_lane(const fa_panels *form, ptrdiff_t panel, ptrdiff_t lane, fa_matrix weight, fa_matrix gate) {
    const ptrdiff_t rows = fa_panel_rows(form), row = panel * rows + lane % rows;
    const fa_matrix from = form->gated && lane < rows ? gate : weight;
    return row < form->rows ? from.first + row * from.row : NULL;
}

/* Copies elements [first, last) of a row to or from its lane; `lane` points at the first element of that lane. */
#define COPY(TYPE)                                                                                                     \
    static void copy_##TYPE(char *row, ptrdiff_t stride, char *lane, ptrdiff_t step, ptrdiff_t group, ptrdiff_t first, \
                            ptrdiff_t last, int back) {                                                                \
        for (ptrdiff_t k = first; k < last; k++) {                                                                     \
            char *at = lane + k / group * step + k % group * (ptrdiff_t)sizeof(TYPE), *element = row + k * stride;     \
            memcpy(back ? element : at, back ? at : element, sizeof(TYPE));                                            \
        }                                                                                                              \
    }
COPY(uint8_t)
COPY(uint16_t)
COPY(uint32_t)
COPY(uint64_t)

static void copy_row(const fa_panels *form, char *row, ptrdiff_t stride, char *lane, ptrdiff_t first, ptrdiff_t last,
                     int back) {
    const ptrdiff_t step = form->lanes * form->group * form->element;
#define WITH(TYPE, GROUP)                                                                                              \
    if (form->element == sizeof(TYPE) && form->group == (GROUP)) {                                                     \
        if (back) copy_##TYPE(row, stride, lane, step, GROUP, first, last, 1);                                         \
        else copy_##TYPE(row, stride, lane, step, GROUP, first, last, 0);                                              \
    }
    WITH(uint8_t, 1)
    WITH(uint8_t, 4)
    WITH(uint16_t, 1)
    WITH(uint16_t, 2)
    WITH(uint32_t, 1)
    WITH(uint64_t, 1)
}

static void copy_panel(const fa_panels *form, ptrdiff_t panel, char *data, fa_matrix weight, fa_matrix gate, int back) {
    for (ptrdiff_t first = 0; first < form->inputs; first += BLOCK * form->group) {
        const ptrdiff_t end = first + BLOCK * form->group, last = end < form->inputs ? end : form->inputs;
        for (ptrdiff_t lane = 0; lane < form->lanes; lane++) {
            char *row = row_of_lane(form, panel, lane, weight, gate);
            const ptrdiff_t stride = form->gated && lane < form->lanes / 2 ? gate.element : weight.element;
            if (row) copy_row(form, row, stride, data + lane * form->group * form->element, first, last, back);
        }
    }
}

static void sum_runs(const fa_panels *form, const int8_t *units, int32_t *totals) {
    for (ptrdiff_t run = 0; run < fa_panel_runs(form); run++)
        for (ptrdiff_t lane = 0; lane < form->lanes; lane++) {
            const ptrdiff_t end = (run + 1) * form->run_units;
            int32_t total = 0;
            for (ptrdiff_t u = run * form->run_units; u < (end < form->units ? end : form->units); u++)
                for (ptrdiff_t i = 0; i < form->group; i++) total += units[(u * form->lanes + lane) * form->group + i];
            totals[run * form->lanes + lane] = total;
        }
}

void fa_pack_panel(const fa_panels *form, ptrdiff_t panel, fa_matrix weight, fa_matrix gate, char *to) {
    const ptrdiff_t bytes = fa_panel_bytes(form), rows = fa_panel_rows(form);
    char *totals = to + form->units * form->group * form->element * form->lanes;
    if (form->units * form->group > form->inputs || (panel + 1) * rows > form->rows) memset(to, 0, (size_t)bytes);
    copy_panel(form, panel, to, weight, gate, 0);
    sum_runs(form, (const int8_t *)to, (int32_t *)totals);
}

void fa_unpack_panel(const fa_panels *form, ptrdiff_t panel, char *from, fa_matrix weight, fa_matrix gate) {
    copy_panel(form, panel, from, weight, gate, 1);
}
