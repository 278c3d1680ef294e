"""Arrays by their addresses: what the compiled half knows of an array, whoever owns it, NumPy or a caller in C."""

from libc.stddef cimport ptrdiff_t


cdef struct Array:
    char *data                # NULL: there is none, and nothing below is set but ndim, 0
    int type                  # an fa_type, or FA_MASK_BOOL
    int itemsize, ndim
    const ptrdiff_t *shape
    const ptrdiff_t *strides  # bytes


cdef inline ptrdiff_t length(const Array *x, int from_the_end) noexcept nogil:
    """Length of an axis counted from the end; 1 where the array has no such axis."""
    return x.shape[x.ndim - from_the_end] if x.ndim >= from_the_end else 1


cdef inline ptrdiff_t stride(const Array *x, int from_the_end) noexcept nogil:
    """Stride of an axis counted from the end; 0 where the array has no such axis or only one entry along it."""
    return x.strides[x.ndim - from_the_end] if length(x, from_the_end) != 1 else 0


cdef inline ptrdiff_t element_stride(const Array *x) noexcept nogil:
    """Bytes between neighbours along the last axis; the stride of an axis of length 1 says nothing."""
    return x.strides[x.ndim - 1] if x.shape[x.ndim - 1] > 1 else x.itemsize


cdef inline ptrdiff_t size(const Array *x) noexcept nogil:
    """Number of elements."""
    cdef ptrdiff_t product = 1
    cdef int i
    for i in range(x.ndim):
        product *= x.shape[i]
    return product


cdef inline bint contiguous(const Array *x) noexcept nogil:
    """Whether rows along the last axis can be read in place: their elements are adjacent, and all are aligned."""
    cdef ptrdiff_t bits = <ptrdiff_t>x.data
    cdef int i
    for i in range(x.ndim - 1):
        if x.shape[i] > 1:
            bits |= x.strides[i]
    return element_stride(x) == x.itemsize and bits % x.itemsize == 0


# --- memory ---

cdef inline void extent(const Array *x, const char **low, const char **high) noexcept nogil:
    """The address range of the elements; the end is exclusive. An empty array has none."""
    cdef int i
    low[0] = high[0] = NULL
    if size(x) == 0:
        return
    low[0] = high[0] = x.data
    for i in range(x.ndim):
        if x.strides[i] < 0:
            low[0] += (x.shape[i] - 1) * x.strides[i]
        else:
            high[0] += (x.shape[i] - 1) * x.strides[i]
    high[0] += x.itemsize


cdef inline bint share_memory(const Array *a, const Array *b) noexcept nogil:
    """Whether the two may share an element: their address ranges overlap."""
    cdef const char *low_a
    cdef const char *high_a
    cdef const char *low_b
    cdef const char *high_b
    extent(a, &low_a, &high_a)
    extent(b, &low_b, &high_b)
    return low_a < high_b and low_b < high_a


cdef inline bint same_axes(const Array *a, const Array *b) noexcept nogil:
    """Whether the arrays have the same shape and strides, but for those of axes with one entry."""
    cdef int i
    if a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or (a.shape[i] > 1 and a.strides[i] != b.strides[i]):
            return False
    return True


cdef inline int sort_axes(const Array *x, ptrdiff_t *steps, ptrdiff_t *lengths) noexcept nogil:
    """Absolute strides and lengths of the axes with more than one entry, smallest first; returns their number."""
    cdef int i, j, count = 0
    cdef ptrdiff_t step, length
    for i in range(x.ndim):
        if x.shape[i] == 1:
            continue
        step, length, j = x.strides[i] if x.strides[i] >= 0 else -x.strides[i], x.shape[i], count
        while j and steps[j - 1] > step:
            steps[j], lengths[j] = steps[j - 1], lengths[j - 1]
            j -= 1
        steps[j], lengths[j] = step, length
        count += 1
    return count


cdef inline bint nested(const Array *x, const ptrdiff_t *steps, const ptrdiff_t *lengths, int count) noexcept nogil:
    """Whether each of these strides is larger than the span of all axes before it: then no two elements overlap."""
    cdef int i
    cdef ptrdiff_t span = x.itemsize
    for i in range(count):
        if steps[i] < span:
            return False
        span += steps[i] * (lengths[i] - 1)
    return True
