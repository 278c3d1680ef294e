"""Scaled dot-product attention: a call is judged, laid out, cut into items, and the items run on OpenMP's threads.

An item is some rows of one kv head; where the rows of a sequence are too few to share out, its keys are cut into parts
as well, and the parts merged in their order. What numbers are added in which order depends on the shape of the sequence
alone, never on the threads or on the rest of the batch: so its result is the same to the bit whatever surrounds it.
"""

import numpy as np

cimport numpy as np
from libc.math cimport sqrt
from libc.stddef cimport ptrdiff_t
from libc.stdlib cimport free, malloc

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport length, stride
from fastattn._core cimport strides
from fastattn._core.targets cimport FA_MOST_PARTS, fa_attention, fa_attention_item, fa_kernels, fa_type, kernels_of
from fastattn._core.threads cimport run, threads_for

np.import_array()

cdef double LOG2_E = 1.4426950408889634
cdef ptrdiff_t UNBOUNDED = 1 << 48  # farther than any position, and sums of it do not overflow

cdef enum:
    QUERY, KEY, VALUE, OUT, LSE  # rows of Axes.stride
    ENOUGH_ITEMS = 32            # a sequence with fewer has its keys cut into parts too
    SHORTEST_PART = 512          # keys; merging a part costs about as much as attending to 10 keys
    PART_ALIGNMENT = 128         # keys: the kernels' own step
    ITEMS_PER_THREAD = 8         # so that the last one to finish is not awaited for long
    WAVE = 1024                  # parts computed before they are merged: bounds their memory

# What a core does per nanosecond, for the choice of the number of threads: FLOPs, and bytes of keys and values.
cdef double FLOPS = 60.0
cdef double BYTES = 15.0


cdef struct Plan:
    fa_attention call
    strides.Axes batch
    char *query
    char *key
    char *value
    char *out
    char *lse
    ptrdiff_t query_group, key_head, value_head, out_group, lse_group  # bytes from one kv head to the next
    ptrdiff_t kv_heads
    ptrdiff_t rows, many_rows, item_rows  # of a kv head, those for attention_many, of an item
    ptrdiff_t row_items, items            # of a kv head, of the call
    ptrdiff_t parts, part_keys
    int threads
    const fa_kernels *kernels
    ptrdiff_t first_item  # of the wave, and where its parts are
    char *part_out
    char *part_max
    char *part_sum


# --- laying a call out ---

cdef void lay_out(Plan *p, fa_type type, int asked) noexcept nogil:
    """Choose the kernel, the parts of the keys, the threads, and last the rows of an item.

    Tiles and parts decide how numbers are added up; they follow from the shape of one sequence. How many tiles make an
    item decides nothing but speed: as many as share keys in L2, while enough items are left for the threads.
    """
    cdef ptrdiff_t tiles, rest, sequences = strides.total(&p.batch)
    p.kernels = kernels_of(type)
    p.rows = p.call.queries * p.call.group
    rest = p.rows % p.kernels.tile_rows
    p.many_rows = p.rows - rest if rest <= p.kernels.few_rows else p.rows
    tiles = (p.rows + p.kernels.tile_rows - 1) // p.kernels.tile_rows

    p.parts = min(p.call.keys // SHORTEST_PART, ENOUGH_ITEMS // max(1, p.kv_heads * tiles), <ptrdiff_t>FA_MOST_PARTS)
    p.parts = max(p.parts, 1)
    p.part_keys = (p.call.keys + p.parts - 1) // p.parts
    p.part_keys = (p.part_keys + PART_ALIGNMENT - 1) // PART_ALIGNMENT * PART_ALIGNMENT

    p.threads = threads_for(asked, sequences * p.kv_heads * tiles * p.parts, nanoseconds(p, sequences))
    p.item_rows = p.kernels.most_rows
    while p.item_rows > p.kernels.tile_rows and (
        sequences * p.kv_heads * ((p.rows + p.item_rows - 1) // p.item_rows) * p.parts < p.threads * ITEMS_PER_THREAD
    ):
        p.item_rows //= 2
    p.row_items = (p.many_rows + p.item_rows - 1) // p.item_rows + (p.many_rows < p.rows)
    p.items = sequences * p.kv_heads * p.row_items


cdef double nanoseconds(const Plan *p, ptrdiff_t sequences) noexcept nogil:
    """About how long one thread would take."""
    cdef double streams = <double>sequences * p.kv_heads * p.call.keys * (p.call.head_size + p.call.value_size)
    cdef bint triangle = p.call.right == 0 and p.call.queries > 1
    return max(2 * streams * p.rows / FLOPS / (2 if triangle else 1), streams * p.kernels.itemsize / BYTES)


cdef fa_attention_item item_of(const Plan *p, ptrdiff_t index) noexcept nogil:
    """Item `index` of the call. The last rows of a head come first: under a causal mask they see most."""
    cdef fa_attention_item item
    cdef ptrdiff_t block = p.row_items - 1 - index % p.row_items
    cdef ptrdiff_t head = index // p.row_items % p.kv_heads, batch = index // p.row_items // p.kv_heads
    item.query = p.query + strides.offset(&p.batch, QUERY, batch) + head * p.query_group
    item.key = p.key + strides.offset(&p.batch, KEY, batch) + head * p.key_head
    item.value = p.value + strides.offset(&p.batch, VALUE, batch) + head * p.value_head
    item.out = p.out + strides.offset(&p.batch, OUT, batch) + head * p.out_group
    item.lse = p.lse + strides.offset(&p.batch, LSE, batch) + head * p.lse_group if p.lse != NULL else NULL
    item.first_row = min(block * p.item_rows, p.many_rows)
    item.rows = min(p.item_rows, (p.many_rows if item.first_row < p.many_rows else p.rows) - item.first_row)
    item.key_begin, item.key_end = 0, p.call.keys
    item.part_out = item.part_max = item.part_sum = NULL
    return item


cdef void point_to_part(const Plan *p, fa_attention_item *item, ptrdiff_t slot, ptrdiff_t part) noexcept nogil:
    """Let the item's results go to a part of the wave's slot: arrays (parts, rows, value_size) and (parts, rows)."""
    cdef ptrdiff_t first = slot * p.parts * p.item_rows + part * item.rows
    item.part_out = p.part_out + first * p.call.value_size * p.kernels.itemsize
    item.part_max = p.part_max + first * p.kernels.itemsize
    item.part_sum = p.part_sum + first * p.kernels.itemsize


cdef void attend(const Plan *p, const fa_attention_item *item, void *memory) noexcept nogil:
    """Rows that fill tiles go in the lanes; a few, or what few are left over, would leave most lanes empty."""
    if item.first_row < p.many_rows:
        p.kernels.attention_many(&p.call, item, memory)
    else:
        p.kernels.attention_few(&p.call, item, memory)


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef fa_attention_item item = item_of(<const Plan *>plan, index)
    attend(<const Plan *>plan, &item, memory)


cdef void run_part(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    """Part `index` of the wave."""
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t part = index % p.parts, slot = index // p.parts
    cdef fa_attention_item item = item_of(p, p.first_item + slot)
    item.key_begin = min(part * p.part_keys, p.call.keys)
    item.key_end = min(item.key_begin + p.part_keys, p.call.keys)
    point_to_part(p, &item, slot, part)
    attend(p, &item, memory)


cdef void merge_item(const void *plan, ptrdiff_t slot, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef fa_attention_item item = item_of(p, p.first_item + slot)
    point_to_part(p, &item, slot, 0)
    p.kernels.attention_merge(&p.call, &item, p.parts)


cdef bint run_waves(Plan *p, ptrdiff_t scratch_size) noexcept nogil:
    """Parts, then their merging; so many items at a time that the parts' memory stays bounded."""
    cdef ptrdiff_t wave = max(1, WAVE // p.parts), count
    cdef ptrdiff_t rows = min(wave, p.items) * p.parts * p.item_rows
    cdef char *memory = <char *>malloc(rows * (p.call.value_size + 2) * p.kernels.itemsize)
    cdef bint done = memory != NULL
    p.part_max, p.part_sum = memory, memory + rows * p.kernels.itemsize
    p.part_out = memory + 2 * rows * p.kernels.itemsize
    p.first_item = 0
    while done and p.first_item < p.items:
        count = min(wave, p.items - p.first_item)
        done = run(run_part, p, count * p.parts, p.threads, scratch_size)
        done = done and run(merge_item, p, count, p.threads, 0)
        p.first_item += count
    free(memory)
    return done


cdef bint run_call(Plan *p) noexcept nogil:
    """False where no memory was left."""
    cdef ptrdiff_t scratch_size = p.kernels.attention_scratch(&p.call)
    if p.parts == 1:
        return run(run_item, p, p.items, p.threads, scratch_size)
    return run_waves(p, scratch_size)


# --- the boundary ---

cdef void fill_batch(Plan *p, int array, np.ndarray x) noexcept:
    """Strides of the leading axes; 0 where an array is broadcast."""
    cdef int i
    for i in range(p.batch.count):
        p.batch.stride[array][i] = stride(x, p.batch.count + 3 - i)


def scaled_dot_product_attention(query, key, value, is_causal, q_offset, scale, out, return_lse, num_threads):
    """See fastattn.attention."""
    cdef np.ndarray q = arguments.real_array("query", query)
    cdef np.ndarray k = arguments.real_array_like("key", key, q, "query")
    cdef np.ndarray v = arguments.real_array_like("value", value, q, "query")
    cdef bint causal = arguments.flag("is_causal", is_causal), with_lse = arguments.flag("return_lse", return_lse)
    cdef int asked = arguments.thread_limit(num_threads), i, ndim
    cdef np.npy_intp shape[strides.MOST_AXES]
    cdef Plan p
    cdef fa_attention *call = &p.call
    cdef np.ndarray result, target, lse = None

    ndim = arguments.attention_shape(q, k, v, shape)
    p.batch.count = max(ndim - 3, 0)
    for i in range(p.batch.count):
        p.batch.length[i] = shape[i]
    p.kv_heads = length(k, 3)
    call.group = length(q, 3) // p.kv_heads if p.kv_heads else 0
    call.queries, call.keys = length(q, 2), length(k, 2)
    call.head_size, call.value_size = length(q, 1), length(v, 1)
    call.scale = LOG2_E * (1 / sqrt(<double>call.head_size) if scale is None else arguments.finite("scale", scale))
    call.q_offset = call.keys - call.queries if q_offset is None else arguments.integer("q_offset", q_offset)
    call.q_offset = max(-UNBOUNDED // 4, min(call.q_offset, UNBOUNDED // 4))
    call.left, call.right = UNBOUNDED, 0 if causal else UNBOUNDED

    result = target = arguments.output("out", out, ndim, shape, q, "query")
    if out is not None and (
        arguments.share_memory(result, q) or arguments.share_memory(result, k) or arguments.share_memory(result, v)
    ):
        target = np.PyArray_EMPTY(ndim, shape, np.PyArray_TYPE(q), 0)
    if with_lse:
        lse = np.PyArray_EMPTY(ndim - 1, shape, np.PyArray_TYPE(q), 0)

    p.query, p.key, p.value = <char *>np.PyArray_DATA(q), <char *>np.PyArray_DATA(k), <char *>np.PyArray_DATA(v)
    p.out, p.lse = <char *>np.PyArray_DATA(target), <char *>np.PyArray_DATA(lse) if with_lse else NULL
    call.query_head, call.query_row, call.query_element = stride(q, 3), stride(q, 2), stride(q, 1)
    call.key_row, call.key_element = stride(k, 2), stride(k, 1)
    call.value_row, call.value_element = stride(v, 2), stride(v, 1)
    call.out_head, call.out_row, call.out_element = stride(target, 3), stride(target, 2), stride(target, 1)
    if with_lse:
        call.lse_head, call.lse_row = stride(lse, 2), stride(lse, 1)
    call.key_type, call.value_type = arguments.type_of(k), arguments.type_of(v)
    fill_batch(&p, QUERY, q)
    fill_batch(&p, KEY, k)
    fill_batch(&p, VALUE, v)
    fill_batch(&p, OUT, target)
    for i in range(p.batch.count):  # the lse has an axis less
        p.batch.stride[LSE][i] = lse.strides[i] if with_lse else 0
    p.query_group, p.out_group, p.lse_group = (
        call.query_head * call.group, call.out_head * call.group, call.lse_head * call.group
    )
    p.key_head, p.value_head = stride(k, 3), stride(v, 3)

    cdef fa_type type = arguments.type_of(q)
    cdef bint done = True
    if strides.total(&p.batch) and call.group and call.queries:
        with nogil:
            lay_out(&p, type, asked)
            done = run_call(&p)
    if not done:
        raise MemoryError("no scratch memory for attention")
    if target is not result:
        result[...] = target
    return (result, lse) if with_lse else result
