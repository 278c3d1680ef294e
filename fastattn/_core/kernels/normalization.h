/* Layer and RMS normalisation of rows at any stride, with an optional residual added first.
 *
 * Three passes, between which the row stays in the first-level cache: the mean; the sums of the distances from it and of
 * their squares, which correct what rounding left of the mean and give the variance without cancellation; the result. */

typedef struct { R mean, spread; } OP(statistics);

static R OP(row_mean)(const R *x, ptrdiff_t count) {
    V total = {0}, sum[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    while (i + 4 * LANES <= count) {
        ptrdiff_t end = count - i < RUN ? count : i + RUN;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            FA_UNROLL for (int j = 0; j < 4; j++) sum[j] += OP(load)(x + i + j * LANES);
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        FA_UNROLL for (int j = 0; j < 4; j++) sum[j] = (V){0};
    }
    for (; i + LANES <= count; i += LANES) total += OP(load)(x + i);
    if (i < count) total += OP(load_part)(x + i, (int)(count - i));
    return OP(lane_sum)(total) / (R)count;
}

/* Mean square of the distances from `about`; with `centred` that is a first guess at the mean, which is corrected. */
FA_INLINE OP(statistics) OP(row_statistics)(const R *x, ptrdiff_t count, R about, const int centred) {
    V total = {0}, squares = {0}, sum[4] = {{0}, {0}, {0}, {0}}, square[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    while (i + 4 * LANES <= count) {
        ptrdiff_t end = count - i < RUN ? count : i + RUN;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            FA_UNROLL for (int j = 0; j < 4; j++) {
                V distance = OP(load)(x + i + j * LANES) - about;
                if (centred) sum[j] += distance;
                square[j] += distance * distance;
            }
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        squares += (square[0] + square[1]) + (square[2] + square[3]);
        FA_UNROLL for (int j = 0; j < 4; j++) sum[j] = square[j] = (V){0};
    }
    while (i < count) {
        int n = count - i < LANES ? (int)(count - i) : LANES;
        V distance = OP(load_some)(x + i, n) - about;
        if (n < LANES) distance = OP(keep_lanes)(distance, n, 0);
        total += distance;
        squares += distance * distance;
        i += n;
    }
    R spread = OP(lane_sum)(squares) / (R)count, off = centred ? OP(lane_sum)(total) / (R)count : 0;
    return (OP(statistics)){about + off, spread - off * off};
}

/* out = (x - mean) · factor · weight + bias; either may be absent. */
FA_INLINE void OP(normalize)(const R *x, const R *weight, const R *bias, R *out, ptrdiff_t count, R mean, R factor,
                             const R *ahead, OP(around) *around) {
#define CENTRED(i, n) (OP(prefetch)(ahead + i), (OP(load_some)(x + i, n) - mean) * factor)
#define WEIGHTED(i, n) (CENTRED(i, n) * OP(load_some)(weight + i, n))
#define BIASED(i, n) (CENTRED(i, n) + OP(load_some)(bias + i, n))
#define BOTH(i, n) (WEIGHTED(i, n) + OP(load_some)(bias + i, n))
    if (weight && bias) FA_MAP(out, count, around, BOTH);
    else if (weight) FA_MAP(out, count, around, WEIGHTED);
    else if (bias) FA_MAP(out, count, around, BIASED);
    else FA_MAP(out, count, around, CENTRED);
#undef CENTRED
#undef WEIGHTED
#undef BIASED
#undef BOTH
}

/* The row to normalise: as it lies, gathered, or the sum with the residual, which is also an output. */
static const R *OP(normalization_row)(const fa_normalization *n, const char *x, const char *residual, char *total,
                                      R *row) {
    if (!residual) {
        if (n->plain_x) return (const R *)x;
        OP(gather)(row, x, n->x_element, n->length);
        return row;
    }
    if (!(n->plain_x && n->plain_residual && n->plain_total)) {
        R *other = row + n->length;
        OP(gather)(row, x, n->x_element, n->length);
        OP(gather)(other, residual, n->residual_element, n->length);
        for (ptrdiff_t i = 0; i < n->length; i++) row[i] += other[i];
        OP(scatter)(total, n->total_element, row, n->length);
        return row;
    }
#define ADDED(i, count) (OP(load_some)((const R *)x + i, count) + OP(load_some)((const R *)residual + i, count))
    FA_MAP((R *)total, n->length, (OP(around) *)NULL, ADDED);
#undef ADDED
    return (const R *)total;
}

static void EXPORT(normalize_rows)(const fa_normalization *n, const char *x, const char *residual, char *out,
                                   char *total, ptrdiff_t rows, void *scratch) {
    R *work = scratch, *result = work + 2 * n->length;
    OP(around) around = {.filled = 0};
    int streaming = n->streaming && n->plain_x && n->plain_out, joined = n->out_row == n->length * (ptrdiff_t)sizeof(R);
    for (ptrdiff_t row = 0; row < rows; row++) {
        const R *in = OP(normalization_row)(n, x, residual, total, work);
        OP(statistics) s = n->centred ? OP(row_statistics)(in, n->length, OP(row_mean)(in, n->length), 1)
                                      : OP(row_statistics)(in, n->length, 0, 0);
        R factor = (R)(1 / sqrt((double)s.spread + n->eps));
        const R *ahead = n->plain_x ? OP(row_ahead)((const R *)x, n->x_row, n->length, rows - row) : in;
        OP(normalize)(in, n->weight, n->bias, n->plain_out ? (R *)out : result, n->length, s.mean, factor, ahead,
                      streaming ? &around : NULL);
        if (streaming) OP(end_row)(&around, (R *)out + n->length, joined && row + 1 < rows);
        if (!n->plain_out) OP(scatter)(out, n->out_element, result, n->length);
        x += n->x_row;
        residual = residual ? residual + n->residual_row : NULL;
        out += n->out_row;
        total = total ? total + n->total_row : NULL;
    }
    if (streaming) stream_end();
}

static ptrdiff_t EXPORT(normalization_scratch)(const fa_normalization *n) {
    int copies = !(n->plain_x && n->plain_out) || !(n->plain_residual && n->plain_total);
    return copies ? 3 * n->length * (ptrdiff_t)sizeof(R) : 0;
}
