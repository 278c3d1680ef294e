/* A tile of linear: rows of x in the lanes, and their sums with a block of W. */
#ifndef FA_LINEAR_TILE_H
#define FA_LINEAR_TILE_H

#include "linear/activation.h"
#include "linear/products.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"

typedef struct {
    ptrdiff_t rows, vectors; /* lanes beyond `rows` repeat the last one and are dropped in the end */
    const char *const *from, *const *residual;
    char *const *to;
    R *units, *sums; /* [whole tiles of units][vectors][LANES], [SUMS_ROWS][vectors][LANES] */
    row_quantisation *quantised;
} linear_tile;

/* n results of a row, with their residual if there is one, where elements do not lie side by side. */
static void scatter_row(const fa_linear *l, const char *residual, char *to, V y, ptrdiff_t feature, ptrdiff_t n) {
    if (residual) {
        V more = {0};
        widen((R *)&more, residual + feature * l->residual_stride, l->type, l->residual_stride, n);
        y += more;
    }
    narrow(to + feature * l->out_stride, l->type, l->out_stride, (const R *)&y, n);
}

/* The scales of n rows of the weight, if there are any, and n biases or 0. */
FA_INLINE void find_shift(const fa_linear *l, ptrdiff_t row, ptrdiff_t feature, ptrdiff_t n, V *scale, V *bias) {
    *scale = *bias = (V){0};
    if (l->scales) widen((R *)scale, (const char *)(l->scales + row), FA_F32, sizeof(float), n);
    if (l->bias) *bias = load_some_as(l->bias + feature * fa_size_of(l->bias_type), l->bias_type, n);
}

/* A sum with scale and bias, in one expression so that it is always rounded in the same way. */
FA_INLINE V shifted(int scaled, V sum, V scale, V bias) { return scaled ? sum * scale + bias : sum + bias; }

/* int8 weights are multiplied before their scale is applied, so that with x of 1e36 products overflow where results
 * would not. Those results are computed again in float64, with the scale in the products. `y` has a vector of n
 * features for each row. Rows and parameters that are not finite themselves are left alone. */
FA_NOINLINE void remake_overflowed(const fa_linear *l, const char *const *x, ptrdiff_t rows, ptrdiff_t feature,
                                   ptrdiff_t n, V bias, V *y) {
    for (ptrdiff_t row = 0; row < rows; row++) {
        int finite = -1;
        for (ptrdiff_t i = 0; i < n && finite; i++) {
            if (isfinite(y[row][i]) || !isfinite(bias[i]) || !isfinite(l->scales[feature + i])) continue;
            if (finite < 0) finite = 1;
            double sum = 0, scale = (double)l->scales[feature + i];
            for (ptrdiff_t k = 0; finite && k < l->in_features; k++) {
                const double from = (double)read_element(x[row] + k * l->x_stride, l->type);
                finite = isfinite(from);
                sum += from * scale * (double)*(const int8_t *)weight_element(l, feature + i, k);
            }
            if (finite) y[row][i] = (R)(sum + (double)bias[i]);
        }
    }
}

FA_INLINE void remake_overflows(const fa_linear *l, const char *const *x, ptrdiff_t rows, ptrdiff_t count,
                                ptrdiff_t feature, ptrdiff_t n, V bias, V *y) {
    V noughts = {0};
    if (!l->scales) return;
    for (ptrdiff_t i = 0; i < count; i++) noughts += y[i] * (R)0;
    if (__builtin_expect(lane_sum(noughts) != 0, 0)) remake_overflowed(l, x, rows, feature, n, bias, y);
}

/* Two vectors of a row, or parts of them, to where they belong, with their residual. */
FA_INLINE void put_two(const fa_linear *l, const char *residual, char *to, V low, V high, ptrdiff_t feature,
                       ptrdiff_t n, const fa_type type) {
    const ptrdiff_t at = feature * fa_size_of(type), next = at + LANES * fa_size_of(type);
    const ptrdiff_t first = fa_clamp(n, 0, LANES), second = fa_clamp(n - LANES, 0, LANES);
    if (!l->contiguous_out || (residual && !l->contiguous_residual)) {
        scatter_row(l, residual, to, low, feature, first);
        scatter_row(l, residual, to, high, feature + LANES, second);
        return;
    }
    if (residual) low += load_some_as(residual + at, type, first);
    if (residual && second) high += load_some_as(residual + next, type, second);
#if FA_TILE_PRODUCTS
    if (type == FA_BF16 && n >= 2 * LANES) {
        store_two_bf16((uint16_t *)(to + at), low, high);
        return;
    }
#endif
    store_some_as(to + at, type, low, first);
    if (second) store_some_as(to + next, type, high, second);
}

#define AHEAD (2 * LANES) /* features whose results are put in between */

FA_INLINE void put_row(const linear_tile *tile, ptrdiff_t row, V sum, ptrdiff_t at, ptrdiff_t n, const fa_type type) {
    if (tile->residual) sum += load_some_as(tile->residual[row] + at, type, n);
    store_some_as(tile->to[row] + at, type, sum, n);
}

/* n results of each of `count` rows, from `feature` on, to where they belong; elements of one type side by side. */
FA_INLINE void put_rows(const linear_tile *tile, ptrdiff_t row, ptrdiff_t count, const V *y, ptrdiff_t feature,
                        ptrdiff_t n, const fa_type type) {
    const ptrdiff_t at = feature * fa_size_of(type);
    for (ptrdiff_t i = 0; n == LANES && i < count; i++) put_row(tile, row + i, y[i], at, LANES, type);
    for (ptrdiff_t i = 0; n < LANES && i < count; i++) put_row(tile, row + i, y[i], at, n, type);
}

/* Prefetches elements of the result rows from `offset` on. Each row is on another page, and a store to memory that is
 * not in a cache delays the next ones. 8 to 10 % of 384->1536 for 4096 rows. */
FA_INLINE void prefetch_rows(const linear_tile *tile, ptrdiff_t row, ptrdiff_t count, ptrdiff_t offset) {
    for (ptrdiff_t i = row; i < row + count; i++) {
        __builtin_prefetch(tile->to[i] + offset, 1);
        if (tile->residual) __builtin_prefetch(tile->residual[i] + offset);
    }
}

static void scatter_rows(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t count, V *y,
                         ptrdiff_t feature, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < count; i++)
        scatter_row(l, tile->residual ? tile->residual[row + i] : NULL, tile->to[row + i], y[i], feature, n);
}

/* Applies scale and bias to sums with n rows of the weight, from `from` on: what the activation takes. */
FA_INLINE void shift_sums(const fa_linear *l, const char *const *x, ptrdiff_t count, V *y, ptrdiff_t from,
                          ptrdiff_t feature, ptrdiff_t n) {
    V scale, bias;
    recompute_flushed(l, x, count, from, n, y);
    find_shift(l, from, feature, n, &scale, &bias);
    const int scaled = l->scales != NULL; /* read once: a store to y may change it, to the compiler */
    for (ptrdiff_t i = 0; i < count; i++) y[i] = shifted(scaled, y[i], scale, bias);
    remake_overflows(l, x, count, count, from, n, bias, y);
}

/* Writes n features of `count` rows, with the residual if there is one. */
FA_INLINE void put_results(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t count, V *y,
                           ptrdiff_t feature, ptrdiff_t n) {
#define PUT(TYPE) put_rows(tile, row, count, y, feature, n, TYPE)
    if (l->contiguous_out && (!tile->residual || l->contiguous_residual)) FA_FOR_RESULT(l->type, PUT);
    else scatter_rows(l, tile, row, count, y, feature, n);
#undef PUT
}

/* Writes n features of `count` rows: scale, bias, activation, residual. */
FA_INLINE void put_sums(const fa_linear *l, const linear_tile *tile, ptrdiff_t row, ptrdiff_t count, V *y,
                        ptrdiff_t feature, ptrdiff_t n) {
    if (l->contiguous_out && (!tile->residual || l->contiguous_residual))
        prefetch_rows(tile, row, count, (feature + AHEAD) * fa_size_of(l->type));
    shift_sums(l, tile->from + row, count, y, feature, feature, n);
    activate(y, (int)count, l->activation, l->type != STORED);
    put_results(l, tile, row, count, y, feature, n);
}

#endif
