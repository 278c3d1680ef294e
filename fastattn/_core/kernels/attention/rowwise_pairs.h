/* Template: the products of few rows with two 16-bit elements to a lane, and their products added in pairs: bfloat16 as
 * it is, where the target has the instruction, and int8 widened to int16, the query and the weights quantised to 15
 * bits for it. A value's row comes with its neighbour's, element by element. Half the instructions of single products,
 * and no conversion: with four queries to a kv head those are bound by them. Rows are whole numbers of vectors of 2 ·
 * LANES.
 *
 * Included for each TYPE, with its SUM: sums of one type throughout, as casts between float and integer registers cost
 * a copy each: 15 % of the time. */

#include "attention/rowwise_products.h"

#ifndef TYPE /* opened alone */
#define TYPE FA_I8
#define PAIRS(name) alone_##name
#define SUM VI
#define ADD_PRODUCTS(sum, a, b) add_products_i16(sum, a, b)
#define AS_REAL(sum) __builtin_convertvector(sum, V)
#define PAIR_LOW(a, b) pair_words_low(a, b)
#define PAIR_HIGH(a, b) pair_words_high(a, b)
#define SPLAT_PAIR(both) splat_words(both)
#endif

FA_INLINE void PAIRS(pair_scores)(const char *const *key, ptrdiff_t count, const uint16_t *query, ptrdiff_t width,
                                  R *scores, const R *factor, const char *const *ahead, const int NR) {
    R factors[FA_ROWWISE_ROWS * FOLD];
    for (int i = 0; i < NR * FOLD; i++) factors[i] = factor[i / FOLD];
    for (ptrdiff_t t = 0; t < count; t += FOLD) {
        SUM acc[FA_ROWWISE_ROWS][FOLD];
        const char *row[FOLD], *next[FOLD];
        FA_UNROLL_FOR(int i = 0; i < FOLD; i++) {
            ptrdiff_t at = t + i < count ? t + i : count - 1;
            row[i] = key[at];
            next[i] = ahead[at];
            FA_UNROLL_FOR(int r = 0; r < NR; r++) acc[r][i] = (SUM){0};
        }
        for (ptrdiff_t d = 0; d < width; d += WORDS) {
            VS_f32 k[FOLD];
            FA_UNROLL_FOR(int i = 0; i < FOLD; i++) {
                k[i] = load_words(ELEMENT_AT(row[i], d), TYPE);
                if (BEGINS_LINE(d)) PREFETCH(ELEMENT_AT(next[i], d));
            }
            FA_UNROLL_FOR(int r = 0; r < NR; r++) {
                VS_f32 q = load_words((const char *)(query + r * width + d), FA_BF16);
                FA_UNROLL_FOR(int i = 0; i < FOLD; i++) acc[r][i] = ADD_PRODUCTS(acc[r][i], q, k[i]);
            }
        }
        V sum[FA_ROWWISE_ROWS][FOLD];
        FA_UNROLL_FOR(int r = 0; r < NR; r++)
            FA_UNROLL_FOR(int i = 0; i < FOLD; i++) sum[r][i] = AS_REAL(acc[r][i]);
        store_scores(sum, factors, scores + t, NR);
    }
}

/* out[NR][NC · 2 vectors] from component d on; `weights` are those of whole pairs of keys. */
FA_INLINE void PAIRS(pair_value_block)(const char *const *value, ptrdiff_t d, ptrdiff_t count, const uint16_t *weights,
                                       R *out, ptrdiff_t width, const R *decay, const R *factor,
                                       const char *const *ahead, const int NR, const int NC) {
    SUM acc[4][4][2];
    FA_UNROLL_FOR(int r = 0; r < NR; r++)
        FA_UNROLL_FOR(int c = 0; c < NC; c++) acc[r][c][0] = acc[r][c][1] = (SUM){0};
    for (ptrdiff_t t = 0; t < count; t += 2) {
        ptrdiff_t other = t + 1 < count ? t + 1 : t;
        VS_f32 low[4], high[4];
        FA_UNROLL_FOR(int c = 0; c < NC; c++) {
            VS_f32 a = load_words(ELEMENT_AT(value[t], d + c * WORDS), TYPE);
            VS_f32 b = load_words(ELEMENT_AT(value[other], d + c * WORDS), TYPE);
            low[c] = PAIR_LOW(a, b);
            high[c] = PAIR_HIGH(a, b);
            if (BEGINS_LINE(c * WORDS)) {
                PREFETCH(ELEMENT_AT(ahead[t], d + c * WORDS));
                PREFETCH(ELEMENT_AT(ahead[other], d + c * WORDS));
            }
        }
        FA_UNROLL_FOR(int r = 0; r < NR; r++) {
            int32_t both;
            memcpy(&both, weights + r * ROWWISE_KEYS + t, sizeof both);
            VS_f32 p = SPLAT_PAIR(both);
            FA_UNROLL_FOR(int c = 0; c < NC; c++) {
                acc[r][c][0] = ADD_PRODUCTS(acc[r][c][0], low[c], p);
                acc[r][c][1] = ADD_PRODUCTS(acc[r][c][1], high[c], p);
            }
        }
    }
    FA_UNROLL_FOR(int r = 0; r < NR; r++)
        FA_UNROLL_FOR(int c = 0; c < 2 * NC; c++) {
            R *at = out + r * width + d + c * LANES;
            store(at, load(at) * decay[r] + AS_REAL(acc[r][c / 2][c % 2]) * factor[r]);
        }
}

FA_INLINE void PAIRS(pair_values)(const char *const *value, ptrdiff_t count, const uint16_t *weights, R *out,
                                  ptrdiff_t width, const R *decay, const R *factor, const char *const *ahead,
                                  const int NR, const int NC) {
    ptrdiff_t d = 0;
#define CALL(C) PAIRS(pair_value_block)(value, d, count, weights, out, width, decay, factor, ahead, NR, C)
    for (; d + NC * WORDS <= width; d += NC * WORDS) CALL(NC);
    for (; d < width; d += WORDS) CALL(1);
#undef CALL
}

#undef TYPE
#undef PAIRS
#undef SUM
#undef ADD_PRODUCTS
#undef AS_REAL
#undef PAIR_LOW
#undef PAIR_HIGH
#undef SPLAT_PAIR
