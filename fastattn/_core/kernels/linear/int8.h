/* Linear by dot products of 8-bit integers: the weight is int8 with a scale for each row; rows of x are quantised as
 * they come, x = scale (unit - zero) with units from 0 to 255, or from -128 to 127 where bytes are signed
 * (FA_LEAST_UNIT), so that 0 stays 0. The sum of units and weights less zero times the sum of the weights is exact, and
 * becomes a real before it could overflow: 4 · 16384 · 255 · 127 < 2^31. */
#ifndef FA_LINEAR_INT8_H
#define FA_LINEAR_INT8_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_INT8
#define FA_TARGET avx512_bf16
#endif
#include "linear/block.h"
#include "products/products.h"
#include "products/rows_into_lanes.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"

#define RUN_OF_TOTALS 16384
#define LINEAR_RUN(l) RUN_OF_TOTALS

static weight_block weights_at(const fa_linear *l, ptrdiff_t feature, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                               R *panel) {
    const char *from = l->weight + feature * l->weight_row_stride + UNIT * unit * l->weight_stride;
    ptrdiff_t size = l->in_features - UNIT * unit;
    const ptrdiff_t whole = PADDED(units);
    const int fits = l->weight_stride == 1 && size >= UNIT * units && l->weight_row_stride % UNIT == 0;
    weight_block weights = {{(const R *)from, l->weight_row_stride / UNIT}, {0}};
    if (!fits || whole != units || PADDED(count) - count) {
        memset(panel, 0, (size_t)(PADDED(count) * whole) * sizeof(R));
        for (ptrdiff_t i = 0; i < count; i++) {
            char *to = (char *)(panel + i * whole);
            const char *row = from + i * l->weight_row_stride;
            const ptrdiff_t bytes = fa_clamp(size, 0, UNIT * units);
            if (l->weight_stride == 1) memcpy(to, row, (size_t)bytes);
            else
                for (ptrdiff_t k = 0; k < bytes; k++) to[k] = row[k * l->weight_stride];
        }
        weights.rows = (unit_rows){panel, whole};
    }
    return weights;
}

#define sum_weights sum_weights
static void sum_weights(weight_block *weights, ptrdiff_t count, ptrdiff_t units) {
    for (ptrdiff_t i = 0; i < count; i++)
        weights->sum[i] = sum_of_bytes((const int8_t *)(weights->rows.data + i * weights->rows.stride), UNIT * units);
}

/* The largest of a row's elements and of their negatives, 0 at least, and whether all are finite. Several chains at a
 * time: one alone took as long as the row's products. */
FA_INLINE void find_range(const char *x, ptrdiff_t size, const fa_type type, R *top, R *bottom, int *finite) {
    V high[4] = {{0}}, low[4] = {{0}}, noughts[4] = {{0}};
    ptrdiff_t k = 0;
#define TAKE(i, PART)                                                                                                  \
    do {                                                                                                               \
        V part = PART;                                                                                                 \
        high[i] = maximum(part, high[i]);                                                                              \
        low[i] = maximum(-part, low[i]);                                                                               \
        noughts[i] += part * (R)0;                                                                                     \
    } while (0)
    for (; k + 4 * LANES <= size; k += 4 * LANES)
        FA_UNROLL_FOR(int i = 0; i < 4; i++) TAKE(i, load_as(x + (k + i * LANES) * fa_size_of(type), type));
    for (; k < size; k += LANES) TAKE(0, load_some_as(x + k * fa_size_of(type), type, fa_clamp(size - k, 0, LANES)));
#undef TAKE
    FA_UNROLL_FOR(int i = 1; i < 4; i++) {
        high[0] = maximum(high[0], high[i]);
        low[0] = maximum(low[0], low[i]);
        noughts[0] += noughts[i];
    }
    two_lane_maxima(high[0], low[0], top, bottom);
    *finite = !any_nan(noughts[0]);
}

FA_INLINE void put_units(const char *x, ptrdiff_t size, const fa_type type, R inverse, I zero, uint8_t *to) {
    for (ptrdiff_t k = 0; k < size; k += LANES) {
        V part = load_some_as(x + k * fa_size_of(type), type, fa_clamp(size - k, 0, LANES));
        store_quantised(to + k, part, inverse, (float)zero);
    }
}

/* A row of x as units, padded with whatever its last unit needs: the weights there are 0. Elements that do not lie side
 * by side go through `row`. */
static void quantise(const fa_linear *l, const char *x, R *row, uint8_t *to, R *scale, I *zero) {
    const ptrdiff_t size = l->in_features;
    fa_type type = l->type;
    R top = 0, bottom = 0, inverse;
    int finite = 1;
    if (!l->contiguous_x) {
        widen(row, x, type, l->x_stride, size);
        x = (const char *)row;
        type = STORED;
    }
#define FIND(TYPE) find_range(x, size, TYPE, &top, &bottom, &finite)
    FA_FOR_RESULT(type, FIND);
#undef FIND
    /* What is not finite makes all of the row's results NaN: its scale is. Below 2^-128 a scale has no inverse. */
    const R step = (R)(((double)top + bottom) / 255);
    *scale = finite ? (step > 0x1p-126f ? step : 0x1p-126f) : (R)NAN;
    inverse = finite ? 1 / *scale : 0;
    *zero = (I)lrintf(bottom * inverse) + FA_LEAST_UNIT;
#define PUT(TYPE) put_units(x, size, TYPE, inverse, *zero, to)
    FA_FOR_RESULT(type, PUT);
#undef PUT
}

#define gather_rows gather_rows
static void gather_rows(const fa_linear *l, const char *const *from, R *to, ptrdiff_t vectors, R *bytes,
                        row_quantisation *quantised, ptrdiff_t j) {
    const ptrdiff_t padded = (l->in_features + LANES - 1) / LANES * LANES;
    uint8_t *units = (uint8_t *)(bytes + padded);
    const char *rows[LANES];
    R scale = 0;
    I zero = 0;
    for (ptrdiff_t lane = 0; lane < LANES; lane++) {
        rows[lane] = (const char *)units + lane * padded;
        if (lane && from[lane] == from[lane - 1]) rows[lane] = rows[lane - 1]; /* repeated, as at the last tile's end */
        else quantise(l, from[lane], bytes, units + lane * padded, &scale, &zero);
        quantised->scale[j][lane] = scale;
        quantised->zero[j][lane] = zero;
    }
    rows_into_lanes(rows, 1, FA_I8, l->in_features, 1, to, vectors);
}

/* A whole sum as a real, added to that of earlier runs in one rounding: left to the compiler, it was one here and two
 * there. */
FA_INLINE V scaled_sum(VI whole, V scale, const R *earlier) {
    const V sum = __builtin_convertvector(whole, V);
    if (earlier) return multiply_add(sum, scale, load(earlier));
    return sum * scale;
}

#define as_real as_real
FA_INLINE V as_real(V sum, const weight_block *weights, ptrdiff_t row, const row_quantisation *quantised, int j,
                    const R *earlier) {
    return scaled_sum((VI)sum - quantised->zero[j] * weights->sum[row], quantised->scale[j], earlier);
}

/* What the way by rows wants to know of x and of its sums: the same numbers. */
#define LINEAR_MOST_UNITS LINEAR_RUN(l)

FA_NOINLINE const R *gather_row(const fa_linear *l, const char *from, R *memory, ptrdiff_t units, R *scale, I *zero) {
    const ptrdiff_t filled = (l->in_features + LANES - 1) / LANES * LANES;
    quantise(l, from, memory + units, (uint8_t *)memory, scale, zero);
    memset((char *)memory + filled, 0, (size_t)(units * UNIT - filled));
    return memory;
}
#define add_weights add_weights
#define row_as_real row_as_real
#define join_sums join_sums
#if FA_LEAST_UNIT == 0 /* it matters which side is unsigned */
#define add_product_of_lanes add_product_of_lanes
FA_INLINE V add_product_of_lanes(V sum, V lanes, spread unit) { return add_product(sum, lanes, unit); }
#endif
FA_INLINE V join_sums(V a, V b) { return (V)((VI)a + (VI)b); }
FA_INLINE VI add_weights(VI total, V weights) { return add_bytes(total, (VI)weights); }
FA_INLINE V row_as_real(V sum, const I *total, const R *scale, const I *zero, const R *earlier) {
    return scaled_sum((VI)sum - *zero * *(const VI *)total, splat(*scale), earlier);
}

#endif
