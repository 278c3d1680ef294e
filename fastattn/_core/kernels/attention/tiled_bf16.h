/* The products of attention by dot products of pairs: queries, keys, values and weights are bfloat16, and each lane
 * adds two products at a time to a float32 sum.
 *
 * A unit is a pair: neighbouring components of a key, which lie so in memory; and of the values the same component of
 * two neighbouring keys, which are brought together in `panel`, once for all rows of an item. R stands for the 32 bits
 * of a unit where it is only moved. Keys are paired from the item's first one on, so blocks and steps begin at even
 * ones. */
#ifndef FA_ATTENTION_TILED_BF16_H
#define FA_ATTENTION_TILED_BF16_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET avx512_bf16
#endif
#include "attention/interval.h"
#include "attention/pages.h"
#include "attention/rows.h"
#include "products/bf16_pairs.h"
#include "storage/partial.h"

static unit_rows keys_at(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                         const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, R *panel) {
    const char *from[KEYS_PER_STEP];
    ptrdiff_t units = (size + 1) / 2;
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    if (rows->element == 2 && size % 2 == 0 && rows->row % (ptrdiff_t)sizeof(R) == 0 &&
        fa_in_a_row(a, item, first, count))
        return (unit_rows){(const R *)from[0], rows->row / (ptrdiff_t)sizeof(R)};
    for (ptrdiff_t t = 0; t < count; t++)
        for (ptrdiff_t u = 0; u < units; u++)
            panel[t * units + u] = read_unit(from[t], rows->element, u, size, rows->type);
    return (unit_rows){panel, units};
}

static unit_rows values_at(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                           const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, R *panel) {
    const char *from[KEYS_PER_STEP + 1];
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    from[count] = NULL;
    for (ptrdiff_t t = 0; t < count; t += 2) {
        R *to = panel + t / 2 * size;
        const char *low = from[t], *high = from[t + 1];
        ptrdiff_t d = 0;
        for (; rows->element == 2 && high && d + LANES <= size; d += LANES)
            store(to + d, (V)(load_halves((const uint16_t *)low + d) | load_halves((const uint16_t *)high + d) << 16));
        for (; d < size; d++) to[d] = unit_of_halves(low + d * rows->element, high ? high + d * rows->element : NULL);
    }
    return (unit_rows){panel, size};
}

static int all_finite(unit_rows rows, ptrdiff_t count, ptrdiff_t size) {
    VI special = {0};
    for (ptrdiff_t t = 0; t < count; t += 2)
        for (ptrdiff_t d = 0; d < size; d += LANES)
            special |= has_special(load_some(rows.data + t / 2 * rows.stride + d, size - d < LANES ? size - d : LANES));
    return !any_lane(special);
}

FA_INLINE R value_at(unit_rows value, ptrdiff_t t, ptrdiff_t d) {
    return read_half(value.data + t / 2 * value.stride + d, t % 2);
}
FA_INLINE void put_value(R *panel, ptrdiff_t size, ptrdiff_t t, ptrdiff_t d, R x) {
    write_half(panel + t / 2 * size + d, t % 2, x);
}

/* A step's weights, in pairs in the place of the scores, and their sums. What is rounded to 8 bits need not be exact:
 * an exponential of degree 3. */
FA_INLINE void exponentiate_scores(R *scores, ptrdiff_t count, R factor, const V *shift, V *sum, const int NV,
                                   int has_nonfinite, const int exact) {
    const V nothing = splat((R)-INFINITY), log2_e = splat(1.44269504f);
    for (ptrdiff_t t = 0; t < count; t += 2)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) {
            V weight[2];
            FA_UNROLL_FOR(int half = 0; half < 2; half++) {
                V score = t + half < count ? load(scores + ((t + half) * NV + j) * LANES) : nothing;
                weight[half] = exp2_rough((score - shift[j]) * log2_e);
                sum[j] += weight[half];
                if (has_nonfinite) weight[half] = choose(score == nothing, splat((R)-0.0), weight[half]);
            }
            store(scores + (t / 2 * NV + j) * LANES, pair_bf16(weight[0], weight[1]));
        }
}

#endif
