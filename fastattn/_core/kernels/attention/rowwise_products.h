/* The two products of attention with the head's components in the lanes: rows of queries times the keys of a block, and
 * weights times its values. The keys of a block are read while its values are prefetched, and its values while the next
 * block's keys are. */
#ifndef FA_ATTENTION_ROWWISE_PRODUCTS_H
#define FA_ATTENTION_ROWWISE_PRODUCTS_H

#include "attention/rows.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"

#define ROWWISE_KEYS 128 /* keys a block: 64 KB of keys at 128 float32 components, in L2 */
#define ROWWISE_KEYS_PER_RUN 16

/* Into L2, which has room and buffers for a block ahead: one core reads 18 to 20 GB/s from memory so, 8 to 15 with
 * prefetching into L1 and 10 to 14 with none; its limit is 27. */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)

/* Key or value rows of a block, one by one; `size` elements of the type side by side, whole vectors of them unless
 * ends_in_part. */
typedef struct {
    const char *row[ROWWISE_KEYS];
    fa_type type;
    ptrdiff_t size;
} block_rows;

/* Whether rows of a type may end with part of a vector, which takes one instruction to read. Others are widened to a
 * panel first: with 72 components of 16 bits a single query took 2.7 times as long as with 80. */
FA_INLINE int ends_in_part(fa_type type) {
#ifdef FA_HAS_MASKED_HALVES
    if (fa_size_of(type) == 2) return 1;
#endif
    return type == STORED;
}

/* Vector `d / LANES` of a row. */
#define ELEMENT_AT(row, d) ((row) + (d) * fa_size_of(TYPE))
/* Whether a cache line of such elements begins with element d. */
#define BEGINS_LINE(d) ((d) * fa_size_of(TYPE) % 64 == 0)

/* The sums of NR x FOLD products, each over the lanes of a vector, multiplied by their row's factor. All sums of a full
 * set together take 45 operations, row by row 72: more than the products of 64 components. */
FA_INLINE void store_scores(V acc[][FOLD], const R *factors, R *scores, const int NR) {
    if (NR * FOLD == LANES) {
        R sum[LANES];
        store(sum, fold_all(&acc[0][0]) * load(factors));
        FA_UNROLL_FOR(int r = 0; r < NR; r++) memcpy(scores + r * ROWWISE_KEYS, sum + r * FOLD, FOLD * sizeof(R));
        return;
    }
    FA_UNROLL_FOR(int r = 0; r < NR; r++) store_part(scores + r * ROWWISE_KEYS, fold(acc[r]) * factors[r * FOLD], FOLD);
}

/* scores[NR][count] of `count` keys; `ahead` is what will be read next. `partial`: keys end with part of a vector. */
FA_INLINE void rowwise_scores(const char *const *key, ptrdiff_t count, const R *query, ptrdiff_t width, ptrdiff_t size,
                              R *scores, const R *factor, const char *const *ahead, const fa_type TYPE, const int NR,
                              const int partial) {
    const ptrdiff_t whole = partial ? width - LANES : width;
    R factors[FA_ROWWISE_ROWS * FOLD];
    for (int i = 0; i < NR * FOLD; i++) factors[i] = factor[i / FOLD];
    for (ptrdiff_t t = 0; t < count; t += FOLD) {
        V acc[FA_ROWWISE_ROWS][FOLD];
        const char *row[FOLD], *next[FOLD];
        FA_UNROLL_FOR(int i = 0; i < FOLD; i++) {
            ptrdiff_t at = t + i < count ? t + i : count - 1;
            row[i] = key[at];
            next[i] = ahead[at];
            FA_UNROLL_FOR(int r = 0; r < NR; r++) acc[r][i] = (V){0};
        }
        FA_UNROLL_FOR(int i = 0; i < FOLD; i++) { /* row by row, as they lie: see the order of prefetching */
            for (ptrdiff_t d = 0; d < whole; d += LANES) {
                V k = load_as(ELEMENT_AT(row[i], d), TYPE);
                if (BEGINS_LINE(d)) PREFETCH(ELEMENT_AT(next[i], d));
                FA_UNROLL_FOR(int r = 0; r < NR; r++) acc[r][i] += load(query + r * width + d) * k;
            }
            if (partial) {
                V k = load_part_as(ELEMENT_AT(row[i], whole), TYPE, size - whole);
                PREFETCH(ELEMENT_AT(next[i], whole));
                FA_UNROLL_FOR(int r = 0; r < NR; r++) acc[r][i] += load(query + r * width + whole) * k;
            }
        }
        store_scores(acc, factors, scores + t, NR);
    }
}

/* out[NR][NC vectors] = out · decay + weights of the keys [begin, end) times their values from element d on; or one
 * vector, of `rest` elements. */
FA_INLINE void rowwise_value_block(const char *const *value, ptrdiff_t d, ptrdiff_t begin, ptrdiff_t end,
                                   const R *weights, R *out, ptrdiff_t width, const R *decay, const char *const *ahead,
                                   const fa_type TYPE, const int NR, const int NC, ptrdiff_t rest) {
    V acc[4][8];
    FA_UNROLL_FOR(int r = 0; r < NR; r++)
        FA_UNROLL_FOR(int c = 0; c < NC; c++) acc[r][c] = (V){0};
    for (ptrdiff_t t = begin; t < end; t++) {
        V v[8];
        const char *row = ELEMENT_AT(value[t], d), *next = ELEMENT_AT(ahead[t], d);
        FA_UNROLL_FOR(int c = 0; c < NC; c++) {
            v[c] = rest ? load_part_as(row, TYPE, rest) : load_as(ELEMENT_AT(row, c * LANES), TYPE);
            if (BEGINS_LINE(c * LANES)) PREFETCH(ELEMENT_AT(next, c * LANES));
        }
        FA_UNROLL_FOR(int r = 0; r < NR; r++) {
            V p = splat(weights[r * ROWWISE_KEYS + t]);
            FA_UNROLL_FOR(int c = 0; c < NC; c++) acc[r][c] += p * v[c];
        }
    }
    FA_UNROLL_FOR(int r = 0; r < NR; r++)
        FA_UNROLL_FOR(int c = 0; c < NC; c++) {
            R *at = out + r * width + d + c * LANES;
            store(at, decay ? load(at) * decay[r] + acc[r][c] : load(at) + acc[r][c]);
        }
}

FA_INLINE void rowwise_values(const char *const *value, ptrdiff_t begin, ptrdiff_t end, const R *weights, R *out,
                              ptrdiff_t width, ptrdiff_t size, const R *decay, const char *const *ahead,
                              const fa_type TYPE, const int NR, const int NC) {
    ptrdiff_t d = 0;
#define CALL(C, REST) rowwise_value_block(value, d, begin, end, weights, out, width, decay, ahead, TYPE, NR, C, REST)
    for (; d + NC * LANES <= size; d += NC * LANES) CALL(NC, 0);
    for (; NC > 4 && d + 4 * LANES <= size; d += 4 * LANES) CALL(4, 0); /* one sum alone waits for itself */
    for (; NC > 2 && d + 2 * LANES <= size; d += 2 * LANES) CALL(2, 0);
    for (; d + LANES <= size; d += LANES) CALL(1, 0);
    if (ends_in_part(TYPE) && d < size) CALL(1, size - d);
#undef CALL
}

#if FA_REAL_IS_FLOAT

#define WORDS (2 * LANES)
#define WORDS_MOST 32767

/* Elements of 16 bits as they lie, and of 8 bits widened. */
FA_INLINE VS_f32 load_words(const char *from, fa_type type) {
    if (type == FA_I8) return load_i8_words((const int8_t *)from);
    VS_f32 words;
    memcpy(&words, from, sizeof words);
    return words;
}

#define TYPE FA_I8
#define PAIRS(name) name##_i8
#define SUM VI
#define ADD_PRODUCTS(sum, a, b) add_products_i16(sum, a, b)
#define AS_REAL(sum) __builtin_convertvector(sum, V)
#define PAIR_LOW(a, b) pair_words_low(a, b)
#define PAIR_HIGH(a, b) pair_words_high(a, b)
#define SPLAT_PAIR(both) splat_words(both)
#include "attention/rowwise_pairs.h"

/* Processors with AMX take 2.2 cycles for a dot product of bfloat16 and half a one for a multiply-add: widening is
 * faster. */
#if FA_HAS_BF16_DOT && !FA_HAS_TILES
#define FA_PAIRS_OF_BF16 1
#define TYPE FA_BF16
#define PAIRS(name) name##_bf16
#define SUM V
#define ADD_PRODUCTS(sum, a, b) add_products_bf16(sum, (V)(a), (V)(b))
#define AS_REAL(sum) (sum)
#define PAIR_LOW(a, b) interleave_words_low(a, b)
#define PAIR_HIGH(a, b) interleave_words_high(a, b)
#define SPLAT_PAIR(both) ((VS_f32)splat_int(both))
#include "attention/rowwise_pairs.h"
#else
#define FA_PAIRS_OF_BF16 0
#endif

/* x, whole vectors, as 16-bit elements for products with rows of that type; the products are to be multiplied by
 * `factor`. 0 where x cannot be had so: it is not finite, or too small. */
static int as_words(const R *x, ptrdiff_t count, fa_type type, R most, uint16_t *to, R *factor) {
    *factor = 1;
    if (type == FA_BF16) {
        narrow((char *)to, FA_BF16, 2, x, count);
        return 1;
    }
    V largest = {0}, noughts = {0};
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        V size = load(x + i);
        noughts += size * 0;
        largest = maximum(size, maximum(-size, largest));
    }
    R top = lane_max(largest);
    if (lane_sum(noughts) != 0 || (top < (R)1e-30 && top != 0)) return 0;
    R scale = top == 0 ? 0 : most / top;
    *factor = top / most;
    for (ptrdiff_t i = 0; i < count; i += LANES) /* the sum's last bits hold the nearest integer */
        store_halves(to + i, (VW_f32)(load(x + i) * scale + 0x1.8p23f));
    return 1;
}

#endif

#endif
