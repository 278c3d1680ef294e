/* Linear by dot products of pairs: x and weight are bfloat16. */
#ifndef FA_LINEAR_BF16_H
#define FA_LINEAR_BF16_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET avx512_bf16
#endif
#include "linear/block.h"
#include "products/bf16_pairs.h"
#include "products/products.h"
#include "products/rows_into_lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"

#define LINEAR_RUN(l) 128 /* units whose products are added up in one chain */

static weight_block weights_at(const fa_linear *l, ptrdiff_t feature, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                               R *panel) {
    const char *from = l->weight + feature * l->weight_row_stride + UNIT * unit * l->weight_stride;
    const ptrdiff_t size = l->in_features - UNIT * unit, whole = PADDED(units);
    const int fits = l->weight_stride == 2 && size >= UNIT * units && l->weight_row_stride % (ptrdiff_t)sizeof(R) == 0;
    if (fits && whole == units && !(PADDED(count) - count))
        return (weight_block){{(const R *)from, l->weight_row_stride / (ptrdiff_t)sizeof(R)}};
    for (ptrdiff_t i = 0; i < count; i++) {
        R *to = panel + i * whole;
        const char *row = from + i * l->weight_row_stride;
        if (l->weight_stride == 2) copy_units(row, size, to, whole, LANES);
        for (ptrdiff_t u = 0; l->weight_stride != 2 && u < whole; u++)
            to[u] = u < units ? read_unit(row, l->weight_stride, u, size, FA_BF16) : 0;
    }
    memset(panel + count * whole, 0, (size_t)((PADDED(count) - count) * whole) * sizeof(R));
    return (weight_block){{panel, whole}};
}

/* The sum of products of two rows by multiply-adds. */
static R exact_sum(const fa_linear *l, const char *x, ptrdiff_t row) {
    R sum = 0;
    for (ptrdiff_t k = 0; k < l->in_features; k++)
        sum += read_element(x + k * l->x_stride, FA_BF16) * read_element(weight_element(l, row, k), FA_BF16);
    return sum;
}

FA_INLINE uint16_t bits_at(const char *element) {
    uint16_t bits;
    memcpy(&bits, element, sizeof bits);
    return bits;
}
/* Most rows are told by their first element; those that are 0 are read to their end, a vector at a time. */
static int elements_are_zero(const char *from, ptrdiff_t stride, ptrdiff_t count) {
    ptrdiff_t k = 0;
    for (; stride == 2 && k + UNIT * LANES <= count; k += UNIT * LANES)
        if (any_lane((VI)load((const R *)(from + 2 * k)) & 0x7fff7fff)) return 0;
    for (; k < count; k++)
        if (bits_at(from + k * stride) & 0x7fff) return 0;
    return 1;
}
static int weight_row_is_zero(const fa_linear *l, ptrdiff_t row) {
    const char *from = weight_element(l, row, 0);
    if (!l->packed) return elements_are_zero(from, l->weight_stride, l->in_features);
    return elements_are_zero(from, 2 * UNIT * PANEL, UNITS(l->in_features)) &&
           elements_are_zero(from + 2, 2 * UNIT * PANEL, l->in_features / UNIT);
}

/* Sums below FA_LEAST_SUM, which flushed products may have changed, are computed again one by one: results must not
 * depend on what else is in the call. Rare, unless a whole row is 0: such rows are left out, those of the weight
 * first, as they concern every row of x. Lanes beyond `features` are 0, too: where they counted, every row of x was
 * looked through, which took 80 % of 136x3299->11. */
#define recompute_flushed recompute_flushed
static void recompute_flushed(const fa_linear *l, const char *const *x, ptrdiff_t lanes, ptrdiff_t feature,
                              ptrdiff_t features, V *sums) {
    const V all = splat(FA_LEAST_SUM);
    V limit = load_some((const R *)&all, features), least[4]; /* 0 beyond; four chains */
    FA_UNROLL_FOR(int i = 0; i < 4; i++) least[i] = splat(1);
    for (ptrdiff_t lane = 0; lane < lanes; lane += 4)
        FA_UNROLL_FOR(int i = 0; i < 4; i++)
            if (lane + i < lanes) least[i] = smaller_magnitude(least[i], sums[lane + i]);
    FA_UNROLL_FOR(int i = 1; i < 4; i++) least[0] = smaller_magnitude(least[0], least[i]);
    const VI below = least[0] < limit;
    if (!any_lane(below)) return;
    for (ptrdiff_t i = 0; i < features; i++)
        if (below[i] && weight_row_is_zero(l, feature + i)) limit[i] = 0;
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        const VI lost = (sums[lane] < limit) & (sums[lane] > -limit);
        if (!any_lane(lost) || elements_are_zero(x[lane], l->x_stride, l->in_features)) continue;
        for (ptrdiff_t i = 0; i < features; i++)
            if (lost[i]) sums[lane][i] = exact_sum(l, x[lane], feature + i);
    }
}

/* A row of x as units, zeros behind it: as it lies, or in `memory`. */
FA_NOINLINE const R *gather_row(const fa_linear *l, const char *from, R *memory, ptrdiff_t units, R *scale, I *zero) {
    if (l->contiguous_x && l->in_features == UNIT * units) return (const R *)from;
    if (l->x_stride == 2) copy_units(from, l->in_features, memory, units, LANES);
    for (ptrdiff_t u = 0; l->x_stride != 2 && u < units; u++)
        memory[u] = u < UNITS(l->in_features) ? read_unit(from, l->x_stride, u, l->in_features, l->type) : 0;
    return memory;
}

#endif
