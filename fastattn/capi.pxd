"""fastattn's functions for Cython: `cimport` them, and call them without the GIL.

The comments of include/fastattn.h are their documentation. Compile with `fastattn.get_include()` among the include
directories.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint16_t


cdef extern from "fastattn.h" nogil:
    enum:
        FASTATTN_API_VERSION
        FASTATTN_F32, FASTATTN_F64, FASTATTN_F16, FASTATTN_BF16, FASTATTN_I8, FASTATTN_BOOL
        FASTATTN_MOST_AXES
        FASTATTN_OK
        FASTATTN_ERROR_NULL, FASTATTN_ERROR_VERSION, FASTATTN_ERROR_TYPE, FASTATTN_ERROR_SIZE, FASTATTN_ERROR_SHAPE
        FASTATTN_ERROR_STRIDE, FASTATTN_ERROR_VALUE, FASTATTN_ERROR_OVERLAP, FASTATTN_ERROR_MEMORY
        FASTATTN_NO_ACTIVATION, FASTATTN_GELU, FASTATTN_GELU_TANH, FASTATTN_RELU, FASTATTN_SILU

    int FASTATTN_ERROR_KIND(int code)

    ctypedef struct fastattn_array:
        void *data
        const Py_ssize_t *shape
        const Py_ssize_t *strides  # bytes
        int32_t ndim
        int32_t type

    ctypedef struct fastattn_attention_options:
        size_t size
        int32_t num_threads
        int32_t is_causal
        const Py_ssize_t *window
        double scale
        double softcap
        const fastattn_array *attn_mask
        const fastattn_array *lse
        const int64_t *q_offset
        Py_ssize_t q_offset_count
        const int64_t *kv_lengths
        Py_ssize_t kv_lengths_count
        const void *sinks
        const void *alibi_slopes
        Py_ssize_t alibi_slopes_count
        const fastattn_array *position_bias

    ctypedef struct fastattn_linear_options:
        size_t size
        int32_t num_threads
        int32_t activation
        const fastattn_array *bias
        const fastattn_array *residual
        const float *scales

    fastattn_array fastattn_make_array(
        const void *data, int32_t type, int32_t ndim, const Py_ssize_t *shape, const Py_ssize_t *strides
    )
    fastattn_attention_options fastattn_make_attention_options()
    fastattn_linear_options fastattn_make_linear_options()


cdef const char *error_message(int code) noexcept nogil

cdef int attention(
    const fastattn_array *query, const fastattn_array *key, const fastattn_array *value, const fastattn_array *out,
    const fastattn_attention_options *options,
) noexcept nogil
cdef int varlen_attention(
    const fastattn_array *query, const fastattn_array *key, const fastattn_array *value, const fastattn_array *out,
    const int64_t *cu_seqlens_q, const int64_t *cu_seqlens_k, Py_ssize_t sequences,
    const fastattn_attention_options *options,
) noexcept nogil
cdef int softmax(
    const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis, int num_threads
) noexcept nogil
cdef int log_softmax(
    const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis, int num_threads
) noexcept nogil
cdef int layer_norm(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *bias, const fastattn_array *out,
    double eps, int num_threads,
) noexcept nogil
cdef int rms_norm(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *out, double eps, int num_threads
) noexcept nogil
cdef int add_layer_norm(
    const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight, const fastattn_array *bias,
    const fastattn_array *out, const fastattn_array *total, double eps, int num_threads,
) noexcept nogil
cdef int add_rms_norm(
    const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight, const fastattn_array *out,
    const fastattn_array *total, double eps, int num_threads,
) noexcept nogil
cdef int linear(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *out,
    const fastattn_linear_options *options,
) noexcept nogil

cdef int softmax_f32(const float *x, float *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int layer_norm_f32(
    const float *x, const float *weight, const float *bias, float *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil
cdef int rms_norm_f32(
    const float *x, const float *weight, float *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil
cdef int linear_f32(
    const float *x, const float *weight, const float *bias, float *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil
cdef int attention_f32(
    const float *query, const float *key, const float *value, float *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil

cdef int softmax_f64(const double *x, double *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int layer_norm_f64(
    const double *x, const double *weight, const double *bias, double *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil
cdef int rms_norm_f64(
    const double *x, const double *weight, double *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil
cdef int linear_f64(
    const double *x, const double *weight, const double *bias, double *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil
cdef int attention_f64(
    const double *query, const double *key, const double *value, double *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil

cdef int softmax_f16(const uint16_t *x, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int layer_norm_f16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil
cdef int rms_norm_f16(
    const uint16_t *x, const uint16_t *weight, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil
cdef int linear_f16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil
cdef int attention_f16(
    const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil

cdef int softmax_bf16(const uint16_t *x, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int layer_norm_bf16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil
cdef int rms_norm_bf16(
    const uint16_t *x, const uint16_t *weight, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil
cdef int linear_bf16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil
cdef int attention_bf16(
    const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil
