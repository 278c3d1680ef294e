"""Caches of keys and values: the layout of their memory, and the storing of new rows by several threads.

Keys and values are stored in pages, (pages, kv heads, page size, size); each int8 row has a scale. Fixed has one page
per sequence, used as a ring buffer with a window; Paged allocates pages as sequences grow, and shares them. Attention
reads pages in place: attention.pyx.

Arguments are checked before anything changes; if an operation fails later, the cache is restored. Lengths and positions
are at most FARTHEST, those of a file included, so that sums of a few of them fit 64 bits. Several threads may read a
cache; changing it while another thread uses it is not safe.
"""

import math

import numpy as np

from fastattn import _dtypes

cimport numpy as np
from libc.stddef cimport ptrdiff_t
from libc.string cimport memcpy

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport element_stride, stride
from fastattn._core cimport costs
from fastattn._core.attention cimport Pages, attend_pages
from fastattn._core.options cimport FARTHEST, Options
from fastattn._core.targets cimport (
    FA_F32, FA_F64, FA_I8, fa_cache_rows, fa_kernels, fa_size_of, fa_type, kernels_of,
    scratch as scratch_memory,
)
from fastattn._core.threads cimport run, threads_for


np.import_array()

ctypedef np.npy_int64 int64

cdef enum:
    KEYS, VALUES
    ASIDE = -1             # stands for a temporary buffer in a list of moves
    SLACK = 64             # minimum number of rows of a ring beyond its window


class OutOfPages(MemoryError):
    """A `PagedKVCache` has fewer free pages than an append needs. The cache is left unchanged.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> cache = fastattn.PagedKVCache(1, 4, 1, 8)
    >>> try:
    ...     cache.append([cache.allocate()], *np.zeros((2, 1, 1, 5, 8)))
    ... except fastattn.OutOfPages:
    ...     cache.free_pages
    1
    """


# --- storing rows ---

cdef struct Side:  # the keys of a call, or its values
    fa_cache_rows rows
    const char *x
    ptrdiff_t x_sequence_stride, x_head_stride
    char *pages                # NULL: the rows are only checked
    float *scales
    bint rejected              # a row has no finite scale, or a number that would become infinite


cdef struct Plan:
    Side sides[2]
    const char *cos
    const char *sin
    const int64 *slots         # index of sequence n of the call into the next two; NULL: n itself
    const int64 *tables
    const int64 *lengths       # tokens stored already
    const int64 *counts        # new tokens of sequence n of the call
    ptrdiff_t table_row, kv_heads, page_size
    ptrdiff_t item_tokens, blocks  # tokens of an item, items of a sequence's kv head
    bint ring                  # one page per sequence, in which later tokens replace earlier ones
    const fa_kernels *kernels


cdef void store_run(const Plan *p, int which, ptrdiff_t n, ptrdiff_t head, ptrdiff_t position, ptrdiff_t token,
                    ptrdiff_t count, void *memory) noexcept nogil:
    """Store `count` tokens of sequence n, from `token` on, in consecutive rows of a page."""
    cdef const Side *side = &p.sides[which]
    cdef ptrdiff_t slot = n if p.slots == NULL else p.slots[n], place = 0
    cdef char *out = NULL
    if side.pages != NULL:
        place = p.tables[slot * p.table_row + (0 if p.ring else position // p.page_size)] * p.kv_heads + head
        place = place * p.page_size + position % p.page_size
        out = side.pages + place * side.rows.size * fa_size_of(side.rows.stored)
    if not p.kernels.store_rows(
        &side.rows,
        side.x + n * side.x_sequence_stride + head * side.x_head_stride + token * side.rows.x_row_stride,
        p.cos + position * side.rows.cos_row_stride,
        p.sin + position * side.rows.sin_row_stride,
        out,
        side.scales + place,
        count,
        memory,
    ):
        (<Side *>side).rejected = True


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t head = index // p.blocks % p.kv_heads, n = index // p.blocks // p.kv_heads
    cdef ptrdiff_t token = index % p.blocks * p.item_tokens, end, position, count
    if p.ring and p.counts[n] > p.page_size:  # only the last tokens fit
        token += p.counts[n] - p.page_size
    end = min(token + p.item_tokens, <ptrdiff_t>p.counts[n])
    while token < end:
        position = p.lengths[n if p.slots == NULL else p.slots[n]] + token
        count = min(end - token, p.page_size - position % p.page_size)
        store_run(p, KEYS, n, head, position, token, count, memory)
        store_run(p, VALUES, n, head, position, token, count, memory)
        token += count


cdef np.ndarray zeros(shape, dtype):
    """Zeros, for which the system provides memory only when it is written to."""
    return np.zeros(shape, dtype)


cdef int64 *integers(np.ndarray x) noexcept:
    return <int64 *>np.PyArray_DATA(x)


cdef void copy_heads(char *to, ptrdiff_t to_head, np.ndarray pool, ptrdiff_t page, ptrdiff_t rows) noexcept:
    """Copy the first rows of each head of a page to `to`, in which heads are `to_head` bytes apart."""
    cdef const char *start = <const char *>np.PyArray_DATA(pool) + page * pool.strides[0]
    cdef ptrdiff_t head
    for head in range(pool.shape[1]):
        memcpy(to + head * to_head, start + head * pool.strides[1], rows * pool.strides[2])


cdef void put_heads(np.ndarray pool, ptrdiff_t page, const char *start, ptrdiff_t start_head, ptrdiff_t rows) noexcept:
    """The reverse of copy_heads."""
    cdef char *to = <char *>np.PyArray_DATA(pool) + page * pool.strides[0]
    cdef ptrdiff_t head
    for head in range(pool.shape[1]):
        memcpy(to + head * pool.strides[1], start + head * start_head, rows * pool.strides[2])


cdef void copy_rows(np.ndarray pool, ptrdiff_t to, ptrdiff_t page, ptrdiff_t rows) noexcept:
    copy_heads(<char *>np.PyArray_DATA(pool) + to * pool.strides[0], pool.strides[1], pool, page, rows)


# --- positions of queries ---

# The last padded append to a sequence, one of fewer tokens than the arrays had. Queries are padded in the same way, so
# the last query does not belong to the last token. Tokens from `end` on were appended without padding.
cdef struct Padding:
    int64 begin, end  # positions of its tokens
    int64 tokens      # number of tokens of the arrays; 0 once it is not the last append


cdef Padding *paddings(np.ndarray x) noexcept:
    """The elements of an array (sequences, 3)."""
    return <Padding *>np.PyArray_DATA(x)


cdef void note_append(Padding *padding, int64 length, int64 new, ptrdiff_t tokens) noexcept:
    """Record the append of `new` of the arrays' tokens to a sequence of that length."""
    if new < tokens:
        padding.begin, padding.end, padding.tokens = length, length + new, min(tokens, FARTHEST)
    elif new:
        padding.begin, padding.tokens = padding.end, 0


cdef void note_truncation(Padding *padding, int64 length, int64 new) noexcept:
    """Record the truncation of a sequence to the length `new`."""
    if new < length:
        padding.end = min(padding.end, new)
        padding.begin, padding.tokens = padding.end, 0


def is_valid_padding(padding, lengths):
    """Whether these can be the paddings of sequences of these lengths."""
    if padding.shape != (len(lengths), 3) or (padding < 0).any() or (padding > FARTHEST).any():
        return False
    begin, end, tokens = padding.T
    last = np.where(tokens > 0, (end == lengths) & (end - begin < tokens), begin == end)
    return bool(((begin <= end) & (end <= lengths) & last).all())


cdef int align_queries(
    Options options, np.ndarray query, np.ndarray lengths, np.ndarray padding, np.ndarray slots, bint ring
) except -1:
    """Set `q_offset` for queries that are padded like the last append, unless the caller has set it.

    ValueError if the positions are ambiguous and affect the result.
    """
    if options.q_offset is not None or query.ndim != 4:
        return 0
    cdef np.ndarray offsets = None
    cdef ptrdiff_t queries = query.shape[2]
    cdef ptrdiff_t sequences = padding.shape[0] if slots is None else slots.shape[0], n, slot
    cdef const Padding *p
    for n in range(sequences):
        slot = n if slots is None else integers(slots)[n]
        p = &paddings(padding)[slot]
        if p.tokens and p.tokens == queries:
            if offsets is None:
                offsets = (lengths if slots is None else lengths[slots]) - queries
            integers(offsets)[n] = p.begin
        elif p.end and 1 < queries and integers(lengths)[slot] - p.end < queries:
            if ring or options.depends_on_positions():
                raise ValueError(
                    f"q_offset must be given for {queries} queries of sequence {n}, which had a padded append "
                    f"(kv_lengths), got None: it is known only for as many queries as the arrays of that append had "
                    f"tokens, right after it"
                )
    options.q_offset = offsets
    return 0


# --- the pools ---

cdef class Store(Pages):
    """Pages of keys and values, and the storing of rows in them."""

    cdef readonly object dtype
    cdef readonly ptrdiff_t pages, kv_heads, page_size, head_dim, value_dim
    cdef fa_type stored

    cdef int make(
        self, ptrdiff_t pages, num_kv_heads, ptrdiff_t page_size, head_dim, dtype, value_dim, pools
    ) except -1:
        """Set sizes and arrays: those of `pools`, which may be a function of `self.pools()`, or new ones for None."""
        self.dtype = arguments.storage_dtype("dtype", dtype)
        self.pages, self.page_size = pages, page_size
        self.kv_heads = arguments.at_least_one("num_kv_heads", num_kv_heads)
        self.head_dim = arguments.at_least_one("head_dim", head_dim)
        self.value_dim = self.head_dim if value_dim is None else arguments.at_least_one("value_dim", value_dim)
        if pools is None:
            needed = sum([math.prod(shape) * kind.itemsize for shape, kind in self.pools()])
            if needed >= 1 << 63:
                raise MemoryError(f"cannot allocate a cache of {needed} bytes")
            pools = [zeros(shape, kind) for shape, kind in self.pools()]
        elif callable(pools):
            pools = pools(self.pools())
        self.key_pages, self.value_pages = pools[:2]
        self.stored = FA_I8 if self.dtype == np.int8 else arguments.type_of(self.key_pages)
        if self.stored == FA_I8:
            self.key_scales, self.value_scales = pools[2:]
        return 0

    cpdef list pools(self):
        """(shape, dtype) of the arrays: pages of keys and of values, and their scales if there are any."""
        shape = (self.pages, self.kv_heads, self.page_size)
        arrays = [((*shape, self.head_dim), self.dtype), ((*shape, self.value_dim), self.dtype)]
        if self.dtype == np.int8:
            arrays += [(shape, np.dtype(np.float32))] * 2
        return arrays

    cpdef list arrays(self):
        arrays = [self.key_pages, self.value_pages, self.key_scales, self.value_scales]
        return [x for x in arrays if x is not None]

    cdef void copy_page(self, ptrdiff_t to, ptrdiff_t page, ptrdiff_t rows) noexcept:
        """Copy the first rows of a page."""
        copy_rows(self.key_pages, to, page, rows)
        copy_rows(self.value_pages, to, page, rows)
        if self.key_scales is not None:
            copy_rows(self.key_scales, to, page, rows)
            copy_rows(self.value_scales, to, page, rows)

    cdef int must_be_writable(self) except -1:
        if not np.PyArray_ISWRITEABLE(self.key_pages):
            raise ValueError("mmap_mode must be None or 'c' for a cache that changes, got 'r', which is read-only")
        return 0

    cdef bint writes_to(self, np.ndarray x) noexcept:
        return arguments.share_memory(x, self.key_pages) or arguments.share_memory(x, self.value_pages)

    cdef int fill(self, Plan *p, np.ndarray k, np.ndarray v) except -1:
        """Set the fields of a plan that describe the arrays."""
        cdef np.ndarray x
        cdef Side *side
        cdef int which
        for which in range(2):
            side, x = &p.sides[which], v if which else k
            side.x = <const char *>np.PyArray_DATA(x)
            side.x_sequence_stride, side.x_head_stride = stride(x, 4), stride(x, 3)
            side.rows.x_row_stride, side.rows.x_stride = stride(x, 2), element_stride(x)
            side.rows.x_type, side.rows.stored = arguments.type_of(x), self.stored
            side.rows.size, side.rows.pairs = x.shape[3], 0
            side.rows.cos_row_stride = side.rows.sin_row_stride = 0
            side.pages, side.scales, side.rejected = NULL, NULL, False
        p.cos = p.sin = NULL
        p.kv_heads, p.page_size = self.kv_heads, self.page_size
        p.kernels = kernels_of(FA_F64 if self.stored == FA_F64 else FA_F32)
        return 0

    cdef int turn(self, Plan *p, np.ndarray k, cos, sin, interleaved, rotary_dim, ptrdiff_t positions) except -1:
        """Set the fields of a plan for rotary embedding of the keys, whose tables have a row per position."""
        cdef fa_cache_rows *rows = &p.sides[KEYS].rows
        cdef np.ndarray c, s
        rows.interleaved = arguments.flag("interleaved", interleaved)
        if cos is None and sin is None:
            if rotary_dim is not None:
                raise ValueError(f"rotary_dim must be None without cos and sin, got {rotary_dim}")
            return 0
        c = arguments.cache_table("cos", cos, k, positions)
        s = arguments.operand_like("sin", sin, c, "cos")
        arguments.each_pair_once("cos", c, s, rotary_dim)
        p.cos, p.sin = <const char *>np.PyArray_DATA(c), <const char *>np.PyArray_DATA(s)
        rows.pairs, rows.table_type = c.shape[1], arguments.type_of(c)
        rows.cos_row_stride, rows.cos_stride = stride(c, 2), element_stride(c)
        rows.sin_row_stride, rows.sin_stride = stride(s, 2), element_stride(s)
        return 0

    cdef int check_rows(self, Plan *p, ptrdiff_t sequences, ptrdiff_t tokens, int asked) except -1:
        """Raise unless all rows can be stored. Nothing is written."""
        cdef fa_cache_rows *keys = &p.sides[KEYS].rows
        cdef fa_cache_rows *values = &p.sides[VALUES].rows
        if may_reject(keys) or may_reject(values):
            self.run_items(p, sequences, tokens, asked)
            self.must_be_stored(p)
        return 0

    cdef int must_be_stored(self, const Plan *p) except -1:
        cdef int which
        for which in range(2):
            if p.sides[which].rejected:
                name = "value" if which else "key"
                if self.stored == FA_I8:
                    raise ValueError(f"{name} must be finite in float32 to be stored as int8, got infinity or NaN")
                row = _dtypes.BY_NAME[self.dtype.name]
                raise ValueError(
                    f"{name} must not exceed {row.largest:g} to be stored as {self.dtype}, got a larger number, which "
                    f"would become infinite: make the cache with dtype={row.wider}"
                )
        return 0

    cdef int store(self, Plan *p, ptrdiff_t sequences, ptrdiff_t tokens, int asked) except -1:
        p.sides[KEYS].pages = <char *>np.PyArray_DATA(self.key_pages)
        p.sides[VALUES].pages = <char *>np.PyArray_DATA(self.value_pages)
        if self.stored == FA_I8:
            p.sides[KEYS].scales = <float *>np.PyArray_DATA(self.key_scales)
            p.sides[VALUES].scales = <float *>np.PyArray_DATA(self.value_scales)
        return self.run_items(p, sequences, tokens, asked)

    cdef int run_items(self, Plan *p, ptrdiff_t sequences, ptrdiff_t tokens, int asked) except -1:
        """Split the `tokens` (of the longest sequence) of each kv head into items, and run them.

        MemoryError only before anything is written: this thread's scratch memory is allocated first, and if another
        thread gets none, this one runs all items again.
        """
        cdef ptrdiff_t elements = self.head_dim + self.value_dim, items, scratch
        cdef double nanoseconds
        cdef bint ready
        if p.ring:
            tokens = min(tokens, p.page_size)
        with nogil:
            p.item_tokens = max(1, costs.ITEM_ELEMENTS // elements)
            p.blocks = (tokens + p.item_tokens - 1) // p.item_tokens
            items = sequences * p.kv_heads * p.blocks
            nanoseconds = <double>sequences * p.kv_heads * tokens * elements / costs.CACHE_ELEMENTS
            scratch = max(
                p.kernels.cache_scratch(&p.sides[KEYS].rows), p.kernels.cache_scratch(&p.sides[VALUES].rows)
            )
            ready = scratch_memory(scratch) != NULL
            if ready and not run(run_item, p, items, threads_for(asked, items, nanoseconds), scratch):
                run(run_item, p, items, 1, scratch)
        if not ready:
            raise MemoryError("no scratch memory for the cache")
        return 0


cdef bint may_reject(const fa_cache_rows *rows) noexcept:
    """Whether a row may be rejected: finite numbers may become infinite, or a scale may not be finite."""
    if rows.stored == FA_F32 or rows.stored == FA_F64:
        return rows.x_type == FA_F64 and rows.stored == FA_F32
    return rows.stored == FA_I8 or rows.x_type != rows.stored or rows.pairs


cdef np.ndarray new_counts(kv_lengths, np.ndarray counts, ptrdiff_t tokens):
    """Set the number of new tokens of each sequence: all, or as given by `kv_lengths`."""
    cdef np.npy_intp sequences = counts.shape[0]
    cdef np.ndarray given = arguments.per_sequence("kv_lengths", kv_lengths, 1, &sequences)
    cdef ptrdiff_t n, count
    for n in range(sequences):
        count = tokens if given is None else integers(given)[n if given.ndim else 0]
        if not 0 <= count <= tokens:
            raise ValueError(f"kv_lengths must lie between 0 and the number of key's tokens, {tokens}, got {count}")
        integers(counts)[n] = count
    return counts


# --- a page for each sequence ---

cdef class Fixed(Store):
    """See fastattn.cache.KVCache. The key of position j is row j of the sequence's page, or j % page_size of a ring.

    For attention to a ring, positions are rebased to `bases`, a multiple of page_size: all stored keys are then below
    2 · page_size, in a table that lists the page twice.
    """

    cdef readonly ptrdiff_t batch, max_length, window  # window 0: none
    cdef np.ndarray held_lengths, padding, counts, tables
    cdef np.ndarray firsts                        # of a ring: the first position that is still stored
    cdef np.ndarray bases, seen_firsts, seen_lengths  # the rebased ones, for attention

    def __init__(self, *, batch, num_kv_heads, max_length, head_dim, dtype, window, value_dim, pools=None):
        self.batch = arguments.at_least_one("batch", batch)
        self.max_length = arguments.at_least_one("max_length", max_length)
        self.window = 0 if window is None else arguments.at_least_one("window", window)
        if self.window > self.max_length:
            raise ValueError(f"window must be at most max_length, {self.max_length}, got {self.window}")
        cdef ptrdiff_t rows = self.max_length
        if 0 < self.window < FARTHEST:
            rows = min(rows, self.window + max(<ptrdiff_t>SLACK, self.window // 4))
        self.make(self.batch, num_kv_heads, rows, head_dim, dtype, value_dim, pools)
        self.held_lengths, self.counts = zeros(batch, np.int64), zeros(batch, np.int64)
        self.padding = zeros((batch, 3), np.int64)
        self.seen_lengths = self.held_lengths
        self.tables = np.arange(batch).reshape(-1, 1)
        if self.window:
            self.firsts, self.bases, self.seen_firsts, self.seen_lengths = (zeros(batch, np.int64) for _ in range(4))
            self.tables = np.ascontiguousarray(np.broadcast_to(self.tables, (batch, 2)))

    @property
    def lengths(self):
        return self.held_lengths.copy()

    @property
    def chunk(self):
        return self.page_size - self.window + 1 if self.window else self.max_length

    cdef void rebase(self) noexcept:
        """Update the rebased positions; called after any change of lengths or firsts."""
        cdef ptrdiff_t n
        cdef int64 base
        if not self.window:
            return
        for n in range(self.batch):
            base = integers(self.firsts)[n] // self.page_size * self.page_size
            integers(self.bases)[n] = base
            integers(self.seen_firsts)[n] = integers(self.firsts)[n] - base
            integers(self.seen_lengths)[n] = integers(self.held_lengths)[n] - base

    def append(self, key, value, *, kv_lengths, cos, sin, interleaved, rotary_dim, num_threads):
        cdef np.ndarray a = arguments.cache_rows("key", key, self.batch, self.kv_heads, -1, self.head_dim)
        cdef np.ndarray b = arguments.cache_rows("value", value, self.batch, self.kv_heads, a.shape[2], self.value_dim)
        cdef int asked = arguments.thread_limit(num_threads)
        cdef int64 *old = integers(self.held_lengths)
        cdef const int64 *new = integers(new_counts(kv_lengths, self.counts, a.shape[2]))
        cdef ptrdiff_t n, most = 0, end = 0, longest = FARTHEST if self.window else self.max_length
        cdef bint overwrites = False
        cdef Plan p
        for n in range(self.batch):
            most, end = max(most, new[n]), max(end, old[n] + new[n])
            if old[n] + new[n] > longest:
                of = "the maximum" if self.window else "max_length"
                raise ValueError(
                    f"key must hold at most {longest - old[n]} tokens for sequence {n}, which has {old[n]} of {of} "
                    f"{longest}, got {new[n]}"
                )
            if self.window and old[n]:
                overwrites = overwrites or old[n] - integers(self.firsts)[n] + new[n] > self.page_size
        if self.writes_to(a) or self.writes_to(b):
            a, b = a.copy(), b.copy()
        self.fill(&p, a, b)
        self.turn(&p, a, cos, sin, interleaved, rotary_dim, end)
        self.must_be_writable()
        p.slots, p.tables, p.table_row = NULL, integers(self.tables), self.tables.shape[1]
        p.lengths, p.counts, p.ring = old, new, self.window != 0
        if overwrites:  # else rows written before an error are beyond the ends of the sequences
            self.check_rows(&p, self.batch, most, asked)
        self.store(&p, self.batch, most, asked)
        self.must_be_stored(&p)
        for n in range(self.batch):
            note_append(&paddings(self.padding)[n], old[n], new[n], a.shape[2])
            old[n] += new[n]
            if self.window:
                integers(self.firsts)[n] = max(integers(self.firsts)[n], old[n] - self.page_size)
        self.rebase()

    def attend(self, query, Options options not None):
        cdef np.ndarray q = arguments.real_array("query", query)
        align_queries(options, q, self.held_lengths, self.padding, None, self.window != 0)
        if self.window:
            self.apply_window(options, q)
        return attend_pages(q, self, self.tables, self.seen_firsts, self.seen_lengths, options)

    cdef int apply_window(self, Options options, np.ndarray q) except -1:
        """Apply the cache's own window and rebase positions, for attention to a ring."""
        cdef np.npy_intp[4] shape
        cdef ptrdiff_t n, first, offset, given = 0
        cdef np.npy_intp batch = self.batch
        cdef np.ndarray offsets = arguments.per_sequence("q_offset", options.q_offset, 1, &batch), seen = None
        arguments.cached_shape(q, self.key_pages, self.value_pages, batch, shape)
        if options.left >= self.window:
            raise ValueError(f"window must be narrower than the cache's own, {self.window}, got {options.left}")
        if options.left < 0:
            options.left = self.window - 1
        if offsets is not None:
            seen = np.PyArray_EMPTY(1, &batch, np.NPY_INT64, 0)
        for n in range(self.batch):
            first = integers(self.firsts)[n]
            if offsets is None:
                offset = integers(self.held_lengths)[n] - q.shape[2]
            else:  # clipped so far before or after all keys that it makes no difference
                given = offset = integers(offsets)[n if offsets.ndim else 0]
                offset = max(-FARTHEST // 2, min(offset, 2 * FARTHEST))
                integers(seen)[n] = offset - integers(self.bases)[n]
            if first == 0:
                continue
            if options.attn_mask is not None:
                raise ValueError("attn_mask must be None once the window has dropped tokens, got an array")
            if q.shape[2] and offset - options.left < first:
                raise ValueError(
                    f"query must be at position {first + options.left} or later in sequence {n}, whose keys before "
                    f"{first} were dropped, got {offset if offsets is None else given}; append and attend to at most "
                    f"{self.chunk} tokens at a time"
                )
        options.q_offset = seen
        return 0

    def view(self, str name, values):
        """A view of the keys or values, (batch, kv heads, tokens of the longest sequence, size)."""
        if self.stored == FA_I8:
            raise ValueError(f"dtype must not be int8 for {name} to be a view, got int8, whose rows have scales")
        if self.window and self.firsts.any():
            raise ValueError(f"window must not have dropped tokens for {name} to be a view, got dropped tokens")
        return (self.value_pages if values else self.key_pages)[:, :, : self.held_lengths.max()]

    def reset(self):
        self.held_lengths[...] = 0
        self.padding[...] = 0
        if self.window:
            self.firsts[...] = 0
        self.rebase()

    def truncate(self, length):
        cdef np.npy_intp batch = self.batch
        cdef np.ndarray new = arguments.per_sequence("length", length, 1, &batch)
        if new is None:
            raise TypeError("length must be an int or an integer array, got NoneType")
        new = np.array(np.broadcast_to(new, self.batch))
        cdef ptrdiff_t n
        for n in range(self.batch):
            self.can_end_at(n, integers(new)[n])
        for n in range(self.batch):
            note_truncation(&paddings(self.padding)[n], integers(self.held_lengths)[n], integers(new)[n])
            integers(self.held_lengths)[n] = integers(new)[n]
        if self.window:
            self.firsts[new == 0] = 0
        self.rebase()

    cdef int can_end_at(self, ptrdiff_t n, int64 length) except -1:
        cdef int64 own = integers(self.held_lengths)[n], least
        if not 0 <= length <= own:
            raise ValueError(f"length must lie between 0 and the length of sequence {n}, {own}, got {length}")
        if self.window and integers(self.firsts)[n] and length:
            least = integers(self.firsts)[n] + self.window - 1
            if length < least:
                raise ValueError(
                    f"length must be 0 or, for sequence {n}, at least {least}, got {length}: earlier keys were dropped"
                )
        return 0

    def mark(self):
        """The state that an append changes, for `return_to`."""
        return self.held_lengths.copy(), self.padding.copy()

    def return_to(self, mark):
        """Undo the appends since `mark`. As for `truncate`, a ring must still hold its tokens."""
        lengths, padding = mark
        self.truncate(lengths)
        self.padding[...] = padding

    def reorder(self, order):
        cdef np.ndarray sources = arguments.indices("indices", order, self.batch, self.batch), aside, pool
        cdef ptrdiff_t to, source, row, rows = 0
        cdef char *place
        self.must_be_writable()
        moves = moves_of({to: source for to, source in enumerate(sources.tolist()) if to != source})
        pools, lengths, padding = self.arrays(), self.held_lengths[sources], self.padding[sources]
        firsts = self.firsts[sources] if self.window else None
        row = sum([pool.shape[1] * pool.strides[2] for pool in pools])
        for to, source in moves:
            if to == ASIDE:
                rows = max(rows, self.used(source))
        aside = np.empty(rows * row, np.uint8)
        rows = 0  # in the temporary buffer; nothing fails from here on
        for to, source in moves:
            place = <char *>np.PyArray_DATA(aside)
            if to == ASIDE:
                rows = self.used(source)
            if to != ASIDE and source != ASIDE:
                self.copy_page(to, source, self.used(source))
                continue
            for pool in pools:
                if to == ASIDE:
                    copy_heads(place, rows * pool.strides[2], pool, source, rows)
                else:
                    put_heads(pool, to, place, rows * pool.strides[2], rows)
                place += pool.shape[1] * rows * pool.strides[2]
        memcpy(integers(self.held_lengths), integers(lengths), self.batch * sizeof(int64))
        memcpy(paddings(self.padding), paddings(padding), self.batch * sizeof(Padding))
        if self.window:
            memcpy(integers(self.firsts), integers(firsts), self.batch * sizeof(int64))
        self.rebase()

    cpdef ptrdiff_t used(self, ptrdiff_t n):
        """Number of used rows of sequence n's page."""
        return min(integers(self.held_lengths)[n], self.page_size)

    def used_parts(self):
        """Indices of the parts of the pools that are in use: contiguous pieces, in ascending order."""
        return [(n, head, slice(self.used(n))) for n in range(self.batch) for head in range(self.kv_heads)]

    def parameters(self):
        """The constructor's arguments, by name."""
        return {
            "batch": self.batch, "num_kv_heads": self.kv_heads, "max_length": self.max_length,
            "head_dim": self.head_dim, "dtype": self.dtype.name, "window": self.window or None,
            "value_dim": self.value_dim,
        }

    def state(self):
        """The state of this cache besides the pools, by name."""
        firsts = self.held_lengths * 0 if self.firsts is None else self.firsts
        return {"lengths": self.held_lengths, "firsts": firsts, "padding": self.padding}

    def restore(self, lengths, firsts, padding):
        """Set the state; False if it is invalid."""
        if lengths.shape != (self.batch,) or firsts.shape != (self.batch,):
            return False
        if (firsts < 0).any() or (firsts > lengths).any() or (lengths > FARTHEST).any():
            return False
        held = lengths - firsts
        if (held > self.page_size).any() or (firsts.any() and not self.window):
            return False
        if not is_valid_padding(padding, lengths):
            return False
        if self.window and ((firsts > 0) & (held < self.window - 1)).any():
            return False
        self.held_lengths[...], self.padding[...] = lengths, padding
        if self.window:
            self.firsts[...] = firsts
        self.rebase()
        return True


cdef list moves_of(dict pending):
    """Order of copies by which each page `to` becomes `pending[to]`: pairs (to, source), ASIDE is the buffer."""
    cdef list moves = []
    while pending:
        needed = set(pending.values())
        to = next((to for to in pending if to not in needed), None)
        if to is not None:
            moves.append((to, pending.pop(to)))
            continue
        first = to = next(iter(pending))  # only cycles are left
        moves.append((ASIDE, first))
        while pending[to] != first:
            moves.append((to, pending[to]))
            to = pending.pop(to)
        del pending[to]
        moves.append((to, ASIDE))
    return moves


# --- pages that sequences share ---

cdef object as_list(object ids):
    """The ids of an array as a list; those in a list as they are."""
    if isinstance(ids, (list, tuple, range)):
        return ids
    ids = arguments.adopted("ids", ids)
    if not isinstance(ids, np.ndarray) or ids.ndim != 1:
        raise TypeError(f"ids must be a list of ints, got {type(ids).__name__}")
    return ids.tolist()


cdef class Batch:
    """The sequences of a call, in buffers that a cache keeps from call to call."""

    cdef np.ndarray slots, lengths, counts, tables

    def __init__(self, count, blocks):
        self.slots, self.lengths, self.counts = (zeros(count, np.int64) for _ in range(3))
        self.tables = zeros((count, blocks), np.int64)


cdef class Paged(Store):
    """See fastattn.cache.PagedKVCache. A sequence has a slot: a row of `tables`, which lists its pages, and a length.

    `references` counts the tables that list a page. A page that several tables list is never written.
    """

    cdef dict slots               # of each live sequence, by id
    cdef list spare_slots
    cdef ptrdiff_t next_id
    cdef np.ndarray tables, held_lengths, padding, references
    cdef np.ndarray vacant        # pages that no table lists; the last of the first `free_pages` is taken next
    cdef readonly ptrdiff_t free_pages
    cdef Batch spare

    def __init__(self, *, num_pages, page_size, num_kv_heads, head_dim, dtype, value_dim, pools=None):
        arguments.at_least_one("num_pages", num_pages)
        arguments.at_least_one("page_size", page_size)
        self.make(num_pages, num_kv_heads, page_size, head_dim, dtype, value_dim, pools)
        self.slots, self.spare_slots, self.next_id = {}, [], 0
        self.tables, self.held_lengths = zeros((0, 4), np.int64), zeros(0, np.int64)
        self.padding = zeros((0, 3), np.int64)
        self.references, self.vacant = zeros(num_pages, np.int64), np.arange(num_pages)[::-1].copy()
        self.free_pages = num_pages

    # Sequences

    cdef ptrdiff_t slot_of(self, str name, object id) except -1:
        if not isinstance(id, (int, np.integer)) or isinstance(id, bool):
            raise TypeError(f"{name} must be an int returned by allocate or fork, got {type(id).__name__}")
        slot = self.slots.get(id)
        if slot is None:
            raise ValueError(f"{name} must belong to a live sequence, got {id}, which is unknown or was freed")
        return slot

    cdef Batch batch_of(self, object ids):
        """The slots of these sequences, in the spare buffers if they fit."""
        cdef ptrdiff_t count, n
        cdef Batch batch = self.spare
        count, self.spare = len(ids), None
        if batch is None or batch.slots.shape[0] != count or batch.tables.shape[1] != self.tables.shape[1]:
            batch = Batch(count, self.tables.shape[1])
        for n in range(count):
            integers(batch.slots)[n] = self.slot_of("ids", ids[n])
        return batch

    cdef ptrdiff_t new_slot(self) except -1:
        """A free slot, the last of `spare_slots`."""
        if not self.spare_slots:
            rows = self.tables.shape[0]
            more = list(range(max(4, 2 * rows) - 1, rows - 1, -1))
            self.widen(max(4, 2 * rows), self.tables.shape[1])
            self.spare_slots = more
        return self.spare_slots[len(self.spare_slots) - 1]

    cdef int widen(self, ptrdiff_t rows, ptrdiff_t blocks) except -1:
        """Make the tables at least this large, as new arrays: another thread may still read the old ones."""
        if rows > self.tables.shape[0] or blocks > self.tables.shape[1]:
            former = self.tables
            tables = zeros((max(rows, former.shape[0]), max(blocks, former.shape[1])), np.int64)
            lengths, padding = zeros(tables.shape[0], np.int64), zeros((tables.shape[0], 3), np.int64)
            tables[: former.shape[0], : former.shape[1]] = former
            lengths[: former.shape[0]], padding[: former.shape[0]] = self.held_lengths, self.padding
            self.tables, self.held_lengths, self.padding = tables, lengths, padding
        return 0

    def allocate(self):
        return self.begin(self.new_slot())

    cdef object begin(self, ptrdiff_t slot):
        """Create a sequence in the last spare slot; return its id."""
        id = self.next_id
        self.slots[id] = slot
        self.next_id += 1
        self.spare_slots.pop()
        paddings(self.padding)[slot] = Padding(0, 0, 0)
        return id

    def fork(self, id):
        cdef ptrdiff_t source = self.slot_of("id", id), slot = self.new_slot(), block
        cdef int64 *table = self.table(slot)
        new = self.begin(slot)
        integers(self.held_lengths)[slot] = integers(self.held_lengths)[source]
        paddings(self.padding)[slot] = paddings(self.padding)[source]
        for block in range(self.blocks(slot)):
            table[block] = self.table(source)[block]
            integers(self.references)[table[block]] += 1
        return new

    def free(self, id):
        cdef ptrdiff_t slot = self.slot_of("id", id)
        self.spare_slots.append(slot)
        self.shorten(slot, 0)
        del self.slots[id]

    def truncate(self, id, length):
        cdef ptrdiff_t slot = self.slot_of("id", id), new = arguments.integer("length", length)
        cdef ptrdiff_t own = integers(self.held_lengths)[slot]
        if not 0 <= new <= own:
            raise ValueError(f"length must lie between 0 and the sequence's length, {own}, got {new}")
        self.shorten(slot, new)

    cdef void shorten(self, ptrdiff_t slot, ptrdiff_t length) noexcept:
        cdef ptrdiff_t block
        for block in range(self.blocks_for(length), self.blocks(slot)):
            self.release(self.table(slot)[block])
        note_truncation(&paddings(self.padding)[slot], integers(self.held_lengths)[slot], length)
        integers(self.held_lengths)[slot] = length

    @property
    def lengths(self):
        return {id: int(self.held_lengths[slot]) for id, slot in self.slots.items()}

    def block_table(self, id):
        cdef ptrdiff_t slot = self.slot_of("id", id)
        return self.tables[slot, : self.blocks(slot)].copy()

    # Pages

    cdef int64 *table(self, ptrdiff_t slot) noexcept:
        return integers(self.tables) + slot * self.tables.shape[1]

    cdef ptrdiff_t blocks_for(self, ptrdiff_t length) noexcept:
        return (length + self.page_size - 1) // self.page_size

    cdef ptrdiff_t blocks(self, ptrdiff_t slot) noexcept:
        return self.blocks_for(integers(self.held_lengths)[slot])

    cdef int64 take(self) noexcept:
        self.free_pages -= 1
        cdef int64 page = integers(self.vacant)[self.free_pages]
        integers(self.references)[page] = 1
        return page

    cdef void release(self, int64 page) noexcept:
        integers(self.references)[page] -= 1
        if integers(self.references)[page] == 0:
            integers(self.vacant)[self.free_pages] = page
            self.free_pages += 1

    cdef bint leaves_shared_page(self, ptrdiff_t slot, ptrdiff_t new) noexcept:
        """Whether new tokens would be written to a page that is shared."""
        cdef int64 length = integers(self.held_lengths)[slot]
        return new and length % self.page_size and integers(self.references)[self.last_page(slot)] > 1

    cdef int64 last_page(self, ptrdiff_t slot) noexcept:
        return self.table(slot)[self.blocks(slot) - 1]

    cdef int take_pages(self, Batch batch) except -1:
        """Allocate the pages that the new tokens of each sequence need, and copy its last page if that is shared.

        Pages are counted before any is taken. Among sequences of the call that share a last page, one keeps it if no
        other sequence lists it: hence references are decremented first.
        """
        cdef ptrdiff_t n, slot, needed = 0, blocks = 0, length, new, block
        cdef const int64 *slots = integers(batch.slots)
        cdef int64 *leaving = integers(batch.lengths)  # the page that sequence n leaves, or -1
        for n in range(batch.slots.shape[0]):
            slot, new = slots[n], integers(batch.counts)[n]
            length = integers(self.held_lengths)[slot]
            blocks = max(blocks, self.blocks_for(length + new))
            needed += self.blocks_for(length + new) - self.blocks(slot)
            leaving[n] = -1
            if self.leaves_shared_page(slot, new):
                leaving[n] = self.last_page(slot)
                integers(self.references)[leaving[n]] -= 1
                needed += 1
        if needed > self.free_pages:
            for n in range(batch.slots.shape[0]):
                if leaving[n] >= 0:
                    integers(self.references)[leaving[n]] += 1
            raise OutOfPages(
                f"num_pages must leave {needed} free pages of {self.page_size} tokens for this append, "
                f"got {self.free_pages} free of {self.pages}: free or truncate sequences"
            )
        for n in range(batch.slots.shape[0]):
            slot, new = slots[n], integers(batch.counts)[n]
            length = integers(self.held_lengths)[slot]
            if leaving[n] >= 0:
                self.table(slot)[self.blocks(slot) - 1] = self.copy_of(leaving[n], length % self.page_size)
            for block in range(self.blocks(slot), self.blocks_for(length + new)):
                self.table(slot)[block] = self.take()
        return 0

    cdef int64 copy_of(self, int64 page, ptrdiff_t rows) noexcept:
        cdef int64 copy = self.take()
        self.copy_page(copy, page, rows)
        return copy

    cdef void return_pages(self, Batch batch) noexcept:
        """Undo `take_pages`, in reverse order, so that free pages are taken in the same order as before."""
        cdef ptrdiff_t n, slot, block, last
        cdef const int64 *leaving = integers(batch.lengths)
        for n in range(batch.slots.shape[0] - 1, -1, -1):
            slot = integers(batch.slots)[n]
            last = self.blocks_for(integers(self.held_lengths)[slot] + integers(batch.counts)[n]) - 1
            for block in range(last, self.blocks(slot) - 1, -1):
                self.release(self.table(slot)[block])
            if leaving[n] >= 0:  # the sequence that kept the page may have overwritten tokens of this one
                self.copy_page(leaving[n], self.last_page(slot), integers(self.held_lengths)[slot] % self.page_size)
                self.release(self.last_page(slot))
                self.table(slot)[self.blocks(slot) - 1] = leaving[n]
        for n in range(batch.slots.shape[0]):
            if leaving[n] >= 0:
                integers(self.references)[leaving[n]] += 1

    # Tokens

    def append(self, ids, key, value, *, kv_lengths, cos, sin, interleaved, rotary_dim, num_threads):
        ids = as_list(ids)
        cdef Batch batch = self.batch_of(ids)
        cdef ptrdiff_t count = batch.slots.shape[0], n, most = 0, end = 0
        cdef np.ndarray a = arguments.cache_rows("key", key, count, self.kv_heads, -1, self.head_dim)
        cdef np.ndarray b = arguments.cache_rows("value", value, count, self.kv_heads, a.shape[2], self.value_dim)
        cdef int asked = arguments.thread_limit(num_threads)
        cdef const int64 *slots = integers(batch.slots)
        cdef const int64 *new = integers(new_counts(kv_lengths, batch.counts, a.shape[2]))
        cdef Plan p
        if len(set(ids)) != count:
            raise ValueError(f"ids must name each sequence once, got {list(ids)}")
        for n in range(count):
            most, end = max(most, new[n]), max(end, integers(self.held_lengths)[slots[n]] + new[n])
        self.fill(&p, a, b)
        self.turn(&p, a, cos, sin, interleaved, rotary_dim, end)
        self.must_be_writable()
        self.widen(0, self.table_width(self.blocks_for(end)))
        p.slots, p.counts, p.ring = slots, new, False
        p.tables, p.table_row, p.lengths = integers(self.tables), self.tables.shape[1], integers(self.held_lengths)
        self.take_pages(batch)
        try:  # rows written before an error are beyond the ends of the sequences, or on pages that are freed again
            self.store(&p, count, most, asked)
            self.must_be_stored(&p)
        except BaseException:
            self.return_pages(batch)
            raise
        for n in range(count):
            note_append(&paddings(self.padding)[slots[n]], integers(self.held_lengths)[slots[n]], new[n], a.shape[2])
            integers(self.held_lengths)[slots[n]] += new[n]
        self.spare = batch

    cdef ptrdiff_t table_width(self, ptrdiff_t blocks) noexcept:
        """A power of two times the present width, so that tables are seldom reallocated."""
        cdef ptrdiff_t width = self.tables.shape[1]
        blocks = min(blocks, self.pages)  # take_pages raises for more
        while width < blocks:
            width *= 2
        return width

    def attend(self, ids, query, Options options not None):
        cdef Batch batch = self.batch_of(as_list(ids))
        cdef np.ndarray q = arguments.real_array("query", query)
        cdef ptrdiff_t n, slot
        align_queries(options, q, self.held_lengths, self.padding, batch.slots, False)
        for n in range(batch.slots.shape[0]):
            slot = integers(batch.slots)[n]
            integers(batch.lengths)[n] = integers(self.held_lengths)[slot]
            memcpy(
                integers(batch.tables) + n * batch.tables.shape[1], self.table(slot), self.blocks(slot) * sizeof(int64)
            )
        result = attend_pages(q, self, batch.tables, None, batch.lengths, options)
        self.spare = batch
        return result

    # Files

    def used_parts(self):
        """Indices of the parts of the pools that are in use: contiguous pieces, in ascending order."""
        return [(page,) for page in np.flatnonzero(self.references).tolist()]

    def parameters(self):
        """The constructor's arguments, by name."""
        return {
            "num_pages": self.pages, "page_size": self.page_size, "num_kv_heads": self.kv_heads,
            "head_dim": self.head_dim, "dtype": self.dtype.name, "value_dim": self.value_dim,
        }

    def state(self):
        """The state of this cache besides the pools, by name."""
        ids = np.array(list(self.slots), np.int64)
        slots = np.array(list(self.slots.values()), np.int64)
        blocks = max((self.blocks(slot) for slot in slots), default=0)
        tables = self.tables[slots, :blocks]
        for table, slot in zip(tables, slots):
            table[self.blocks(slot):] = -1
        return {
            "ids": ids, "lengths": self.held_lengths[slots], "padding": self.padding[slots], "tables": tables,
            "next_id": np.array([self.next_id]),
        }

    def restore(self, ids, lengths, padding, tables, next_id):
        """Set the state; False if it is invalid."""
        count = len(ids) if ids.ndim == 1 else -1
        if lengths.shape != (count,) or tables.ndim != 2 or len(tables) != count or next_id.shape != (1,):
            return False
        if (ids < 0).any() or (ids >= next_id).any() or not 0 <= next_id[0] <= FARTHEST or len(np.unique(ids)) != count:
            return False
        if (lengths < 0).any() or (lengths > FARTHEST).any() or not is_valid_padding(padding, lengths):
            return False
        blocks = (lengths + (self.page_size - 1)) // self.page_size
        if tables.shape[1] != max(blocks, default=0):
            return False
        listed = np.arange(tables.shape[1]) < blocks[:, None]
        pages = tables[listed]
        if (pages < 0).any() or (pages >= self.pages).any() or (tables[~listed] != -1).any():
            return False
        if any(len(np.unique(table[:n])) != n for table, n in zip(tables, blocks)):
            return False
        self.widen(count, self.table_width(tables.shape[1]))
        self.tables[:count, : tables.shape[1]] = np.where(listed, tables, 0)
        self.held_lengths[:count], self.padding[:count] = lengths, padding
        np.add.at(self.references, pages, 1)
        vacant = np.flatnonzero(self.references == 0)
        self.free_pages = len(vacant)
        self.vacant[: len(vacant)] = vacant[::-1]
        self.slots = {id: slot for slot, id in enumerate(ids.tolist())}
        self.spare_slots = list(range(len(self.tables) - 1, count - 1, -1))
        self.next_id = next_id[0]
        return True
