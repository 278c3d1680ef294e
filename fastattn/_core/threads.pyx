"""OpenMP's room: how many threads a call gets, and the running of its items on them.

Where the numbers come from is told by fastattn._runtime.
"""

from cython.parallel cimport parallel, prange

from fastattn._core.targets cimport scratch

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FA_OPENMP _OPENMP
    #else
    #define FA_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    static int omp_get_level(void) { return 0; }
    static int omp_get_max_active_levels(void) { return 1; }
    #endif
    /* OpenMP 5.0 lets a program give its threads back; before that there is nothing to give. */
    static void fa_rest(void) {
    #if FA_OPENMP >= 201811 || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9 && FA_OPENMP)
        extern int omp_pause_resource_all(omp_pause_resource_t);
        omp_pause_resource_all(omp_pause_soft);
    #endif
    }
    """
    const int FA_OPENMP
    int omp_get_max_threads() nogil
    int omp_get_level() nogil
    int omp_get_max_active_levels() nogil
    void fa_rest()

# Waking another thread pays only for so much work: below, a call stays on the calling thread (a fork and join costs
# 1 to 3 microseconds while the other threads still spin, 10 and more once they sleep).
cdef double GRAIN = 5000.0  # nanoseconds of work a thread

openmp = FA_OPENMP  # the date of the OpenMP version, yyyymm; 0 in a serial build
cdef int chosen = 0     # set_num_threads or FASTATTN_NUM_THREADS; 0: not said
cdef int quota = 0      # processors' worth of time that the container grants; 0: no limit


cdef int available() noexcept nogil:
    """Asked anew at each call: omp_set_num_threads and threadpoolctl may have changed it."""
    if chosen:
        return chosen
    cdef int count = omp_get_max_threads()
    return min(count, quota) if quota else count


cdef int threads_for(int asked, ptrdiff_t items, double nanoseconds) noexcept nogil:
    """Threads for `items` independent items of so much work together; `asked` is the caller's limit or 0."""
    cdef ptrdiff_t count = asked if asked else available()
    if omp_get_level() >= omp_get_max_active_levels():
        return 1
    return <int>max(1, min(count, items, <ptrdiff_t>(nanoseconds / GRAIN)))


cdef bint run(Item item, const void *plan, ptrdiff_t count, int threads, ptrdiff_t scratch_size) noexcept nogil:
    """Run the items 0 to count - 1 of a plan, taken by the threads in this order. False: no scratch memory was left."""
    cdef void *memory = NULL
    cdef ptrdiff_t index
    cdef int failed = 0
    if threads == 1:  # no parallel region: entering one costs as much as a small call
        memory = scratch(scratch_size)
        if memory == NULL:
            return False
        for index in range(count):
            item(plan, index, memory)
        return True
    with parallel(num_threads=threads):
        memory = scratch(scratch_size)
        for index in prange(count, schedule="dynamic", chunksize=1):
            if memory == NULL:
                failed += 1
            else:
                item(plan, index, memory)
    return failed == 0


def openmp_threads() -> int:
    return omp_get_max_threads()


def available_threads() -> int:
    return available()


def choose(int count, int container):
    """Set what stands before OpenMP's own setting (0: nothing) and the container's limit (0: none)."""
    global chosen, quota
    chosen, quota = count, container


def rest():
    """Give OpenMP's sleeping threads back. They do not survive a fork, and the child would wait for them."""
    fa_rest()
