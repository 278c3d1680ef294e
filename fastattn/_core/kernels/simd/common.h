/* What every kernel uses. */
#ifndef FA_SIMD_COMMON_H
#define FA_SIMD_COMMON_H

#include <stddef.h>

#define FA_INLINE static inline __attribute__((always_inline, unused))
#define FA_NOINLINE static __attribute__((noinline, unused))
#define FA_UNROLL_FOR(...) _Pragma("GCC unroll 32") for (__VA_ARGS__)

#define FA_JOIN_(a, b) a##b
#define FA_JOIN(a, b) FA_JOIN_(a, b)
enum { CACHE_LINE = 64 }; /* bytes */

#define FA_TEXT_(a) #a
#define FA_TEXT(a) FA_TEXT_(a)

static inline ptrdiff_t fa_clamp(ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
    return x < low ? low : x > high ? high : x;
}

#endif
