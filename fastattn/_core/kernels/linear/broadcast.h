/* Linear's sums in register tiles: elements of W broadcast over vectors of rows of x. */
#ifndef FA_LINEAR_BROADCAST_H
#define FA_LINEAR_BROADCAST_H

#include "linear/tile.h"
#include "products/broadcast.h"
#include "simd/lanes.h"
#include "storage/partial.h"
#include "storage/scratch.h"

/* Rows of W with one vector of rows of x, and of a block where there is one tile only: with 32 registers, 16 sums leave
 * no multiply-add waiting for the one before; 8 of them are 10 % slower. */
#define LINEAR_ALONE (FA_VECTOR_REGISTERS == 32 ? 16 : FA_BLOCK_ROWS_1)
/* Vectors of rows of x. Sums of float32 go to memory and back so often that tiles as large as the registers allow are 7
 * to 11 % faster than 8 rows by 2 vectors. */
#define LINEAR_WIDEST (FA_MULTIPLY_ADD && FA_VECTOR_BYTES == 64 ? 4 : FA_TILE_VECTORS)
#define LEAST_TILES 2 /* of an item: so many make up for reading the weight once more */
#define PREFERRED_TILES 2
#define SUMS_ROWS LINEAR_FEATURES

/* acc[MR][NV] += `steps` units of MR rows of W times those of x. */
FA_INLINE void add_products(V acc[][LINEAR_WIDEST], const R *weight, ptrdiff_t stride, const R *x, const int steps,
                            const int MR, const int NV) {
    FA_UNROLL_FOR(int u = 0; u < steps; u++) {
        V q[LINEAR_WIDEST];
        FA_UNROLL_FOR(int j = 0; j < NV; j++) q[j] = load(x + (u * NV + j) * LANES);
        FA_UNROLL_FOR(int i = 0; i < MR; i++) {
            spread w = spread_unit(weight + i * stride + u);
            FA_UNROLL_FOR(int j = 0; j < NV; j++) acc[i][j] = add_product(acc[i][j], w, q[j]);
        }
    }
}

/* sums[MR][NV] (+)= MR rows of W times the transposed rows of x. Chains are short, and four units at a time leave a
 * loop whose end is foreseen. */
FA_INLINE void sum_block(const weight_block *weights, ptrdiff_t row, const linear_tile *tile, ptrdiff_t first,
                         ptrdiff_t units, const int MR, const int NV) {
    const ptrdiff_t stride = weights->rows.stride;
    const R *weight = weights->rows.data + row * stride, *x = tile->units + first * NV * LANES;
    R *sums = tile->sums + row * NV * LANES;
    V acc[16][LINEAR_WIDEST];
    ptrdiff_t u = 0;
    FA_UNROLL_FOR(int i = 0; i < MR; i++)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) acc[i][j] = (V){0};
    for (; u + 4 <= units; u += 4) add_products(acc, weight + u, stride, x + u * NV * LANES, 4, MR, NV);
    for (; u < units; u++) add_products(acc, weight + u, stride, x + u * NV * LANES, 1, MR, NV);
    FA_UNROLL_FOR(int i = 0; i < MR; i++)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) {
            R *at = sums + (i * NV + j) * LANES;
            store(at, as_real(acc[i][j], weights, row + i, tile->quantised, j, first ? at : NULL));
        }
}

/* With few rows of x most lanes would idle. So features of W are put in the lanes, transposed in registers, and
 * elements of x are broadcast: 1.7 times as fast with one row, where memory is the limit, and a tie with 7. The same
 * products are added in the same order. */

#define FEW_ROWS ((LANES + 2) / 3) /* 6 at most */
#define FEW_AHEAD (2 * LANES)      /* units between a row's products and what is prefetched of it */

/* add_product, the unit last: the operand that AVX512_BF16 broadcasts from memory by itself. */
FA_INLINE V add_unit(V sum, V lanes, spread unit) {
#if FA_HAS_ELEMENT_PRODUCTS
    return add_product(sum, unit, lanes);
#else
    return add_product(sum, lanes, unit);
#endif
}

/* acc[MR] += those of `count` units in the lanes with as many of each row of x, from `at` on. */
FA_INLINE void add_units(V *acc, const V *lanes, const R *const *x, ptrdiff_t at, ptrdiff_t count, const int MR) {
    FA_UNROLL_FOR(int k = 0; k < TRANSPOSED; k++) {
        if (k >= count) break;
        FA_UNROLL_FOR(int r = 0; r < MR; r++) acc[r] = add_unit(acc[r], lanes[k], spread_unit(x[r] + at + k));
    }
}

/* Prefetches the vectors that few_rows_sums reads two steps later; at the end of the rows, the beginning of the next
 * LANES rows. (Of rows in a panel that is of no use.) */
FA_INLINE void prefetch_lanes(const lane_rows *rows, ptrdiff_t stride, ptrdiff_t at, ptrdiff_t units) {
    const ptrdiff_t ahead = at + FEW_AHEAD, to_next_rows = ahead < units ? 0 : LANES * stride - units;
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) __builtin_prefetch(row_in_lane(rows, i) + ahead + to_next_rows);
}

/* sums[MR] (+)= those of rows of x, from unit `first` on, with `count` rows of W in the lanes, run by run. */
FA_INLINE void few_rows_sums(const weight_block *weights, ptrdiff_t count, const R *const *row, ptrdiff_t first,
                             ptrdiff_t units, ptrdiff_t run, V *sums, const int MR) {
    const lane_rows rows = rows_in_lanes(weights->rows.data, weights->rows.stride, count);
    const R *x[FEW_ROWS];
    FA_UNROLL_FOR(int r = 0; r < MR; r++) x[r] = row[r] + first;
    for (ptrdiff_t u = 0, begin = 0; u < units; begin = u) {
        const ptrdiff_t end = fa_clamp(units, 0, begin + run);
        V acc[FEW_ROWS], lanes[TRANSPOSED];
        FA_UNROLL_FOR(int r = 0; r < MR; r++) acc[r] = (V){0};
        for (; u + TRANSPOSED <= end; u += TRANSPOSED) {
            if (u % LANES == 0) prefetch_lanes(&rows, weights->rows.stride, u, units);
            load_transposed(&rows, u, lanes);
            add_units(acc, lanes, x, u, TRANSPOSED, MR);
        }
        if (u < end) {
            load_part_transposed(&rows, u, (int)(end - u), lanes);
            add_units(acc, lanes, x, u, end - u, MR);
            u = end;
        }
        FA_UNROLL_FOR(int r = 0; r < MR; r++) {
            if (first + begin) acc[r] += sums[r];
            sums[r] = acc[r];
        }
    }
}

typedef void few_rows_kernel(const weight_block *weights, ptrdiff_t count, const R *const *x, ptrdiff_t first,
                             ptrdiff_t units, ptrdiff_t run, V *sums);
#define FEW_SUMS(MR)                                                                                                   \
    FA_NOINLINE void few_rows_sums_##MR(const weight_block *weights, ptrdiff_t count, const R *const *x,               \
                                        ptrdiff_t first, ptrdiff_t units, ptrdiff_t run, V *sums) {                    \
        few_rows_sums(weights, count, x, first, units, run, sums, MR);                                                 \
    }
FEW_SUMS(1)
#if FEW_ROWS >= 2
FEW_SUMS(2)
#endif
#if FEW_ROWS >= 3
FEW_SUMS(3)
#endif
#if FEW_ROWS >= 6
FEW_SUMS(4)
FEW_SUMS(5)
FEW_SUMS(6)
static few_rows_kernel *const few_rows_kernels[] = {few_rows_sums_1, few_rows_sums_2, few_rows_sums_3,
                                                    few_rows_sums_4, few_rows_sums_5, few_rows_sums_6};
#elif FEW_ROWS == 3
static few_rows_kernel *const few_rows_kernels[] = {few_rows_sums_1, few_rows_sums_2, few_rows_sums_3};
#elif FEW_ROWS == 2
static few_rows_kernel *const few_rows_kernels[] = {few_rows_sums_1, few_rows_sums_2};
#else
static few_rows_kernel *const few_rows_kernels[] = {few_rows_sums_1};
#endif
_Static_assert(sizeof few_rows_kernels / sizeof *few_rows_kernels == FEW_ROWS, "a kernel for each number of rows");

typedef struct {
    R *panel, *x[FEW_ROWS];
} few_rows_memory;

static ptrdiff_t lay_out_few_rows(const fa_linear *l, few_rows_memory *memory, char *at) {
    const char *begin = at;
    memory->panel = take_scratch(&at, LANES * fa_clamp(UNITS(l->in_features), 1, LINEAR_RUN(l)));
    for (int r = 0; r < FEW_ROWS; r++) memory->x[r] = take_scratch(&at, UNITS(l->in_features));
    return at - begin;
}

static ptrdiff_t linear_by_rows_scratch(const fa_linear *l) {
    few_rows_memory memory;
    return lay_out_few_rows(l, &memory, NULL);
}

/* Units that weights_at gives at a time: all of them if it reads the weight in place, else a run. */
FA_INLINE ptrdiff_t units_at_once(const fa_linear *l, ptrdiff_t units) {
#if FA_MULTIPLY_ADD
    const int in_place = l->contiguous_weight && l->weight_type == STORED;
#else
    const int in_place =
        l->weight_stride == 2 && l->in_features % UNIT == 0 && l->weight_row_stride % (ptrdiff_t)sizeof(R) == 0;
#endif
    return in_place ? units : LINEAR_RUN(l);
}

/* Returns whether it took the item. Not for int8, whose unsigned numbers must be in the lanes. */
static int linear_by_rows(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    const ptrdiff_t units = UNITS(l->in_features), rows = item->rows, at_once = units_at_once(l, units);
    if (FA_QUANTISED || rows > FEW_ROWS || !units) return 0;
    linear_tile tile = {.rows = rows, .from = item->x, .residual = item->residual, .to = item->out};
    few_rows_memory memory;
    const R *x[FEW_ROWS];
    lay_out_few_rows(l, &memory, scratch);
    for (ptrdiff_t r = 0; r < rows; r++) x[r] = gather_row(l, item->x[r], memory.x[r], units, NULL, NULL);
    for (ptrdiff_t f = item->first_feature, end = f + item->features, n; f < end; f += n) {
        V sums[FEW_ROWS];
        n = fa_clamp(end - f, 0, LANES);
        for (ptrdiff_t u = 0, count; u < units; u += count) {
            count = fa_clamp(units - u, 0, at_once);
            weight_block weights = weights_at(l, f, n, u, count, memory.panel);
            few_rows_kernels[rows - 1](&weights, n, x, u, count, LINEAR_RUN(l), sums);
        }
        for (ptrdiff_t r = 0; n < LANES && r < rows; r++) sums[r] = in_order_of_rows(sums[r], n);
        put_sums(l, &tile, 0, rows, sums, f, n);
    }
    return 1;
}

#define FA_LINEAR_SUMS(MR, NV)                                                                                         \
    FA_NOINLINE void linear_##NV(const weight_block *weights, ptrdiff_t count, const linear_tile *tile,                \
                                 ptrdiff_t first, ptrdiff_t units) {                                                   \
        FA_IN_BLOCKS(count, MR, CALL_##NV);                                                                            \
    }
#define CALL_1(M) sum_block(weights, i, tile, first, units, M, 1)
#define CALL_2(M) sum_block(weights, i, tile, first, units, M, 2)
#define CALL_3(M) sum_block(weights, i, tile, first, units, M, 3)
#define CALL_4(M) sum_block(weights, i, tile, first, units, M, 4)
FA_LINEAR_SUMS(LINEAR_ALONE, 1)
FA_LINEAR_SUMS(FA_BLOCK_ROWS_2, 2)
#if LINEAR_WIDEST == 4
FA_LINEAR_SUMS(8, 3)
FA_LINEAR_SUMS(6, 4)
#define FA_LINEAR_OF(NV) (NV == 1 ? linear_1 : NV == 2 ? linear_2 : NV == 3 ? linear_3 : linear_4)
#elif LINEAR_WIDEST == 3
FA_LINEAR_SUMS(FA_BLOCK_ROWS_3, 3)
#define FA_LINEAR_OF(NV) (NV == 1 ? linear_1 : NV == 2 ? linear_2 : linear_3)
#else
#define FA_LINEAR_OF(NV) (NV == 1 ? linear_1 : linear_2)
#endif

#endif
