/* Target: avx512_vnni
 * Machines: x86_64 amd64
 * Flags: avx512 -mavx512vnni
 * Emulated by: avx512
 * float32: avx512
 * float64: avx512
 *
 * AVX-512 with dot products of int8: Intel's servers from Cascade Lake to Ice Lake. */
#ifndef FA_TARGET_AVX512_VNNI_H
#define FA_TARGET_AVX512_VNNI_H

#include "simd/avx512_vnni.h"
#include "targets/avx512_sizes.h"

#ifdef FA_EMULATE
#define FA_TARGET_NEEDS FA_CPU_AVX512
#else
#define FA_TARGET_NEEDS (FA_CPU_AVX512 | FA_CPU_AVX512_VNNI)
#endif

#endif
