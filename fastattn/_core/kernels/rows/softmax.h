/* softmax and log_softmax of rows at any stride.
 *
 * A row that fits the cache is passed three times: maximum, exponentials and their sum, scaling. A longer one goes span
 * by span with a running maximum and sum (Milakov and Gimelshein 2018), and its exponentials are computed twice. Rows
 * that lie side by side (an axis other than the last) go into the lanes instead. */
#ifndef FA_ROWS_SOFTMAX_H
#define FA_ROWS_SOFTMAX_H

#include "simd/lanes.h"
#include "storage/rows.h"

#define SPAN 32768 /* elements; 128 KB of float32 and as much scratch stay in L2 */

typedef struct { R max, sum; } OP(softmax_state);

FA_INLINE ptrdiff_t OP(span_of)(const fa_softmax *s) { return s->length < SPAN ? s->length : SPAN; }

/* Elements [first, first + count) of a row: in place, or widened into scratch with the excluded ones at -inf. */
FA_INLINE const R *OP(softmax_span)(const fa_softmax *s, const char *x, const char *where, ptrdiff_t first,
                                    ptrdiff_t count, int plain, R *scratch) {
    x += first * s->x_element;
    if (plain) return (const R *)x;
    OP(widen)(scratch, x, s->type, s->x_element, count);
    if (where)
        for (ptrdiff_t i = 0; i < count; i++)
            if (!where[(first + i) * s->where_element]) scratch[i] = (R)-INFINITY;
    return scratch;
}

static R OP(span_max)(const R *x, ptrdiff_t count) {
    const V lowest = OP(splat)((R)-INFINITY);
    V top[4] = {lowest, lowest, lowest, lowest};
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        FA_UNROLL for (int j = 0; j < 4; j++) top[j] = OP(max)(OP(load)(x + i + j * LANES), top[j]);
    for (; i + LANES <= count; i += LANES) top[0] = OP(max)(OP(load)(x + i), top[0]);
    R max = OP(lane_max)(OP(max)(OP(max)(top[0], top[1]), OP(max)(top[2], top[3])));
    for (; i < count; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* Sum of e^(x - shift) over a run, lane by lane; with `keep` the terms are left in `to`. `ahead` is prefetched along with
 * x, and may be x itself. */
FA_INLINE V OP(run_exp)(const R *x, R *to, ptrdiff_t count, R shift, const R *ahead, const int keep) {
    V total, sum[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        FA_UNROLL for (int j = 0; j < 4; j++) {
            V term = OP(exp)(OP(load)(x + i + j * LANES) - shift);
            OP(prefetch)(ahead + i + j * LANES);
            if (keep) OP(store)(to + i + j * LANES, term);
            sum[j] += term;
        }
    total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    while (i < count) {
        int n = count - i < LANES ? (int)(count - i) : LANES;
        V less = OP(load_some)(x + i, n) - shift;
        if (n < LANES) less = OP(keep_lanes)(less, n, (R)-INFINITY);
        V term = OP(exp)(less);
        OP(prefetch)(ahead + i);
        if (keep) OP(store_part)(to + i, term, n);
        total += term;
        i += n;
    }
    return total;
}

FA_INLINE R OP(finite_shift)(R max) { return max == (R)-INFINITY ? 0 : max; } /* -inf - -inf would be NaN */
FA_INLINE R OP(inverse)(R sum) { return sum == 0 ? 0 : 1 / sum; }

FA_INLINE OP(softmax_state) OP(joined)(OP(softmax_state) a, R max, R sum) {
    R top = max > a.max ? max : a.max, shift = OP(finite_shift)(top);
    R old = OP(exp)(OP(splat)(a.max - shift))[0], new = OP(exp)(OP(splat)(max - shift))[0];
    return (OP(softmax_state)){top, a.sum * old + sum * new};
}

/* softmax: 1 / sum; log_softmax: log(sum). */
FA_INLINE R OP(last_factor)(const fa_softmax *s, R sum) {
    return !s->logarithm ? OP(inverse)(sum) : sum == 0 ? 0 : (R)log((double)sum);
}

/* The last pass over a span. softmax: terms · factor; or, from x itself, e^(x - shift) · factor.
 * log_softmax: x - shift - factor, the factor then being the logarithm of the sum. */
FA_INLINE void OP(span_finish)(const fa_softmax *s, const R *x, int terms, char *out, fa_type type, ptrdiff_t count,
                               R shift, R factor, OP(around) *around) {
#define SCALED(i, n) (OP(load_some)(x + i, n) * factor)
#define TERMS(i, n) (OP(exp)(OP(load_some)(x + i, n) - shift) * factor)
#define LOGARITHM(i, n) (OP(load_some)(x + i, n) - shift - factor)
#define FINISH(TYPE)                                                                                                   \
    do {                                                                                                               \
        if (s->logarithm) FA_MAP(out, TYPE, count, around, LOGARITHM);                                                 \
        else if (terms) FA_MAP(out, TYPE, count, around, SCALED);                                                      \
        else FA_MAP(out, TYPE, count, around, TERMS);                                                                  \
    } while (0)
    FA_FOR_RESULT(type, FINISH);
#undef FINISH
#undef SCALED
#undef TERMS
#undef LOGARITHM
}

/* What the rows of a call have in common. */
typedef struct {
    int plain, plain_out; /* rows can be read as they lie, and be written to where they belong */
    fa_type out_type;     /* how they are written there, or to `result` */
    int joined;           /* a row begins where the one before ends */
    OP(around) *around;   /* NULL: plain stores */
    R *scratch, *result;
} OP(softmax_memory);

/* A row on its way: where it is read, where its exponentials and its result go, what to prefetch meanwhile. */
typedef struct {
    const R *x, *ahead;
    R *terms;
    char *to;
    R shift, factor;
} OP(softmax_row);

FA_INLINE OP(softmax_row) OP(begin_row)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t left,
                                        R *scratch, const OP(softmax_memory) *memory) {
    OP(softmax_row) row = {.x = OP(softmax_span)(s, x, where, 0, s->length, memory->plain, scratch)};
    row.ahead = memory->plain ? (const R *)OP(row_ahead)(x, s->x_row, s->length * (ptrdiff_t)sizeof(R), left) : row.x;
    /* Exponentials are kept where the last pass finds them in the cache: in the output, unless that is streamed or too
     * narrow. */
    row.terms = memory->plain_out && memory->out_type == STORED && !memory->around ? (R *)out : scratch;
    row.to = memory->plain_out ? out : (char *)memory->result;
    row.shift = OP(finite_shift)(OP(span_max)(row.x, s->length));
    return row;
}

/* Elements [i, i + count) of two passes: the terms of one row, lane by lane summed up, and the results of another. */
FA_INLINE V OP(row_terms)(const fa_softmax *s, const OP(softmax_row) *row, ptrdiff_t i, ptrdiff_t count) {
    return s->logarithm ? OP(run_exp)(row->x + i, NULL, count, row->shift, row->ahead + i, 0)
                        : OP(run_exp)(row->x + i, row->terms + i, count, row->shift, row->ahead + i, 1);
}

FA_INLINE void OP(row_results)(const fa_softmax *s, const OP(softmax_row) *row, ptrdiff_t i, ptrdiff_t count,
                               const OP(softmax_memory) *memory) {
    const R *from = s->logarithm ? row->x : row->terms;
    char *to = row->to + i * fa_size_of(memory->out_type);
    OP(span_finish)(s, from + i, !s->logarithm, to, memory->out_type, count, row->shift, row->factor, memory->around);
}

/* Rows that fit the cache, three of them on their way: while the exponentials of one are computed, the results of the row
 * before are stored and a row to come is prefetched. So memory does not idle, and no row's reductions hold up the core:
 * beyond the cache 43 GB/s at rows of 1024 and 25 with one pass after the other; in it, rows of 128, 20 and 13 (a core). */
static void OP(softmax_short_rows)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                                   const OP(softmax_memory) *memory) {
    OP(softmax_row) slot[3];
    for (ptrdiff_t r = 0; r < rows + 2; r++) {
        OP(softmax_row) *middle = r >= 1 && r <= rows ? &slot[(r + 2) % 3] : NULL;
        OP(softmax_row) *last = r >= 2 ? &slot[(r + 1) % 3] : NULL;
        if (r < rows)
            slot[r % 3] = OP(begin_row)(s, x + r * s->x_row, where ? where + r * s->where_row : NULL, out + r * s->out_row,
                                        rows - r - 1, memory->scratch + r % 3 * s->length, memory);
        V sum = {0};
        for (ptrdiff_t i = 0; i < s->length; i += RUN) {
            ptrdiff_t count = s->length - i < RUN ? s->length - i : RUN;
            if (middle) sum += OP(row_terms)(s, middle, i, count);
            if (last) OP(row_results)(s, last, i, count, memory);
        }
        if (middle) middle->factor = OP(last_factor)(s, OP(lane_sum)(sum));
        if (last && !memory->plain_out)
            OP(narrow)(out + (r - 2) * s->out_row, s->type, s->out_element, memory->result, s->length);
        if (last && memory->around) OP(end_row)(memory->around, (R *)last->to + s->length, memory->joined);
    }
}

/* A row that does not fit the cache: span by span, twice. */
static void OP(softmax_long_row)(const fa_softmax *s, const char *x, const char *where, char *out,
                                 const OP(softmax_memory) *memory) {
    OP(softmax_state) state = {(R)-INFINITY, 0};
    for (ptrdiff_t first = 0; first < s->length; first += SPAN) {
        ptrdiff_t count = s->length - first < SPAN ? s->length - first : SPAN;
        const R *span = OP(softmax_span)(s, x, where, first, count, memory->plain, memory->scratch);
        R max = OP(span_max)(span, count);
        V sum = {0};
        for (ptrdiff_t i = 0; i < count; i += RUN)
            sum += OP(run_exp)(span + i, NULL, count - i < RUN ? count - i : RUN, OP(finite_shift)(max), span + i, 0);
        state = OP(joined)(state, max, OP(lane_sum)(sum));
    }
    R shift = OP(finite_shift)(state.max), factor = OP(last_factor)(s, state.sum);
    for (ptrdiff_t first = 0; first < s->length; first += SPAN) {
        ptrdiff_t count = s->length - first < SPAN ? s->length - first : SPAN;
        const R *span = OP(softmax_span)(s, x, where, first, count, memory->plain, memory->scratch);
        char *to = memory->plain_out ? out + first * s->out_element : (char *)memory->result;
        OP(span_finish)(s, span, 0, to, memory->out_type, count, shift, factor, memory->around);
        if (!memory->plain_out)
            OP(narrow)(out + first * s->out_element, s->type, s->out_element, memory->result, count);
    }
    if (memory->around) OP(end_row)(memory->around, (R *)out + s->length, memory->joined);
}

static void EXPORT(softmax_rows)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                                 void *scratch) {
    OP(around) around = {.filled = 0};
    int plain_out = OP(side_by_side)(out, s->out_row, s->out_element, s->type);
    OP(softmax_memory) memory = {
        .plain = !where && s->type == STORED && OP(plain)(x, s->x_row, s->x_element),
        .plain_out = plain_out,
        .out_type = plain_out ? s->type : STORED,
        .joined = s->out_row == s->length * (ptrdiff_t)sizeof(R),
        .scratch = scratch,
        .result = (R *)scratch + 3 * OP(span_of)(s),
    };
    if (s->streaming && memory.plain && plain_out) memory.around = &around;
    if (s->length <= SPAN) OP(softmax_short_rows)(s, x, where, out, rows, &memory);
    else
        for (ptrdiff_t row = 0; row < rows; row++)
            OP(softmax_long_row)(s, x + row * s->x_row, where ? where + row * s->where_row : NULL,
                                 out + row * s->out_row, &memory);
    if (memory.around) {
        OP(end_row)(&around, (R *)(out + (rows - 1) * s->out_row) + s->length, 0);
        stream_end();
    }
}

/* `lanes` rows side by side: element i of all of them stands at x + i · x_element. Between the passes the exponentials
 * stay in the output; one of 16 bits would round them, so there they are computed twice. */
FA_INLINE void OP(softmax_lanes)(const fa_softmax *s, const char *x, char *out, const fa_type type, int lanes) {
    const V lowest = OP(splat)((R)-INFINITY);
    V max = lowest, sum = {0};
#define AT(i) OP(load_some_as)(x + (i) * s->x_element, type, lanes)
#define PUT(i, value) OP(store_some_as)(out + (i) * s->out_element, type, value, lanes)
    for (ptrdiff_t i = 0; i < s->length; i++) max = OP(max)(AT(i), max);
    V shift = OP(select)(max == lowest, (V){0}, max);
    for (ptrdiff_t i = 0; i < s->length; i++) {
        V less = AT(i) - shift, term = OP(exp)(less);
        sum += term;
        if (s->logarithm) term = less;
        if (type == STORED) PUT(i, term);
    }
    V factor = OP(select)(sum == (V){0}, (V){0}, (R)1 / sum);
    if (s->logarithm)
        for (int lane = 0; lane < LANES; lane++) factor[lane] = sum[lane] == 0 ? 0 : (R)log((double)sum[lane]);
    for (ptrdiff_t i = 0; i < s->length; i++) {
        V kept = type == STORED ? OP(load_some)((const R *)(out + i * s->out_element), lanes) : (V)(AT(i) - shift);
        if (type != STORED && !s->logarithm) kept = OP(exp)(kept);
        if (s->logarithm) kept = kept - factor;
        else kept = kept * factor;
        PUT(i, kept);
    }
#undef AT
#undef PUT
}

static void EXPORT(softmax_columns)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                                    void *scratch) {
    (void)where, (void)scratch;
#define COLUMNS(TYPE)                                                                                                  \
    do {                                                                                                               \
        const ptrdiff_t size = fa_size_of(TYPE);                                                                       \
        ptrdiff_t row = 0;                                                                                             \
        for (; row + LANES <= rows; row += LANES) OP(softmax_lanes)(s, x + row * size, out + row * size, TYPE, LANES); \
        if (row < rows) OP(softmax_lanes)(s, x + row * size, out + row * size, TYPE, (int)(rows - row));               \
    } while (0)
    FA_FOR_RESULT(s->type, COLUMNS);
#undef COLUMNS
}

static ptrdiff_t EXPORT(softmax_scratch)(const fa_softmax *s) {
    return 4 * OP(span_of)(s) * (ptrdiff_t)sizeof(R);
}

#endif
