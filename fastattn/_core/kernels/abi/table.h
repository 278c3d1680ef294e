/* What the compiled half knows of a kernel: its arguments, and one table of function pointers for each target and type.
 *
 * Kernels never thread, allocate, raise or see Python. Strides are in bytes, sizes in elements. `scratch` belongs to the
 * calling thread, is aligned to 64 bytes and at least as large as the operation's own *_scratch says. */
#ifndef FA_TABLE_H
#define FA_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "abi/types.h"

/* How the keys or the values of a kv head lie. Rows stand one behind the other or in pages; int8 rows have a scale each. */
typedef struct {
    fa_type type;
    ptrdiff_t row, element, page;   /* to the next row of a page, element, page */
    ptrdiff_t scale_row, scale_page;
} fa_rows;

/* Attention: what the items of one sequence share.
 *
 * A row is one query of one head. The rows of a kv head are numbered query by query, the heads of the group side by
 * side: row = query · group + head in group. So neighbouring rows stand at neighbouring positions, see nearly the same
 * keys, and one stream of keys serves the whole group. */
typedef struct {
    fa_type type; /* of query and result; the lse is in the kernel's own */
    ptrdiff_t group, keys, head_size, value_size;
    ptrdiff_t query_head, query_row, query_element;
    fa_rows key, value;
    ptrdiff_t page_rows; /* rows of a page, where the items have pages */
    ptrdiff_t out_head, out_row, out_element, lse_head, lse_row;
    ptrdiff_t mask_head, mask_row, mask_key;
    int mask_type;         /* an fa_type, FA_MASK_BOOL or FA_NO_MASK */
    double scale, softcap; /* softcap 0: none */
} fa_attention;

enum { FA_NO_MASK = -1, FA_MASK_BOOL = -2 };

/* Rows [first_row, first_row + rows) of one kv head against the keys [key_begin, key_end).
 * Where part_sum is given the result is one part of several, left normalised in part_out (rows, value_size), with the
 * maximum and the sum of its weights (rows,) for attention_merge. */
typedef struct {
    const char *query, *key, *value, *mask; /* the kv head's first row, in pages that of page 0 */
    const char *key_scale, *value_scale;    /* likewise */
    const int64_t *pages;                   /* key j is row j % page_rows of page pages[j / page_rows]; or NULL */
    char *out, *lse;                        /* likewise; lse may be NULL */
    const void *sinks, *slopes;             /* of the group's heads, in the kernel's type; or NULL */
    ptrdiff_t q_offset;                     /* query i stands at position i + q_offset: any number, for ALiBi alone */
    ptrdiff_t begin_offset, end_offset;     /* and sees the keys i + begin_offset <= j < i + end_offset: saturated */
    ptrdiff_t first_row, rows, key_begin, key_end;
    void *part_out, *part_max, *part_sum;
} fa_attention_item;

enum { FA_MOST_PARTS = 64, FA_FEW_MOST = 16, FA_MOST_ROWS = 512 };

/* The row operations. Arrays of rows, results included, are all stored in the same `type`. */
typedef struct {
    fa_type type;
    ptrdiff_t length;
    ptrdiff_t x_row, x_element, where_row, where_element, out_row, out_element;
    int logarithm; /* log_softmax */
    int streaming; /* use non-temporal stores */
} fa_softmax;

typedef struct {
    fa_type type;
    ptrdiff_t length;
    ptrdiff_t x_row, x_element, residual_row, residual_element, out_row, out_element, total_row, total_element;
    const void *weight, *bias; /* (length,) side by side; or NULL */
    fa_type weight_type, bias_type;
    double eps;
    int centred;                                            /* layer_norm: the mean is subtracted */
    int plain_x, plain_residual, plain_out, plain_total;    /* elements side by side and aligned */
    int streaming;
} fa_normalization;

/* Rotary embedding: row i of x turns by the angles of row positions[i] of the tables or, without positions, of row i. */
typedef struct {
    fa_type type, table_type;
    ptrdiff_t length, pairs; /* components of a row; how many pairs of them turn */
    ptrdiff_t x_row, x_element, out_row, out_element;
    ptrdiff_t cos_row, cos_element, sin_row, sin_element;
    ptrdiff_t position; /* bytes from a row's position, an intptr_t, to the next row's */
    int interleaved;    /* pairs are neighbours; otherwise their second halves follow all the first ones */
} fa_rotary;

/* Linear: rows of x, residual and out by their addresses, in one `type`; a weight with a row for each feature. */
typedef struct {
    fa_type type, weight_type, bias_type;
    ptrdiff_t in_features, item_rows; /* item_rows: of the largest item */
    ptrdiff_t x_element, residual_element, out_element, weight_row, weight_element;
    const char *weight, *bias; /* bias (features,) side by side; or NULL */
    const float *scales;       /* of the weight's rows; or NULL */
    int activation;
    int plain_x, plain_weight, plain_residual, plain_out; /* elements side by side and aligned */
} fa_linear;

enum { FA_NO_ACTIVATION, FA_GELU, FA_GELU_TANH, FA_RELU, FA_SILU };

typedef struct {
    const char *const *x, *const *residual; /* residual may be NULL */
    char *const *out;
    ptrdiff_t rows, first_feature, features;
    int same_rows; /* as the item before, which has left them in this scratch memory as the kernel takes them */
} fa_linear_item;

typedef struct {
    ptrdiff_t unit;       /* elements of a row that its product takes at a time, in as much memory as one real */
    ptrdiff_t most_rows;  /* of an item: at most FA_MOST_ROWS */
    ptrdiff_t least_rows; /* of an item, if it stays in the cache: so many make up for reading the weight once more */
    ptrdiff_t dear_rows;  /* so many are worth more than half of a cache */
    ptrdiff_t (*scratch)(const fa_linear *);
    void (*run)(const fa_linear *, const fa_linear_item *, void *scratch);
} fa_linear_kernel;

/* Rows of new keys or values on their way into a cache, where they lie side by side. */
typedef struct {
    ptrdiff_t size, pairs; /* components of a row; how many pairs of them turn by a row of cos and sin */
    ptrdiff_t x_row, x_element, cos_row, cos_element, sin_row, sin_element;
    fa_type x_type, stored, table_type;
    int interleaved;
} fa_cache_rows;

typedef struct {
    ptrdiff_t itemsize;       /* bytes of an element */
    ptrdiff_t lanes;          /* elements in a vector */
    ptrdiff_t tile_rows;      /* rows of the widest tile */
    ptrdiff_t most_rows;      /* rows that attention_many takes at a time */
    ptrdiff_t few_rows;       /* up to this many rows a kv head attention_few is the faster one */
    ptrdiff_t (*attention_scratch)(const fa_attention *);
    void (*attention_many)(const fa_attention *, const fa_attention_item *, void *scratch);
    void (*attention_few)(const fa_attention *, const fa_attention_item *, void *scratch);
    void (*attention_merge)(const fa_attention *, const fa_attention_item *, ptrdiff_t parts);
    void (*attention_weights)(const fa_attention *, const fa_attention_item *, void *scratch);
    const fa_linear_kernel *linear, *linear_int8; /* the latter for int8 weights */
    ptrdiff_t (*softmax_scratch)(const fa_softmax *);
    void (*softmax_rows)(const fa_softmax *, const char *x, const char *where, char *out, ptrdiff_t rows, void *scratch);
    void (*softmax_columns)(const fa_softmax *, const char *x, const char *where, char *out, ptrdiff_t rows,
                            void *scratch);
    ptrdiff_t (*normalization_scratch)(const fa_normalization *);
    void (*normalize_rows)(const fa_normalization *, const char *x, const char *residual, char *out, char *total,
                           ptrdiff_t rows, void *scratch);
    ptrdiff_t (*rotary_scratch)(const fa_rotary *);
    void (*rotate_rows)(const fa_rotary *, const char *x, const char *cos, const char *sin, const char *positions,
                        char *out, ptrdiff_t rows, void *scratch);
    ptrdiff_t (*cache_scratch)(const fa_cache_rows *);
    int (*store_rows)(const fa_cache_rows *, const char *x, const char *cos, const char *sin, char *out, float *scales,
                      ptrdiff_t rows, void *scratch);
    double (*probe_fma)(ptrdiff_t rounds);
    double (*probe_dot)(ptrdiff_t rounds); /* NULL where the target has no dot product of bfloat16 */
    double (*probe_read)(const void *memory, ptrdiff_t bytes);
    void (*probe_copy)(void *to, const void *from, ptrdiff_t bytes);
} fa_kernels;

typedef struct {
    const char *name;
    unsigned needs; /* of the machine: FA_CPU_* of targets/dispatch.h */
    int emulated;   /* some of its instructions are: see simd/emulation.h */
    const fa_kernels *kernels[FA_TYPES];
} fa_target;

/* Whether this machine and its operating system can run it. */
int fa_is_supported(const fa_target *target);

/* All targets of this build, best first. */
extern const fa_target *const fa_targets[];
extern const int fa_target_count;

/* Memory of the calling thread, aligned to 64 bytes; kept for its next call, freed when the thread ends. NULL: none left. */
void *fa_scratch(size_t bytes);

#endif
