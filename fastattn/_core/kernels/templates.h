/* Every template for one type (R and its companions, set by target.h), and their table. */

#include "lanes.h"
#include "storage.h"
#include "rows.h"
#include "attention_rows.h"
#include "attention_mask.h"

#define TILE(name) OP(name)
#define TILE_EXPORT(name) EXPORT(name)
#define UNITS(count) (((count) + UNIT - 1) / UNIT)
#include "product_fma.h"
#include "product_lanes.h"
#include "attention_fma.h"
#include "attention_tile.h"
#include "attention_many.h"
#include "attention_few_products.h"
#include "attention_few.h"
#include "attention_merge.h"
#include "attention_weights.h"
#undef TILE
#undef TILE_EXPORT
#undef TILE_KEYS_AT
#undef TILE_VALUES_AT
#undef UNIT

#if defined(FA_DOT) && FA_VECTOR_BYTES / LANES == 4
#define TILE(name) OP(dot_##name)
#define TILE_EXPORT(name) EXPORT(name##_dot)
#include "product_dot.h"
#include "product_lanes.h"
#include "attention_dot.h"
#include "attention_tile.h"
#include "attention_many.h"
#undef TILE
#undef TILE_EXPORT
#undef TILE_KEYS_AT
#undef TILE_VALUES_AT
#undef UNIT
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

/* The table: by the kernel for many rows, and the probe of its instruction. */
#define FA_KERNELS(MANY, DOT)                                                                                          \
    {                                                                                                                  \
        .itemsize = sizeof(R),                                                                                         \
        .lanes = LANES,                                                                                                \
        .tile_rows = FA_TILE_WIDEST * LANES,                                                                           \
        .most_rows = MOST_TILES * FA_TILE_WIDEST * LANES,                                                              \
        .few_rows = FA_FEW_BEST,                                                                                       \
        .attention_scratch = EXPORT(attention_scratch),                                                                \
        .attention_many = MANY,                                                                                        \
        .attention_few = EXPORT(attention_few),                                                                        \
        .attention_merge = EXPORT(attention_merge),                                                                    \
        .attention_weights = EXPORT(attention_weights),                                                                \
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
static const fa_kernels EXPORT(kernels) = FA_KERNELS(EXPORT(attention_many), NULL);
#if defined(FA_DOT) && FA_VECTOR_BYTES / LANES == 4
static const fa_kernels EXPORT(kernels_dot) = FA_KERNELS(EXPORT(attention_many_dot), EXPORT(probe_dot));
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
