/* The arithmetic of an instance, and its reals. */
#ifndef FA_SIMD_REAL_H
#define FA_SIMD_REAL_H

#include <stdint.h>

/* Arithmetics. In bfloat16 and int8 only products are made so: sums and all else are float32. */
#define FA_FLOAT32 1
#define FA_FLOAT64 2
#define FA_BFLOAT16 3
#define FA_INT8 4

#ifndef FA_ARITHMETIC
#define FA_ARITHMETIC FA_FLOAT32
#endif

#define FA_REAL_IS_FLOAT (FA_ARITHMETIC != FA_FLOAT64)
/* Products are multiply-adds of reals; otherwise dot products of pairs of bfloat16 or of four int8. */
#define FA_QUANTISED (FA_ARITHMETIC == FA_INT8)
#define FA_MULTIPLY_ADD (FA_ARITHMETIC == FA_FLOAT32 || FA_ARITHMETIC == FA_FLOAT64)

/* R: the reals. I: integers of their width. */
#if FA_REAL_IS_FLOAT
#define FA_REAL_BYTES 4
#define FA_MANTISSA_BITS 23
#define FA_EXPONENT_BIAS 127
#define R float
#define I int32_t
#else
#define FA_REAL_BYTES 8
#define FA_MANTISSA_BITS 52
#define FA_EXPONENT_BIAS 1023
#define R double
#define I int64_t
#endif

#endif
