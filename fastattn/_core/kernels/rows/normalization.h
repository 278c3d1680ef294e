/* Layer and RMS normalisation of rows at any stride, with an optional residual added first.
 *
 * Three passes, between which the row stays in the first-level cache: the mean; the sums of the distances from it and
 * of their squares, which correct what rounding left of the mean and give the variance without cancellation; the
 * result. */
#ifndef FA_ROWS_NORMALIZATION_H
#define FA_ROWS_NORMALIZATION_H

#include "rows/passes.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/partial.h"
#include "storage/streaming.h"

typedef struct {
    R mean, spread;
} row_moments;

static R row_mean(const R *x, ptrdiff_t count) {
    V total = {0}, sum[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    while (i + 4 * LANES <= count) {
        ptrdiff_t end = count - i < RUN ? count : i + RUN;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            FA_UNROLL_FOR(int j = 0; j < 4; j++) sum[j] += load(x + i + j * LANES);
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        FA_UNROLL_FOR(int j = 0; j < 4; j++) sum[j] = (V){0};
    }
    for (; i + LANES <= count; i += LANES) total += load(x + i);
    if (i < count) total += load_part(x + i, (int)(count - i));
    return lane_sum(total) / (R)count;
}

/* Mean square of the distances from `about`; with `centred` that is a first guess at the mean, which is corrected. */
FA_INLINE row_moments row_statistics(const R *x, ptrdiff_t count, R about, const int centred) {
    V total = {0}, squares = {0}, sum[4] = {{0}, {0}, {0}, {0}}, square[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    while (i + 4 * LANES <= count) {
        ptrdiff_t end = count - i < RUN ? count : i + RUN;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            FA_UNROLL_FOR(int j = 0; j < 4; j++) {
                V distance = load(x + i + j * LANES) - about;
                if (centred) sum[j] += distance;
                square[j] += distance * distance;
            }
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        squares += (square[0] + square[1]) + (square[2] + square[3]);
        FA_UNROLL_FOR(int j = 0; j < 4; j++) sum[j] = square[j] = (V){0};
    }
    while (i < count) {
        int n = count - i < LANES ? (int)(count - i) : LANES;
        V distance = load_some(x + i, n) - about;
        if (n < LANES) distance = keep_lanes(distance, n, 0);
        total += distance;
        squares += distance * distance;
        i += n;
    }
    R spread = lane_sum(squares) / (R)count, off = centred ? lane_sum(total) / (R)count : 0;
    return (row_moments){about + off, spread - off * off};
}

/* (x - mean) · factor · weight + bias. Functions of what has been loaded, and not expressions of what is: a branch
 * between product and sum, for a vector that is not whole, would keep the compiler from making them in one rounding. */
FA_INLINE V normalized(V x, R mean, R factor) { return (x - mean) * factor; }
FA_INLINE V normalized_weighted(V x, R mean, R factor, V weight) { return (x - mean) * factor * weight; }
FA_INLINE V normalized_biased(V x, R mean, R factor, V bias) { return (x - mean) * factor + bias; }
FA_INLINE V normalized_affine(V x, R mean, R factor, V weight, V bias) { return (x - mean) * factor * weight + bias; }

/* out = that; weight and bias may be absent. */
FA_INLINE void normalize(const R *x, const R *weight, const R *bias, char *out, const fa_type type, ptrdiff_t count,
                         R mean, R factor, const char *ahead, nontemporal_line *nontemporal) {
#define X(i, n) (prefetch_l2(ahead + i * fa_size_of(type)), load_some(x + i, n))
#define CENTRED(i, n) normalized(X(i, n), mean, factor)
#define WEIGHTED(i, n) normalized_weighted(X(i, n), mean, factor, load_some(weight + i, n))
#define BIASED(i, n) normalized_biased(X(i, n), mean, factor, load_some(bias + i, n))
#define BOTH(i, n) normalized_affine(X(i, n), mean, factor, load_some(weight + i, n), load_some(bias + i, n))
    if (weight && bias) FA_MAP(out, type, count, nontemporal, BOTH);
    else if (weight) FA_MAP(out, type, count, nontemporal, WEIGHTED);
    else if (bias) FA_MAP(out, type, count, nontemporal, BIASED);
    else FA_MAP(out, type, count, nontemporal, CENTRED);
#undef X
#undef CENTRED
#undef WEIGHTED
#undef BIASED
#undef BOTH
}

/* x + residual into `total`, as it is stored, and into `row`, which may be `total` itself. */
FA_INLINE void add_rows(const char *x, const char *residual, char *total, R *row, const fa_type type, ptrdiff_t count) {
    const ptrdiff_t size = fa_size_of(type);
#define ADD(n)                                                                                                         \
    do {                                                                                                               \
        V sum = load_some_as(x + i * size, type, n) + load_some_as(residual + i * size, type, n);                      \
        store_some_as(total + i * size, type, sum, n);                                                                 \
        if (type != STORED) store_some(row + i, sum, n);                                                               \
    } while (0)
    ptrdiff_t i = 0;
    for (; i + LANES <= count; i += LANES) ADD(LANES);
    if (i < count) ADD(count - i);
#undef ADD
}

/* The row to normalise: as it lies, widened, or the sum with the residual, which is also an output. In 16 bits that sum
 * is normalised before it is rounded. */
static const R *normalization_row(const fa_normalization *n, const char *x, const char *residual, char *total, R *row) {
    if (!residual) {
        if (n->contiguous_x && n->type == STORED) return (const R *)x;
        widen(row, x, n->type, n->x_stride, n->length);
        return row;
    }
    if (!(n->contiguous_x && n->contiguous_residual && n->contiguous_total)) {
        R *other = row + n->length;
        widen(row, x, n->type, n->x_stride, n->length);
        widen(other, residual, n->type, n->residual_stride, n->length);
        for (ptrdiff_t i = 0; i < n->length; i++) row[i] += other[i];
        narrow(total, n->type, n->total_stride, row, n->length);
        return row;
    }
#define ADDED(TYPE) add_rows(x, residual, total, row, TYPE, n->length)
    FA_FOR_RESULT(n->type, ADDED);
#undef ADDED
    return n->type == STORED ? (const R *)total : row;
}

/* Whether squares overflowed, or all but vanished with nothing added to them. */
#define LEAST_SPREAD (FA_REAL_IS_FLOAT ? 0x1p-100 : 0x1p-960)
FA_INLINE int is_out_of_range(R spread, double eps) {
    return !(spread <= (FA_REAL_IS_FLOAT ? (R)FLT_MAX : (R)DBL_MAX)) || (double)spread + eps < LEAST_SPREAD;
}

/* A sum that keeps what rounding takes from it: in one chain, many equal numbers beside a large one are all rounded to
 * the same side, which cost float64 rows of 5000 elements 12 units. */
#define FA_SUM_OF(name, VALUE)                                                                                         \
    double name = 0, name##_lost = 0;                                                                                  \
    for (ptrdiff_t i = 0; i < count; i++) {                                                                            \
        const double value = VALUE, rounded = name + value, added = rounded - name;                                    \
        name##_lost += (name - (rounded - added)) + (value - added);                                                   \
        name = rounded;                                                                                                \
    }                                                                                                                  \
    name += name##_lost;

/* Such a row, in float64 and brought near 1 by a power of two. Rare, so short rather than fast. 0 where that is of no
 * use: the numbers are not finite, or equal, or all 0 beside nothing. */
FA_NOINLINE int normalize_scaled(const R *x, const R *weight, const R *bias, char *out, fa_type type, ptrdiff_t count,
                                 R spread, double eps, int centred) {
    double top = sqrt(eps);
    for (ptrdiff_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) return 0;
        if (fabs((double)x[i]) > top) top = fabs((double)x[i]);
    }
    if (top == 0 || (spread < 1 && top * top >= LEAST_SPREAD)) return 0;
    const int power = ilogb(top) < -1022 ? 1022 : -ilogb(top);
    const double scale = ldexp(1, power);
    FA_SUM_OF(sum, (double)x[i] * scale)
    const double mean = centred ? sum / (double)count : 0;
    FA_SUM_OF(squares, ((double)x[i] * scale - mean) * ((double)x[i] * scale - mean))
    const double factor = 1 / sqrt(squares / (double)count + ldexp(eps, 2 * power));
    for (ptrdiff_t i = 0; i < count; i++) {
        double y = ((double)x[i] * scale - mean) * factor;
        y = (weight ? y * (double)weight[i] : y) + (bias ? (double)bias[i] : 0);
        write_element(out + i * fa_size_of(type), type, (R)y);
    }
    return 1;
}

/* A parameter in the kernel's type: as it lies or, once for the rows of an item, widened. NumPy's own conversion of
 * 32,000 float16 took ten times as long as the row. */
static const R *widened_parameter(const void *from, fa_type type, ptrdiff_t count, R *to) {
    if (!from || type == STORED) return from;
    widen(to, from, type, fa_size_of(type), count);
    return to;
}

static void EXPORT(normalize_rows)(const fa_normalization *n, const char *x, const char *residual, char *out,
                                   char *total, ptrdiff_t rows, void *scratch) {
    const ptrdiff_t bytes = n->length * fa_size_of(n->type);
    const fa_type out_type = n->contiguous_out ? n->type : STORED;
    R *work = scratch, *result = work + 2 * n->length, *parameters = result + n->length;
    const R *weight = widened_parameter(n->weight, n->weight_type, n->length, parameters);
    const R *bias = widened_parameter(n->bias, n->bias_type, n->length, parameters + n->length);
    nontemporal_line nontemporal = {.filled = 0};
    int streaming = n->nontemporal && n->contiguous_x && n->contiguous_out && n->type == STORED,
        joined = n->out_row_stride == bytes;
    for (ptrdiff_t row = 0; row < rows; row++) {
        const R *in = normalization_row(n, x, residual, total, work);
        row_moments s = n->centred ? row_statistics(in, n->length, row_mean(in, n->length), 1)
                                   : row_statistics(in, n->length, 0, 0);
        R factor = (R)(1 / sqrt((double)s.spread + n->eps));
        const char *ahead = n->contiguous_x ? row_ahead(x, n->x_row_stride, bytes, rows - row) : (const char *)in;
        char *to = n->contiguous_out ? out : (char *)result;
        int done = 0;
        if (__builtin_expect(is_out_of_range(s.spread, n->eps), 0)) {
            if (streaming) end_nontemporal_row(&nontemporal, (R *)out, 0);
            done = normalize_scaled(in, weight, bias, to, out_type, n->length, s.spread, n->eps, n->centred);
        }
#define NORMALIZE(TYPE)                                                                                                \
    normalize(in, weight, bias, to, TYPE, n->length, s.mean, factor, ahead, streaming ? &nontemporal : NULL)
        if (!done) FA_FOR_RESULT(out_type, NORMALIZE);
#undef NORMALIZE
        if (streaming) end_nontemporal_row(&nontemporal, (R *)out + n->length, joined && row + 1 < rows);
        if (!n->contiguous_out) narrow(out, n->type, n->out_stride, result, n->length);
        x += n->x_row_stride;
        residual = residual ? residual + n->residual_row_stride : NULL;
        out += n->out_row_stride;
        total = total ? total + n->total_row_stride : NULL;
    }
    if (streaming) nontemporal_fence();
}

static ptrdiff_t EXPORT(normalization_scratch)(const fa_normalization *n) {
    int copies = n->type != STORED || !(n->contiguous_x && n->contiguous_out) ||
                 !(n->contiguous_residual && n->contiguous_total);
    int widened = (n->weight && n->weight_type != STORED) || (n->bias && n->bias_type != STORED);
    return copies || widened ? 5 * n->length * (ptrdiff_t)sizeof(R) : 0;
}

#endif
