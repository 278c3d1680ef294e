from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from fastattn._core.targets cimport fa_attention, fa_kernels

cdef enum:
    AT_HAND = 4  # sequences that need no allocation


cdef struct Sequence:
    const char *query
    const char *key
    const char *value
    const char *mask
    char *out
    char *lse
    const char *slopes
    const int64_t *pages                               # its block table, if keys and values are paged
    ptrdiff_t queries, q_offset, key_begin, key_end  # the keys that some query may see
    ptrdiff_t begin_offset, end_offset               # query i: i + begin_offset <= j < i + end_offset, within FAR
    ptrdiff_t rows, tiled_rows                        # of a kv head; those for attention_tiled
    ptrdiff_t parts, part_keys
    ptrdiff_t row_items, first_item                  # of a kv head; where the sequence's items begin
    double work                                      # estimated FLOPs


cdef struct Plan:
    fa_attention call
    ptrdiff_t left, right              # a query at position p sees the keys p - left <= j <= p + right; -1: unbounded
    ptrdiff_t query_group, key_head, value_head, mask_group, out_group, lse_group  # bytes from one kv head to the next
    const char *key_scales             # of int8 keys and values
    const char *value_scales
    ptrdiff_t key_scale_head, value_scale_head
    ptrdiff_t kv_heads
    bint weights                       # attention_weights: return the weights
    const char *sinks
    const char *position_bias
    ptrdiff_t group_options            # bytes of a group's sinks or slopes
    ptrdiff_t group_biases             # and of its position biases
    Sequence *sequences
    ptrdiff_t count
    Sequence[AT_HAND] at_hand
    ptrdiff_t item_rows, whole_items, items  # rows of an item; items that are not cut into parts come first
    int threads
    const fa_kernels *kernels
    ptrdiff_t first_item, most_parts   # of the wave, and where its parts are
    char *part_out
    char *part_max
    char *part_sum


cdef bint take_sequences(Plan *p, ptrdiff_t count) noexcept nogil
cdef void release_sequences(Plan *p) noexcept nogil
cdef bint run_call(Plan *p, int asked) noexcept nogil
