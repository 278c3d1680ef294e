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
    R *query, *scores, *bias, *factors, *clean, *out, *key_panel, *value_panel; /* scores and biases: [rows][FEW_KEYS] */
    R scale; /* applied to the scores: scaling the queries would round every component */
    R max[FA_FEW_MOST], sum[FA_FEW_MOST], decay[FA_FEW_MOST];
    R position[FA_FEW_MOST], slope[FA_FEW_MOST];
    int kinds[FA_FEW_MOST]; /* of mask in this step */
    fa_interval keys[FA_FEW_MOST], any;
} OP(few);

/* Key or value rows of a block, one by one; elements of the type side by side, whole vectors of them. */
typedef struct {
    const char *row[FEW_KEYS];
    fa_type type;
} OP(few_rows);

/* Vector `d / LANES` of a row. */
#define AT(row, d) ((row) + (d) * fa_size_of(TYPE))
/* Whether a cache line of such elements begins with element d. */
#define BEGINS_LINE(d) ((d) * fa_size_of(TYPE) % 64 == 0)

/* scores[NR][count] of `count` keys; `ahead` is what will be read next. */
FA_INLINE void OP(few_scores)(const char *const *key, ptrdiff_t count, const R *query, ptrdiff_t width, R *scores, R scale,
                              const char *const *ahead, const fa_type TYPE, const int NR) {
    for (ptrdiff_t t = 0; t < count; t += FOLD) {
        V acc[FA_FEW_ROWS][FOLD];
        const char *row[FOLD], *next[FOLD];
        FA_UNROLL for (int i = 0; i < FOLD; i++) {
            ptrdiff_t at = t + i < count ? t + i : count - 1;
            row[i] = key[at];
            next[i] = ahead[at];
            FA_UNROLL for (int r = 0; r < NR; r++) acc[r][i] = (V){0};
        }
        for (ptrdiff_t d = 0; d < width; d += LANES) {
            V k[FOLD];
            FA_UNROLL for (int i = 0; i < FOLD; i++) {
                k[i] = OP(load_as)(AT(row[i], d), TYPE);
                if (BEGINS_LINE(d)) PREFETCH(AT(next[i], d));
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

/* out[NR][NC vectors] = out · decay + weights of the keys [begin, end) times their values from element d on. */
FA_INLINE void OP(few_value_block)(const char *const *value, ptrdiff_t d, ptrdiff_t begin, ptrdiff_t end, const R *weights,
                                   R *out, ptrdiff_t width, const R *decay, const char *const *ahead, const fa_type TYPE,
                                   const int NR, const int NC) {
    V acc[4][8];
    FA_UNROLL for (int r = 0; r < NR; r++) FA_UNROLL for (int c = 0; c < NC; c++) acc[r][c] = (V){0};
    for (ptrdiff_t t = begin; t < end; t++) {
        V v[8];
        const char *row = AT(value[t], d), *next = AT(ahead[t], d);
        FA_UNROLL for (int c = 0; c < NC; c++) {
            v[c] = OP(load_as)(AT(row, c * LANES), TYPE);
            if (BEGINS_LINE(c * LANES)) PREFETCH(AT(next, c * LANES));
        }
        FA_UNROLL for (int r = 0; r < NR; r++) {
            V p = OP(splat)(weights[r * FEW_KEYS + t]);
            FA_UNROLL for (int c = 0; c < NC; c++) acc[r][c] += p * v[c];
        }
    }
    FA_UNROLL for (int r = 0; r < NR; r++)
        FA_UNROLL for (int c = 0; c < NC; c++) {
            R *at = out + r * width + d + c * LANES;
            OP(store)(at, decay ? OP(load)(at) * decay[r] + acc[r][c] : OP(load)(at) + acc[r][c]);
        }
}

FA_INLINE void OP(few_values)(const char *const *value, ptrdiff_t begin, ptrdiff_t end, const R *weights, R *out,
                              ptrdiff_t width, const R *decay, const char *const *ahead, const fa_type TYPE, const int NR,
                              const int NC) {
    ptrdiff_t d = 0;
#define CALL(C) OP(few_value_block)(value, d, begin, end, weights, out, width, decay, ahead, TYPE, NR, C)
    for (; d + NC * LANES <= width; d += NC * LANES) CALL(NC);
    for (; d < width; d += LANES) CALL(1);
#undef CALL
}

/* Rows of a block as they lie or, where that does not serve, widened to `panel`. */
static void OP(few_rows_at)(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                            ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, ptrdiff_t width, R *panel,
                            OP(few_rows) *to) {
    int in_place = 0;
#define STORES(TYPE) in_place = 1
    FA_FOR_STORED(rows->type, STORES);
#undef STORES
    in_place &= width == size && OP(side_by_side)(data, rows->row | rows->page, rows->element, rows->type);
    to->type = in_place ? rows->type : STORED;
    fa_addresses(a, item, data, rows->row, rows->page, first, count, to->row);
    for (ptrdiff_t t = 0; !in_place && t < count; t++) {
        R *at = panel + t * width;
        OP(widen)(at, to->row[t], rows->type, rows->element, size);
        memset(at + size, 0, (size_t)(width - size) * sizeof(R));
        to->row[t] = (const char *)at;
    }
}

/* The factors of int8 rows, side by side. */
static void OP(few_factors)(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *scales,
                            ptrdiff_t first, ptrdiff_t count, R *factors) {
    const char *from[FEW_KEYS];
    fa_addresses(a, item, scales, rows->scale_row, rows->scale_page, first, count, from);
    for (ptrdiff_t t = 0; t < count; t++) factors[t] = (R)*(const float *)from[t];
    for (ptrdiff_t t = count; t < FEW_KEYS; t++) factors[t] = 0;
}

FA_INLINE void OP(few_multiply)(R *x, const R *factors, ptrdiff_t count) {
    for (ptrdiff_t t = 0; t < count; t += LANES) OP(store)(x + t, OP(load)(x + t) * OP(load)(factors + t));
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

/* Products of some rows with all keys of a block; of the weights with all values, or with those in `keys`. */
FA_INLINE void OP(few_score_rows)(const OP(few) *few, const OP(few_rows) *key, ptrdiff_t count, ptrdiff_t row,
                                  const OP(few_rows) *ahead, const int NR) {
#define CALL(TYPE)                                                                                                     \
    OP(few_scores)(key->row, count, few->query + row * few->key_width, few->key_width, few->scores + row * FEW_KEYS,   \
                   few->scale, ahead->row, TYPE, NR)
    FA_FOR_STORED(key->type, CALL);
#undef CALL
}

FA_INLINE void OP(few_value_rows)(const OP(few) *few, const OP(few_rows) *value, fa_interval keys, ptrdiff_t row,
                                  const OP(few_rows) *ahead, const int NR, const int NC) {
    const R *decay = few->decay + row, *weights = few->scores + row * FEW_KEYS;
    R *out = few->out + row * few->value_width;
    ptrdiff_t t = keys.begin, end;
    do { /* a run's sum is made on its own: rounding errors grow with the length of a chain of additions */
        end = keys.end - t < FEW_KEYS_PER_RUN ? keys.end : t + FEW_KEYS_PER_RUN;
#define CALL(TYPE)                                                                                                     \
    OP(few_values)(value->row, t, end, weights, out, few->value_width, decay, ahead->row, TYPE, NR, NC)
        FA_FOR_STORED(value->type, CALL);
#undef CALL
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

/* The values of a block without what is not finite, where some row excludes such a one; see TILE(cleaned). `unclean` are
 * they all as reals. */
static int OP(few_clean)(const fa_attention *a, const OP(few) *few, ptrdiff_t count, OP(few_rows) *value,
                         OP(rows) *unclean) {
    if (value->type == FA_I8) return 0;
    *unclean = (OP(rows)){few->value_panel, few->value_width};
    for (ptrdiff_t t = 0; t < count; t++) {
        R *at = few->value_panel + t * few->value_width;
        if (value->row[t] != (const char *)at)
            OP(widen)(at, value->row[t], value->type, fa_size_of(value->type), few->value_width);
    }
    if (OP(all_finite)(*unclean, count, a->value_size)) return 0;
    OP(rows) clean = OP(cleaned)(*unclean, count, few->value_width, few->clean);
    value->type = STORED;
    for (ptrdiff_t t = 0; t < count; t++) value->row[t] = (const char *)(clean.data + t * clean.stride);
    return 1;
}

/* One block of keys. `ahead` holds the next one's, and what it holds of this one on entry has been prefetched. */
static void OP(few_step)(const fa_attention *a, const fa_attention_item *item, OP(few) *few, ptrdiff_t first_key,
                         ptrdiff_t count) {
    int kinds = OP(few_masks)(a, item, few, first_key, count);
    if (kinds == BLOCK_EXCLUDES) return;
    OP(few_rows) key, value, next;
    OP(few_rows_at)(a, item, &a->key, item->key, first_key, count, a->head_size, few->key_width, few->key_panel, &key);
    OP(few_rows_at)(a, item, &a->value, item->value, first_key, count, a->value_size, few->value_width,
                    few->value_panel, &value);
    ptrdiff_t more = fa_clamp(few->any.end - first_key - count, 0, count);
    fa_addresses(a, item, item->key, a->key.row, a->key.page, first_key + count, more, next.row);
    for (ptrdiff_t t = more; t < count; t++) next.row[t] = key.row[t];
    ptrdiff_t row = 0;
    for (; row + FA_FEW_ROWS <= item->rows; row += FA_FEW_ROWS)
        OP(few_score_rows)(few, &key, count, row, &value, FA_FEW_ROWS);
    for (; row < item->rows; row++) OP(few_score_rows)(few, &key, count, row, &value, 1);

    if (item->key_scale) OP(few_factors)(a, item, &a->key, item->key_scale, first_key, count, few->factors);
    for (row = 0; item->key_scale && row < item->rows; row++)
        OP(few_multiply)(few->scores + row * FEW_KEYS, few->factors, count);

    int edge = 0;
    for (row = 0; row < item->rows; row++) {
        OP(few_settle)(a, few, item->slopes != NULL, row, first_key, count);
        OP(few_weigh)(few, row, count);
        edge |= few->keys[row].begin > first_key || few->keys[row].end < first_key + count;
    }
    OP(rows) unclean_value = {NULL, 0};
    int unclean = kinds & BLOCK_EXCLUDES && OP(few_clean)(a, few, count, &value, &unclean_value);
    if (item->value_scale) OP(few_factors)(a, item, &a->value, item->value_scale, first_key, count, few->factors);
    for (row = 0; item->value_scale && row < item->rows; row++)
        OP(few_multiply)(few->scores + row * FEW_KEYS, few->factors, count);

    row = 0;
    for (; !edge && row + FA_FEW_ROWS <= item->rows; row += FA_FEW_ROWS)
        OP(few_value_rows)(few, &value, (fa_interval){0, count}, row, &next, FA_FEW_ROWS, FA_FEW_COLUMNS);
    for (; row < item->rows; row++) { /* a key that this row does not see is not multiplied either: 0 · NaN is NaN */
        ptrdiff_t begin = fa_clamp(few->keys[row].begin - first_key, 0, count);
        fa_interval keys = {begin, fa_clamp(few->keys[row].end - first_key, begin, count)};
        OP(few_value_rows)(few, &value, keys, row, &next, 1, 8);
    }
    for (row = 0; unclean && row < item->rows; row++)
        OP(add_unclean)(unclean_value, count, few->scores + row * FEW_KEYS, few->value_width,
                        few->out + row * few->value_width, 1);
}

static void OP(few_begin)(const fa_attention *a, const fa_attention_item *item, OP(few) *few) {
    few->any = (fa_interval){item->key_end, item->key_begin};
    few->scale = (R)a->scale;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        ptrdiff_t at = item->first_row + row;
        const char *from = item->query + OP(row_offset)(a, at, a->query_head, a->query_row);
        R *to = few->query + row * few->key_width;
        OP(widen)(to, from, a->type, a->query_element, a->head_size);
        memset(to + a->head_size, 0, (size_t)(few->key_width - a->head_size) * sizeof(R));
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
        R *out = few->out + row * few->value_width;
        for (ptrdiff_t d = 0; d < a->value_size; d++) out[d] /= sum;
        OP(narrow)(to, part ? STORED : a->type, element, out, a->value_size);
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
    few->factors = OP(carve)(&at, FEW_KEYS);
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

#undef AT
#undef BEGINS_LINE
