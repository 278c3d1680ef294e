/* What the attention kernels share: sizes of steps, where a row stands, exponentials of scores. */
#ifndef FA_ATTENTION_ROWS_H
#define FA_ATTENTION_ROWS_H

#include "instance.h"

#define KEYS_PER_STEP 128                      /* the weights' panel, 128 · NV vectors, then stays in L1/L2 */
#define KEYS_PER_SUM (FA_CHAIN < 32 ? 16 : 64) /* keys whose weighted values are summed before they join the rest, */
#define KEYS_PER_RUN 16 /* and whose weights are: long chains of additions gather rounding errors */
/* For few queries or few scores NumPy adds several partial sums, so we need shorter chains as well. Tiles that are not
 * full can afford them. */
#define FA_SHORT_CHAIN (FA_CHAIN < 16 ? FA_CHAIN : 16)

/* Up to so many rows, of heads that are not small, are attended to row by row (plan.pyx): a vector of rows costs the
 * same however many of its lanes are used. */
#define FA_ROWWISE_UP_TO (LANES / 2)

/* Offset of row `row`: query row / group, head row % group of the group. */
FA_INLINE ptrdiff_t row_offset(const fa_attention *a, ptrdiff_t row, ptrdiff_t head_stride, ptrdiff_t row_stride) {
    return row / a->group * row_stride + row % a->group * head_stride;
}

/* -inf if there was nothing to attend to. */
FA_INLINE R log_sum(R max, R sum) { return (R)((double)max + log((double)sum)); }

/* e^x for x <= 0 by the cheaper 2^x. The factor log2 e is applied here, after the maximum is subtracted: in the scale
 * of the scores it would save this product but cost half a bit of the scores, and more where they are large (ALiBi). */
FA_INLINE V exp_by_exp2(V x) { return vector_exp2(x * (R)1.4426950408889634); }

/* e^x for x <= 0, as exactly as possible. */
FA_INLINE V exp_exact(V x) { return exp_exact_bits(maximum(splat(FA_EXP_FLOOR), x)); }

#endif
