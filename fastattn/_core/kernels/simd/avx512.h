/* The vocabulary in AVX-512 (F, BW, DQ, VL): masks, a fused 2^n and a fused "fraction of".
 * One 64-byte FMA a cycle on Zen 4 and on cores with one port for it, two on server Intel; loads: one or two a cycle.
 * vmaxps, vaddps 1 cycle of issue; vreduceps, vscalefps 1 a cycle (Zen 4, latency 4 to 6). */
#ifndef FA_SIMD_AVX512_H
#define FA_SIMD_AVX512_H

#include <immintrin.h>

#define FA_VECTOR_BYTES 64
#define FA_VECTOR_REGISTERS 32

#define FA_HAS_CONVERSIONS
#define FA_HAS_LOAD_BF16
#define FA_HAS_MASKED_HALVES
#include "simd/vector.h"

FA_INLINE void read_halves(char *to, const char *from, int n) {
    _mm256_storeu_si256((__m256i *)to, _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), from));
}
FA_INLINE V_f32 load_f16(const uint16_t *p) { return (V_f32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
/* Each word to the upper half of its lane: one instruction, where widening and shifting are two. */
FA_INLINE V_f32 load_bf16(const uint16_t *p) {
    const __m512i places =
        _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 16);
    __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return (V_f32)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, words);
}
FA_INLINE V_f32 load_i8(const int8_t *p) {
    return (V_f32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
FA_INLINE VS_f32 load_i8_words(const int8_t *p) {
    return (VS_f32)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
/* sum + the products of both integers of each lane. */
#ifndef FA_HAS_INT8_DOT
FA_INLINE VI_f32 add_products_i16(VI_f32 sum, VS_f32 a, VS_f32 b) {
    return sum + (VI_f32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#endif
FA_INLINE void store_f16(uint16_t *p, V_f32 x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

FA_INLINE void store_rounded_bf16(uint16_t *p, V_f32 x) {
    __m512i bits = (__m512i)x, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#ifndef FA_HAS_BF16_DOT
FA_INLINE void store_bf16(uint16_t *p, V_f32 x) { store_rounded_bf16(p, x); }
#endif

FA_INLINE void nontemporal_fence(void) { _mm_sfence(); }

#if FA_REAL_IS_FLOAT

/* Bytes as integers of the elements' width. */
FA_INLINE VI load_bytes(const uint8_t *p) { return (VI)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
FA_INLINE V maximum(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
FA_INLINE V load_part(const R *p, int n) { return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
FA_INLINE void store_part(R *p, V x, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x); }

/* The first n lanes of a, then those of b. */
FA_INLINE V join_lanes(V a, V b, int n) {
    return (V)_mm512_mask_expand_ps((__m512)a, (__mmask16) ~((1u << n) - 1), (__m512)b);
}
FA_INLINE void store_nontemporal(R *p, V x) { _mm512_stream_ps(p, (__m512)x); }

/* 2^x = 2^floor(x) · 2^(x - floor(x)): the fraction is one instruction and so is the scaling; -inf gives 0, NaN stays.
 * Subnormal results are 0: multiplied, one in a vector takes a hundred times as long, and one attention layer of MiniLM
 * has them: there it took 4 times as long in all. */
FA_INLINE V scaled(V fraction, V x) {
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
    return (V)_mm512_maskz_scalef_ps(normal, (__m512)fraction, (__m512)x);
}
FA_INLINE V vector_exp2(V x) {
    V f = (V)_mm512_reduce_ps((__m512)x, 0x09);
    return scaled(exp2_unit(f), x);
}

/* See simd/lanes.h. Transposing whole rows takes 64 permutations for 16 elements, all on one port; loads that bring
 * quarters of rows to their places leave 32. Rows are groups of four at one distance, as their 16 addresses do not fit
 * in registers: loading these again took as long as loading the elements. With 4 rows or more the last group is the
 * last four and may overlap the one before; with fewer, each group is one row, repeated. */
#define FA_HAS_LOAD_TRANSPOSED
#define TRANSPOSED 4
typedef struct {
    const R *group[4];
    ptrdiff_t stride;
} lane_rows;
FA_INLINE ptrdiff_t first_of_group(ptrdiff_t group, ptrdiff_t count) {
    return count < 4 ? fa_clamp(group, 0, count - 1) : fa_clamp(4 * group, 0, count - 4);
}
FA_INLINE lane_rows rows_in_lanes(const R *first, ptrdiff_t stride, ptrdiff_t count) {
    lane_rows rows = {.stride = count < 4 ? 0 : stride};
    FA_UNROLL_FOR(int g = 0; g < 4; g++) rows.group[g] = first + first_of_group(g, count) * stride;
    return rows;
}
FA_INLINE const R *row_in_lane(const lane_rows *rows, int lane) {
    return rows->group[lane / 4] + lane % 4 * rows->stride;
}
FA_INLINE V in_order_of_rows(V x, ptrdiff_t count) {
    R lanes[16], ordered[16] = {0};
    store(lanes, x);
    for (ptrdiff_t g = 0; g < 4; g++) memcpy(ordered + first_of_group(g, count), lanes + 4 * g, 4 * sizeof(R));
    return load(ordered);
}

/* Up to four elements of rows 0, 4, 8 and 12, one after the other; 0 where `which` has none. */
FA_INLINE __m512 load_quarters(const R *const *row, ptrdiff_t at, __mmask8 which) {
#define QUARTER(i) (which == 15 ? _mm_loadu_ps(row[i] + at) : _mm_maskz_loadu_ps(which, row[i] + at))
    __m512 x = _mm512_castps128_ps512(QUARTER(0));
    x = _mm512_insertf32x4(x, QUARTER(4), 1);
    x = _mm512_insertf32x4(x, QUARTER(8), 2);
    return _mm512_insertf32x4(x, QUARTER(12), 3);
#undef QUARTER
}
FA_INLINE void load_masked_transposed(const R *const *row, ptrdiff_t at, __mmask8 which, V *x) {
    __m512 a = load_quarters(row, at, which), b = load_quarters(row + 1, at, which);
    __m512 c = load_quarters(row + 2, at, which), d = load_quarters(row + 3, at, which);
    __m512d ab_low = (__m512d)_mm512_unpacklo_ps(a, b), ab_high = (__m512d)_mm512_unpackhi_ps(a, b);
    __m512d cd_low = (__m512d)_mm512_unpacklo_ps(c, d), cd_high = (__m512d)_mm512_unpackhi_ps(c, d);
    x[0] = (V)_mm512_unpacklo_pd(ab_low, cd_low);
    x[1] = (V)_mm512_unpackhi_pd(ab_low, cd_low);
    x[2] = (V)_mm512_unpacklo_pd(ab_high, cd_high);
    x[3] = (V)_mm512_unpackhi_pd(ab_high, cd_high);
}
FA_INLINE void load_rows_transposed(const R *const *row, ptrdiff_t at, V *x) { load_masked_transposed(row, at, 15, x); }
FA_INLINE void load_part_transposed(const lane_rows *rows, ptrdiff_t at, int n, V *x) {
    const R *row[16];
    FA_UNROLL_FOR(int i = 0; i < 16; i++) row[i] = row_in_lane(rows, i);
    load_masked_transposed(row, at, (__mmask8)((1u << n) - 1), x);
}
FA_INLINE void load_transposed(const lane_rows *rows, ptrdiff_t at, V *x) { load_part_transposed(rows, at, 4, x); }

/* e^x = 2^n · e^(x - n log 2). Again subnormal results are 0: with one in a vector, or one too small even for that, as
 * of -inf, the scaling takes 250 cycles; a row of 33 elements took twice as long as one of 32 for its unused lanes. */
FA_INLINE V vector_exp(V x) {
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);
    V n = (V)_mm512_roundscale_ps((__m512)(x * FA_LOG2_E), 0x08);
    return (V)_mm512_maskz_scalef_ps(normal, (__m512)exp_half(exp_rest(x, n)), (__m512)n);
}

#else

FA_INLINE VI load_bytes(const uint8_t *p) { return (VI)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)p)); }
FA_INLINE V maximum(V a, V b) { return (V)_mm512_max_pd((__m512d)a, (__m512d)b); }
FA_INLINE V load_part(const R *p, int n) { return (V)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p); }
FA_INLINE void store_part(R *p, V x, int n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)x); }
FA_INLINE V join_lanes(V a, V b, int n) {
    return (V)_mm512_mask_expand_pd((__m512d)a, (__mmask8) ~((1u << n) - 1), (__m512d)b);
}
FA_INLINE void store_nontemporal(R *p, V x) { _mm512_stream_pd(p, (__m512d)x); }
FA_INLINE V vector_exp2(V x) {
    V f = (V)_mm512_reduce_pd((__m512d)x, 0x09);
    __mmask8 normal = _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(-1022), _CMP_NLT_UQ);
    return (V)_mm512_maskz_scalef_pd(normal, (__m512d)exp2_unit(f), (__m512d)x);
}
FA_INLINE V vector_exp(V x) {
    __mmask8 normal = _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(-708.3964185322641), _CMP_NLT_UQ);
    V n = (V)_mm512_roundscale_pd((__m512d)(x * FA_LOG2_E), 0x08);
    return (V)_mm512_maskz_scalef_pd(normal, (__m512d)exp_half(exp_rest(x, n)), (__m512d)n);
}

#endif

#endif
