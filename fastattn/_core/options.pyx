# cython: embedsignature.format=clinic
"""The options of attention, in one object: made by name, checked, and lowered to what the planner and kernels read.

A public function makes it from its arguments by `attention_options`, which checks what does not depend on arrays.
`lower` does the rest once the arrays of the call are known, and `place` sets the options of one sequence. All code in
between only passes the object on. A new option is an argument, a field, its check, and the line that lowers it, all of
them here.
"""

cimport cython
cimport numpy as np
from libc.math cimport NAN, isnan, sqrt
from libc.stddef cimport ptrdiff_t

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport stride
from fastattn._core.plan cimport Plan, Sequence
from fastattn._core.targets cimport FA_F64, FA_MASK_BOOL, FA_NO_MASK, fa_attention

np.import_array()

FARTHEST = 1 << 48


def attention_options(
    *, attn_mask=None, is_causal=False, q_offset=None, window=None, scale=None, softcap=None, sinks=None,
    alibi_slopes=None, kv_lengths=None, out=None, return_lse=False, num_threads=None,
):
    """The options of one call of attention; see fastattn.attention for their meaning."""
    cdef Options self = Options.__new__(Options)
    self.attn_mask, self.q_offset, self.kv_lengths = attn_mask, q_offset, kv_lengths
    self.sinks, self.alibi_slopes, self.out = sinks, alibi_slopes, out
    self.left, self.right = -1, 0 if arguments.flag("is_causal", is_causal) else -1
    arguments.attention_window("window", window, &self.left, &self.right)
    self.scale = NAN if scale is None else arguments.finite("scale", scale)
    self.softcap = 0 if softcap is None else arguments.positive("softcap", softcap)
    self.return_lse = arguments.flag("return_lse", return_lse)
    self.num_threads = arguments.thread_limit(num_threads)
    return self


@cython.final
@cython.freelist(8)
@cython.no_gc
cdef class Options:
    """See above. Caches narrow the window and shift the positions of a call."""

    cdef bint depends_on_positions(self) noexcept:
        """Whether positions affect the result."""
        return self.alibi_slopes is not None or 0 <= self.left < FARTHEST or 0 <= self.right < FARTHEST

    cdef int lower(
        self, Plan *p, np.ndarray query, ptrdiff_t heads, int lead, const np.npy_intp *leading, int ndim,
        const np.npy_intp *scores,
    ) except -1:
        """Check the options against the arrays, and write those of all sequences to the plan.

        `leading` holds the `lead` axes of the sequences, `scores` the shape (..., Hq, Sq, Sk) that a mask broadcasts
        to. The sizes in the plan must be set.
        """
        cdef fa_attention *call = &p.call
        cdef np.ndarray slopes
        p.left, p.right = self.left, self.right
        call.scale = 1 / sqrt(<double>call.head_size) if isnan(self.scale) else self.scale
        call.softcap = self.softcap
        p.group_options = call.group * (8 if call.type == FA_F64 else 4)  # both are in the type of sums
        p.sinks = NULL
        if self.q_offset is not None:
            self.q_offset = arguments.per_sequence("q_offset", self.q_offset, lead, leading)
        if self.kv_lengths is not None:
            self.kv_lengths = arguments.per_sequence("kv_lengths", self.kv_lengths, lead, leading)
        if self.alibi_slopes is not None:
            slopes = arguments.attention_slopes("alibi_slopes", self.alibi_slopes, query, lead, leading, heads)
            self.alibi_slopes = slopes.reshape(-1, heads) if slopes.ndim > 2 else slopes
        if self.sinks is not None:
            self.sinks = arguments.attention_sinks("sinks", self.sinks, query, heads)
            p.sinks = <const char *>np.PyArray_DATA(<np.ndarray>self.sinks)
        return self.lower_mask(p, query, ndim, scores)

    cdef int lower_mask(self, Plan *p, np.ndarray query, int ndim, const np.npy_intp *scores) except -1:
        cdef fa_attention *call = &p.call
        cdef np.ndarray mask
        call.mask_type = FA_NO_MASK
        call.mask_head_stride = call.mask_row_stride = call.mask_stride = p.mask_group = 0
        if self.attn_mask is None:
            return 0
        self.attn_mask = mask = arguments.attention_mask("attn_mask", self.attn_mask, query, ndim, scores)
        call.mask_type = FA_MASK_BOOL if np.PyArray_TYPE(mask) == np.NPY_BOOL else <int>arguments.type_of(mask)
        call.mask_head_stride, call.mask_row_stride = stride(mask, 3), stride(mask, 2)
        call.mask_stride = stride(mask, 1)
        p.mask_group = call.mask_head_stride * call.group
        return 0

    cdef void place(self, Sequence *s, ptrdiff_t n) noexcept:
        """Set the number of keys, the position of the first query and the slopes of sequence n."""
        if self.kv_lengths is not None:
            s.key_end = arguments.entry(<np.ndarray>self.kv_lengths, n)
        s.q_offset = s.key_end - s.queries if self.q_offset is None else arguments.entry(<np.ndarray>self.q_offset, n)
        s.slopes = NULL
        if self.alibi_slopes is not None:
            s.slopes = <const char *>np.PyArray_DATA(<np.ndarray>self.alibi_slopes)
            s.slopes += n * stride(<np.ndarray>self.alibi_slopes, 2)
