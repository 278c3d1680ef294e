/* Sums of many numbers that keep what rounding takes from them: Knuth's exact addition (The Art of Computer Programming
 * 4.2.2). Seven operations instead of one, so it adds sums of runs, not single numbers. */
#ifndef FA_ROWS_LONG_SUM_H
#define FA_ROWS_LONG_SUM_H

#include "simd/lanes.h"

/* In each lane `sum` + `lost`: the sum as it was rounded, and what that lost. */
typedef struct {
    V sum, lost;
} long_sum;

typedef struct {
    R sum, lost;
} lane_total;

#define FA_ADD_EXACTLY(TYPE, a, more)                                                                                  \
    do {                                                                                                               \
        const TYPE rounded = (a)->sum + (more), added = rounded - (a)->sum;                                            \
        (a)->lost += ((a)->sum - (rounded - added)) + ((more) - added);                                                \
        (a)->sum = rounded;                                                                                            \
    } while (0)

FA_INLINE void add_lanes(long_sum *a, V more) { FA_ADD_EXACTLY(V, a, more); }
FA_INLINE void add_total(lane_total *a, lane_total more) {
    FA_ADD_EXACTLY(R, a, more.sum);
    a->lost += more.lost;
}

/* The sum of all lanes, in the order of lane_sum. */
FA_INLINE lane_total total_of_lanes(long_sum a) {
#define ADD_ROTATED(PLACES)                                                                                            \
    do {                                                                                                               \
        a.lost += __builtin_shufflevector(a.lost, a.lost, PLACES);                                                     \
        add_lanes(&a, __builtin_shufflevector(a.sum, a.sum, PLACES));                                                  \
    } while (0)
#ifdef FA_ROTATE_8
    ADD_ROTATED(FA_ROTATE_8);
#endif
#ifdef FA_ROTATE_4
    ADD_ROTATED(FA_ROTATE_4);
#endif
#ifdef FA_ROTATE_2
    ADD_ROTATED(FA_ROTATE_2);
#endif
    ADD_ROTATED(FA_ROTATE_1);
#undef ADD_ROTATED
    return (lane_total){a.sum[0], a.lost[0]};
}

/* 1 / (sum + lost), rounded once: the error of 1 / sum comes from products of halves, which are exact. */
FA_INLINE R inverse_of_total(lane_total a) {
#if FA_REAL_IS_FLOAT
    return (R)(1 / ((double)a.sum + (double)a.lost));
#else
    const double inverse = 1 / a.sum, x = (float)inverse, x_low = inverse - x, y = (float)a.sum, y_low = a.sum - y;
    return inverse + inverse * ((((1 - x * y) - x * y_low) - x_low * y) - x_low * y_low - inverse * a.lost);
#endif
}

#endif
