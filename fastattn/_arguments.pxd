cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn._core.arrays cimport Array
from fastattn._core.packed cimport Packed
from fastattn._core.targets cimport fa_type

cdef np.ndarray array(str name, object x)
cpdef np.ndarray array_to_write(str name, object x)
cpdef bint is_foreign(object x)
cpdef object adopted(str name, object x)
cpdef tuple tokens(object query, object key, object value)
cpdef np.ndarray real_array(str name, object x)
cdef np.ndarray real_array_like(str name, object x, np.ndarray model, str model_name)
cdef np.ndarray bool_array(str name, object x)
cdef np.ndarray vector_like(str name, object x, np.ndarray model, str model_name)
cdef np.ndarray operand_like(str name, object x, np.ndarray model, str model_name)
cdef np.ndarray output(str name, object out, int ndim, const np.npy_intp *shape, np.ndarray model, str model_name)
cdef np.ndarray new_array(np.ndarray model, int ndim, const np.npy_intp *shape)
cdef fa_type type_of(np.ndarray x)
cdef void by_address(Array *a, np.ndarray x) noexcept
cdef int computed_in(np.ndarray x)
cdef np.ndarray parameter_like(str name, object x, np.ndarray model, str model_name)

cpdef tuple states(object outs, object lses, object out)

cdef ptrdiff_t integer(str name, object x, str needed=*) except? -1
cdef double finite(str name, object x) except? -1
cpdef bint flag(str name, object x) except -1
cpdef int thread_limit(object num_threads) except -1
cdef int axis_of(object axis, int ndim) except -1

cdef bint share_memory(np.ndarray a, np.ndarray b) noexcept
cdef bint same_place(np.ndarray a, np.ndarray b) noexcept
cdef np.ndarray detached_output(np.ndarray result, tuple rows, tuple others)
cdef object finish(str operation, bint done, np.ndarray result, np.ndarray target, object out)

cdef int attention_shape(np.ndarray query, np.ndarray key, np.ndarray value, np.npy_intp *shape) except -1
cdef int weights_shape(np.ndarray query, np.ndarray key, np.npy_intp *shape) except -1
cdef int packed_shape(np.ndarray query, np.ndarray key, np.ndarray value, np.npy_intp *shape) except -1
cdef int cached_shape(
    np.ndarray query, np.ndarray keys, np.ndarray values, ptrdiff_t batch, np.npy_intp *shape
) except -1
cdef np.ndarray attention_mask(str name, object mask, np.ndarray query, int ndim, const np.npy_intp *scores)
cdef np.ndarray attention_sinks(str name, object sinks, np.ndarray query, ptrdiff_t heads)
cdef np.ndarray attention_slopes(
    str name, object slopes, np.ndarray query, int lead, const np.npy_intp *shape, ptrdiff_t heads
)
cdef np.ndarray position_bias(str name, object x, np.ndarray query, ptrdiff_t heads)
cdef np.ndarray per_sequence(str name, object x, int lead, const np.npy_intp *shape)
cdef int length_within(str name, ptrdiff_t length, ptrdiff_t keys) except -1
cpdef np.ndarray boundaries(str name, object x, np.ndarray rows, str rows_name)
cdef int as_many(str name, np.ndarray x, np.ndarray model, str model_name) except -1
cdef int attention_window(str name, object window, ptrdiff_t *left, ptrdiff_t *right) except -1
cdef double positive(str name, object x) except -1
cdef np.ndarray mask_like(str name, object where, np.ndarray x)
cdef np.ndarray rows_array(str name, object x)
cdef np.ndarray rotary_array(str name, object x)
cdef np.ndarray rotary_table(str name, object table, np.ndarray x, bint by_position)
cpdef int each_pair_once(str name, np.ndarray cos, np.ndarray sin, object rotary_dim) except -1
cdef np.ndarray rotary_positions(str name, object positions, np.ndarray x, ptrdiff_t rows)
cdef np.ndarray rows_of_any_length(str name, object x)
cdef tuple linear_weight(str name, object weight, np.ndarray x, str x_name)
cdef Packed packed_weight(str name, object weight, np.ndarray x, str x_name)
cdef np.ndarray linear_bias(str name, object bias, ptrdiff_t features, bint gated, np.ndarray x, str x_name)
cdef np.ndarray shaped_like(str name, object x, int ndim, const np.npy_intp *shape, np.ndarray model, str model_name)
cdef int activation(str name, object x) except -1
cpdef double non_negative(str name, object x) except -1
cpdef object storage_dtype(str name, object x)
cpdef ptrdiff_t at_least_one(str name, object x) except -1
cdef np.ndarray cache_rows(str name, object x, ptrdiff_t batch, ptrdiff_t heads, ptrdiff_t tokens, ptrdiff_t size)
cpdef np.ndarray token_counts(str name, object x, ptrdiff_t sequences, ptrdiff_t tokens)
cdef np.ndarray cache_table(str name, object x, np.ndarray key, ptrdiff_t positions)
cdef np.ndarray indices(str name, object x, ptrdiff_t count, ptrdiff_t limit)


cdef inline void place(Array *a, np.ndarray x) noexcept:
    """Where an array lies; the type of its elements is not set."""
    a.data, a.itemsize, a.ndim = <char *>np.PyArray_DATA(x), <int>np.PyArray_ITEMSIZE(x), x.ndim
    a.shape, a.strides = <const ptrdiff_t *>x.shape, <const ptrdiff_t *>x.strides


cdef inline ptrdiff_t length(np.ndarray x, int from_the_end) noexcept:
    """Length of an axis counted from the end; 1 where the array has no such axis."""
    return x.shape[x.ndim - from_the_end] if x.ndim >= from_the_end else 1


cdef inline ptrdiff_t stride(np.ndarray x, int from_the_end) noexcept:
    """Stride of an axis counted from the end; 0 where the array has no such axis or only one entry along it."""
    return x.strides[x.ndim - from_the_end] if length(x, from_the_end) != 1 else 0


cdef inline ptrdiff_t entry(np.ndarray x, ptrdiff_t n) noexcept:
    """What int64 `x`, an array in C order or a number for all, holds for sequence n."""
    return (<const np.npy_int64 *>np.PyArray_DATA(x))[n if x.ndim else 0]


cdef inline ptrdiff_t element_stride(np.ndarray x) noexcept:
    """Bytes between neighbours along the last axis; the stride of an axis of length 1 says nothing."""
    return x.strides[x.ndim - 1] if x.shape[x.ndim - 1] > 1 else np.PyArray_ITEMSIZE(x)
