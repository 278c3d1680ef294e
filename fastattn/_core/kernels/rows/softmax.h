/* softmax and log_softmax of rows at any stride.
 *
 * A row that fits the cache is passed three times: maximum, exponentials and their sum, scaling. A longer one goes span
 * by span with a running maximum and sum (Milakov and Gimelshein 2018), and its exponentials are computed twice. Rows
 * that lie side by side (an axis other than the last) go into the lanes instead, and so do rows of few elements.
 *
 * Where few terms are far larger than all others, each addition to one of them rounds the sum by up to half a unit, and
 * all results of the row share that error. So rows of more than one run have chains half as long, and the sums of their
 * runs and lanes are added exactly, for 0 to 3 % of the time. With chains of 16 added plainly, 1 in 30 random arrays of
 * three rows of 600 to 5000 elements missed the accuracy rule, by up to 2.3 times, and a row of 300,000 with one
 * dominating term by 6.7 times. */
#ifndef FA_ROWS_SOFTMAX_H
#define FA_ROWS_SOFTMAX_H

#include "rows/long_sum.h"
#include "rows/passes.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/layout.h"
#include "storage/partial.h"
#include "storage/streaming.h"

#define SPAN 32768 /* elements; 128 KB of float32 and as much scratch stay in L2 */

typedef struct {
    R max;
    lane_total total;
} softmax_state;

FA_INLINE ptrdiff_t span_of(const fa_softmax *s) { return s->length < SPAN ? s->length : SPAN; }

/* Elements [first, first + count) of a row: in place, or widened into scratch with the excluded ones at -inf. */
FA_INLINE const R *softmax_span(const fa_softmax *s, const char *x, const char *where, ptrdiff_t first, ptrdiff_t count,
                                int plain, R *scratch) {
    x += first * s->x_stride;
    if (plain) return (const R *)x;
    widen(scratch, x, s->type, s->x_stride, count);
    if (where)
        for (ptrdiff_t i = 0; i < count; i++)
            if (!where[(first + i) * s->where_stride]) scratch[i] = (R)-INFINITY;
    return scratch;
}

static R span_max(const R *x, ptrdiff_t count) {
    const V lowest = splat((R)-INFINITY);
    V top[4] = {lowest, lowest, lowest, lowest};
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        FA_UNROLL_FOR(int j = 0; j < 4; j++) top[j] = maximum(load(x + i + j * LANES), top[j]);
    for (; i + LANES <= count; i += LANES) top[0] = maximum(load(x + i), top[0]);
    if (i < count)
        top[1] = maximum(keep_lanes(load_part(x + i, (int)(count - i)), (int)(count - i), lowest[0]), top[1]);
    return lane_max(maximum(maximum(top[0], top[1]), maximum(top[2], top[3])));
}

/* Sum of e^(x - shift) over a run, lane by lane, in 4 or 8 chains; with `keep` the terms are left in `to`. `ahead` is
 * prefetched along with x, and may be x itself. */
FA_INLINE V run_exp(const R *x, R *to, ptrdiff_t count, R shift, const R *ahead, const int keep, const int chains) {
    V total, sum[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    for (; i + chains * LANES <= count; i += chains * LANES)
        FA_UNROLL_FOR(int j = 0; j < chains; j++) {
            V term = vector_exp(load(x + i + j * LANES) - shift);
            prefetch_l2(ahead + i + j * LANES);
            if (keep) store(to + i + j * LANES, term);
            sum[j] += term;
        }
    total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (chains == 8) total += (sum[4] + sum[5]) + (sum[6] + sum[7]);
    while (i < count) {
        int n = count - i < LANES ? (int)(count - i) : LANES;
        V less = load_some(x + i, n) - shift;
        if (n < LANES) less = keep_lanes(less, n, (R)-INFINITY);
        V term = vector_exp(less);
        prefetch_l2(ahead + i);
        if (keep) store_part(to + i, term, n);
        total += term;
        i += n;
    }
    return total;
}

FA_INLINE R finite_shift(R max) { return max == (R)-INFINITY ? 0 : max; } /* -inf - -inf would be NaN */

FA_INLINE lane_total scaled_total(lane_total a, R factor) { return (lane_total){a.sum * factor, a.lost * factor}; }
FA_INLINE softmax_state join_states(softmax_state a, R max, lane_total total) {
    R top = max > a.max ? max : a.max, shift = finite_shift(top);
    R old = vector_exp(splat(a.max - shift))[0], own = vector_exp(splat(max - shift))[0];
    softmax_state joined = {top, scaled_total(a.total, old)};
    add_total(&joined.total, scaled_total(total, own));
    return joined;
}

/* softmax: 1 / sum; log_softmax: log(sum). */
FA_INLINE R factor_of_total(const fa_softmax *s, lane_total a) {
    if (a.sum == 0) return 0;
    return s->logarithm ? (R)log((double)a.sum + (double)a.lost) : inverse_of_total(a);
}
FA_INLINE R factor_of_sum(const fa_softmax *s, R sum) {
    if (sum == 0) return 0;
    return s->logarithm ? (R)log((double)sum) : 1 / sum;
}

/* The last pass over a span. softmax: terms · factor; or, from x itself, e^(x - shift) · factor.
 * log_softmax: x - shift - factor, the factor then being the logarithm of the sum. */
FA_INLINE void span_finish(const fa_softmax *s, const R *x, int terms, char *out, fa_type type, ptrdiff_t count,
                           R shift, R factor, nontemporal_line *nontemporal) {
#define SCALED(i, n) (load_some(x + i, n) * factor)
#define TERMS(i, n) (vector_exp(load_some(x + i, n) - shift) * factor)
#define LOGARITHM(i, n) (load_some(x + i, n) - shift - factor)
#define FINISH(TYPE)                                                                                                   \
    do {                                                                                                               \
        if (s->logarithm) FA_MAP(out, TYPE, count, nontemporal, LOGARITHM);                                            \
        else if (terms) FA_MAP(out, TYPE, count, nontemporal, SCALED);                                                 \
        else FA_MAP(out, TYPE, count, nontemporal, TERMS);                                                             \
    } while (0)
    FA_FOR_RESULT(type, FINISH);
#undef FINISH
#undef SCALED
#undef TERMS
#undef LOGARITHM
}

/* What the rows of a call have in common. */
typedef struct {
    int plain, contiguous_out;     /* rows can be read as they lie, and be written to where they belong */
    fa_type out_type;              /* how they are written there, or to `result` */
    int joined;                    /* a row begins where the one before ends */
    nontemporal_line *nontemporal; /* NULL: plain stores */
    ptrdiff_t distance;            /* in rows, to the one that is prefetched */
    R *scratch, *result;
} softmax_memory;

/* A row on its way: where it is read, where its exponentials and its result go, what to prefetch meanwhile. */
typedef struct {
    const R *x, *ahead;
    R *terms;
    char *to;
    R shift, factor;
} softmax_row;

FA_INLINE softmax_row begin_row(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t left,
                                R *scratch, const softmax_memory *memory) {
    softmax_row row = {.x = softmax_span(s, x, where, 0, s->length, memory->plain, scratch)};
    row.ahead = memory->plain ? (const R *)row_ahead(x, s->x_row_stride, memory->distance, left) : row.x;
    /* Exponentials are kept where the last pass finds them in the cache: in the output, unless that is streamed or too
     * narrow. */
    row.terms = memory->contiguous_out && memory->out_type == STORED && !memory->nontemporal ? (R *)out : scratch;
    row.to = memory->contiguous_out ? out : (char *)memory->result;
    row.shift = finite_shift(span_max(row.x, s->length));
    return row;
}

FA_INLINE int is_one_run(const fa_softmax *s) { return s->length <= RUN; }

/* Elements [i, i + count) of two passes: the terms of one row, lane by lane summed up, and the results of another. */
FA_INLINE void row_terms(const fa_softmax *s, const softmax_row *row, ptrdiff_t i, ptrdiff_t count, long_sum *sum) {
#define TERMS(keep, chains) run_exp(row->x + i, row->terms + i, count, row->shift, row->ahead + i, keep, chains)
    if (is_one_run(s)) sum->sum = s->logarithm ? TERMS(0, 4) : TERMS(1, 4);
    else add_lanes(sum, s->logarithm ? TERMS(0, 8) : TERMS(1, 8));
#undef TERMS
}

FA_INLINE void row_results(const fa_softmax *s, const softmax_row *row, ptrdiff_t i, ptrdiff_t count,
                           const softmax_memory *memory) {
    const R *from = s->logarithm ? row->x : row->terms;
    char *to = row->to + i * fa_size_of(memory->out_type);
    span_finish(s, from + i, !s->logarithm, to, memory->out_type, count, row->shift, row->factor, memory->nontemporal);
}

/* Rows that fit the cache, three of them on their way: while the exponentials of one are computed, the results of the
 * row before are stored and a row to come is prefetched. So memory does not idle, and no row's reductions hold up the
 * core: beyond the cache 43 GB/s at rows of 1024 and 25 with one pass after the other; in it, rows of 128, 20 and 13 (a
 * core). */
static void softmax_short_rows(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                               const softmax_memory *memory) {
    softmax_row slot[3];
    for (ptrdiff_t r = 0; r < rows + 2; r++) {
        softmax_row *middle = r >= 1 && r <= rows ? &slot[(r + 2) % 3] : NULL;
        softmax_row *last = r >= 2 ? &slot[(r + 1) % 3] : NULL;
        if (r < rows)
            slot[r % 3] =
                begin_row(s, x + r * s->x_row_stride, where ? where + r * s->where_row_stride : NULL,
                          out + r * s->out_row_stride, rows - r - 1, memory->scratch + r % 3 * s->length, memory);
        long_sum sum = {{0}, {0}};
        for (ptrdiff_t i = 0; i < s->length; i += RUN) {
            ptrdiff_t count = s->length - i < RUN ? s->length - i : RUN;
            if (middle) row_terms(s, middle, i, count, &sum);
            if (last) row_results(s, last, i, count, memory);
        }
        if (middle)
            middle->factor =
                is_one_run(s) ? factor_of_sum(s, lane_sum(sum.sum)) : factor_of_total(s, total_of_lanes(sum));
        if (last && !memory->contiguous_out)
            narrow(out + (r - 2) * s->out_row_stride, s->type, s->out_stride, memory->result, s->length);
        if (last && memory->nontemporal)
            end_nontemporal_row(memory->nontemporal, (R *)last->to + s->length, memory->joined);
    }
}

/* A row that does not fit the cache: span by span, twice. */
static void softmax_long_row(const fa_softmax *s, const char *x, const char *where, char *out,
                             const softmax_memory *memory) {
    softmax_state state = {(R)-INFINITY, {0, 0}};
    for (ptrdiff_t first = 0; first < s->length; first += SPAN) {
        ptrdiff_t count = s->length - first < SPAN ? s->length - first : SPAN;
        const R *span = softmax_span(s, x, where, first, count, memory->plain, memory->scratch);
        R max = span_max(span, count);
        long_sum sum = {{0}, {0}};
        for (ptrdiff_t i = 0; i < count; i += RUN) {
            ptrdiff_t run = count - i < RUN ? count - i : RUN;
            add_lanes(&sum, run_exp(span + i, NULL, run, finite_shift(max), span + i, 0, 8));
        }
        state = join_states(state, max, total_of_lanes(sum));
    }
    R shift = finite_shift(state.max), factor = factor_of_total(s, state.total);
    for (ptrdiff_t first = 0; first < s->length; first += SPAN) {
        ptrdiff_t count = s->length - first < SPAN ? s->length - first : SPAN;
        const R *span = softmax_span(s, x, where, first, count, memory->plain, memory->scratch);
        char *to = memory->contiguous_out ? out + first * s->out_stride : (char *)memory->result;
        span_finish(s, span, 0, to, memory->out_type, count, shift, factor, memory->nontemporal);
        if (!memory->contiguous_out) narrow(out + first * s->out_stride, s->type, s->out_stride, memory->result, count);
    }
    if (memory->nontemporal) end_nontemporal_row(memory->nontemporal, (R *)out + s->length, memory->joined);
}

/* What a row in each lane has in common: the shift before the exponential, and the factor after it. */
FA_INLINE V lanes_shift(V max) { return choose(max == (R)-INFINITY, (V){0}, max); }
FA_INLINE V lanes_factor(const fa_softmax *s, V sum) {
    V factor = choose(sum == (V){0}, (V){0}, (R)1 / sum);
    if (s->logarithm)
        for (int lane = 0; lane < LANES; lane++) factor[lane] = factor_of_sum(s, sum[lane]);
    return factor;
}

/* Rows of at most TINY elements: a row to a lane, by way of memory. 16 rows of 9 take 0.4 us, in passes 1.0 us. */
#define TINY (2 * LANES)
static void softmax_tiny_rows(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows) {
    const ptrdiff_t n = s->length, size = fa_size_of(s->type);
    const int joined = !where && s->x_stride == size && s->x_row_stride == n * size;
    const int joined_out = s->out_stride == size && s->out_row_stride == n * size;
    R row_major[TINY * LANES] = {0}, lane_major[TINY * LANES];
    for (ptrdiff_t first = 0; first < rows; first += LANES) {
        const ptrdiff_t lanes = rows - first < LANES ? rows - first : LANES;
        if (joined) widen(row_major, x + first * s->x_row_stride, s->type, size, lanes * n);
        else
            for (ptrdiff_t r = first; r < first + lanes; r++)
                softmax_span(s, x + r * s->x_row_stride, where ? where + r * s->where_row_stride : NULL, 0, n, 0,
                             row_major + (r - first) * n);
        for (ptrdiff_t i = 0; i < n; i++)
            for (int lane = 0; lane < LANES; lane++) lane_major[i * LANES + lane] = row_major[lane * n + i];

        /* Short chains: of 32 terms in one, the rounding errors exceed the rule. */
        V max = splat((R)-INFINITY), sum[4] = {{0}, {0}, {0}, {0}};
        for (ptrdiff_t i = 0; i < n; i++) max = maximum(load(lane_major + i * LANES), max);
        const V shift = lanes_shift(max);
        for (ptrdiff_t i = 0; i < n; i++) {
            V less = load(lane_major + i * LANES) - shift, term = vector_exp(less);
            sum[i % 4] += term;
            store(lane_major + i * LANES, s->logarithm ? less : term);
        }
        const V factor = lanes_factor(s, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        for (ptrdiff_t i = 0; i < n; i++) {
            V kept = load(lane_major + i * LANES);
            store(lane_major + i * LANES, s->logarithm ? kept - factor : kept * factor);
        }

        for (ptrdiff_t i = 0; i < n; i++)
            for (int lane = 0; lane < LANES; lane++) row_major[lane * n + i] = lane_major[i * LANES + lane];
        if (joined_out) narrow(out + first * s->out_row_stride, s->type, size, row_major, lanes * n);
        else
            for (ptrdiff_t r = first; r < first + lanes; r++)
                narrow(out + r * s->out_row_stride, s->type, s->out_stride, row_major + (r - first) * n, n);
    }
}

static void EXPORT(softmax_rows)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                                 void *scratch) {
    if (s->length <= TINY) {
        softmax_tiny_rows(s, x, where, out, rows);
        return;
    }
    nontemporal_line nontemporal = {.filled = 0};
    int contiguous_out = are_side_by_side(out, s->out_row_stride, s->out_stride, s->type);
    softmax_memory memory = {
        .plain = !where && s->type == STORED && is_contiguous(x, s->x_row_stride, s->x_stride),
        .contiguous_out = contiguous_out,
        .out_type = contiguous_out ? s->type : STORED,
        .joined = s->out_row_stride == s->length * (ptrdiff_t)sizeof(R),
        .distance = rows_ahead(s->length * (ptrdiff_t)sizeof(R)),
        .scratch = scratch,
        .result = (R *)scratch + 3 * span_of(s),
    };
    if (s->nontemporal && memory.plain && contiguous_out) memory.nontemporal = &nontemporal;
    if (s->length <= SPAN) softmax_short_rows(s, x, where, out, rows, &memory);
    else
        for (ptrdiff_t row = 0; row < rows; row++)
            softmax_long_row(s, x + row * s->x_row_stride, where ? where + row * s->where_row_stride : NULL,
                             out + row * s->out_row_stride, &memory);
    if (memory.nontemporal) {
        end_nontemporal_row(&nontemporal, (R *)(out + (rows - 1) * s->out_row_stride) + s->length, 0);
        nontemporal_fence();
    }
}

/* How rows that lie side by side are read: `vectors` of them, of `usual` elements and the last one of `last`. Either a
 * lane is a row, and a vector holds an element of each; or the rows are woven: fewer than WOVEN of them without gaps,
 * read in whole vectors, so that a lane is of another row in each of `phases` vectors, and then of the first again. */
#define WOVEN (2 * LANES)
typedef struct {
    ptrdiff_t vectors, x_step, out_step; /* bytes */
    int usual, last;
    int rows, phases; /* of woven rows */
} softmax_walk;

#define FA_FOR_WOVEN(w)                                                                                                \
    for (int p = 0, row = 0; p < (w)->phases; p++)                                                                     \
        for (int lane = 0; lane < LANES; lane++, row = row + 1 == (w)->rows ? 0 : row + 1)

/* From values of lanes, in place, to those of their rows: the maximum or the sum, and what is made of it. */
FA_INLINE void woven_shift(const softmax_walk *w, V *max) {
    R of_row[WOVEN];
    for (int row = 0; row < w->rows; row++) of_row[row] = (R)-INFINITY;
    FA_FOR_WOVEN(w) if (max[p][lane] > of_row[row]) of_row[row] = max[p][lane];
    FA_FOR_WOVEN(w) max[p][lane] = finite_shift(of_row[row]);
}
FA_INLINE void woven_factor(const fa_softmax *s, const softmax_walk *w, const long_sum *sum, V *factor) {
    lane_total total[WOVEN] = {{0}};
    R of_row[WOVEN];
    FA_FOR_WOVEN(w) add_total(&total[row], (lane_total){sum[p].sum[lane], sum[p].lost[lane]});
    for (int row = 0; row < w->rows; row++) of_row[row] = factor_of_total(s, total[row]);
    FA_FOR_WOVEN(w) factor[p][lane] = of_row[row];
}

/* Terms of a lane of woven rows that are added up before their sum is added exactly: in chains of 8, 3 columns of 131
 * exceeded the rule. Costs 5 to 12 % of such calls. */
#define LANES_RUN 4

/* Between the passes the exponentials stay in the output; one of 16 bits would round them, so there they are computed
 * twice. */
FA_INLINE void softmax_lanes(const fa_softmax *s, const softmax_walk *w, const char *x, char *out, const fa_type type,
                             const int woven) {
    V shift[WOVEN], factor[WOVEN]; /* at first a run's sum */
    long_sum sum[WOVEN];
    const int phases = woven ? w->phases : 1;
    int terms = 0; /* of a run */
    for (int p = 0; p < phases; p++) shift[p] = splat((R)-INFINITY), factor[p] = (V){0};
    for (int p = 0; woven && p < phases; p++) sum[p] = (long_sum){{0}, {0}};
#define ADD_RUNS                                                                                                       \
    for (int p = terms = 0; p < phases; p++) add_lanes(&sum[p], factor[p]), factor[p] = (V){0}
#define EACH_VECTOR                                                                                                    \
    for (ptrdiff_t i = 0, p = 0, n; n = i + 1 < w->vectors ? w->usual : w->last, i < w->vectors;                       \
         i++, p = p + 1 < phases ? p + 1 : 0)
/* Lanes beyond the end of woven rows are of rows, too: there -inf adds nothing. */
#define AT(i)                                                                                                          \
    (woven && n < LANES ? keep_lanes(load_some_as(x + (i) * w->x_step, type, n), (int)n, (R)-INFINITY)                 \
                        : load_some_as(x + (i) * w->x_step, type, n))
#define PUT(i, value) store_some_as(out + (i) * w->out_step, type, value, n)
    EACH_VECTOR shift[p] = maximum(AT(i), shift[p]);
    if (woven) woven_shift(w, shift);
    else shift[0] = lanes_shift(shift[0]);
    EACH_VECTOR {
        V less = AT(i) - shift[p], term = vector_exp(less);
        factor[p] += term;
        if (woven && p + 1 == phases && ++terms == LANES_RUN) ADD_RUNS;
        if (s->logarithm) term = less;
        if (type == STORED) PUT(i, term);
    }
    if (woven) {
        ADD_RUNS;
        woven_factor(s, w, sum, factor);
    } else factor[0] = lanes_factor(s, factor[0]);
    EACH_VECTOR {
        V kept = type == STORED ? load_some((const R *)(out + i * w->out_step), n) : (V)(AT(i) - shift[p]);
        if (type != STORED && !s->logarithm) kept = vector_exp(kept);
        PUT(i, s->logarithm ? kept - factor[p] : kept * factor[p]);
    }
#undef ADD_RUNS
#undef EACH_VECTOR
#undef AT
#undef PUT
}

/* Whether rows are woven: their vectors are fewer by enough to pay for the sums over the lanes. */
FA_INLINE int is_woven(const fa_softmax *s, const softmax_walk *w, ptrdiff_t step) {
    ptrdiff_t idle = -w->rows & (LANES - 1);
    return s->x_stride == step && s->out_stride == step && s->length * idle > 3 * LANES * w->phases;
}

static void EXPORT(softmax_columns)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                                    void *scratch) {
#define COLUMNS(TYPE)                                                                                                  \
    do {                                                                                                               \
        const ptrdiff_t size = fa_size_of(TYPE), count = s->length * rows;                                             \
        softmax_walk walk = {s->length, s->x_stride, s->out_stride, LANES, LANES};                                     \
        ptrdiff_t row = 0;                                                                                             \
        if (rows < WOVEN) {                                                                                            \
            int common = (int)(rows & -rows);                                                                          \
            walk.rows = (int)rows, walk.phases = (int)rows / (common < LANES ? common : LANES);                        \
            if (is_woven(s, &walk, rows * size)) {                                                                     \
                walk.x_step = walk.out_step = LANES * size;                                                            \
                walk.vectors = (count + LANES - 1) / LANES, walk.last = (int)((count - 1) % LANES + 1);                \
                softmax_lanes(s, &walk, x, out, TYPE, 1);                                                              \
                return;                                                                                                \
            }                                                                                                          \
        }                                                                                                              \
        for (; row + LANES <= rows; row += LANES) softmax_lanes(s, &walk, x + row * size, out + row * size, TYPE, 0);  \
        walk.usual = walk.last = (int)(rows - row);                                                                    \
        if (row < rows) softmax_lanes(s, &walk, x + row * size, out + row * size, TYPE, 0);                            \
    } while (0)
    FA_FOR_RESULT(s->type, COLUMNS);
#undef COLUMNS
}

static ptrdiff_t EXPORT(softmax_scratch)(const fa_softmax *s) { return 4 * span_of(s) * (ptrdiff_t)sizeof(R); }

#endif
