/* y = activation(x W' + bias) + residual, with rows of x in the lanes, as queries are in attention.
 *
 *   Y' = W X'    elements of W are broadcast from memory in place; rows of x are transposed, so that a lane is a row
 *
 * Every tile of rows of x takes each block of W in turn. A block, LINEAR_FEATURES rows and one run of inputs, comes
 * from memory once for all tiles and from L2 after that; a tile's run of x stays in L1. If there is one tile only,
 * its block is a register block, and W is read from end to end. The order in which a result is summed does not depend
 * on what else is in the call. */
#ifndef FA_LINEAR_LINEAR_H
#define FA_LINEAR_LINEAR_H

#include "linear/few_outputs.h"
#include "linear/packed.h"
#include "linear/tile.h"
#include "simd/lanes.h"
#include "storage/scratch.h"
#if FA_TILE_PRODUCTS
#include "linear/amx.h"
#else
#include "linear/broadcast.h"
#endif

/* Writes the sums of a block of features to their rows. */
static void finish_sums(const fa_linear *l, const linear_tile *tile, ptrdiff_t feature, ptrdiff_t count) {
    for (ptrdiff_t j = 0; j * LANES < tile->rows; j++)
        for (ptrdiff_t d = 0; d < count; d += LANES) {
            V y[LANES];
            FA_UNROLL_FOR(int i = 0; i < LANES; i++) y[i] = load(tile->sums + ((d + i) * tile->vectors + j) * LANES);
            transpose(y);
            put_sums(l, tile, j * LANES, fa_clamp(tile->rows - j * LANES, 0, LANES), y, feature + d,
                     fa_clamp(count - d, 0, LANES));
        }
}

#define LINEAR_MOST_ROWS (ITEM_TILES * LINEAR_WIDEST * LANES) /* of tiles */

/* Lays out an item's tiles and panels in scratch memory. Returns its size; `at` may be NULL. */
static ptrdiff_t lay_out_linear(const fa_linear *l, linear_tile *tiles, ptrdiff_t rows, R **panel, R **bytes,
                                char *at) {
    const char *begin = at;
    const ptrdiff_t widest = LINEAR_WIDEST * LANES, units = UNITS(l->in_features);
    rows = fa_clamp(rows, 0, LINEAR_MOST_ROWS);
    *panel = take_scratch(&at, LINEAR_FEATURES * PADDED(fa_clamp(units, 1, LINEAR_RUN(l))));
    *bytes = take_scratch(&at, FA_QUANTISED ? (l->in_features + LANES) * (1 + LANES / UNIT) : 0);
    for (ptrdiff_t i = 0; i * widest < rows; i++) {
        tiles[i].rows = fa_clamp(rows - i * widest, 0, widest);
        tiles[i].vectors = (tiles[i].rows + LANES - 1) / LANES;
        tiles[i].units = take_scratch(&at, PADDED(units) * tiles[i].vectors * LANES);
        tiles[i].sums = take_scratch(&at, SUMS_ROWS * tiles[i].vectors * LANES);
        tiles[i].quantised =
            (row_quantisation *)take_scratch(&at, (sizeof(row_quantisation) + sizeof(R) - 1) / sizeof(R));
    }
    return at - begin;
}

static ptrdiff_t EXPORT(linear_scratch)(const fa_linear *l) {
    linear_tile tiles[ITEM_TILES];
    R *panel, *bytes;
    ptrdiff_t other = linear_by_rows_scratch(l), own = lay_out_linear(l, tiles, l->item_rows, &panel, &bytes, NULL);
    return own > other ? own : other;
}

static void gather_tile(const fa_linear *l, const fa_linear_item *item, linear_tile *tile, ptrdiff_t first, R *bytes) {
    tile->from = item->x + first;
    tile->residual = item->residual ? item->residual + first : NULL;
    tile->to = item->out + first;
    if (item->same_rows) return;
    for (ptrdiff_t j = 0; j < tile->vectors; j++) {
        const char *from[LANES];
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            from[lane] = tile->from[fa_clamp(j * LANES + lane, 0, tile->rows - 1)];
        gather_rows(l, from, tile->units + j * LANES, tile->vectors, bytes, tile->quantised, j);
    }
    const ptrdiff_t units = UNITS(l->in_features), filled = units * tile->vectors * LANES;
    memset(tile->units + filled, 0, (size_t)(PADDED(units) * tile->vectors * LANES - filled) * sizeof(R));
}

FA_NOINLINE void linear_by_tiles(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    linear_tile tiles[ITEM_TILES];
    R *panel, *bytes;
    const ptrdiff_t widest = LINEAR_WIDEST * LANES, count = (item->rows + widest - 1) / widest;
    const ptrdiff_t units = UNITS(l->in_features), block = count == 1 ? LINEAR_ALONE : LINEAR_FEATURES;
    lay_out_linear(l, tiles, item->rows, &panel, &bytes, scratch);
    for (ptrdiff_t i = 0; i < count; i++) gather_tile(l, item, &tiles[i], i * widest, bytes);
    configure_registers(16);
    for (ptrdiff_t f = item->first_feature, end = f + item->features, n; f < end; f += n) {
        n = fa_clamp(end - f, 0, block);
        ptrdiff_t u = 0;
        do { /* no inputs: sums of nothing, 0 */
            ptrdiff_t run = fa_clamp(units - u, 0, LINEAR_RUN(l));
            weight_block weights = weights_of(l, f, n, u, run, panel);
            sum_weights(&weights, n, run);
            for (ptrdiff_t i = 0; i < count; i++) FA_LINEAR_OF(tiles[i].vectors)(&weights, n, &tiles[i], u, run);
            u += run;
        } while (u < units);
        for (ptrdiff_t i = 0; i < count; i++) finish_sums(l, &tiles[i], f, n);
    }
    release_registers();
}

static void EXPORT(linear)(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    if (!linear_by_rows(l, item, scratch)) linear_by_tiles(l, item, scratch);
}

static void EXPORT(packed)(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    fa_linear_item part = *item;
    if (!has_few_outputs(l, item->rows)) {
        linear_by_panels(l, item, scratch);
        return;
    }
    for (ptrdiff_t row = 0; row < item->rows; row += part.rows) {
        part.rows = fa_clamp(item->rows - row, 0, LINEAR_MOST_ROWS);
        part.x = item->x + row;
        part.residual = item->residual ? item->residual + row : NULL;
        part.out = item->out + row;
        linear_by_tiles(l, &part, scratch);
    }
}

static ptrdiff_t EXPORT(packed_scratch)(const fa_linear *l) {
    linear_tile tiles[ITEM_TILES];
    R *panel, *bytes;
    ptrdiff_t own = packed_scratch(l), other = 0;
    if (has_few_outputs(l, l->item_rows)) other = lay_out_linear(l, tiles, l->item_rows, &panel, &bytes, NULL);
    return own > other ? own : other;
}

static const fa_linear_kernel EXPORT(packed_kernel) = {
    .unit = UNIT,
    .most_rows = PACKED_MOST_ROWS,
    .least_rows = PACKED_MOST_ROWS,
    .preferred_rows = PACKED_PREFERRED_ROWS,
    .scratch = EXPORT(packed_scratch),
    .run = EXPORT(packed),
    .panel = PANEL,
    .padding = PADDED(1),
    .run_units = FA_QUANTISED ? RUN_OF_TOTALS : 0,
};

const fa_linear_kernel EXPORT(linear_kernel) = {
    .unit = UNIT,
    .most_rows = ITEM_TILES * FA_TILE_VECTORS * LANES,
    .least_rows = LEAST_TILES * FA_TILE_VECTORS * LANES,
    .preferred_rows = PREFERRED_TILES * FA_TILE_VECTORS * LANES,
    .scratch = EXPORT(linear_scratch),
    .run = EXPORT(linear),
    .packed = &EXPORT(packed_kernel),
};

#endif
