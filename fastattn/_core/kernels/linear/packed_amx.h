/* The sums of panels in tile registers (AMX): 16 rows of x times 16 units of a panel, as they lie. */
#ifndef FA_LINEAR_PACKED_AMX_H
#define FA_LINEAR_PACKED_AMX_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET amx
#endif
#include "linear/panels.h"
#include "products/amx.h"

#define PACKED_ROWS 32 /* of x in a tile: two tile registers by the two vectors of a panel */
#define PACKED_MOST_ROWS 512
#define PACKED_PREFERRED_ROWS 128 /* a weight of 4096 inputs comes from L3 for each item */
#define PACKED_SIDE 4             /* see panels_beside */
#define PACKED_RUN(l) 1024        /* units of a panel that are in L2 at a time: 128 KB */
#define PACKED_PANEL_REALS(l) 0

FA_INLINE ptrdiff_t tile_count(ptrdiff_t rows) { return (rows + PACKED_ROWS - 1) / PACKED_ROWS; }
FA_INLINE ptrdiff_t tile_begin(ptrdiff_t rows, ptrdiff_t tile) { return fa_clamp(tile * PACKED_ROWS, 0, rows); }

/* How many of `left` rows to take at a time: a tile, whose results are written while their sums are in L1, and which
 * leaves at least the 16 rows of a register, if there are any. */
FA_INLINE ptrdiff_t packed_group(ptrdiff_t left) {
    return left > PACKED_ROWS && left < PACKED_ROWS + 16 ? left - 16 : fa_clamp(left, 0, PACKED_ROWS);
}

#if !FA_QUANTISED
/* What is behind the last whole tile of each row of x. */
FA_NOINLINE void gather_rest(const fa_linear *l, const fa_linear_item *item, R *to) {
    const ptrdiff_t rest = l->in_features % (16 * UNIT), from = 2 * (l->in_features - rest);
    for (ptrdiff_t i = 0; i < item->rows; i++) copy_units(item->x[i] + from, rest, to + i * LANES, LANES, LANES);
}
#else
FA_INLINE void gather_rest(const fa_linear *l, const fa_linear_item *item, R *to) {} /* never read in place */
#endif

/* How many of `left` panels each tile of rows takes, one after the other. With several, x comes from L2 or from beyond
 * it less often, and a row of the result is written four lines at a time: 1.26 times as fast for 512x3072->768. */
FA_INLINE ptrdiff_t panels_beside(fa_type type, ptrdiff_t rows, ptrdiff_t left) {
    return fa_clamp(left, 1, rows > PACKED_ROWS ? PACKED_SIDE : 1);
}

/* Whether equally spaced rows of x are read in place: by up to four panels, which read x four times at most, 1.6 to 3
 * times as fast as copied for up to 16 outputs, 1.1 times for 256x769->100. Where they come more often they take
 * longer, as they do not begin with cache lines: 1.2 times for 256x768->768. */
FA_INLINE int fits_in_place(const fa_linear *l, const fa_linear_item *item, ptrdiff_t row) {
    return l->features <= PACKED_SIDE * (l->gated ? LANES : PANEL);
}

/* A run of panels, and the next one, of which each tile of rows prefetches `share` lines for 16 units. */
typedef struct {
    const char *first, *ahead;
    ptrdiff_t next; /* bytes from a panel to the next one */
    ptrdiff_t units, panels, share;
    int last, narrow; /* of the inputs; whether the second vector of the last panel is empty */
} panel_run;

FA_INLINE panel_run run_at(const panels *w, ptrdiff_t panel, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                           ptrdiff_t rows, R *memory) {
    const char *first = w->first + panel * w->next, *from = first + unit * w->unit;
    const int last = unit + units >= UNITS(w->l->in_features);
    const ptrdiff_t tiles = tile_count(rows), lines = 16 * w->unit / CACHE_LINE;
    const ptrdiff_t left = w->l->features - (panel + count - 1) * PANEL; /* from the last panel on */
    return (panel_run){.first = from,
                       .ahead = last ? first + count * w->next : from + units * w->unit,
                       .next = w->next,
                       .units = units,
                       .panels = count,
                       .share = (lines + tiles - 1) / tiles,
                       .last = last,
                       .narrow = !FA_QUANTISED && !w->l->gated && left <= LANES};
}

/* sums[NL][NR rows] (+)= those of a tile and a panel: `count` steps along the sum and one of `rest`, if there is any.
 * Each step prefetches `lines` lines from `ahead` on. */
FA_INLINE void multiply_tile(amx_operand rows, amx_operand lanes, ptrdiff_t count, const amx_operand *rest,
                             amx_operand sums, int more, const char *ahead, ptrdiff_t lines, const int NR,
                             const int NL) {
    const int swapped = 1;
    if (more) {
        FOUR_TILES(LOAD);
    } else {
        FOUR_TILES(ZERO);
    }
    for (; count > 0; count--, rows.first += rows.along, lanes.first += lanes.along) {
        multiply_step(rows, lanes, NR, NL, swapped);
        for (ptrdiff_t i = 0; i < lines; i++, ahead += CACHE_LINE) __builtin_prefetch(ahead, 0, 2);
    }
    if (rest->first) multiply_step(*rest, lanes, NR, NL, swapped);
    FOUR_TILES(STORE);
}

#define FA_MULTIPLY_PANEL(NL)                                                                                          \
    FA_NOINLINE void multiply_panel_##NL(const amx_operand *from, ptrdiff_t row_tiles, const amx_operand *panel,       \
                                         ptrdiff_t count, const amx_operand *rest, const amx_operand *to, int more,    \
                                         const char *ahead, ptrdiff_t lines) {                                         \
        const amx_operand rows = {from->first, from->row, from->along, from->across};                                  \
        const amx_operand lanes = {panel->first, panel->row, panel->along, panel->across};                             \
        const amx_operand sums = {to->first, to->row, to->along, to->across};                                          \
        tile_barrier();                                                                                                \
        if (row_tiles > 1) multiply_tile(rows, lanes, count, rest, sums, more, ahead, lines, 2, NL);                   \
        else multiply_tile(rows, lanes, count, rest, sums, more, ahead, lines, 1, NL);                                 \
        tile_barrier();                                                                                                \
    }
FA_MULTIPLY_PANEL(1)
FA_MULTIPLY_PANEL(2)

/* sums[panels][2][rows][LANES] (+)= those of a tile, whose rows of x begin at x. If it does not fill its two registers
 * of rows, they overlap. */
FA_INLINE void sum_tiles(panel_run *run, const packed_x *x, ptrdiff_t rows, R *sums, int more) {
    const ptrdiff_t vector = FA_VECTOR_BYTES, second = rows - 16, row_tiles = rows > 16 ? 2 : 1;
    const int has_rest = run->last && x->rest;
    const ptrdiff_t count = (run->units + 15) / 16 - has_rest;
    const amx_operand from = {(char *)x->first, x->row, vector, second * x->row};
    const amx_operand rest = {has_rest ? (char *)x->rest : NULL, vector, 0, second * vector};
    for (ptrdiff_t p = 0; p < run->panels; p++, sums += rows * PANEL) {
        const amx_operand lanes = {(char *)run->first + p * run->next, 2 * vector, 32 * vector, vector};
        const amx_operand to = {(char *)sums, vector, second * vector, rows * vector};
        const char *ahead = run->ahead + p * run->next;
        if (!FA_QUANTISED && run->narrow && p == run->panels - 1)
            multiply_panel_1(&from, row_tiles, &lanes, count, &rest, &to, more, ahead, run->share);
        else multiply_panel_2(&from, row_tiles, &lanes, count, &rest, &to, more, ahead, run->share);
    }
    run->ahead += count * run->share * CACHE_LINE;
}

#endif
