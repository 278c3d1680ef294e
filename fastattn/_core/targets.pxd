from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport int64_t


cdef extern from "abi/table.h" nogil:
    ctypedef enum fa_type:
        FA_F32, FA_F64, FA_BF16, FA_F16, FA_TYPES, FA_I8

    enum:
        FA_NO_MASK, FA_MASK_BOOL

    ptrdiff_t fa_size_of(fa_type type)
    const char *fa_type_name(fa_type type)

    ctypedef struct fa_rows:
        fa_type type
        ptrdiff_t row, element, page
        ptrdiff_t scale_row, scale_page

    ctypedef struct fa_attention:
        fa_type type
        ptrdiff_t group, keys, head_size, value_size
        ptrdiff_t query_head_stride, query_row_stride, query_stride
        fa_rows key, value
        ptrdiff_t page_rows
        ptrdiff_t out_head_stride, out_row_stride, out_stride, lse_head_stride, lse_row_stride
        ptrdiff_t mask_head_stride, mask_row_stride, mask_stride
        int mask_type
        double scale, softcap
        ptrdiff_t bias_reach

    ctypedef struct fa_attention_item:
        const char *query
        const char *key
        const char *value
        const char *mask
        const char *key_scale
        const char *value_scale
        const int64_t *pages
        char *out
        char *lse
        const void *sinks
        const void *slopes
        const void *position_bias
        ptrdiff_t q_offset, begin_offset, end_offset
        ptrdiff_t first_row, rows, key_begin, key_end
        int few_scores
        void *part_out
        void *part_max
        void *part_sum

    ctypedef struct fa_softmax:
        fa_type type
        ptrdiff_t length
        ptrdiff_t x_row_stride, x_stride, where_row_stride, where_stride, out_row_stride, out_stride
        int logarithm, nontemporal

    ctypedef struct fa_normalization:
        fa_type type
        ptrdiff_t length
        ptrdiff_t x_row_stride, x_stride, residual_row_stride, residual_stride
        ptrdiff_t out_row_stride, out_stride, total_row_stride, total_stride
        const void *weight
        const void *bias
        fa_type weight_type, bias_type
        double eps
        int centred, contiguous_x, contiguous_residual, contiguous_out, contiguous_total, nontemporal

    ctypedef struct fa_rotary:
        fa_type type, table_type
        ptrdiff_t length, pairs
        ptrdiff_t x_row_stride, x_stride, out_row_stride, out_stride
        ptrdiff_t cos_row_stride, cos_stride, sin_row_stride, sin_stride
        ptrdiff_t position
        int interleaved

    ctypedef struct fa_linear:
        fa_type type, weight_type, bias_type
        ptrdiff_t in_features, item_rows
        ptrdiff_t x_stride, residual_stride, out_stride, weight_row_stride, weight_stride
        const char *weight
        const char *bias
        const float *scales
        ptrdiff_t features
        int packed, gated
        int activation, contiguous_x, contiguous_weight, contiguous_residual, contiguous_out

    enum:
        FA_NO_ACTIVATION, FA_GELU, FA_GELU_TANH, FA_RELU, FA_SILU, FA_ACTIVATIONS

    const char *fa_activation_name(int activation)

    ctypedef struct fa_linear_item:
        const char *const *x
        const char *const *residual
        char *const *out
        ptrdiff_t rows, first_feature, features
        int same_rows

    ctypedef struct fa_linear_kernel:
        ptrdiff_t unit, most_rows, least_rows, preferred_rows
        ptrdiff_t (*scratch)(const fa_linear *) noexcept nogil
        void (*run)(const fa_linear *, const fa_linear_item *, void *) noexcept nogil
        const fa_linear_kernel *packed
        ptrdiff_t panel, padding, run_units

    ctypedef struct fa_cache_rows:
        ptrdiff_t size, pairs
        ptrdiff_t x_row_stride, x_stride, cos_row_stride, cos_stride, sin_row_stride, sin_stride
        fa_type x_type, stored, table_type
        int interleaved

    ctypedef struct fa_kernels:
        ptrdiff_t itemsize, lanes, tile_rows, most_rows, rowwise_up_to
        ptrdiff_t (*attention_scratch)(const fa_attention *) noexcept nogil
        void (*attention_tiled)(const fa_attention *, const fa_attention_item *, void *) noexcept nogil
        void (*attention_rowwise)(const fa_attention *, const fa_attention_item *, void *) noexcept nogil
        void (*attention_merge)(const fa_attention *, const fa_attention_item *, ptrdiff_t) noexcept nogil
        void (*attention_weights)(const fa_attention *, const fa_attention_item *, void *) noexcept nogil
        const fa_linear_kernel *linear
        ptrdiff_t (*softmax_scratch)(const fa_softmax *) noexcept nogil
        void (*softmax_rows)(const fa_softmax *, const char *, const char *, char *, ptrdiff_t, void *) noexcept nogil
        void (*softmax_columns)(const fa_softmax *, const char *, const char *, char *, ptrdiff_t,
                                void *) noexcept nogil
        ptrdiff_t (*normalization_scratch)(const fa_normalization *) noexcept nogil
        void (*normalize_rows)(const fa_normalization *, const char *, const char *, char *, char *, ptrdiff_t,
                               void *) noexcept nogil
        ptrdiff_t (*rotary_scratch)(const fa_rotary *) noexcept nogil
        void (*rotate_rows)(const fa_rotary *, const char *, const char *, const char *, const char *, char *,
                            ptrdiff_t, void *) noexcept nogil
        ptrdiff_t (*cache_scratch)(const fa_cache_rows *) noexcept nogil
        int (*store_rows)(const fa_cache_rows *, const char *, const char *, const char *, char *, float *, ptrdiff_t,
                          void *) noexcept nogil
        double (*probe_fma)(ptrdiff_t) noexcept nogil
        double (*probe_dot)(ptrdiff_t) noexcept nogil
        double (*probe_read)(const void *, ptrdiff_t) noexcept nogil
        void (*probe_copy)(void *, const void *, ptrdiff_t) noexcept nogil

    int FA_MOST_PARTS, FA_MOST_ROWWISE, FA_MOST_ROWS


cdef extern from "abi/panels.h" nogil:
    ctypedef struct fa_panels:
        ptrdiff_t rows, inputs, element, group, lanes, units, run_units
        int gated

    ctypedef struct fa_matrix:
        char *first
        ptrdiff_t row, element

    ptrdiff_t fa_panel_rows(const fa_panels *form)
    ptrdiff_t fa_panel_bytes(const fa_panels *form)

cdef const void *current_target() noexcept nogil
cdef const fa_kernels *kernels_of(fa_type type) noexcept nogil
cdef const fa_linear_kernel *linear_kernel(fa_type x, fa_type weight) noexcept nogil
cdef void move_panel(const fa_panels *form, ptrdiff_t panel, char *data, fa_matrix weight, fa_matrix gate,
                     bint back) noexcept nogil
cdef void *scratch(size_t size) noexcept nogil
cdef bint beyond_cache(ptrdiff_t size) noexcept nogil
