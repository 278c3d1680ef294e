/* Layer and RMS normalisation of rows at any stride, with an optional residual added first.
 *
 * Two passes for the statistics (mean, then squared distances from it: no cancellation, however far the mean is from
 * zero), a third for the result; the row stays in the first-level cache between them. */

/* Sum over i of VALUE(i), in four accumulators so that additions overlap; absent elements count as zero. */
#define FA_SUM(count, total, VALUE)                                                                                    \
    do {                                                                                                               \
        V sum[4] = {{0}, {0}, {0}, {0}};                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        for (; i + 4 * LANES <= (count); i += 4 * LANES)                                                               \
            FA_UNROLL for (int j = 0; j < 4; j++) sum[j] += VALUE(OP(load)(x + i + j * LANES));                        \
        for (; i + LANES <= (count); i += LANES) sum[0] += VALUE(OP(load)(x + i));                                     \
        total = OP(lane_sum)((sum[0] + sum[1]) + (sum[2] + sum[3]));                                                   \
        for (; i < (count); i++) total += VALUE(x[i]);                                                                 \
    } while (0)

FA_INLINE R OP(row_mean)(const R *x, ptrdiff_t count) {
    R total;
#define ITSELF(v) (v)
    FA_SUM(count, total, ITSELF);
#undef ITSELF
    return total / (R)count;
}

FA_INLINE R OP(row_spread)(const R *x, ptrdiff_t count, R mean) {
    R total;
#define SQUARE(v) (((v) - mean) * ((v) - mean))
    FA_SUM(count, total, SQUARE);
#undef SQUARE
    return total / (R)count;
}

/* out = (x - mean) · factor · weight + bias; either may be absent. */
FA_INLINE void OP(normalize)(const R *x, const R *weight, const R *bias, R *out, ptrdiff_t count, R mean, R factor,
                             int streaming) {
#define CENTRED(i, n) ((OP(load_some)(x + i, n) - mean) * factor)
#define WEIGHTED(i, n) (CENTRED(i, n) * OP(load_some)(weight + i, n))
#define BIASED(i, n) (CENTRED(i, n) + OP(load_some)(bias + i, n))
#define BOTH(i, n) (WEIGHTED(i, n) + OP(load_some)(bias + i, n))
    if (weight && bias) FA_MAP(out, count, streaming, BOTH);
    else if (weight) FA_MAP(out, count, streaming, WEIGHTED);
    else if (bias) FA_MAP(out, count, streaming, BIASED);
    else FA_MAP(out, count, streaming, CENTRED);
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
    FA_MAP((R *)total, n->length, 0, ADDED);
#undef ADDED
    return (const R *)total;
}

static void EXPORT(normalize_rows)(const fa_normalization *n, const char *x, const char *residual, char *out,
                                   char *total, ptrdiff_t rows, void *scratch) {
    R *row = scratch, *result = row + 2 * n->length;
    for (; rows > 0; rows--) {
        const R *in = OP(normalization_row)(n, x, residual, total, row);
        R mean = n->centred ? OP(row_mean)(in, n->length) : 0;
        R factor = 1 / (R)sqrt((double)(OP(row_spread)(in, n->length, mean) + (R)n->eps));
        OP(normalize)(in, n->weight, n->bias, n->plain_out ? (R *)out : result, n->length, mean, factor,
                      n->streaming && n->plain_out);
        if (!n->plain_out) OP(scatter)(out, n->out_element, result, n->length);
        x += n->x_row;
        residual = residual ? residual + n->residual_row : NULL;
        out += n->out_row;
        total = total ? total + n->total_row : NULL;
    }
    if (n->streaming) stream_end();
}

static ptrdiff_t EXPORT(normalization_scratch)(const fa_normalization *n) {
    int copies = !(n->plain_x && n->plain_out) || !(n->plain_residual && n->plain_total);
    return copies ? 3 * n->length * (ptrdiff_t)sizeof(R) : 0;
}
