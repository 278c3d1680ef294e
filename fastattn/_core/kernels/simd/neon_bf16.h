/* The vocabulary in NEON with dot products of bytes and of bfloat16 (FEAT_BF16). */
#ifndef FA_SIMD_NEON_BF16_H
#define FA_SIMD_NEON_BF16_H

#define FA_HAS_BF16_DOT 1
#include "simd/neon_dot.h"

FA_INLINE void store_bf16(uint16_t *p, V_f32 x) { vst1_u16(p, vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)x))); }

/* sum + the products of both bfloat16 of each lane. Subnormal numbers are taken for 0, and sums are rounded to odd. */
FA_INLINE V_f32 add_products_bf16(V_f32 sum, V_f32 a, V_f32 b) {
    return (V_f32)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
/* The same with the two of an element. */
FA_INLINE V_f32 add_element_products_bf16(V_f32 sum, V_f32 lanes, float element) {
    __asm__("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(sum) : "w"(lanes), "w"(element));
    return sum;
}

/* 32 bits in every lane, whatever they mean. GCC 12 makes constant vectors of bfloat16 by an instruction for float16:
 * it must not know the bits. */
FA_INLINE V_f32 splat_bits(int32_t bits) {
    __asm__("" : "+r"(bits));
    return (V_f32)vdupq_n_s32(bits);
}
/* The first n words of a vector, zeros behind them; nothing beyond them is touched. */
FA_INLINE V_f32 load_word_part(const void *p, ptrdiff_t n) {
    uint16_t words[8] = {0};
    if (n >= 8) return (V_f32)vld1q_u16((const uint16_t *)p);
    for (ptrdiff_t i = 0; i < n; i++) memcpy(words + i, (const char *)p + 2 * i, 2);
    return (V_f32)vld1q_u16(words);
}
/* The smaller magnitude. */
FA_INLINE V_f32 smaller_magnitude(V_f32 a, V_f32 b) {
    return (V_f32)vminnmq_f32(vabsq_f32((float32x4_t)a), vabsq_f32((float32x4_t)b));
}
/* Both rounded to bfloat16, those of `low` in the lower half of each lane. */
FA_INLINE V_f32 pair_bf16(V_f32 low, V_f32 high) {
    const uint16x4_t even = vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)low));
    const uint16x4_t odd = vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)high));
    return (V_f32)vzip1q_u16(vcombine_u16(even, even), vcombine_u16(odd, odd));
}

#if FA_REAL_IS_FLOAT

/* 2^x for x <= 0 by a polynomial of degree 3, exact where x is whole: error 8.6e-5, a 23rd of the rounding to 8 bits
 * that follows. Below 2^-126 it is 0; NaN stays. */
FA_INLINE V exp2_rough(V x) {
    const float32x4_t floored = (float32x4_t)maximum(splat(-FA_EXPONENT_BIAS), x);
    const V f = (V)vsubq_f32(floored, vrndmq_f32(floored));
    const VI exponent = (VI)vcvtmq_s32_f32(floored) + FA_EXPONENT_BIAS;
    V p = f * 0.0770670437f + 0.227644993f;
    p = p * f + 0.695116793f;
    p = p * f + 1.0f;
    return p * (V)(exponent << FA_MANTISSA_BITS);
}

#endif

#endif
