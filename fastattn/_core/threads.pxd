from libc.stddef cimport ptrdiff_t

# Runs one item of a plan; `memory` is scratch memory of the calling thread.
ctypedef void (*Item)(const void *plan, ptrdiff_t index, void *memory) noexcept nogil


cdef inline ptrdiff_t item_before(const void *memory) noexcept nogil:
    """The item of the same call that used this scratch memory before, so that its data can be reused; or -1."""
    return (<const ptrdiff_t *>memory)[-1]


cdef int threads_for(int asked, ptrdiff_t items, double nanoseconds) noexcept nogil
cdef bint run(Item item, const void *plan, ptrdiff_t count, int threads, ptrdiff_t scratch_size) noexcept nogil
