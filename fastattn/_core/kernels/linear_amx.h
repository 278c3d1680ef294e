/* Linear's sums by tiles (AMX): rows of W as they lie in memory times the units of the lanes. */

#define LINEAR_ALONE 32                            /* rows of a block where there is one tile only */
#define SUMS_ROWS (LINEAR_FEATURES * (UNIT == 4 ? 2 : 1)) /* whole numbers have room of their own behind the sums */

/* A block of W's rows times `units` units of a tile from `first` on, added to the tile's sums. */
FA_INLINE void TILE(linear_sums)(const TILE(weights) *weights, ptrdiff_t count, const TILE(linear_tile) *tile, ptrdiff_t first,
                                 ptrdiff_t units, const int NV) {
    const ptrdiff_t size = LINEAR_FEATURES * NV * LANES;
    R *sums = tile->sums, *products = UNIT == 4 ? sums + size : sums;
    FA_MULTIPLY_OF(NV)(weights->rows.data, weights->rows.stride, WHOLE_TILES(count), tile->units + first * NV * LANES,
                       WHOLE_TILES(units), products, UNIT != 4 && first);
    for (ptrdiff_t i = 0; UNIT == 4 && i < count; i++)
        FA_UNROLL for (int j = 0; j < NV; j++) {
            const ptrdiff_t at = (i * NV + j) * LANES;
            V sum = TILE(real)(OP(load)(products + at), weights, i, &tile->quantised, j);
            if (first) sum += OP(load)(sums + at);
            OP(store)(sums + at, sum);
        }
}

static void TILE(linear_1)(const TILE(weights) *weights, ptrdiff_t count, const TILE(linear_tile) *tile, ptrdiff_t first,
                           ptrdiff_t units) {
    TILE(linear_sums)(weights, count, tile, first, units, 1);
}
static void TILE(linear_2)(const TILE(weights) *weights, ptrdiff_t count, const TILE(linear_tile) *tile, ptrdiff_t first,
                           ptrdiff_t units) {
    TILE(linear_sums)(weights, count, tile, first, units, 2);
}
#define FA_LINEAR_OF(NV) (NV == 1 ? TILE(linear_1) : TILE(linear_2))
