/* y = activation(x W' + bias) + residual, with the rows of x in the lanes, as the queries are in attention.
 *
 *   Y' = W X'    elements of W are broadcast from memory as they lie, rows of x stand transposed: a lane is a row
 *
 * Tiles of rows of x take each block of W's rows in turn: a block, LINEAR_FEATURES rows a run long, comes from memory once
 * for all tiles and from L2 after that; a run of a tile's x stays in L1. Where there is one tile only, its block is a
 * register tile, and W is read from end to end. Each result is summed in one and the same order, whatever stands beside it. */

typedef struct {
    ptrdiff_t rows, vectors; /* lanes beyond `rows` repeat the last one and are dropped in the end */
    const char *const *from, *const *residual;
    char *const *to;
    R *units, *sums; /* [UNITS(in_features)][vectors][LANES], [LINEAR_FEATURES][vectors][LANES] */
    TILE(quantised) quantised;
} TILE(linear_tile);

/* sums[MR][NV] (+)= MR rows of W times the transposed rows of x. */
FA_INLINE void TILE(sum_block)(const TILE(weights) *weights, ptrdiff_t row, const TILE(linear_tile) *tile, ptrdiff_t first,
                               ptrdiff_t units, const int MR, const int NV) {
    const ptrdiff_t stride = weights->rows.stride;
    const R *weight = weights->rows.data + row * stride, *x = tile->units + first * NV * LANES;
    V acc[8][FA_TILE_WIDEST];
    FA_UNROLL for (int i = 0; i < MR; i++) FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (V){0};
    for (ptrdiff_t u = 0; u < units; u++) {
        V q[FA_TILE_WIDEST];
        FA_UNROLL for (int j = 0; j < NV; j++) q[j] = OP(load)(x + (u * NV + j) * LANES);
        FA_UNROLL for (int i = 0; i < MR; i++) {
            V w = TILE(spread)(weight + i * stride + u);
            FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = TILE(product)(acc[i][j], w, q[j]);
        }
    }
    FA_UNROLL for (int i = 0; i < MR; i++)
        FA_UNROLL for (int j = 0; j < NV; j++) {
            R *at = tile->sums + ((row + i) * NV + j) * LANES;
            V sum = TILE(real)(acc[i][j], weights, row + i, &tile->quantised, j);
            if (first) sum += OP(load)(at);
            OP(store)(at, sum);
        }
}

#define FA_LINEAR_SUMS(MR, NV)                                                                                         \
    FA_APART void TILE(linear_##NV)(const TILE(weights) *weights, ptrdiff_t count, const TILE(linear_tile) *tile,      \
                                    ptrdiff_t first, ptrdiff_t units) {                                                \
        FA_IN_TILES(count, MR, CALL_##NV);                                                                             \
    }
#define CALL_1(M) TILE(sum_block)(weights, i, tile, first, units, M, 1)
#define CALL_2(M) TILE(sum_block)(weights, i, tile, first, units, M, 2)
#define CALL_3(M) TILE(sum_block)(weights, i, tile, first, units, M, 3)
FA_LINEAR_SUMS(FA_TILE_ROWS_1, 1)
FA_LINEAR_SUMS(FA_TILE_ROWS_2, 2)
#if FA_TILE_WIDEST >= 3
FA_LINEAR_SUMS(FA_TILE_ROWS_3, 3)
#define FA_LINEAR_OF(NV) (NV == 1 ? TILE(linear_1) : NV == 2 ? TILE(linear_2) : TILE(linear_3))
#else
#define FA_LINEAR_OF(NV) (NV == 1 ? TILE(linear_1) : TILE(linear_2))
#endif

/* n results of each of `count` rows, from `feature` on, to where they belong; elements of one type side by side. */
FA_INLINE void TILE(put_rows)(const TILE(linear_tile) *tile, ptrdiff_t row, ptrdiff_t count, const V *y, ptrdiff_t feature,
                              ptrdiff_t n, const fa_type type) {
    const ptrdiff_t at = feature * fa_size_of(type);
    for (ptrdiff_t i = 0; i < count; i++) {
        V sum = y[i];
        if (tile->residual) sum += OP(load_some_as)(tile->residual[row + i] + at, type, n);
        OP(store_some_as)(tile->to[row + i] + at, type, sum, n);
    }
}

static void TILE(scatter_rows)(const fa_linear *l, const TILE(linear_tile) *tile, ptrdiff_t row, ptrdiff_t count, V *y,
                               ptrdiff_t feature, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < count; i++) {
        V more = {0};
        if (tile->residual)
            OP(widen)((R *)&more, tile->residual[row + i] + feature * l->residual_element, l->type, l->residual_element, n);
        y[i] += more;
        OP(narrow)(tile->to[row + i] + feature * l->out_element, l->type, l->out_element, (const R *)&y[i], n);
    }
}

/* Sums of a block of features back to rows: scaled, with bias and activation. */
static void TILE(finish)(const fa_linear *l, const TILE(linear_tile) *tile, ptrdiff_t feature, ptrdiff_t count) {
    const int plain = l->plain_out && (!tile->residual || l->plain_residual), rough = l->type == FA_BF16 || l->type == FA_F16;
    for (ptrdiff_t j = 0; j * LANES < tile->rows; j++)
        for (ptrdiff_t d = 0; d < count; d += LANES) {
            const ptrdiff_t lanes = fa_clamp(tile->rows - j * LANES, 0, LANES), n = fa_clamp(count - d, 0, LANES);
            const ptrdiff_t first = feature + d;
            V y[LANES];
            FA_UNROLL for (int i = 0; i < LANES; i++) y[i] = OP(load)(tile->sums + ((d + i) * tile->vectors + j) * LANES);
            OP(transpose)(y);
            TILE(mend)(l, tile->from + j * LANES, lanes, first, n, y);
            if (l->scales) {
                V scale = {0};
                OP(widen)((R *)&scale, (const char *)(l->scales + first), FA_F32, sizeof(float), n);
                for (ptrdiff_t i = 0; i < lanes; i++) y[i] *= scale;
            }
            if (l->bias) {
                V bias = OP(load_some_as)(l->bias + first * fa_size_of(l->bias_type), l->bias_type, n);
                for (ptrdiff_t i = 0; i < lanes; i++) y[i] += bias;
            }
            OP(activate)(y, (int)lanes, l->activation, rough);
#define PUT(TYPE) TILE(put_rows)(tile, j * LANES, lanes, y, first, n, TYPE)
            if (plain) FA_FOR_RESULT(l->type, PUT);
            else TILE(scatter_rows)(l, tile, j * LANES, lanes, y, first, n);
#undef PUT
        }
}

/* An item's tiles and panels in scratch memory; the size of it where `at` is NULL. */
static ptrdiff_t TILE(lay_out_linear)(const fa_linear *l, TILE(linear_tile) *tiles, ptrdiff_t rows, R **panel, R **bytes,
                                      char *at) {
    const char *begin = at;
    const ptrdiff_t widest = FA_TILE_WIDEST * LANES, units = UNITS(l->in_features);
    *panel = OP(carve)(&at, LINEAR_FEATURES * fa_clamp(units, 1, LINEAR_RUN(l)));
    *bytes = OP(carve)(&at, UNIT == 4 ? (l->in_features + LANES) * (1 + LANES / UNIT) : 0);
    for (ptrdiff_t i = 0; i * widest < rows; i++) {
        tiles[i].rows = fa_clamp(rows - i * widest, 0, widest);
        tiles[i].vectors = (tiles[i].rows + LANES - 1) / LANES;
        tiles[i].units = OP(carve)(&at, units * tiles[i].vectors * LANES);
        tiles[i].sums = OP(carve)(&at, LINEAR_FEATURES * tiles[i].vectors * LANES);
    }
    return at - begin;
}

static ptrdiff_t TILE_EXPORT(linear_scratch)(const fa_linear *l) {
    TILE(linear_tile) tiles[MOST_TILES];
    R *panel, *bytes;
    return TILE(lay_out_linear)(l, tiles, l->item_rows, &panel, &bytes, NULL);
}

static void TILE(take_tile)(const fa_linear *l, const fa_linear_item *item, TILE(linear_tile) *tile, ptrdiff_t first,
                            R *bytes) {
    tile->from = item->x + first;
    tile->residual = item->residual ? item->residual + first : NULL;
    tile->to = item->out + first;
    for (ptrdiff_t j = 0; j < tile->vectors; j++) {
        const char *from[LANES];
        for (ptrdiff_t lane = 0; lane < LANES; lane++) from[lane] = tile->from[fa_clamp(j * LANES + lane, 0, tile->rows - 1)];
        TILE(take_rows)(l, from, tile->units + j * LANES, tile->vectors, bytes, &tile->quantised, j);
    }
}

static void TILE_EXPORT(linear)(const fa_linear *l, const fa_linear_item *item, void *scratch) {
    TILE(linear_tile) tiles[MOST_TILES];
    R *panel, *bytes;
    const ptrdiff_t widest = FA_TILE_WIDEST * LANES, count = (item->rows + widest - 1) / widest;
    const ptrdiff_t units = UNITS(l->in_features), block = count == 1 ? FA_TILE_ROWS_1 : LINEAR_FEATURES;
    TILE(lay_out_linear)(l, tiles, item->rows, &panel, &bytes, scratch);
    for (ptrdiff_t i = 0; i < count; i++) TILE(take_tile)(l, item, &tiles[i], i * widest, bytes);
    for (ptrdiff_t f = item->first_feature, end = f + item->features, n; f < end; f += n) {
        n = fa_clamp(end - f, 0, block);
        ptrdiff_t u = 0;
        do { /* no inputs: sums of nothing, 0 */
            ptrdiff_t run = fa_clamp(units - u, 0, LINEAR_RUN(l));
            TILE(weights) weights = TILE(weights_at)(l, f, n, u, run, panel);
            for (ptrdiff_t i = 0; i < count; i++) FA_LINEAR_OF(tiles[i].vectors)(&weights, n, &tiles[i], u, run);
            u += run;
        } while (u < units);
        for (ptrdiff_t i = 0; i < count; i++) TILE(finish)(l, &tiles[i], f, n);
    }
}

static const fa_linear_kernel TILE_EXPORT(linear_kernel) = {UNIT, TILE_EXPORT(linear_scratch), TILE_EXPORT(linear)};

#undef LINEAR_RUN
#undef FA_LINEAR_SUMS
#undef FA_LINEAR_OF
#undef CALL_1
#undef CALL_2
#undef CALL_3
