/* Every template for one type (R and its companions, set by target.h), and their table. */

#include "lanes.h"
#include "storage.h"
#include "rows.h"
#include "attention_rows.h"
#include "attention_mask.h"
#include "activation.h"

#define UNITS(count) (((count) + UNIT - 1) / UNIT)

/* A family of products: attention and linear by one instruction. TILE(name) is a function of the family that stands. */
#define TILE(name) OP(name)
#define TILE_EXPORT(name) EXPORT(name)
#include "product_fma.h"
#include "product_lanes.h"
#include "product_broadcast.h"
#include "attention_fma.h"
#include "attention_broadcast.h"
#include "attention_tile.h"
#include "attention_many.h"
#include "attention_few_products.h"
#include "attention_few.h"
#include "attention_merge.h"
#include "attention_weights.h"
#include "linear_fma.h"
#include "linear_tile.h"
#include "linear_broadcast.h"
#include "linear.h"
#include "family_end.h"

#if defined(FA_DOT) && FA_VECTOR_BYTES / LANES == 4
#define TILE(name) OP(dot_##name)
#define TILE_EXPORT(name) EXPORT(name##_dot)
#include "product_dot.h"
#include "product_lanes.h"
#ifdef FA_AMX
#define MULTIPLY_TILES _tile_dpbf16ps
#define MULTIPLY_SWAPPED _tile_dpbf16ps
#include "product_amx.h"
#include "attention_bf16.h"
#include "attention_amx.h"
#else
#include "product_broadcast.h"
#include "attention_bf16.h"
#include "attention_dot.h"
#include "attention_broadcast.h"
#endif
#include "attention_tile.h"
#include "attention_many.h"
#include "linear_dot.h"
#include "linear_tile.h"
#include FA_LINEAR_PRODUCTS
#include "linear.h"
#include "family_end.h"

#define TILE(name) OP(int8_##name)
#define TILE_EXPORT(name) EXPORT(name##_int8)
#include "product_int8.h"
#include "product_lanes.h"
#ifdef FA_AMX
#define MULTIPLY_TILES _tile_dpbsud
#define MULTIPLY_SWAPPED _tile_dpbusd
#include "product_amx.h"
#else
#include "product_broadcast.h"
#endif
#include "linear_int8.h"
#include "linear_tile.h"
#include FA_LINEAR_PRODUCTS
#include "linear.h"
#include "family_end.h"
#endif

#include "softmax.h"
#include "normalization.h"
#include "rotary.h"
#include "cache.h"
#include "probe.h"

static ptrdiff_t EXPORT(attention_scratch)(const fa_attention *a) {
    ptrdiff_t tile = OP(many_scratch)(a), few = OP(few_scratch)(a);
    return tile > few ? tile : few;
}
#if defined(FA_DOT) && FA_VECTOR_BYTES / LANES == 4
static ptrdiff_t EXPORT(attention_scratch_dot)(const fa_attention *a) {
    ptrdiff_t tile = OP(dot_many_scratch)(a), other = EXPORT(attention_scratch)(a);
    return tile > other ? tile : other;
}
#endif

/* The table: by the kernels that make products, and the probe of their instruction. */
#define FA_KERNELS(TILES, FEW, SCRATCH, MANY, LINEAR, LINEAR_INT8, DOT)                                                                     \
    {                                                                                                                  \
        .itemsize = sizeof(R),                                                                                         \
        .lanes = LANES,                                                                                                \
        .tile_rows = FA_TILE_WIDEST * LANES,                                                                           \
        .most_rows = TILES * FA_TILE_WIDEST * LANES,                                                              \
        .few_rows = FEW,                                                                                       \
        .attention_scratch = SCRATCH,                                                                \
        .attention_many = MANY,                                                                                        \
        .attention_few = EXPORT(attention_few),                                                                        \
        .attention_merge = EXPORT(attention_merge),                                                                    \
        .attention_weights = EXPORT(attention_weights),                                                                \
        .linear = &LINEAR,                                                                                             \
        .linear_int8 = &LINEAR_INT8,                                                                                   \
        .softmax_scratch = EXPORT(softmax_scratch),                                                                    \
        .softmax_rows = EXPORT(softmax_rows),                                                                          \
        .softmax_columns = EXPORT(softmax_columns),                                                                    \
        .normalization_scratch = EXPORT(normalization_scratch),                                                        \
        .normalize_rows = EXPORT(normalize_rows),                                                                      \
        .rotary_scratch = EXPORT(rotary_scratch),                                                                      \
        .rotate_rows = EXPORT(rotate_rows),                                                                            \
        .cache_scratch = EXPORT(cache_scratch),                                                                        \
        .store_rows = EXPORT(store_rows),                                                                              \
        .probe_fma = EXPORT(probe_fma),                                                                                \
        .probe_dot = DOT,                                                                                              \
        .probe_read = EXPORT(probe_read),                                                                              \
        .probe_copy = EXPORT(probe_copy),                                                                              \
    }
#if defined(FA_DOT) && FA_VECTOR_BYTES / LANES == 4
static const fa_kernels EXPORT(kernels) = FA_KERNELS(BROADCAST_TILES, FA_FEW_BEST, EXPORT(attention_scratch), EXPORT(attention_many),
                                                     EXPORT(linear_kernel), EXPORT(linear_kernel_int8), NULL);
static const fa_kernels EXPORT(kernels_dot) =
    FA_KERNELS(FA_DOT_TILES, FA_DOT_FEW, EXPORT(attention_scratch_dot), EXPORT(attention_many_dot), EXPORT(linear_kernel_dot),
               EXPORT(linear_kernel_int8), EXPORT(probe_dot));
#else
static const fa_kernels EXPORT(kernels) = FA_KERNELS(BROADCAST_TILES, FA_FEW_BEST, EXPORT(attention_scratch), EXPORT(attention_many),
                                                     EXPORT(linear_kernel), EXPORT(linear_kernel), NULL);
#endif

#undef FA_KERNELS
#undef R
#undef I
#undef V
#undef VI
#undef STORED
#undef LANES
#undef OP
#undef EXPORT
