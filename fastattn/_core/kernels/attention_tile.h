/* Attention with the queries in the lanes: many rows of one kv head at a time.
 *
 *   S' = K Q'             keys are broadcast from memory as they lie, the queries stand transposed: a lane is a row
 *   P' = 2^(S' - max)     max, sum and rescaling are lane by lane: no horizontal operation anywhere
 *   O' = O' + V' P'       the same product again, value elements broadcast
 *
 * Online softmax: Milakov and Gimelshein 2018; tiling over keys: Rabe and Staats 2021, Dao et al. 2022.
 * A tile is NV vectors wide; NV and the rows per register tile are constants of each instantiation. Per key and vector
 * of rows it costs head_size + value_size FMAs, and 9 (AVX-512) to 13 operations for the weight. */

#define KEYS_PER_STEP 128 /* the weights' panel, 128 · NV vectors, then stays in L1/L2 */
#define COMPONENTS_PER_RUN 128
#define KEYS_PER_SUM 64   /* keys whose weighted values are added up before they join the rest; */
#define KEYS_PER_RUN 16   /* and whose weights are: long chains of additions gather rounding errors */

typedef struct {
    R *query, *scores, *out, *key_panel, *value_panel;
    V max[FA_TILE_WIDEST], sum[FA_TILE_WIDEST], decay[FA_TILE_WIDEST];
    ptrdiff_t begin[FA_TILE_WIDEST * LANES], end[FA_TILE_WIDEST * LANES]; /* the keys of each lane */
    fa_interval any, all;                       /* keys that some lane sees, keys that every lane sees */
} OP(tile);

/* scores[MR][NV] = MR keys times the transposed queries; raises the lanes' maximum. */
FA_INLINE void OP(score_block)(const R *key, ptrdiff_t stride, const R *query, ptrdiff_t head_size, R *scores, V *max,
                               const int MR, const int NV) {
    V acc[8][FA_TILE_WIDEST] = {{{0}}};
    for (ptrdiff_t d = 0, end; d < head_size; d = end) {
        end = head_size - d < COMPONENTS_PER_RUN ? head_size : d + COMPONENTS_PER_RUN;
        FA_UNROLL for (int i = 0; i < MR; i++) FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (V){0};
        for (ptrdiff_t c = d; c < end; c++) {
            V q[FA_TILE_WIDEST];
            FA_UNROLL for (int j = 0; j < NV; j++) q[j] = OP(load)(query + (c * NV + j) * LANES);
            FA_UNROLL for (int i = 0; i < MR; i++) {
                V k = OP(splat)(key[i * stride + c]);
                FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] += k * q[j];
            }
        }
        FA_UNROLL for (int i = 0; i < MR; i++)
            FA_UNROLL for (int j = 0; j < NV; j++) {
                R *at = scores + (i * NV + j) * LANES;
                if (d) acc[i][j] += OP(load)(at);
                OP(store)(at, acc[i][j]);
            }
    }
    FA_UNROLL for (int j = 0; j < NV; j++)
        FA_UNROLL for (int i = 0; i < MR; i++) max[j] = OP(max)(acc[i][j], max[j]); /* NaN never becomes the maximum */
}

/* out[MR][NV] = out · decay + MR value components times the weights of `count` keys. The sum over a run of keys is made
 * on its own and then added: in one chain over all keys its rounding errors grow to 4 times those of NumPy's formula. */
FA_INLINE void OP(value_block)(const R *value, ptrdiff_t stride, const R *weights, ptrdiff_t count, R *out,
                               const V *decay, const int MR, const int NV) {
    V acc[8][FA_TILE_WIDEST];
    FA_UNROLL for (int i = 0; i < MR; i++) FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (V){0};
    for (ptrdiff_t t = 0; t < count; t++) {
        V p[FA_TILE_WIDEST];
        FA_UNROLL for (int j = 0; j < NV; j++) p[j] = OP(load)(weights + (t * NV + j) * LANES);
        FA_UNROLL for (int i = 0; i < MR; i++) {
            V v = OP(splat)(value[t * stride + i]);
            FA_UNROLL for (int j = 0; j < NV; j++) acc[i][j] += v * p[j];
        }
    }
    FA_UNROLL for (int i = 0; i < MR; i++)
        FA_UNROLL for (int j = 0; j < NV; j++) {
            R *at = out + (i * NV + j) * LANES;
            OP(store)(at, OP(load)(at) * decay[j] + acc[i][j]);
        }
}

/* Both products walk their rows in register tiles of MR, then 4, 2, 1 for what remains. */
#define FA_IN_TILES(count, MR, CALL)                                                                                   \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        for (; i + (MR) <= (count); i += (MR)) CALL(MR);                                                               \
        if ((MR) > 4 && i + 4 <= (count)) { CALL(4); i += 4; }                                                         \
        if (i + 2 <= (count)) { CALL(2); i += 2; }                                                                     \
        if (i < (count)) CALL(1);                                                                                      \
    } while (0)

FA_INLINE void OP(scores)(OP(rows) key, ptrdiff_t count, const R *query, ptrdiff_t head_size, R *scores, V *max,
                          const int MR, const int NV) {
#define CALL(M)                                                                                                        \
    OP(score_block)(key.data + i * key.stride, key.stride, query, head_size, scores + i * NV * LANES, max, M, NV)
    FA_IN_TILES(count, MR, CALL);
#undef CALL
}

FA_INLINE void OP(values)(OP(rows) value, ptrdiff_t count, const R *weights, ptrdiff_t value_size, R *out,
                          const V *decay, const int MR, const int NV) {
    V one[FA_TILE_WIDEST];
    FA_UNROLL for (int j = 0; j < NV; j++) one[j] = OP(splat)(1);
    for (ptrdiff_t t = 0; t < count; t += KEYS_PER_SUM) {
        const R *first = value.data + t * value.stride, *weight = weights + t * NV * LANES;
        const V *factor = t ? one : decay;
        ptrdiff_t keys = count - t < KEYS_PER_SUM ? count - t : KEYS_PER_SUM;
#define CALL(M) OP(value_block)(first + i, value.stride, weight, keys, out + i * NV * LANES, factor, M, NV)
        FA_IN_TILES(value_size, MR, CALL);
#undef CALL
    }
}

/* The same for blocks in which some lanes exclude a key whose value is not finite: an excluded weight is -0.0, and its
 * key adds nothing at all, where 0 · NaN would add NaN. Rare, so short rather than fast. */
static void OP(guarded_values)(OP(rows) value, ptrdiff_t count, const R *weights, ptrdiff_t value_size, R *out,
                               const V *decay, int NV) {
    const VI excluded = (VI)OP(splat)((R)-0.0);
    for (ptrdiff_t d = 0; d < value_size; d++)
        for (int j = 0; j < NV; j++) {
            V sum = OP(load)(out + (d * NV + j) * LANES) * decay[j];
            for (ptrdiff_t t = 0; t < count; t++) {
                V p = OP(load)(weights + (t * NV + j) * LANES);
                sum = OP(select)((VI)p == excluded, sum, sum + p * value.data[t * value.stride + d]);
            }
            OP(store)(out + (d * NV + j) * LANES, sum);
        }
}

static int OP(all_finite)(OP(rows) rows, ptrdiff_t count, ptrdiff_t size) {
    R nought = 0;
    for (ptrdiff_t t = 0; t < count; t++) {
        V sum = {0};
        ptrdiff_t d = 0;
        for (; d + LANES <= size; d += LANES) sum += OP(load)(rows.data + t * rows.stride + d) * (R)0;
        for (int lane = 0; lane < LANES; lane++) nought += sum[lane];
        for (; d < size; d++) nought += rows.data[t * rows.stride + d] * (R)0;
    }
    return nought == 0;
}

/* Scores of keys outside a lane's own interval become -inf; the maximum is taken anew over what is left. */
static void OP(exclude)(OP(tile) *tile, ptrdiff_t first_key, ptrdiff_t count, V *max, int NV) {
    for (int j = 0; j < NV; j++) {
        VI begin, end;
        for (int lane = 0; lane < LANES; lane++) {
            begin[lane] = (I)fa_clamp(tile->begin[j * LANES + lane] - first_key, 0, count);
            end[lane] = (I)fa_clamp(tile->end[j * LANES + lane] - first_key, 0, count);
        }
        V top = max[j];
        for (ptrdiff_t t = 0; t < count; t++) {
            R *at = tile->scores + (t * NV + j) * LANES;
            VI key = OP(splat_int)((I)t);
            V score = OP(select)((key >= begin) & (key < end), OP(load)(at), OP(splat)((R)-INFINITY));
            OP(store)(at, score);
            top = OP(max)(score, top);
        }
        max[j] = top;
    }
}

/* Scores become weights; the running maximum, sum and decay follow. */
FA_INLINE void OP(weigh)(OP(tile) *tile, const V *max, ptrdiff_t count, const int NV, const int guarded) {
    const V nothing = OP(splat)((R)-INFINITY);
    V shift[FA_TILE_WIDEST], sum[FA_TILE_WIDEST];
    FA_UNROLL for (int j = 0; j < NV; j++) {
        shift[j] = OP(select)(max[j] == nothing, (V){0}, max[j]); /* -inf - -inf would be NaN */
        tile->decay[j] = OP(exp2)(tile->max[j] - shift[j]);
        tile->max[j] = max[j];
        tile->sum[j] *= tile->decay[j];
    }
    for (ptrdiff_t t = 0; t < count;) {
        ptrdiff_t end = count - t < KEYS_PER_RUN ? count : t + KEYS_PER_RUN;
        FA_UNROLL for (int j = 0; j < NV; j++) sum[j] = (V){0};
        for (; t < end; t++)
            FA_UNROLL for (int j = 0; j < NV; j++) {
                R *at = tile->scores + (t * NV + j) * LANES;
                V score = OP(load)(at), weight = OP(exp2)(score - shift[j]);
                sum[j] += weight;
                if (guarded) weight = OP(select)(score == nothing, OP(splat)((R)-0.0), weight);
                OP(store)(at, weight);
            }
        FA_UNROLL for (int j = 0; j < NV; j++) tile->sum[j] += sum[j];
    }
}

FA_INLINE void OP(tile_step)(const fa_attention *a, const fa_attention_item *item, OP(tile) *tile, ptrdiff_t first_key,
                             ptrdiff_t count, const int MR, const int NV) {
    OP(rows) key = OP(rows_at)(tile->key_panel, a->head_size, item->key + first_key * a->key_row, a->key_type,
                               a->key_row, a->key_element, count, a->head_size);
    OP(rows) value = OP(rows_at)(tile->value_panel, a->value_size, item->value + first_key * a->value_row,
                                 a->value_type, a->value_row, a->value_element, count, a->value_size);
    V max[FA_TILE_WIDEST], unused[FA_TILE_WIDEST];
    FA_UNROLL for (int j = 0; j < NV; j++) max[j] = unused[j] = tile->max[j];

    int edge = first_key < tile->all.begin || first_key + count > tile->all.end;
    if (!edge) {
        OP(scores)(key, count, tile->query, a->head_size, tile->scores, max, MR, NV);
        OP(weigh)(tile, max, count, NV, 0);
        OP(values)(value, count, tile->scores, a->value_size, tile->out, tile->decay, MR, NV);
        return;
    }
    OP(scores)(key, count, tile->query, a->head_size, tile->scores, unused, MR, NV);
    OP(exclude)(tile, first_key, count, max, NV);
    if (OP(all_finite)(value, count, a->value_size)) {
        OP(weigh)(tile, max, count, NV, 0);
        OP(values)(value, count, tile->scores, a->value_size, tile->out, tile->decay, MR, NV);
    } else {
        OP(weigh)(tile, max, count, NV, 1);
        OP(guarded_values)(value, count, tile->scores, a->value_size, tile->out, tile->decay, NV);
    }
}

/* Queries, scaled, into lanes: query[d][row]. */
FA_INLINE void OP(gather_queries)(const fa_attention *a, const fa_attention_item *item, R *query, const int NV) {
    const R scale = (R)a->scale;
    int plain = OP(plain)(item->query, a->query_head | a->query_row, a->query_element);
    for (int j = 0; j < NV; j++) {
        ptrdiff_t rows = fa_clamp(item->rows - j * LANES, 0, LANES), d = 0;
        const char *from[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            ptrdiff_t row = item->first_row + j * LANES + (lane < rows ? lane : 0);
            from[lane] = item->query + OP(row_offset)(a, rows ? row : item->first_row, a->query_head, a->query_row);
        }
        for (; plain && d + LANES <= a->head_size; d += LANES) {
            V x[LANES];
            FA_UNROLL for (int lane = 0; lane < LANES; lane++) x[lane] = OP(load)((const R *)from[lane] + d) * scale;
            OP(transpose)(x);
            FA_UNROLL for (int i = 0; i < LANES; i++) OP(store)(query + ((d + i) * NV + j) * LANES, x[i]);
        }
        for (; d < a->head_size; d++)
            for (int lane = 0; lane < LANES; lane++) {
                R x;
                memcpy(&x, from[lane] + d * a->query_element, sizeof x);
                query[(d * NV + j) * LANES + lane] = x * scale;
            }
    }
}

/* Results back to rows, at the caller's strides. */
FA_INLINE void OP(scatter_out)(const fa_attention *a, const OP(tile) *tile, char *const *to, ptrdiff_t element,
                               ptrdiff_t rows, int plain, const int NV) {
    for (int j = 0; j * LANES < rows; j++) {
        V inverse = OP(select)(tile->sum[j] == (V){0}, (V){0}, (R)1 / tile->sum[j]);
        ptrdiff_t d = 0, lanes = rows - j * LANES < LANES ? rows - j * LANES : LANES;
        for (; plain && d + LANES <= a->value_size; d += LANES) {
            V x[LANES];
            FA_UNROLL for (int i = 0; i < LANES; i++)
                x[i] = OP(load)(tile->out + ((d + i) * NV + j) * LANES) * inverse;
            OP(transpose)(x);
            if (lanes == LANES)
                FA_UNROLL for (int lane = 0; lane < LANES; lane++) OP(store)((R *)to[j * LANES + lane] + d, x[lane]);
            else
                for (int lane = 0; lane < lanes; lane++) OP(store)((R *)to[j * LANES + lane] + d, x[lane]);
        }
        for (; d < a->value_size; d++)
            for (int lane = 0; lane < lanes; lane++) {
                R x = tile->out[(d * NV + j) * LANES + lane] * inverse[lane];
                memcpy(to[j * LANES + lane] + d * element, &x, sizeof x);
            }
    }
}

FA_INLINE void OP(finish_tile)(const fa_attention *a, const fa_attention_item *item, const OP(tile) *tile,
                               const int NV) {
    char *to[FA_TILE_WIDEST * LANES];
    int part = item->part_sum != NULL;
    ptrdiff_t element = part ? (ptrdiff_t)sizeof(R) : a->out_element;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        R max = tile->max[row / LANES][row % LANES], sum = tile->sum[row / LANES][row % LANES];
        ptrdiff_t at = item->first_row + row;
        if (part) {
            to[row] = (char *)((R *)item->part_out + row * a->value_size);
            ((R *)item->part_max)[row] = max;
            ((R *)item->part_sum)[row] = sum;
            continue;
        }
        to[row] = item->out + OP(row_offset)(a, at, a->out_head, a->out_row);
        if (item->lse) {
            R lse = OP(natural_lse)(max, sum);
            memcpy(item->lse + OP(row_offset)(a, at, a->lse_head, a->lse_row), &lse, sizeof lse);
        }
    }
    int plain = part || OP(plain)(item->out, a->out_head | a->out_row, element);
    OP(scatter_out)(a, tile, to, element, item->rows, plain, NV);
}

static void OP(tile_intervals)(const fa_attention *a, const fa_attention_item *item, OP(tile) *tile, int NV) {
    fa_interval any = {item->key_end, item->key_begin}, all = {item->key_begin, item->key_end};
    for (ptrdiff_t lane = 0; lane < NV * LANES; lane++) {
        ptrdiff_t row = item->first_row + (lane < item->rows ? lane : item->rows - 1);
        fa_interval keys = fa_keys_of(a, row / a->group, item->key_begin, item->key_end);
        tile->begin[lane] = keys.begin;
        tile->end[lane] = keys.end;
        if (keys.begin > all.begin) all.begin = keys.begin;
        if (keys.end < all.end) all.end = keys.end;
        if (keys.begin == keys.end) continue;
        if (keys.begin < any.begin) any.begin = keys.begin;
        if (keys.end > any.end) any.end = keys.end;
    }
    tile->any = any;
    tile->all = all;
}

/* Steps end where the keys begin or cease to be seen by all lanes, so that only edges pay for exclusion. */
static ptrdiff_t OP(step_end)(const OP(tile) *tile, ptrdiff_t key) {
    ptrdiff_t end = fa_clamp(key + KEYS_PER_STEP, key, tile->any.end);
    if (key < tile->all.begin && tile->all.begin < end) return tile->all.begin;
    if (key < tile->all.end && tile->all.end < end) return tile->all.end;
    return end;
}

/* Scratch of a tile of `rows` rows; its size where `at` is NULL. */
static ptrdiff_t OP(lay_out_tile)(const fa_attention *a, OP(tile) *tile, char *at, ptrdiff_t rows) {
    const char *begin = at;
    tile->query = OP(carve)(&at, a->head_size * rows);
    tile->scores = OP(carve)(&at, KEYS_PER_STEP * rows);
    tile->out = OP(carve)(&at, a->value_size * rows);
    tile->key_panel = OP(carve)(&at, KEYS_PER_STEP * a->head_size);
    tile->value_panel = OP(carve)(&at, KEYS_PER_STEP * a->value_size);
    return at - begin;
}

static ptrdiff_t OP(tile_scratch)(const fa_attention *a) {
    OP(tile) tile;
    return OP(lay_out_tile)(a, &tile, NULL, FA_TILE_WIDEST * LANES);
}

FA_INLINE void OP(tile_of)(const fa_attention *a, const fa_attention_item *item, char *scratch, const int MR,
                           const int NV) {
    OP(tile) tile;
    OP(lay_out_tile)(a, &tile, scratch, NV * LANES);
    OP(tile_intervals)(a, item, &tile, NV);
    OP(gather_queries)(a, item, tile.query, NV);
    memset(tile.out, 0, (size_t)(a->value_size * NV * LANES) * sizeof(R));
    FA_UNROLL for (int j = 0; j < NV; j++) {
        tile.max[j] = OP(splat)((R)-INFINITY);
        tile.sum[j] = (V){0};
    }
    for (ptrdiff_t key = tile.any.begin, end; key < tile.any.end; key = end) {
        end = OP(step_end)(&tile, key);
        OP(tile_step)(a, item, &tile, key, end - key, MR, NV);
    }
    OP(finish_tile)(a, item, &tile, NV);
}

static void EXPORT(attention_tile)(const fa_attention *a, const fa_attention_item *item, void *scratch) {
    switch ((item->rows + LANES - 1) / LANES) {
    case 1: OP(tile_of)(a, item, scratch, FA_TILE_ROWS_1, 1); break;
    case 2: OP(tile_of)(a, item, scratch, FA_TILE_ROWS_2, 2); break;
#if FA_TILE_WIDEST >= 3
    case 3: OP(tile_of)(a, item, scratch, FA_TILE_ROWS_3, 3); break;
#endif
    }
}
