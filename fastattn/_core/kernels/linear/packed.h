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
    R *x, *row; /* rows of x as units, [rows][x_stride], or the rest of each; scratch for one of them */
    ptrdiff_t x_stride;
    R *scale; /* of each row of x */
    I *zero;
    R *sums, *real; /* [tiles][panels][2][rows of a tile][LANES]; of integer sums, earlier runs as reals */
    R *panel;       /* a run of panels, widened */
} packed_memory;

static ptrdiff_t lay_out_packed(const fa_linear *l, packed_memory *memory, char *at) {
    const char *begin = at;
    const ptrdiff_t units = PADDED(UNITS(l->in_features)), rows = l->item_rows;
    const ptrdiff_t sums = (rows + PACKED_ROWS) * 4 * PANEL; /* of up to four panels */
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

/* Whether rows of x can be read in place, and the bytes from one to the next. */
static int rows_in_place(const fa_linear *l, const fa_linear_item *item, ptrdiff_t *row) {
    *row = item->rows > 1 ? item->x[1] - item->x[0] : 0;
    if (FA_QUANTISED || !l->contiguous_x || !UNITS(l->in_features) || !fits_in_place(l, item, *row)) return 0;
    for (ptrdiff_t i = 1; i < item->rows; i++)
        if (item->x[i] - item->x[i - 1] != *row) return 0;
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
}

/* Whole sums of a run and of rows [row, row + rows) as reals, added to those of earlier runs. */
static void add_runs(const panels *w, const packed_memory *memory, ptrdiff_t panel, ptrdiff_t count, ptrdiff_t run,
                     ptrdiff_t row, ptrdiff_t rows, const R *sums, R *real) {
    for (ptrdiff_t t = 0; t < tile_count(rows); t++)
        for (ptrdiff_t j = 0; j < 2 * count; j++) {
            const I *total = panel_totals(w, panel + j / 2, run) + j % 2 * LANES;
            for (ptrdiff_t i = row + tile_begin(rows, t); i < row + tile_begin(rows, t + 1); i++) {
                const R *scale = memory->scale + i;
                store(real, row_as_real(load(sums), total, scale, memory->zero + i, run ? real : NULL));
                sums += LANES;
                real += LANES;
            }
        }
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

/* Both vectors of results of each row. */
FA_INLINE void put_pairs(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t rows, const V *y,
                         ptrdiff_t feature, const fa_type type) {
    for (ptrdiff_t i = 0; i < rows; i++)
        put_two(l, tile->residual ? tile->residual[row + i] : NULL, tile->to[row + i], y[i], y[rows + i], feature,
                PANEL, type);
}

/* The results of a panel: two vectors of outputs, or one if it is gated. */
static void put_panel(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t rows, V *sums,
                      ptrdiff_t feature, ptrdiff_t left) {
    if (l->gated) {
        put_gated(l, tile, row, rows, sums, feature, fa_clamp(left, 0, LANES));
        return;
    }
    if (!FA_TILE_PRODUCTS || left < PANEL) {
        put_sums(l, tile, row, rows, sums, feature, fa_clamp(left, 0, LANES));
        if (left > LANES) put_sums(l, tile, row, rows, sums + rows, feature + LANES, fa_clamp(left - LANES, 0, LANES));
        return;
    }
    shift_sums(l, tile->from + row, rows, sums, feature, feature, LANES);
    shift_sums(l, tile->from + row, rows, sums + rows, feature + LANES, feature + LANES, LANES);
    activate(sums, (int)(2 * rows), l->activation, l->type != STORED);
#define PUT(TYPE) put_pairs(l, tile, row, rows, sums, feature, TYPE)
    FA_FOR_RESULT(l->type, PUT);
#undef PUT
}

/* The results of rows [row, row + rows) and of `count` panels, whose sums are [tile][panel][2][rows][LANES]. */
static void put_panels(const fa_linear *l, const linear_tile *all, ptrdiff_t row, ptrdiff_t rows, R *sums,
                       ptrdiff_t feature, ptrdiff_t end, ptrdiff_t count) {
    const ptrdiff_t outputs = l->gated ? LANES : PANEL;
    for (ptrdiff_t t = 0; t < tile_count(rows); t++)
        for (ptrdiff_t p = 0; p < count; p++) {
            const ptrdiff_t first = tile_begin(rows, t), n = tile_begin(rows, t + 1) - first, f = feature + p * outputs;
            put_panel(l, all, row + first, n, (V *)(sums + (first * count + p * n) * PANEL), f, end - f);
        }
}

/* Prefetches the lines of the result that rows and panels write, while their last products are computed: 1.1 times as
 * fast over six calls in tile registers, 1.3 times for 2048x384->1536. */
static void expect_panels(const fa_linear *l, const linear_tile *all, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t feature,
                          ptrdiff_t count) {
    const ptrdiff_t size = fa_size_of(l->type), bytes = count * (l->gated ? LANES : PANEL) * size;
    if (!l->contiguous_out || (all->residual && !l->contiguous_residual)) return;
    for (ptrdiff_t at = 0; at < bytes; at += CACHE_LINE) prefetch_rows(all, row, rows, feature * size + at);
}

/* The results of an item's rows and of `count` panels, which begin with a feature. */
FA_INLINE void multiply_panels(const panels *w, const linear_tile *all, packed_memory *memory, const packed_x *x,
                               ptrdiff_t feature, ptrdiff_t end, ptrdiff_t count) {
    const fa_linear *l = w->l;
    const ptrdiff_t units = UNITS(l->in_features), panel = feature / (l->gated ? LANES : PANEL);
    ptrdiff_t u = 0, after;
    do { /* no inputs: sums of nothing, 0 */
        panel_run run = run_at(w, panel, count, u, fa_clamp(units - u, 0, PACKED_RUN(l)), all->rows, memory->panel);
        after = u + run.units;
        for (ptrdiff_t row = 0, rows; row < all->rows; row += rows) {
            rows = packed_group(all->rows - row);
            const packed_x from = {x->first + row * x->row + u * (ptrdiff_t)sizeof(R), x->row,
                                   x->rest ? x->rest + row * LANES : NULL};
            const ptrdiff_t at = units <= PACKED_RUN(l) ? 0 : row * count * PANEL;
            if (FA_TILE_PRODUCTS && after == units) expect_panels(l, all, row, rows, feature, count);
            R *sums = memory->sums + at, *real = memory->real + at;
            sum_tiles(&run, &from, rows, sums, FA_QUANTISED ? u % RUN_OF_TOTALS > 0 : u > 0);
            if (FA_QUANTISED && (after == units || after % RUN_OF_TOTALS == 0))
                add_runs(w, memory, panel, count, u / RUN_OF_TOTALS, row, rows, sums, real);
            if (after == units) put_panels(l, all, row, rows, FA_QUANTISED ? real : sums, feature, end, count);
        }
        u = after;
    } while (u < units);
}

FA_NOINLINE void linear_by_panels(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    const panels w = panels_of(l);
    const ptrdiff_t rows = item->rows, outputs = l->gated ? LANES : PANEL;
    const ptrdiff_t end = item->first_feature + item->features;
    const linear_tile all = {.rows = rows, .from = item->x, .residual = item->residual, .to = item->out};
    packed_memory memory;
    packed_x x = {.first = item->x[0]};
    lay_out_packed(l, &memory, scratch);
    if (!rows_in_place(l, item, &x.row)) {
        if (!item->same_rows) gather_packed(l, item, &memory);
        x.first = (const char *)memory.x;
        x.row = memory.x_stride * (ptrdiff_t)sizeof(R);
    } else if (FA_TILE_PRODUCTS && l->in_features % (UNIT * 16)) {
        gather_rest(l, item, memory.x);
        x.rest = memory.x;
    }
    configure_registers((int)fa_clamp(rows, 1, 16));
    for (ptrdiff_t f = item->first_feature, count; f < end; f += count * outputs) {
        count = panels_beside(l->weight_type, rows, (end - f + outputs - 1) / outputs);
        multiply_panels(&w, &all, &memory, &x, f, end, count);
    }
    release_registers();
}

#endif
