/* A target: which tables serve which type, and what the dispatch wants to know. Compiled once for each.
 *
 * FA_FLOAT32_OF and FA_FLOAT64_OF are the target itself, or another one whose kernels in this arithmetic are the same:
 * the build knows it from the target's header. */
#define FA_ARITHMETIC FA_FLOAT32
#include "instance.h"
#include "targets/dispatch.h"

#ifndef FA_FLOAT32_OF
#define FA_FLOAT32_OF FA_TARGET
#endif
#ifndef FA_FLOAT64_OF
#define FA_FLOAT64_OF FA_TARGET
#endif

#define FLOAT32 FA_JOIN(fa_kernels_f32_, FA_FLOAT32_OF)
#define FLOAT64 FA_JOIN(fa_kernels_f64_, FA_FLOAT64_OF)
#if FA_HAS_BF16_DOT
#define BFLOAT16 FA_SYMBOL(kernels, bf16)
#else
#define BFLOAT16 FLOAT32
#endif
#if FA_HAS_INT8_DOT
#define INT8_LINEAR FA_SYMBOL(linear_kernel, int8)
#else
#define INT8_LINEAR FA_JOIN(fa_linear_kernel_f32_, FA_FLOAT32_OF)
#endif

extern const fa_kernels FLOAT32, FLOAT64, BFLOAT16;
extern const fa_linear_kernel INT8_LINEAR;

const fa_target FA_JOIN(fa_target_, FA_TARGET) = {
    .name = FA_TEXT(FA_TARGET),
    .needs = FA_TARGET_NEEDS,
#ifdef FA_EMULATED
    .emulated = 1,
#endif
    .kernels = {[FA_F32] = &FLOAT32, [FA_F64] = &FLOAT64, [FA_F16] = &FLOAT32, [FA_BF16] = &BFLOAT16},
    .linear_int8 = &INT8_LINEAR,
};
