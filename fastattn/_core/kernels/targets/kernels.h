/* The tables: which kernel serves which operation. That of bfloat16 stands with that of float32, whose kernels it has
 * but for the products. targets/target.c says which type has which. */
#ifndef FA_TARGETS_KERNELS_H
#define FA_TARGETS_KERNELS_H

#include "attention/merge.h"
#include "attention/rowwise.h"
#include "attention/tiled.h"
#include "attention/weights.h"
#include "linear/linear.h"
#include "rows/cache.h"
#include "rows/normalization.h"
#include "rows/rotary.h"
#include "rows/softmax.h"
#include "targets/probe.h"

ptrdiff_t EXPORT(attention_scratch)(const fa_attention *a) {
    ptrdiff_t tiled = tiled_scratch(a), rowwise = rowwise_scratch(a);
    return tiled > rowwise ? tiled : rowwise;
}

/* What all tables of this instance share. */
#define FA_OWN_KERNELS                                                                                                 \
    .itemsize = sizeof(R), .lanes = LANES, .tile_rows = FA_TILE_VECTORS * LANES,                                       \
    .attention_rowwise = EXPORT(attention_rowwise), .attention_merge = EXPORT(attention_merge),                        \
    .attention_weights = EXPORT(attention_weights), .softmax_scratch = EXPORT(softmax_scratch),                        \
    .softmax_rows = EXPORT(softmax_rows), .softmax_columns = EXPORT(softmax_columns),                                  \
    .normalization_scratch = EXPORT(normalization_scratch), .normalize_rows = EXPORT(normalize_rows),                  \
    .rotary_scratch = EXPORT(rotary_scratch), .rotate_rows = EXPORT(rotate_rows),                                      \
    .cache_scratch = EXPORT(cache_scratch), .store_rows = EXPORT(store_rows), .probe_fma = EXPORT(probe_fma),          \
    .probe_read = EXPORT(probe_read), .probe_copy = EXPORT(probe_copy)

const fa_kernels EXPORT(kernels) = {
    .most_rows = ITEM_TILES * FA_TILE_VECTORS * LANES,
    .rowwise_up_to = FA_ROWWISE_UP_TO,
    .attention_scratch = EXPORT(attention_scratch),
    .attention_tiled = EXPORT(attention_tiled),
    .linear = &EXPORT(linear_kernel),
    FA_OWN_KERNELS,
};

#if FA_HAS_BF16_DOT && FA_REAL_IS_FLOAT
extern const fa_linear_kernel FA_SYMBOL(linear_kernel, bf16);
ptrdiff_t FA_SYMBOL(attention_scratch, bf16)(const fa_attention *);
void FA_SYMBOL(attention_tiled, bf16)(const fa_attention *, const fa_attention_item *, void *);
double FA_SYMBOL(probe_dot, bf16)(ptrdiff_t);

const fa_kernels FA_SYMBOL(kernels, bf16) = {
    .most_rows = FA_BF16_TILES * FA_TILE_VECTORS * LANES,
    .rowwise_up_to = FA_ROWWISE_UP_TO_BF16,
    .attention_scratch = FA_SYMBOL(attention_scratch, bf16),
    .attention_tiled = FA_SYMBOL(attention_tiled, bf16),
    .linear = &FA_SYMBOL(linear_kernel, bf16),
    .probe_dot = FA_SYMBOL(probe_dot, bf16),
    FA_OWN_KERNELS,
};
#endif

#endif
