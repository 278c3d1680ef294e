/* Scratch memory of a call, taken piece by piece. */
#ifndef FA_STORAGE_SCRATCH_H
#define FA_STORAGE_SCRATCH_H

#include "instance.h"

/* A piece of scratch memory, whole cache lines. */
FA_INLINE R *take_scratch(char **scratch, ptrdiff_t elements) {
    R *piece = (R *)*scratch;
    *scratch += (elements * (ptrdiff_t)sizeof(R) + 63) / 64 * 64;
    return piece;
}

#endif
