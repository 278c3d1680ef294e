/* The vocabulary in AVX2, FMA and F16C. */
#ifndef FA_SIMD_AVX2_H
#define FA_SIMD_AVX2_H

#include <immintrin.h>

#define FA_VECTOR_BYTES 32

#define FA_HAS_CONVERSIONS
#include "simd/vector.h"

FA_INLINE V_f32 load_f16_f32(const uint16_t *p) { return (V_f32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
FA_INLINE V_f32 load_i8_f32(const int8_t *p) {
    return (V_f32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
FA_INLINE VS_f32 load_i8_words(const int8_t *p) {
    return (VS_f32)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
FA_INLINE VI_f32 add_products_i16(VI_f32 sum, VS_f32 a, VS_f32 b) {
    return sum + (VI_f32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
FA_INLINE void store_f16_f32(uint16_t *p, V_f32 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

FA_INLINE void store_bf16_f32(uint16_t *p, V_f32 x) {
    __m256i bits = (__m256i)x, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 quiet = (__m256)_mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps((__m256)x, (__m256)x, _CMP_UNORD_Q);
    __m256i upper = _mm256_srli_epi32((__m256i)_mm256_blendv_ps((__m256)rounded, quiet, nan), 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    _mm_storeu_si128((__m128i *)p, packed);
}

/* Bytes as integers of the elements' width. */
FA_INLINE VI_f32 load_bytes_f32(const uint8_t *p) {
    return (VI_f32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
FA_INLINE VI_f64 load_bytes_f64(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (VI_f64)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
}

FA_INLINE V_f32 max_f32(V_f32 a, V_f32 b) { return (V_f32)_mm256_max_ps((__m256)a, (__m256)b); }
FA_INLINE V_f64 max_f64(V_f64 a, V_f64 b) { return (V_f64)_mm256_max_pd((__m256d)a, (__m256d)b); }

FA_INLINE __m256i first_lanes_f32(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FA_INLINE __m256i first_lanes_f64(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
FA_INLINE V_f32 load_part_f32(const float *p, int n) { return (V_f32)_mm256_maskload_ps(p, first_lanes_f32(n)); }
FA_INLINE V_f64 load_part_f64(const double *p, int n) { return (V_f64)_mm256_maskload_pd(p, first_lanes_f64(n)); }
FA_INLINE void store_part_f32(float *p, V_f32 x, int n) { _mm256_maskstore_ps(p, first_lanes_f32(n), (__m256)x); }
FA_INLINE void store_part_f64(double *p, V_f64 x, int n) { _mm256_maskstore_pd(p, first_lanes_f64(n), (__m256d)x); }
/* The first n lanes of a, then those of b. */
FA_INLINE V_f32 join_f32(V_f32 a, V_f32 b, int n) {
    __m256i from = _mm256_sub_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(n));
    __m256 moved = _mm256_permutevar8x32_ps((__m256)b, from);
    return (V_f32)_mm256_blendv_ps(moved, (__m256)a, _mm256_castsi256_ps(first_lanes_f32(n)));
}
FA_INLINE V_f64 join_f64(V_f64 a, V_f64 b, int n) { return (V_f64)join_f32((V_f32)a, (V_f32)b, 2 * n); }
FA_INLINE void stream_f32(float *p, V_f32 x) { _mm256_stream_ps(p, (__m256)x); }
FA_INLINE void stream_f64(double *p, V_f64 x) { _mm256_stream_pd(p, (__m256d)x); }
FA_INLINE void stream_end(void) { _mm_sfence(); }

FA_INLINE V_f32 exp2_f32(V_f32 x) { return exp2_bits_f32(max_f32(splat_f32(-127.0f), x)); }
FA_INLINE V_f64 exp2_f64(V_f64 x) { return exp2_bits_f64(max_f64(splat_f64(-1023.0), x)); }
FA_INLINE V_f32 exp_f32(V_f32 x) { return exp_bits_f32(max_f32(splat_f32(FA_EXP_FLOOR_F32), x)); }
FA_INLINE V_f64 exp_f64(V_f64 x) { return exp_bits_f64(max_f64(splat_f64(FA_EXP_FLOOR_F64), x)); }

#endif
