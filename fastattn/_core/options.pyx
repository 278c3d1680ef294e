# cython: embedsignature.format=clinic
"""The options of attention, in one object: made by name, checked, and lowered to what needs no Python.

A public function makes it from its arguments by `attention_options`, which checks what does not depend on arrays.
`lower` does the rest once the arrays of the call are known. All code in between only passes the object on. A new option
is an argument, a field, its check, and the line that lowers it to a field of sequences.pxd, all of them here.
"""

cimport cython
cimport numpy as np
from libc.math cimport NAN
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport length
from fastattn._core.sequences cimport Attention, Numbers

np.import_array()

FARTHEST = 1 << 48


def attention_options(
    *, attn_mask=None, is_causal=False, q_offset=None, window=None, scale=None, softcap=None, sinks=None,
    alibi_slopes=None, position_bias=None, kv_lengths=None, out=None, return_lse=False, num_threads=None,
):
    """The options of one call of attention; see fastattn.attention for their meaning."""
    cdef Options self = Options.__new__(Options)
    self.attn_mask, self.q_offset, self.kv_lengths = attn_mask, q_offset, kv_lengths
    self.sinks, self.alibi_slopes, self.position_bias, self.out = sinks, alibi_slopes, position_bias, out
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
        return (
            self.alibi_slopes is not None or self.position_bias is not None
            or 0 <= self.left < FARTHEST or 0 <= self.right < FARTHEST
        )

    cdef int lower(
        self, Attention *at, np.ndarray query, ptrdiff_t heads, int lead, const np.npy_intp *leading, int ndim,
        const np.npy_intp *scores,
    ) except -1:
        """Check the options against the arrays, and write them to the call, but for the mask and the output.

        `leading` holds the `lead` axes of the sequences, `scores` the shape (..., Hq, Sq, Sk) that a mask broadcasts
        to.
        """
        cdef np.ndarray slopes
        at.left, at.right, at.scale, at.softcap = self.left, self.right, self.scale, self.softcap
        at.num_threads = self.num_threads
        if self.q_offset is not None:
            self.q_offset = arguments.per_sequence("q_offset", self.q_offset, lead, leading)
        if self.kv_lengths is not None:
            self.kv_lengths = arguments.per_sequence("kv_lengths", self.kv_lengths, lead, leading)
        at.q_offset, at.kv_lengths = numbers(<np.ndarray>self.q_offset), numbers(<np.ndarray>self.kv_lengths)
        at.sinks = at.slopes = at.position_bias = NULL
        at.slopes_step = at.bias_width = 0
        if self.alibi_slopes is not None:
            slopes = arguments.attention_slopes("alibi_slopes", self.alibi_slopes, query, lead, leading, heads)
            self.alibi_slopes = slopes
            at.slopes = <const char *>np.PyArray_DATA(slopes)
            at.slopes_step = heads * np.PyArray_ITEMSIZE(slopes) if slopes.ndim > 1 else 0
        if self.position_bias is not None:
            self.position_bias = arguments.position_bias("position_bias", self.position_bias, query, heads)
            at.position_bias = <const char *>np.PyArray_DATA(<np.ndarray>self.position_bias)
            at.bias_width = length(<np.ndarray>self.position_bias, 1)
        if self.sinks is not None:
            self.sinks = arguments.attention_sinks("sinks", self.sinks, query, heads)
            at.sinks = <const char *>np.PyArray_DATA(<np.ndarray>self.sinks)
        if self.attn_mask is not None:
            self.attn_mask = arguments.attention_mask("attn_mask", self.attn_mask, query, ndim, scores)
        return 0


cdef Numbers numbers(np.ndarray x) noexcept:
    """Those of an int64 array in C order, of one for all sequences, or of None."""
    if x is None:
        return Numbers(NULL, 0)
    return Numbers(<const int64_t *>np.PyArray_DATA(x), 1 if x.ndim else 0)
