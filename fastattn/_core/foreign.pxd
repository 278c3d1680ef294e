cimport numpy as np

cdef np.ndarray from_table(object x, object table)
cdef np.ndarray from_buffer(object x)
cdef np.ndarray from_capsule(object capsule)
