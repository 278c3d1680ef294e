/* Sums of products in vector registers: elements of rows in memory are broadcast over vectors of rows in the lanes. */
#ifndef FA_PRODUCTS_BROADCAST_H
#define FA_PRODUCTS_BROADCAST_H

#include "instance.h"

/* CALL(rows at a time) for rows in register tiles of MR, then 8, 4, 2, 1 for what remains. */
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

/* The same for sums of one vector, where fewer than 8 wait for each other: what remains is one tile, and 1 row. */
#define FA_IN_LONG_BLOCKS(count, MR, CALL)                                                                             \
    do {                                                                                                               \
        ptrdiff_t i = 0;                                                                                               \
        for (; i + (MR) <= (count); i += (MR)) CALL(MR);                                                               \
        switch (((count) - i) / 2) {                                                                                   \
        case 7: CALL(14); break;                                                                                       \
        case 6: CALL(12); break;                                                                                       \
        case 5: CALL(10); break;                                                                                       \
        case 4: CALL(8); break;                                                                                        \
        case 3: CALL(6); break;                                                                                        \
        case 2: CALL(4); break;                                                                                        \
        case 1: CALL(2); break;                                                                                        \
        }                                                                                                              \
        i += ((count) - i) / 2 * 2;                                                                                    \
        if (i < (count)) CALL(1);                                                                                      \
    } while (0)

#endif
