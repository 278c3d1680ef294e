/* The sums of linear in tile registers (AMX): rows of W in place times units of rows of x in the lanes. */
#ifndef FA_LINEAR_AMX_H
#define FA_LINEAR_AMX_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET amx
#endif
#include "linear/tile.h"
#include "products/amx.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"
#include "storage/scratch.h"

#define LINEAR_ALONE 32 /* rows of a block where there is one tile only */
#define LINEAR_WIDEST 2
/* Tiles of an item at least: each item packs the weight, or quantises x, for itself. */
#define LEAST_TILES (FA_QUANTISED ? 8 : ITEM_TILES)
#define PREFERRED_TILES 4 /* packing takes as long as the products of 80 rows */
#define SUMS_ROWS                                                                                                      \
    (LINEAR_FEATURES * (FA_QUANTISED ? 2 : 1)) /* whole numbers have memory of their own behind the sums */

/* A block of W's rows times `units` units of a tile from `first` on, added to the tile's sums. */
FA_INLINE void linear_sums(const weight_block *weights, ptrdiff_t count, const linear_tile *tile, ptrdiff_t first,
                           ptrdiff_t units, const int NV) {
    const ptrdiff_t size = LINEAR_FEATURES * NV * LANES;
    R *sums = tile->sums, *products = FA_QUANTISED ? sums + size : sums;
    multiply_tiles(operand_in_place(weights->rows), count, tile->units + first * NV * LANES, units, products,
                   !FA_QUANTISED && first, NV);
    for (ptrdiff_t i = 0; FA_QUANTISED && i < count; i++)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) {
            const ptrdiff_t at = (i * NV + j) * LANES;
            store(sums + at, as_real(load(products + at), weights, i, tile->quantised, j, first ? sums + at : NULL));
        }
}

static void linear_1(const weight_block *weights, ptrdiff_t count, const linear_tile *tile, ptrdiff_t first,
                     ptrdiff_t units) {
    linear_sums(weights, count, tile, first, units, 1);
}
static void linear_2(const weight_block *weights, ptrdiff_t count, const linear_tile *tile, ptrdiff_t first,
                     ptrdiff_t units) {
    linear_sums(weights, count, tile, first, units, 2);
}
#define FA_LINEAR_OF(NV) (NV == 1 ? linear_1 : linear_2)

/* For many rows of x it is the other way round: rows of x are rows of the tiles, and the block of W is transposed
 * into the lanes, once for all rows of the item, which takes as long as the products of 80 rows. The sums are then
 * rows of the result, so that neither x nor the result needs transposing: with 384 inputs that costs half as much as
 * the products. The same numbers are added in the same order. All tiles are packed. */

#define BY_ROWS_LEAST 64 /* rows from which on it is the faster way */
/* Tiles along the sum of a block of W: 64 KB, in L2. With 8 of them, in L1, sums come and go too often. */
#define BY_ROWS_RUN 16
#define BY_ROWS_GROUP 32 /* rows that are finished while their sums are in L1 */
#define BLOCK_TILES (LINEAR_FEATURES / 16)

typedef struct {
    R *panel, *packed; /* rows of W, and their tiles: [BLOCK_TILES][BY_ROWS_RUN] */
    R *x, *sums;       /* tiles: [row tiles][tiles of a row], [row tiles][BLOCK_TILES] */
    R *reals;          /* a row of x */
    R *scale;          /* of each row of x */
    I *zero, *total;   /* of each row of x; the sum of each row of W */
} by_rows_memory;

static ptrdiff_t lay_out_by_rows(const fa_linear *l, by_rows_memory *memory, char *at) {
    const char *begin = at;
    const ptrdiff_t rows = PADDED(l->item_rows), units = PADDED(UNITS(l->in_features));
    memory->panel = take_scratch(&at, BLOCK_TILES * BY_ROWS_RUN * AMX_TILE_REALS);
    memory->packed = take_scratch(&at, BLOCK_TILES * BY_ROWS_RUN * AMX_TILE_REALS);
    memory->sums = take_scratch(&at, rows * LINEAR_FEATURES);
    memory->x = take_scratch(&at, rows * units);
    memory->reals = take_scratch(&at, units + (FA_QUANTISED ? l->in_features + LANES : 0));
    memory->scale = take_scratch(&at, rows);
    memory->zero = (I *)take_scratch(&at, rows);
    memory->total = (I *)take_scratch(&at, LINEAR_FEATURES);
    return at - begin;
}

static ptrdiff_t linear_by_rows_scratch(const fa_linear *l) {
    by_rows_memory memory;
    return lay_out_by_rows(l, &memory, NULL);
}

#if !FA_QUANTISED
/* 16 rows of x, whose elements lie side by side, into tiles: tile by tile, as the lines that a row fills are 1 KB apart
 * and compete for few lines of L1. 1.05 to 1.25 times as fast with up to 100 outputs. */
static void gather_tiles(const fa_linear *l, const char *const *x, ptrdiff_t units, R *to) {
    const ptrdiff_t whole = l->in_features / (16 * UNIT);
    for (ptrdiff_t u = 0; u < whole; u++)
        FA_UNROLL_FOR(int i = 0; i < 16; i++)
            store(to + u * AMX_TILE_REALS + i * LANES, load_units(x[i], u * LANES, FA_BF16));
    for (int i = 0; i < 16; i++)
        copy_units(x[i] + whole * FA_VECTOR_BYTES, l->in_features - 16 * UNIT * whole,
                   to + whole * AMX_TILE_REALS + i * LANES, units - 16 * whole, AMX_TILE_REALS);
}
#endif

/* Rows of x into tiles; zeros where there are no more rows. */
FA_NOINLINE void gather_x(const fa_linear *l, const fa_linear_item *item, by_rows_memory *memory) {
    const ptrdiff_t units = PADDED(UNITS(l->in_features));
    ptrdiff_t i = 0;
#if !FA_QUANTISED
    for (; l->x_stride == 2 && i + 16 <= item->rows; i += 16)
        gather_tiles(l, item->x + i, units, memory->x + i * units);
#endif
    for (; i < PADDED(item->rows); i++) {
        const R *from = memory->reals;
        if (i < item->rows) from = gather_row(l, item->x[i], memory->reals, units, memory->scale + i, memory->zero + i);
        else {
            memset(memory->reals, 0, (size_t)units * sizeof(R));
            memory->scale[i] = 0;
            memory->zero[i] = 0;
        }
        R *to = memory->x + i / 16 * 16 * units + i % 16 * LANES;
        for (ptrdiff_t u = 0; u < units; u += LANES) store(to + u * 16, load(from + u));
    }
}

/* The block's rows into the lanes, and added to the sums of each. */
FA_NOINLINE void pack_weights(unit_rows rows, ptrdiff_t count, ptrdiff_t units, R *to, I *total) {
    for (ptrdiff_t f = 0; f < (count + 15) / 16; f++) {
        VI sum[2] = {*(const VI *)(total + f * LANES), {0}}; /* two chains */
        for (ptrdiff_t u = 0; u < (units + 15) / 16; u++) {
            V x[LANES];
            FA_UNROLL_FOR(int i = 0; i < LANES; i++) x[i] = load(rows.data + (16 * f + i) * rows.stride + 16 * u);
            transpose(x);
            FA_UNROLL_FOR(int i = 0; i < LANES; i++) {
                store(to + (f * BY_ROWS_RUN + u) * AMX_TILE_REALS + i * LANES, x[i]);
                sum[i % 2] = add_weights(sum[i % 2], x[i]);
            }
        }
        *(VI *)(total + f * LANES) = sum[0] + sum[1];
    }
}

/* Turns a tile's sums into reals with scale and bias. */
FA_NOINLINE void shift_tile(const fa_linear *l, const fa_linear_item *item, const by_rows_memory *memory, ptrdiff_t row,
                            ptrdiff_t feature, ptrdiff_t count, R *sums, const I *total) {
    V scale, bias;
    find_shift(l, feature, feature, count, &scale, &bias);
    recompute_flushed(l, item->x + row, fa_clamp(item->rows - row, 0, 16), feature, count, (V *)sums);
    FA_UNROLL_FOR(int i = 0; i < 16; i++) {
        V y = row_as_real(load(sums + i * LANES), total, memory->scale + row + i, memory->zero + row + i, NULL);
        store(sums + i * LANES, shifted(l->scales != NULL, y, scale, bias));
    }
    remake_overflows(l, item->x + row, fa_clamp(item->rows - row, 0, 16), 16, feature, count, bias, (V *)sums);
}

/* The sums of two tiles of rows and of `count` features, tile by tile, to where they belong. */
FA_INLINE void finish_rows(const fa_linear *l, const fa_linear_item *item, const by_rows_memory *memory, ptrdiff_t row,
                           ptrdiff_t feature, ptrdiff_t count, const fa_type type) {
    const int tiles = (int)((count + LANES - 1) / LANES);
    for (ptrdiff_t end = fa_clamp(item->rows, row, row + BY_ROWS_GROUP); row < end; row += 16) {
        R *sums = memory->sums + row * LINEAR_FEATURES;
        for (int j = 0; j < tiles; j++)
            shift_tile(l, item, memory, row, feature + j * LANES, fa_clamp(count - j * LANES, 0, LANES),
                       sums + j * AMX_TILE_REALS, memory->total + j * LANES);
        activate((V *)sums, 16 * tiles, l->activation, type != FA_F32);
        for (ptrdiff_t i = 0; i < fa_clamp(end - row, 0, 16); i++)
            for (int j = 0; j < tiles; j += 2) {
                const R *at = sums + j * AMX_TILE_REALS + i * LANES;
                put_two(l, item->residual ? item->residual[row + i] : NULL, item->out[row + i], load(at),
                        load(at + AMX_TILE_REALS), feature + j * LANES, count - j * LANES, type);
            }
    }
}

FA_NOINLINE void finish_block(const fa_linear *l, const fa_linear_item *item, const by_rows_memory *memory,
                              ptrdiff_t row, ptrdiff_t feature, ptrdiff_t count) {
#define WHOLE(TYPE) finish_rows(l, item, memory, row, feature, LINEAR_FEATURES, TYPE)
#define REST(TYPE) finish_rows(l, item, memory, row, feature, count, TYPE)
    if (count == LINEAR_FEATURES) FA_FOR_RESULT(l->type, WHOLE);
    else FA_FOR_RESULT(l->type, REST);
#undef WHOLE
#undef REST
}

/* Prefetches the result rows of a group while its last products are computed. Each row is on another page, and stores
 * to memory that is not in a cache wait for each other. 1.3 times as fast with 384->1536 for 4096 rows. */
FA_INLINE void expect_rows(const fa_linear *l, const fa_linear_item *item, ptrdiff_t row, ptrdiff_t feature,
                           ptrdiff_t count) {
    const ptrdiff_t begin = feature * fa_size_of(l->type), end = begin + count * fa_size_of(l->type);
    if (!l->contiguous_out || (item->residual && !l->contiguous_residual)) return;
    for (ptrdiff_t i = row; i < fa_clamp(item->rows, row, row + BY_ROWS_GROUP); i++)
        for (ptrdiff_t j = begin; j < end; j += 64) {
            __builtin_prefetch(item->out[i] + j, 1);
            if (item->residual) __builtin_prefetch(item->residual[i] + j);
        }
}

/* The sums of a block of features: a part of the weight's rows at a time, for all rows of x. */
static void sum_features(const fa_linear *l, const fa_linear_item *item, const by_rows_memory *memory,
                         ptrdiff_t feature, ptrdiff_t count) {
    const ptrdiff_t units = UNITS(l->in_features), along = (units + 15) / 16;
    memset(memory->total, 0, LINEAR_FEATURES * sizeof(I));
    for (ptrdiff_t u = 0, run; u < along; u += run) {
        run = fa_clamp(along - u, 0, BY_ROWS_RUN);
        const int last = u + run == along;
        const ptrdiff_t run_units = fa_clamp(units - 16 * u, 0, 16 * run);
        weight_block weights = weights_at(l, feature, count, 16 * u, run_units, memory->panel);
        pack_weights(weights.rows, count, run_units, memory->packed, memory->total);
        for (ptrdiff_t row = 0; row < item->rows; row += BY_ROWS_GROUP) {
            const ptrdiff_t tiles = fa_clamp((item->rows - row + 15) / 16, 0, 2);
            if (last) expect_rows(l, item, row, feature, count);
            for (ptrdiff_t j = 0; 16 * j < count; j += 2) {
                amx_operand rows = PACKED(memory->x + (row / 16 * along + u) * AMX_TILE_REALS, 1, along);
                amx_operand lanes = PACKED(memory->packed + j * BY_ROWS_RUN * AMX_TILE_REALS, 1, BY_ROWS_RUN);
                amx_operand sums = PACKED(memory->sums + (row / 16 * BLOCK_TILES + j) * AMX_TILE_REALS, BLOCK_TILES, 1);
                if (FA_QUANTISED || count - 16 * j > 16) multiply_swapped(&rows, tiles, &lanes, run, &sums, u > 0);
                else multiply_1(&rows, tiles, &lanes, run, &sums, u > 0); /* 1.15 to 1.3 times as fast with one tile */
            }
            if (last) finish_block(l, item, memory, row, feature, count);
        }
    }
}

/* Returns whether it took the item. */
static int linear_by_rows(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    const ptrdiff_t units = UNITS(l->in_features);
    if (item->rows < BY_ROWS_LEAST || !units || units > LINEAR_MOST_UNITS) return 0;
    by_rows_memory memory;
    lay_out_by_rows(l, &memory, scratch);
    if (!item->same_rows) gather_x(l, item, &memory);
    configure_registers(16);
    for (ptrdiff_t f = item->first_feature, end = f + item->features, n; f < end; f += n) {
        n = fa_clamp(end - f, 0, LINEAR_FEATURES);
        sum_features(l, item, &memory, f, n);
    }
    release_registers();
    return 1;
}

#endif
