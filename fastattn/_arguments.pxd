cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn._core.targets cimport fa_type

cdef np.ndarray array(str name, object x)
cdef np.ndarray real_array(str name, object x)
cdef np.ndarray real_array_like(str name, object x, np.ndarray model, str model_name)
cdef np.ndarray bool_array(str name, object x)
cdef np.ndarray vector_like(str name, object x, np.ndarray model, str model_name)
cdef np.ndarray operand_like(str name, object x, np.ndarray model, str model_name)
cdef np.ndarray output(str name, object out, int ndim, const np.npy_intp *shape, np.ndarray model, str model_name)
cdef np.ndarray new_array(np.ndarray model, int ndim, const np.npy_intp *shape)
cdef fa_type type_of(np.ndarray x)

cpdef tuple states(object outs, object lses)

cdef ptrdiff_t integer(str name, object x) except? -1
cdef double finite(str name, object x) except? -1
cdef bint flag(str name, object x) except -1
cpdef int thread_limit(object num_threads) except -1
cdef int axis_of(object axis, int ndim) except -1

cdef bint share_memory(np.ndarray a, np.ndarray b) noexcept
cdef bint same_place(np.ndarray a, np.ndarray b) noexcept
