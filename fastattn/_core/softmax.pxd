from fastattn._core.arrays cimport Array


cdef struct Softmax:
    Array x, where, out  # of one shape; `where`, bool, may be missing
    int axis             # from 0
    bint logarithm
    int num_threads      # 0: the default


cdef bint run_softmax(const Softmax *call) noexcept nogil
