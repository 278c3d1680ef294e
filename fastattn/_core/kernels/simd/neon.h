/* The vocabulary in NEON, the baseline of arm64.
 *
 * Neoverse N1 starts two 16-byte operations a cycle, Neoverse V1 and Apple's cores four; loads: two a cycle, or three.
 * To spread an element over a vector (LD1R, DUP) takes the place of a multiply-add on some of them: products take one
 * element of a register instead, which plain loads fill. */
#ifndef FA_SIMD_NEON_H
#define FA_SIMD_NEON_H

#include <arm_neon.h>

#define FA_VECTOR_BYTES 16
#define FA_VECTOR_REGISTERS 32
#define FA_HAS_ELEMENT_PRODUCTS 1
#define FA_CHAINS 20 /* four multiply-adds a cycle, of latency 4 */

#define FA_HAS_CONVERSIONS
#define FA_HAS_LOAD_BF16
#define FA_HAS_WORD_PAIRS
#include "simd/vector.h"

FA_INLINE V_f32 load_f16(const uint16_t *p) { return (V_f32)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
FA_INLINE void store_f16(uint16_t *p, V_f32 x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x))); }

/* One instruction, where widening and shifting are two. */
FA_INLINE V_f32 load_bf16(const uint16_t *p) { return (V_f32)vshll_n_u16(vld1_u16(p), 16); }

FA_INLINE uint16x4_t rounded_to_bf16(V_f32 x) {
    const uint32x4_t bits = (uint32x4_t)x, odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint16x4_t rounded = vaddhn_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint16x4_t quiet = vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(0x40));
    return vbsl_u16(vmovn_u32(vceqq_f32((float32x4_t)x, (float32x4_t)x)), rounded, quiet);
}
#ifndef FA_HAS_BF16_DOT
FA_INLINE void store_bf16(uint16_t *p, V_f32 x) { vst1_u16(p, rounded_to_bf16(x)); }
#endif

FA_INLINE V_f32 load_i8(const int8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const int16x8_t words = vmovl_s8(vcreate_s8(four));
    return (V_f32)vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
FA_INLINE VS_f32 load_i8_words(const int8_t *p) { return (VS_f32)vmovl_s8(vld1_s8(p)); }

/* sum + the products of both integers of each lane. Those of a lane stand in both halves of a vector: neighbours would
 * take four instructions instead of two. */
FA_INLINE VI_f32 add_products_i16(VI_f32 sum, VS_f32 a, VS_f32 b) {
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    return (VI_f32)vmlal_high_s16(vmlal_s16((int32x4_t)sum, vget_low_s16(x), vget_low_s16(y)), x, y);
}
FA_INLINE VS_f32 pair_words_low(VS_f32 a, VS_f32 b) {
    return (VS_f32)vcombine_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
}
FA_INLINE VS_f32 pair_words_high(VS_f32 a, VS_f32 b) {
    return (VS_f32)vcombine_s16(vget_high_s16((int16x8_t)a), vget_high_s16((int16x8_t)b));
}
FA_INLINE VS_f32 splat_words(int32_t both) {
    return (VS_f32)vcombine_s16(vdup_n_s16((int16_t)both), vdup_n_s16((int16_t)(both >> 16)));
}

FA_INLINE void nontemporal_fence(void) {}
/* Cores see by themselves that whole lines are written one after the other, and do not read them before. */
FA_INLINE void store_nontemporal(R *p, V x) { store(p, x); }

#if FA_REAL_IS_FLOAT

/* Bytes as integers of the elements' width. */
FA_INLINE VI load_bytes(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return (VI)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
FA_INLINE V maximum(V a, V b) {
    return (V)vbslq_f32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}

/* sum + lanes · element, in one rounding. GCC 12 has no other way to say it for several vectors. */
FA_INLINE V add_element_product(V sum, V lanes, R element) {
    __asm__("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(sum) : "w"(lanes), "w"(element));
    return sum;
}

/* The first n elements of a vector. */
FA_INLINE V load_part(const R *p, int n) {
    float32x4_t x = vdupq_n_f32(0);
    if (n >= 4) return load(p);
    if (n & 2) x = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
    if (n == 3) x = vld1q_lane_f32(p + 2, x, 2);
    if (n == 1) x = vld1q_lane_f32(p, x, 0);
    return (V)x;
}
FA_INLINE void store_part(R *p, V x, int n) {
    if (n >= 4) store(p, x);
    else {
        if (n & 2) vst1_f32(p, vget_low_f32((float32x4_t)x));
        if (n == 3) p[2] = x[2];
        if (n == 1) p[0] = x[0];
    }
}

#else

FA_INLINE VI load_bytes(const uint8_t *p) { return (VI){p[0], p[1]}; }
FA_INLINE V maximum(V a, V b) {
    return (V)vbslq_f64(vcgtq_f64((float64x2_t)a, (float64x2_t)b), (float64x2_t)a, (float64x2_t)b);
}
FA_INLINE V add_element_product(V sum, V lanes, R element) {
    __asm__("fmla %0.2d, %1.2d, %2.d[0]" : "+w"(sum) : "w"(lanes), "w"(element));
    return sum;
}
FA_INLINE V load_part(const R *p, int n) { return n >= 2 ? load(p) : n ? (V){p[0], 0} : (V){0}; }
FA_INLINE void store_part(R *p, V x, int n) {
    if (n >= 2) store(p, x);
    else if (n) p[0] = x[0];
}

#endif

/* The first n lanes of a, then those of b. */
FA_INLINE V join_lanes(V a, V b, int n) {
    static const uint8_t bytes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const uint8_t of_a = (uint8_t)(n * (int)sizeof(R));
    const uint8x16_t at = vld1q_u8(bytes), rest = vcgeq_u8(at, vdupq_n_u8(of_a));
    const uint8x16_t from = vaddq_u8(at, vandq_u8(rest, vdupq_n_u8((uint8_t)(16 - of_a))));
    return (V)vqtbl2q_u8((uint8x16x2_t){{(uint8x16_t)a, (uint8x16_t)b}}, from);
}

FA_INLINE V vector_exp2(V x) { return exp2_bits(maximum(splat(-FA_EXPONENT_BIAS), x)); }
FA_INLINE V vector_exp(V x) { return exp_bits(maximum(splat(FA_EXP_FLOOR), x)); }

#endif
