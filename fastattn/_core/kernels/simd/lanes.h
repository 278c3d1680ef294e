/* Operations across the lanes of a vector: interleaving and its reverse, square transposition, sums and maxima. */
#ifndef FA_SIMD_LANES_H
#define FA_SIMD_LANES_H

#include "instance.h"

#if LANES == 16
#define FA_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FA_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define FA_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define FA_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define FA_ROTATE_8 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#define FA_ROTATE_4 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3
#define FA_ROTATE_2 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1
#define FA_ROTATE_1 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0
#define FA_ROUNDS 4
#elif LANES == 8
#define FA_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define FA_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define FA_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define FA_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define FA_ROTATE_4 4, 5, 6, 7, 0, 1, 2, 3
#define FA_ROTATE_2 2, 3, 4, 5, 6, 7, 0, 1
#define FA_ROTATE_1 1, 2, 3, 4, 5, 6, 7, 0
#define FA_ROUNDS 3
#elif LANES == 4
#define FA_LOW 0, 4, 1, 5
#define FA_HIGH 2, 6, 3, 7
#define FA_EVEN 0, 2, 4, 6
#define FA_ODD 1, 3, 5, 7
#define FA_ROTATE_2 2, 3, 0, 1
#define FA_ROTATE_1 1, 2, 3, 0
#define FA_ROUNDS 2
#else
#define FA_LOW 0, 2
#define FA_HIGH 1, 3
#define FA_EVEN 0, 2
#define FA_ODD 1, 3
#define FA_ROTATE_1 1, 0
#define FA_ROUNDS 1
#endif

FA_INLINE V interleave_low(V a, V b) { return __builtin_shufflevector(a, b, FA_LOW); }
FA_INLINE V interleave_high(V a, V b) { return __builtin_shufflevector(a, b, FA_HIGH); }

/* The elements at even and at odd places of a and b side by side. */
FA_INLINE V even_places(V a, V b) { return __builtin_shufflevector(a, b, FA_EVEN); }
FA_INLINE V odd_places(V a, V b) { return __builtin_shufflevector(a, b, FA_ODD); }

/* log2(LANES) rounds of interleaving vector i with vector i + LANES/2: a permutation for each vector and round. */
FA_INLINE void transpose(V x[LANES]) {
    FA_UNROLL_FOR(int round = 0; round < FA_ROUNDS; round++) {
        V y[LANES];
        FA_UNROLL_FOR(int i = 0; i < LANES / 2; i++) {
            y[2 * i] = interleave_low(x[i], x[i + LANES / 2]);
            y[2 * i + 1] = interleave_high(x[i], x[i + LANES / 2]);
        }
        FA_UNROLL_FOR(int i = 0; i < LANES; i++) x[i] = y[i];
    }
}

/* Rows in the lanes: as many as there are lanes. If there are fewer, lanes repeat some; see in_order_of_rows. A
 * vocabulary that defines FA_HAS_LOAD_TRANSPOSED has all of this, down to the #endif. */
#ifndef FA_HAS_LOAD_TRANSPOSED
#define TRANSPOSED LANES /* elements of each row that load_transposed takes */
typedef struct {
    const R *row[LANES];
} lane_rows;
FA_INLINE lane_rows rows_in_lanes(const R *first, ptrdiff_t stride, ptrdiff_t count) {
    lane_rows rows;
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) rows.row[i] = first + fa_clamp(i, 0, count - 1) * stride;
    return rows;
}
FA_INLINE const R *row_in_lane(const lane_rows *rows, int lane) { return rows->row[lane]; }

/* x[k] = element `at` + k of each row, for k < TRANSPOSED; load_rows_transposed takes any addresses. */
FA_INLINE void load_rows_transposed(const R *const *row, ptrdiff_t at, V *x) {
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) x[i] = load(row[i] + at);
    transpose(x);
}
FA_INLINE void load_transposed(const lane_rows *rows, ptrdiff_t at, V *x) { load_rows_transposed(rows->row, at, x); }
/* The same for k < n. */
FA_INLINE void load_part_transposed(const lane_rows *rows, ptrdiff_t at, int n, V *x) {
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) x[i] = load_part(rows->row[i] + at, n);
    transpose(x);
}

/* What is in the lanes for fewer rows, in the order of these. */
FA_INLINE V in_order_of_rows(V x, ptrdiff_t count) { return x; }
#endif

/* The sum over the lanes of x[i], for i < FOLD, in lane i of the result. */
#define FOLD (LANES < 4 ? LANES : 4)
FA_INLINE V fold(const V *x) {
#if LANES == 2
    return interleave_low(x[0], x[1]) + interleave_high(x[0], x[1]);
#else
    V even = interleave_low(x[0], x[2]) + interleave_high(x[0], x[2]);
    V odd = interleave_low(x[1], x[3]) + interleave_high(x[1], x[3]);
    V sum = interleave_low(even, odd) + interleave_high(even, odd);
#if LANES >= 16
    sum += __builtin_shufflevector(sum, sum, FA_ROTATE_8);
#endif
#if LANES >= 8
    sum += __builtin_shufflevector(sum, sum, FA_ROTATE_4);
#endif
    return sum;
#endif
}

/* The same for as many vectors as there are lanes. */
FA_INLINE V fold_all(V x[LANES]) {
    FA_UNROLL_FOR(int count = LANES / 2; count; count /= 2)
        FA_UNROLL_FOR(int i = 0; i < count; i++)
            x[i] = interleave_low(x[i], x[i + count]) + interleave_high(x[i], x[i + count]);
    return x[0];
}

/* A tree: log2(LANES) dependent steps. */
FA_INLINE R lane_sum(V x) {
#ifdef FA_ROTATE_8
    x += __builtin_shufflevector(x, x, FA_ROTATE_8);
#endif
#ifdef FA_ROTATE_4
    x += __builtin_shufflevector(x, x, FA_ROTATE_4);
#endif
#ifdef FA_ROTATE_2
    x += __builtin_shufflevector(x, x, FA_ROTATE_2);
#endif
    x += __builtin_shufflevector(x, x, FA_ROTATE_1);
    return x[0];
}

/* In the first two lanes the maxima of those at even and at odd places. */
FA_INLINE V max_by_twos(V x) {
#ifdef FA_ROTATE_8
    x = maximum(x, __builtin_shufflevector(x, x, FA_ROTATE_8));
#endif
#ifdef FA_ROTATE_4
    x = maximum(x, __builtin_shufflevector(x, x, FA_ROTATE_4));
#endif
#ifdef FA_ROTATE_2
    x = maximum(x, __builtin_shufflevector(x, x, FA_ROTATE_2));
#endif
    return x;
}

FA_INLINE R lane_max(V x) {
    x = max_by_twos(x);
    x = maximum(x, __builtin_shufflevector(x, x, FA_ROTATE_1));
    return x[0];
}

/* The maxima of two vectors, a step after the interleaving for both. */
FA_INLINE void two_lane_maxima(V a, V b, R *of_a, R *of_b) {
    V both = max_by_twos(maximum(interleave_low(a, b), interleave_high(a, b)));
    *of_a = both[0];
    *of_b = both[1];
}

#endif
