/* The products of attention by dot products of pairs (AVX512_BF16): queries, keys, values and weights are bfloat16, and each
 * lane adds two products at a time to a float32 sum.
 *
 * A unit is a pair: neighbouring components of a key, which lie so in memory; and of the values the same component of two
 * neighbouring keys, which are brought together in `panel`, once for all rows of an item. R stands for the 32 bits of a unit
 * where it is only moved. Keys are paired by their numbers, so blocks and steps begin at even ones. */

static TILE(rows) TILE(keys_at)(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                                const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, R *panel) {
    const char *from[KEYS_PER_STEP];
    ptrdiff_t units = (size + 1) / 2;
    (void)scales;
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    if (rows->element == 2 && size % 2 == 0 && rows->row % (ptrdiff_t)sizeof(R) == 0 && fa_in_a_row(a, item, first, count))
        return (TILE(rows)){(const R *)from[0], rows->row / (ptrdiff_t)sizeof(R)};
    for (ptrdiff_t t = 0; t < count; t++)
        for (ptrdiff_t u = 0; u < units; u++)
            panel[t * units + u] = TILE(unit)(from[t], rows->element, u, size, rows->type);
    return (TILE(rows)){panel, units};
}

static TILE(rows) TILE(values_at)(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows,
                                  const char *data, const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size,
                                  R *panel) {
    const char *from[KEYS_PER_STEP + 1];
    (void)scales;
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    from[count] = NULL;
    for (ptrdiff_t t = 0; t < count; t += 2) {
        R *to = panel + t / 2 * size;
        const char *low = from[t], *high = from[t + 1];
        ptrdiff_t d = 0;
        for (; rows->element == 2 && high && d + LANES <= size; d += LANES)
            OP(store)(to + d, (V)(load_halves((const uint16_t *)low + d) | load_halves((const uint16_t *)high + d) << 16));
        for (; d < size; d++) to[d] = TILE(pair)(low + d * rows->element, high ? high + d * rows->element : NULL);
    }
    return (TILE(rows)){panel, size};
}

#define TILE_KEYS_AT TILE(keys_at)
#define TILE_VALUES_AT TILE(values_at)

static int TILE(all_finite)(TILE(rows) rows, ptrdiff_t count, ptrdiff_t size) {
    const VW_f32 low = (VW_f32){0} + 0x7f80, high = low << 16;
    VI special = {0};
    for (ptrdiff_t t = 0; t < count; t += 2)
        for (ptrdiff_t d = 0; d < size; d += LANES) {
            VW_f32 bits = (VW_f32)OP(load_some)(rows.data + t / 2 * rows.stride + d, size - d < LANES ? size - d : LANES);
            special |= ((bits & low) == low) | ((bits & high) == high);
        }
    int any = 0;
    for (int lane = 0; lane < LANES; lane++) any |= special[lane];
    return !any;
}

/* Half `half` of a unit, as a number. */
FA_INLINE R TILE(half_of)(const R *unit, ptrdiff_t half) {
    uint16_t bits;
    memcpy(&bits, (const char *)unit + 2 * half, sizeof bits);
    return bf16_to_float(bits);
}
FA_INLINE R TILE(value_at)(TILE(rows) value, ptrdiff_t t, ptrdiff_t d) {
    return TILE(half_of)(value.data + t / 2 * value.stride + d, t % 2);
}
FA_INLINE void TILE(put_value)(R *panel, ptrdiff_t size, ptrdiff_t t, ptrdiff_t d, R x) {
    uint16_t bits[2] = {float_to_bf16(x), 0};
    memcpy((char *)(panel + t / 2 * size + d) + t % 2 * 2, bits, t % 2 ? 2 : 4);
}
FA_INLINE R TILE(weight_at)(const R *weights, ptrdiff_t lanes, ptrdiff_t t, ptrdiff_t lane) {
    return TILE(half_of)(weights + t / 2 * lanes + lane, t % 2);
}

/* Whether a tile's results are to be made again: see FA_LEAST_SUM. Tile by tile, for what else is in an item must not tell. */
static int TILE(is_lost)(const R *out, const V *sum, ptrdiff_t vectors, ptrdiff_t value_size) {
    for (ptrdiff_t j = 0; j < vectors; j++) {
        V top = {0};
        for (ptrdiff_t d = 0; d < value_size; d++) {
            V x = OP(load)(out + (d * vectors + j) * LANES);
            top = OP(max)(x, OP(max)(-x, top));
        }
        VI lost = (top < OP(splat)(FA_LEAST_SUM)) & (sum[j] > (V){0});
        for (int lane = 0; lane < LANES; lane++)
            if (lost[lane]) return 1;
    }
    return 0;
}

/* Weights of two keys, rounded to bfloat16, as units. */
FA_INLINE V TILE(paired)(V low, V high) {
    const __m512i order = (__m512i)(VS_f32){0, 16, 1, 17, 2, 18, 3, 19, 4,  20, 5,  21, 6,  22, 7,  23,
                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (V)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

/* A step's weights, in pairs in the place of the scores, and their sums. What is rounded to 8 bits need not be exact: an
 * exponential of degree 4. */
FA_INLINE void TILE(weights_of)(R *scores, ptrdiff_t count, const V *shift, V *sum, const int NV, int unclean,
                                const int exact) {
    const V nothing = OP(splat)((R)-INFINITY), log2_e = OP(splat)(1.44269504f);
    (void)exact;
    for (ptrdiff_t t = 0; t < count; t += 2)
        FA_UNROLL for (int j = 0; j < NV; j++) {
            V weight[2];
            FA_UNROLL for (int half = 0; half < 2; half++) {
                V score = t + half < count ? OP(load)(scores + ((t + half) * NV + j) * LANES) : nothing;
                weight[half] = exp2_rough_f32((score - shift[j]) * log2_e);
                sum[j] += weight[half];
                if (unclean) weight[half] = OP(select)(score == nothing, OP(splat)((R)-0.0), weight[half]);
            }
            OP(store)(scores + (t / 2 * NV + j) * LANES, TILE(paired)(weight[0], weight[1]));
        }
}
