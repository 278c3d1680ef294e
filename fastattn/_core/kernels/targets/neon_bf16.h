/* Target: neon_bf16
 * Machines: aarch64 arm64
 * Flags: neon -march=armv8.2-a+dotprod+bf16
 * float64: neon
 *
 * NEON with dot products of int8 and of bfloat16, as on Neoverse V1, N2, and Apple M2. */
#ifndef FA_TARGET_NEON_BF16_H
#define FA_TARGET_NEON_BF16_H

#include "simd/neon_bf16.h"
#include "targets/neon_sizes.h"

#define FA_TARGET_NEEDS (FA_CPU_DOTPROD | FA_CPU_BF16)

#define FA_ROWWISE_UP_TO_BF16 FA_ROWWISE_UP_TO

#endif
