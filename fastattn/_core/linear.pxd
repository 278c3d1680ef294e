from fastattn._core.arrays cimport Array
from fastattn._core.targets cimport fa_panels, fa_type


cdef struct Linear:
    Array x, residual, out   # residual, of the shape and type of out, may be missing
    Array weight             # (outputs, inputs), or the panels of a packed one
    fa_type weight_type
    const fa_panels *form    # of a packed weight, for the target in use; NULL: it is plain
    const float *scales      # of an int8 weight's rows
    Array bias               # contiguous, float64 if x is; may be missing
    int activation
    int num_threads          # 0: the default


cdef bint run_linear(const Linear *call) noexcept nogil
