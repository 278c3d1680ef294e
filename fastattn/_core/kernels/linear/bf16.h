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

#define LINEAR_RUN(l) 128 /* units whose products are added up in one chain */

static weight_block weights_at(const fa_linear *l, ptrdiff_t feature, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                               R *panel) {
    const char *from = l->weight + feature * l->weight_row_stride + UNIT * unit * l->weight_stride;
    ptrdiff_t size = l->in_features - UNIT * unit;
    const ptrdiff_t whole = PADDED(units);
    const int fits = l->weight_stride == 2 && size >= UNIT * units && l->weight_row_stride % (ptrdiff_t)sizeof(R) == 0;
    if (fits && whole == units && !(PADDED(count) - count))
        return (weight_block){{(const R *)from, l->weight_row_stride / (ptrdiff_t)sizeof(R)}};
    for (ptrdiff_t i = 0; i < PADDED(count); i++) {
        R *to = panel + i * whole;
        ptrdiff_t u = i < count && l->weight_stride == 2 ? fa_clamp(size / UNIT, 0, units) : 0;
        memcpy(to, from + fa_clamp(i, 0, count - 1) * l->weight_row_stride, (size_t)u * sizeof(R));
        for (; i < count && u < units; u++)
            to[u] = read_unit(from + i * l->weight_row_stride, l->weight_stride, u, size, FA_BF16);
        memset(to + u, 0, (size_t)(whole - u) * sizeof(R));
    }
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
static int row_is_zero(const fa_linear *l, const char *x) {
    uint16_t bits = 0;
    for (ptrdiff_t k = 0; k < l->in_features; k++) bits |= bits_at(x + k * l->x_stride);
    return !(bits & 0x7fff);
}
static int weight_row_is_zero(const fa_linear *l, ptrdiff_t row) {
    uint16_t bits = 0;
    for (ptrdiff_t k = 0; k < l->in_features; k++) bits |= bits_at(weight_element(l, row, k));
    return !(bits & 0x7fff);
}

/* Sums below FA_LEAST_SUM, which flushed products may have changed, are computed again one by one: results must not
 * depend on what else is in the call. Rare, unless a whole row is 0: such rows are left out. */
#define recompute_flushed recompute_flushed
static void recompute_flushed(const fa_linear *l, const char *const *x, ptrdiff_t lanes, ptrdiff_t feature,
                              ptrdiff_t features, V *sums) {
    V least[4]; /* four chains */
    FA_UNROLL_FOR(int i = 0; i < 4; i++) least[i] = splat(1);
    for (ptrdiff_t lane = 0; lane < lanes; lane += 4)
        FA_UNROLL_FOR(int i = 0; i < 4; i++)
            if (lane + i < lanes) least[i] = smaller_magnitude(least[i], sums[lane + i]);
    FA_UNROLL_FOR(int i = 1; i < 4; i++) least[0] = smaller_magnitude(least[0], least[i]);
    if (!any_lane(least[0] < splat(FA_LEAST_SUM))) return;
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        VI lost = (sums[lane] < splat(FA_LEAST_SUM)) & (sums[lane] > splat(-FA_LEAST_SUM));
        if (!any_lane(lost)) continue;
        if (row_is_zero(l, x[lane])) continue;
        for (ptrdiff_t i = 0; i < features; i++)
            if (lost[i] && !weight_row_is_zero(l, feature + i)) sums[lane][i] = exact_sum(l, x[lane], feature + i);
    }
}

/* A row of x as units, zeros behind it: as it lies, or in `memory`. */
FA_NOINLINE const R *gather_row(const fa_linear *l, const char *from, R *memory, ptrdiff_t units, R *scale, I *zero) {
    if (l->contiguous_x && l->in_features == UNIT * units) return (const R *)from;
    const ptrdiff_t whole = l->x_stride == 2 ? l->in_features / UNIT : 0;
    ptrdiff_t u = whole;
    memcpy(memory, from, (size_t)whole * sizeof(R));
    for (; u < UNITS(l->in_features); u++) memory[u] = read_unit(from, l->x_stride, u, l->in_features, l->type);
    memset(memory + u, 0, (size_t)(units - u) * sizeof(R));
    return memory;
}

#endif
