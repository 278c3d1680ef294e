/* What is compiled: all kernels of one target in one arithmetic.
 *
 * The build compiles instances/<arithmetic>.c once for each target, with -DFA_TARGET=<name> and the target's flags. So a
 * header is read once, by ordinary include guards, and means by R the real type of its instance. A header that is opened or
 * compiled alone is that of the target portable in float32, unless it says otherwise at its top. */
#ifndef FA_INSTANCE_H
#define FA_INSTANCE_H

#include "simd/compiler.h"

/* Arithmetics. In bfloat16 and int8 only products are made so: sums and all else are float32. */
#define FA_FLOAT32 1
#define FA_FLOAT64 2
#define FA_BFLOAT16 3
#define FA_INT8 4

#ifndef FA_TARGET
#define FA_TARGET portable
#endif
#ifndef FA_ARITHMETIC
#define FA_ARITHMETIC FA_FLOAT32
#endif

#define FA_REAL_IS_FLOAT (FA_ARITHMETIC != FA_FLOAT64)
/* Products are multiply-adds of reals; otherwise dot products of pairs of bfloat16 or of four int8. */
#define FA_MULTIPLY_ADD (FA_ARITHMETIC == FA_FLOAT32 || FA_ARITHMETIC == FA_FLOAT64)

/* The vocabulary and the sizes of the target. */
#define FA_TARGET_HEADER FA_TEXT(targets/FA_TARGET.h)
#include FA_TARGET_HEADER
#ifndef FA_HAS_DOT
#define FA_HAS_DOT 0 /* dot products of bfloat16 and of int8 */
#endif
#ifndef FA_HAS_TILES
#define FA_HAS_TILES 0 /* tile registers, and their products */
#endif
#include "abi/table.h"

/* R: reals. I: integers of their width. V, VI: a vector of either. */
#if FA_REAL_IS_FLOAT
#define R float
#define I int32_t
#define V V_f32
#define VI VI_f32
#define STORED FA_F32
#define LANES (FA_VECTOR_BYTES / 4)
#define OP(name) name##_f32
#else
#define R double
#define I int64_t
#define V V_f64
#define VI VI_f64
#define STORED FA_F64
#define LANES (FA_VECTOR_BYTES / 8)
#define OP(name) name##_f64
#endif
#define TILE(name) OP(name)

/* What an instance hands on: fa_<name>_<arithmetic>_<target>. */
#define FA_SYMBOL(name, arithmetic) FA_JOIN(fa_##name##_##arithmetic##_, FA_TARGET)
#if FA_ARITHMETIC == FA_FLOAT32
#define EXPORT(name) FA_SYMBOL(name, f32)
#elif FA_ARITHMETIC == FA_FLOAT64
#define EXPORT(name) FA_SYMBOL(name, f64)
#elif FA_ARITHMETIC == FA_BFLOAT16
#define EXPORT(name) FA_SYMBOL(name, bf16)
#else
#define EXPORT(name) FA_SYMBOL(name, int8)
#endif

#endif
