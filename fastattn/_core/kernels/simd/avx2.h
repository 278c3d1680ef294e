/* The vocabulary in AVX2, FMA and F16C. */
#ifndef FA_SIMD_AVX2_H
#define FA_SIMD_AVX2_H

#include <immintrin.h>

#define FA_VECTOR_BYTES 32
#define FA_VECTOR_REGISTERS 16

#define FA_HAS_CONVERSIONS
#include "simd/vector.h"

FA_INLINE V_f32 load_f16(const uint16_t *p) { return (V_f32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
FA_INLINE V_f32 load_i8(const int8_t *p) {
    return (V_f32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
FA_INLINE VS_f32 load_i8_words(const int8_t *p) {
    return (VS_f32)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
FA_INLINE VI_f32 add_products_i16(VI_f32 sum, VS_f32 a, VS_f32 b) {
    return sum + (VI_f32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
FA_INLINE void store_f16(uint16_t *p, V_f32 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

FA_INLINE void store_bf16(uint16_t *p, V_f32 x) {
    __m256i bits = (__m256i)x, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 quiet = (__m256)_mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps((__m256)x, (__m256)x, _CMP_UNORD_Q);
    __m256i upper = _mm256_srli_epi32((__m256i)_mm256_blendv_ps((__m256)rounded, quiet, nan), 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    _mm_storeu_si128((__m128i *)p, packed);
}

/* The first n words of 32 bits of a, then those of b. */
FA_INLINE __m256 join_words(__m256 a, __m256 b, int n) {
    const __m256i words = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32(n);
    __m256 moved = _mm256_permutevar8x32_ps(b, _mm256_sub_epi32(words, count));
    return _mm256_blendv_ps(moved, a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, words)));
}

FA_INLINE void nontemporal_fence(void) { _mm_sfence(); }

#if FA_REAL_IS_FLOAT

/* Bytes as integers of the elements' width. */
FA_INLINE VI load_bytes(const uint8_t *p) { return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
FA_INLINE V maximum(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
FA_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FA_INLINE V load_part(const R *p, int n) { return (V)_mm256_maskload_ps(p, first_lanes(n)); }
FA_INLINE void store_part(R *p, V x, int n) { _mm256_maskstore_ps(p, first_lanes(n), (__m256)x); }

/* The first n lanes of a, then those of b. */
FA_INLINE V join_lanes(V a, V b, int n) { return (V)join_words((__m256)a, (__m256)b, n); }
FA_INLINE void store_nontemporal(R *p, V x) { _mm256_stream_ps(p, (__m256)x); }

#else

FA_INLINE VI load_bytes(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (VI)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
}
FA_INLINE V maximum(V a, V b) { return (V)_mm256_max_pd((__m256d)a, (__m256d)b); }
FA_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
FA_INLINE V load_part(const R *p, int n) { return (V)_mm256_maskload_pd(p, first_lanes(n)); }
FA_INLINE void store_part(R *p, V x, int n) { _mm256_maskstore_pd(p, first_lanes(n), (__m256d)x); }
FA_INLINE V join_lanes(V a, V b, int n) { return (V)join_words((__m256)a, (__m256)b, 2 * n); }
FA_INLINE void store_nontemporal(R *p, V x) { _mm256_stream_pd(p, (__m256d)x); }

#endif

FA_INLINE V vector_exp2(V x) { return exp2_bits(maximum(splat(-FA_EXPONENT_BIAS), x)); }
FA_INLINE V vector_exp(V x) { return exp_bits(maximum(splat(FA_EXP_FLOOR), x)); }

#endif
