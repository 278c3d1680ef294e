/* Target: avx512_bf16
 * Machines: x86_64 amd64
 * Flags: avx512_vnni -mavx512bf16
 * Emulated by: avx512
 * float64: avx512
 *
 * AVX-512 with dot products of bfloat16 and of int8: processors with the former have the latter. */
#ifndef FA_TARGET_AVX512_BF16_H
#define FA_TARGET_AVX512_BF16_H

#include "simd/avx512_bf16.h"
#include "targets/avx512_sizes.h"

#ifdef FA_EMULATE
#define FA_TARGET_NEEDS FA_CPU_AVX512
#else
#define FA_TARGET_NEEDS (FA_CPU_AVX512 | FA_CPU_AVX512_VNNI | FA_CPU_AVX512_BF16)
#endif

#define FA_ROWWISE_UP_TO_BF16 FA_ROWWISE_UP_TO

#endif
