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
#define PACKED_GROUP PACKED_ROWS  /* rows whose results are written while their sums are in L1 */
#define PACKED_RUN(l) 1024        /* units of a panel that are in L2 at a time: 128 KB */
#define PACKED_PANEL_REALS(l) 0

FA_INLINE ptrdiff_t tile_count(ptrdiff_t rows) { return (rows + PACKED_ROWS - 1) / PACKED_ROWS; }
FA_INLINE ptrdiff_t tile_begin(ptrdiff_t rows, ptrdiff_t tile) { return fa_clamp(tile * PACKED_ROWS, 0, rows); }

/* How many of `left` panels each tile of rows takes, one after the other. With several, x comes from L2 or from beyond
 * it less often, and a row of the result is written four lines at a time: 1.26 times as fast for 512x3072->768. */
FA_INLINE ptrdiff_t panels_beside(fa_type type, ptrdiff_t rows, ptrdiff_t left) {
    return fa_clamp(left, 1, rows > PACKED_ROWS ? PACKED_SIDE : 1);
}

/* A run of panels, and the next one, of which each tile of rows prefetches `share` lines for 16 units. */
typedef struct {
    const char *first, *ahead;
    ptrdiff_t next; /* bytes from a panel to the next one */
    ptrdiff_t units, panels, share;
} panel_run;

FA_INLINE panel_run run_at(const panels *w, ptrdiff_t panel, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                           ptrdiff_t rows, R *memory) {
    const char *first = w->first + panel * w->next, *from = first + unit * w->unit;
    const int last = unit + units >= UNITS(w->l->in_features);
    const ptrdiff_t tiles = tile_count(rows), lines = 16 * w->unit / CACHE_LINE;
    return (panel_run){.first = from,
                       .ahead = last ? first + count * w->next : from + units * w->unit,
                       .next = w->next,
                       .units = units,
                       .panels = count,
                       .share = (lines + tiles - 1) / tiles};
}

/* sums[2][rows][LANES] (+)= those of a tile and a panel. Sums of rows that do not fill the registers go through memory
 * of their size. */
FA_INLINE void sum_panel(const char *panel, ptrdiff_t count, const R *x, ptrdiff_t x_stride, ptrdiff_t rows, R *sums,
                         int more, const char *ahead, ptrdiff_t share) {
    R whole[4 * AMX_TILE_REALS] __attribute__((aligned(64)));
    const ptrdiff_t padded = PADDED(rows), vector = FA_VECTOR_BYTES, row = x_stride * (ptrdiff_t)sizeof(R);
    R *to = rows == padded ? sums : whole;
    const amx_operand from = {(char *)x, row, vector, 16 * row};
    const amx_operand lanes = {(char *)panel, 2 * vector, 32 * vector, vector};
    const amx_operand results = PACKED(to, 1, padded / 16);
    for (int j = 0; more && to != sums && j < 2; j++)
        memcpy(whole + j * padded * LANES, sums + j * rows * LANES, (size_t)(rows * vector));
    multiply_ahead(&from, padded / 16, &lanes, count, &results, more, ahead, share);
    for (int j = 0; to != sums && j < 2; j++)
        memcpy(sums + j * rows * LANES, whole + j * padded * LANES, (size_t)(rows * vector));
}

/* sums[panels][2][rows][LANES] (+)= those of a tile, whose rows of x begin at x. */
FA_INLINE void sum_tiles(panel_run *run, const R *x, ptrdiff_t x_stride, ptrdiff_t rows, R *sums, int more) {
    const ptrdiff_t count = (run->units + 15) / 16;
    for (ptrdiff_t p = 0; p < run->panels; p++)
        sum_panel(run->first + p * run->next, count, x, x_stride, rows, sums + p * rows * PANEL, more,
                  run->ahead + p * run->next, run->share);
    run->ahead += count * run->share * CACHE_LINE;
}

#endif
