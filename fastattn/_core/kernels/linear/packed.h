/* y = activation(x W' + bias) + residual for a packed weight W: outputs stand in the lanes.
 *
 * A packed weight consists of panels. A panel holds two vectors of outputs, unit by unit: [units][2][LANES]. Units of x
 * are broadcast as they lie, so neither x nor the result is transposed, and a panel is read from end to end. The sums
 * are the same chains over the same runs as those of the plain weight, hence the same bits.
 *
 * One row reads several panels side by side, at the speed of memory. More rows form tiles, whose sums fill the
 * registers; a run of a panel, some KB in L1, serves every tile of the item before the next run is read. */
#ifndef FA_LINEAR_PACKED_H
#define FA_LINEAR_PACKED_H

#include "linear/panels.h"
#include "linear/tile.h"
#include "storage/scratch.h"
#if FA_TILE_PRODUCTS
#include "linear/packed_amx.h"
#else
#include "linear/packed_broadcast.h"
#endif

typedef struct {
    R *x, *row; /* rows of x as units, [rows][x_stride]; scratch for one of them */
    ptrdiff_t x_stride;
    R *scale; /* of each row of x */
    I *zero;
    R *sums, *real; /* [tiles][panels][2][rows of a tile][LANES]; of integer sums, earlier runs as reals */
    R *panel;       /* a run of panels, widened */
} packed_memory;

static ptrdiff_t lay_out_packed(const fa_linear *l, packed_memory *memory, char *at) {
    const char *begin = at;
    const ptrdiff_t units = PADDED(UNITS(l->in_features)), rows = PADDED(l->item_rows);
    const ptrdiff_t sums = (rows + PACKED_ROWS) * 4 * PANEL;
    memory->x_stride = units + LANES; /* rows a multiple of 4 KB apart would share few lines of L1 */
    memory->x = take_scratch(&at, rows * memory->x_stride);
    memory->row = take_scratch(&at, FA_QUANTISED ? units + l->in_features + 3 * LANES : 0);
    memory->scale = take_scratch(&at, FA_QUANTISED ? rows : 0);
    memory->zero = (I *)take_scratch(&at, FA_QUANTISED ? rows : 0);
    memory->sums = take_scratch(&at, sums);
    memory->real = take_scratch(&at, FA_QUANTISED ? sums : 0);
    memory->panel = take_scratch(&at, PACKED_PANEL_REALS(l));
    return at - begin;
}

static ptrdiff_t packed_scratch(const fa_linear *l) {
    packed_memory memory;
    return lay_out_packed(l, &memory, NULL);
}

/* Whether rows of x can be read in place: whole units, equally spaced and, for more than four rows, not a multiple of
 * 4 KB apart, where they would share few lines of L1. */
static int rows_in_place(const fa_linear *l, const fa_linear_item *item, ptrdiff_t *stride) {
    const ptrdiff_t row = item->rows > 1 ? item->x[1] - item->x[0] : 0;
    *stride = row / (ptrdiff_t)sizeof(R);
    if (FA_QUANTISED || FA_TILE_PRODUCTS || !l->contiguous_x || l->in_features % UNIT || row % (ptrdiff_t)sizeof(R))
        return 0;
    if (FA_MULTIPLY_ADD && l->type != STORED) return 0;
    if (item->rows > 4 && row % 4096 == 0) return 0;
    for (ptrdiff_t i = 1; i < item->rows; i++)
        if (item->x[i] - item->x[i - 1] != row) return 0;
    return 1;
}

FA_NOINLINE void gather_packed(const fa_linear *l, const fa_linear_item *item, packed_memory *memory) {
    const ptrdiff_t units = PADDED(UNITS(l->in_features));
    const ptrdiff_t filled = FA_QUANTISED ? (units + LANES - 1) / LANES * LANES : units; /* bytes come in vectors */
    for (ptrdiff_t i = 0; i < item->rows; i++) {
        R *to = memory->x + i * memory->x_stride, *row = FA_QUANTISED ? memory->row : to;
        const R *from = gather_row(l, item->x[i], row, filled, memory->scale + i, memory->zero + i);
        if (from != to) memcpy(to, from, (size_t)units * sizeof(R));
    }
    if (PADDED(1) > 1)
        memset(memory->x + item->rows * memory->x_stride, 0,
               (size_t)((PADDED(item->rows) - item->rows) * memory->x_stride) * sizeof(R));
}

/* Whole sums of a run and of rows [row, end) as reals, added to those of earlier runs. */
static void add_run(const panels *w, packed_memory *memory, ptrdiff_t panel, ptrdiff_t count, ptrdiff_t run,
                    ptrdiff_t row, ptrdiff_t end) {
    ptrdiff_t at = row * count * PANEL;
    for (ptrdiff_t j = 0; j < 2 * count; j++) {
        const I *total = panel_totals(w, panel + j / 2, run) + j % 2 * LANES;
        for (ptrdiff_t i = row; i < end; i++, at += LANES)
            store(memory->real + at, row_as_real(load(memory->sums + at), total, memory->scale + i, memory->zero + i,
                                                 run ? memory->real + at : NULL));
    }
}

/* The sums of `count` panels from `panel` on, for all tiles: [tile][panel][2][rows][LANES]. */
FA_INLINE void sum_item(const panels *w, ptrdiff_t rows, packed_memory *memory, const R *x, ptrdiff_t x_stride,
                        ptrdiff_t panel, ptrdiff_t count) {
    const ptrdiff_t units = UNITS(w->l->in_features), tiles = tile_count(rows);
    ptrdiff_t u = 0;
    do { /* no inputs: sums of nothing, 0 */
        const panel_run run = run_at(w, panel, count, u, fa_clamp(units - u, 0, PACKED_RUN(w->l)), rows, memory->panel);
        const ptrdiff_t end = u + run.units;
        sum_tiles(&run, x + u, x_stride, rows, memory->sums, FA_QUANTISED ? u % RUN_OF_TOTALS > 0 : u > 0);
        if (FA_QUANTISED && (end == units || end % RUN_OF_TOTALS == 0))
            for (ptrdiff_t t = 0; t < tiles; t++)
                add_run(w, memory, panel, count, u / RUN_OF_TOTALS, tile_begin(rows, t), tile_begin(rows, t + 1));
        u = end;
    } while (u < units);
}

/* n gated outputs: activation(the gate's sums) times the weight's sums. */
static void put_gated(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t rows, V *gate,
                      ptrdiff_t feature, ptrdiff_t n) {
    const ptrdiff_t at = feature / LANES * PANEL;
    V *y = gate + rows;
    shift_sums(l, tile->from + row, rows, gate, at, feature, n);
    activate(gate, (int)rows, l->activation, l->type != STORED);
    shift_sums(l, tile->from + row, rows, y, at + LANES, l->features + feature, n);
    for (ptrdiff_t i = 0; i < rows; i++) y[i] *= gate[i];
    put_results(l, tile, row, rows, y, feature, n);
}

/* The results of a panel: two vectors of outputs, or one if it is gated. */
static void put_panel(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t rows, V *sums,
                      ptrdiff_t feature, ptrdiff_t left) {
    if (l->gated) {
        put_gated(l, tile, row, rows, sums, feature, fa_clamp(left, 0, LANES));
        return;
    }
    put_sums(l, tile, row, rows, sums, feature, fa_clamp(left, 0, LANES));
    if (left > LANES) put_sums(l, tile, row, rows, sums + rows, feature + LANES, fa_clamp(left - LANES, 0, LANES));
}

FA_NOINLINE void linear_by_panels(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    const panels w = panels_of(l);
    const ptrdiff_t rows = item->rows, tiles = tile_count(rows), outputs = l->gated ? LANES : PANEL;
    const ptrdiff_t end = item->first_feature + item->features, units = UNITS(l->in_features);
    const linear_tile all = {.rows = rows, .from = item->x, .residual = item->residual, .to = item->out};
    packed_memory memory;
    ptrdiff_t x_stride;
    const R *x = (const R *)item->x[0];
    lay_out_packed(l, &memory, scratch);
    if (!units || !rows_in_place(l, item, &x_stride)) {
        if (!item->same_rows) gather_packed(l, item, &memory);
        x = memory.x;
        x_stride = memory.x_stride;
    }
    configure_registers();
    for (ptrdiff_t f = item->first_feature, count; f < end; f += count * outputs) {
        count = panels_beside(l->weight_type, rows, (end - f + outputs - 1) / outputs);
        sum_item(&w, rows, &memory, x, x_stride, f / outputs, count);
        for (ptrdiff_t t = 0; t < tiles; t++)
            for (ptrdiff_t p = 0; p < count; p++) {
                const ptrdiff_t first = tile_begin(rows, t), n = tile_begin(rows, t + 1) - first;
                const ptrdiff_t at = (first * count + p * n) * 2 * LANES;
                put_panel(l, &all, first, n, (V *)((FA_QUANTISED ? memory.real : memory.sums) + at), f + p * outputs,
                          end - f - p * outputs);
            }
    }
    release_registers();
}

#endif
