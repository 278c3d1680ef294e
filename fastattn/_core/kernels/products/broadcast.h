/* Sums of products in vector registers: elements of rows in memory are broadcast over vectors of rows in the lanes. */
#ifndef FA_PRODUCTS_BROADCAST_H
#define FA_PRODUCTS_BROADCAST_H

#include "instance.h"

/* CALL(rows at a time) for rows in register tiles of MR, then 4, 2, 1 for what remains. */
#define FA_IN_BLOCKS(count, MR, CALL)                                                                                  \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        for (; i + (MR) <= (count); i += (MR)) CALL(MR);                                                               \
        for (; (MR) > 8 && i + 8 <= (count); i += 8) CALL(8);                                                          \
        for (; (MR) > 4 && i + 4 <= (count); i += 4) CALL(4);                                                          \
        if (i + 2 <= (count)) {                                                                                        \
            CALL(2);                                                                                                   \
            i += 2;                                                                                                    \
        }                                                                                                              \
        if (i < (count)) CALL(1);                                                                                      \
    } while (0)

#endif
