/* Attention with the head's components in the lanes: few rows per kv head, as in decoding.
 *
 * Bound by memory, so each key and value row is read once for all rows of the group. Scores: four keys at a time, their
 * products folded together in one transposed reduction. While the keys of a block are multiplied its values are
 * prefetched, and while its values are, the next block's keys: the two streams then never stall. */

#define FEW_KEYS 128 /* keys a block: 64 KB of keys at 128 float32 components, in L2 */
#define FEW_KEYS_PER_RUN 16

/* Into L2, which has room and buffers for a block ahead: one core reads 18 to 20 GB/s from memory so, 8 to 15 with
 * prefetching into L1 and 10 to 14 with none; its limit is 27. */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)

typedef struct {
    ptrdiff_t key_width, value_width; /* head sizes rounded up to whole vectors */
    R *query, *scores, *bias, *clean, *out, *key_panel, *value_panel; /* scores and biases: [rows][FEW_KEYS] */
    R scale; /* applied to the scores: scaling the queries would round every component */
    R max[FA_FEW_MOST], sum[FA_FEW_MOST], decay[FA_FEW_MOST];
    R position[FA_FEW_MOST], slope[FA_FEW_MOST];
    int kinds[FA_FEW_MOST]; /* of mask in this step */
    fa_interval keys[FA_FEW_MOST], any;
} OP(few);

/* scores[NR][count] of `count` keys; `ahead` is what will be read next. */
FA_INLINE void OP(few_scores)(OP(rows) key, ptrdiff_t count, const R *query, ptrdiff_t width, R *scores,
                              R scale, OP(rows) ahead, const int NR) {
    for (ptrdiff_t t = 0; t < count; t += FOLD) {
        V acc[FA_FEW_ROWS][FOLD];
        const R *row[FOLD], *next[FOLD];
        FA_UNROLL for (int i = 0; i < FOLD; i++) {
            ptrdiff_t at = t + i < count ? t + i : count - 1;
            row[i] = key.data + at * key.stride;
            next[i] = ahead.data + at * ahead.stride;
            FA_UNROLL for (int r = 0; r < NR; r++) acc[r][i] = (V){0};
        }
        for (ptrdiff_t d = 0; d < width; d += LANES) {
            V k[FOLD];
            FA_UNROLL for (int i = 0; i < FOLD; i++) {
                k[i] = OP(load)(row[i] + d);
                PREFETCH(next[i] + d);
            }
            FA_UNROLL for (int r = 0; r < NR; r++) {
                V q = OP(load)(query + r * width + d);
                FA_UNROLL for (int i = 0; i < FOLD; i++) acc[r][i] += q * k[i];
            }
        }
        FA_UNROLL for (int r = 0; r < NR; r++)
            OP(store_part)(scores + r * FEW_KEYS + t, OP(fold)(acc[r]) * scale, FOLD);
    }
}

/* out[NR][NC vectors] = out · decay + weights of the keys [begin, end) times their values. */
FA_INLINE void OP(few_value_block)(OP(rows) value, ptrdiff_t begin, ptrdiff_t end, const R *weights, R *out,
                                   ptrdiff_t width, const R *decay, OP(rows) ahead, const int NR, const int NC) {
    V acc[4][8];
    FA_UNROLL for (int r = 0; r < NR; r++) FA_UNROLL for (int c = 0; c < NC; c++) acc[r][c] = (V){0};
    for (ptrdiff_t t = begin; t < end; t++) {
        V v[8];
        FA_UNROLL for (int c = 0; c < NC; c++) {
            v[c] = OP(load)(value.data + t * value.stride + c * LANES);
            PREFETCH(ahead.data + t * ahead.stride + c * LANES);
        }
        FA_UNROLL for (int r = 0; r < NR; r++) {
            V p = OP(splat)(weights[r * FEW_KEYS + t]);
            FA_UNROLL for (int c = 0; c < NC; c++) acc[r][c] += p * v[c];
        }
    }
    FA_UNROLL for (int r = 0; r < NR; r++)
        FA_UNROLL for (int c = 0; c < NC; c++) {
            R *at = out + r * width + c * LANES;
            OP(store)(at, decay ? OP(load)(at) * decay[r] + acc[r][c] : OP(load)(at) + acc[r][c]);
        }
}

FA_INLINE void OP(few_values)(OP(rows) value, ptrdiff_t begin, ptrdiff_t end, const R *weights, R *out,
                              ptrdiff_t width, const R *decay, OP(rows) ahead, const int NR, const int NC) {
    ptrdiff_t d = 0;
#define CALL(C)                                                                                                        \
    OP(few_value_block)((OP(rows)){value.data + d, value.stride}, begin, end, weights, out + d, width, decay,          \
                        (OP(rows)){ahead.data + d, ahead.stride}, NR, C)
    for (; d + NC * LANES <= width; d += NC * LANES) CALL(NC);
    for (; d < width; d += LANES) CALL(1);
#undef CALL
}

/* What stands between a row's products and its weights, in the contract's order: softcap, ALiBi, mask, and -inf for
 * keys that are not its own and for what fills up the last vector. */
static void OP(few_settle)(const fa_attention *a, const OP(few) *few, int has_slopes, ptrdiff_t row,
                           ptrdiff_t first_key, ptrdiff_t count) {
    const OP(softcap) cap = OP(softcap_of)(a);
    R *scores = few->scores + row * FEW_KEYS;
    int biased = few->kinds[row] != BLOCK_ADMITS;
    V key;
    FA_UNROLL for (int lane = 0; lane < LANES; lane++) key[lane] = (R)lane;
    if (cap.cap != 0 || has_slopes || biased)
        for (ptrdiff_t t = 0; t < count; t += LANES) {
            V score = OP(load)(scores + t);
            if (cap.cap != 0) score = OP(capped)(score, cap);
            if (has_slopes) {
                V apart = OP(distance)(OP(splat)(few->position[row] - (R)first_key), key + (R)t);
                score -= few->slope[row] * apart;
            }
            if (biased) score = OP(biased)(score, OP(load)(few->bias + row * FEW_KEYS + t));
            OP(store)(scores + t, score);
        }
    ptrdiff_t begin = fa_clamp(few->keys[row].begin - first_key, 0, count);
    ptrdiff_t end = fa_clamp(few->keys[row].end - first_key, begin, count);
    ptrdiff_t whole = (count + LANES - 1) / LANES * LANES;
    for (ptrdiff_t t = 0; t < begin; t++) scores[t] = (R)-INFINITY;
    for (ptrdiff_t t = end; t < whole; t++) scores[t] = (R)-INFINITY;
}

/* One row's scores become weights; that of an excluded key is -0.0. */
static void OP(few_weigh)(OP(few) *few, ptrdiff_t row, ptrdiff_t count) {
    const V nothing = OP(splat)((R)-INFINITY);
    R *scores = few->scores + row * FEW_KEYS;
    V top = OP(splat)(few->max[row]), sum = {0};
    for (ptrdiff_t t = 0; t < count; t += LANES) top = OP(max)(OP(load)(scores + t), top);
    R max = OP(lane_max)(top), shift = max == (R)-INFINITY ? 0 : max;
    for (ptrdiff_t t = 0; t < count; t += LANES) {
        V score = OP(load)(scores + t), weight = OP(exact_power)(score - shift);
        sum += weight;
        OP(store)(scores + t, OP(select)(score == nothing, OP(splat)((R)-0.0), weight));
    }
    few->decay[row] = OP(power)(OP(splat)(few->max[row] - shift))[0];
    few->sum[row] = few->sum[row] * few->decay[row] + OP(lane_sum)(sum);
    few->max[row] = max;
}

FA_INLINE void OP(few_score_rows)(const OP(few) *few, OP(rows) key, ptrdiff_t count, ptrdiff_t row, OP(rows) ahead,
                                  const int NR) {
    OP(few_scores)(key, count, few->query + row * few->key_width, few->key_width, few->scores + row * FEW_KEYS,
                   few->scale, ahead, NR);
}

FA_INLINE void OP(few_value_rows)(const OP(few) *few, OP(rows) value, fa_interval keys, ptrdiff_t row, OP(rows) ahead,
                                  const int NR, const int NC) {
    const R *decay = few->decay + row;
    ptrdiff_t t = keys.begin, end;
    do { /* a run's sum is made on its own: rounding errors grow with the length of a chain of additions */
        end = keys.end - t < FEW_KEYS_PER_RUN ? keys.end : t + FEW_KEYS_PER_RUN;
        OP(few_values)(value, t, end, few->scores + row * FEW_KEYS, few->out + row * few->value_width,
                       few->value_width, decay, ahead, NR, NC);
        decay = NULL;
        t = end;
    } while (t < keys.end);
}

/* Each row's mask for a step; returns what kinds there are. */
static int OP(few_masks)(const fa_attention *a, const fa_attention_item *item, OP(few) *few, ptrdiff_t first_key,
                         ptrdiff_t count) {
    int kinds = 0;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        const char *mask = item->mask ? OP(mask_of)(a, item, item->first_row + row) + first_key * a->mask_key : NULL;
        const OP(kinds) none = {{0}, {0}, {0}};
        few->kinds[row] = BLOCK_ADMITS;
        if (mask) few->kinds[row] = OP(kinds_of)(OP(mask_row)(a, mask, count, few->bias + row * FEW_KEYS, none));
        kinds |= few->kinds[row];
    }
    return kinds;
}

static void OP(few_step)(const fa_attention *a, const fa_attention_item *item, OP(few) *few, ptrdiff_t first_key,
                         ptrdiff_t count) {
    int kinds = OP(few_masks)(a, item, few, first_key, count);
    if (kinds == BLOCK_EXCLUDES) return;
    OP(rows) key = OP(rows_at)(few->key_panel, few->key_width, item->key + first_key * a->key_row, a->key_type,
                               a->key_row, a->key_element, count, a->head_size);
    OP(rows) value = OP(rows_at)(few->value_panel, few->value_width, item->value + first_key * a->value_row,
                                 a->value_type, a->value_row, a->value_element, count, a->value_size);
    OP(rows) next = {key.data + count * key.stride, key.stride};
    ptrdiff_t row = 0;
    for (; row + FA_FEW_ROWS <= item->rows; row += FA_FEW_ROWS)
        OP(few_score_rows)(few, key, count, row, value, FA_FEW_ROWS);
    for (; row < item->rows; row++) OP(few_score_rows)(few, key, count, row, value, 1);

    int edge = 0, unclean = kinds & BLOCK_EXCLUDES && !OP(all_finite)(value, count, a->value_size);
    OP(rows) used = unclean ? OP(cleaned)(value, count, few->value_width, few->clean) : value;
    for (row = 0; row < item->rows; row++) {
        OP(few_settle)(a, few, item->slopes != NULL, row, first_key, count);
        OP(few_weigh)(few, row, count);
        edge |= few->keys[row].begin > first_key || few->keys[row].end < first_key + count;
    }
    row = 0;
    for (; !edge && row + FA_FEW_ROWS <= item->rows; row += FA_FEW_ROWS)
        OP(few_value_rows)(few, used, (fa_interval){0, count}, row, next, FA_FEW_ROWS, FA_FEW_COLUMNS);
    for (; row < item->rows; row++) { /* a key that this row does not see is not multiplied either: 0 · NaN is NaN */
        ptrdiff_t begin = fa_clamp(few->keys[row].begin - first_key, 0, count);
        fa_interval keys = {begin, fa_clamp(few->keys[row].end - first_key, begin, count)};
        OP(few_value_rows)(few, used, keys, row, next, 1, 8);
    }
    for (row = 0; unclean && row < item->rows; row++)
        OP(add_unclean)(value, count, few->scores + row * FEW_KEYS, few->value_width,
                        few->out + row * few->value_width, 1);
}

static void OP(few_begin)(const fa_attention *a, const fa_attention_item *item, OP(few) *few) {
    few->any = (fa_interval){item->key_end, item->key_begin};
    few->scale = (R)a->scale;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        ptrdiff_t at = item->first_row + row;
        const char *from = item->query + OP(row_offset)(a, at, a->query_head, a->query_row);
        R *to = few->query + row * few->key_width;
        for (ptrdiff_t d = 0; d < few->key_width; d++) {
            R x = 0;
            if (d < a->head_size) memcpy(&x, from + d * a->query_element, sizeof x);
            to[d] = x;
        }
        fa_interval keys = few->keys[row] = fa_keys_of(a, item, at / a->group);
        few->position[row] = (R)(at / a->group + item->q_offset);
        few->slope[row] = item->slopes ? ((const R *)item->slopes)[at % a->group] : 0;
        few->max[row] = item->sinks ? ((const R *)item->sinks)[at % a->group] : (R)-INFINITY;
        few->sum[row] = few->max[row] == (R)-INFINITY ? 0 : 1;
        if (keys.begin == keys.end) continue;
        if (keys.begin < few->any.begin) few->any.begin = keys.begin;
        if (keys.end > few->any.end) few->any.end = keys.end;
    }
    memset(few->out, 0, (size_t)(item->rows * few->value_width) * sizeof(R));
}

static void OP(few_finish)(const fa_attention *a, const fa_attention_item *item, const OP(few) *few) {
    int part = item->part_sum != NULL;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        ptrdiff_t at = item->first_row + row, element = part ? (ptrdiff_t)sizeof(R) : a->out_element;
        char *to = part ? (char *)((R *)item->part_out + row * a->value_size)
                        : item->out + OP(row_offset)(a, at, a->out_head, a->out_row);
        R sum = few->sum[row] == 0 ? 1 : few->sum[row];
        for (ptrdiff_t d = 0; d < a->value_size; d++) {
            R x = few->out[row * few->value_width + d] / sum;
            memcpy(to + d * element, &x, sizeof x);
        }
        if (part) {
            ((R *)item->part_max)[row] = few->max[row];
            ((R *)item->part_sum)[row] = few->sum[row];
        } else if (item->lse) {
            R lse = OP(log_sum)(few->max[row], few->sum[row]);
            memcpy(item->lse + OP(row_offset)(a, at, a->lse_head, a->lse_row), &lse, sizeof lse);
        }
    }
}

/* Scratch of `rows` rows; its size where `at` is NULL. */
static ptrdiff_t OP(lay_out_few)(const fa_attention *a, OP(few) *few, char *at, ptrdiff_t rows) {
    const char *begin = at;
    few->key_width = (a->head_size + LANES - 1) / LANES * LANES;
    few->value_width = (a->value_size + LANES - 1) / LANES * LANES;
    few->query = OP(carve)(&at, rows * few->key_width);
    few->scores = OP(carve)(&at, rows * FEW_KEYS);
    few->bias = OP(carve)(&at, rows * FEW_KEYS);
    few->clean = OP(carve)(&at, FEW_KEYS * few->value_width);
    few->out = OP(carve)(&at, rows * few->value_width);
    few->key_panel = OP(carve)(&at, FEW_KEYS * few->key_width);
    few->value_panel = OP(carve)(&at, FEW_KEYS * few->value_width);
    return at - begin;
}

static ptrdiff_t OP(few_scratch)(const fa_attention *a) {
    OP(few) few;
    return OP(lay_out_few)(a, &few, NULL, FA_FEW_MOST);
}

static void EXPORT(attention_few)(const fa_attention *a, const fa_attention_item *item, void *scratch) {
    OP(few) few;
    OP(lay_out_few)(a, &few, scratch, item->rows);
    OP(few_begin)(a, item, &few);
    for (ptrdiff_t key = few.any.begin; key < few.any.end; key += FEW_KEYS)
        OP(few_step)(a, item, &few, key, fa_clamp(few.any.end - key, 0, FEW_KEYS));
    OP(few_finish)(a, item, &few);
}
