/* The vocabulary in vector extensions alone, but for what SSE2 says in one instruction. */
#ifndef FA_SIMD_PORTABLE_H
#define FA_SIMD_PORTABLE_H

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define FA_VECTOR_BYTES 16
#if defined(__aarch64__)
#define FA_VECTOR_REGISTERS 32
#else
#define FA_VECTOR_REGISTERS 16
#endif

#include "simd/vector.h"

#if !defined(__SSE2__)
FA_INLINE V maximum(V a, V b) { return choose(a > b, a, b); }
FA_INLINE void store_nontemporal(R *p, V x) { *(V *)p = x; }
FA_INLINE void nontemporal_fence(void) {}
#else
FA_INLINE void nontemporal_fence(void) { _mm_sfence(); }
#if FA_REAL_IS_FLOAT
FA_INLINE V maximum(V a, V b) { return (V)_mm_max_ps((__m128)a, (__m128)b); }
FA_INLINE void store_nontemporal(R *p, V x) { _mm_stream_ps(p, (__m128)x); }
#else
FA_INLINE V maximum(V a, V b) { return (V)_mm_max_pd((__m128d)a, (__m128d)b); }
FA_INLINE void store_nontemporal(R *p, V x) { _mm_stream_pd(p, (__m128d)x); }
#endif
#endif

/* Bytes as integers of the elements' width. */
FA_INLINE VI load_bytes(const uint8_t *p) {
    VI x;
    FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) x[lane] = p[lane];
    return x;
}
FA_INLINE V load_part(const R *p, int n) {
    V x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}
FA_INLINE void store_part(R *p, V x, int n) { memcpy(p, &x, (size_t)n * sizeof *p); }

/* The first n lanes of a, then those of b. */
FA_INLINE V join_lanes(V a, V b, int n) {
    for (int lane = n; lane < LANES; lane++) a[lane] = b[lane - n];
    return a;
}
FA_INLINE V vector_exp2(V x) { return exp2_bits(maximum(splat(-FA_EXPONENT_BIAS), x)); }
FA_INLINE V vector_exp(V x) { return exp_bits(maximum(splat(FA_EXP_FLOOR), x)); }

#endif
