/* Linear by dot products of pairs: x and weight are bfloat16. */

#define LINEAR_RUN(l) FA_TILE_RUN

typedef struct { TILE(rows) rows; } TILE(weights);
typedef struct { char none; } TILE(quantised);

static TILE(weights) TILE(weights_at)(const fa_linear *l, ptrdiff_t feature, ptrdiff_t count, ptrdiff_t unit,
                                      ptrdiff_t units, R *panel) {
    const char *from = l->weight + feature * l->weight_row + UNIT * unit * l->weight_element;
    ptrdiff_t size = l->in_features - UNIT * unit;
    if (l->weight_element == 2 && size >= UNIT * units && l->weight_row % (ptrdiff_t)sizeof(R) == 0)
        return (TILE(weights)){{(const R *)from, l->weight_row / (ptrdiff_t)sizeof(R)}};
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t u = 0; u < units; u++)
            panel[i * units + u] = TILE(unit)(from + i * l->weight_row, l->weight_element, u, size, FA_BF16);
    return (TILE(weights)){{panel, units}};
}

static void TILE(take_rows)(const fa_linear *l, const char *const *from, R *to, ptrdiff_t vectors, R *bytes,
                            TILE(quantised) *quantised, ptrdiff_t j) {
    (void)bytes, (void)quantised, (void)j;
    TILE(rows_into_lanes)(from, l->x_element, l->type, l->in_features, l->plain_x, to, vectors);
}

FA_INLINE V TILE(real)(V sum, const TILE(weights) *weights, ptrdiff_t row, const TILE(quantised) *quantised, int j) {
    (void)weights, (void)row, (void)quantised, (void)j;
    return sum;
}

/* The sum of products of two rows by multiply-adds. */
static R TILE(exact_sum)(const fa_linear *l, const char *x, const char *weight) {
    R sum = 0;
    for (ptrdiff_t k = 0; k < l->in_features; k++)
        sum += OP(element)(x + k * l->x_element, FA_BF16) * OP(element)(weight + k * l->weight_element, FA_BF16);
    return sum;
}

static int TILE(is_zero)(const char *row, ptrdiff_t element, ptrdiff_t size) {
    uint16_t bits = 0, x;
    for (ptrdiff_t k = 0; k < size; k++) {
        memcpy(&x, row + k * element, sizeof x);
        bits |= x;
    }
    return !(bits & 0x7fff);
}

/* Sums so small that the instruction's flushing of subnormals would show (FA_LEAST_SUM) are made again, one by one: what else
 * is in the call must not tell. Rare, unless a row is all 0, where there is nothing to make. */
static void TILE(mend)(const fa_linear *l, const char *const *x, ptrdiff_t lanes, ptrdiff_t feature, ptrdiff_t features,
                       V *sums) {
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        VI lost = (sums[lane] < OP(splat)(FA_LEAST_SUM)) & (sums[lane] > OP(splat)(-FA_LEAST_SUM));
        if (!_mm512_test_epi32_mask((__m512i)lost, (__m512i)lost) || TILE(is_zero)(x[lane], l->x_element, l->in_features)) continue;
        for (ptrdiff_t i = 0; i < features; i++) {
            const char *weight = l->weight + (feature + i) * l->weight_row;
            if (lost[i] && !TILE(is_zero)(weight, l->weight_element, l->in_features))
                sums[lane][i] = TILE(exact_sum)(l, x[lane], weight);
        }
    }
}
