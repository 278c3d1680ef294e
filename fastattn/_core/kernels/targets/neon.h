/* Target: neon
 * Machines: aarch64 arm64
 *
 * 32 registers of 16 bytes. */
#ifndef FA_TARGET_NEON_H
#define FA_TARGET_NEON_H

#include "simd/neon.h"
#include "targets/neon_sizes.h"

#define FA_TARGET_NEEDS FA_CPU_ANY /* the baseline of arm64 */

#endif
