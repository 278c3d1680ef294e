/* Target: neon_dot
 * Machines: aarch64 arm64
 * Flags: neon -march=armv8.2-a+dotprod
 * float32: neon
 * float64: neon
 *
 * NEON with dot products of int8, as on Neoverse N1, Cortex-A76 and Apple M1. */
#ifndef FA_TARGET_NEON_DOT_H
#define FA_TARGET_NEON_DOT_H

#include "simd/neon_dot.h"
#include "targets/neon_sizes.h"

#define FA_TARGET_NEEDS FA_CPU_DOTPROD

#endif
