from fastattn._core.arrays cimport Array


cdef struct Normalization:
    Array x, residual, out, total  # of one shape and type; residual and total, x + residual, may both be missing
    Array weight, bias             # of x's last axis, contiguous; each may be missing
    double eps
    bint centred                   # layer_norm: the mean is subtracted
    int num_threads                # 0: the default


cdef bint run_normalization(const Normalization *call) noexcept nogil
