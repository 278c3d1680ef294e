/* Attention with the components of a head in the lanes, for few rows per kv head, as in decoding.
 *
 * It is bound by memory, so each key and value row is read once for all rows of the group. Scores are computed for
 * four keys at a time, and their products are reduced together by one transposed reduction. While the keys of a block
 * are multiplied, its values are prefetched; while its values are multiplied, the next block's keys are. */
#ifndef FA_ATTENTION_ROWWISE_H
#define FA_ATTENTION_ROWWISE_H

#include "attention/interval.h"
#include "attention/mask.h"
#include "attention/options.h"
#include "attention/pages.h"
#include "attention/position_bias.h"
#include "attention/query_tile.h"
#include "attention/rowwise_products.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/layout.h"
#include "storage/partial.h"
#include "storage/scratch.h"

typedef struct {
    ptrdiff_t key_width, value_width;     /* head sizes rounded up to whole vectors */
    R *query, *out;                       /* [rows + 1][key_width], [rows + 1][value_width]: see rows_at_once */
    R *scores, *bias;                     /* [rows + 1][ROWWISE_KEYS] */
    R *bias_panel;                        /* [ROWWISE_KEYS], only with position biases */
    R *key_panel, *value_panel, *finite;  /* a block's rows as reals; its values without what is not finite */
    R *factors;                           /* scales of a block's int8 rows */
    uint16_t *query_words, *weight_words; /* [rows][key_width], [rows][ROWWISE_KEYS] */
    fa_type words;                        /* of the rows that are multiplied in pairs; FA_F32 if none is */
    int single[FA_MOST_ROWWISE];          /* rows whose query does not fit into words: scored one by one */
    R factor[FA_MOST_ROWWISE];            /* of each row's scores: scaling the queries would round every component */
    R max[FA_MOST_ROWWISE], sum[FA_MOST_ROWWISE], decay[FA_MOST_ROWWISE];
    R position[FA_MOST_ROWWISE], slope[FA_MOST_ROWWISE];
    int kinds[FA_MOST_ROWWISE]; /* of biases in this step */
    fa_interval keys[FA_MOST_ROWWISE], any;
} rowwise_state;

/* The rows of a block: in place if possible, otherwise widened to `panel`. */
static void block_rows_at(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                          ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, ptrdiff_t width, R *panel, block_rows *to) {
    int in_place = 0;
#define STORES(TYPE) in_place = 1
    FA_FOR_STORED(rows->type, STORES);
#undef STORES
    in_place &= width == size || ends_in_part(rows->type);
    in_place &= are_side_by_side(data, rows->row | rows->page, rows->element, rows->type);
    to->type = in_place ? rows->type : STORED;
    to->size = in_place ? size : width;
    fa_addresses(a, item, data, rows->row, rows->page, first, count, to->row);
    if (in_place) return;
    widen_rows(panel, width, to->row, rows->type, rows->element, count, size);
    for (ptrdiff_t t = 0; t < count; t++) to->row[t] = (const char *)(panel + t * width);
}

/* Reads the scales of int8 rows. */
static void read_scales(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *scales,
                        ptrdiff_t first, ptrdiff_t count, R *factors) {
    const char *from[ROWWISE_KEYS];
    fa_addresses(a, item, scales, rows->scale_row, rows->scale_page, first, count, from);
    if (fa_in_a_row(a, item, first, count)) widen(factors, from[0], FA_F32, rows->scale_row, count);
    else
        for (ptrdiff_t t = 0; t < count; t++) factors[t] = read_element(from[t], FA_F32);
    for (ptrdiff_t t = count; t < ROWWISE_KEYS; t++) factors[t] = 0;
}

FA_INLINE void multiply_by(R *x, const R *factors, ptrdiff_t count) {
    for (ptrdiff_t t = 0; t < count; t += LANES) store(x + t, load(x + t) * load(factors + t));
}

/* Applies the options to the scores of a row, and sets those that only fill up the last vector to -inf. */
static void apply_row_options(const fa_attention *a, const fa_attention_item *item, const rowwise_state *state,
                              ptrdiff_t row, ptrdiff_t first_key, ptrdiff_t count) {
    const ptrdiff_t whole = (count + LANES - 1) / LANES * LANES;
    const ptrdiff_t begin = fa_clamp(state->keys[row].begin - first_key, 0, count);
    const ptrdiff_t end = fa_clamp(state->keys[row].end - first_key, begin, count);
    const score_options options = options_of(a, item, state->kinds[row] != BLOCK_ADMITS, begin > 0 || end < whole);
    const score_rows rows = {splat(state->position[row] - (R)first_key), splat(state->slope[row]), splat_int((I)begin),
                             splat_int((I)end)};
    V real_key;
    VI key;
    if (!any_options(options)) return;
    FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) real_key[lane] = (R)(key[lane] = lane);
    for (ptrdiff_t t = 0; t < whole; t += LANES, key += LANES, real_key += LANES) {
        R *at = state->scores + row * ROWWISE_KEYS + t;
        store(at, apply_options(options, load(at), rows, key, real_key, state->bias + row * ROWWISE_KEYS + t, 0));
    }
}

/* Turns the scores of a row into weights; the weight of an excluded key is -0.0. */
static void exponentiate_row(rowwise_state *state, ptrdiff_t row, ptrdiff_t count) {
    const V nothing = splat((R)-INFINITY);
    R *scores = state->scores + row * ROWWISE_KEYS;
    V top = splat(state->max[row]), sum = {0};
    for (ptrdiff_t t = 0; t < count; t += LANES) top = maximum(load(scores + t), top);
    R max = lane_max(top), shift = max == (R)-INFINITY ? 0 : max;
    for (ptrdiff_t t = 0; t < count; t += LANES) {
        V score = load(scores + t), weight = exp_exact(score - shift);
        sum += weight;
        store(scores + t, choose(score == nothing, splat((R)-0.0), weight));
    }
    state->decay[row] = exp_by_exp2(splat(state->max[row] - shift))[0];
    state->sum[row] = state->sum[row] * state->decay[row] + lane_sum(sum);
    state->max[row] = max;
}

/* CALL(rows at a time) for all rows of the item. */
#define FA_IN_ROWS(rows, CALL)                                                                                         \
    do {                                                                                                               \
        ptrdiff_t row = 0;                                                                                             \
        for (; row + FA_ROWWISE_ROWS <= (rows); row += FA_ROWWISE_ROWS) CALL(FA_ROWWISE_ROWS);                         \
        for (; row + 2 <= (rows); row += 2) CALL(2);                                                                   \
        for (; row < (rows); row++) CALL(1);                                                                           \
    } while (0)

/* The last three rows are multiplied as four: the fourth is zeros, and its results are dropped. As two and one, which
 * read all keys and values twice, they took 1.5 times as long. */
FA_INLINE ptrdiff_t rows_at_once(ptrdiff_t rows) { return rows + (FA_ROWWISE_ROWS == 4 && rows % 4 == 3); }

/* Whether rows of this type are multiplied in pairs. */
FA_INLINE int in_pairs(const rowwise_state *state, fa_type type) {
    return state->words != FA_F32 && state->words == type;
}

#if FA_REAL_IS_FLOAT
/* Scores of one row, not in pairs. */
FA_NOINLINE void rowwise_score_single(const rowwise_state *state, ptrdiff_t row, const block_rows *key, ptrdiff_t count,
                                      const block_rows *ahead) {
#define CALL(TYPE)                                                                                                     \
    rowwise_scores(key->row, count, state->query + row * state->key_width, state->key_width, key->size,                \
                   state->scores + row * ROWWISE_KEYS, state->factor + row, ahead->row, TYPE, 1, 0)
    FA_FOR_STORED(key->type, CALL);
#undef CALL
}
#endif

/* Scores of all rows for a block of keys. */
FA_NOINLINE void rowwise_score_rows(const rowwise_state *state, ptrdiff_t rows, const block_rows *key, ptrdiff_t count,
                                    const block_rows *ahead) {
#if FA_REAL_IS_FLOAT
#define I8(NR)                                                                                                         \
    pair_scores_i8(key->row, count, state->query_words + row * state->key_width, state->key_width,                     \
                   state->scores + row * ROWWISE_KEYS, state->factor + row, ahead->row, NR)
#define BF16(NR)                                                                                                       \
    pair_scores_bf16(key->row, count, state->query_words + row * state->key_width, state->key_width,                   \
                     state->scores + row * ROWWISE_KEYS, state->factor + row, ahead->row, NR)
    if (in_pairs(state, key->type)) {
        if (key->type == FA_I8) FA_IN_ROWS(rows, I8);
#if FA_PAIRS_OF_BF16
        else FA_IN_ROWS(rows, BF16);
#endif
        for (ptrdiff_t row = 0; row < rows; row++)
            if (state->single[row]) rowwise_score_single(state, row, key, count, ahead);
        return;
    }
#undef I8
#undef BF16
#endif
#define SINGLES(NR, PARTIAL)                                                                                           \
    rowwise_scores(key->row, count, state->query + row * state->key_width, state->key_width, key->size,                \
                   state->scores + row * ROWWISE_KEYS, state->factor + row, ahead->row, TYPE, NR, PARTIAL)
#define WHOLE(NR) SINGLES(NR, 0)
#define PART(NR) SINGLES(NR, 1)
#define CALL(STORED_AS)                                                                                                \
    do {                                                                                                               \
        const fa_type TYPE = STORED_AS;                                                                                \
        if (ends_in_part(TYPE) && key->size < state->key_width) FA_IN_ROWS(rows_at_once(rows), PART);                  \
        else FA_IN_ROWS(rows_at_once(rows), WHOLE);                                                                    \
    } while (0)
    FA_FOR_STORED(key->type, CALL);
#undef CALL
#undef PART
#undef WHOLE
#undef SINGLES
}

/* Weights of NR rows times the values of the keys in `keys`. */
FA_INLINE void rowwise_value_singles(const rowwise_state *state, const block_rows *value, fa_interval keys,
                                     ptrdiff_t row, const block_rows *ahead, const int NR, const int NC) {
    const R *decay = state->decay + row, *weights = state->scores + row * ROWWISE_KEYS;
    R *out = state->out + row * state->value_width;
    ptrdiff_t t = keys.begin, end;
    do { /* a run's sum is made on its own: rounding errors grow with the length of a chain of additions */
        end = keys.end - t < ROWWISE_KEYS_PER_RUN ? keys.end : t + ROWWISE_KEYS_PER_RUN;
#define CALL(TYPE)                                                                                                     \
    rowwise_values(value->row, t, end, weights, out, state->value_width, value->size, decay, ahead->row, TYPE, NR, NC)
        FA_FOR_STORED(value->type, CALL);
#undef CALL
        decay = NULL;
        t = end;
    } while (t < keys.end);
}

/* The same for all rows and all keys of a block, in pairs. Returns a bit for each row whose weights do not fit into
 * pairs: nothing was added for these rows. */
FA_NOINLINE unsigned rowwise_value_pairs(const rowwise_state *state, ptrdiff_t rows, const block_rows *value,
                                         ptrdiff_t count, const block_rows *ahead) {
#if FA_REAL_IS_FLOAT
    R factor[FA_MOST_ROWWISE], decay[FA_MOST_ROWWISE];
    ptrdiff_t whole = (count + LANES - 1) / LANES * LANES;
    unsigned single = 0;
    for (ptrdiff_t row = 0; row < rows; row++) {
        uint16_t *words = state->weight_words + row * ROWWISE_KEYS;
        decay[row] = state->decay[row];
        if (as_words(state->scores + row * ROWWISE_KEYS, whole, value->type, WORDS_MOST, words, factor + row)) continue;
        single |= 1u << row;
        memset(words, 0, (size_t)whole * sizeof *words);
        factor[row] = 0;
        decay[row] = 1;
    }
    if (single == (1u << rows) - 1) return single;
#define I8(NR)                                                                                                         \
    pair_values_i8(value->row, count, state->weight_words + row * ROWWISE_KEYS, state->out + row * state->value_width, \
                   state->value_width, decay + row, factor + row, ahead->row, NR, 2)
#define BF16(NR)                                                                                                       \
    pair_values_bf16(value->row, count, state->weight_words + row * ROWWISE_KEYS,                                      \
                     state->out + row * state->value_width, state->value_width, decay + row, factor + row, ahead->row, \
                     NR, 2)
    if (value->type == FA_I8) FA_IN_ROWS(rows, I8);
#if FA_PAIRS_OF_BF16
    else FA_IN_ROWS(rows, BF16);
#endif
#undef I8
#undef BF16
    return single;
#else
    return (1u << rows) - 1;
#endif
}

/* The keys of a block that a row sees, counted from its first one. */
FA_INLINE fa_interval keys_within(const rowwise_state *state, ptrdiff_t row, ptrdiff_t first_key, ptrdiff_t count) {
    ptrdiff_t begin = fa_clamp(state->keys[row].begin - first_key, 0, count);
    return (fa_interval){begin, fa_clamp(state->keys[row].end - first_key, begin, count)};
}

/* How many rows from this one on take the values together: rows that see the same keys of the block. The last three go
 * as four (see rows_at_once), three others as two and one. Two rows, one by one, read all values twice, and a call took
 * 1.1 to 1.2 times as long. */
static ptrdiff_t rows_alike(const rowwise_state *state, ptrdiff_t rows, ptrdiff_t row, ptrdiff_t first_key,
                            ptrdiff_t count) {
    const fa_interval keys = keys_within(state, row, first_key, count);
    ptrdiff_t alike = 1;
    for (; alike < FA_ROWWISE_ROWS && row + alike < rows; alike++) {
        const fa_interval others = keys_within(state, row + alike, first_key, count);
        if (others.begin != keys.begin || others.end != keys.end) break;
    }
    return alike == 3 && row + alike < rows ? 2 : alike;
}

/* Reads each row's biases for a step. Returns the kinds that occur. */
static int rowwise_biases(const fa_attention *a, const fa_attention_item *item, rowwise_state *state,
                          ptrdiff_t first_key, ptrdiff_t count) {
    int kinds = 0;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        const char *mask = item->mask ? mask_of(a, item, item->first_row + row) + first_key * a->mask_stride : NULL;
        const mask_kinds none = {{0}, {0}, {0}};
        R *bias = state->bias + row * ROWWISE_KEYS;
        state->kinds[row] = BLOCK_ADMITS;
        if (mask) state->kinds[row] = kinds_noted(mask_row(a, mask, count, bias, none));
        if (item->position_bias)
            state->kinds[row] = add_row_biases(a, item, item->first_row + row, first_key, count, state->bias_panel,
                                               bias, state->kinds[row]);
        kinds |= state->kinds[row];
    }
    return kinds;
}

/* The values of a block with 0 for what is not finite, where some row excludes such a value; see finite_values.
 * `nonfinite` are all of them, as reals. What was multiplied in pairs still is: no bit of another row differs. */
static int finite_block(const fa_attention *a, const rowwise_state *state, ptrdiff_t count, block_rows *value,
                        unit_rows *has_nonfinite) {
    if (value->type == FA_I8) return 0;
    *has_nonfinite = (unit_rows){state->value_panel, state->value_width};
    for (ptrdiff_t t = 0; t < count; t++) {
        R *at = state->value_panel + t * state->value_width;
        if (value->row[t] == (const char *)at) continue;
        widen(at, value->row[t], value->type, fa_size_of(value->type), value->size);
        memset(at + value->size, 0, (size_t)(state->value_width - value->size) * sizeof(R));
    }
    if (all_finite(*has_nonfinite, count, a->value_size)) return 0;
    finite_values(*has_nonfinite, count, state->value_width, state->finite);
    const int pairs = in_pairs(state, value->type);
    if (!pairs) value->type = STORED;
    value->size = state->value_width;
    for (ptrdiff_t t = 0; t < count; t++) {
        R *at = state->finite + t * state->value_width;
        if (pairs)
            narrow((char *)at, value->type, fa_size_of(value->type), at, state->value_width); /* as it was: exact */
        value->row[t] = (const char *)at;
    }
    return 1;
}

/* One block of keys. The first rows of the next block are prefetched meanwhile. */
static void rowwise_step(const fa_attention *a, const fa_attention_item *item, rowwise_state *state,
                         ptrdiff_t first_key, ptrdiff_t count) {
    int kinds = rowwise_biases(a, item, state, first_key, count);
    if (kinds == BLOCK_EXCLUDES) return;
    block_rows key, value, next;
    block_rows_at(a, item, &a->key, item->key, first_key, count, a->head_size, state->key_width, state->key_panel,
                  &key);
    block_rows_at(a, item, &a->value, item->value, first_key, count, a->value_size, state->value_width,
                  state->value_panel, &value);
    ptrdiff_t more = fa_clamp(state->any.end - first_key - count, 0, count);
    fa_addresses(a, item, item->key, a->key.row, a->key.page, first_key + count, more, next.row);
    for (ptrdiff_t t = more; t < count; t++) next.row[t] = key.row[t];
    rowwise_score_rows(state, item->rows, &key, count, &value);

    if (item->key_scale) read_scales(a, item, &a->key, item->key_scale, first_key, count, state->factors);
    for (ptrdiff_t row = 0; item->key_scale && row < item->rows; row++)
        multiply_by(state->scores + row * ROWWISE_KEYS, state->factors, count);

    int edge = 0;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        apply_row_options(a, item, state, row, first_key, count);
        exponentiate_row(state, row, count);
        edge |= state->keys[row].begin > first_key || state->keys[row].end < first_key + count;
    }
    unit_rows nonfinite_value = {NULL, 0};
    /* Alone, a row does not multiply keys that it does not see; in pairs it does, by 0, and 0 · NaN is NaN. */
    int excludes = kinds & BLOCK_EXCLUDES || (edge && in_pairs(state, value.type));
    int has_nonfinite = excludes && finite_block(a, state, count, &value, &nonfinite_value);
    if (item->value_scale) read_scales(a, item, &a->value, item->value_scale, first_key, count, state->factors);
    for (ptrdiff_t row = 0; item->value_scale && row < item->rows; row++)
        multiply_by(state->scores + row * ROWWISE_KEYS, state->factors, count);

    const unsigned all = (1u << item->rows) - 1;
    unsigned single = in_pairs(state, value.type) ? rowwise_value_pairs(state, item->rows, &value, count, &next) : all;
    for (ptrdiff_t row = 0, rows; row < item->rows; row += rows) {
        rows = single == all ? rows_alike(state, item->rows, row, first_key, count) : 1;
        if (!(single >> row & 1)) continue;
        const fa_interval keys = keys_within(state, row, first_key, count);
        if (FA_ROWWISE_ROWS > 2 && rows > 2)
            rowwise_value_singles(state, &value, keys, row, &next, FA_ROWWISE_ROWS, FA_ROWWISE_VECTORS);
        else if (rows == 2) rowwise_value_singles(state, &value, keys, row, &next, 2, 4);
        else rowwise_value_singles(state, &value, keys, row, &next, 1, 8);
    }
    for (ptrdiff_t row = 0; has_nonfinite && row < item->rows; row++)
        add_nonfinite(nonfinite_value, count, state->scores + row * ROWWISE_KEYS, state->value_width,
                      state->out + row * state->value_width, 1);
}

/* Decides which rows can be multiplied in pairs, and converts their queries. */
static void choose_pairs(const fa_attention *a, rowwise_state *state, ptrdiff_t rows) {
#if FA_REAL_IS_FLOAT
    int bf16 = FA_PAIRS_OF_BF16 && a->type == FA_BF16 && a->key.type == FA_BF16 && a->value.type == FA_BF16;
    int i8 = a->key.type == FA_I8 && a->value.type == FA_I8;
    if (!(bf16 || i8) || a->head_size % WORDS || a->value_size % WORDS) return;
    /* int8 by this, head_size times, stays below 2^31. */
    R most = 16e6f / (R)a->head_size < WORDS_MOST ? 16e6f / (R)a->head_size : WORDS_MOST, factor;
    for (ptrdiff_t row = 0; row < rows; row++) {
        uint16_t *words = state->query_words + row * state->key_width;
        state->single[row] = !as_words(state->query + row * state->key_width, state->key_width, a->key.type,
                                       floorf(most), words, &factor);
        if (state->single[row]) memset(words, 0, (size_t)state->key_width * sizeof *words);
        else {
            state->factor[row] = (R)a->scale * factor;
            state->words = a->key.type;
        }
    }
#else
#endif
}

static void begin_rowwise(const fa_attention *a, const fa_attention_item *item, rowwise_state *state, int pairs) {
    state->any = (fa_interval){item->key_end, item->key_begin};
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        ptrdiff_t at = item->first_row + row;
        const char *from = item->query + row_offset(a, at, a->query_head_stride, a->query_row_stride);
        R *to = state->query + row * state->key_width;
        widen(to, from, a->type, a->query_stride, a->head_size);
        memset(to + a->head_size, 0, (size_t)(state->key_width - a->head_size) * sizeof(R));
        state->factor[row] = (R)a->scale;
        fa_interval keys = state->keys[row] = fa_keys_of(item, at / a->group);
        state->position[row] = (R)((double)(at / a->group) + (double)item->q_offset);
        state->slope[row] = item->slopes ? ((const R *)item->slopes)[at % a->group] : 0;
        state->max[row] = item->sinks ? ((const R *)item->sinks)[at % a->group] : (R)-INFINITY;
        state->sum[row] = state->max[row] == (R)-INFINITY ? 0 : 1;
        if (keys.begin == keys.end) continue;
        if (keys.begin < state->any.begin) state->any.begin = keys.begin;
        if (keys.end > state->any.end) state->any.end = keys.end;
    }
    memset(state->query + item->rows * state->key_width, 0, (size_t)state->key_width * sizeof(R));
    memset(state->scores + item->rows * ROWWISE_KEYS, 0, ROWWISE_KEYS * sizeof(R));
    state->factor[item->rows] = state->decay[item->rows] = 0;
    state->words = FA_F32;
    if (pairs) choose_pairs(a, state, item->rows);
    memset(state->out, 0, (size_t)((item->rows + 1) * state->value_width) * sizeof(R));
}

static void finish_rowwise(const fa_attention *a, const fa_attention_item *item, const rowwise_state *state) {
    int part = item->part_sum != NULL;
    for (ptrdiff_t row = 0; row < item->rows; row++) {
        ptrdiff_t at = item->first_row + row, element = part ? (ptrdiff_t)sizeof(R) : a->out_stride;
        char *to = part ? (char *)((R *)item->part_out + row * a->value_size)
                        : item->out + row_offset(a, at, a->out_head_stride, a->out_row_stride);
        R sum = state->sum[row] == 0 ? 1 : state->sum[row];
        R *out = state->out + row * state->value_width;
        for (ptrdiff_t d = 0; d < a->value_size; d++) out[d] /= sum;
        narrow(to, part ? STORED : a->type, element, out, a->value_size);
        if (part) {
            ((R *)item->part_max)[row] = state->max[row];
            ((R *)item->part_sum)[row] = state->sum[row];
        } else if (item->lse) {
            R lse = log_sum(state->max[row], state->sum[row]);
            memcpy(item->lse + row_offset(a, at, a->lse_head_stride, a->lse_row_stride), &lse, sizeof lse);
        }
    }
}

/* Lays out the scratch memory of `rows` rows. Returns its size; with `at` NULL it does nothing else. */
static ptrdiff_t lay_out_rowwise(const fa_attention *a, rowwise_state *state, char *at, ptrdiff_t rows) {
    const char *begin = at;
    rows++;
    state->key_width = (a->head_size + LANES - 1) / LANES * LANES;
    state->value_width = (a->value_size + LANES - 1) / LANES * LANES;
    state->query = take_scratch(&at, rows * state->key_width);
    state->scores = take_scratch(&at, rows * ROWWISE_KEYS);
    state->bias = take_scratch(&at, rows * ROWWISE_KEYS);
    state->query_words = (uint16_t *)take_scratch(&at, rows * state->key_width);
    state->weight_words = (uint16_t *)take_scratch(&at, rows * ROWWISE_KEYS);
    state->factors = take_scratch(&at, ROWWISE_KEYS);
    state->finite = take_scratch(&at, ROWWISE_KEYS * state->value_width);
    state->out = take_scratch(&at, rows * state->value_width);
    state->key_panel = take_scratch(&at, ROWWISE_KEYS * state->key_width);
    state->value_panel = take_scratch(&at, ROWWISE_KEYS * state->value_width);
    state->bias_panel = take_scratch(&at, a->bias_reach < 0 ? 0 : ROWWISE_KEYS);
    return at - begin;
}

static ptrdiff_t rowwise_scratch(const fa_attention *a) {
    rowwise_state state;
    return lay_out_rowwise(a, &state, NULL, FA_MOST_ROWWISE);
}

static int row_is_nan(const rowwise_state *state, ptrdiff_t row) {
    const R *out = state->out + row * state->value_width;
    int found = 0;
    for (ptrdiff_t d = 0; d < state->value_width; d++) found |= out[d] != out[d];
    return found;
}

/* Whether a row's results must be computed again: see FA_LEAST_SUM. A row with NaN does not count, or other rows
 * would be computed again because of it. */
static int rowwise_is_flushed(const rowwise_state *state, ptrdiff_t rows) {
    for (ptrdiff_t row = 0; state->words == FA_BF16 && row < rows; row++) {
        V top = {0};
        for (ptrdiff_t d = 0; d < state->value_width; d += LANES) {
            V x = load(state->out + row * state->value_width + d);
            top = maximum(x, maximum(-x, top));
        }
        if (lane_max(top) < (R)FA_LEAST_SUM && state->sum[row] > 0 && !row_is_nan(state, row)) return 1;
    }
    return 0;
}

static void attend_rowwise(const fa_attention *a, const fa_attention_item *item, rowwise_state *state, int pairs) {
    begin_rowwise(a, item, state, pairs);
    for (ptrdiff_t key = state->any.begin; key < state->any.end; key += ROWWISE_KEYS)
        rowwise_step(a, item, state, key, fa_clamp(state->any.end - key, 0, ROWWISE_KEYS));
}

static void EXPORT(attention_rowwise)(const fa_attention *a, const fa_attention_item *item, void *scratch) {
    rowwise_state state;
    lay_out_rowwise(a, &state, scratch, item->rows);
    attend_rowwise(a, item, &state, 1);
    if (rowwise_is_flushed(&state, item->rows)) attend_rowwise(a, item, &state, 0);
    finish_rowwise(a, item, &state);
}

#endif
