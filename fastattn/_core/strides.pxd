"""Iteration over the leading axes of several arrays: lengths, and a stride in bytes for each array and axis."""

from libc.stddef cimport ptrdiff_t
from libc.stdlib cimport llabs

cdef enum:
    MOST_AXES = 64
    MOST_ARRAYS = 6

cdef struct Axes:
    int count
    ptrdiff_t length[MOST_AXES]
    ptrdiff_t stride[MOST_ARRAYS][MOST_AXES]


cdef inline ptrdiff_t total(const Axes *axes) noexcept nogil:
    cdef ptrdiff_t product = 1
    cdef int i
    for i in range(axes.count):
        product *= axes.length[i]
    return product


cdef inline ptrdiff_t offset(const Axes *axes, int array, ptrdiff_t index) noexcept nogil:
    """Bytes from the start of `array` to the entry with this C-order index."""
    cdef ptrdiff_t sum = 0
    cdef int i
    for i in range(axes.count - 1, -1, -1):
        sum += index % axes.length[i] * axes.stride[array][i]
        index //= axes.length[i]
    return sum


cdef inline bint joined(const Axes *axes, int arrays, int i, int j) noexcept nogil:
    """Whether axes i and j can be merged in every array."""
    cdef int array
    for array in range(arrays):
        if axes.stride[array][i] != axes.stride[array][j] * axes.length[j]:
            return False
    return True


cdef inline void simplify(Axes *axes, int arrays) noexcept nogil:
    """Drop axes of length 1, sort the rest by the first array's stride, and merge neighbours where possible.

    The order of the entries changes, in the same way for all arrays.
    """
    cdef int i, j, array, kept = 0
    cdef ptrdiff_t length
    cdef ptrdiff_t[MOST_ARRAYS] stride
    for i in range(axes.count):
        if axes.length[i] == 1:
            continue
        length = axes.length[i]
        for array in range(arrays):
            stride[array] = axes.stride[array][i]
        j = kept
        while j and llabs(axes.stride[0][j - 1]) < llabs(stride[0]):
            axes.length[j] = axes.length[j - 1]
            for array in range(arrays):
                axes.stride[array][j] = axes.stride[array][j - 1]
            j -= 1
        axes.length[j] = length
        for array in range(arrays):
            axes.stride[array][j] = stride[array]
        kept += 1
    axes.count = kept
    i = 0
    for j in range(1, kept):
        if joined(axes, arrays, i, j):
            axes.length[i] *= axes.length[j]
        else:
            i += 1
            axes.length[i] = axes.length[j]
        for array in range(arrays):
            axes.stride[array][i] = axes.stride[array][j]
    axes.count = min(kept, i + 1)
