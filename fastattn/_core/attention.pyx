"""The interface of attention to NumPy: arguments are checked, results made, and arrays become addresses.

Padded, packed and paged calls share one function, `attend`; sequences.pyx has the rest.
"""

cimport numpy as np
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport entry, length
from fastattn._core cimport costs, strides
from fastattn._core.options cimport Options
from fastattn._core.sequences cimport Attention, cut_packed, cut_padded, cut_paged, run_attention

np.import_array()


cdef struct Shape:  # of the result
    int lead, ndim              # number of axes: leading ones (of sequences), all
    np.npy_intp[strides.MOST_AXES] lengths
    const np.npy_intp *leading  # the leading axes, which are not those of `lengths` if packed


cdef const int64_t *integers(np.ndarray x) noexcept:
    if x is None:
        return NULL
    return <const int64_t *>np.PyArray_DATA(x)


cdef object attend(
    Attention *at, Shape *shape, np.ndarray q, np.ndarray k, np.ndarray v, Options options, Pages pages
):
    """Attention over arrays with matching shapes; v is None for the weights, `pages` None unless k and v are paged."""
    cdef np.ndarray result, target, lse = None
    cdef bint done = True
    cdef int last = shape.ndim - 1
    shape.lengths[last] = at.keys
    options.lower(at, q, length(q, at.heads), shape.lead, shape.leading, shape.ndim, shape.lengths)
    if options.kv_lengths is not None:
        check_lengths(at, <np.ndarray>options.kv_lengths)
    shape.lengths[last] = at.keys if v is None else length(v, 1)
    result = target = arguments.output("out", options.out, shape.ndim, shape.lengths, q, "query")
    if options.out is not None:
        target = arguments.detached_output(result, (), (q, k, v, options.attn_mask, options.position_bias))
    if options.return_lse:
        lse = np.PyArray_EMPTY(last, shape.lengths, arguments.computed_in(q), 0)

    arguments.by_address(&at.query, q)
    arguments.by_address(&at.key, k)
    arguments.by_address(&at.value, v)
    arguments.by_address(&at.out, target)
    arguments.by_address(&at.lse, lse)
    arguments.by_address(&at.mask, <np.ndarray>options.attn_mask)
    arguments.by_address(&at.key_scales, None if pages is None else pages.key_scales)
    arguments.by_address(&at.value_scales, None if pages is None else pages.value_scales)
    # A result without elements may have any number of sequences and queries: allocate nothing for them.
    if np.PyArray_SIZE(result) or (lse is not None and np.PyArray_SIZE(lse)):
        if <double>np.PyArray_SIZE(q) * at.keys < costs.ATTENTION_LOCKED_PRODUCTS:
            done = run_attention(at)
        else:
            with nogil:
                done = run_attention(at)
    out = arguments.finish("attention", done, result, target, options.out)
    return out if lse is None else (out, lse)


cdef int check_lengths(const Attention *at, np.ndarray lengths) except -1:
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
    cdef Attention at
    cdef Shape shape
    cdef int i
    at.cut, at.heads, at.tokens = cut_padded, 3, 2
    shape.ndim = (
        arguments.weights_shape(q, k, shape.lengths) if weights else arguments.attention_shape(q, k, v, shape.lengths)
    )
    shape.lead = at.batch.count = max(shape.ndim - 3, 0)
    for i in range(shape.lead):
        at.batch.length[i] = shape.lengths[i]
    shape.leading, at.count = shape.lengths, strides.total(&at.batch)
    at.queries, at.keys = length(q, 2), length(k, 2)
    at.begin_q = at.begin_k = at.block_tables = at.first_keys = at.ends = NULL
    return attend(&at, &shape, q, k, v, options, None)


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
    cdef Attention at
    cdef Shape shape
    at.cut, at.heads, at.tokens = cut_packed, 2, 3
    shape.ndim = arguments.packed_shape(q, k, v, shape.lengths)
    begin_q = arguments.boundaries("cu_seqlens_q", cu_seqlens_q, q, "query")
    begin_k = arguments.boundaries("cu_seqlens_k", cu_seqlens_k, k, "key")
    arguments.as_many("cu_seqlens_k", begin_k, begin_q, "cu_seqlens_q")
    count = at.count = begin_q.shape[0] - 1
    shape.lead, shape.leading, at.batch.count = 1, &count, 0
    at.queries, at.keys = length(q, 3), length(k, 3)
    at.begin_q, at.begin_k = integers(begin_q), integers(begin_k)
    at.block_tables = at.first_keys = at.ends = NULL
    return attend(&at, &shape, q, k, v, options, None)


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
    cdef Attention at
    cdef Shape shape
    at.cut, at.heads, at.tokens, shape.ndim = cut_paged, 3, 2, 4
    at.count = at.batch.length[0] = block_tables.shape[0]
    arguments.cached_shape(q, pages.key_pages, pages.value_pages, at.count, shape.lengths)
    shape.lead, shape.leading, at.batch.count = 1, shape.lengths, 1
    at.queries, at.keys = length(q, 2), 0
    for n in range(at.count):
        at.keys = max(at.keys, entry(lengths, n))
    at.block_tables, at.table_length = integers(block_tables), block_tables.shape[1]
    at.first_keys, at.ends = integers(first_keys), integers(lengths)
    at.begin_q = at.begin_k = NULL
    return attend(&at, &shape, q, pages.key_pages, pages.value_pages, options, pages)
