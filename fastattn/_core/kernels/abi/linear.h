/* What the kernels of linear are told. */
#ifndef FA_ABI_LINEAR_H
#define FA_ABI_LINEAR_H

#include "abi/types.h"

/* Linear: rows of x, residual and out by their addresses, in one `type`; a weight with a row for each feature. */
typedef struct {
    fa_type type, weight_type, bias_type;
    ptrdiff_t in_features, item_rows; /* item_rows: of the largest item */
    ptrdiff_t x_stride, residual_stride, out_stride, weight_row_stride, weight_stride;
    const char *weight, *bias; /* bias (features,) side by side; or NULL */
    const float *scales;       /* of the weight's rows; or NULL */
    ptrdiff_t features;        /* outputs of a packed weight: rows without those of its gate */
    int packed, gated;         /* packed: weight_row_stride is that of panels, see linear/packed.h */
    int activation;
    int contiguous_x, contiguous_weight, contiguous_residual, contiguous_out; /* elements side by side and aligned */
} fa_linear;

/* The activations: ROW(NAME, name) for each, where FA_<NAME> is its number and `name` both the function of
 * linear/activation.h and what users call it. */
#define FA_EACH_ACTIVATION(ROW) ROW(GELU, gelu) ROW(GELU_TANH, gelu_tanh) ROW(RELU, relu) ROW(SILU, silu)

#define FA_ROW(NAME, name) FA_##NAME,
enum { FA_NO_ACTIVATION, FA_EACH_ACTIVATION(FA_ROW) FA_ACTIVATIONS };
#undef FA_ROW

#define FA_ROW(NAME, name) activation == FA_##NAME ? #name:
static inline const char *fa_activation_name(int activation) { return FA_EACH_ACTIVATION(FA_ROW) NULL; }
#undef FA_ROW

typedef struct {
    const char *const *x, *const *residual; /* residual may be NULL */
    char *const *out;
    ptrdiff_t rows, first_feature, features;
    int same_rows; /* as the item before, which has left them in this scratch memory as the kernel takes them */
} fa_linear_item;

typedef struct fa_linear_kernel {
    ptrdiff_t unit;       /* elements of a row that its product takes at a time, in as much memory as one real */
    ptrdiff_t most_rows;  /* of an item: at most FA_MOST_ROWS */
    ptrdiff_t least_rows; /* of an item, if it stays in the cache: so many make up for reading the weight once more */
    ptrdiff_t preferred_rows; /* so many are worth more than half of a cache */
    ptrdiff_t (*scratch)(const fa_linear *);
    void (*run)(const fa_linear *, const fa_linear_item *, void *scratch);
    const struct fa_linear_kernel *packed; /* for packed weights; it alone sets the fields below */
    ptrdiff_t panel;                       /* rows of a weight in a panel */
    ptrdiff_t padding;                     /* a panel has a multiple of this many units */
    ptrdiff_t run_units; /* 0, or: a panel ends with the sums of each run of this many of its units */
} fa_linear_kernel;

#endif
