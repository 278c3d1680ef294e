/* What the compiled half knows of the kernels: their arguments, and one table of function pointers for each target and
 * type.
 *
 * Kernels never thread, allocate, raise or see Python. Strides are in bytes, sizes in elements. `scratch` belongs to
 * the calling thread, is aligned to 64 bytes and at least as large as the operation's own *_scratch says. */
#ifndef FA_ABI_TABLE_H
#define FA_ABI_TABLE_H

#include "abi/attention.h"
#include "abi/linear.h"
#include "abi/rows.h"
#include "abi/types.h"

typedef struct {
    ptrdiff_t itemsize;      /* bytes of an element */
    ptrdiff_t lanes;         /* elements in a vector */
    ptrdiff_t tile_rows;     /* rows of the widest tile */
    ptrdiff_t most_rows;     /* rows that attention_tiled takes at a time */
    ptrdiff_t rowwise_up_to; /* up to this many rows a kv head attention_rowwise is the faster one */
    ptrdiff_t (*attention_scratch)(const fa_attention *);
    void (*attention_tiled)(const fa_attention *, const fa_attention_item *, void *scratch);
    void (*attention_rowwise)(const fa_attention *, const fa_attention_item *, void *scratch);
    void (*attention_merge)(const fa_attention *, const fa_attention_item *, ptrdiff_t parts);
    void (*attention_weights)(const fa_attention *, const fa_attention_item *, void *scratch);
    const fa_linear_kernel *linear;
    ptrdiff_t (*softmax_scratch)(const fa_softmax *);
    void (*softmax_rows)(const fa_softmax *, const char *x, const char *where, char *out, ptrdiff_t rows,
                         void *scratch);
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
    const fa_linear_kernel *linear_int8; /* for int8 weights, but beside float64 */
} fa_target;

/* Whether this machine and its operating system can run it. */
int fa_is_supported(const fa_target *target);

/* All targets of this build, best first. */
extern const fa_target *const fa_targets[];
extern const int fa_target_count;

/* Memory of the calling thread, aligned to 64 bytes; kept for its next call, freed when the thread ends. NULL: none
 * left. */
void *fa_scratch(size_t bytes);

#endif
