/* fastattn's operations for C, C++ and whatever else can call a C function: pointers, shapes and strides in, codes out.
 *
 *     #include <Python.h>
 *     #include <fastattn.h>              compile with -I$(python -c "import fastattn; print(fastattn.get_include())")
 *
 *     if (fastattn_import() < 0) return NULL;                    once, with the GIL: in the module's init function
 *     int code = fastattn_softmax_f32(x, out, rows, columns);    from then on, with or without the GIL, in any thread
 *     if (code) puts(fastattn_error_message(code));
 *
 * Nothing is linked: fastattn_import() gets a table of function pointers from the module fastattn.capi. Code without
 * Python.h can be given the table by code that has it (see FASTATTN_TABLE below).
 *
 * No function raises, uses Python or needs the GIL. Each returns FASTATTN_OK, 0, or an error code, and checks all its
 * arguments before it writes anything. What an operation computes is described at the Python function of its name, and
 * the results have the same bits.
 *
 * Lengths, counts and shapes are in elements. STRIDES ARE IN BYTES, as NumPy and Py_buffer have them. */
#ifndef FASTATTN_H
#define FASTATTN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It changes if something below changes its meaning; what is merely added is found by
 * `size`, in the table and in structs of options. */
#define FASTATTN_API_VERSION 1

/* --- arrays --- */

/* How elements are stored. */
enum {
    FASTATTN_F32 = 1,  /* float */
    FASTATTN_F64 = 2,  /* double */
    FASTATTN_F16 = 3,  /* IEEE binary16 */
    FASTATTN_BF16 = 4, /* bfloat16: the upper half of a float */
    FASTATTN_I8 = 5,   /* int8_t: weights of fastattn_linear only */
    FASTATTN_BOOL = 6  /* a byte, 0 or 1: masks only */
};

enum { FASTATTN_MOST_AXES = 8 };

/* An array. This struct does not change. */
typedef struct fastattn_array {
    void *data;               /* element [0, 0, ...], aligned to its size. Inputs are only read. NULL if it is empty */
    const ptrdiff_t *shape;   /* the length of each axis: 0 or more */
    const ptrdiff_t *strides; /* BYTES from an element to the next one along each axis: multiples of the element's size,
                                 negative and 0 (to repeat an input) as well. NULL: C order, side by side */
    int32_t ndim;             /* number of axes, up to FASTATTN_MOST_AXES */
    int32_t type;             /* FASTATTN_F32, ... */
} fastattn_array;

/* --- errors --- */

/* A code holds what is wrong, FASTATTN_ERROR_KIND(code), and with which argument. */
enum {
    FASTATTN_OK = 0,
    FASTATTN_ERROR_NULL = 1,    /* a pointer that is needed is NULL */
    FASTATTN_ERROR_VERSION = 2, /* `size` of a struct of options is not that of a known version */
    FASTATTN_ERROR_TYPE = 3,    /* an unknown type, or one that does not go with the others */
    FASTATTN_ERROR_SIZE = 4,    /* a length or count is negative, or too large for the address space */
    FASTATTN_ERROR_SHAPE = 5,   /* the number of axes or the lengths do not go with the others */
    FASTATTN_ERROR_STRIDE = 6,  /* the address or a stride is no multiple of the element's size, or not contiguous */
    FASTATTN_ERROR_VALUE = 7,   /* a number out of range */
    FASTATTN_ERROR_OVERLAP = 8, /* an output overlaps itself or an input that is still needed */
    FASTATTN_ERROR_MEMORY = 9   /* not enough memory */
};
#define FASTATTN_ERROR_KIND(code) ((code) & 255)

/* --- options --- */

/* `size` is the sizeof of a struct of options, and says its version. 0 is the default of all other fields:
 * fastattn_make_attention_options() and fastattn_make_linear_options(), below, return structs of defaults.
 *
 * Later versions may add fields at the end. Fields that a caller does not have yet count as 0; those that the library
 * does not have yet must be 0. */
typedef struct fastattn_attention_options {
    size_t size;
    int32_t num_threads;             /* maximum number of threads; 0: that of fastattn.set_num_threads */
    int32_t is_causal;               /* not 0: query i sees no key j > i + q_offset */
    const ptrdiff_t *window;         /* {left, right}: query i sees the keys i + q_offset - left <= j <= i + q_offset +
                                        right; a negative one is unbounded. NULL: no window */
    double scale;                    /* of the scores; 0: 1 / sqrt(head size) */
    double softcap;                  /* c: scores become c·tanh(score / c); 0: none */
    const fastattn_array *attn_mask; /* broadcast to (..., Hq, Sq, Sk): FASTATTN_BOOL, 1 = attend, or numbers that are
                                        added. NULL: none */
    const fastattn_array *lse;       /* output (..., Hq, Sq), log of the sum of exponentials: float (double if query
                                        is). NULL: not wanted */
    const int64_t *q_offset;         /* position of the first query: q_offset_count numbers, 1 for all sequences or one
                                        for each (in C order of the leading axes). NULL: keys - queries */
    ptrdiff_t q_offset_count;
    const int64_t *kv_lengths;       /* number of keys that are used, likewise. NULL: all of them */
    ptrdiff_t kv_lengths_count;
    const void *sinks;               /* (Hq,) float (double if query is), -inf: none. NULL: none at all */
    const void *alibi_slopes;        /* likewise, alibi_slopes_count numbers: Hq for all sequences, or for each */
    ptrdiff_t alibi_slopes_count;
    const fastattn_array *position_bias; /* (Hq, 2 * R + 1) of the type of sinks, in C order: [h][R + d] is added to
                                            the scores of head h for key j and query i where d = j - (i + q_offset), or
                                            -R or R where d is beyond; -inf excludes the key. NULL: none */
} fastattn_attention_options;

enum {
    FASTATTN_NO_ACTIVATION = 0,
    FASTATTN_GELU = 1,
    FASTATTN_GELU_TANH = 2,
    FASTATTN_RELU = 3,
    FASTATTN_SILU = 4
};

typedef struct fastattn_linear_options {
    size_t size;
    int32_t num_threads;            /* as above */
    int32_t activation;             /* FASTATTN_GELU, ... */
    const fastattn_array *bias;     /* (outputs,) contiguous, of double if x is; NULL: none */
    const fastattn_array *residual; /* of the shape and type of out, added last; may be out itself. NULL: none */
    const float *scales;            /* (outputs,) of the rows of an int8 weight; NULL if it is not int8 */
} fastattn_linear_options;

/* --- functions --- */

/* The table. Entries are only ever added, at its end.
 *
 * Functions of arrays: leading axes "...", any strides; num_threads as in the options.
 * An output may not overlap an input, except that softmax, log_softmax and the norms work in place if `out` is exactly
 * x. An output whose elements overlap is refused. Memory that merely interleaves counts as overlap.
 *
 * Functions of plain pointers, named _f32, _f64, _f16 and _bf16: all arrays have this type, lie in C order and do not
 * overlap (but out may be x in softmax and the norms). They use as many threads as fastattn.set_num_threads says. */
#define FASTATTN_PLAIN(suffix, T)                                                                                      \
    /* x, out (rows, columns) */                                                                                       \
    int (*softmax_##suffix)(const T *x, T *out, ptrdiff_t rows, ptrdiff_t columns);                                    \
    /* x, out (rows, columns); weight, bias (columns,), each may be NULL */                                            \
    int (*layer_norm_##suffix)(const T *x, const T *weight, const T *bias, T *out, ptrdiff_t rows, ptrdiff_t columns,  \
                               double eps);                                                                            \
    int (*rms_norm_##suffix)(const T *x, const T *weight, T *out, ptrdiff_t rows, ptrdiff_t columns, double eps);      \
    /* x (rows, inputs), weight (outputs, inputs), bias (outputs,) or NULL, out (rows, outputs) */                     \
    int (*linear_##suffix)(const T *x, const T *weight, const T *bias, T *out, ptrdiff_t rows, ptrdiff_t inputs,       \
                           ptrdiff_t outputs);                                                                         \
    /* query (batch, q_heads, queries, head_size), key (batch, kv_heads, keys, head_size),                             \
       value (batch, kv_heads, keys, value_size), out (batch, q_heads, queries, value_size);                           \
       scale 0: 1 / sqrt(head_size); is_causal: the last query meets the last key */                                   \
    int (*attention_##suffix)(const T *query, const T *key, const T *value, T *out, ptrdiff_t batch,                   \
                              ptrdiff_t q_heads, ptrdiff_t kv_heads, ptrdiff_t queries, ptrdiff_t keys,                \
                              ptrdiff_t head_size, ptrdiff_t value_size, double scale, int is_causal);

typedef struct fastattn_table {
    size_t size;     /* of the table that this library has */
    int32_t version; /* FASTATTN_API_VERSION of the library */
    int32_t unused;

    /* A sentence for a code, for example "key: its shape does not go with the others". Never NULL, never freed. */
    const char *(*error_message)(int code);

    /* query (..., Hq, Sq, D), key (..., Hkv, Sk, D), value (..., Hkv, Sk, Dv), out (..., Hq, Sq, Dv), from (S, D) on.
     * Leading axes broadcast; Hq is a multiple of Hkv. key and value may be narrower types than query; out has query's.
     * options may be NULL. */
    int (*attention)(const fastattn_array *query, const fastattn_array *key, const fastattn_array *value,
                     const fastattn_array *out, const fastattn_attention_options *options);

    /* Packed sequences: query (Tq, Hq, D), key (Tk, Hkv, D), value (Tk, Hkv, Dv), out (Tq, Hq, Dv). Sequence b has the
     * rows cu_seqlens[b] to cu_seqlens[b + 1], both (sequences + 1,) from 0 to the number of rows. No attn_mask; lse is
     * (Tq, Hq). */
    int (*varlen_attention)(const fastattn_array *query, const fastattn_array *key, const fastattn_array *value,
                            const fastattn_array *out, const int64_t *cu_seqlens_q, const int64_t *cu_seqlens_k,
                            ptrdiff_t sequences, const fastattn_attention_options *options);

    /* x, out of one shape and type. where: FASTATTN_BOOL, broadcast to x's shape, 0 = left out; NULL: none. axis: a
     * negative one counts from the end. */
    int (*softmax)(const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis,
                   int num_threads);
    int (*log_softmax)(const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis,
                       int num_threads);

    /* Over the last axis. x, out of one shape and type; weight, bias of the last axis' length, contiguous, and any type
     * but wider than x unless x is F16 or BF16 (then F32 is taken); each may be NULL. */
    int (*layer_norm)(const fastattn_array *x, const fastattn_array *weight, const fastattn_array *bias,
                      const fastattn_array *out, double eps, int num_threads);
    int (*rms_norm)(const fastattn_array *x, const fastattn_array *weight, const fastattn_array *out, double eps,
                    int num_threads);

    /* The same of x + residual, which is written to total; both of x's shape and type. */
    int (*add_layer_norm)(const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight,
                          const fastattn_array *bias, const fastattn_array *out, const fastattn_array *total,
                          double eps, int num_threads);
    int (*add_rms_norm)(const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight,
                        const fastattn_array *out, const fastattn_array *total, double eps, int num_threads);

    /* activation(x·weightᵀ + bias) + residual: x (..., inputs), weight (outputs, inputs) of a type that a norm's
     * weight may have, or int8 with scales; out (..., outputs) of x's type. options may be NULL. */
    int (*linear)(const fastattn_array *x, const fastattn_array *weight, const fastattn_array *out,
                  const fastattn_linear_options *options);

    FASTATTN_PLAIN(f32, float)
    FASTATTN_PLAIN(f64, double)
    FASTATTN_PLAIN(f16, uint16_t)
    FASTATTN_PLAIN(bf16, uint16_t)
} fastattn_table;

/* --- their arguments --- */

static inline fastattn_array fastattn_make_array(const void *data, int32_t type, int32_t ndim, const ptrdiff_t *shape,
                                                 const ptrdiff_t *strides) {
    fastattn_array array;
    array.data = (void *)data;
    array.shape = shape;
    array.strides = strides;
    array.ndim = ndim;
    array.type = type;
    return array;
}

static inline fastattn_attention_options fastattn_make_attention_options(void) {
    fastattn_attention_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    return options;
}

static inline fastattn_linear_options fastattn_make_linear_options(void) {
    fastattn_linear_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    return options;
}

/* --- the import, and the functions by their names --- */

#define FASTATTN_CAPSULE "fastattn.capi._C_API"

/* Where the table is. By default each C file has a pointer of its own, and calls fastattn_import() itself. Files that
 * share one, and code without Python.h, define FASTATTN_TABLE as the name of a `const fastattn_table *` before they
 * include this. */
#if !defined(FASTATTN_TABLE) && defined(Py_PYTHON_H)
static const fastattn_table *fastattn_table_of_this_file;
#define FASTATTN_TABLE fastattn_table_of_this_file
#endif

#ifdef Py_PYTHON_H
/* Import fastattn and get its table; with the GIL. 0, or -1 with an exception set. */
static inline int fastattn_import(void) {
    PyObject *module = PyImport_ImportModule("fastattn.capi");
    PyObject *capsule = module ? PyObject_GetAttrString(module, "_C_API") : NULL;
    const fastattn_table *table = NULL;
    if (capsule) table = (const fastattn_table *)PyCapsule_GetPointer(capsule, FASTATTN_CAPSULE);
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    if (!table) return -1;
    if (table->version != FASTATTN_API_VERSION || table->size < sizeof(fastattn_table)) {
        PyErr_Format(PyExc_ImportError,
                     "compiled for version %d of fastattn's C interface, with a table of %zu bytes; the fastattn "
                     "installed has version %d, with %zu bytes",
                     FASTATTN_API_VERSION, sizeof(fastattn_table), (int)table->version, table->size);
        return -1;
    }
    FASTATTN_TABLE = table;
    return 0;
}
#endif

#define fastattn_error_message (FASTATTN_TABLE->error_message)
#define fastattn_attention (FASTATTN_TABLE->attention)
#define fastattn_varlen_attention (FASTATTN_TABLE->varlen_attention)
#define fastattn_softmax (FASTATTN_TABLE->softmax)
#define fastattn_log_softmax (FASTATTN_TABLE->log_softmax)
#define fastattn_layer_norm (FASTATTN_TABLE->layer_norm)
#define fastattn_rms_norm (FASTATTN_TABLE->rms_norm)
#define fastattn_add_layer_norm (FASTATTN_TABLE->add_layer_norm)
#define fastattn_add_rms_norm (FASTATTN_TABLE->add_rms_norm)
#define fastattn_linear (FASTATTN_TABLE->linear)
#define fastattn_softmax_f32 (FASTATTN_TABLE->softmax_f32)
#define fastattn_layer_norm_f32 (FASTATTN_TABLE->layer_norm_f32)
#define fastattn_rms_norm_f32 (FASTATTN_TABLE->rms_norm_f32)
#define fastattn_linear_f32 (FASTATTN_TABLE->linear_f32)
#define fastattn_attention_f32 (FASTATTN_TABLE->attention_f32)
#define fastattn_softmax_f64 (FASTATTN_TABLE->softmax_f64)
#define fastattn_layer_norm_f64 (FASTATTN_TABLE->layer_norm_f64)
#define fastattn_rms_norm_f64 (FASTATTN_TABLE->rms_norm_f64)
#define fastattn_linear_f64 (FASTATTN_TABLE->linear_f64)
#define fastattn_attention_f64 (FASTATTN_TABLE->attention_f64)
#define fastattn_softmax_f16 (FASTATTN_TABLE->softmax_f16)
#define fastattn_layer_norm_f16 (FASTATTN_TABLE->layer_norm_f16)
#define fastattn_rms_norm_f16 (FASTATTN_TABLE->rms_norm_f16)
#define fastattn_linear_f16 (FASTATTN_TABLE->linear_f16)
#define fastattn_attention_f16 (FASTATTN_TABLE->attention_f16)
#define fastattn_softmax_bf16 (FASTATTN_TABLE->softmax_bf16)
#define fastattn_layer_norm_bf16 (FASTATTN_TABLE->layer_norm_bf16)
#define fastattn_rms_norm_bf16 (FASTATTN_TABLE->rms_norm_bf16)
#define fastattn_linear_bf16 (FASTATTN_TABLE->linear_bf16)
#define fastattn_attention_bf16 (FASTATTN_TABLE->attention_bf16)

#ifdef __cplusplus
}
#endif

#endif
