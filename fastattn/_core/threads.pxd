from libc.stddef cimport ptrdiff_t


cdef int threads_for(int asked, ptrdiff_t items, double nanoseconds) noexcept nogil
