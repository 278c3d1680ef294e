"""The planner of attention: splits sequences into items, and these into parts if they are few, and runs them.

A call is a list of sequences, each with its own queries, keys and positions: the entries of the leading axes, or packed
ones. An item is some rows of one kv head of a sequence. If a sequence has few tiles (with its heads, fewer than 32
items, whatever the number of threads), its keys are split into parts, too, which are merged in their order. The order
of additions depends on the sequence alone, never on the threads or the rest of the batch, so its result is bitwise the
same in any call.

Nothing here uses Python or NumPy: sequences.pyx fills the plan.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdlib cimport free, malloc, qsort

from fastattn._core cimport costs
from fastattn._core.targets cimport (
    FA_BF16, FA_F32, FA_F64, FA_MOST_PARTS, fa_attention, fa_attention_item, fa_size_of, fa_type, kernels_of,
)
from fastattn._core.threads cimport run, threads_for

# Maximum head size: scratch memory is some thousand times as large, and its size must not overflow.
cdef ptrdiff_t LARGEST_SIZE = <ptrdiff_t>1 << 36
# Heads of so many components, of key and value together, or more pay for adding up each score across the lanes.
cdef ptrdiff_t ROWWISE_COMPONENTS = 128
# Scores of a head, queries times keys. On AVX-512 NumPy's product of so few has half the error of a larger one (5.4e-7
# and 1.15e-6 for 64 normal components): OpenBLAS adds these products lane by lane.
cdef double FEW_SCORES = 1200
cdef ptrdiff_t FAR = <ptrdiff_t>1 << 62  # beyond every key and query; adding the number of one does not overflow
cdef ptrdiff_t wave_size = 1024          # parts computed before they are merged: bounds their memory


cdef bint take_sequences(Plan *p, ptrdiff_t count) noexcept nogil:
    """Allocate memory for `count` sequences; False if there is none left."""
    p.count, p.sequences = count, p.at_hand
    if count > AT_HAND:
        p.sequences = <Sequence *>malloc(count * sizeof(Sequence))
    return p.sequences != NULL


cdef void release_sequences(Plan *p) noexcept nogil:
    if p.sequences != p.at_hand:
        free(p.sequences)


# --- the layout of a call ---

cdef fa_type computed_as(const Plan *p) noexcept nogil:
    """The row of the target's table: that of bfloat16 dot products if all three are bfloat16, except for weights."""
    cdef const fa_attention *call = &p.call
    if call.type == FA_F64:
        return FA_F64
    if p.weights or call.type != FA_BF16 or call.key.type != FA_BF16 or call.value.type != FA_BF16:
        return FA_F32
    return FA_BF16


cdef void lay_out(Plan *p, int asked) noexcept nogil:
    """Choose the kernel, the parts of the keys, the number of threads, and the rows of an item.

    Tiles and parts decide the order of additions, and depend on one sequence alone. The number of tiles of an item
    affects only speed: as many as share keys in L2, while enough items are left for the threads.
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
    p.threads = threads_for(asked, items, max(work / costs.ATTENTION_FLOPS, traffic / costs.ATTENTION_BYTES))
    if p.count > 1:
        qsort(p.sequences, p.count, sizeof(Sequence), whole_and_large_first)

    p.item_rows = p.kernels.most_rows
    while p.item_rows > p.kernels.tile_rows and p.threads > 1 and (
        count_items(p) < p.threads * costs.ATTENTION_ITEMS_PER_THREAD
        or longest_item(p) > costs.ATTENTION_ITEM_NANOSECONDS
    ):
        p.item_rows //= 2
    number_items(p)


cdef void lay_out_sequence(const Plan *p, Sequence *s) noexcept nogil:
    cdef ptrdiff_t keys, most
    # The keys within the first query's left bound and the last one's right bound.
    s.begin_offset = -FAR if p.left < 0 else sum_within(s.q_offset, -p.left)
    s.end_offset = FAR if p.right < 0 else sum_within(s.q_offset, p.right) + 1
    s.key_begin = max(s.key_begin, min(s.key_end, s.begin_offset))
    s.key_end = max(s.key_begin, min(s.key_end, s.queries - 1 + s.end_offset))
    keys = s.key_end - s.key_begin
    s.rows = s.queries * p.call.group
    s.tiled_rows = s.rows if p.weights else tiled_rows_of(p, s.rows)
    most = min(<ptrdiff_t>FA_MOST_PARTS, costs.ENOUGH_ITEMS // max(1, p.kv_heads * tiles_of(p, s)))
    s.parts = 1 if p.weights else max(1, min(most, keys // costs.SHORTEST_PART))
    s.part_keys = (keys + s.parts - 1) // s.parts
    s.part_keys = (s.part_keys + costs.PART_ALIGNMENT - 1) // costs.PART_ALIGNMENT * costs.PART_ALIGNMENT
    s.work = 2.0 * p.kv_heads * components_of(p, s) * seen(p, s, keys)


cdef double components_of(const Plan *p, const Sequence *s) noexcept nogil:
    """Estimate of the multiply-adds of one key with all rows; the cost of the scores is counted as further components.

    A vector of rows costs the same however many of its lanes are used.
    """
    cdef ptrdiff_t lanes = p.kernels.lanes, size = p.call.head_size + p.call.value_size
    cdef ptrdiff_t vectors = (s.tiled_rows + lanes - 1) // lanes
    return <double>(vectors * lanes) * (size + costs.ATTENTION_TILED_SCORE) + <double>(s.rows - s.tiled_rows) * (
        size + costs.ATTENTION_ROWWISE_SCORE
    )


cdef ptrdiff_t tiled_rows_of(const Plan *p, ptrdiff_t rows) noexcept nogil:
    """All rows but those that would fill less than half a vector, if they are faster row by row.

    A tile costs less in small heads, so fewer rows are worth it there; a quarter of a vector of rows is, from heads of
    16 components on. Rows that would widen a tile, instead of beginning one, make it take only 1.4 to 2 times as long:
    half as many are worth it. None are in small heads, nor with tile registers, where fewer than half a vector of rows
    go row by row anyhow: 17 and 18 rows in one tile take 0.6 to 1 times as long.
    """
    cdef ptrdiff_t up_to = p.kernels.rowwise_up_to, rest = rows % p.kernels.lanes
    cdef ptrdiff_t components = min(ROWWISE_COMPONENTS, p.call.head_size + p.call.value_size)
    if rows % p.kernels.tile_rows > p.kernels.lanes:
        up_to = up_to // 2 if components == ROWWISE_COMPONENTS and 2 * up_to >= p.kernels.lanes else 0
    else:
        up_to = max(1, up_to * components // ROWWISE_COMPONENTS, min(up_to // 2, components // 8))
    return rows - rest if rest <= up_to else rows


cdef ptrdiff_t sum_within(ptrdiff_t a, ptrdiff_t b) noexcept nogil:
    """a + b without overflow, clipped to FAR."""
    if b > 0:
        return FAR if a > FAR - b else max(a + b, -FAR)
    return -FAR if a < -FAR - b else min(a + b, FAR)


cdef double seen(const Plan *p, const Sequence *s, ptrdiff_t keys) noexcept nogil:
    """Estimate of the number of keys that a query sees."""
    cdef double width = keys
    if p.left >= 0 and p.right >= 0:
        width = min(width, <double>p.left + p.right + 1)
    return keys / 2.0 if p.right == 0 and width == keys and s.queries > 1 else width


cdef ptrdiff_t tiles_of(const Plan *p, const Sequence *s) noexcept nogil:
    return (s.rows + p.kernels.tile_rows - 1) // p.kernels.tile_rows


cdef int whole_and_large_first(const void *a, const void *b) noexcept nogil:
    """Largest first, so that no thread finishes late; sequences that are split into parts come after the others."""
    cdef const Sequence *x = <const Sequence *>a
    cdef const Sequence *y = <const Sequence *>b
    if (x.parts > 1) != (y.parts > 1):
        return 1 if x.parts > 1 else -1
    return (x.work < y.work) - (x.work > y.work)


cdef ptrdiff_t row_items_of(const Plan *p, const Sequence *s) noexcept nogil:
    return (s.tiled_rows + p.item_rows - 1) // p.item_rows + (s.tiled_rows < s.rows)


cdef ptrdiff_t count_items(const Plan *p) noexcept nogil:
    cdef ptrdiff_t n, items = 0
    for n in range(p.count):
        items += row_items_of(p, &p.sequences[n]) * p.kv_heads * p.sequences[n].parts
    return items


cdef double longest_item(const Plan *p) noexcept nogil:
    """Estimate of the time of the longest item in nanoseconds, over all keys or those of a part."""
    cdef ptrdiff_t n
    cdef const Sequence *s
    cdef double longest = 0
    for n in range(p.count):
        s = &p.sequences[n]
        longest = max(longest, s.work / max(1, s.rows * p.kv_heads * s.parts) * min(s.rows, p.item_rows))
    return longest / costs.ATTENTION_FLOPS


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
    """The last sequence whose items begin at or before this one."""
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
    item.position_bias = p.position_bias + head * p.group_biases if p.position_bias != NULL else NULL
    item.q_offset, item.begin_offset, item.end_offset = s.q_offset, s.begin_offset, s.end_offset
    item.first_row = min(block * p.item_rows, s.tiled_rows)
    item.rows = min(p.item_rows, (s.tiled_rows if item.first_row < s.tiled_rows else s.rows) - item.first_row)
    item.key_begin, item.key_end = s.key_begin, s.key_end
    item.few_scores = <double>s.queries * <double>(s.key_end - s.key_begin) <= FEW_SCORES
    item.part_out = item.part_max = item.part_sum = NULL
    return item


cdef void point_to_part(const Plan *p, fa_attention_item *item, ptrdiff_t slot, ptrdiff_t part) noexcept nogil:
    """Direct the item's results to a part of the wave's slot: arrays (parts, rows, value_size) and (parts, rows)."""
    cdef ptrdiff_t first = slot * p.most_parts * p.item_rows + part * item.rows
    item.part_out = p.part_out + first * p.call.value_size * p.kernels.itemsize
    item.part_max = p.part_max + first * p.kernels.itemsize
    item.part_sum = p.part_sum + first * p.kernels.itemsize


cdef void run_kernel(const Plan *p, const Sequence *s, const fa_attention_item *item, void *memory) noexcept nogil:
    """Rows that fill tiles go in the lanes; a few, or what few are left over, would leave most lanes empty."""
    if p.weights:
        p.kernels.attention_weights(&p.call, item, memory)
    elif item.first_row < s.tiled_rows:
        p.kernels.attention_tiled(&p.call, item, memory)
    else:
        p.kernels.attention_rowwise(&p.call, item, memory)


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef const Sequence *s = sequence_of(p, index)
    cdef fa_attention_item item = item_of(p, s, index)
    run_kernel(p, s, &item, memory)


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
    run_kernel(p, s, &item, memory)


cdef void merge_item(const void *plan, ptrdiff_t slot, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef const Sequence *s = sequence_of(p, p.first_item + slot)
    cdef fa_attention_item item = item_of(p, s, p.first_item + slot)
    point_to_part(p, &item, slot, 0)
    p.kernels.attention_merge(&p.call, &item, s.parts)


cdef bint run_waves(Plan *p, ptrdiff_t scratch_size) noexcept nogil:
    """Compute parts and merge them, in waves of items that bound the memory of the parts."""
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
    """Run the call; False if there is no memory left."""
    cdef ptrdiff_t scratch_size
    cdef bint done = True
    if p.call.head_size > LARGEST_SIZE or p.call.value_size > LARGEST_SIZE:
        return False
    if not (p.count and p.call.group and p.kv_heads):
        return True
    lay_out(p, asked)
    scratch_size = p.kernels.attention_scratch(&p.call)
    if p.whole_items:
        done = run(run_item, p, p.whole_items, p.threads, scratch_size)
    if done and p.whole_items < p.items:
        done = run_waves(p, scratch_size)
    return done


def assume_wave(size: int) -> int:
    """Set the number of parts of a wave; return the previous one.

    For tests, so that a call has several waves without thousands of parts.
    """
    global wave_size
    former = wave_size
    wave_size = size
    return former
