/* The vocabulary in NEON with dot products of signed bytes (FEAT_DotProd). */
#ifndef FA_SIMD_NEON_DOT_H
#define FA_SIMD_NEON_DOT_H

#define FA_HAS_INT8_DOT 1
#include "simd/neon.h"

/* Both sides of a product are signed, so units are x shifted by 128: see linear/int8.h. */
#define FA_LEAST_UNIT -128

/* sum + the four products of each lane with the four bytes of an element: 32 bits each, whatever they mean. */
FA_INLINE V_f32 add_element_products_i8(V_f32 sum, V_f32 lanes, float element) {
    __asm__("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(lanes), "w"(element));
    return sum;
}
/* Each lane's sum of four signed bytes, added to `sum`. */
FA_INLINE VI_f32 add_bytes(VI_f32 sum, VI_f32 bytes) {
    return (VI_f32)vdotq_s32((int32x4_t)sum, (int8x16_t)bytes, vdupq_n_s8(1));
}
/* The sum of so many signed bytes, a multiple of four. */
FA_INLINE int32_t sum_of_bytes(const int8_t *from, ptrdiff_t count) {
    VI_f32 sum = {0};
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) sum = add_bytes(sum, (VI_f32)vld1q_s8(from + i));
    for (; i + 4 <= count; i += 4) {
        int32_t four;
        memcpy(&four, from + i, sizeof four);
        sum = add_bytes(sum, (VI_f32){four});
    }
    return vaddvq_s32((int32x4_t)sum);
}
/* x · factor + shift as bytes: rounded to even, -128 at least and 127 at most. */
FA_INLINE void store_quantised(uint8_t *to, V_f32 x, float factor, float shift) {
    const int32x4_t whole = vcvtnq_s32_f32(vfmaq_n_f32(vdupq_n_f32(shift), (float32x4_t)x, factor));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(vqmovn_s32(whole), vdup_n_s16(0)));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(to, &four, sizeof four);
}

FA_INLINE int any_lane(VI_f32 lanes) { return vmaxvq_u32((uint32x4_t)lanes) != 0; }
FA_INLINE int any_nan(V_f32 x) { return any_lane(x != x); }
/* a · b + c in one rounding. */
FA_INLINE V_f32 multiply_add(V_f32 a, V_f32 b, V_f32 c) {
    return (V_f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

#endif
