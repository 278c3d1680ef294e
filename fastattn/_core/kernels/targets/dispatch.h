/* What a target may need: instructions, and an operating system that saves their registers. */
#ifndef FA_DISPATCH_H
#define FA_DISPATCH_H

#include "abi/table.h"

enum {
    FA_CPU_ANY = 0,
    FA_CPU_AVX = 1 << 0,
    FA_CPU_F16C = 1 << 1,
    FA_CPU_FMA = 1 << 2,
    FA_CPU_AVX2 = 1 << 3,
    FA_CPU_AVX512_ONLY = 1 << 4, /* F, BW, DQ, VL */
    FA_CPU_AVX512_VNNI = 1 << 5,
    FA_CPU_AVX512_BF16 = 1 << 6,
    FA_CPU_AMX = 1 << 7,     /* TILE, BF16, INT8 */
    FA_CPU_DOTPROD = 1 << 8, /* of arm64, as the next one */
    FA_CPU_BF16 = 1 << 9,

    FA_CPU_AVX512 = FA_CPU_AVX | FA_CPU_F16C | FA_CPU_FMA | FA_CPU_AVX2 | FA_CPU_AVX512_ONLY,
};

#endif
