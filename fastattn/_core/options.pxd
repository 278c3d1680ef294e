cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn._core.sequences cimport Attention


cdef ptrdiff_t FARTHEST  # maximum number of tokens of a cached sequence: a window as wide excludes none


cdef class Options:
    # Arrays, or None; as given until `lower` replaces them by what it makes of them.
    cdef object attn_mask, q_offset, kv_lengths, sinks, alibi_slopes, position_bias, out

    # Numbers, checked.
    cdef ptrdiff_t left, right  # a query at position p sees the keys p - left <= j <= p + right; -1: unbounded
    cdef double scale           # NaN: 1 / sqrt(head size)
    cdef double softcap         # 0: none
    cdef bint return_lse
    cdef int num_threads        # 0: not given

    cdef bint depends_on_positions(self) noexcept
    cdef int lower(
        self, Attention *at, np.ndarray query, ptrdiff_t heads, int lead, const np.npy_intp *leading, int ndim,
        const np.npy_intp *scores,
    ) except -1
