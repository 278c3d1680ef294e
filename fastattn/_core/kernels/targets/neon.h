/* Target: neon
 * Machines: aarch64 arm64
 * Flags: -fno-schedule-insns
 *
 * 32 registers of 16 bytes. GCC 12's first scheduling moves loads so far ahead that sums of a full tile of packed
 * weights are spilled; processors without order need none. */
#ifndef FA_TARGET_NEON_H
#define FA_TARGET_NEON_H

#include "simd/neon.h"
#include "targets/neon_sizes.h"

#define FA_TARGET_NEEDS FA_CPU_ANY /* the baseline of arm64 */

#endif
