"""Checks of arguments by address, for callers without Python, as _arguments.pyx makes them for those with it.

Each check returns an error code, or 0 if all is well: `a(...) or b(...)` is the first error. A code holds the kind of
error, as in fastattn.h, and the argument.
"""

from libc.math cimport isfinite, isnan
from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from fastattn._core cimport arrays
from fastattn._core.arrays cimport Array, length
from fastattn._core.targets cimport FA_BF16, FA_F16, FA_F32, FA_F64, FA_I8, FA_MASK_BOOL, FA_TYPES, fa_size_of, fa_type
from fastattn.capi cimport (
    FASTATTN_BF16, FASTATTN_BOOL, FASTATTN_ERROR_NULL, FASTATTN_ERROR_OVERLAP, FASTATTN_ERROR_SHAPE,
    FASTATTN_ERROR_SIZE, FASTATTN_ERROR_STRIDE, FASTATTN_ERROR_TYPE, FASTATTN_ERROR_VALUE, FASTATTN_ERROR_VERSION,
    FASTATTN_F16, FASTATTN_F32, FASTATTN_F64, FASTATTN_I8, FASTATTN_MOST_AXES, fastattn_array,
)

cdef enum Argument:
    NONE, X, WHERE, WEIGHT, BIAS, RESIDUAL, SCALES, QUERY, KEY, VALUE, CU_SEQLENS_Q, CU_SEQLENS_K
    OUT, TOTAL, LSE
    OPTIONS, NUM_THREADS, AXIS, EPS, ACTIVATION
    ATTN_MASK, WINDOW, SCALE, SOFTCAP, Q_OFFSET, KV_LENGTHS, SINKS, ALIBI_SLOPES, POSITION_BIAS
    ARGUMENTS

cdef enum:
    MOST_ARRAYS = 8       # of a call
    MOST_OPTIONS = 4096   # bytes of a struct of options, of any future version
    MOST_THREADS = 1 << 20

cdef struct Memory:  # for the strides of arrays that come without, or are broadcast
    ptrdiff_t[MOST_ARRAYS][FASTATTN_MOST_AXES] strides
    int used

# What empty arrays point at if the caller has no address for them: NULL means that there is no array.
cdef extern from *:
    """
    static double fa_nothing[1];
    """
    double *fa_nothing


cdef inline int error(int kind, Argument argument) noexcept nogil:
    return <int>argument << 8 | kind


# --- arrays ---

cdef inline int kernel_type(int32_t type) noexcept nogil:
    """The number by which the kernels know a type; FA_TYPES for none."""
    if type == FASTATTN_F32:
        return FA_F32
    if type == FASTATTN_F64:
        return FA_F64
    if type == FASTATTN_F16:
        return FA_F16
    if type == FASTATTN_BF16:
        return FA_BF16
    if type == FASTATTN_I8:
        return FA_I8
    return FA_MASK_BOOL if type == FASTATTN_BOOL else <int>FA_TYPES


cdef inline int read(Array *to, const fastattn_array *given, Argument name, Memory *memory) noexcept nogil:
    """Take over an array after checking it alone."""
    to.data, to.ndim = NULL, 0
    if given == NULL:
        return error(FASTATTN_ERROR_NULL, name)
    to.type = kernel_type(given.type)
    if to.type == <int>FA_TYPES:
        return error(FASTATTN_ERROR_TYPE, name)
    to.itemsize = 1 if to.type == FA_MASK_BOOL else <int>fa_size_of(<fa_type>to.type)
    if not 0 <= given.ndim <= FASTATTN_MOST_AXES:
        return error(FASTATTN_ERROR_SHAPE, name)
    if given.shape == NULL and given.ndim:
        return error(FASTATTN_ERROR_NULL, name)
    to.ndim, to.shape = given.ndim, <const ptrdiff_t *>given.shape
    if not fits_memory(to):
        return error(FASTATTN_ERROR_SIZE, name)
    to.strides = c_order(to, memory) if given.strides == NULL else <const ptrdiff_t *>given.strides
    to.data = <char *>given.data
    if to.data == NULL and arrays.size(to):
        return error(FASTATTN_ERROR_NULL, name)
    if to.data == NULL:
        to.data = <char *>fa_nothing
    return 0 if is_aligned(to) else error(FASTATTN_ERROR_STRIDE, name)


cdef inline int read_optional(Array *to, const fastattn_array *given, Argument name, Memory *memory) noexcept nogil:
    to.data, to.ndim = NULL, 0
    return 0 if given == NULL else read(to, given, name, memory)


cdef inline bint fits_memory(const Array *x) noexcept nogil:
    """Whether no length is negative, and the others than 0 multiply to a number of bytes."""
    cdef ptrdiff_t bytes = x.itemsize, most = <ptrdiff_t>(<size_t>-1 >> 1)
    cdef int i
    for i in range(x.ndim):
        if x.shape[i] < 0 or (x.shape[i] and bytes > most // x.shape[i]):
            return False
        bytes *= x.shape[i] if x.shape[i] else 1
    return True


cdef inline ptrdiff_t *take_strides(Memory *memory) noexcept nogil:
    memory.used += 1
    return memory.strides[memory.used - 1]


cdef inline const ptrdiff_t *c_order(const Array *x, Memory *memory) noexcept nogil:
    cdef ptrdiff_t *strides = take_strides(memory)
    cdef ptrdiff_t bytes = x.itemsize
    cdef int i
    for i in range(x.ndim - 1, -1, -1):
        strides[i] = bytes
        bytes *= x.shape[i] if x.shape[i] else 1
    return strides


cdef inline bint is_aligned(const Array *x) noexcept nogil:
    """Whether every element stands at a multiple of its size."""
    cdef ptrdiff_t bits = <ptrdiff_t>x.data
    cdef int i
    for i in range(x.ndim):
        if x.shape[i] > 1:
            bits |= x.strides[i]
    return bits % x.itemsize == 0


cdef inline int is_real(const Array *x, Argument name) noexcept nogil:
    return error(FASTATTN_ERROR_TYPE, name) if x.type == FA_MASK_BOOL or x.type == FA_I8 else 0


cdef inline bint summed_in_double(const Array *x) noexcept nogil:
    return x.type == FA_F64


cdef inline int is_parameter(const Array *x, Argument name, const Array *model) noexcept nogil:
    """An optional array that is converted before use: real, and not wider than the type that `model` is summed in."""
    if x.data == NULL:
        return 0
    if x.type == FA_F64 and not summed_in_double(model):
        return error(FASTATTN_ERROR_TYPE, name)
    return is_real(x, name)


cdef inline int is_not_wider(const Array *x, Argument name, const Array *model) noexcept nogil:
    return error(FASTATTN_ERROR_TYPE, name) if x.itemsize > model.itemsize else is_real(x, name)


cdef inline int is_like(const Array *x, Argument name, const Array *model) noexcept nogil:
    """An optional array of the model's type and shape."""
    cdef int i
    if x.data == NULL:
        return 0
    if x.type != model.type:
        return error(FASTATTN_ERROR_TYPE, name)
    if x.ndim != model.ndim:
        return error(FASTATTN_ERROR_SHAPE, name)
    for i in range(x.ndim):
        if x.shape[i] != model.shape[i]:
            return error(FASTATTN_ERROR_SHAPE, name)
    return 0


cdef inline int is_vector(const Array *x, Argument name, ptrdiff_t count) noexcept nogil:
    """An optional array of `count` elements side by side."""
    if x.data == NULL:
        return 0
    if x.ndim != 1 or x.shape[0] != count:
        return error(FASTATTN_ERROR_SHAPE, name)
    return 0 if count < 2 or x.strides[0] == x.itemsize else error(FASTATTN_ERROR_STRIDE, name)


cdef inline int is_in_c_order(const Array *x, Argument name) noexcept nogil:
    """An optional array without gaps, its last axis first in memory."""
    cdef ptrdiff_t step = x.itemsize
    cdef int i
    if x.data == NULL or arrays.size(x) == 0:
        return 0
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] > 1 and x.strides[i] != step:
            return error(FASTATTN_ERROR_STRIDE, name)
        step *= x.shape[i]
    return 0


cdef inline int broadcast(Array *x, Argument name, const Array *model, Memory *memory) noexcept nogil:
    """Give an optional array the model's shape, with strides of 0."""
    cdef ptrdiff_t *strides
    cdef ptrdiff_t own
    cdef int i
    if x.data == NULL:
        return 0
    if x.ndim > model.ndim:
        return error(FASTATTN_ERROR_SHAPE, name)
    strides = take_strides(memory)
    for i in range(1, model.ndim + 1):
        own = length(x, i)
        if own != 1 and own != length(model, i):
            return error(FASTATTN_ERROR_SHAPE, name)
        strides[model.ndim - i] = arrays.stride(x, i)
    x.ndim, x.shape, x.strides = model.ndim, model.shape, strides
    return 0


# --- outputs ---

cdef inline int is_output(const Array *x, Argument name) noexcept nogil:
    """An optional output: its elements must not overlap."""
    cdef ptrdiff_t[FASTATTN_MOST_AXES] steps, lengths
    if x.data == NULL or arrays.size(x) == 0:
        return 0
    return 0 if arrays.nested(x, steps, lengths, arrays.sort_axes(x, steps, lengths)) else overlap(name)


cdef inline int overlap(Argument name) noexcept nogil:
    return error(FASTATTN_ERROR_OVERLAP, name)


cdef inline int is_apart(const Array *out, Argument name, const Array *x) noexcept nogil:
    """Whether an output does not overlap an array that is needed until the end; either may be missing."""
    if out.data == NULL or x.data == NULL:
        return 0
    return overlap(name) if arrays.share_memory(out, x) else 0


cdef inline int is_apart_or_same(const Array *out, Argument name, const Array *x) noexcept nogil:
    """Likewise, but it may be exactly that array, of the same type, whose rows are read before they are written."""
    if x.data != NULL and out.data == x.data and arrays.same_axes(out, x):
        return 0
    return is_apart(out, name, x)


# --- numbers ---

cdef inline int limit_threads(int *to, int given) noexcept nogil:
    to[0] = min(given, MOST_THREADS)
    return 0 if given >= 0 else error(FASTATTN_ERROR_VALUE, NUM_THREADS)


cdef inline int is_not_negative(double x, Argument name) noexcept nogil:
    return 0 if isfinite(x) and x >= 0 else error(FASTATTN_ERROR_VALUE, name)


cdef inline int are_finite(
    const void *x, Argument name, ptrdiff_t count, bint wide, bint or_minus_infinity
) noexcept nogil:
    """Whether numbers, of double if they are `wide`, are finite."""
    cdef ptrdiff_t i
    cdef double number
    if <ptrdiff_t>x % (8 if wide else 4):
        return error(FASTATTN_ERROR_STRIDE, name)
    for i in range(count):
        number = (<const double *>x)[i] if wide else <double>(<const float *>x)[i]
        if not isfinite(number) and (isnan(number) or number > 0 or not or_minus_infinity):
            return error(FASTATTN_ERROR_VALUE, name)
    return 0


cdef inline int read_options(void *to, size_t known, size_t least, const void *given) noexcept nogil:
    """Take over a struct that begins with its size: zeros for what it does not have, or for NULL.

    What is not known here must be zero. `least` is the size that the struct began with.
    """
    cdef size_t size, i
    memset(to, 0, known)
    if given == NULL:
        return 0
    if <size_t>given % sizeof(void *):
        return error(FASTATTN_ERROR_STRIDE, OPTIONS)
    size = (<const size_t *>given)[0]
    if size < least or size > MOST_OPTIONS:
        return error(FASTATTN_ERROR_VERSION, OPTIONS)
    for i in range(known, size):
        if (<const char *>given)[i]:
            return error(FASTATTN_ERROR_VERSION, OPTIONS)
    memcpy(to, given, min(size, known))
    return 0
