/* The products of attention by multiply-adds of reals.
 *
 * Rows of the kernel's own type are read in place, with any distance between rows. All others (another type or
 * element stride, unaligned, in more than one page) are first copied to `panel`, once for all rows of an item. */
#ifndef FA_ATTENTION_TILED_FMA_H
#define FA_ATTENTION_TILED_FMA_H

#include "attention/interval.h"
#include "attention/pages.h"
#include "attention/rows.h"
#include "products/fma.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/layout.h"
#include "storage/partial.h"

static unit_rows rows_at(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                         const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, R *panel) {
    const char *from[KEYS_PER_STEP], *scale[KEYS_PER_STEP];
    from[0] = data; /* for the compiler: `count` is never 0 */
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    if (rows->type == STORED && fa_in_a_row(a, item, first, count) && is_contiguous(from[0], rows->row, rows->element))
        return (unit_rows){(const R *)from[0], rows->row / (ptrdiff_t)sizeof(R)};
    if (scales) fa_addresses(a, item, scales, rows->scale_row, rows->scale_page, first, count, scale);
    const int joined = rows->row == size * rows->element && fa_in_a_row(a, item, first, count); /* as one long row */
    widen_rows(panel, joined ? count * size : size, from, rows->type, rows->element, joined ? 1 : count,
               joined ? count * size : size);
    for (ptrdiff_t t = 0; scales && t < count; t++)
        for (ptrdiff_t d = 0; d < size; d++) panel[t * size + d] *= *(const float *)scale[t];
    return (unit_rows){panel, size};
}

#define keys_at rows_at
#define values_at rows_at

/* Four rows at a time: in one chain of additions this took a sixth of a masked call of 22 rows. */
static int all_finite(unit_rows rows, ptrdiff_t count, ptrdiff_t size) {
    V noughts[4] = {{0}};
    for (ptrdiff_t t = 0; t < count; t += 4) {
        const R *row[4];
        ptrdiff_t d = 0;
        FA_UNROLL_FOR(int i = 0; i < 4; i++) row[i] = rows.data + fa_clamp(t + i, 0, count - 1) * rows.stride;
        for (; d + LANES <= size; d += LANES)
            FA_UNROLL_FOR(int i = 0; i < 4; i++) noughts[i] += load(row[i] + d) * (R)0;
        if (d < size)
            FA_UNROLL_FOR(int i = 0; i < 4; i++) noughts[i] += load_part(row[i] + d, (int)(size - d)) * (R)0;
    }
    return lane_sum(noughts[0] + noughts[1] + (noughts[2] + noughts[3])) == 0;
}

/* Element d of value row t, and the weight of key t in a lane. */
FA_INLINE R value_at(unit_rows value, ptrdiff_t t, ptrdiff_t d) { return value.data[t * value.stride + d]; }
FA_INLINE void put_value(R *panel, ptrdiff_t size, ptrdiff_t t, ptrdiff_t d, R x) { panel[t * size + d] = x; }
FA_INLINE R weight_at(const R *weights, ptrdiff_t lanes, ptrdiff_t t, ptrdiff_t lane) {
    return weights[t * lanes + lane];
}

/* A step's weights, each in the place of its score, and their sums. `exact` is for who looks at single weights. */
FA_INLINE void exponentiate_scores(R *scores, ptrdiff_t count, R factor, const V *shift, V *sum, const int NV,
                                   int has_nonfinite, const int exact) {
    const V nothing = splat((R)-INFINITY);
    V run[FA_TILE_VECTORS];
    for (ptrdiff_t t = 0; t < count;) {
        ptrdiff_t end = count - t < KEYS_PER_RUN ? count : t + KEYS_PER_RUN;
        FA_UNROLL_FOR(int j = 0; j < NV; j++) run[j] = (V){0};
        for (; t < end; t++)
            FA_UNROLL_FOR(int j = 0; j < NV; j++) {
                R *at = scores + (t * NV + j) * LANES;
                V score = load(at), weight = exact ? exp_exact(score - shift[j]) : exp_by_exp2(score - shift[j]);
                run[j] += weight;
                if (has_nonfinite) weight = choose(score == nothing, splat((R)-0.0), weight);
                store(at, weight);
            }
        FA_UNROLL_FOR(int j = 0; j < NV; j++) sum[j] += run[j];
    }
}

#endif
