/* The vocabulary in vector extensions alone, but for what SSE2 says in one instruction. */
#ifndef FA_SIMD_PORTABLE_H
#define FA_SIMD_PORTABLE_H

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define FA_VECTOR_BYTES 16

#include "simd/vector.h"

/* Bytes as integers of the elements' width. */
FA_INLINE VI_f32 load_bytes_f32(const uint8_t *p) { return (VI_f32){p[0], p[1], p[2], p[3]}; }
FA_INLINE VI_f64 load_bytes_f64(const uint8_t *p) { return (VI_f64){p[0], p[1]}; }

#if defined(__SSE2__)
FA_INLINE V_f32 max_f32(V_f32 a, V_f32 b) { return (V_f32)_mm_max_ps((__m128)a, (__m128)b); }
FA_INLINE V_f64 max_f64(V_f64 a, V_f64 b) { return (V_f64)_mm_max_pd((__m128d)a, (__m128d)b); }
FA_INLINE void stream_f32(float *p, V_f32 x) { _mm_stream_ps(p, (__m128)x); }
FA_INLINE void stream_f64(double *p, V_f64 x) { _mm_stream_pd(p, (__m128d)x); }
FA_INLINE void stream_end(void) { _mm_sfence(); }
#else
FA_INLINE V_f32 max_f32(V_f32 a, V_f32 b) { return select_f32(a > b, a, b); }
FA_INLINE V_f64 max_f64(V_f64 a, V_f64 b) { return select_f64(a > b, a, b); }
FA_INLINE void stream_f32(float *p, V_f32 x) { *(V_f32 *)p = x; }
FA_INLINE void stream_f64(double *p, V_f64 x) { *(V_f64 *)p = x; }
FA_INLINE void stream_end(void) {}
#endif

FA_INLINE V_f32 load_part_f32(const float *p, int n) {
    V_f32 x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}
FA_INLINE V_f64 load_part_f64(const double *p, int n) {
    V_f64 x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}
FA_INLINE void store_part_f32(float *p, V_f32 x, int n) { memcpy(p, &x, (size_t)n * sizeof *p); }
FA_INLINE void store_part_f64(double *p, V_f64 x, int n) { memcpy(p, &x, (size_t)n * sizeof *p); }

/* The first n lanes of a, then those of b. */
FA_INLINE V_f32 join_f32(V_f32 a, V_f32 b, int n) {
    for (int lane = n; lane < 4; lane++) a[lane] = b[lane - n];
    return a;
}
FA_INLINE V_f64 join_f64(V_f64 a, V_f64 b, int n) {
    for (int lane = n; lane < 2; lane++) a[lane] = b[lane - n];
    return a;
}

FA_INLINE V_f32 exp2_f32(V_f32 x) { return exp2_bits_f32(max_f32(splat_f32(-127.0f), x)); }
FA_INLINE V_f64 exp2_f64(V_f64 x) { return exp2_bits_f64(max_f64(splat_f64(-1023.0), x)); }
FA_INLINE V_f32 exp_f32(V_f32 x) { return exp_bits_f32(max_f32(splat_f32(FA_EXP_FLOOR_F32), x)); }
FA_INLINE V_f64 exp_f64(V_f64 x) { return exp_bits_f64(max_f64(splat_f64(FA_EXP_FLOOR_F64), x)); }

#endif
