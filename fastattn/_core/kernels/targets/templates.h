/* Every template for one type (R and its companions, set by target.h), and their table. */

#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/rows.h"
#include "attention/rows.h"
#include "attention/mask.h"
#include "linear/activation.h"

#define UNITS(count) (((count) + UNIT - 1) / UNIT)

/* A family of products: attention and linear by one instruction. TILE(name) is a function of the family that stands. */
#define TILE(name) OP(name)
#define TILE_EXPORT(name) EXPORT(name)
#include "products/fma.h"
#include "products/rows_into_lanes.h"
#include "products/broadcast.h"
#include "attention/tiled_fma.h"
#include "attention/tiled_broadcast.h"
#include "attention/query_tile.h"
#include "attention/tiled.h"
#include "attention/rowwise_products.h"
#include "attention/rowwise.h"
#include "attention/merge.h"
#include "attention/weights.h"
#include "linear/fma.h"
#include "linear/tile.h"
#include "linear/broadcast.h"
#include "linear/linear.h"
#include "products/family_end.h"

#if defined(FA_DOT) && FA_VECTOR_BYTES / LANES == 4
#define TILE(name) OP(dot_##name)
#define TILE_EXPORT(name) EXPORT(name##_dot)
#include "products/bf16.h"
#include "products/rows_into_lanes.h"
#ifdef FA_AMX
#define MULTIPLY_TILES _tile_dpbf16ps
#define MULTIPLY_SWAPPED _tile_dpbf16ps
#include "products/amx.h"
#include "products/bf16_pairs.h"
#include "attention/tiled_amx.h"
#else
#include "products/broadcast.h"
#include "products/bf16_pairs.h"
#include "attention/tiled_bf16.h"
#include "attention/tiled_broadcast.h"
#endif
#include "attention/query_tile.h"
#include "attention/tiled.h"
#include "linear/bf16.h"
#include "linear/tile.h"
#include FA_LINEAR_PRODUCTS
#include "linear/linear.h"
#include "products/family_end.h"

#define TILE(name) OP(int8_##name)
#define TILE_EXPORT(name) EXPORT(name##_int8)
#include "products/int8.h"
#include "products/rows_into_lanes.h"
#ifdef FA_AMX
#define MULTIPLY_TILES _tile_dpbsud
#define MULTIPLY_SWAPPED _tile_dpbusd
#include "products/amx.h"
#else
#include "products/broadcast.h"
#endif
#include "linear/int8.h"
#include "linear/tile.h"
#include FA_LINEAR_PRODUCTS
#include "linear/linear.h"
#include "products/family_end.h"
#endif

#include "rows/softmax.h"
#include "rows/normalization.h"
#include "rows/rotary.h"
#include "rows/cache.h"
#include "targets/probe.h"

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
