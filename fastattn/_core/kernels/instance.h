/* What is compiled: all kernels of one target in one arithmetic.
 *
 * The build compiles instances/<arithmetic>.c once for each target, with -DFA_TARGET=<name> and the target's flags. So
 * a header is read once, by ordinary include guards, and means by R the real type of its instance. A header that is
 * opened or compiled alone is that of the target portable in float32, unless it says otherwise at its top. */
#ifndef FA_INSTANCE_H
#define FA_INSTANCE_H

#include "simd/common.h"
#include "simd/real.h"

#ifndef FA_TARGET
#define FA_TARGET portable
#endif

/* The vocabulary and the sizes of the target. */
/* clang-format off */ /* which puts spaces into a file's name */
#define FA_TARGET_HEADER FA_TEXT(targets/FA_TARGET.h)
/* clang-format on */
#include FA_TARGET_HEADER
#ifndef FA_HAS_BF16_DOT
#define FA_HAS_BF16_DOT 0 /* dot products of pairs of bfloat16 */
#endif
#ifndef FA_HAS_INT8_DOT
#define FA_HAS_INT8_DOT 0 /* dot products of four int8 */
#endif
#ifndef FA_HAS_ELEMENT_PRODUCTS
#define FA_HAS_ELEMENT_PRODUCTS 0 /* products with one element of a register */
#endif
#ifndef FA_CHAINS
#define FA_CHAINS 10 /* independent sums that hide the latency of a multiply-add: probes have so many */
#endif
#ifndef FA_HAS_TILES
#define FA_HAS_TILES 0 /* tile registers, and their products */
#endif
#include "abi/table.h"

/* How an array stores the instance's reals. */
#if FA_REAL_IS_FLOAT
#define STORED FA_F32
#else
#define STORED FA_F64
#endif

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
