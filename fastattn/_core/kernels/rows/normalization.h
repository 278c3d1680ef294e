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

/* Rows that go through the passes together, so that one row's chain of sums, square root and division does not hold up
 * the next; of at most GROUPED elements, so that all of them stay in the first-level cache. fold() adds up the lanes of
 * each row in the same order, wherever it stands in its group. */
#define GROUP FOLD
#define GROUPED (FA_REAL_IS_FLOAT ? 1024 : 512)

/* Of a row, lane by lane: the sum, or the sums of the distances from `about` and of their squares. */
typedef struct {
    V total, squares;
} row_sums;

static V row_total(const R *x, ptrdiff_t count) {
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
    return total;
}

FA_INLINE row_sums sums_about(const R *x, ptrdiff_t count, R about, const int centred) {
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
    return (row_sums){total, squares};
}

/* Of each row of a group: the mean, the mean square of the distances from it, and the factor that makes that 1. */
typedef struct {
    R mean[LANES], spread[LANES], factor[GROUP];
} group_moments;

static void find_moments(group_moments *m, const R *const row[GROUP], ptrdiff_t rows, ptrdiff_t count, int centred,
                         double eps) {
    V total[GROUP] = {{0}}, squares[GROUP] = {{0}};
    if (centred) {
        for (ptrdiff_t r = 0; r < rows; r++) total[r] = row_total(row[r], count);
        const V mean = fold(total) / (R)count;
        store(m->mean, mean);
        for (ptrdiff_t r = 0; r < rows; r++) {
            row_sums sums = sums_about(row[r], count, m->mean[r], 1);
            total[r] = sums.total;
            squares[r] = sums.squares;
        }
        const V off = fold(total) / (R)count;
        store(m->mean, mean + off);
        store(m->spread, fold(squares) / (R)count - off * off);
    } else {
        for (ptrdiff_t r = 0; r < rows; r++) squares[r] = sums_about(row[r], count, 0, 0).squares;
        store(m->mean, (V){0});
        store(m->spread, fold(squares) / (R)count);
    }
    FA_UNROLL_FOR(int r = 0; r < GROUP; r++) m->factor[r] = (R)(1 / sqrt((double)m->spread[r] + eps));
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

/* A row in whole vectors: one that is stored in parts cannot be loaded before the parts have left the core. */
FA_INLINE void widen_whole(R *row, const char *x, const fa_type type, ptrdiff_t count) {
    const ptrdiff_t size = fa_size_of(type);
    ptrdiff_t i = 0;
    for (; i + LANES <= count; i += LANES) store(row + i, load_as(x + i * size, type));
    if (i < count) store(row + i, load_some_as(x + i * size, type, count - i));
}

/* x + residual into `total`, as it is stored, and into `row`, unless that is `total` itself. */
FA_INLINE void add_rows(const char *x, const char *residual, char *total, R *row, const fa_type type, ptrdiff_t count) {
    const ptrdiff_t size = fa_size_of(type);
#define ADD(n)                                                                                                         \
    do {                                                                                                               \
        V sum = load_some_as(x + i * size, type, n) + load_some_as(residual + i * size, type, n);                      \
        store_some_as(total + i * size, type, sum, n);                                                                 \
        if (type != STORED) store(row + i, sum);                                                                       \
    } while (0)
    ptrdiff_t i = 0;
    for (; i + LANES <= count; i += LANES) ADD(LANES);
    if (i < count) ADD(count - i);
#undef ADD
}

/* The row to normalise: as it lies, widened, or the sum with the residual, which is also an output. In 16 bits that sum
 * is normalised before it is rounded. */
static const R *normalization_row(const fa_normalization *n, const char *x, const char *residual, char *total, R *row,
                                  R *other) {
    if (!residual) {
        if (n->contiguous_x && n->type == STORED) return (const R *)x;
#define WIDENED(TYPE) widen_whole(row, x, TYPE, n->length)
        if (n->contiguous_x) FA_FOR_RESULT(n->type, WIDENED);
        else widen(row, x, n->type, n->x_stride, n->length);
#undef WIDENED
        return row;
    }
    if (!(n->contiguous_x && n->contiguous_residual && n->contiguous_total)) {
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

/* Rows of one or two vectors, or of four whole ones, stay in registers from the first pass to the last; to the bit what
 * the passes below give. Rows of 9 and 64 float32: 1.3 and 1.5 times as fast as one row after the other; of 9 and 22
 * bfloat16, whose last elements were widened one by one, 4.7 and 3.7 times (AVX-512). A kernel for each other length up
 * to four vectors added 0.1 MB to the wheel. */
#define SHORT 4
FA_INLINE int is_short(ptrdiff_t length) { return length <= 2 * LANES || length == SHORT * LANES; }

/* The sum of a row's vectors, or of their squares, in the order of the passes: four vectors are four chains. The order
 * is a constant: of squares that either order uses, some were rounded before they were added. */
FA_INLINE V vector_sum(const V *x, const int vectors, const int squares) {
    const int chains = vectors == SHORT;
    V sum[SHORT] = {{0}, {0}, {0}, {0}};
    FA_UNROLL_FOR(int i = 0; i < vectors; i++) {
        if (squares) sum[chains ? i : 0] += x[i] * x[i];
        else sum[chains ? i : 0] += x[i];
    }
    if (chains) sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    return sum[0];
}

FA_INLINE void short_rows(const fa_normalization *n, const char *x, const char *residual, char *out, char *total,
                          ptrdiff_t rows, const R *weight, const R *bias, const fa_type type, const int vectors) {
#define EACH_VECTOR FA_UNROLL_FOR(int i = 0; i < vectors; i++)
#define SIZE (i + 1 < vectors ? LANES : rest)
    const ptrdiff_t step = LANES * fa_size_of(type),
                    rest = vectors == SHORT ? LANES : n->length - (vectors - 1) * LANES;
    const R count = (R)n->length;
    V factors[SHORT], terms[SHORT];
    EACH_VECTOR { /* a product with 1 and a sum with -0 change nothing */
        factors[i] = weight ? load_some(weight + i * LANES, SIZE) : splat(1);
        terms[i] = bias ? load_some(bias + i * LANES, SIZE) : -(V){0};
    }
    for (ptrdiff_t first = 0; first < rows; first += GROUP) {
        const ptrdiff_t left = rows - first;
        V row[GROUP][SHORT], sums[GROUP], squares[GROUP], mean = {0};
        R factor[GROUP];
        FA_UNROLL_FOR(int r = 0; r < GROUP; r++) {
            EACH_VECTOR row[r][i] = (V){0};
            if (r >= left) continue;
            const char *from = x + (first + r) * n->x_row_stride;
            EACH_VECTOR row[r][i] = load_some_as(from + i * step, type, SIZE);
            if (!residual) continue;
            const char *more = residual + (first + r) * n->residual_row_stride;
            char *to = total + (first + r) * n->total_row_stride;
            EACH_VECTOR {
                row[r][i] += load_some_as(more + i * step, type, SIZE);
                store_some_as(to + i * step, type, row[r][i], SIZE);
            }
        }
        if (n->centred) {
            FA_UNROLL_FOR(int r = 0; r < GROUP; r++) sums[r] = vector_sum(row[r], vectors, 0);
            mean = fold(sums) / count;
        }
        FA_UNROLL_FOR(int r = 0; r < GROUP; r++) {
            V distance[SHORT];
            EACH_VECTOR distance[i] = row[r][i] - mean[r];
            if (rest < LANES) distance[vectors - 1] = keep_lanes(distance[vectors - 1], (int)rest, 0);
            sums[r] = vector_sum(distance, vectors, 0);
            squares[r] = vector_sum(distance, vectors, 1);
        }
        V spread = fold(squares) / count;
        if (n->centred) {
            const V off = fold(sums) / count;
            mean += off;
            spread -= off * off;
        }
        FA_UNROLL_FOR(int r = 0; r < GROUP; r++) factor[r] = (R)(1 / sqrt((double)spread[r] + n->eps));
        FA_UNROLL_FOR(int r = 0; r < GROUP; r++) {
            if (r >= left) break;
            char *to = out + (first + r) * n->out_row_stride;
            if (__builtin_expect(is_out_of_range(spread[r], n->eps), 0)) {
                R copy[SHORT * LANES];
                EACH_VECTOR store(copy + i * LANES, row[r][i]);
                if (normalize_scaled(copy, weight, bias, to, type, n->length, spread[r], n->eps, n->centred)) continue;
            }
            EACH_VECTOR {
                const V y = normalized_affine(row[r][i], mean[r], factor[r], factors[i], terms[i]);
                store_some_as(to + i * step, type, y, SIZE);
            }
        }
    }
#undef EACH_VECTOR
#undef SIZE
}

FA_NOINLINE void normalize_short_rows(const fa_normalization *n, const char *x, const char *residual, char *out,
                                      char *total, ptrdiff_t rows, const R *weight, const R *bias) {
    const ptrdiff_t vectors = whole_vectors(n->length) / LANES;
#define ROWS(TYPE, vectors) short_rows(n, x, residual, out, total, rows, weight, bias, TYPE, vectors)
#define ALL(TYPE)                                                                                                      \
    do {                                                                                                               \
        if (vectors == 1) ROWS(TYPE, 1);                                                                               \
        else if (vectors == 2) ROWS(TYPE, 2);                                                                          \
        else ROWS(TYPE, SHORT);                                                                                        \
    } while (0)
    FA_FOR_RESULT(n->type, ALL);
#undef ALL
#undef ROWS
}

static void EXPORT(normalize_rows)(const fa_normalization *n, const char *x, const char *residual, char *out,
                                   char *total, ptrdiff_t rows, void *scratch) {
    const ptrdiff_t bytes = n->length * fa_size_of(n->type);
    const fa_type out_type = n->contiguous_out ? n->type : STORED;
    const ptrdiff_t group = n->length <= GROUPED ? GROUP : 1, width = whole_vectors(n->length);
    const ptrdiff_t distance = rows_ahead(bytes);
    R *work = scratch, *other = work + group * width, *result = other + n->length, *parameters = result + n->length;
    const R *weight = widened_parameter(n->weight, n->weight_type, n->length, parameters);
    const R *bias = widened_parameter(n->bias, n->bias_type, n->length, parameters + n->length);
    nontemporal_line nontemporal = {.filled = 0};
    int streaming = n->nontemporal && n->contiguous_x && n->contiguous_out && n->type == STORED,
        joined = n->out_row_stride == bytes;
    /* A bias without a weight is added in one rounding with the factor. */
    const int contiguous =
        n->contiguous_x && n->contiguous_out && (!residual || (n->contiguous_residual && n->contiguous_total));
    if (is_short(n->length) && contiguous && !streaming && (weight || !bias)) {
        normalize_short_rows(n, x, residual, out, total, rows, weight, bias);
        return;
    }
    for (ptrdiff_t first = 0; first < rows; first += group) {
        const ptrdiff_t end = rows - first < group ? rows : first + group;
        const R *in[GROUP];
        group_moments moments;
        for (ptrdiff_t row = first; row < end; row++) {
            in[row - first] =
                normalization_row(n, x + row * n->x_row_stride, residual, total, work + (row - first) * width, other);
            residual = residual ? residual + n->residual_row_stride : NULL;
            total = total ? total + n->total_row_stride : NULL;
        }
        find_moments(&moments, in, end - first, n->length, n->centred, n->eps);
        for (ptrdiff_t row = first; row < end; row++) {
            const R *from = in[row - first];
            const R mean = moments.mean[row - first], spread = moments.spread[row - first];
            const R factor = moments.factor[row - first];
            const char *ahead = (const char *)from;
            if (n->contiguous_x) ahead = row_ahead(x + row * n->x_row_stride, n->x_row_stride, distance, rows - row);
            char *to = n->contiguous_out ? out : (char *)result;
            int done = 0;
            if (__builtin_expect(is_out_of_range(spread, n->eps), 0)) {
                if (streaming) end_nontemporal_row(&nontemporal, (R *)out, 0);
                done = normalize_scaled(from, weight, bias, to, out_type, n->length, spread, n->eps, n->centred);
            }
#define NORMALIZE(TYPE)                                                                                                \
    normalize(from, weight, bias, to, TYPE, n->length, mean, factor, ahead, streaming ? &nontemporal : NULL)
            if (!done) FA_FOR_RESULT(out_type, NORMALIZE);
#undef NORMALIZE
            if (streaming) end_nontemporal_row(&nontemporal, (R *)out + n->length, joined && row + 1 < rows);
            if (!n->contiguous_out) narrow(out, n->type, n->out_stride, result, n->length);
            out += n->out_row_stride;
        }
    }
    if (streaming) nontemporal_fence();
}

static ptrdiff_t EXPORT(normalization_scratch)(const fa_normalization *n) {
    int copies = n->type != STORED || !(n->contiguous_x && n->contiguous_out) ||
                 !(n->contiguous_residual && n->contiguous_total);
    int widened = (n->weight && n->weight_type != STORED) || (n->bias && n->bias_type != STORED);
    const ptrdiff_t group = n->length <= GROUPED ? GROUP : 1;
    const ptrdiff_t elements = group * whole_vectors(n->length) + 4 * n->length;
    return copies || widened ? elements * (ptrdiff_t)sizeof(R) : 0;
}

#endif
