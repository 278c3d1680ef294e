/* The vector vocabulary: what the GCC and Clang vector extensions say themselves (+, *, <, casts, subscripts) plus the
 * few operations that they lack.
 *
 * A machine's own header sets the register width, includes this one, and adds what the machine does better than plain
 * C. Operations on V are those of the instance's reals, float32 or float64; what is spelled with V_f32 is of float32 in
 * all.
 *
 * NaN: maximum(a, b) is `a > b ? a : b`, so it returns b where either is NaN. Callers order the operands by that. */
#ifndef FA_VECTOR_BYTES
#include "instance.h" /* opened alone: the target's vocabulary includes this header */
#elif !defined(FA_VECTOR_H)
#define FA_VECTOR_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "simd/common.h"
#include "simd/real.h"

/* V: a register of reals. VU: the same in memory, at any element's address. VI: integers of the same width. */
typedef float V_f32 __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));
typedef float VU_f32 __attribute__((vector_size(FA_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t VI_f32 __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));
typedef double V_f64 __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));
typedef double VU_f64 __attribute__((vector_size(FA_VECTOR_BYTES), aligned(8), may_alias));
typedef int64_t VI_f64 __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));

/* Those of the instance's reals. */
#if FA_REAL_IS_FLOAT
typedef V_f32 V;
typedef VU_f32 VU;
typedef VI_f32 VI;
#else
typedef V_f64 V;
typedef VU_f64 VU;
typedef VI_f64 VI;
#endif
#define LANES (FA_VECTOR_BYTES / FA_REAL_BYTES)

FA_INLINE V splat(R x) { return x - (V){0}; }
FA_INLINE VI splat_int(I x) { return x - (VI){0}; }
FA_INLINE V load(const R *p) { return *(const VU *)p; }
FA_INLINE void store(R *p, V x) { *(VU *)p = x; }
FA_INLINE V choose(VI mask, V a, V b) { return (V)((mask & (VI)a) | (~mask & (VI)b)); }

/* --- narrower storage --- */

/* 16-bit and 8-bit elements of a float32 vector, in memory and widened to integers of its lanes. */
typedef uint32_t VW_f32 __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));
typedef uint16_t VH_f32 __attribute__((vector_size(FA_VECTOR_BYTES / 2), aligned(2), may_alias));

typedef int8_t VB_f32 __attribute__((vector_size(FA_VECTOR_BYTES / 4), aligned(1), may_alias));
typedef uint16_t VS_f32 __attribute__((vector_size(FA_VECTOR_BYTES), may_alias));

FA_INLINE VW_f32 choose_bits(VI_f32 mask, VW_f32 a, VW_f32 b) { return ((VW_f32)mask & a) | (~(VW_f32)mask & b); }

/* bfloat16: the upper half of a float32. Rounded to even; NaN stays NaN and becomes quiet. */
FA_INLINE V_f32 bf16_of_bits(VW_f32 bits) { return (V_f32)(bits << 16); }
FA_INLINE VW_f32 bits_of_bf16(V_f32 x) {
    VW_f32 bits = (VW_f32)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return choose_bits(x == x, rounded, bits >> 16 | 0x40);
}

/* float16, for machines without an instruction for it (x86-64 has it from AVX2's generation on): exponents are moved by
 * a product with 2^112, which makes subnormal numbers right as well; infinity and NaN keep an exponent of all ones. */
FA_INLINE V_f32 f16_of_bits(VW_f32 bits) {
    VW_f32 magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    VW_f32 finite = (VW_f32)((V_f32)magnitude * 0x1p112f);
    return (V_f32)(choose_bits(magnitude >= 0x7c00u << 13, magnitude | 0x7f800000, finite) | sign);
}
FA_INLINE VW_f32 bits_of_f16(V_f32 x) {
    VW_f32 bits = (VW_f32)x, sign = bits & 0x80000000, magnitude = bits ^ sign;
    /* A subnormal result: adding 1/2 leaves its 10 bits, rounded, at the end of the sum. */
    VW_f32 tiny = (VW_f32)((V_f32)magnitude + 0.5f) - 0x3f000000;
    VW_f32 normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    VW_f32 special = choose_bits(magnitude > 0x7f800000, (magnitude >> 13 & 0x3ff) | 0x7e00, (VW_f32){0} + 0x7c00);
    VW_f32 half = choose_bits(magnitude < 113u << 23, tiny, normal);
    return choose_bits(magnitude >= 143u << 23, special, half) | sign >> 16;
}

FA_INLINE VW_f32 load_halves(const uint16_t *p) { return __builtin_convertvector(*(const VH_f32 *)p, VW_f32); }
FA_INLINE void store_halves(uint16_t *p, VW_f32 bits) { *(VH_f32 *)p = __builtin_convertvector(bits, VH_f32); }
#ifdef FA_HAS_LOAD_BF16
FA_INLINE V_f32 load_bf16(const uint16_t *p);
#else
FA_INLINE V_f32 load_bf16(const uint16_t *p) { return bf16_of_bits(load_halves(p)); }
#endif

/* Copies n elements of 16 bits, fewer than a vector of float32 has. read_halves may set those behind them, of a whole
 * vector, to 0. */
FA_INLINE void copy_halves(char *to, const char *from, int n) {
    FA_UNROLL_FOR(int part = 8; part; part /= 2) {
        if (!(n & part)) continue;
        memcpy(to, from, (size_t)(2 * part));
        to += 2 * part;
        from += 2 * part;
    }
}
#ifndef FA_HAS_MASKED_HALVES
FA_INLINE void read_halves(char *to, const char *from, int n) { copy_halves(to, from, n); }
#endif

/* Two 16-bit integers to a lane. Elements of a and b side by side, those of the first and of the second half. */
#if FA_VECTOR_BYTES == 64
#define FA_WORDS_LOW                                                                                                   \
    0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47
#define FA_WORDS_HIGH                                                                                                  \
    16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61,    \
        30, 62, 31, 63
#elif FA_VECTOR_BYTES == 32
#define FA_WORDS_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FA_WORDS_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#else
#define FA_WORDS_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define FA_WORDS_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#endif
FA_INLINE VS_f32 interleave_words_low(VS_f32 a, VS_f32 b) { return __builtin_shufflevector(a, b, FA_WORDS_LOW); }
FA_INLINE VS_f32 interleave_words_high(VS_f32 a, VS_f32 b) { return __builtin_shufflevector(a, b, FA_WORDS_HIGH); }

/* Words of a and b that meet in a lane of add_products_i16, of the first and of the second half of the vectors; and two
 * words as such pairs in every lane. Neighbours, unless the vocabulary says otherwise. */
#ifndef FA_HAS_WORD_PAIRS
FA_INLINE VS_f32 pair_words_low(VS_f32 a, VS_f32 b) { return interleave_words_low(a, b); }
FA_INLINE VS_f32 pair_words_high(VS_f32 a, VS_f32 b) { return interleave_words_high(a, b); }
FA_INLINE VS_f32 splat_words(int32_t both) { return (VS_f32)(both - (VI_f32){0}); }
#endif

/* What a target with FA_HAS_CONVERSIONS does in fewer instructions. */
#ifdef FA_HAS_CONVERSIONS
FA_INLINE V_f32 load_f16(const uint16_t *p);
FA_INLINE void store_f16(uint16_t *p, V_f32 x);
FA_INLINE void store_bf16(uint16_t *p, V_f32 x);
FA_INLINE V_f32 load_i8(const int8_t *p);
#else
FA_INLINE V_f32 load_f16(const uint16_t *p) { return f16_of_bits(load_halves(p)); }
FA_INLINE void store_f16(uint16_t *p, V_f32 x) { store_halves(p, bits_of_f16(x)); }
FA_INLINE void store_bf16(uint16_t *p, V_f32 x) { store_halves(p, bits_of_bf16(x)); }
FA_INLINE V_f32 load_i8(const int8_t *p) {
    V_f32 x;
    FA_UNROLL_FOR(int lane = 0; lane < FA_VECTOR_BYTES / 4; lane++) x[lane] = (float)p[lane];
    return x;
}
FA_INLINE VS_f32 load_i8_words(const int8_t *p) {
    VS_f32 x;
    FA_UNROLL_FOR(int i = 0; i < FA_VECTOR_BYTES / 2; i++) x[i] = (uint16_t)(int16_t)p[i];
    return x;
}
/* sum + the products of both integers of each lane. */
FA_INLINE VI_f32 add_products_i16(VI_f32 sum, VS_f32 a, VS_f32 b) {
    VI_f32 x = (VI_f32)a, y = (VI_f32)b;
    return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}
#endif

/* One element: a vector's first lane, so that both round alike. */
FA_INLINE float bf16_to_float(uint16_t x) { return bf16_of_bits((VW_f32){x})[0]; }
FA_INLINE float f16_to_float(uint16_t x) { return f16_of_bits((VW_f32){x})[0]; }
FA_INLINE uint16_t float_to_bf16(float x) { return (uint16_t)bits_of_bf16((V_f32){x})[0]; }
FA_INLINE uint16_t float_to_f16(float x) { return (uint16_t)bits_of_f16((V_f32){x})[0]; }

/* --- exponentials --- */

/* Coefficients of polynomials, the highest first, and log 2 in two parts, the first short enough for exact products
 * with whole numbers. Beyond +-FA_TANH_MOST, in units of log(2) / 2, tanh is +-1. */
#if FA_REAL_IS_FLOAT
#define FA_LOG2_E 1.44269504f
#define FA_LOG_2_HIGH 0.693359375f
#define FA_LOG_2_LOW -2.12194440e-4f
#define FA_EXP_FLOOR -88.029694f
#define FA_TANH_MOST 30.0f
#define FA_EXP2_UNIT 0.000216129163f, 0.00124678458f, 0.00967545155f, 0.0554852821f, 0.240229309f, 0.693147063f, 1.0f
#define FA_EXP2_LESS 0.000153533547f, 0.00133988739f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f
#define FA_EXP_HALF 8.29031877e-3f, 4.18979302e-2f, 1.66676357e-1f, 4.99991506e-1f, 9.99999762e-1f, 1.0f
#else
#define FA_LOG2_E 1.4426950408889634
#define FA_LOG_2_HIGH 0x1.62e42fefp-1
#define FA_LOG_2_LOW 7.440617110012397e-11
#define FA_EXP_FLOOR -709.0895657128241
#define FA_TANH_MOST 60.0
#define FA_EXP2_UNIT                                                                                                   \
    6.263464252221697e-10, 6.559530413441016e-09, 1.0253212163172274e-07, 1.3208367327571748e-06,                      \
        1.5253175052149782e-05, 0.0001540351230982355, 0.001333355862955955, 0.009618129099550964,                     \
        0.05550410866560223, 0.2402265069590633, 0.693147180559946, 1.0
#define FA_EXP2_LESS                                                                                                   \
    4.4347712665481056e-10, 7.073783248498184e-09, 1.0178199572026883e-07, 1.321543528230637e-06,                      \
        1.5252733493127124e-05, 0.00015403530457112102, 0.001333355814677462, 0.00961812910759412,                     \
        0.055504108664820084, 0.2402265069591013, 0.6931471805599453
#define FA_EXP_HALF                                                                                                    \
    2.4991432676936897e-08, 2.7631034033848393e-07, 2.755762669692093e-06, 2.48014906365034e-05,                       \
        0.00019841269436798092, 0.001388888894635271, 0.00833333333354969, 0.04166666666651783, 0.1666666666666622,    \
        0.5000000000000012, 1.0, 1.0
#endif

FA_INLINE V polynomial(V x, const R *coefficient, int degree) {
    V p = x * coefficient[0] + coefficient[1];
    FA_UNROLL_FOR(int i = 2; i <= degree; i++) p = p * x + coefficient[i];
    return p;
}
#define FA_POLYNOMIAL(x, ...) polynomial(x, (const R[]){__VA_ARGS__}, sizeof((const R[]){__VA_ARGS__}) / sizeof(R) - 1)

/* 2^f for f in [0, 1): minimax in relative error with the constant term fixed at 1, so that 2^0 is exact.
 * Error before rounding 2.0e-9 (float32) and 3.2e-18 (float64). */
FA_INLINE V exp2_unit(V f) { return FA_POLYNOMIAL(f, FA_EXP2_UNIT); }

/* 2^f - 1, and 2^f, for f in [-1/2, 1/2]: error 1.9746e-9 and 3.4e-18. */
FA_INLINE V exp2_less(V f) { return FA_POLYNOMIAL(f, FA_EXP2_LESS) * f; }
FA_INLINE V exp2_half(V f) { return exp2_less(f) + 1; }

/* e^r for r in [-log(2)/2, log(2)/2]: error 1.1e-7 and 1.1e-17. One degree less in float32 than above: softmax is bound
 * by it. */
FA_INLINE V exp_half(V r) { return FA_POLYNOMIAL(r, FA_EXP_HALF); }

/* What remains of x where n is x / log 2, rounded. */
FA_INLINE V exp_rest(V x, V n) { return x - n * FA_LOG_2_HIGH - n * FA_LOG_2_LOW; }

/* 2^x and e^x for x <= 0 on machines without an instruction for the scaling. `floored` is x, but at least -bias (or
 * -bias log 2). n is rounded by adding a magic constant whose low bits then hold n + bias, so that a shift makes 2^n;
 * at n = -bias that is exactly 0: -inf gives 0 without a branch. NaN passes through the product. */
#define FA_MAGIC ((R)((I)3 << (FA_MANTISSA_BITS - 1)) + FA_EXPONENT_BIAS)
FA_INLINE V power_of_two(V t) { return (V)((VI)t << FA_MANTISSA_BITS); }
FA_INLINE V exp2_bits(V floored) {
    V t = floored + FA_MAGIC;
    return exp2_half(floored - (t - FA_MAGIC)) * power_of_two(t);
}
FA_INLINE V exp_bits(V floored) {
    V t = floored * FA_LOG2_E + FA_MAGIC;
    return exp_half(exp_rest(floored, t - FA_MAGIC)) * power_of_two(t);
}

/* The same to half a unit and a little: for single weights, which no sum follows. */
FA_INLINE V exp_exact_bits(V floored) {
    V t = floored * FA_LOG2_E + FA_MAGIC;
    return exp2_half(exp_rest(floored, t - FA_MAGIC) * FA_LOG2_E) * power_of_two(t);
}

/* tanh of (log(2) / 2) t: (2^t - 1) / (2^t + 1), where 2^t - 1 = 2^n (2^f - 1) + (2^n - 1) keeps the relative error
 * small near 0 as well. */
FA_INLINE V tanh_half(V t) {
    const V most = splat(FA_TANH_MOST);
    t = choose(t > most, most, choose(t < -most, -most, t));
    V magic = t + FA_MAGIC, power = power_of_two(magic);
    V less = exp2_less(t - (magic - FA_MAGIC)) * power + (power - 1);
    return less / (less + 2);
}

#endif
