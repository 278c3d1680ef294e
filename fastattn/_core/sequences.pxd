from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from fastattn._core.arrays cimport Array
from fastattn._core.plan cimport Sequence
from fastattn._core.strides cimport Axes
from fastattn._core.targets cimport fa_attention


cdef struct Numbers:
    const int64_t *first  # NULL: not given
    ptrdiff_t step        # 1: a number for each sequence, in C order of the leading axes; 0: one for all


cdef struct Attention:
    # Sequence n of the arrays: cut_padded, cut_packed or cut_paged.
    void (*cut)(Sequence *, ptrdiff_t n, const Attention *, const fa_attention *) noexcept nogil
    int heads, tokens                # axes of queries, keys and values, counted from the end
    ptrdiff_t count, queries, keys   # sequences; queries and keys of each, or the most keys of any
    Array query, key, value, out, lse, mask  # value is missing for the weights; lse and mask may be
    Axes batch                       # from sequence to sequence: count and lengths; no axes if packed
    const int64_t *begin_q           # packed: where each sequence begins
    const int64_t *begin_k
    const int64_t *block_tables      # paged: a row for each sequence; else NULL
    ptrdiff_t table_length
    const int64_t *first_keys        # paged: the first key of each sequence, or NULL, and its end
    const int64_t *ends
    Array key_scales, value_scales   # of int8 pages

    # Options
    ptrdiff_t left, right            # a query at position p sees the keys p - left <= j <= p + right; -1: unbounded
    double scale                     # NaN: 1 / sqrt(head size)
    double softcap                   # 0: none
    const char *sinks                # in the type of sums, contiguous, one for each query head; NULL: none
    const char *slopes               # likewise, for all sequences or, with a step in bytes, for each
    ptrdiff_t slopes_step
    const char *position_bias        # likewise, a row for each query head; NULL: none
    ptrdiff_t bias_width             # numbers of a row, for the distances from -(width // 2) to width // 2
    Numbers q_offset, kv_lengths
    int num_threads                  # 0: the default


cdef void cut_padded(Sequence *s, ptrdiff_t n, const Attention *at, const fa_attention *call) noexcept nogil
cdef void cut_packed(Sequence *s, ptrdiff_t n, const Attention *at, const fa_attention *call) noexcept nogil
cdef void cut_paged(Sequence *s, ptrdiff_t n, const Attention *at, const fa_attention *call) noexcept nogil

cdef bint run_attention(Attention *at) noexcept nogil
