/* What is asked of the compiler. */
#ifndef FA_COMPILER_H
#define FA_COMPILER_H

#define FA_INLINE static inline __attribute__((always_inline, unused))
#define FA_APART static __attribute__((noinline, unused))
#define FA_UNROLL _Pragma("GCC unroll 32")

#define FA_JOIN_(a, b) a##b
#define FA_JOIN(a, b) FA_JOIN_(a, b)
#define FA_TEXT_(a) #a
#define FA_TEXT(a) FA_TEXT_(a)

#endif
