/* softmax and log_softmax of rows at any stride.
 *
 * A row that fits the cache is passed three times: maximum, exponentials and their sum, scaling. A longer one goes span
 * by span with a running maximum and sum (Milakov and Gimelshein 2018), and its exponentials are computed twice. Rows
 * that lie side by side (an axis other than the last) go into the lanes instead. */

#define SPAN 32768 /* elements; 128 KB of float32 and as much scratch stay in L2 */

typedef struct { R max, sum; } OP(softmax_state);

FA_INLINE ptrdiff_t OP(span_of)(const fa_softmax *s) { return s->length < SPAN ? s->length : SPAN; }

/* Elements [first, first + count) of a row: in place, or gathered into scratch with the excluded ones at -inf. */
FA_INLINE const R *OP(softmax_span)(const fa_softmax *s, const char *x, const char *where, ptrdiff_t first,
                                    ptrdiff_t count, int plain, R *scratch) {
    x += first * s->x_element;
    if (plain) return (const R *)x;
    OP(gather)(scratch, x, s->x_element, count);
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

/* Sum of e^(x - shift); with `keep` the terms are left in `to`. */
FA_INLINE R OP(span_exp)(const R *x, R *to, ptrdiff_t count, R shift, const int keep) {
    V total = {0}, sum[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    while (i + 4 * LANES <= count) {
        ptrdiff_t end = count - i < RUN ? count : i + RUN;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            FA_UNROLL for (int j = 0; j < 4; j++) {
                V term = OP(exp)(OP(load)(x + i + j * LANES) - shift);
                if (keep) OP(store)(to + i + j * LANES, term);
                sum[j] += term;
            }
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        FA_UNROLL for (int j = 0; j < 4; j++) sum[j] = (V){0};
    }
    while (i < count) {
        int n = count - i < LANES ? (int)(count - i) : LANES;
        V less = OP(load_some)(x + i, n) - shift;
        if (n < LANES) less = OP(keep_lanes)(less, n, (R)-INFINITY);
        V term = OP(exp)(less);
        if (keep) OP(store_part)(to + i, term, n);
        total += term;
        i += n;
    }
    return OP(lane_sum)(total);
}

FA_INLINE R OP(finite_shift)(R max) { return max == (R)-INFINITY ? 0 : max; } /* -inf - -inf would be NaN */
FA_INLINE R OP(inverse)(R sum) { return sum == 0 ? 0 : 1 / sum; }

FA_INLINE OP(softmax_state) OP(joined)(OP(softmax_state) a, R max, R sum) {
    R top = max > a.max ? max : a.max, shift = OP(finite_shift)(top);
    R old = OP(exp)(OP(splat)(a.max - shift))[0], new = OP(exp)(OP(splat)(max - shift))[0];
    return (OP(softmax_state)){top, a.sum * old + sum * new};
}

/* The last pass over a span. softmax: terms · factor; or, from x itself, e^(x - shift) · factor.
 * log_softmax: x - shift - factor, the factor then being the logarithm of the sum. */
FA_INLINE void OP(span_finish)(const fa_softmax *s, const R *x, int terms, R *out, ptrdiff_t count, R shift, R factor,
                               OP(around) *around) {
#define SCALED(i, n) (OP(load_some)(x + i, n) * factor)
#define TERMS(i, n) (OP(exp)(OP(load_some)(x + i, n) - shift) * factor)
#define LOGARITHM(i, n) (OP(load_some)(x + i, n) - shift - factor)
    if (s->logarithm) FA_MAP(out, count, around, LOGARITHM);
    else if (terms) FA_MAP(out, count, around, SCALED);
    else FA_MAP(out, count, around, TERMS);
#undef SCALED
#undef TERMS
#undef LOGARITHM
}

static void OP(softmax_row)(const fa_softmax *s, const char *x, const char *where, char *out, int plain, int plain_out,
                            OP(around) *around, R *scratch) {
    R *result = scratch + OP(span_of)(s);
    int whole = s->length <= SPAN;
    /* Exponentials are kept where the last pass finds them in the cache: in the output, unless that is streamed. */
    R *terms = plain_out && !around ? (R *)out : scratch;
    OP(softmax_state) state = {(R)-INFINITY, 0};
    for (ptrdiff_t first = 0; first < s->length; first += SPAN) {
        ptrdiff_t count = s->length - first < SPAN ? s->length - first : SPAN;
        const R *span = OP(softmax_span)(s, x, where, first, count, plain, scratch);
        R max = OP(span_max)(span, count), shift = OP(finite_shift)(max);
        R sum = whole && !s->logarithm ? OP(span_exp)(span, terms, count, shift, 1)
                                       : OP(span_exp)(span, NULL, count, shift, 0);
        state = whole ? (OP(softmax_state)){max, sum} : OP(joined)(state, max, sum);
    }
    int kept = whole && !s->logarithm;
    R shift = OP(finite_shift)(state.max);
    R factor = s->logarithm ? (state.sum == 0 ? 0 : (R)log((double)state.sum)) : OP(inverse)(state.sum);
    for (ptrdiff_t first = 0; first < s->length; first += SPAN) {
        ptrdiff_t count = s->length - first < SPAN ? s->length - first : SPAN;
        const R *span = kept ? terms : OP(softmax_span)(s, x, where, first, count, plain, scratch);
        R *to = plain_out ? (R *)out + first : result;
        OP(span_finish)(s, span, kept, to, count, shift, factor, around);
        if (around) around->ahead += count;
        if (!plain_out) OP(scatter)(out + first * s->out_element, s->out_element, result, count);
    }
}

static void EXPORT(softmax_rows)(const fa_softmax *s, const char *x, const char *where, char *out, ptrdiff_t rows,
                                 void *scratch) {
    int plain = !where && OP(plain)(x, s->x_row, s->x_element), plain_out = OP(plain)(out, s->out_row, s->out_element);
    OP(around) around = {.filled = 0};
    int streaming = s->streaming && plain && plain_out, joined = s->out_row == s->length * (ptrdiff_t)sizeof(R);
    for (ptrdiff_t row = 0; row < rows; row++, x += s->x_row, out += s->out_row) {
        around.ahead = (const R *)(x + OP(rows_ahead)(s->length) * s->x_row);
        OP(softmax_row)(s, x, where ? where + row * s->where_row : NULL, out, plain, plain_out,
                        streaming ? &around : NULL, scratch);
        if (streaming) OP(end_row)(&around, (R *)out + s->length, joined && row + 1 < rows);
    }
    if (streaming) stream_end();
}

/* `lanes` rows side by side: element i of all of them stands at x + i · x_element. */
FA_INLINE void OP(softmax_side_by_side)(const fa_softmax *s, const char *x, char *out, int lanes) {
    const V lowest = OP(splat)((R)-INFINITY);
    V max = lowest, sum = {0};
#define AT(i) OP(load_some)((const R *)(x + (i) * s->x_element), lanes)
#define PUT(i, value)                                                                                                  \
    do {                                                                                                               \
        R *to = (R *)(out + (i) * s->out_element);                                                                     \
        if (lanes == LANES) OP(store)(to, value);                                                                      \
        else OP(store_part)(to, value, lanes);                                                                         \
    } while (0)
    for (ptrdiff_t i = 0; i < s->length; i++) max = OP(max)(AT(i), max);
    V shift = OP(select)(max == lowest, (V){0}, max);
    for (ptrdiff_t i = 0; i < s->length; i++) {
        V less = AT(i) - shift, term = OP(exp)(less);
        sum += term;
        if (s->logarithm) term = less;
        PUT(i, term);
    }
    V factor = OP(select)(sum == (V){0}, (V){0}, (R)1 / sum);
    if (s->logarithm)
        for (int lane = 0; lane < LANES; lane++) factor[lane] = sum[lane] == 0 ? 0 : (R)log((double)sum[lane]);
    for (ptrdiff_t i = 0; i < s->length; i++) {
        V kept = OP(load_some)((const R *)(out + i * s->out_element), lanes);
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
    ptrdiff_t row = 0;
    for (; row + LANES <= rows; row += LANES)
        OP(softmax_side_by_side)(s, x + row * (ptrdiff_t)sizeof(R), out + row * (ptrdiff_t)sizeof(R), LANES);
    if (row < rows)
        OP(softmax_side_by_side)(s, x + row * (ptrdiff_t)sizeof(R), out + row * (ptrdiff_t)sizeof(R), (int)(rows - row));
}

static ptrdiff_t EXPORT(softmax_scratch)(const fa_softmax *s) { return 2 * OP(span_of)(s) * (ptrdiff_t)sizeof(R); }
