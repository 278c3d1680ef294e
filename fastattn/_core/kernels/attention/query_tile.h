/* One tile of queries and one step of keys.
 *
 *   S' = K Q'             keys are broadcast from memory in place; queries are transposed, so that a lane is a row
 *   P' = e^(S' - max)     maximum, sum and rescaling work lane by lane, without horizontal operations
 *   O' = O' + V' P'       the same product again, with value elements broadcast
 *
 * Online softmax: Milakov and Gimelshein 2018; tiling over keys: Rabe and Staats 2021, Dao et al. 2022. A tile is NV
 * vectors wide. NV and the rows of a register block are constants of each instantiation. A key costs head_size +
 * value_size FMAs for each vector of rows, and 9 (AVX-512) to 13 operations for its weight. */
#ifndef FA_ATTENTION_QUERY_TILE_H
#define FA_ATTENTION_QUERY_TILE_H

#include "attention/interval.h"
#include "attention/mask.h"
#include "attention/options.h"
#include "attention/position_bias.h"
#include "attention/products.h"
#include "simd/lanes.h"

typedef struct {
    ptrdiff_t first_row, rows, vectors; /* lanes beyond `rows` repeat the last one and are dropped in the end */
    R *query, *out; /* [PADDED_UNITS(head_size)][vectors][LANES], [PADDED_COMPONENTS(value_size)][vectors][LANES] */
    R *scores;      /* [KEYS_PER_STEP][vectors][LANES], shared by the tiles of an item */
    R *finite;      /* values without what is not finite, likewise */
    R *mask_rows, *bias;                       /* [LANES][KEYS_PER_STEP], [KEYS_PER_STEP][vectors][LANES], likewise */
    R *bias_panel;                             /* as large as `bias`, likewise; only with position biases */
    const char *mask[FA_TILE_VECTORS * LANES]; /* each lane's row of the mask */
    int one_mask;                              /* all lanes have the same row, and no position biases */
    V position[FA_TILE_VECTORS], slope[FA_TILE_VECTORS];
    V max[FA_TILE_VECTORS], sum[FA_TILE_VECTORS], decay[FA_TILE_VECTORS];
    R factor; /* takes the scores of a step to natural units */
    ptrdiff_t begin[FA_TILE_VECTORS * LANES], end[FA_TILE_VECTORS * LANES]; /* the keys of each lane */
    fa_interval any, all; /* keys that some lane sees, keys that every lane sees */
} query_tile;

/* A row may exclude a key whose value is not finite, and 0 · NaN would be NaN. So non-finite values are first
 * replaced by 0, and afterwards added to the rows that do attend to them; the weight of an excluded key is -0.0. This
 * is rare, so the code is short rather than fast. */
FA_INLINE int is_excluded(R weight) { return weight == 0 && signbit(weight); }

static void add_nonfinite(unit_rows value, ptrdiff_t count, const R *weights, ptrdiff_t size, R *out, ptrdiff_t lanes) {
    for (ptrdiff_t t = 0; t < count; t++)
        for (ptrdiff_t d = 0; d < size; d++) {
            R x = value_at(value, t, d);
            for (ptrdiff_t lane = 0; !isfinite(x) && lane < lanes; lane++) {
                R weight = weight_at(weights, lanes, t, lane);
                if (!is_excluded(weight)) out[d * lanes + lane] += weight * x;
            }
        }
}

/* The keys and values of a step; first_key is the number of the first. */
typedef struct {
    unit_rows key, value;
    ptrdiff_t first_key, count;
    int finite; /* the values are known to be */
} key_step;

/* Stores the biases of as many keys as there are lanes, a vector of rows for each. */
FA_INLINE void put_biases(const V *bias, R *to, ptrdiff_t NV) {
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) store(to + i * NV * LANES, bias[i]);
}

/* Reads the biases of a vector of rows; lanes beyond the last row repeat its mask. A mask of reals side by side is
 * transposed as it is loaded, and prefetched for the next step; any other is first converted, row by row, in `rows`. */
static mask_kinds read_lanes(const fa_attention *a, const char *const *mask, ptrdiff_t last, ptrdiff_t count, R *rows,
                             R *to, ptrdiff_t NV, mask_kinds kinds) {
    const R *row[LANES];
    V bias[LANES];
    ptrdiff_t t = 0;
    FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) row[lane] = (const R *)mask[lane];
    if (a->mask_type == STORED && a->mask_stride == (ptrdiff_t)sizeof(R))
        for (; t + LANES <= count; t += LANES) {
            FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) __builtin_prefetch(row[lane] + t + count, 0, 3);
            FA_UNROLL_FOR(int k = 0; k < LANES; k += TRANSPOSED) load_rows_transposed(row, t + k, bias + k);
            FA_UNROLL_FOR(int i = 0; i < LANES; i++) kinds = note_kinds(kinds, bias[i]);
            put_biases(bias, to + t * NV * LANES, NV);
        }
    for (ptrdiff_t lane = 0; t < count && lane < LANES; lane++) {
        R *at = rows + fa_clamp(lane, 0, last) * KEYS_PER_STEP;
        if (lane <= last) kinds = mask_row(a, mask[lane] + t * a->mask_stride, count - t, at, kinds);
        row[lane] = at;
    }
    for (ptrdiff_t u = 0; t + u < count; u += LANES) {
        FA_UNROLL_FOR(int k = 0; k < LANES; k += TRANSPOSED) load_rows_transposed(row, u + k, bias + k);
        put_biases(bias, to + (t + u) * NV * LANES, NV);
    }
    return kinds;
}

/* Reads the step's part of the mask as biases, lane by lane or one for all lanes. Returns the kinds that occur. */
static int read_mask(const fa_attention *a, query_tile *tile, key_step step) {
    const ptrdiff_t offset = step.first_key * a->mask_stride, NV = tile->vectors;
    mask_kinds kinds = {{0}, {0}, {0}};
    if (tile->one_mask) return kinds_noted(mask_row(a, tile->mask[0] + offset, step.count, tile->mask_rows, kinds));
    for (ptrdiff_t j = 0; j < NV; j++) {
        const char *mask[LANES];
        for (ptrdiff_t lane = 0; lane < LANES; lane++) mask[lane] = tile->mask[j * LANES + lane] + offset;
        kinds = read_lanes(a, mask, fa_clamp(tile->rows - j * LANES, 1, LANES) - 1, step.count, tile->mask_rows,
                           tile->bias + j * LANES, NV, kinds);
    }
    return kinds_noted(kinds);
}

/* Reads all biases of a step: those of the mask and those by distance, in one. */
FA_INLINE int read_biases(const fa_attention *a, const fa_attention_item *item, query_tile *tile, key_step step) {
    int kinds = item->mask ? read_mask(a, tile, step) : BLOCK_ADMITS;
    if (item->position_bias == NULL || kinds == BLOCK_EXCLUDES) return kinds;
    return add_lane_biases(a, item, tile->first_row, tile->vectors, step.first_key, step.count, tile->bias_panel,
                           tile->bias, kinds);
}

/* Adds the biases of a mask to the scores of a step and raises the maximum of each lane; even and odd keys have a
 * maximum each, as each waits for the one before. */
FA_INLINE void apply_mask(const query_tile *tile, ptrdiff_t count, V *max, R factor, const int NV) {
    const score_options only_bias = {.has_bias = 1};
    const score_rows rows = {{0}, {0}, {0}, {0}};
    V top[2][FA_TILE_VECTORS];
    FA_UNROLL_FOR(int j = 0; j < NV; j++) top[0][j] = top[1][j] = max[j];
    for (ptrdiff_t t = 0; t < count; t += 2)
        FA_UNROLL_FOR(int k = 0; k < 2; k++)
            FA_UNROLL_FOR(int j = 0; j < NV && t + k < count; j++) {
                const ptrdiff_t at = ((t + k) * NV + j) * LANES;
                V score = in_natural_units(load(tile->scores + at), factor);
                score = apply_options(only_bias, score, rows, (VI){0}, (V){0}, tile->bias + at, 0);
                store(tile->scores + at, score);
                top[k][j] = maximum(score, top[k][j]);
            }
    FA_UNROLL_FOR(int j = 0; j < NV; j++) max[j] = maximum(top[0][j], top[1][j]);
}

/* Applies the options to the scores of a vector of rows; returns the maximum of each lane. */
FA_INLINE V apply_lane_options(R *at, ptrdiff_t count, score_options options, score_rows rows, const R *bias,
                               const int one_bias, V top, R factor, const int NV) {
    V real_key = {0};
    VI key = {0};
    for (ptrdiff_t t = 0; t < count; t++, key += 1, real_key += 1, at += NV * LANES) {
        V score = apply_options(options, in_natural_units(load(at), factor), rows, key, real_key, bias, one_bias);
        store(at, score);
        top = maximum(score, top);
        bias += one_bias ? 1 : NV * LANES;
    }
    return top;
}

/* Applies the options to the scores of a step and raises the maximum of each lane. */
FA_INLINE void apply_tile_options(const fa_attention *a, const query_tile *tile, score_options options, key_step step,
                                  V *max, const int NV) {
    const R factor = factor_of(a);
    score_options others = options;
    others.has_bias = 0;
    if (options.has_bias && !tile->one_mask && !any_options(others)) {
        apply_mask(tile, step.count, max, factor, NV);
        return;
    }
    for (int j = 0; j < NV; j++) {
        R *at = tile->scores + j * LANES;
        const R *bias = tile->one_mask ? tile->mask_rows : tile->bias + j * LANES;
        VI begin, end;
        for (int lane = 0; lane < LANES; lane++) {
            begin[lane] = (I)fa_clamp(tile->begin[j * LANES + lane] - step.first_key, 0, step.count);
            end[lane] = (I)fa_clamp(tile->end[j * LANES + lane] - step.first_key, 0, step.count);
        }
        const score_rows rows = {tile->position[j] - (R)step.first_key, tile->slope[j], begin, end};
        max[j] = apply_lane_options(at, step.count, options, rows, bias, tile->one_mask, max[j], factor, NV);
    }
}

/* Turns scores into weights and updates maximum, sum and decay. `exact` is for callers that return single weights. */
FA_INLINE void exponentiate(query_tile *tile, const V *max, ptrdiff_t count, const int NV, int has_nonfinite,
                            const int exact) {
    const V nothing = splat((R)-INFINITY);
    V shift[FA_TILE_VECTORS];
    FA_UNROLL_FOR(int j = 0; j < NV; j++) {
        shift[j] = choose(max[j] == nothing, (V){0}, max[j]); /* -inf - -inf would be NaN */
        tile->decay[j] = exact ? exp_exact(tile->max[j] - shift[j]) : exp_by_exp2(tile->max[j] - shift[j]);
        tile->max[j] = max[j];
        tile->sum[j] *= tile->decay[j];
    }
    exponentiate_scores(tile->scores, count, tile->factor, shift, tile->sum, NV, has_nonfinite, exact);
}

/* Computes the scores of a step, with all options applied. Returns the kinds of mask that occur; if that is
 * BLOCK_EXCLUDES alone, no score was computed. */
FA_INLINE int tile_scores_of(const fa_attention *a, const fa_attention_item *item, query_tile *tile, key_step step,
                             V *max, ptrdiff_t run, const int NV) {
    int kinds = read_biases(a, item, tile, step);
    int edge = step.first_key < tile->all.begin || step.first_key + step.count > tile->all.end;
    score_options options = options_of(a, item, kinds != BLOCK_ADMITS, edge);
    int plain = !any_options(options) && keeps_order(a);
    V unused[FA_TILE_VECTORS];
    FA_UNROLL_FOR(int j = 0; j < NV; j++) max[j] = unused[j] = tile->max[j];
    if (kinds == BLOCK_EXCLUDES) return kinds;

    tile->factor = plain ? factor_of(a) : 1;
    FA_SCORES(NV)(step.key, step.count, tile->query, UNITS(a->head_size), (R)a->scale, tile->scores,
                  plain ? max : unused, run);
    if (!plain) apply_tile_options(a, tile, options, step, max, NV);
    return edge ? kinds | BLOCK_EXCLUDES | BLOCK_ADMITS : kinds;
}

FA_INLINE void tile_step_of(const fa_attention *a, const fa_attention_item *item, query_tile *tile, key_step step,
                            const int NV) {
    V max[FA_TILE_VECTORS];
    int short_chains = FA_MULTIPLY_ADD && (item->few_scores || tile->rows < FA_TILE_VECTORS * LANES);
    ptrdiff_t run = short_chains ? FA_SHORT_CHAIN : FA_CHAIN;
    int kinds = tile_scores_of(a, item, tile, step, max, run, NV);
    if (kinds == BLOCK_EXCLUDES) return;
    int has_nonfinite = kinds & BLOCK_EXCLUDES && !step.finite && !all_finite(step.value, step.count, a->value_size);
    unit_rows value = has_nonfinite ? finite_values(step.value, step.count, a->value_size, tile->finite) : step.value;
    exponentiate(tile, max, step.count, NV, has_nonfinite, 0);
    FA_VALUES(NV)(value, UNITS(step.count), tile->scores, a->value_size, tile->out, tile->decay);
    if (has_nonfinite) add_nonfinite(step.value, step.count, tile->scores, a->value_size, tile->out, NV * LANES);
}

/* One instantiation for each width of a tile. */
#if FA_TILE_VECTORS >= 3
#define FA_FOR_WIDTH(vectors, CALL)                                                                                    \
    switch (vectors) {                                                                                                 \
    case 1: CALL(1); break;                                                                                            \
    case 2: CALL(2); break;                                                                                            \
    case 3: CALL(3); break;                                                                                            \
    }
#else
#define FA_FOR_WIDTH(vectors, CALL)                                                                                    \
    switch (vectors) {                                                                                                 \
    case 1: CALL(1); break;                                                                                            \
    case 2: CALL(2); break;                                                                                            \
    }
#endif

static void tile_step(const fa_attention *a, const fa_attention_item *item, query_tile *tile, key_step step) {
#define CALL(NV) tile_step_of(a, item, tile, step, NV)
    FA_FOR_WIDTH(tile->vectors, CALL)
#undef CALL
}

#endif
