/* Activations of a vector. All are 0 at -inf, their limit, and NaN stays NaN. They are also 0 where a factor would be
 * subnormal: the next layer multiplies the results, and one subnormal number in a vector makes that a hundred times
 * as slow. */
#ifndef FA_LINEAR_ACTIVATION_H
#define FA_LINEAR_ACTIVATION_H

#include "instance.h"

/* 1 / (1 + e^-x), by the exponential that cannot overflow. */
FA_INLINE V sigmoid(V x) {
    V away = choose(x > (V){0}, x, -x), small = vector_exp(-away), share = (R)1 / ((R)1 + small);
    small = choose(away > splat(FA_REAL_IS_FLOAT ? (R)87.33 : (R)708.39), (V){0}, small);
    return choose(x < (V){0}, small * share, share);
}

/* x sigmoid(slope): beyond -1000 the product is 0 and infinity must not meet it. */
FA_INLINE V gated(V x, V slope) { return maximum(splat(-1000), x) * sigmoid(slope); }

FA_INLINE V silu(V x) { return gated(x, x); }

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x sigmoid(2 sqrt(2/pi) (...)): nothing cancels. */
FA_INLINE V gelu_tanh(V x) {
    return gated(x, x * ((x * x) * (R)(2 * 0.7978845608028654 * 0.044715) + (R)(2 * 0.7978845608028654)));
}

FA_INLINE V relu(V x) { return choose(x < (V){0}, (V){0}, x); }

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|), Phi the normal distribution; log2 Phi(-a) is a polynomial, so one 2^x is all
 * and the tail keeps its sign and size. float32: largest error 4.2e-8; `rough`, for what is rounded to 16 bits, 9.7e-7.
 * float64 asks the C library. */
FA_INLINE V gelu_to(V x, int rough) {
#if FA_REAL_IS_FLOAT
    static const float fine[] = {4.00347182e-10f, -2.41155789e-8f, 6.01535703e-7f,  -8.01781516e-6f,
                                 6.06496396e-5f,  -2.33539676e-4f, -7.68885147e-5f, 7.01990537e-3f,
                                 -5.24788052e-2f, -4.59211648e-1f, -1.15110493f};
    static const float coarse[] = {-8.20383832e-7f, 3.90461719e-5f,  -7.54668028e-4f, 7.93023035e-3f,
                                   -5.30972406e-2f, -4.59026754e-1f, -1.15112221f};
    V a = choose(x < (V){0}, -x, x), power;
    a = choose(a > splat(12.9f), splat(15), a); /* 2^(log2 Phi(-15)) is 0 */
    if (rough) {
        power = splat(coarse[0]);
        FA_UNROLL_FOR(int i = 1; i < 7; i++) power = power * a + coarse[i];
    } else {
        power = splat(fine[0]);
        FA_UNROLL_FOR(int i = 1; i < 11; i++) power = power * a + fine[i];
    }
    return relu(x) - a * vector_exp2(power * a - 1);
#else
    for (int lane = 0; lane < LANES; lane++)
        x[lane] = x[lane] < -37.5 ? 0 : x[lane] * 0.5 * erfc(-x[lane] * 0.7071067811865476);
    return x;
#endif
}

FA_INLINE V gelu(V x) { return gelu_to(x, 0); }

static void activate(V *x, int count, int activation, int rough) {
    if (rough && activation == FA_GELU) {
        for (int i = 0; i < count; i++) x[i] = gelu_to(x[i], 1);
        return;
    }
#define FA_ROW(NAME, name)                                                                                             \
    case FA_##NAME:                                                                                                    \
        for (int i = 0; i < count; i++) x[i] = name(x[i]);                                                             \
        break;
    switch (activation) { FA_EACH_ACTIVATION(FA_ROW) }
#undef FA_ROW
}

#endif
