"""The table of function pointers that callers in C get, fastattn.h's `fastattn_table`; capi.pyx fills it."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint16_t

from fastattn.capi cimport fastattn_array, fastattn_attention_options, fastattn_linear_options


cdef extern from "fastattn.h":
    const char *FASTATTN_CAPSULE

    ctypedef struct fastattn_table:
        size_t size
        int32_t version
        const char *(*error_message)(int) noexcept nogil
        int (*attention)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, const fastattn_array *,
            const fastattn_attention_options *,
        ) noexcept nogil
        int (*varlen_attention)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, const fastattn_array *,
            const int64_t *, const int64_t *, Py_ssize_t, const fastattn_attention_options *,
        ) noexcept nogil
        int (*softmax)(const fastattn_array *, const fastattn_array *, const fastattn_array *, int, int) noexcept nogil
        int (*log_softmax)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, int, int
        ) noexcept nogil
        int (*layer_norm)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, const fastattn_array *, double, int
        ) noexcept nogil
        int (*rms_norm)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, double, int
        ) noexcept nogil
        int (*add_layer_norm)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, const fastattn_array *,
            const fastattn_array *, const fastattn_array *, double, int,
        ) noexcept nogil
        int (*add_rms_norm)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, const fastattn_array *,
            const fastattn_array *, double, int,
        ) noexcept nogil
        int (*linear)(
            const fastattn_array *, const fastattn_array *, const fastattn_array *, const fastattn_linear_options *
        ) noexcept nogil
        int (*softmax_f32)(const float *, float *, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*layer_norm_f32)(
            const float *, const float *, const float *, float *, Py_ssize_t, Py_ssize_t, double
        ) noexcept nogil
        int (*rms_norm_f32)(const float *, const float *, float *, Py_ssize_t, Py_ssize_t, double) noexcept nogil
        int (*linear_f32)(
            const float *, const float *, const float *, float *, Py_ssize_t, Py_ssize_t, Py_ssize_t
        ) noexcept nogil
        int (*attention_f32)(
            const float *, const float *, const float *, float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
            Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int,
        ) noexcept nogil
        int (*softmax_f64)(const double *, double *, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*layer_norm_f64)(
            const double *, const double *, const double *, double *, Py_ssize_t, Py_ssize_t, double
        ) noexcept nogil
        int (*rms_norm_f64)(const double *, const double *, double *, Py_ssize_t, Py_ssize_t, double) noexcept nogil
        int (*linear_f64)(
            const double *, const double *, const double *, double *, Py_ssize_t, Py_ssize_t, Py_ssize_t
        ) noexcept nogil
        int (*attention_f64)(
            const double *, const double *, const double *, double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
            Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int,
        ) noexcept nogil
        int (*softmax_f16)(const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*layer_norm_f16)(
            const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, double
        ) noexcept nogil
        int (*rms_norm_f16)(
            const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, double
        ) noexcept nogil
        int (*linear_f16)(
            const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t
        ) noexcept nogil
        int (*attention_f16)(
            const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
            Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int,
        ) noexcept nogil
        int (*softmax_bf16)(const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*layer_norm_bf16)(
            const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, double
        ) noexcept nogil
        int (*rms_norm_bf16)(
            const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, double
        ) noexcept nogil
        int (*linear_bf16)(
            const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t
        ) noexcept nogil
        int (*attention_bf16)(
            const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
            Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int,
        ) noexcept nogil
