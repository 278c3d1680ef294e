from libc.stddef cimport ptrdiff_t

# One item of a plan; `memory` is scratch of the calling thread.
ctypedef void (*Item)(const void *plan, ptrdiff_t index, void *memory) noexcept nogil

cdef int threads_for(int asked, ptrdiff_t items, double nanoseconds) noexcept nogil
cdef bint run(Item item, const void *plan, ptrdiff_t count, int threads, ptrdiff_t scratch_size) noexcept nogil
