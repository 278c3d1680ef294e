"""The speed of a core and the size of items: one table for all operations.

A call counts its work in the unit of its operation and divides by the rate to get nanoseconds, from which threads.pyx
chooses the number of threads. The rates are rough figures of one core, used only for that.
"""

cdef enum:
    # Work of a core per nanosecond.
    ATTENTION_FLOPS = 60       # a multiply-add counts twice
    ATTENTION_BYTES = 15       # of keys and values, if there are few queries per key
    # Cost of a score besides its products, in components of the head: its exponential, maximum and sum.
    ATTENTION_TILED_SCORE = 9
    ATTENTION_ROWWISE_SCORE = 64
    LINEAR_PRODUCTS = 50       # multiply-adds
    LINEAR_WEIGHT_BYTES = 12   # of the weight, if there are few rows
    SOFTMAX_ELEMENTS = 3
    NORMALIZATION_ELEMENTS = 5
    # Cost of a row besides its elements, in elements. Softmax: 20 nanoseconds (AVX-512, rows of 16 to 128 elements),
    # but at most three times the row's elements, as short rows share vectors. Norms: 16 nanoseconds.
    SOFTMAX_ROW = 60
    NORMALIZATION_ROW = 80
    ROTARY_ELEMENTS = 5
    CACHE_ELEMENTS = 4
    PACKED_BYTES = 4           # of a weight that is being packed

    # A call of attention with fewer products of queries and keys, about a microsecond, keeps the GIL.
    ATTENTION_LOCKED_PRODUCTS = 16384

    # Items of the row operations. 16384 elements are 3 to 6 microseconds of work: enough to hide the cost of taking an
    # item, and few enough for many items. Beyond the cache a new item is not prefetched, which costs 64 KB items a
    # fifth of their speed.
    ITEM_ELEMENTS = 16384
    STREAMED_ITEM_ELEMENTS = 262144

    # Items of attention and linear. A call waits for a thread that loses its processor inside an item: hence at most 5
    # milliseconds of attention, unless a tile is longer, and 200 microseconds of linear. Items of attention are longer
    # because their tiles share keys: 64 rows instead of 128 cost 2 %, 32 rows 7 % (4096 keys of size 128).
    ATTENTION_ITEM_NANOSECONDS = 5000000
    LINEAR_ITEM_PRODUCTS = 10000000
    ATTENTION_ITEMS_PER_THREAD = 8  # at least, if there are enough rows, so that no thread finishes much later
    LINEAR_ITEMS_PER_THREAD = 4
    LINEAR_ITEM_FEATURES = 64       # at least, as an item may have to transpose its rows of x into lanes
    PACKED_ITEM_PANELS = 4          # at least: they are read side by side
    LINEAR_ITEM_BYTES = 524288      # of rows of x: a quarter or half of a core's L2; the rest is for the weight

    # Parts of the keys, for a sequence whose rows make fewer than 32 items. They decide the order of additions: other
    # values give other bits. Merging a part costs about as much as attending to 10 keys.
    ENOUGH_ITEMS = 32
    SHORTEST_PART = 512        # keys
    PART_ALIGNMENT = 128       # keys: the kernels' own step
