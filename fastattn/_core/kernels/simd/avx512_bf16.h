/* The vocabulary in AVX-512 with AVX512_BF16 and AVX512_VNNI: dot products of bfloat16, and of integers. */
#ifndef FA_SIMD_AVX512_BF16_H
#define FA_SIMD_AVX512_BF16_H

#define FA_HAS_BF16_DOT 1
#include "simd/avx512_vnni.h"

/* The instruction for it, one instead of six, takes subnormal numbers for 0: it is for vectors that hold none. */
FA_INLINE void store_bf16(uint16_t *p, V_f32 x) {
    if (__builtin_expect(!_mm512_fpclass_ps_mask((__m512)x, 0x20), 1))
        _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
    else store_rounded_bf16(p, x);
}

/* Two vectors side by side. */
FA_INLINE void store_two_bf16(uint16_t *p, V_f32 low, V_f32 high) {
    if (__builtin_expect(!(_mm512_fpclass_ps_mask((__m512)low, 0x20) | _mm512_fpclass_ps_mask((__m512)high, 0x20)),
                         1)) {
        _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
        return;
    }
    store_bf16(p, low);
    store_bf16(p + 16, high);
}

/* sum + the products of both bfloat16 of each lane. */
FA_INLINE V_f32 add_products_bf16(V_f32 sum, V_f32 a, V_f32 b) {
    return (V_f32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

/* The one of the smaller magnitude. */
FA_INLINE V_f32 smaller_magnitude(V_f32 a, V_f32 b) { return (V_f32)_mm512_range_ps((__m512)a, (__m512)b, 0x0a); }
/* Both rounded to bfloat16, those of `low` in the lower half of each lane. Subnormal numbers become 0. */
FA_INLINE V_f32 pair_bf16(V_f32 low, V_f32 high) {
    const __m512i order = (__m512i)(VS_f32){0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (V_f32)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
/* The first n words of a vector, zeros behind them; nothing beyond them is touched. */
FA_INLINE V_f32 load_word_part(const void *p, ptrdiff_t n) {
    const __mmask32 words = n >= 32 ? ~(__mmask32)0 : n <= 0 ? 0 : ((__mmask32)1 << n) - 1;
    return (V_f32)_mm512_maskz_loadu_epi16(words, p);
}
/* Words of a and b in turn, those of the lower and of the upper half of each 16 bytes. */
FA_INLINE void interleave_words_by_16_bytes(V_f32 a, V_f32 b, V_f32 *low, V_f32 *high) {
    *low = (V_f32)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
    *high = (V_f32)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
}

#if FA_REAL_IS_FLOAT

/* 2^x by a polynomial of degree 3, exact where x is whole: error 8.6e-5, a 23rd of the rounding to 8 bits that
 * follows. */
FA_INLINE V exp2_rough(V x) {
    V f = (V)_mm512_reduce_ps((__m512)x, 0x09);
    V p = f * 0.0770670437f + 0.227644993f;
    p = p * f + 0.695116793f;
    p = p * f + 1.0f;
    return scaled(p, x);
}

#endif

#endif
