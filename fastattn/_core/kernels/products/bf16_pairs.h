/* What both ways of multiplying bfloat16 in attention, by dot products and by tiles, have in common: weights rounded and
 * paired. */

/* Half `half` of a unit, as a number. */
FA_INLINE R TILE(half_of)(const R *unit, ptrdiff_t half) {
    uint16_t bits;
    memcpy(&bits, (const char *)unit + 2 * half, sizeof bits);
    return bf16_to_float(bits);
}
FA_INLINE void TILE(put_half)(R *unit, ptrdiff_t half, R x) {
    uint16_t bits[2] = {float_to_bf16(x), 0};
    memcpy((char *)unit + half * 2, bits, half ? 2 : 4);
}
FA_INLINE R TILE(weight_at)(const R *weights, ptrdiff_t lanes, ptrdiff_t t, ptrdiff_t lane) {
    return TILE(half_of)(weights + t / 2 * lanes + lane, t % 2);
}

/* Whether some half of a vector of units is infinite or NaN. */
FA_INLINE VI TILE(special)(V units) {
    const VW_f32 low = (VW_f32){0} + 0x7f80, high = low << 16, bits = (VW_f32)units;
    return ((bits & low) == low) | ((bits & high) == high);
}
FA_INLINE int TILE(any_lane)(VI lanes) { return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0; }

/* Whether a tile's results are to be made again: see FA_LEAST_SUM. Tile by tile, for what else is in an item must not tell; and
 * NaN, which is no magnitude, is nothing lost: other rows would be made again with it. */
static int TILE(is_lost)(const R *out, const V *sum, ptrdiff_t vectors, ptrdiff_t value_size) {
    for (ptrdiff_t j = 0; j < vectors; j++) {
        V top = {0};
        for (ptrdiff_t d = 0; d < value_size; d++) {
            V x = OP(load)(out + (d * vectors + j) * LANES);
            top = OP(max)(x, OP(max)(-x, top));
        }
        VI lost = (top < OP(splat)(FA_LEAST_SUM)) & (sum[j] > (V){0});
        for (ptrdiff_t d = 0; TILE(any_lane)(lost) && d < value_size; d++) {
            V x = OP(load)(out + (d * vectors + j) * LANES);
            lost &= x == x;
        }
        if (TILE(any_lane)(lost)) return 1;
    }
    return 0;
}

/* Weights of two keys, rounded to bfloat16, as units. */
FA_INLINE V TILE(paired)(V low, V high) {
    const __m512i order = (__m512i)(VS_f32){0, 16, 1, 17, 2, 18, 3, 19, 4,  20, 5,  21, 6,  22, 7,  23,
                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (V)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
