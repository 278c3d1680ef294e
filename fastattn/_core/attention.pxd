cimport numpy as np

from fastattn._core.options cimport Options


cdef class Pages:
    """Pages of keys and values, (pages, kv heads, page size, size), and scales of int8 rows, without the last axis."""

    cdef readonly np.ndarray key_pages, value_pages, key_scales, value_scales


cdef object attend_pages(
    query, Pages pages, np.ndarray block_tables, np.ndarray first_keys, np.ndarray lengths, Options options
)
