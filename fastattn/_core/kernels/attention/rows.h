/* What the attention kernels share: sizes of steps, where a row stands, exponentials of scores. */
#ifndef FA_ATTENTION_ROWS_H
#define FA_ATTENTION_ROWS_H

#include "instance.h"

#define KEYS_PER_STEP 128                      /* the weights' panel, 128 · NV vectors, then stays in L1/L2 */
#define KEYS_PER_SUM (FA_CHAIN < 32 ? 16 : 64) /* keys whose weighted values are summed before they join the rest, */
#define KEYS_PER_RUN 16 /* and whose weights are: long chains of additions gather rounding errors */
/* Of few queries NumPy makes several sums and adds them, and so must we; tiles that are not full can afford it. */
#define FA_SHORT_CHAIN (FA_CHAIN < 16 ? FA_CHAIN : 16)

/* Where row `row` of the call stands: query row / group of the group's head row % group. */
FA_INLINE ptrdiff_t row_offset(const fa_attention *a, ptrdiff_t row, ptrdiff_t head_stride, ptrdiff_t row_stride) {
    return row / a->group * row_stride + row % a->group * head_stride;
}

/* -inf where there was nothing to attend. */
FA_INLINE R log_sum(R max, R sum) { return (R)((double)max + log((double)sum)); }

/* e^x by the cheaper 2^x, for x <= 0. Multiplied only here, where the maximum is off: log2 e in the scale would save
 * this product and cost the scores half a bit, more where they are large (ALiBi). */
FA_INLINE V exp_by_exp2(V x) { return vector_exp2(x * (R)1.4426950408889634); }

/* e^x for x <= 0, as exact as can be. */
FA_INLINE V exp_exact(V x) { return exp_exact_bits(maximum(splat(FA_EXP_FLOOR), x)); }

#endif
