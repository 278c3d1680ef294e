"""Attention over arrays by their addresses: they become strides and a list of sequences for the planner.

Padded, packed and paged calls differ in the axes of heads and tokens, and in how to find a sequence in the arrays:
`Attention.cut`. Nothing here uses Python or NumPy, nor checks anything: attention.pyx does, and capi.pyx for C.
"""

from libc.math cimport isnan, sqrt
from libc.stddef cimport ptrdiff_t

from fastattn._core cimport strides
from fastattn._core.arrays cimport Array, element_stride, length, stride
from fastattn._core.plan cimport Plan, Sequence, release_sequences, run_call, take_sequences
from fastattn._core.targets cimport FA_F64, FA_NO_MASK, fa_attention, fa_rows, fa_type

cdef enum:
    QUERY, KEY, VALUE, OUT, LSE, MASK  # rows of Axes.stride


# --- sequence n of the arrays ---

cdef void cut_padded(Sequence *s, ptrdiff_t n, const Attention *at, const fa_attention *call) noexcept nogil:
    s.query = at.query.data + strides.offset(&at.batch, QUERY, n)
    s.key = at.key.data + strides.offset(&at.batch, KEY, n)
    s.value = at.value.data + strides.offset(&at.batch, VALUE, n)
    s.mask = at.mask.data + strides.offset(&at.batch, MASK, n)
    s.out = at.out.data + strides.offset(&at.batch, OUT, n)
    s.lse = at.lse.data + strides.offset(&at.batch, LSE, n)
    s.pages = NULL
    s.queries, s.key_begin, s.key_end = at.queries, 0, at.keys


cdef void cut_packed(Sequence *s, ptrdiff_t n, const Attention *at, const fa_attention *call) noexcept nogil:
    cdef ptrdiff_t first_q = at.begin_q[n], first_k = at.begin_k[n]
    cut_padded(s, 0, at, call)
    s.query += first_q * call.query_row_stride
    s.key += first_k * call.key.row
    s.value += first_k * call.value.row
    s.out += first_q * call.out_row_stride
    s.lse += first_q * call.lse_row_stride
    s.queries, s.key_end = at.begin_q[n + 1] - first_q, at.begin_k[n + 1] - first_k


cdef void cut_paged(Sequence *s, ptrdiff_t n, const Attention *at, const fa_attention *call) noexcept nogil:
    cut_padded(s, n, at, call)
    s.pages = at.block_tables + n * at.table_length
    s.key_begin, s.key_end = at.first_keys[n] if at.first_keys != NULL else 0, at.ends[n]


# --- from arrays to the plan ---

cdef void size_up(Plan *p, const Attention *at) noexcept nogil:
    """Sizes and types."""
    cdef fa_attention *call = &p.call
    p.weights, p.kv_heads = at.value.data == NULL, length(&at.key, at.heads)
    call.type = <fa_type>at.query.type
    call.group = length(&at.query, at.heads) // p.kv_heads if p.kv_heads else 0
    call.keys, call.head_size = at.keys, length(&at.query, 1)
    call.value_size = 0 if p.weights else length(&at.value, 1)


cdef void describe_rows(fa_rows *rows, ptrdiff_t *head, const Array *x, const Attention *at) noexcept nogil:
    """Type and strides of keys or values."""
    rows.type = <fa_type>x.type
    rows.row, rows.element, head[0] = stride(x, at.tokens), element_stride(x), stride(x, at.heads)
    rows.page = x.strides[0] if at.block_tables != NULL else 0
    rows.scale_row = rows.scale_page = 0


cdef void describe_scales(fa_rows *rows, ptrdiff_t *head, const Array *scales) noexcept nogil:
    """Strides of the scales of int8 pages, which may be missing."""
    head[0] = 0
    if scales.data != NULL:
        rows.scale_page, head[0], rows.scale_row = scales.strides[0], scales.strides[1], scales.strides[2]


cdef void describe(Plan *p, const Attention *at) noexcept nogil:
    """Strides of queries and results."""
    cdef fa_attention *call = &p.call
    cdef int heads = at.heads, tokens = at.tokens
    call.query_head_stride, call.query_row_stride = stride(&at.query, heads), stride(&at.query, tokens)
    call.out_head_stride, call.out_row_stride = stride(&at.out, heads), stride(&at.out, tokens)
    call.query_stride, call.out_stride = element_stride(&at.query), element_stride(&at.out)
    call.lse_head_stride = call.lse_row_stride = 0
    if at.lse.data != NULL:
        call.lse_head_stride, call.lse_row_stride = stride(&at.lse, heads - 1), stride(&at.lse, tokens - 1)
    p.query_group, p.out_group, p.lse_group = (
        call.query_head_stride * call.group, call.out_head_stride * call.group, call.lse_head_stride * call.group
    )


cdef void describe_options(Plan *p, const Attention *at) noexcept nogil:
    """Those of all sequences."""
    cdef fa_attention *call = &p.call
    p.left, p.right = at.left, at.right
    call.scale = 1 / sqrt(<double>call.head_size) if isnan(at.scale) else at.scale
    call.softcap = at.softcap
    p.group_options = call.group * (8 if call.type == FA_F64 else 4)  # sinks and slopes are in the type of sums
    p.sinks, p.position_bias = at.sinks, at.position_bias
    call.bias_reach = -1 if at.position_bias == NULL else at.bias_width // 2
    p.group_biases = p.group_options * at.bias_width
    call.mask_type = FA_NO_MASK
    call.mask_head_stride = call.mask_row_stride = call.mask_stride = p.mask_group = 0
    if at.mask.data != NULL:
        call.mask_type = at.mask.type
        call.mask_head_stride, call.mask_row_stride = stride(&at.mask, 3), stride(&at.mask, 2)
        call.mask_stride = stride(&at.mask, 1)
        p.mask_group = call.mask_head_stride * call.group


cdef void walk(Attention *at, int array, const Array *x, int own) noexcept nogil:
    """Batch strides of an array with `own` axes after those of the batch; it may be broadcast, or missing."""
    cdef int i
    for i in range(at.batch.count):
        at.batch.stride[array][i] = stride(x, at.batch.count + own - i)


cdef void fill(Plan *p, Attention *at) noexcept nogil:
    size_up(p, at)
    describe(p, at)
    describe_options(p, at)
    if p.weights:
        at.value = at.key
    describe_rows(&p.call.key, &p.key_head, &at.key, at)
    describe_rows(&p.call.value, &p.value_head, &at.value, at)
    p.call.page_rows = 0 if at.block_tables == NULL else length(&at.key, at.tokens)
    describe_scales(&p.call.key, &p.key_scale_head, &at.key_scales)
    describe_scales(&p.call.value, &p.value_scale_head, &at.value_scales)
    p.key_scales, p.value_scales = at.key_scales.data, at.value_scales.data
    walk(at, QUERY, &at.query, 3)
    walk(at, KEY, &at.key, 3)
    walk(at, VALUE, &at.value, 3)
    walk(at, OUT, &at.out, 3)
    walk(at, LSE, &at.lse, 2)
    walk(at, MASK, &at.mask, 3)
    if at.block_tables != NULL:  # the first axis is that of the pages
        at.batch.stride[KEY][0] = at.batch.stride[VALUE][0] = 0


cdef void place(Sequence *s, ptrdiff_t n, const Attention *at) noexcept nogil:
    """Set the number of keys, the position of the first query and the slopes of sequence n."""
    if at.kv_lengths.first != NULL:
        s.key_end = at.kv_lengths.first[n * at.kv_lengths.step]
    s.q_offset = s.key_end - s.queries
    if at.q_offset.first != NULL:
        s.q_offset = at.q_offset.first[n * at.q_offset.step]
    s.slopes = at.slopes + n * at.slopes_step


cdef bint run_attention(Attention *at) noexcept nogil:
    """Run a call whose arguments have been checked; False if there is no memory left."""
    cdef Plan p
    cdef ptrdiff_t n
    cdef bint done = True
    fill(&p, at)
    if not take_sequences(&p, at.count):
        return False
    for n in range(p.count):
        at.cut(&p.sequences[n], n, at, &p.call)
        place(&p.sequences[n], n, at)
    done = run_call(&p, at.num_threads)
    release_sequences(&p)
    return done
