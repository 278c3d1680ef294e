"""Caches of keys and values: where their rows lie, and the storing of new ones on OpenMP's threads.

Keys and values lie in pages, (pages, kv heads, page size, size), each kv head's rows of a page side by side; int8 rows
have a scale each. Fixed gives every sequence a page of its own, as a ring where it has a window; Paged hands out pages
as sequences grow, and shares them. Attention reads them where they lie: attention.pyx.

What an operation needs is judged before anything changes. Reading a cache from several threads is safe, changing it
while another thread uses it is not.
"""

import numpy as np

cimport numpy as np
from libc.stddef cimport ptrdiff_t
from libc.string cimport memcpy

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport element_stride, stride
from fastattn._core.targets cimport FA_F32, FA_F64, FA_I8, fa_cache_rows, fa_kernels, fa_size_of, fa_type, kernels_of
from fastattn._core.threads cimport run, threads_for

from fastattn._core.attention import attend_pages

np.import_array()

ctypedef np.npy_int64 int64

cdef enum:
    KEYS, VALUES
    ITEM_ELEMENTS = 16384  # 3 to 6 microseconds of work
    SLACK = 64             # rows of a ring beyond its window, at least

cdef ptrdiff_t UNBOUNDED = 1 << 48  # farther than any position
cdef double ELEMENTS = 4.0  # a core's per nanosecond, for the choice of the number of threads


class OutOfPages(MemoryError):
    """A `PagedKVCache` has fewer free pages than an append needs; the cache is as it was before.

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
    ptrdiff_t x_sequence, x_head
    char *pages                # NULL: the rows are only judged
    float *scales
    bint refused               # a row has no finite scale


cdef struct Plan:
    Side sides[2]
    const char *cos
    const char *sin
    const int64 *slots         # where sequence n of the call stands in the next two; NULL: at n
    const int64 *tables
    const int64 *lengths       # tokens that are there already
    const int64 *counts        # new ones, of sequence n of the call
    ptrdiff_t table_row, kv_heads, page_size
    ptrdiff_t item_tokens, blocks  # tokens of an item, items of a sequence's kv head
    bint ring                  # one page a sequence, where later tokens take the place of earlier ones
    const fa_kernels *kernels


cdef void store_run(const Plan *p, int which, ptrdiff_t n, ptrdiff_t head, ptrdiff_t position, ptrdiff_t token,
                    ptrdiff_t count, void *memory) noexcept nogil:
    """`count` tokens of sequence n, from `token` on, which go to places side by side."""
    cdef const Side *side = &p.sides[which]
    cdef ptrdiff_t slot = n if p.slots == NULL else p.slots[n], place = 0
    cdef char *out = NULL
    if side.pages != NULL:
        place = p.tables[slot * p.table_row + (0 if p.ring else position // p.page_size)] * p.kv_heads + head
        place = place * p.page_size + position % p.page_size
        out = side.pages + place * side.rows.size * fa_size_of(side.rows.stored)
    if not p.kernels.store_rows(
        &side.rows,
        side.x + n * side.x_sequence + head * side.x_head + token * side.rows.x_row,
        p.cos + position * side.rows.cos_row,
        p.sin + position * side.rows.sin_row,
        out,
        side.scales + place,
        count,
        memory,
    ):
        (<Side *>side).refused = True


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t head = index // p.blocks % p.kv_heads, n = index // p.blocks // p.kv_heads
    cdef ptrdiff_t token = index % p.blocks * p.item_tokens, position, count
    cdef ptrdiff_t end = min(token + p.item_tokens, <ptrdiff_t>p.counts[n])
    if p.ring:  # of many tokens only the last ones remain
        token = max(token, p.counts[n] - p.page_size)
    while token < end:
        position = p.lengths[n if p.slots == NULL else p.slots[n]] + token
        count = min(end - token, p.page_size - position % p.page_size)
        store_run(p, KEYS, n, head, position, token, count, memory)
        store_run(p, VALUES, n, head, position, token, count, memory)
        token += count


cdef np.ndarray zeros(shape, dtype):
    """Of memory that is not there until it is written to."""
    return np.zeros(shape, dtype)


cdef int64 *integers(np.ndarray x) noexcept:
    return <int64 *>np.PyArray_DATA(x)


cdef class Store:
    """Pages of keys and values, and the storing of rows in them."""

    cdef readonly object dtype
    cdef readonly np.ndarray key_pages, value_pages, key_scales, value_scales
    cdef readonly ptrdiff_t pages, kv_heads, page_size, head_dim, value_dim
    cdef fa_type stored

    cdef int make(
        self, ptrdiff_t pages, num_kv_heads, ptrdiff_t page_size, head_dim, dtype, value_dim, pools
    ) except -1:
        """Take the arrays of `pools` or, for None, new ones."""
        self.dtype = arguments.storage_dtype("dtype", dtype)
        self.pages, self.page_size = pages, page_size
        self.kv_heads = arguments.at_least_one("num_kv_heads", num_kv_heads)
        self.head_dim = arguments.at_least_one("head_dim", head_dim)
        self.value_dim = self.head_dim if value_dim is None else arguments.at_least_one("value_dim", value_dim)
        if pools is None:
            pools = [zeros(shape, kind) for shape, kind in self.pools()]
        self.key_pages, self.value_pages = pools[:2]
        self.stored = FA_I8 if self.dtype == np.int8 else arguments.type_of(self.key_pages)
        if self.stored == FA_I8:
            self.key_scales, self.value_scales = pools[2:]
        return 0

    cpdef list pools(self):
        """(shape, dtype) of the arrays: pages of keys and of values, and their scales where there are any."""
        shape = (self.pages, self.kv_heads, self.page_size)
        arrays = [((*shape, self.head_dim), self.dtype), ((*shape, self.value_dim), self.dtype)]
        if self.dtype == np.int8:
            arrays += [(shape, np.dtype(np.float32))] * 2
        return arrays

    cpdef list arrays(self):
        arrays = [self.key_pages, self.value_pages, self.key_scales, self.value_scales]
        return [x for x in arrays if x is not None]

    cdef int must_be_writable(self) except -1:
        if not np.PyArray_ISWRITEABLE(self.key_pages):
            raise ValueError("mmap_mode must be None or 'c' for a cache that changes, got 'r', which is read-only")
        return 0

    cdef bint writes_to(self, np.ndarray x) noexcept:
        return arguments.share_memory(x, self.key_pages) or arguments.share_memory(x, self.value_pages)

    cdef int aim(self, Plan *p, np.ndarray k, np.ndarray v) except -1:
        """What a plan says of the arrays, new and old."""
        cdef np.ndarray x
        cdef Side *side
        cdef int which
        for which in range(2):
            side, x = &p.sides[which], v if which else k
            side.x, side.x_sequence, side.x_head = <const char *>np.PyArray_DATA(x), stride(x, 4), stride(x, 3)
            side.rows.x_row, side.rows.x_element = stride(x, 2), element_stride(x)
            side.rows.x_type, side.rows.stored = arguments.type_of(x), self.stored
            side.rows.size, side.rows.pairs = x.shape[3], 0
            side.rows.cos_row = side.rows.sin_row = 0
            side.pages, side.scales, side.refused = NULL, NULL, False
        p.cos = p.sin = NULL
        p.kv_heads, p.page_size = self.kv_heads, self.page_size
        p.kernels = kernels_of(FA_F64 if self.stored == FA_F64 else FA_F32)
        return 0

    cdef int turn(self, Plan *p, np.ndarray k, cos, sin, interleaved, ptrdiff_t positions) except -1:
        """Let the keys turn by the tables, whose rows are positions."""
        cdef fa_cache_rows *rows = &p.sides[KEYS].rows
        cdef np.ndarray c, s
        rows.interleaved = arguments.flag("interleaved", interleaved)
        if cos is None and sin is None:
            return 0
        c = arguments.cache_table("cos", cos, k, positions)
        s = arguments.operand_like("sin", sin, c, "cos")
        p.cos, p.sin = <const char *>np.PyArray_DATA(c), <const char *>np.PyArray_DATA(s)
        rows.pairs, rows.table_type = c.shape[1], arguments.type_of(c)
        rows.cos_row, rows.cos_element = stride(c, 2), element_stride(c)
        rows.sin_row, rows.sin_element = stride(s, 2), element_stride(s)
        return 0

    cdef int judge(self, Plan *p, ptrdiff_t sequences, ptrdiff_t tokens, int asked) except -1:
        """int8: every row must have a finite scale. Nothing is written."""
        if self.stored == FA_I8:
            self.run_items(p, sequences, tokens, asked)
            must_have_scales(p)
        return 0

    cdef int store(self, Plan *p, ptrdiff_t sequences, ptrdiff_t tokens, int asked) except -1:
        p.sides[KEYS].pages = <char *>np.PyArray_DATA(self.key_pages)
        p.sides[VALUES].pages = <char *>np.PyArray_DATA(self.value_pages)
        if self.stored == FA_I8:
            p.sides[KEYS].scales = <float *>np.PyArray_DATA(self.key_scales)
            p.sides[VALUES].scales = <float *>np.PyArray_DATA(self.value_scales)
        return self.run_items(p, sequences, tokens, asked)

    cdef int run_items(self, Plan *p, ptrdiff_t sequences, ptrdiff_t tokens, int asked) except -1:
        """Take the `tokens` (of the longest sequence) in items; each kv head of a sequence has its own."""
        cdef ptrdiff_t elements = self.head_dim + self.value_dim, items, scratch
        cdef bint done
        with nogil:
            p.item_tokens = max(1, ITEM_ELEMENTS // elements)
            p.blocks = (tokens + p.item_tokens - 1) // p.item_tokens
            items = sequences * p.kv_heads * p.blocks
            scratch = max(
                p.kernels.cache_scratch(&p.sides[KEYS].rows), p.kernels.cache_scratch(&p.sides[VALUES].rows)
            )
            done = run(
                run_item, p, items,
                threads_for(asked, items, <double>sequences * p.kv_heads * tokens * elements / ELEMENTS), scratch,
            )
        if not done:
            raise MemoryError("no scratch memory for the cache")
        return 0


cdef int must_have_scales(const Plan *p) except -1:
    cdef int which
    for which in range(2):
        if p.sides[which].refused:
            name = "v" if which else "k"
            raise ValueError(f"{name} must be finite in float32 to be stored as int8, got infinity or NaN")
    return 0


cdef np.ndarray new_counts(lengths, np.ndarray counts, ptrdiff_t tokens):
    """New tokens of each sequence: all, or as many as `lengths` says."""
    cdef np.npy_intp sequences = counts.shape[0]
    cdef np.ndarray given = arguments.per_sequence("lengths", lengths, 1, &sequences)
    cdef ptrdiff_t n, count
    for n in range(sequences):
        count = tokens if given is None else integers(given)[n if given.ndim else 0]
        if not 0 <= count <= tokens:
            raise ValueError(f"lengths must lie between 0 and the number of k's tokens, {tokens}, got {count}")
        integers(counts)[n] = count
    return counts


# --- a page for each sequence ---

cdef class Fixed(Store):
    """See fastattn.cache.KVCache. The key of position j is row j of the sequence's page, or j % page_size of a ring.

    What attention is told of a ring is rebased to positions from `bases` on, a multiple of page_size: then all keys
    that are there lie below 2 · page_size, in a table that names the page twice.
    """

    cdef readonly ptrdiff_t batch, max_length, window  # window 0: none
    cdef np.ndarray held_lengths, counts, tables
    cdef np.ndarray firsts                        # of a ring: the first position that is still there
    cdef np.ndarray bases, seen_firsts, seen_lengths  # likewise, as attention is told

    def __init__(self, batch, num_kv_heads, max_length, head_dim, dtype, window, value_dim, pools=None):
        self.batch = arguments.at_least_one("batch", batch)
        self.max_length = arguments.at_least_one("max_length", max_length)
        self.window = 0 if window is None else arguments.at_least_one("window", window)
        if self.window > self.max_length:
            raise ValueError(f"window must be at most max_length, {self.max_length}, got {self.window}")
        cdef ptrdiff_t rows = self.max_length
        if self.window:
            rows = min(rows, self.window + max(<ptrdiff_t>SLACK, self.window // 4))
        self.make(self.batch, num_kv_heads, rows, head_dim, dtype, value_dim, pools)
        self.held_lengths, self.counts = zeros(batch, np.int64), zeros(batch, np.int64)
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
        """After any change of lengths or firsts."""
        cdef ptrdiff_t n
        cdef int64 base
        if not self.window:
            return
        for n in range(self.batch):
            base = integers(self.firsts)[n] // self.page_size * self.page_size
            integers(self.bases)[n] = base
            integers(self.seen_firsts)[n] = integers(self.firsts)[n] - base
            integers(self.seen_lengths)[n] = integers(self.held_lengths)[n] - base

    def append(self, k, v, lengths, cos, sin, interleaved, num_threads):
        cdef np.ndarray a = arguments.cache_rows("k", k, self.batch, self.kv_heads, -1, self.head_dim)
        cdef np.ndarray b = arguments.cache_rows("v", v, self.batch, self.kv_heads, a.shape[2], self.value_dim)
        cdef int asked = arguments.thread_limit(num_threads)
        cdef int64 *old = integers(self.held_lengths)
        cdef const int64 *new = integers(new_counts(lengths, self.counts, a.shape[2]))
        cdef ptrdiff_t n, most = 0, end = 0
        cdef Plan p
        for n in range(self.batch):
            most, end = max(most, new[n]), max(end, old[n] + new[n])
            if not self.window and old[n] + new[n] > self.max_length:
                raise ValueError(
                    f"k must hold at most {self.max_length - old[n]} tokens for sequence {n}, which has {old[n]} of "
                    f"max_length {self.max_length}, got {new[n]}"
                )
        if self.writes_to(a) or self.writes_to(b):
            a, b = a.copy(), b.copy()
        self.aim(&p, a, b)
        self.turn(&p, a, cos, sin, interleaved, end)
        self.must_be_writable()
        p.slots, p.tables, p.table_row = NULL, integers(self.tables), self.tables.shape[1]
        p.lengths, p.counts, p.ring = old, new, self.window != 0
        if self.window:  # otherwise what is written before a refusal lies beyond the sequences' ends
            self.judge(&p, self.batch, most, asked)
        self.store(&p, self.batch, most, asked)
        must_have_scales(&p)
        for n in range(self.batch):
            old[n] += new[n]
            if self.window:
                integers(self.firsts)[n] = max(integers(self.firsts)[n], old[n] - self.page_size)
        self.rebase()

    def attend(self, query, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, out,
               return_lse, num_threads):
        if self.window:
            window, q_offset = self.seen_through(query, window, q_offset, attn_mask)
        return attend_pages(
            query, self.key_pages, self.value_pages, self.key_scales, self.value_scales, self.tables, self.seen_firsts,
            self.seen_lengths, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, out,
            return_lse, num_threads,
        )

    cdef tuple seen_through(self, query, window, q_offset, attn_mask):
        """(window, q_offset) for attention to a ring: the cache's own window applies, positions are rebased."""
        cdef np.ndarray q = arguments.real_array("query", query)
        cdef np.npy_intp[4] shape
        cdef ptrdiff_t left = UNBOUNDED, right = UNBOUNDED, n, first, offset
        cdef np.npy_intp batch = self.batch
        cdef np.ndarray offsets = arguments.per_sequence("q_offset", q_offset, 1, &batch)
        arguments.cached_shape(q, self.key_pages, self.value_pages, batch, shape)
        arguments.attention_window("window", window, &left, &right)
        if left != UNBOUNDED and left >= self.window:
            raise ValueError(f"window must reach back less than the cache's own, {self.window}, got {left}")
        left = min(left, self.window - 1)
        for n in range(self.batch):
            first = integers(self.firsts)[n]
            if first == 0:
                continue
            if attn_mask is not None:
                raise ValueError("attn_mask must be None once the window has moved on, got an array")
            if offsets is None:
                offset = integers(self.held_lengths)[n] - q.shape[2]
            else:
                offset = integers(offsets)[n if offsets.ndim else 0]
            if q.shape[2] and offset - left < first:
                raise ValueError(
                    f"query must stand at position {first + left} or later in sequence {n}, whose keys before {first} "
                    f"are gone, got {offset}; append and attend to at most {self.chunk} tokens at a time"
                )
        return (left, None if right == UNBOUNDED else right), None if offsets is None else offsets - self.bases

    def view(self, str name, values):
        """The keys or values as they lie, (batch, kv heads, tokens of the longest sequence, size)."""
        if self.stored == FA_I8:
            raise ValueError(f"dtype must not be int8 for {name} to be a view, got int8: its rows have scales")
        if self.window and self.firsts.any():
            raise ValueError(f"window must not have moved on for {name} to be a view, got first keys gone")
        return (self.value_pages if values else self.key_pages)[:, :, : self.held_lengths.max()]

    def reset(self):
        self.held_lengths[...] = 0
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
        self.held_lengths[...] = new
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
                    f"length must be 0 or, for sequence {n}, at least {least}: keys before are gone, got {length}"
                )
        return 0

    def reorder(self, order):
        cdef np.ndarray sources = arguments.indices("indices", order, self.batch, self.batch)
        self.must_be_writable()
        pending = {to: source for to, source in enumerate(sources.tolist()) if to != source}
        while pending:
            needed = set(pending.values())
            to = next((to for to in pending if to not in needed), None)
            if to is None:  # all that are left go round in circles
                self.rotate(pending)
            else:
                self.copy_rows(to, pending.pop(to))
        self.held_lengths[...] = self.held_lengths[sources]
        if self.window:
            self.firsts[...] = self.firsts[sources]
        self.rebase()

    def copy_rows(self, to, source):
        for pool in self.arrays():
            pool[to, :, : self.used(source)] = pool[source, :, : self.used(source)]

    def rotate(self, pending):
        """Take a circle out of `pending`."""
        first = to = next(iter(pending))
        rows = self.used(first)
        aside = [pool[first, :, :rows].copy() for pool in self.arrays()]
        while pending[to] != first:
            source = pending.pop(to)
            self.copy_rows(to, source)
            to = source
        del pending[to]
        for pool, kept in zip(self.arrays(), aside):
            pool[to, :, :rows] = kept

    cpdef ptrdiff_t used(self, ptrdiff_t n):
        """Rows of sequence n's page that hold something."""
        return min(integers(self.held_lengths)[n], self.page_size)

    def used_parts(self):
        """Where in the pools there is something: indices of pieces that lie side by side."""
        return [(n, head, slice(self.used(n))) for n in range(self.batch) for head in range(self.kv_heads)]

    def state(self):
        """What besides the pools makes this cache, by name."""
        return {"lengths": self.held_lengths, "firsts": self.held_lengths * 0 if self.firsts is None else self.firsts}

    def restore(self, lengths, firsts):
        """Take up a state; False where it cannot be one."""
        if lengths.shape != (self.batch,) or firsts.shape != (self.batch,):
            return False
        held = lengths - firsts
        if (firsts < 0).any() or (held < 0).any() or (held > self.page_size).any():
            return False
        self.held_lengths[...] = lengths
        if self.window:
            self.firsts[...] = firsts
        self.rebase()
        return self.window != 0 or not firsts.any()


# --- pages that sequences share ---

cdef class Batch:
    """The sequences of a call: memory that a cache keeps from call to call."""

    cdef np.ndarray slots, lengths, counts, tables

    def __init__(self, count, blocks):
        self.slots, self.lengths, self.counts = (zeros(count, np.int64) for _ in range(3))
        self.tables = zeros((count, blocks), np.int64)


cdef class Paged(Store):
    """See fastattn.cache.PagedKVCache. A sequence has a slot: a row of `tables`, which lists its pages, and its length.

    `references` counts the tables that list a page. A page that several list is written by none of them.
    """

    cdef dict slots               # of each live sequence, by id
    cdef list spare_slots
    cdef ptrdiff_t next_id
    cdef np.ndarray tables, held_lengths, references
    cdef np.ndarray vacant        # pages that nobody lists, from the last to be taken to the first
    cdef readonly ptrdiff_t free_pages
    cdef Batch spare

    def __init__(self, num_pages, page_size, num_kv_heads, head_dim, dtype, value_dim, pools=None):
        arguments.at_least_one("num_pages", num_pages)
        arguments.at_least_one("page_size", page_size)
        self.make(num_pages, num_kv_heads, page_size, head_dim, dtype, value_dim, pools)
        self.slots, self.spare_slots, self.next_id = {}, [], 0
        self.tables, self.held_lengths = zeros((0, 4), np.int64), zeros(0, np.int64)
        self.references, self.vacant = zeros(num_pages, np.int64), np.arange(num_pages)[::-1].copy()
        self.free_pages = num_pages

    # Sequences

    cdef ptrdiff_t slot_of(self, str name, object id) except -1:
        if not isinstance(id, (int, np.integer)) or isinstance(id, bool):
            raise TypeError(f"{name} must be what allocate or fork returned, an int, got {type(id).__name__}")
        slot = self.slots.get(id)
        if slot is None:
            raise ValueError(f"{name} must be that of a live sequence, got {id}, which is unknown or was freed")
        return slot

    cdef Batch batch_of(self, object ids):
        """The slots of these sequences, in memory that `give_back` takes again."""
        cdef ptrdiff_t count, n
        cdef Batch batch = self.spare
        if isinstance(ids, np.ndarray) and ids.ndim == 1:
            ids = ids.tolist()
        elif not isinstance(ids, (list, tuple, range)):
            raise TypeError(f"ids must be a list of ints, got {type(ids).__name__}")
        count, self.spare = len(ids), None
        if batch is None or batch.slots.shape[0] != count or batch.tables.shape[1] != self.tables.shape[1]:
            batch = Batch(count, self.tables.shape[1])
        for n in range(count):
            integers(batch.slots)[n] = self.slot_of("ids", ids[n])
        return batch

    cdef ptrdiff_t new_slot(self) except -1:
        if not self.spare_slots:
            rows = self.tables.shape[0]
            self.widen(max(4, 2 * rows), self.tables.shape[1])
            self.spare_slots = list(range(self.tables.shape[0] - 1, rows - 1, -1))
        return self.spare_slots.pop()

    cdef int widen(self, ptrdiff_t rows, ptrdiff_t blocks) except -1:
        """Make the tables at least so large. New arrays, for someone may still read the old ones."""
        if rows > self.tables.shape[0] or blocks > self.tables.shape[1]:
            former, lengths = self.tables, self.held_lengths
            tables = zeros((max(rows, former.shape[0]), max(blocks, former.shape[1])), np.int64)
            tables[: former.shape[0], : former.shape[1]] = former
            self.held_lengths = np.append(lengths, zeros(tables.shape[0] - lengths.shape[0], np.int64))
            self.tables = tables
        return 0

    def allocate(self):
        slot, id = self.new_slot(), self.next_id
        self.slots[id], self.next_id = slot, id + 1
        return id

    def fork(self, id):
        cdef ptrdiff_t source = self.slot_of("id", id), slot = self.new_slot(), block
        cdef int64 *table = self.table(slot)
        integers(self.held_lengths)[slot] = integers(self.held_lengths)[source]
        for block in range(self.blocks(slot)):
            table[block] = self.table(source)[block]
            integers(self.references)[table[block]] += 1
        new, self.next_id = self.next_id, self.next_id + 1
        self.slots[new] = slot
        return new

    def free(self, id):
        cdef ptrdiff_t slot = self.slot_of("id", id)
        self.shorten(slot, 0)
        del self.slots[id]
        self.spare_slots.append(slot)

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
        """Whether new tokens would be written to a page that another sequence lists, too."""
        cdef int64 length = integers(self.held_lengths)[slot]
        return new and length % self.page_size and integers(self.references)[self.last_page(slot)] > 1

    cdef int64 last_page(self, ptrdiff_t slot) noexcept:
        return self.table(slot)[self.blocks(slot) - 1]

    cdef int make_room(self, Batch batch) except -1:
        """Give each sequence the pages that its new tokens need, a copy of its last one where that is shared.

        Pages are counted before any is taken. Of sequences that share a last page the last one to leave keeps it, if
        nobody else lists it: hence the references are counted down first.
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
                f"num_pages must allow {needed} free pages of {self.page_size} tokens for this append, "
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

    cdef int64 copy_of(self, int64 page, ptrdiff_t rows) except -1:
        cdef int64 copy = self.take()
        for pool in self.arrays():
            pool[copy, :, :rows] = pool[page, :, :rows]
        return copy

    # Tokens

    def append(self, ids, k, v, lengths, cos, sin, interleaved, num_threads):
        cdef Batch batch = self.batch_of(ids)
        cdef ptrdiff_t count = batch.slots.shape[0], n, most = 0, end = 0
        cdef np.ndarray a = arguments.cache_rows("k", k, count, self.kv_heads, -1, self.head_dim)
        cdef np.ndarray b = arguments.cache_rows("v", v, count, self.kv_heads, a.shape[2], self.value_dim)
        cdef int asked = arguments.thread_limit(num_threads)
        cdef const int64 *slots = integers(batch.slots)
        cdef const int64 *new = integers(new_counts(lengths, batch.counts, a.shape[2]))
        cdef Plan p
        if len(set(ids)) != count:
            raise ValueError(f"ids must name each sequence once, got {list(ids)}")
        for n in range(count):
            most, end = max(most, new[n]), max(end, integers(self.held_lengths)[slots[n]] + new[n])
        self.aim(&p, a, b)
        self.turn(&p, a, cos, sin, interleaved, end)
        self.must_be_writable()
        self.widen(0, self.table_width(self.blocks_for(end)))
        p.slots, p.counts, p.ring = slots, new, False
        p.tables, p.table_row, p.lengths = integers(self.tables), self.tables.shape[1], integers(self.held_lengths)
        self.judge(&p, count, most, asked)
        self.make_room(batch)
        self.store(&p, count, most, asked)
        for n in range(count):
            integers(self.held_lengths)[slots[n]] += new[n]
        self.spare = batch

    cdef ptrdiff_t table_width(self, ptrdiff_t blocks) noexcept:
        """Room for more than is needed now, so that tables seldom move."""
        cdef ptrdiff_t width = self.tables.shape[1]
        blocks = min(blocks, self.pages)  # what is more, make_room refuses
        while width < blocks:
            width *= 2
        return width

    def attend(self, ids, query, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, out,
               return_lse, num_threads):
        cdef Batch batch = self.batch_of(ids)
        cdef ptrdiff_t n, slot
        for n in range(batch.slots.shape[0]):
            slot = integers(batch.slots)[n]
            integers(batch.lengths)[n] = integers(self.held_lengths)[slot]
            memcpy(
                integers(batch.tables) + n * batch.tables.shape[1], self.table(slot), self.blocks(slot) * sizeof(int64)
            )
        result = attend_pages(
            query, self.key_pages, self.value_pages, self.key_scales, self.value_scales, batch.tables, None,
            batch.lengths, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, out,
            return_lse, num_threads,
        )
        self.spare = batch
        return result

    # Files

    def used_parts(self):
        """Where in the pools there is something: indices of pieces that lie side by side."""
        return [(page,) for page in np.flatnonzero(self.references).tolist()]

    def state(self):
        """What besides the pools makes this cache, by name."""
        ids = np.array(list(self.slots), np.int64)
        slots = np.array(list(self.slots.values()), np.int64)
        blocks = max((self.blocks(slot) for slot in slots), default=0)
        tables = self.tables[slots, :blocks]
        for table, slot in zip(tables, slots):
            table[self.blocks(slot):] = -1
        return {"ids": ids, "lengths": self.held_lengths[slots], "tables": tables, "next_id": np.array([self.next_id])}

    def restore(self, ids, lengths, tables, next_id):
        """Take up a state; False where it cannot be one."""
        count = len(ids)
        if ids.shape != (count,) or lengths.shape != (count,) or tables.ndim != 2 or len(tables) != count:
            return False
        if next_id.shape != (1,) or len(set(ids.tolist())) != count or (ids < 0).any() or (ids >= next_id).any():
            return False
        blocks = -(-lengths // self.page_size)
        listed = np.arange(tables.shape[1]) < blocks[:, None]
        if (lengths < 0).any() or (blocks > tables.shape[1]).any():
            return False
        pages = tables[listed]
        if (pages < 0).any() or (pages >= self.pages).any():
            return False
        if any(len(set(table[:n].tolist())) != n for table, n in zip(tables, blocks)):
            return False
        tables, listed = tables[:, : max(blocks, default=0)], listed[:, : max(blocks, default=0)]
        self.widen(count, self.table_width(tables.shape[1]))
        self.tables[:count, : tables.shape[1]] = np.where(listed, tables, 0)
        self.held_lengths[:count] = lengths
        np.add.at(self.references, pages, 1)
        vacant = np.flatnonzero(self.references == 0)
        self.free_pages = len(vacant)
        self.vacant[: len(vacant)] = vacant[::-1]
        self.slots = {id: slot for slot, id in enumerate(ids.tolist())}
        self.spare_slots = list(range(len(self.tables) - 1, count - 1, -1))
        self.next_id = next_id[0]
        return True
