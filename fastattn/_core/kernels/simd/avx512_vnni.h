/* The vocabulary in AVX-512 with AVX512_VNNI: dot products of integers. */
#ifndef FA_SIMD_AVX512_VNNI_H
#define FA_SIMD_AVX512_VNNI_H

#include <immintrin.h>
#include "simd/common.h"
#ifdef FA_EMULATE
#include "simd/emulation.h"
#endif

#define FA_HAS_INT8_DOT 1
#define FA_LEAST_UNIT 0 /* bytes of x are unsigned: see linear/int8.h */
#include "simd/avx512.h"

/* sum + the products of both integers of each lane. */
FA_INLINE VI_f32 add_products_i16(VI_f32 sum, VS_f32 a, VS_f32 b) {
    return (VI_f32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

/* sum + the four products of unsigned and signed bytes of each lane. All are 32 bits, whatever they mean: between types
 * of vectors gcc 12 copies the sums, 24 registers full, to memory and back. */
FA_INLINE V_f32 add_products_u8(V_f32 sum, V_f32 unsigned_bytes, V_f32 signed_bytes) {
#ifdef FA_EMULATE
    return (V_f32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "vm"(signed_bytes));
    return sum;
#endif
}
/* The sum of so many signed bytes. */
FA_INLINE int32_t sum_of_bytes(const int8_t *from, ptrdiff_t count) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    ptrdiff_t i = 0;
    for (; i + 64 <= count; i += 64) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(from + i));
    if (i < count)
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(((__mmask64)1 << (count - i)) - 1, from + i));
    return _mm512_reduce_add_epi32(sum);
}
/* Each lane's sum of four signed bytes, added to `sum`. */
FA_INLINE VI_f32 add_bytes(VI_f32 sum, VI_f32 bytes) {
    return (VI_f32)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi8(1), (__m512i)bytes);
}
/* x · factor + shift as bytes: rounded to even, 0 at least and 255 at most. */
FA_INLINE void store_quantised(uint8_t *to, V_f32 x, float factor, float shift) {
    __m512 units = _mm512_fmadd_ps((__m512)x, _mm512_set1_ps(factor), _mm512_set1_ps(shift));
    __m512i whole = _mm512_cvtps_epi32(_mm512_max_ps(units, _mm512_setzero_ps()));
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(whole));
}

FA_INLINE int any_lane(VI_f32 lanes) { return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0; }
FA_INLINE int any_nan(V_f32 x) { return _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q) != 0; }
/* 32 bits in every lane, whatever they mean. */
FA_INLINE V_f32 splat_bits(int32_t bits) { return (V_f32)_mm512_set1_epi32(bits); }
/* a · b + c, and a · b - c, in one rounding. */
FA_INLINE V_f32 multiply_add(V_f32 a, V_f32 b, V_f32 c) {
    return (V_f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
FA_INLINE V_f32 multiply_subtract(V_f32 a, V_f32 b, V_f32 c) {
    return (V_f32)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c);
}

#endif
