"""fastattn for compiled callers: pointers in, error codes out, without Python and the GIL.

include/fastattn.h documents the functions. Cython modules `cimport` them from here (capi.pxd), Numba and ctypes find
them by their names in `__pyx_capi__`, and C takes the table from the capsule `_C_API`. They check their arguments
(_core/checks.pxd) and call what the functions of NumPy arrays call, so the results have the same bits.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport NAN, isfinite
from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport int32_t, int64_t, uint16_t
from libc.string cimport memcpy

from fastattn._core cimport arrays, strides
from fastattn._core.arrays cimport Array, length
from fastattn._core.checks cimport (
    ACTIVATION, ALIBI_SLOPES, ARGUMENTS, ATTN_MASK, AXIS, BIAS, CU_SEQLENS_K, CU_SEQLENS_Q, EPS, KEY, KV_LENGTHS, LSE,
    OUT, POSITION_BIAS, Q_OFFSET, QUERY, RESIDUAL, SCALE, SCALES, SINKS, SOFTCAP, TOTAL, VALUE, WEIGHT, WHERE, Argument,
    Memory, X, are_finite, broadcast, error, is_apart, is_apart_or_same, is_in_c_order, is_like, is_not_negative,
    is_not_wider, is_output, is_parameter, is_real, is_vector, limit_threads, read, read_optional, read_options,
    summed_in_double,
)
from fastattn._core.linear cimport Linear, run_linear
from fastattn._core.normalization cimport Normalization, run_normalization
from fastattn._core.sequences cimport Attention, Numbers, cut_packed, cut_padded, run_attention
from fastattn._core.softmax cimport Softmax, run_softmax
from fastattn._core.table cimport FASTATTN_CAPSULE, fastattn_table
from fastattn._core.targets cimport (
    FA_F32, FA_F64, FA_GELU, FA_GELU_TANH, FA_I8, FA_MASK_BOOL, FA_NO_ACTIVATION, FA_RELU, FA_SILU, fa_type,
)

# The sizes that structs of options began with: a caller's are not smaller.
cdef extern from *:
    """
    #define ATTENTION_OPTIONS_1 (offsetof(fastattn_attention_options, alibi_slopes_count) + sizeof(ptrdiff_t))
    #define LINEAR_OPTIONS_1 (offsetof(fastattn_linear_options, scales) + sizeof(float *))
    """
    const size_t ATTENTION_OPTIONS_1
    const size_t LINEAR_OPTIONS_1


# --- attention ---

cdef int read_attention(
    Attention *at, Memory *memory, const fastattn_array *query, const fastattn_array *key, const fastattn_array *value,
    const fastattn_array *out, const fastattn_attention_options *options,
) noexcept nogil:
    """Take over the arrays after checking their types."""
    at.key_scales.data = at.value_scales.data = NULL
    at.begin_q = at.begin_k = at.block_tables = at.first_keys = at.ends = NULL
    at.queries, at.keys = 0, 0
    return (
        read(&at.query, query, QUERY, memory) or is_real(&at.query, QUERY)
        or read(&at.key, key, KEY, memory) or is_not_wider(&at.key, KEY, &at.query)
        or read(&at.value, value, VALUE, memory) or is_not_wider(&at.value, VALUE, &at.query)
        or read(&at.out, out, OUT, memory)
        or read_optional(&at.lse, options.lse, LSE, memory)
        or read_optional(&at.mask, options.attn_mask, ATTN_MASK, memory)
        or read_position_bias(at, options.position_bias, memory)
    )


cdef int read_position_bias(Attention *at, const fastattn_array *given, Memory *memory) noexcept nogil:
    cdef Array bias
    cdef fa_type sums = FA_F64 if summed_in_double(&at.query) else FA_F32
    cdef int code = read_optional(&bias, given, POSITION_BIAS, memory)
    at.position_bias, at.bias_width = bias.data, 0
    if code or bias.data == NULL:
        return code
    if bias.type != sums:
        return error(FASTATTN_ERROR_TYPE, POSITION_BIAS)
    if bias.ndim != 2 or bias.shape[0] != length(&at.query, at.heads) or bias.shape[1] % 2 == 0:
        return error(FASTATTN_ERROR_SHAPE, POSITION_BIAS)
    at.bias_width = bias.shape[1]
    return (
        is_in_c_order(&bias, POSITION_BIAS) or is_apart(&at.out, OUT, &bias) or is_apart(&at.lse, LSE, &bias)
    )


cdef int check_sizes(const Attention *at) noexcept nogil:
    """That heads, keys and head sizes of query, key and value go together."""
    cdef const Array *query = &at.query
    cdef const Array *key = &at.key
    cdef const Array *value = &at.value
    cdef ptrdiff_t heads = length(query, at.heads), kv_heads = length(key, at.heads)
    if length(query, 1) == 0 or (heads % kv_heads if kv_heads else heads):
        return error(FASTATTN_ERROR_SHAPE, QUERY)
    if length(key, 1) != length(query, 1):
        return error(FASTATTN_ERROR_SHAPE, KEY)
    if length(value, at.tokens) != length(key, at.tokens) or length(value, at.heads) != kv_heads:
        return error(FASTATTN_ERROR_SHAPE, VALUE)
    return 0


cdef int check_outputs(const Attention *at, int ndim, const ptrdiff_t *shape) noexcept nogil:
    """That out has this shape and lse the same without the last axis."""
    cdef Array model
    cdef int code
    model.type, model.ndim, model.shape = at.query.type, ndim, shape
    code = is_like(&at.out, OUT, &model)
    model.type, model.ndim = FA_F64 if summed_in_double(&at.query) else FA_F32, ndim - 1
    return (
        code or is_like(&at.lse, LSE, &model) or is_output(&at.out, OUT) or is_output(&at.lse, LSE)
        or is_apart(&at.out, OUT, &at.query) or is_apart(&at.out, OUT, &at.key) or is_apart(&at.out, OUT, &at.value)
        or is_apart(&at.out, OUT, &at.mask) or is_apart(&at.lse, LSE, &at.query) or is_apart(&at.lse, LSE, &at.key)
        or is_apart(&at.lse, LSE, &at.value) or is_apart(&at.lse, LSE, &at.mask) or is_apart(&at.lse, LSE, &at.out)
    )


cdef int check_mask(const Attention *at, int ndim, const ptrdiff_t *shape) noexcept nogil:
    """That the mask broadcasts to the scores, of out's shape but with keys along the last axis."""
    cdef int i
    cdef ptrdiff_t needed
    if at.mask.data == NULL:
        return 0
    if at.mask.ndim > ndim:
        return error(FASTATTN_ERROR_SHAPE, ATTN_MASK)
    for i in range(1, at.mask.ndim + 1):
        needed = at.keys if i == 1 else shape[ndim - i]
        if length(&at.mask, i) not in (1, needed):
            return error(FASTATTN_ERROR_SHAPE, ATTN_MASK)
    return 0 if at.mask.type == FA_MASK_BOOL else is_parameter(&at.mask, ATTN_MASK, &at.query)


cdef int read_numbers(
    Numbers *to, const int64_t *given, ptrdiff_t count, ptrdiff_t sequences, Argument name
) noexcept nogil:
    """One for all sequences, or one for each."""
    to.first, to.step = given, 0 if count == 1 else 1
    if given == NULL or count == 1 or count == sequences:
        return 0
    return error(FASTATTN_ERROR_SIZE if count < 0 else FASTATTN_ERROR_SHAPE, name)


cdef int check_lengths(const Attention *at) noexcept nogil:
    cdef ptrdiff_t n, keys = at.keys
    if at.kv_lengths.first == NULL:
        return 0
    for n in range(at.count):
        if at.begin_k != NULL:
            keys = at.begin_k[n + 1] - at.begin_k[n]
        if not 0 <= at.kv_lengths.first[n * at.kv_lengths.step] <= keys:
            return error(FASTATTN_ERROR_VALUE, KV_LENGTHS)
    return 0


cdef void narrow(ptrdiff_t *bound, ptrdiff_t reach) noexcept nogil:
    """Lower a bound of the window; negative numbers are none."""
    if reach >= 0 and (bound[0] < 0 or reach < bound[0]):
        bound[0] = reach


cdef int lower_options(Attention *at, const fastattn_attention_options *options) noexcept nogil:
    """Take over all options but arrays."""
    cdef ptrdiff_t heads = length(&at.query, at.heads)
    cdef bint wide = summed_in_double(&at.query)
    at.left, at.right = -1, 0 if options.is_causal else -1
    if options.window != NULL:
        narrow(&at.left, options.window[0])
        narrow(&at.right, options.window[1])
    at.scale, at.softcap = options.scale if options.scale else NAN, options.softcap
    if not isfinite(options.scale):
        return error(FASTATTN_ERROR_VALUE, SCALE)
    at.sinks, at.slopes = <const char *>options.sinks, <const char *>options.alibi_slopes
    at.slopes_step = 0 if options.alibi_slopes_count == heads else heads * (8 if wide else 4)
    if at.slopes != NULL and options.alibi_slopes_count not in (heads, heads * at.count):
        return error(FASTATTN_ERROR_SHAPE, ALIBI_SLOPES)
    if at.slopes == NULL:
        at.slopes_step = 0
    return (
        limit_threads(&at.num_threads, options.num_threads) or is_not_negative(options.softcap, SOFTCAP)
        or (0 if at.sinks == NULL else are_finite(at.sinks, SINKS, heads, wide, True))
        or (0 if at.slopes == NULL else are_finite(at.slopes, ALIBI_SLOPES, options.alibi_slopes_count, wide, False))
        or read_numbers(&at.q_offset, options.q_offset, options.q_offset_count, at.count, Q_OFFSET)
        or read_numbers(&at.kv_lengths, options.kv_lengths, options.kv_lengths_count, at.count, KV_LENGTHS)
        or check_lengths(at)
    )


cdef int finish_attention(Attention *at) noexcept nogil:
    if arrays.size(&at.out) == 0 and (at.lse.data == NULL or arrays.size(&at.lse) == 0):
        return FASTATTN_OK
    return FASTATTN_OK if run_attention(at) else FASTATTN_ERROR_MEMORY


cdef int spread(const Array *x, Argument name, ptrdiff_t *shape, int ndim) noexcept nogil:
    """Broadcast the leading axes of one of the arrays with the others'."""
    cdef ptrdiff_t own
    cdef int i
    for i in range(ndim - 3):
        own = length(x, ndim - i)
        if shape[i] == 1:
            shape[i] = own
        elif own != 1 and own != shape[i]:
            return error(FASTATTN_ERROR_SHAPE, name)
    return 0


cdef int check_padded(Attention *at, ptrdiff_t *shape) noexcept nogil:
    """Check the shapes of query, key and value, and write the result's; the number of its axes is that of the largest.
    """
    cdef const Array *query = &at.query
    cdef int ndim = max(query.ndim, at.key.ndim, at.value.ndim), code, i
    if query.ndim < 2:
        return error(FASTATTN_ERROR_SHAPE, QUERY)
    if at.key.ndim < 2:
        return error(FASTATTN_ERROR_SHAPE, KEY)
    if at.value.ndim < 2:
        return error(FASTATTN_ERROR_SHAPE, VALUE)
    for i in range(ndim):
        shape[i] = 1
    code = check_sizes(at) or spread(query, QUERY, shape, ndim)
    code = code or spread(&at.key, KEY, shape, ndim) or spread(&at.value, VALUE, shape, ndim)
    if ndim > 2:
        shape[ndim - 3] = length(query, 3)
    shape[ndim - 2], shape[ndim - 1] = length(query, 2), length(&at.value, 1)
    return code


cdef int attention(
    const fastattn_array *query, const fastattn_array *key, const fastattn_array *value, const fastattn_array *out,
    const fastattn_attention_options *options,
) noexcept nogil:
    cdef fastattn_attention_options known
    cdef Attention at
    cdef Memory memory
    cdef ptrdiff_t[FASTATTN_MOST_AXES] shape
    cdef int code, ndim, i
    memory.used = 0
    at.cut, at.heads, at.tokens = cut_padded, 3, 2
    code = read_options(&known, sizeof(known), ATTENTION_OPTIONS_1, options)
    code = code or read_attention(&at, &memory, query, key, value, out, &known) or check_padded(&at, shape)
    if code:
        return code
    ndim = max(at.query.ndim, at.key.ndim, at.value.ndim)
    at.batch.count = max(ndim - 3, 0)
    for i in range(at.batch.count):
        at.batch.length[i] = shape[i]
    at.count, at.queries, at.keys = strides.total(&at.batch), length(&at.query, 2), length(&at.key, 2)
    code = check_mask(&at, ndim, shape) or check_outputs(&at, ndim, shape) or lower_options(&at, &known)
    return code or finish_attention(&at)


cdef int check_boundaries(
    const int64_t *begin, ptrdiff_t sequences, Argument name, const Array *rows
) noexcept nogil:
    """Cumulative lengths of packed sequences."""
    cdef ptrdiff_t n
    if begin == NULL:
        return error(FASTATTN_ERROR_NULL, name)
    if sequences < 0:
        return error(FASTATTN_ERROR_SIZE, name)
    if begin[0] != 0 or begin[sequences] != rows.shape[0]:
        return error(FASTATTN_ERROR_VALUE, name)
    for n in range(sequences):
        if begin[n + 1] < begin[n]:
            return error(FASTATTN_ERROR_VALUE, name)
    return 0


cdef int varlen_attention(
    const fastattn_array *query, const fastattn_array *key, const fastattn_array *value, const fastattn_array *out,
    const int64_t *cu_seqlens_q, const int64_t *cu_seqlens_k, Py_ssize_t sequences,
    const fastattn_attention_options *options,
) noexcept nogil:
    cdef fastattn_attention_options known
    cdef Attention at
    cdef Memory memory
    cdef ptrdiff_t[3] shape
    cdef int code
    memory.used = 0
    at.cut, at.heads, at.tokens = cut_packed, 2, 3
    code = read_options(&known, sizeof(known), ATTENTION_OPTIONS_1, options)
    code = code or read_attention(&at, &memory, query, key, value, out, &known)
    if code:
        return code
    if at.query.ndim != 3:
        return error(FASTATTN_ERROR_SHAPE, QUERY)
    if at.key.ndim != 3:
        return error(FASTATTN_ERROR_SHAPE, KEY)
    if at.value.ndim != 3:
        return error(FASTATTN_ERROR_SHAPE, VALUE)
    if at.mask.data != NULL:
        return error(FASTATTN_ERROR_VALUE, ATTN_MASK)
    code = check_sizes(&at) or check_boundaries(cu_seqlens_q, sequences, CU_SEQLENS_Q, &at.query)
    code = code or check_boundaries(cu_seqlens_k, sequences, CU_SEQLENS_K, &at.key)
    if code:
        return code
    shape[0], shape[1], shape[2] = at.query.shape[0], at.query.shape[1], at.value.shape[2]
    at.batch.count = 0
    at.count, at.queries, at.keys = sequences, shape[0], at.key.shape[0]
    at.begin_q, at.begin_k = cu_seqlens_q, cu_seqlens_k
    return check_outputs(&at, 3, shape) or lower_options(&at, &known) or finish_attention(&at)


# --- softmax ---

cdef int any_softmax(
    const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis, bint logarithm,
    int num_threads,
) noexcept nogil:
    cdef Softmax call
    cdef Memory memory
    memory.used = 0
    cdef int code = (
        read(&call.x, x, X, &memory) or is_real(&call.x, X)
        or read_optional(&call.where, where, WHERE, &memory)
        or read(&call.out, out, OUT, &memory) or is_like(&call.out, OUT, &call.x) or is_output(&call.out, OUT)
        or is_apart_or_same(&call.out, OUT, &call.x) or is_apart(&call.out, OUT, &call.where)
        or limit_threads(&call.num_threads, num_threads)
    )
    if code:
        return code
    if call.x.ndim == 0:
        return error(FASTATTN_ERROR_SHAPE, X)
    if call.where.data != NULL and call.where.type != FA_MASK_BOOL:
        return error(FASTATTN_ERROR_TYPE, WHERE)
    if not -call.x.ndim <= axis < call.x.ndim:
        return error(FASTATTN_ERROR_VALUE, AXIS)
    code = broadcast(&call.where, WHERE, &call.x, &memory)
    if code:
        return code
    call.axis, call.logarithm = axis + call.x.ndim if axis < 0 else axis, logarithm
    return FASTATTN_OK if run_softmax(&call) else FASTATTN_ERROR_MEMORY


cdef int softmax(
    const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis, int num_threads
) noexcept nogil:
    return any_softmax(x, where, out, axis, False, num_threads)


cdef int log_softmax(
    const fastattn_array *x, const fastattn_array *where, const fastattn_array *out, int axis, int num_threads
) noexcept nogil:
    return any_softmax(x, where, out, axis, True, num_threads)


# --- norms ---

cdef int check_normalization(Normalization *call) noexcept nogil:
    """The checks that follow when all arrays are read."""
    cdef const Array *x = &call.x
    if x.ndim == 0 or length(x, 1) == 0:
        return error(FASTATTN_ERROR_SHAPE, X)
    return (
        is_real(x, X) or is_like(&call.residual, RESIDUAL, x)
        or is_parameter(&call.weight, WEIGHT, x) or is_vector(&call.weight, WEIGHT, length(x, 1))
        or is_parameter(&call.bias, BIAS, x) or is_vector(&call.bias, BIAS, length(x, 1))
        or check_normalized(call, &call.out, OUT) or check_normalized(call, &call.total, TOTAL)
        or is_apart(&call.total, TOTAL, &call.out) or is_not_negative(call.eps, EPS)
    )


cdef int check_normalized(const Normalization *call, const Array *out, Argument name) noexcept nogil:
    """An output, which may be missing."""
    return (
        is_like(out, name, &call.x) or is_output(out, name)
        or is_apart_or_same(out, name, &call.x) or is_apart_or_same(out, name, &call.residual)
        or is_apart(out, name, &call.weight) or is_apart(out, name, &call.bias)
    )


cdef int normalize(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *bias, const fastattn_array *out,
    double eps, bint centred, int num_threads,
) noexcept nogil:
    cdef Normalization call
    cdef Memory memory
    memory.used = 0
    call.eps, call.centred = eps, centred
    call.residual.data = call.total.data = NULL
    cdef int code = (
        read(&call.x, x, X, &memory) or read_optional(&call.weight, weight, WEIGHT, &memory)
        or read_optional(&call.bias, bias, BIAS, &memory) or read(&call.out, out, OUT, &memory)
        or limit_threads(&call.num_threads, num_threads) or check_normalization(&call)
    )
    if code:
        return code
    return FASTATTN_OK if run_normalization(&call) else FASTATTN_ERROR_MEMORY


cdef int add_normalize(
    const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight, const fastattn_array *bias,
    const fastattn_array *out, const fastattn_array *total, double eps, bint centred, int num_threads,
) noexcept nogil:
    cdef Normalization call
    cdef Memory memory
    memory.used = 0
    call.eps, call.centred = eps, centred
    cdef int code = (
        read(&call.x, x, X, &memory) or read(&call.residual, residual, RESIDUAL, &memory)
        or read_optional(&call.weight, weight, WEIGHT, &memory) or read_optional(&call.bias, bias, BIAS, &memory)
        or read(&call.out, out, OUT, &memory) or read(&call.total, total, TOTAL, &memory)
        or limit_threads(&call.num_threads, num_threads) or check_normalization(&call)
    )
    if code:
        return code
    return FASTATTN_OK if run_normalization(&call) else FASTATTN_ERROR_MEMORY


cdef int layer_norm(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *bias, const fastattn_array *out,
    double eps, int num_threads,
) noexcept nogil:
    return normalize(x, weight, bias, out, eps, True, num_threads)


cdef int rms_norm(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *out, double eps, int num_threads
) noexcept nogil:
    return normalize(x, weight, NULL, out, eps, False, num_threads)


cdef int add_layer_norm(
    const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight, const fastattn_array *bias,
    const fastattn_array *out, const fastattn_array *total, double eps, int num_threads,
) noexcept nogil:
    return add_normalize(x, residual, weight, bias, out, total, eps, True, num_threads)


cdef int add_rms_norm(
    const fastattn_array *x, const fastattn_array *residual, const fastattn_array *weight, const fastattn_array *out,
    const fastattn_array *total, double eps, int num_threads,
) noexcept nogil:
    return add_normalize(x, residual, weight, NULL, out, total, eps, False, num_threads)


# --- linear ---

cdef int kernel_activation(int32_t activation) noexcept nogil:
    """The number by which the kernels know it, or -1."""
    if activation == FASTATTN_GELU:
        return FA_GELU
    if activation == FASTATTN_GELU_TANH:
        return FA_GELU_TANH
    if activation == FASTATTN_RELU:
        return FA_RELU
    if activation == FASTATTN_SILU:
        return FA_SILU
    return FA_NO_ACTIVATION if activation == FASTATTN_NO_ACTIVATION else -1


cdef int check_weight(const Linear *call) noexcept nogil:
    cdef const Array *weight = &call.weight
    if weight.ndim != 2 or weight.shape[1] != length(&call.x, 1):
        return error(FASTATTN_ERROR_SHAPE, WEIGHT)
    if weight.type != FA_I8:
        return error(FASTATTN_ERROR_VALUE, SCALES) if call.scales != NULL else is_parameter(weight, WEIGHT, &call.x)
    if call.scales == NULL:
        return error(FASTATTN_ERROR_NULL, SCALES)
    return error(FASTATTN_ERROR_STRIDE, SCALES) if <size_t>call.scales % sizeof(float) else 0


cdef int check_result(const Linear *call) noexcept nogil:
    """That out and residual have the shape of the product, and that nothing is overwritten."""
    cdef ptrdiff_t[FASTATTN_MOST_AXES] shape
    cdef ptrdiff_t outputs = call.weight.shape[0]
    cdef Array model, scales
    cdef ptrdiff_t stride = sizeof(float)
    cdef int i
    for i in range(call.x.ndim):
        shape[i] = call.x.shape[i]
    shape[call.x.ndim - 1] = outputs
    model.type, model.ndim, model.shape = call.x.type, call.x.ndim, shape
    scales.data, scales.itemsize, scales.ndim = <char *>call.scales, sizeof(float), 1
    scales.shape, scales.strides = &outputs, &stride
    return (
        is_like(&call.out, OUT, &model) or is_like(&call.residual, RESIDUAL, &model) or is_output(&call.out, OUT)
        or is_apart(&call.out, OUT, &call.x) or is_apart(&call.out, OUT, &call.weight)
        or is_apart(&call.out, OUT, &call.bias) or is_apart(&call.out, OUT, &scales)
        or is_apart_or_same(&call.out, OUT, &call.residual)
    )


cdef int check_bias(const Linear *call) noexcept nogil:
    """The kernels of float64 load no other type."""
    if call.bias.data != NULL and summed_in_double(&call.x) != summed_in_double(&call.bias):
        return error(FASTATTN_ERROR_TYPE, BIAS)
    return is_parameter(&call.bias, BIAS, &call.x) or is_vector(&call.bias, BIAS, call.weight.shape[0])


cdef int linear(
    const fastattn_array *x, const fastattn_array *weight, const fastattn_array *out,
    const fastattn_linear_options *options,
) noexcept nogil:
    cdef fastattn_linear_options known
    cdef Linear call
    cdef Memory memory
    memory.used = 0
    cdef int code = (
        read_options(&known, sizeof(known), LINEAR_OPTIONS_1, options)
        or read(&call.x, x, X, &memory) or is_real(&call.x, X) or read(&call.weight, weight, WEIGHT, &memory)
        or read_optional(&call.bias, known.bias, BIAS, &memory)
        or read_optional(&call.residual, known.residual, RESIDUAL, &memory)
        or read(&call.out, out, OUT, &memory) or limit_threads(&call.num_threads, known.num_threads)
    )
    if code:
        return code
    if call.x.ndim == 0:
        return error(FASTATTN_ERROR_SHAPE, X)
    call.form, call.scales, call.weight_type = NULL, known.scales, <fa_type>call.weight.type
    call.activation = kernel_activation(known.activation)
    if call.activation < 0:
        return error(FASTATTN_ERROR_VALUE, ACTIVATION)
    code = check_weight(&call) or check_bias(&call) or check_result(&call)
    if code:
        return code
    return FASTATTN_OK if run_linear(&call) else FASTATTN_ERROR_MEMORY


# --- plain pointers: arrays of one type in C order ---

cdef int plain_softmax(
    int32_t type, const void *x, void *out, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    cdef Py_ssize_t[2] shape = [rows, columns]
    cdef fastattn_array a = fastattn_make_array(x, type, 2, shape, NULL)
    cdef fastattn_array b = fastattn_make_array(out, type, 2, shape, NULL)
    return softmax(&a, NULL, &b, 1, 0)


cdef int plain_norm(
    int32_t type, const void *x, const void *weight, const void *bias, void *out, Py_ssize_t rows, Py_ssize_t columns,
    double eps, bint centred,
) noexcept nogil:
    cdef Py_ssize_t[2] shape = [rows, columns]
    cdef fastattn_array a = fastattn_make_array(x, type, 2, shape, NULL)
    cdef fastattn_array w = fastattn_make_array(weight, type, 1, shape + 1, NULL)
    cdef fastattn_array b = fastattn_make_array(bias, type, 1, shape + 1, NULL)
    cdef fastattn_array c = fastattn_make_array(out, type, 2, shape, NULL)
    return normalize(&a, &w if weight else NULL, &b if bias else NULL, &c, eps, centred, 0)


cdef int plain_linear(
    int32_t type, const void *x, const void *weight, const void *bias, void *out, Py_ssize_t rows, Py_ssize_t inputs,
    Py_ssize_t outputs,
) noexcept nogil:
    cdef Py_ssize_t[2] of_x = [rows, inputs], of_weight = [outputs, inputs], of_out = [rows, outputs]
    cdef fastattn_array a = fastattn_make_array(x, type, 2, of_x, NULL)
    cdef fastattn_array w = fastattn_make_array(weight, type, 2, of_weight, NULL)
    cdef fastattn_array b = fastattn_make_array(bias, type, 1, of_weight, NULL)
    cdef fastattn_array c = fastattn_make_array(out, type, 2, of_out, NULL)
    cdef fastattn_linear_options options = fastattn_make_linear_options()
    options.bias = &b if bias else NULL
    return linear(&a, &w, &c, &options)


cdef int plain_attention(
    int32_t type, const void *query, const void *key, const void *value, void *out, Py_ssize_t batch,
    Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys, Py_ssize_t head_size,
    Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil:
    cdef Py_ssize_t[4] of_query = [batch, q_heads, queries, head_size], of_key = [batch, kv_heads, keys, head_size]
    cdef Py_ssize_t[4] of_value = [batch, kv_heads, keys, value_size], of_out = [batch, q_heads, queries, value_size]
    cdef fastattn_array q = fastattn_make_array(query, type, 4, of_query, NULL)
    cdef fastattn_array k = fastattn_make_array(key, type, 4, of_key, NULL)
    cdef fastattn_array v = fastattn_make_array(value, type, 4, of_value, NULL)
    cdef fastattn_array o = fastattn_make_array(out, type, 4, of_out, NULL)
    cdef fastattn_attention_options options = fastattn_make_attention_options()
    options.scale, options.is_causal = scale, is_causal
    return attention(&q, &k, &v, &o, &options)


# FASTATTN_F32

cdef int softmax_f32(const float *x, float *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    return plain_softmax(FASTATTN_F32, x, out, rows, columns)


cdef int layer_norm_f32(
    const float *x, const float *weight, const float *bias, float *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil:
    return plain_norm(FASTATTN_F32, x, weight, bias, out, rows, columns, eps, True)


cdef int rms_norm_f32(
    const float *x, const float *weight, float *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil:
    return plain_norm(FASTATTN_F32, x, weight, NULL, out, rows, columns, eps, False)


cdef int linear_f32(
    const float *x, const float *weight, const float *bias, float *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil:
    return plain_linear(FASTATTN_F32, x, weight, bias, out, rows, inputs, outputs)


cdef int attention_f32(
    const float *query, const float *key, const float *value, float *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil:
    return plain_attention(
        FASTATTN_F32, query, key, value, out, batch, q_heads, kv_heads, queries, keys, head_size, value_size, scale,
        is_causal,
    )


# FASTATTN_F64

cdef int softmax_f64(const double *x, double *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    return plain_softmax(FASTATTN_F64, x, out, rows, columns)


cdef int layer_norm_f64(
    const double *x, const double *weight, const double *bias, double *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil:
    return plain_norm(FASTATTN_F64, x, weight, bias, out, rows, columns, eps, True)


cdef int rms_norm_f64(
    const double *x, const double *weight, double *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil:
    return plain_norm(FASTATTN_F64, x, weight, NULL, out, rows, columns, eps, False)


cdef int linear_f64(
    const double *x, const double *weight, const double *bias, double *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil:
    return plain_linear(FASTATTN_F64, x, weight, bias, out, rows, inputs, outputs)


cdef int attention_f64(
    const double *query, const double *key, const double *value, double *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil:
    return plain_attention(
        FASTATTN_F64, query, key, value, out, batch, q_heads, kv_heads, queries, keys, head_size, value_size, scale,
        is_causal,
    )


# FASTATTN_F16

cdef int softmax_f16(const uint16_t *x, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    return plain_softmax(FASTATTN_F16, x, out, rows, columns)


cdef int layer_norm_f16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil:
    return plain_norm(FASTATTN_F16, x, weight, bias, out, rows, columns, eps, True)


cdef int rms_norm_f16(
    const uint16_t *x, const uint16_t *weight, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil:
    return plain_norm(FASTATTN_F16, x, weight, NULL, out, rows, columns, eps, False)


cdef int linear_f16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil:
    return plain_linear(FASTATTN_F16, x, weight, bias, out, rows, inputs, outputs)


cdef int attention_f16(
    const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil:
    return plain_attention(
        FASTATTN_F16, query, key, value, out, batch, q_heads, kv_heads, queries, keys, head_size, value_size, scale,
        is_causal,
    )


# FASTATTN_BF16

cdef int softmax_bf16(const uint16_t *x, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    return plain_softmax(FASTATTN_BF16, x, out, rows, columns)


cdef int layer_norm_bf16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t columns, double eps,
) noexcept nogil:
    return plain_norm(FASTATTN_BF16, x, weight, bias, out, rows, columns, eps, True)


cdef int rms_norm_bf16(
    const uint16_t *x, const uint16_t *weight, uint16_t *out, Py_ssize_t rows, Py_ssize_t columns, double eps
) noexcept nogil:
    return plain_norm(FASTATTN_BF16, x, weight, NULL, out, rows, columns, eps, False)


cdef int linear_bf16(
    const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
    Py_ssize_t rows, Py_ssize_t inputs, Py_ssize_t outputs,
) noexcept nogil:
    return plain_linear(FASTATTN_BF16, x, weight, bias, out, rows, inputs, outputs)


cdef int attention_bf16(
    const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
    Py_ssize_t batch, Py_ssize_t q_heads, Py_ssize_t kv_heads, Py_ssize_t queries, Py_ssize_t keys,
    Py_ssize_t head_size, Py_ssize_t value_size, double scale, int is_causal,
) noexcept nogil:
    return plain_attention(
        FASTATTN_BF16, query, key, value, out, batch, q_heads, kv_heads, queries, keys, head_size, value_size, scale,
        is_causal,
    )


# --- messages ---

cdef enum:
    KINDS = 10
    LONGEST = 112  # characters of a message, with the 0 at its end

cdef tuple _KINDS = (  # by FASTATTN_ERROR_*
    "no error",
    "a pointer that is needed is NULL",
    "its size is not that of a version that this fastattn knows",
    "an unknown type, or one that does not go with the others",
    "a length or count is negative, or too large for the address space",
    "its number of axes or its lengths do not go with the others",
    "its address or a stride is no multiple of the element's size, or it is not contiguous",
    "a number out of range",
    "an output must not overlap itself or an input that is still needed",
    "not enough memory",
)
cdef tuple _NAMES = (  # by Argument
    "", "x", "where", "weight", "bias", "residual", "scales", "query", "key", "value", "cu_seqlens_q", "cu_seqlens_k",
    "out", "total", "lse", "options", "num_threads", "axis", "eps", "activation", "attn_mask", "window", "scale",
    "softcap", "q_offset", "kv_lengths", "sinks", "alibi_slopes", "position_bias",
)
cdef char[ARGUMENTS][KINDS][LONGEST] messages


cdef void write_message(int name, int kind, bytes text):
    memcpy(messages[name][kind], <const char *>text, min(LONGEST - 1, len(text)))


for _i, _name in enumerate(_NAMES):
    for _j, _kind in enumerate(_KINDS):
        write_message(<int>_i, <int>_j, (f"{_name}: {_kind}" if _name else _kind).encode())


cdef const char *error_message(int code) noexcept nogil:
    cdef int kind = code & 255, name = code >> 8
    if 0 <= name < ARGUMENTS and kind < KINDS:
        return messages[name][kind]
    return "an unknown code"


# --- the table ---

cdef fastattn_table table


cdef void fill_table() noexcept:
    table.size, table.version = sizeof(fastattn_table), FASTATTN_API_VERSION
    table.error_message = error_message
    table.attention = attention
    table.varlen_attention = varlen_attention
    table.softmax = softmax
    table.log_softmax = log_softmax
    table.layer_norm = layer_norm
    table.rms_norm = rms_norm
    table.add_layer_norm = add_layer_norm
    table.add_rms_norm = add_rms_norm
    table.linear = linear
    table.softmax_f32 = softmax_f32
    table.layer_norm_f32 = layer_norm_f32
    table.rms_norm_f32 = rms_norm_f32
    table.linear_f32 = linear_f32
    table.attention_f32 = attention_f32
    table.softmax_f64 = softmax_f64
    table.layer_norm_f64 = layer_norm_f64
    table.rms_norm_f64 = rms_norm_f64
    table.linear_f64 = linear_f64
    table.attention_f64 = attention_f64
    table.softmax_f16 = softmax_f16
    table.layer_norm_f16 = layer_norm_f16
    table.rms_norm_f16 = rms_norm_f16
    table.linear_f16 = linear_f16
    table.attention_f16 = attention_f16
    table.softmax_bf16 = softmax_bf16
    table.layer_norm_bf16 = layer_norm_bf16
    table.rms_norm_bf16 = rms_norm_bf16
    table.linear_bf16 = linear_bf16
    table.attention_bf16 = attention_bf16


fill_table()
_C_API = PyCapsule_New(&table, FASTATTN_CAPSULE, NULL)
