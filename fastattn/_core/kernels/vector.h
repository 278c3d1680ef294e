/* The vector vocabulary: what the GCC and Clang vector extensions say themselves (+, *, <, casts, subscripts) plus the
 * few operations that they lack.
 *
 * A target's own header, vector_<target>.h, sets the register width and the tile sizes that fit its register file,
 * includes this one, and adds what the machine does better than plain C. Every operation exists for float32 and float64
 * and is spelled name_f32 and name_f64; templates write OP(name).
 *
 * NaN: max(a, b) is `a > b ? a : b`, so it returns b where either is NaN. Callers order the operands by that.
 */
#ifndef FA_VECTOR_H
#define FA_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FA_INLINE static inline __attribute__((always_inline, unused))
#define FA_UNROLL _Pragma("GCC unroll 32")

/* V: a register of reals. VU: the same in memory, at any element's address. VI: integers of the same width. */
#define FA_DECLARE_VECTOR(F, R, I)                                                                                     \
    typedef R V_##F __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));                                          \
    typedef R VU_##F __attribute__((vector_size(FA_VECTOR_BYTES), aligned(sizeof(R)), may_alias));                     \
    typedef I VI_##F __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));                                         \
    FA_INLINE V_##F splat_##F(R x) { return x - (V_##F){0}; }                                                          \
    FA_INLINE VI_##F splat_int_##F(I x) { return x - (VI_##F){0}; }                                                    \
    FA_INLINE V_##F load_##F(const R *p) { return *(const VU_##F *)p; }                                                \
    FA_INLINE void store_##F(R *p, V_##F x) { *(VU_##F *)p = x; }                                                      \
    FA_INLINE V_##F select_##F(VI_##F mask, V_##F a, V_##F b) {                                                        \
        return (V_##F)((mask & (VI_##F)a) | (~mask & (VI_##F)b));                                                      \
    }

FA_DECLARE_VECTOR(f32, float, int32_t)
FA_DECLARE_VECTOR(f64, double, int64_t)

/* 2^f for f in [0, 1): minimax in relative error with the constant term fixed at 1, so that 2^0 is exact.
 * Error before rounding 8.2e-8 (float32) and 3.2e-18 (float64). */
FA_INLINE V_f32 exp2_unit_f32(V_f32 f) {
    V_f32 p = f * 1.86713017e-3f + 9.01702978e-3f;
    p = p * f + 5.57999127e-2f;
    p = p * f + 2.40164444e-1f;
    p = p * f + 6.93151295e-1f;
    return p * f + 1.0f;
}
FA_INLINE V_f64 exp2_unit_f64(V_f64 f) {
    V_f64 p = f * 6.263464252221697e-10 + 6.559530413441016e-09;
    p = p * f + 1.0253212163172274e-07;
    p = p * f + 1.3208367327571748e-06;
    p = p * f + 1.5253175052149782e-05;
    p = p * f + 0.0001540351230982355;
    p = p * f + 0.001333355862955955;
    p = p * f + 0.009618129099550964;
    p = p * f + 0.05550410866560223;
    p = p * f + 0.2402265069590633;
    p = p * f + 0.693147180559946;
    return p * f + 1.0;
}

/* The same for f in [-1/2, 1/2]: error 9.1e-8 and 3.4e-18. */
FA_INLINE V_f32 exp2_half_f32(V_f32 f) {
    V_f32 p = f * 1.32647343e-3f + 9.67151299e-3f;
    p = p * f + 5.55073358e-2f;
    p = p * f + 2.40222424e-1f;
    p = p * f + 6.93147004e-1f;
    return p * f + 1.0f;
}
FA_INLINE V_f64 exp2_half_f64(V_f64 f) {
    V_f64 p = f * 4.4347712665481056e-10 + 7.073783248498184e-09;
    p = p * f + 1.0178199572026883e-07;
    p = p * f + 1.321543528230637e-06;
    p = p * f + 1.5252733493127124e-05;
    p = p * f + 0.00015403530457112102;
    p = p * f + 0.001333355814677462;
    p = p * f + 0.00961812910759412;
    p = p * f + 0.055504108664820084;
    p = p * f + 0.2402265069591013;
    p = p * f + 0.6931471805599453;
    return p * f + 1.0;
}

/* 2^x for x <= 0 on machines without an instruction for the scaling; `floored` is max(x, -bias).
 * x = n + f, n rounded by adding a magic constant whose low bits then hold n + bias, so that a shift makes 2^n; at
 * n = -bias that is exactly 0: -inf gives 0 without a branch. NaN passes through the product. */
FA_INLINE V_f32 exp2_bits_f32(V_f32 floored) {
    const float magic = 0x1.8p23f + 127.0f;
    V_f32 t = floored + magic;
    return exp2_half_f32(floored - (t - magic)) * (V_f32)((VI_f32)t << 23);
}
FA_INLINE V_f64 exp2_bits_f64(V_f64 floored) {
    const double magic = 0x1.8p52 + 1023.0;
    V_f64 t = floored + magic;
    return exp2_half_f64(floored - (t - magic)) * (V_f64)((VI_f64)t << 52);
}

#endif
