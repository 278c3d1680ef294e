cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn._core.targets cimport fa_panels, fa_type


cdef class Packed:
    cdef readonly tuple shape
    cdef readonly object dtype
    cdef readonly str target
    cdef readonly bint gated
    cdef readonly np.ndarray data, scales
    cdef fa_type type
    cdef fa_panels form
    cdef readonly ptrdiff_t panel_bytes
    cdef const void *made_for
    cdef bint frozen

    cdef ptrdiff_t panels(self)
    cdef np.ndarray empty(self)
    cdef int check_open(self) except -1
