"""The interface of attention between NumPy and the planner: arrays become addresses, strides and a list of sequences.

Padded, packed and paged calls share one function, `attend`. They differ in the axes of heads and tokens, and in how to
find a sequence in the arrays: `Layout` holds both.
"""

cimport numpy as np
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport element_stride, entry, length, stride
from fastattn._core cimport costs, strides
from fastattn._core.options cimport Options
from fastattn._core.plan cimport Plan, Sequence, release_sequences, run_call, take_sequences
from fastattn._core.targets cimport fa_attention, fa_rows

np.import_array()

cdef enum:
    QUERY, KEY, VALUE, OUT, LSE, MASK  # rows of Axes.stride
    ARRAYS


cdef struct Layout:
    void (*cut)(Sequence *, ptrdiff_t, const Layout *, const fa_attention *) noexcept nogil
    int heads, tokens                  # axes of queries, keys and values, counted from the end
    ptrdiff_t count, queries, keys     # sequences; queries and keys of each, or the most keys of any
    int lead, ndim                     # number of axes of the result: leading ones (of sequences), all
    np.npy_intp[strides.MOST_AXES] shape
    const np.npy_intp *leading         # the leading axes, which are not those of `shape` if packed
    char *data[ARRAYS]
    strides.Axes batch                 # from sequence to sequence; no axes if packed
    const int64_t *begin_q             # packed: where each sequence begins
    const int64_t *begin_k
    const int64_t *block_tables        # paged: a row for each sequence; below, its first key and its end
    ptrdiff_t table_length
    const int64_t *first_keys
    const int64_t *ends


# --- sequence n of the arrays ---

cdef void cut_padded(Sequence *s, ptrdiff_t n, const Layout *at, const fa_attention *call) noexcept nogil:
    s.query = at.data[QUERY] + strides.offset(&at.batch, QUERY, n)
    s.key = at.data[KEY] + strides.offset(&at.batch, KEY, n)
    s.value = at.data[VALUE] + strides.offset(&at.batch, VALUE, n)
    s.mask = at.data[MASK] + strides.offset(&at.batch, MASK, n)
    s.out = at.data[OUT] + strides.offset(&at.batch, OUT, n)
    s.lse = at.data[LSE] + strides.offset(&at.batch, LSE, n)
    s.pages = NULL
    s.queries, s.key_begin, s.key_end = at.queries, 0, at.keys


cdef void cut_packed(Sequence *s, ptrdiff_t n, const Layout *at, const fa_attention *call) noexcept nogil:
    cdef ptrdiff_t first_q = at.begin_q[n], first_k = at.begin_k[n]
    cut_padded(s, 0, at, call)
    s.query += first_q * call.query_row_stride
    s.key += first_k * call.key.row
    s.value += first_k * call.value.row
    s.out += first_q * call.out_row_stride
    s.lse += first_q * call.lse_row_stride
    s.queries, s.key_end = at.begin_q[n + 1] - first_q, at.begin_k[n + 1] - first_k


cdef void cut_paged(Sequence *s, ptrdiff_t n, const Layout *at, const fa_attention *call) noexcept nogil:
    cut_padded(s, n, at, call)
    s.pages = at.block_tables + n * at.table_length
    s.key_begin, s.key_end = at.first_keys[n] if at.first_keys != NULL else 0, at.ends[n]


# --- from arrays to the plan ---

cdef char *data(np.ndarray x) noexcept:
    return NULL if x is None else <char *>np.PyArray_DATA(x)


cdef const int64_t *integers(np.ndarray x) noexcept:
    return <const int64_t *>data(x)


cdef void size_up(Plan *p, const Layout *at, np.ndarray q, np.ndarray k, np.ndarray v) noexcept:
    """Sizes and types; v is None for the weights."""
    cdef fa_attention *call = &p.call
    p.weights, p.kv_heads = v is None, length(k, at.heads)
    call.type = arguments.type_of(q)
    call.group = length(q, at.heads) // p.kv_heads if p.kv_heads else 0
    call.keys, call.head_size = at.keys, length(q, 1)
    call.value_size = 0 if v is None else length(v, 1)


cdef void describe_rows(fa_rows *rows, ptrdiff_t *head, np.ndarray x, const Layout *at) noexcept:
    """Type and strides of keys or values."""
    rows.type = arguments.weight_type_of(x)
    rows.row, rows.element, head[0] = stride(x, at.tokens), element_stride(x), stride(x, at.heads)
    rows.page = x.strides[0] if at.block_tables != NULL else 0
    rows.scale_row = rows.scale_page = 0


cdef const char *describe_scales(fa_rows *rows, ptrdiff_t *head, np.ndarray scales) noexcept:
    """Strides of the scales of int8 pages, which may be None; returns their address."""
    head[0] = 0
    if scales is not None:
        rows.scale_page, head[0], rows.scale_row = scales.strides[0], scales.strides[1], scales.strides[2]
    return data(scales)


cdef void describe(Plan *p, const Layout *at, np.ndarray q, np.ndarray out, np.ndarray lse) noexcept:
    """Strides of queries and results."""
    cdef fa_attention *call = &p.call
    cdef int heads = at.heads, tokens = at.tokens
    call.query_head_stride, call.query_row_stride = stride(q, heads), stride(q, tokens)
    call.out_head_stride, call.out_row_stride = stride(out, heads), stride(out, tokens)
    call.query_stride, call.out_stride = element_stride(q), element_stride(out)
    call.lse_head_stride = call.lse_row_stride = 0
    if lse is not None:
        call.lse_head_stride, call.lse_row_stride = stride(lse, heads - 1), stride(lse, tokens - 1)
    p.query_group, p.out_group, p.lse_group = (
        call.query_head_stride * call.group, call.out_head_stride * call.group, call.lse_head_stride * call.group
    )


cdef void walk(Layout *at, int array, np.ndarray x, int own) noexcept:
    """Address and batch strides of an array with `own` axes after those of the batch; it may be broadcast, or None."""
    cdef int i
    at.data[array] = data(x)
    for i in range(at.batch.count):
        at.batch.stride[array][i] = 0 if x is None else stride(x, at.batch.count + own - i)


# --- the call ---

cdef object attend(Layout *at, np.ndarray q, np.ndarray k, np.ndarray v, Options options, Pages pages):
    """Attention over arrays with matching shapes; v is None for the weights, `pages` None unless k and v are paged."""
    cdef Plan p
    cdef np.ndarray result, target, lse = None
    cdef ptrdiff_t n
    cdef bint done = True
    size_up(&p, at, q, k, v)
    at.shape[at.ndim - 1] = at.keys
    options.lower(&p, q, length(q, at.heads), at.lead, at.leading, at.ndim, at.shape)
    if options.kv_lengths is not None:
        check_lengths(at, <np.ndarray>options.kv_lengths)
    at.shape[at.ndim - 1] = at.keys if v is None else p.call.value_size
    result = target = arguments.output("out", options.out, at.ndim, at.shape, q, "query")
    if options.out is not None:
        target = arguments.detached_output(result, (), (q, k, v, options.attn_mask))
    if options.return_lse:
        lse = np.PyArray_EMPTY(at.ndim - 1, at.shape, arguments.computed_in(q), 0)

    describe(&p, at, q, target, lse)
    v = k if v is None else v
    describe_rows(&p.call.key, &p.key_head, k, at)
    describe_rows(&p.call.value, &p.value_head, v, at)
    p.call.page_rows = 0 if pages is None else length(k, at.tokens)
    p.key_scales = describe_scales(&p.call.key, &p.key_scale_head, None if pages is None else pages.key_scales)
    p.value_scales = describe_scales(&p.call.value, &p.value_scale_head, None if pages is None else pages.value_scales)
    walk(at, QUERY, q, 3)
    walk(at, KEY, k if pages is None else None, 3)
    walk(at, VALUE, v if pages is None else None, 3)
    walk(at, OUT, target, 3)
    walk(at, LSE, lse, 2)
    walk(at, MASK, <np.ndarray>options.attn_mask, 3)
    if pages is not None:
        at.data[KEY], at.data[VALUE] = data(k), data(v)

    # A result without elements may have any number of sequences and queries: allocate nothing for them.
    if np.PyArray_SIZE(result) or (lse is not None and np.PyArray_SIZE(lse)):
        done = take_sequences(&p, at.count)
        if done:
            for n in range(p.count):
                at.cut(&p.sequences[n], n, at, &p.call)
                options.place(&p.sequences[n], n)
            if <double>np.PyArray_SIZE(q) * at.keys < costs.ATTENTION_LOCKED_PRODUCTS:
                done = run_call(&p, options.num_threads)
            else:
                with nogil:
                    done = run_call(&p, options.num_threads)
            release_sequences(&p)
    out = arguments.finish("attention", done, result, target, options.out)
    return out if lse is None else (out, lse)


cdef int check_lengths(const Layout *at, np.ndarray lengths) except -1:
    cdef ptrdiff_t n
    if at.begin_k == NULL:
        for n in range(np.PyArray_SIZE(lengths)):
            arguments.length_within("kv_lengths", entry(lengths, n), at.keys)
        return 0
    for n in range(at.count):
        arguments.length_within("kv_lengths", entry(lengths, n), at.begin_k[n + 1] - at.begin_k[n])
    return 0


cdef object attend_padded(query, key, value, Options options, bint weights):
    """Attention of sequences along leading axes, which broadcast; for the weights `value` is None."""
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef np.ndarray k = arguments.real_array_like("key", key, q, "query")
    cdef np.ndarray v = None if weights else arguments.real_array_like("value", value, q, "query")
    cdef Layout at
    cdef int i
    at.cut, at.heads, at.tokens = cut_padded, 3, 2
    at.ndim = arguments.weights_shape(q, k, at.shape) if weights else arguments.attention_shape(q, k, v, at.shape)
    at.lead = at.batch.count = max(at.ndim - 3, 0)
    for i in range(at.lead):
        at.batch.length[i] = at.shape[i]
    at.leading, at.count = at.shape, strides.total(&at.batch)
    at.queries, at.keys = length(q, 2), length(k, 2)
    at.begin_q = at.begin_k = at.block_tables = at.first_keys = at.ends = NULL
    return attend(&at, q, k, v, options, None)


def scaled_dot_product_attention(query, key, value, Options options not None):
    """See fastattn.attention."""
    return attend_padded(query, key, value, options, False)


def attention_weights(query, key, Options options not None):
    """See fastattn.attention."""
    return attend_padded(query, key, None, options, True)


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, Options options not None):
    """See fastattn.attention."""
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef np.ndarray k = arguments.real_array_like("key", key, q, "query")
    cdef np.ndarray v = arguments.real_array_like("value", value, q, "query")
    cdef np.ndarray begin_q, begin_k
    cdef np.npy_intp count
    cdef Layout at
    at.cut, at.heads, at.tokens = cut_packed, 2, 3
    at.ndim = arguments.packed_shape(q, k, v, at.shape)
    begin_q = arguments.boundaries("cu_seqlens_q", cu_seqlens_q, q, "query")
    begin_k = arguments.boundaries("cu_seqlens_k", cu_seqlens_k, k, "key")
    arguments.as_many("cu_seqlens_k", begin_k, begin_q, "cu_seqlens_q")
    count = at.count = begin_q.shape[0] - 1
    at.lead, at.leading, at.batch.count = 1, &count, 0
    at.queries, at.keys = length(q, 3), length(k, 3)
    at.begin_q, at.begin_k = integers(begin_q), integers(begin_k)
    at.block_tables = at.first_keys = at.ends = NULL
    return attend(&at, q, k, v, options, None)


cdef class Pages:
    pass


cdef object attend_pages(
    query, Pages pages, np.ndarray block_tables, np.ndarray first_keys, np.ndarray lengths, Options options
):
    """Attention over a cache's pages, read in place; for cache.pyx, which has checked them.

    query (B, Hq, Sq, D). Key j of sequence b, first_keys[b] <= j < lengths[b], is row ``j % page size`` of page
    ``block_tables[b, j // page size]``. block_tables, first_keys (or None) and lengths are int64, in C order.
    """
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef ptrdiff_t n
    cdef Layout at
    at.cut, at.heads, at.tokens, at.ndim = cut_paged, 3, 2, 4
    at.count = at.batch.length[0] = block_tables.shape[0]
    arguments.cached_shape(q, pages.key_pages, pages.value_pages, at.count, at.shape)
    at.lead, at.leading, at.batch.count = 1, at.shape, 1
    at.queries, at.keys = length(q, 2), 0
    for n in range(at.count):
        at.keys = max(at.keys, entry(lengths, n))
    at.block_tables, at.table_length = integers(block_tables), block_tables.shape[1]
    at.first_keys, at.ends = integers(first_keys), integers(lengths)
    at.begin_q = at.begin_k = NULL
    return attend(&at, q, pages.key_pages, pages.value_pages, options, pages)
