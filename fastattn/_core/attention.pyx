"""Attention: a call is judged, laid out, cut into items, and the items run on OpenMP's threads.

A call is a list of sequences, each with its own queries, keys and positions: the entries of the leading axes, or packed
ones. An item is some rows of one kv head of a sequence; where the rows of a sequence are too few to share out, its keys
are cut into parts as well, and the parts merged in their order. What numbers are added in which order depends on the
sequence alone, never on the threads or on the rest of the batch: so its result is the same to the bit whatever is
around it.

Causal, window and lengths become an interval of keys for each query, the mask is read where it lies: kernels/.
"""

import numpy as np

cimport numpy as np
from libc.math cimport sqrt
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc, qsort

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport element_stride, length, stride
from fastattn._core cimport strides
from fastattn._core.targets cimport (
    FA_BF16, FA_F32, FA_F64, FA_I8, FA_MASK_BOOL, FA_MOST_PARTS, FA_NO_MASK, fa_attention, fa_attention_item,
    fa_kernels, fa_rows, fa_size_of, fa_type, kernels_of,
)
from fastattn._core.threads cimport run, threads_for

np.import_array()

# Of a head: scratch memory is some thousand times as large, and its size must not wrap.
cdef ptrdiff_t LARGEST_SIZE = <ptrdiff_t>1 << 36
cdef ptrdiff_t FAR = <ptrdiff_t>1 << 62  # farther from 0 than any key and query, also with the number of one added
cdef ptrdiff_t wave_size = 1024          # parts computed before they are merged: bounds their memory

cdef enum:
    QUERY, KEY, VALUE, OUT, LSE, MASK  # rows of Axes.stride
    ENOUGH_ITEMS = 32            # a sequence with fewer has its keys cut into parts too
    SHORTEST_PART = 512          # keys; merging a part costs about as much as attending to 10 keys
    PART_ALIGNMENT = 128         # keys: the kernels' own step
    ITEMS_PER_THREAD = 8         # so that the last one to finish is not awaited for long
    LONGEST_ITEM = 5000000       # nanoseconds, where a tile is shorter: so long a call may wait for another thread.
                                 # Fewer tiles share a key: 64 rows for 128 cost 2 %, 32 rows 7 % at 4096 keys of 128
    AT_HAND = 4                  # sequences that need no memory of their own

# What a core does per nanosecond, for the choice of the number of threads: FLOPs, and bytes of keys and values.
cdef double FLOPS = 60.0
cdef double BYTES = 15.0


cdef struct Sequence:
    const char *query
    const char *key
    const char *value
    const char *mask
    char *out
    char *lse
    const char *slopes
    const int64_t *pages                               # its block table, where keys and values lie in pages
    ptrdiff_t queries, q_offset, key_begin, key_end  # the keys that some query may see
    ptrdiff_t begin_offset, end_offset               # query i: i + begin_offset <= j < i + end_offset, within FAR
    ptrdiff_t rows, many_rows                        # of a kv head; those for attention_many
    ptrdiff_t parts, part_keys
    ptrdiff_t row_items, first_item                  # of a kv head; where the sequence's items begin
    double work                                      # FLOPs, or so


cdef struct Plan:
    fa_attention call
    ptrdiff_t left, right              # a query at position p sees the keys p - left <= j <= p + right; -1: unbounded
    ptrdiff_t query_group, key_head, value_head, mask_group, out_group, lse_group  # bytes from one kv head to the next
    const char *key_scales             # of int8 keys and values
    const char *value_scales
    ptrdiff_t key_scale_head, value_scale_head
    ptrdiff_t kv_heads
    bint weights                       # attention_weights: the weights are the result
    const char *sinks
    ptrdiff_t group_options            # bytes of a group's sinks or slopes
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


# --- laying a call out ---

cdef fa_type computed_as(const Plan *p) noexcept nogil:
    """Which row of the target's table: sums of dot products where all three are bfloat16, not for single weights."""
    cdef const fa_attention *call = &p.call
    if call.type == FA_F64:
        return FA_F64
    if p.weights or call.type != FA_BF16 or call.key.type != FA_BF16 or call.value.type != FA_BF16:
        return FA_F32
    return FA_BF16


cdef void lay_out(Plan *p, int asked) noexcept nogil:
    """Choose the kernel, the parts of the keys, the threads, and last the rows of an item.

    Tiles and parts decide how numbers are added up; they follow from one sequence. How many tiles make an item decides
    nothing but speed: as many as share keys in L2, while enough items are left for the threads.
    """
    cdef ptrdiff_t n, items
    cdef double work = 0, traffic = 0
    p.kernels = kernels_of(computed_as(p))
    items = 0
    for n in range(p.count):
        lay_out_sequence(p, &p.sequences[n])
        items += tiles_of(p, &p.sequences[n]) * p.kv_heads * p.sequences[n].parts
        work += p.sequences[n].work
        traffic += <double>(p.sequences[n].key_end - p.sequences[n].key_begin)
    traffic *= <double>p.kv_heads * (
        p.call.head_size * fa_size_of(p.call.key.type) + p.call.value_size * fa_size_of(p.call.value.type)
    )
    p.threads = threads_for(asked, items, max(work / FLOPS, traffic / BYTES))
    if p.count > 1:
        qsort(p.sequences, p.count, sizeof(Sequence), whole_and_large_first)

    p.item_rows = p.kernels.most_rows
    while p.item_rows > p.kernels.tile_rows and p.threads > 1 and (
        count_items(p) < p.threads * ITEMS_PER_THREAD or longest_item(p) > LONGEST_ITEM
    ):
        p.item_rows //= 2
    number_items(p)


cdef void lay_out_sequence(const Plan *p, Sequence *s) noexcept nogil:
    cdef ptrdiff_t rest, keys
    # The keys within the first query's left bound and the last one's right bound.
    s.begin_offset = -FAR if p.left < 0 else sum_within(s.q_offset, -p.left)
    s.end_offset = FAR if p.right < 0 else sum_within(s.q_offset, p.right) + 1
    s.key_begin = max(s.key_begin, min(s.key_end, s.begin_offset))
    s.key_end = max(s.key_begin, min(s.key_end, s.queries - 1 + s.end_offset))
    keys = s.key_end - s.key_begin
    s.rows = s.queries * p.call.group
    rest = s.rows % p.kernels.tile_rows
    s.many_rows = s.rows - rest if rest <= p.kernels.few_rows and not p.weights else s.rows
    s.parts = min(keys // SHORTEST_PART, ENOUGH_ITEMS // max(1, p.kv_heads * tiles_of(p, s)), <ptrdiff_t>FA_MOST_PARTS)
    s.parts = 1 if p.weights else max(s.parts, 1)
    s.part_keys = (keys + s.parts - 1) // s.parts
    s.part_keys = (s.part_keys + PART_ALIGNMENT - 1) // PART_ALIGNMENT * PART_ALIGNMENT
    s.work = 2.0 * s.rows * p.kv_heads * (p.call.head_size + p.call.value_size) * seen(p, s, keys)


cdef ptrdiff_t sum_within(ptrdiff_t a, ptrdiff_t b) noexcept nogil:
    """a + b, but no farther from 0 than FAR: neither wraps."""
    if b > 0:
        return FAR if a > FAR - b else max(a + b, -FAR)
    return -FAR if a < -FAR - b else min(a + b, FAR)


cdef double seen(const Plan *p, const Sequence *s, ptrdiff_t keys) noexcept nogil:
    """About how many of its keys a query sees."""
    cdef double width = keys
    if p.left >= 0 and p.right >= 0:
        width = min(width, <double>p.left + p.right + 1)
    return keys / 2.0 if p.right == 0 and width == keys and s.queries > 1 else width


cdef ptrdiff_t tiles_of(const Plan *p, const Sequence *s) noexcept nogil:
    return (s.rows + p.kernels.tile_rows - 1) // p.kernels.tile_rows


cdef int whole_and_large_first(const void *a, const void *b) noexcept nogil:
    """Largest first, so that no long one is awaited in the end; those that are cut into parts after the others."""
    cdef const Sequence *x = <const Sequence *>a
    cdef const Sequence *y = <const Sequence *>b
    if (x.parts > 1) != (y.parts > 1):
        return 1 if x.parts > 1 else -1
    return (x.work < y.work) - (x.work > y.work)


cdef ptrdiff_t row_items_of(const Plan *p, const Sequence *s) noexcept nogil:
    return (s.many_rows + p.item_rows - 1) // p.item_rows + (s.many_rows < s.rows)


cdef ptrdiff_t count_items(const Plan *p) noexcept nogil:
    cdef ptrdiff_t n, items = 0
    for n in range(p.count):
        items += row_items_of(p, &p.sequences[n]) * p.kv_heads * p.sequences[n].parts
    return items


cdef double longest_item(const Plan *p) noexcept nogil:
    """About how many nanoseconds the rows of an item take against all keys, or all of a part."""
    cdef ptrdiff_t n
    cdef const Sequence *s
    cdef double longest = 0
    for n in range(p.count):
        s = &p.sequences[n]
        longest = max(longest, s.work / max(1, s.rows * p.kv_heads * s.parts) * min(s.rows, p.item_rows))
    return longest / FLOPS


cdef void number_items(Plan *p) noexcept nogil:
    cdef ptrdiff_t n
    cdef Sequence *s
    p.items = p.whole_items = 0
    p.most_parts = 1
    for n in range(p.count):
        s = &p.sequences[n]
        s.first_item, s.row_items = p.items, row_items_of(p, s)
        p.items += s.row_items * p.kv_heads
        if s.parts == 1:
            p.whole_items = p.items
        p.most_parts = max(p.most_parts, s.parts)


# --- items ---

cdef const Sequence *sequence_of(const Plan *p, ptrdiff_t item) noexcept nogil:
    """The last one whose items begin at or before this one."""
    cdef ptrdiff_t low = 0, high = p.count, middle
    while high - low > 1:
        middle = (low + high) // 2
        if p.sequences[middle].first_item <= item:
            low = middle
        else:
            high = middle
    return &p.sequences[low]


cdef fa_attention_item item_of(const Plan *p, const Sequence *s, ptrdiff_t index) noexcept nogil:
    """Item `index` of the call. The last rows of a head come first: under a causal mask they see most."""
    cdef fa_attention_item item
    cdef ptrdiff_t own = index - s.first_item
    cdef ptrdiff_t block = s.row_items - 1 - own % s.row_items, head = own // s.row_items
    item.query = s.query + head * p.query_group
    item.key = s.key + head * p.key_head
    item.value = s.value + head * p.value_head
    item.pages = s.pages
    item.key_scale = p.key_scales + head * p.key_scale_head if p.key_scales != NULL else NULL
    item.value_scale = p.value_scales + head * p.value_scale_head if p.value_scales != NULL else NULL
    item.mask = s.mask + head * p.mask_group if s.mask != NULL else NULL
    item.out = s.out + head * p.out_group
    item.lse = s.lse + head * p.lse_group if s.lse != NULL else NULL
    item.sinks = p.sinks + head * p.group_options if p.sinks != NULL else NULL
    item.slopes = s.slopes + head * p.group_options if s.slopes != NULL else NULL
    item.q_offset, item.begin_offset, item.end_offset = s.q_offset, s.begin_offset, s.end_offset
    item.first_row = min(block * p.item_rows, s.many_rows)
    item.rows = min(p.item_rows, (s.many_rows if item.first_row < s.many_rows else s.rows) - item.first_row)
    item.key_begin, item.key_end = s.key_begin, s.key_end
    item.part_out = item.part_max = item.part_sum = NULL
    return item


cdef void point_to_part(const Plan *p, fa_attention_item *item, ptrdiff_t slot, ptrdiff_t part) noexcept nogil:
    """Let the item's results go to a part of the wave's slot: arrays (parts, rows, value_size) and (parts, rows)."""
    cdef ptrdiff_t first = slot * p.most_parts * p.item_rows + part * item.rows
    item.part_out = p.part_out + first * p.call.value_size * p.kernels.itemsize
    item.part_max = p.part_max + first * p.kernels.itemsize
    item.part_sum = p.part_sum + first * p.kernels.itemsize


cdef void attend(const Plan *p, const Sequence *s, const fa_attention_item *item, void *memory) noexcept nogil:
    """Rows that fill tiles go in the lanes; a few, or what few are left over, would leave most lanes empty."""
    if p.weights:
        p.kernels.attention_weights(&p.call, item, memory)
    elif item.first_row < s.many_rows:
        p.kernels.attention_many(&p.call, item, memory)
    else:
        p.kernels.attention_few(&p.call, item, memory)


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef const Sequence *s = sequence_of(p, index)
    cdef fa_attention_item item = item_of(p, s, index)
    attend(p, s, &item, memory)


cdef void run_part(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    """Part `index` of the wave. The sink belongs to the first part."""
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t part = index % p.most_parts, slot = index // p.most_parts
    cdef const Sequence *s = sequence_of(p, p.first_item + slot)
    cdef fa_attention_item item = item_of(p, s, p.first_item + slot)
    if part >= s.parts:
        return
    item.key_begin = min(s.key_begin + part * s.part_keys, s.key_end)
    item.key_end = min(item.key_begin + s.part_keys, s.key_end)
    if part:
        item.sinks = NULL
    point_to_part(p, &item, slot, part)
    attend(p, s, &item, memory)


cdef void merge_item(const void *plan, ptrdiff_t slot, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef const Sequence *s = sequence_of(p, p.first_item + slot)
    cdef fa_attention_item item = item_of(p, s, p.first_item + slot)
    point_to_part(p, &item, slot, 0)
    p.kernels.attention_merge(&p.call, &item, s.parts)


cdef bint run_waves(Plan *p, ptrdiff_t scratch_size) noexcept nogil:
    """Parts, then their merging; so many items at a time that the parts' memory stays bounded."""
    cdef ptrdiff_t wave = max(1, wave_size // p.most_parts), count
    cdef ptrdiff_t rows = min(wave, p.items - p.whole_items) * p.most_parts * p.item_rows
    cdef char *memory = <char *>malloc(rows * (p.call.value_size + 2) * p.kernels.itemsize)
    cdef bint done = memory != NULL
    p.part_max, p.part_sum = memory, memory + rows * p.kernels.itemsize
    p.part_out = memory + 2 * rows * p.kernels.itemsize
    p.first_item = p.whole_items
    while done and p.first_item < p.items:
        count = min(wave, p.items - p.first_item)
        done = run(run_part, p, count * p.most_parts, p.threads, scratch_size)
        done = done and run(merge_item, p, count, p.threads, 0)
        p.first_item += count
    free(memory)
    return done


cdef bint run_call(Plan *p, int asked) noexcept nogil:
    """False where no memory was left."""
    cdef ptrdiff_t scratch_size
    cdef bint done = True
    lay_out(p, asked)
    scratch_size = p.kernels.attention_scratch(&p.call)
    if p.whole_items:
        done = run(run_item, p, p.whole_items, p.threads, scratch_size)
    if done and p.whole_items < p.items:
        done = run_waves(p, scratch_size)
    return done


def assume_wave(size: int) -> int:
    """Compute so many parts before they are merged from now on; return how many it were.

    For tests: a call has several waves then, without thousands of parts.
    """
    global wave_size
    former = wave_size
    wave_size = size
    return former


# --- the boundary ---

cdef int read_options(
    Plan *p, np.ndarray query, object is_causal, object window, object scale, object softcap
) except -1:
    """What holds for all sequences."""
    cdef fa_attention *call = &p.call
    p.left = p.right = -1
    if arguments.flag("is_causal", is_causal):
        p.right = 0
    arguments.attention_window("window", window, &p.left, &p.right)
    call.scale = 1 / sqrt(<double>call.head_size) if scale is None else arguments.finite("scale", scale)
    call.softcap = 0 if softcap is None else arguments.positive("softcap", softcap)
    call.type = arguments.type_of(query)
    p.group_options = call.group * (8 if call.type == FA_F64 else 4)
    p.key_scales = p.value_scales = NULL
    p.key_scale_head = p.value_scale_head = call.page_rows = 0
    return 0


cdef bint nothing_to_compute(np.ndarray result, np.ndarray lse) noexcept:
    """Then there may be any number of sequences and queries: what has no elements takes no memory."""
    return np.PyArray_SIZE(result) == 0 and (lse is None or np.PyArray_SIZE(lse) == 0)


cdef int take_sequences(Plan *p, ptrdiff_t count) except -1:
    p.count, p.sequences = count, p.at_hand
    if count > AT_HAND:
        p.sequences = <Sequence *>malloc(count * sizeof(Sequence))
        if p.sequences == NULL:
            raise MemoryError("no memory for the list of sequences")
    return 0


cdef void let_go(Plan *p) noexcept:
    if p.sequences != p.at_hand:
        free(p.sequences)


cdef int place(Sequence *s, ptrdiff_t n, ptrdiff_t queries, ptrdiff_t keys, np.ndarray offsets, np.ndarray lengths,
               np.ndarray slopes) except -1:
    """Where sequence n stands, and how long it is."""
    s.queries, s.key_begin, s.key_end = queries, 0, keys
    s.pages = NULL
    if lengths is not None:
        s.key_end = entry(lengths, n)
        arguments.length_within("kv_lengths", s.key_end, keys)
    s.q_offset = s.key_end - queries if offsets is None else entry(offsets, n)
    s.slopes = NULL
    if slopes is not None:
        s.slopes = <const char *>np.PyArray_DATA(slopes) + (n * stride(slopes, 2) if slopes.ndim == 2 else 0)
    return 0


cdef ptrdiff_t entry(np.ndarray x, ptrdiff_t n) noexcept:
    return (<const np.npy_int64 *>np.PyArray_DATA(x))[n if x.ndim else 0]


cdef void add_mask(Plan *p, np.ndarray mask) noexcept:
    cdef fa_attention *call = &p.call
    call.mask_type = FA_NO_MASK
    call.mask_head = call.mask_row = call.mask_key = p.mask_group = 0
    if mask is None:
        return
    call.mask_type = FA_MASK_BOOL if np.PyArray_TYPE(mask) == np.NPY_BOOL else <int>arguments.type_of(mask)
    call.mask_head, call.mask_row, call.mask_key = stride(mask, 3), stride(mask, 2), stride(mask, 1)
    p.mask_group = call.mask_head * call.group


cdef void fill_batch(strides.Axes *batch, int array, np.ndarray x, int own) noexcept:
    """Strides of the leading axes of an array with so many of its own; 0 where it is broadcast or not there."""
    cdef int i
    for i in range(batch.count):
        batch.stride[array][i] = 0 if x is None else stride(x, batch.count + own - i)


cdef void describe_rows(fa_rows *rows, np.ndarray x, int tokens) noexcept:
    """How keys or values lie whose tokens have that axis, counted from the end."""
    rows.type = arguments.type_of(x)
    rows.row, rows.element, rows.page = stride(x, tokens), element_stride(x), 0
    rows.scale_row = rows.scale_page = 0


cdef void describe_pages(fa_rows *rows, np.ndarray pages, np.ndarray scales) noexcept:
    """The same for pages (pages, heads, tokens, size); with scales, (pages, heads, tokens), they hold int8."""
    describe_rows(rows, pages, 2)
    rows.page = pages.strides[0]
    if scales is not None:
        rows.type = FA_I8
        rows.scale_row, rows.scale_page = scales.strides[2], scales.strides[0]


cdef char *data(np.ndarray x) noexcept:
    return NULL if x is None else <char *>np.PyArray_DATA(x)


cdef np.ndarray apart(np.ndarray result, tuple inputs):
    """Where to compute: the result itself, or a new array where it shares memory with an input."""
    for x in inputs:
        if x is not None and arguments.share_memory(result, x):
            return np.PyArray_EMPTY(result.ndim, result.shape, np.PyArray_TYPE(result), 0)
    return result


cdef void describe(Plan *p, np.ndarray q, np.ndarray out, np.ndarray lse, int heads, int tokens) noexcept:
    """How queries and results lie: which axes, counted from the end, are those of the heads and of the tokens."""
    cdef fa_attention *call = &p.call
    call.query_head, call.query_row, call.query_element = stride(q, heads), stride(q, tokens), element_stride(q)
    call.out_head, call.out_row, call.out_element = stride(out, heads), stride(out, tokens), element_stride(out)
    call.lse_head = call.lse_row = 0
    if lse is not None:
        call.lse_head, call.lse_row = stride(lse, heads - 1), stride(lse, tokens - 1)
    p.query_group, p.out_group, p.lse_group = (
        call.query_head * call.group, call.out_head * call.group, call.lse_head * call.group
    )


cdef object handed_over(np.ndarray result, np.ndarray target, np.ndarray lse):
    """What the caller gets."""
    if target is not result:
        result[...] = target
    return result if lse is None else (result, lse)


cdef object attend_batch(
    query, key, value, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, kv_lengths, out,
    return_lse, num_threads, bint weights,
):
    """Both functions over leading axes; for the weights `value` is None."""
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef np.ndarray k = arguments.real_array_like("key", key, q, "query")
    cdef np.ndarray v = None if weights else arguments.real_array_like("value", value, q, "query")
    cdef bint with_lse = arguments.flag("return_lse", return_lse)
    cdef int asked = arguments.thread_limit(num_threads), i, ndim
    cdef np.npy_intp[strides.MOST_AXES] shape
    cdef strides.Axes batch
    cdef Plan p
    cdef fa_attention *call = &p.call
    cdef np.ndarray mask, offsets, lengths, slopes, sink, result, target, lse = None
    cdef ptrdiff_t n

    ndim = arguments.weights_shape(q, k, shape) if weights else arguments.attention_shape(q, k, v, shape)
    batch.count = max(ndim - 3, 0)
    for i in range(batch.count):
        batch.length[i] = shape[i]
    p.weights, p.kv_heads = weights, length(k, 3)
    call.group = length(q, 3) // p.kv_heads if p.kv_heads else 0
    call.keys, call.head_size = length(k, 2), length(q, 1)
    call.value_size = 0 if weights else length(v, 1)
    read_options(&p, q, is_causal, window, scale, softcap)
    offsets = arguments.per_sequence("q_offset", q_offset, batch.count, shape)
    lengths = arguments.per_sequence("kv_lengths", kv_lengths, batch.count, shape)
    slopes = arguments.attention_slopes("alibi_slopes", alibi_slopes, q, batch.count, shape, length(q, 3))
    sink = arguments.attention_sinks("sinks", sinks, q, length(q, 3))
    shape[ndim - 1] = call.keys
    mask = arguments.attention_mask("attn_mask", attn_mask, q, ndim, shape)
    shape[ndim - 1] = call.keys if weights else call.value_size
    result = arguments.output("out", out, ndim, shape, q, "query")
    target = result if out is None else apart(result, (q, k, v, mask))
    if with_lse:
        lse = np.PyArray_EMPTY(ndim - 1, shape, arguments.computed_in(q), 0)

    describe(&p, q, target, lse, 3, 2)
    describe_rows(&call.key, k, 2)
    describe_rows(&call.value, k if weights else v, 2)
    p.key_head, p.value_head, p.sinks = stride(k, 3), 0 if weights else stride(v, 3), data(sink)
    add_mask(&p, mask)
    fill_batch(&batch, QUERY, q, 3)
    fill_batch(&batch, KEY, k, 3)
    fill_batch(&batch, VALUE, v, 3)
    fill_batch(&batch, OUT, target, 3)
    fill_batch(&batch, LSE, lse, 2)
    fill_batch(&batch, MASK, mask, 3)
    if slopes is not None and slopes.ndim > 1:
        slopes = slopes.reshape(-1, slopes.shape[slopes.ndim - 1])

    if nothing_to_compute(result, lse):
        for n in range(0 if lengths is None else np.PyArray_SIZE(lengths)):
            arguments.length_within("kv_lengths", entry(lengths, n), call.keys)
        return handed_over(result, result, lse)
    take_sequences(&p, strides.total(&batch))
    try:
        for n in range(p.count):
            place(&p.sequences[n], n, length(q, 2), call.keys, offsets, lengths, slopes)
            p.sequences[n].query = data(q) + strides.offset(&batch, QUERY, n)
            p.sequences[n].key = data(k) + strides.offset(&batch, KEY, n)
            p.sequences[n].value = data(v) + strides.offset(&batch, VALUE, n)
            p.sequences[n].mask = data(mask) + strides.offset(&batch, MASK, n)
            p.sequences[n].out = data(target) + strides.offset(&batch, OUT, n)
            p.sequences[n].lse = data(lse) + strides.offset(&batch, LSE, n)
        compute(&p, asked)
    finally:
        let_go(&p)
    return handed_over(result, target, lse)


cdef int compute(Plan *p, int asked) except -1:
    cdef bint done = p.call.head_size <= LARGEST_SIZE and p.call.value_size <= LARGEST_SIZE
    if done and p.count and p.call.group and p.kv_heads:
        with nogil:
            done = run_call(p, asked)
    if not done:
        raise MemoryError("no scratch memory for attention")
    return 0


def scaled_dot_product_attention(
    query, key, value, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, kv_lengths, out,
    return_lse, num_threads,
):
    """See fastattn.attention."""
    return attend_batch(
        query, key, value, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, kv_lengths, out,
        return_lse, num_threads, False,
    )


def attention_weights(
    query, key, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, kv_lengths, out,
    return_lse, num_threads,
):
    """See fastattn.attention."""
    return attend_batch(
        query, key, None, attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, kv_lengths, out,
        return_lse, num_threads, True,
    )


def varlen_attention(
    query, key, value, cu_seqlens_q, cu_seqlens_k, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes,
    kv_lengths, out, return_lse, num_threads,
):
    """See fastattn.attention."""
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef np.ndarray k = arguments.real_array_like("key", key, q, "query")
    cdef np.ndarray v = arguments.real_array_like("value", value, q, "query")
    cdef bint with_lse = arguments.flag("return_lse", return_lse)
    cdef int asked = arguments.thread_limit(num_threads)
    cdef np.npy_intp[3] shape
    cdef np.npy_intp count
    cdef Plan p
    cdef fa_attention *call = &p.call
    cdef np.ndarray begin_q, begin_k, offsets, lengths, slopes, sink, result, target, lse = None
    cdef ptrdiff_t n, first_q, first_k

    arguments.packed_shape(q, k, v, shape)
    begin_q = arguments.boundaries("cu_seqlens_q", cu_seqlens_q, q, "query")
    begin_k = arguments.boundaries("cu_seqlens_k", cu_seqlens_k, k, "key")
    arguments.as_many("cu_seqlens_k", begin_k, begin_q, "cu_seqlens_q")
    count = begin_q.shape[0] - 1
    p.weights, p.kv_heads = False, length(k, 2)
    call.group = length(q, 2) // p.kv_heads if p.kv_heads else 0
    call.keys, call.head_size, call.value_size = length(k, 3), length(q, 1), length(v, 1)
    read_options(&p, q, is_causal, window, scale, softcap)
    offsets = arguments.per_sequence("q_offset", q_offset, 1, &count)
    lengths = arguments.per_sequence("kv_lengths", kv_lengths, 1, &count)
    slopes = arguments.attention_slopes("alibi_slopes", alibi_slopes, q, 1, &count, length(q, 2))
    sink = arguments.attention_sinks("sinks", sinks, q, length(q, 2))
    result = arguments.output("out", out, 3, shape, q, "query")
    target = result if out is None else apart(result, (q, k, v))
    if with_lse:
        lse = np.PyArray_EMPTY(2, shape, arguments.computed_in(q), 0)

    describe(&p, q, target, lse, 2, 3)
    describe_rows(&call.key, k, 3)
    describe_rows(&call.value, v, 3)
    p.key_head, p.value_head = stride(k, 2), stride(v, 2)
    p.sinks = data(sink)
    add_mask(&p, None)

    take_sequences(&p, count)
    try:
        for n in range(p.count):
            first_q, first_k = entry(begin_q, n), entry(begin_k, n)
            place(
                &p.sequences[n], n, entry(begin_q, n + 1) - first_q, entry(begin_k, n + 1) - first_k, offsets, lengths,
                slopes,
            )
            p.sequences[n].query = data(q) + first_q * call.query_row
            p.sequences[n].key = data(k) + first_k * call.key.row
            p.sequences[n].value = data(v) + first_k * call.value.row
            p.sequences[n].mask = NULL
            p.sequences[n].out = data(target) + first_q * call.out_row
            p.sequences[n].lse = data(lse) + first_q * call.lse_row
        if not nothing_to_compute(result, lse):
            compute(&p, asked)
    finally:
        let_go(&p)
    return handed_over(result, target, lse)


def attend_pages(
    query, np.ndarray key_pages, np.ndarray value_pages, np.ndarray key_scales, np.ndarray value_scales,
    np.ndarray block_tables, np.ndarray first_keys, np.ndarray lengths, attn_mask, is_causal, q_offset, window, scale,
    softcap, sinks, alibi_slopes, out, return_lse, num_threads,
):
    """Attention over a cache's pages, read where they lie; for fastattn.cache, which knows them to be sound.

    query (B, Hq, Sq, D); key_pages (pages, Hkv, page size, D) and value_pages likewise; scales (pages, Hkv, page size)
    of int8 pages, or None. Key j of sequence b, first_keys[b] <= j < lengths[b], is row ``j % page size`` of page
    ``block_tables[b, j // page size]``. block_tables, first_keys (or None) and lengths are int64, in C order.
    """
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef bint with_lse = arguments.flag("return_lse", return_lse)
    cdef int asked = arguments.thread_limit(num_threads)
    cdef np.npy_intp[4] shape
    cdef Plan p
    cdef fa_attention *call = &p.call
    cdef np.ndarray mask, offsets, slopes, sink, result, target, lse = None
    cdef ptrdiff_t n, batch = block_tables.shape[0], longest = 0

    arguments.cached_shape(q, key_pages, value_pages, batch, shape)
    for n in range(batch):
        longest = max(longest, entry(lengths, n))
    p.weights, p.kv_heads = False, key_pages.shape[1]
    call.group = length(q, 3) // p.kv_heads
    call.keys, call.head_size, call.value_size = longest, length(q, 1), length(value_pages, 1)
    read_options(&p, q, is_causal, window, scale, softcap)
    offsets = arguments.per_sequence("q_offset", q_offset, 1, shape)
    slopes = arguments.attention_slopes("alibi_slopes", alibi_slopes, q, 1, shape, length(q, 3))
    sink = arguments.attention_sinks("sinks", sinks, q, length(q, 3))
    shape[3] = longest
    mask = arguments.attention_mask("attn_mask", attn_mask, q, 4, shape)
    shape[3] = call.value_size
    result = arguments.output("out", out, 4, shape, q, "query")
    target = result if out is None else apart(result, (q, key_pages, value_pages, mask))
    if with_lse:
        lse = np.PyArray_EMPTY(3, shape, arguments.computed_in(q), 0)

    describe(&p, q, target, lse, 3, 2)
    describe_pages(&call.key, key_pages, key_scales)
    describe_pages(&call.value, value_pages, value_scales)
    call.page_rows = key_pages.shape[2]
    p.key_head, p.value_head, p.sinks = key_pages.strides[1], value_pages.strides[1], data(sink)
    if key_scales is not None:
        p.key_scales, p.key_scale_head = data(key_scales), key_scales.strides[1]
        p.value_scales, p.value_scale_head = data(value_scales), value_scales.strides[1]
    add_mask(&p, mask)

    if nothing_to_compute(result, lse):
        return handed_over(result, result, lse)
    take_sequences(&p, batch)
    try:
        for n in range(p.count):
            place(&p.sequences[n], n, length(q, 2), entry(lengths, n), offsets, None, slopes)
            if first_keys is not None:
                p.sequences[n].key_begin = entry(first_keys, n)
            p.sequences[n].pages = <const int64_t *>(data(block_tables) + n * block_tables.strides[0])
            p.sequences[n].query = data(q) + n * stride(q, 4)
            p.sequences[n].key, p.sequences[n].value = data(key_pages), data(value_pages)
            p.sequences[n].mask = data(mask) + n * stride(mask, 4) if mask is not None else NULL
            p.sequences[n].out = data(target) + n * stride(target, 4)
            p.sequences[n].lse = data(lse) + n * stride(lse, 3) if with_lse else NULL
        compute(&p, asked)
    finally:
        let_go(&p)
    return handed_over(result, target, lse)
