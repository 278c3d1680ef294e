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
#define PACKED_RUN(l) 256 /* units of a panel that are in L1 at a time: 32 KB */
#define PACKED_PANEL_REALS(l) 0

FA_INLINE ptrdiff_t tile_count(ptrdiff_t rows) { return (rows + PACKED_ROWS - 1) / PACKED_ROWS; }
FA_INLINE ptrdiff_t tile_begin(ptrdiff_t rows, ptrdiff_t tile) { return fa_clamp(tile * PACKED_ROWS, 0, rows); }

FA_INLINE ptrdiff_t panels_beside(fa_type type, ptrdiff_t rows, ptrdiff_t left) { return 1; }

/* A run of a panel. */
typedef struct {
    const char *first;
    ptrdiff_t units;
} panel_run;

FA_INLINE panel_run run_at(const panels *w, ptrdiff_t panel, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                           ptrdiff_t rows, R *memory) {
    return (panel_run){w->first + panel * w->next + unit * w->unit, units};
}

/* sums[2][rows][LANES] (+)= those of a tile, whose rows of x begin at x. Sums of rows that do not fill the registers go
 * through memory of their size. */
FA_INLINE void sum_tile(const panel_run *run, const R *x, ptrdiff_t x_stride, ptrdiff_t rows, R *sums, int more) {
    R whole[4 * AMX_TILE_REALS] __attribute__((aligned(64)));
    const ptrdiff_t padded = PADDED(rows), vector = FA_VECTOR_BYTES, row = x_stride * (ptrdiff_t)sizeof(R);
    R *to = rows == padded ? sums : whole;
    const amx_operand from = {(char *)x, row, vector, 16 * row};
    const amx_operand lanes = {(char *)run->first, 2 * vector, 32 * vector, vector};
    const amx_operand results = PACKED(to, 1, padded / 16);
    for (int j = 0; more && to != sums && j < 2; j++)
        memcpy(whole + j * padded * LANES, sums + j * rows * LANES, (size_t)(rows * vector));
    multiply_swapped(&from, padded / 16, &lanes, (run->units + 15) / 16, &results, more);
    for (int j = 0; to != sums && j < 2; j++)
        memcpy(sums + j * rows * LANES, whole + j * padded * LANES, (size_t)(rows * vector));
}

/* The same for all tiles of so many rows: [tile][2][rows of the tile][LANES]. */
FA_INLINE void sum_tiles(const panel_run *run, const R *x, ptrdiff_t x_stride, ptrdiff_t rows, R *sums, int more) {
    for (ptrdiff_t row = 0; row < rows; row += PACKED_ROWS)
        sum_tile(run, x + row * x_stride, x_stride, fa_clamp(rows - row, 0, PACKED_ROWS), sums + row * PANEL, more);
}

#endif
