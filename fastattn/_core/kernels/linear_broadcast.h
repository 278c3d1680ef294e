/* Linear's sums in register tiles: elements of W broadcast over vectors of rows of x. */

/* Rows of W with one vector of rows of x, and of a block where there is one tile only: with 32 registers, 16 sums leave no
 * multiply-add waiting for the one before; 8 of them are 10 % slower. */
#define LINEAR_ALONE (FA_VECTOR_BYTES == 64 ? 16 : FA_TILE_ROWS_1)
#define FEW_TILES 2 /* of an item that still make up for reading the weight once more */
#define SUMS_ROWS LINEAR_FEATURES

/* acc[MR][NV] += `steps` units of MR rows of W times those of x. */
FA_INLINE void TILE(add_products)(V acc[][FA_TILE_WIDEST], const R *weight, ptrdiff_t stride, const R *x, const int steps,
                                  const int MR, const int NV) {
    FA_UNROLL for (int u = 0; u < steps; u++) {
        V q[FA_TILE_WIDEST];
        FA_UNROLL for (int j = 0; j < NV; j++) q[j] = OP(load)(x + (u * NV + j) * LANES);
        FA_UNROLL for (int i = 0; i < MR; i++) {
            V w = TILE(spread)(weight + i * stride + u);
            FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = TILE(product)(acc[i][j], w, q[j]);
        }
    }
}

/* sums[MR][NV] (+)= MR rows of W times the transposed rows of x. Chains are short, and four units at a time leave a loop whose
 * end is foreseen. */
FA_INLINE void TILE(sum_block)(const TILE(weights) *weights, ptrdiff_t row, const TILE(linear_tile) *tile, ptrdiff_t first,
                               ptrdiff_t units, const int MR, const int NV) {
    const ptrdiff_t stride = weights->rows.stride;
    const R *weight = weights->rows.data + row * stride, *x = tile->units + first * NV * LANES;
    R *sums = tile->sums + row * NV * LANES;
    V acc[16][FA_TILE_WIDEST];
    ptrdiff_t u = 0;
    FA_UNROLL for (int i = 0; i < MR; i++) FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (V){0};
    for (; u + 4 <= units; u += 4) TILE(add_products)(acc, weight + u, stride, x + u * NV * LANES, 4, MR, NV);
    for (; u < units; u++) TILE(add_products)(acc, weight + u, stride, x + u * NV * LANES, 1, MR, NV);
    FA_UNROLL for (int i = 0; i < MR; i++)
        FA_UNROLL for (int j = 0; j < NV; j++) {
            R *at = sums + (i * NV + j) * LANES;
            V sum = TILE(real)(acc[i][j], weights, row + i, &tile->quantised, j);
            if (first) sum += OP(load)(at);
            OP(store)(at, sum);
        }
}

/* No other way. */
FA_INLINE ptrdiff_t TILE(by_rows_scratch)(const fa_linear *l) { (void)l; return 0; }
FA_INLINE int TILE(by_rows)(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    (void)l, (void)item, (void)scratch;
    return 0;
}

#define FA_LINEAR_SUMS(MR, NV)                                                                                         \
    FA_APART void TILE(linear_##NV)(const TILE(weights) *weights, ptrdiff_t count, const TILE(linear_tile) *tile,      \
                                    ptrdiff_t first, ptrdiff_t units) {                                                \
        FA_IN_TILES(count, MR, CALL_##NV);                                                                             \
    }
#define CALL_1(M) TILE(sum_block)(weights, i, tile, first, units, M, 1)
#define CALL_2(M) TILE(sum_block)(weights, i, tile, first, units, M, 2)
#define CALL_3(M) TILE(sum_block)(weights, i, tile, first, units, M, 3)
FA_LINEAR_SUMS(LINEAR_ALONE, 1)
FA_LINEAR_SUMS(FA_TILE_ROWS_2, 2)
#if FA_TILE_WIDEST >= 3
FA_LINEAR_SUMS(FA_TILE_ROWS_3, 3)
#define FA_LINEAR_OF(NV) (NV == 1 ? TILE(linear_1) : NV == 2 ? TILE(linear_2) : TILE(linear_3))
#else
#define FA_LINEAR_OF(NV) (NV == 1 ? TILE(linear_1) : TILE(linear_2))
#endif
#undef FA_LINEAR_SUMS
#undef CALL_1
#undef CALL_2
#undef CALL_3
