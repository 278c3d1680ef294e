"""What a core does, and how large an item is: one table for all operations.

A call counts its work in the unit of its operation and divides by the rate to get nanoseconds, from which threads.pyx
chooses the number of threads. The rates are round numbers of one core: they decide about speed alone.
"""

cdef enum:
    # Work of a core in a nanosecond.
    ATTENTION_FLOPS = 60       # multiply-adds count twice
    ATTENTION_BYTES = 15       # of keys and values, where there are few queries to a key
    LINEAR_PRODUCTS = 50       # multiply-adds
    LINEAR_WEIGHT_BYTES = 12   # of a weight that few rows share
    SOFTMAX_ELEMENTS = 3
    NORMALIZATION_ELEMENTS = 5
    ROTARY_ELEMENTS = 5
    CACHE_ELEMENTS = 4

    # A call of attention with fewer products of queries and keys, about a microsecond, keeps Python's lock.
    ATTENTION_LOCKED_PRODUCTS = 16384

    # Items of the row operations. 16384 elements are 3 to 6 microseconds of work: that hides taking an item, and leaves
    # enough of them to share out. Beyond the cache a new item is not prefetched: 64 KB items lose a fifth by that.
    ITEM_ELEMENTS = 16384
    STREAMED_ITEM_ELEMENTS = 262144

    # Items of attention and linear. A call waits for a thread that loses its processor inside an item: hence at most 5
    # milliseconds of attention, unless a tile is longer, and 200 microseconds of linear. Attention's are longer because
    # fewer tiles would share a key: 64 rows for 128 cost 2 %, 32 rows 7 % at 4096 keys of 128.
    ATTENTION_ITEM_NANOSECONDS = 5000000
    LINEAR_ITEM_PRODUCTS = 10000000
    ATTENTION_ITEMS_PER_THREAD = 8  # at least, if the rows allow it: the last one to finish is not awaited for long
    LINEAR_ITEMS_PER_THREAD = 4
    LINEAR_ITEM_FEATURES = 64       # at least: an item may have to bring its rows of x into the lanes
    LINEAR_ITEM_BYTES = 524288      # of rows of x: a quarter or half of a core's L2, the rest is for the weight

    # Parts of the keys of a sequence whose rows make fewer than 32 items. They decide in which order numbers are added:
    # other values are other bits. Merging a part costs about as much as attending to 10 keys.
    ENOUGH_ITEMS = 32
    SHORTEST_PART = 512        # keys
    PART_ALIGNMENT = 128       # keys: the kernels' own step
