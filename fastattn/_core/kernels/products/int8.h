/* Products of 8-bit integers by dot products of four (AVX512_VNNI): of unsigned ones in the lanes with signed ones that are
 * spread over them, added to 32-bit sums. A unit is four; R stands for its 32 bits, and V for sums, where they are only moved. */

#define UNIT 4

typedef struct { const R *data; ptrdiff_t stride; } TILE(rows); /* stride in units */

FA_INLINE V TILE(product)(V sum, V spread, V lanes) {
    return (V)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)lanes, (__m512i)spread);
}
FA_INLINE V TILE(spread)(const R *unit) {
    int32_t bits;
    memcpy(&bits, unit, sizeof bits);
    return (V)_mm512_set1_epi32(bits);
}

FA_INLINE V TILE(load_units)(const char *from, ptrdiff_t unit, fa_type type) {
    (void)type;
    return OP(load)((const R *)(from + unit * (ptrdiff_t)sizeof(R)));
}
FA_INLINE R TILE(unit)(const char *from, ptrdiff_t element, ptrdiff_t unit, ptrdiff_t size, fa_type type) {
    (void)element, (void)size, (void)type; /* rows of bytes are padded to whole units */
    R bits;
    memcpy(&bits, from + unit * (ptrdiff_t)sizeof(R), sizeof bits);
    return bits;
}
