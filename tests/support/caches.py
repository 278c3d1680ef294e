"""What a cache should hold, and what attending to it should give: the plain twins that its tests compare with."""

import numpy as np

from fastattn import reference
from fastattn._dtypes import TYPES
from support.telling import telling

DTYPES = [row.name for row in TYPES]


def numpy_type(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def quantised(x):
    """(integers, scales) of rows in float32, as an int8 cache stores them."""
    x = np.asarray(x, np.float32)
    scales = np.abs(x).max(axis=-1, initial=0) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    integers = np.clip(np.rint(x / divisor), -127, 127).astype(np.int8)
    return np.where(scales[..., None] == 0, np.int8(0), integers), scales


def as_stored(x, dtype):
    """What rows are once they have been stored, in float64."""
    if dtype == "int8":
        integers, scales = quantised(x)
        return integers.astype(np.float64) * scales[..., None]
    x = x if dtype == "float64" else x.astype(np.float32)
    with np.errstate(over="ignore"):
        return x.astype(numpy_type(dtype)).astype(np.float64)


def held_rows(store, table, first, length):
    """The keys and values [first, length) of a sequence, (kv heads, tokens, size), in float64; a ring has one page."""
    j = np.arange(first, length)
    is_ring = hasattr(store, "window")
    pages = np.asarray(table, np.int64)[0 * j if is_ring else j // store.page_size]
    scales = [store.key_scales, store.value_scales]
    for pool, scale in zip((store.key_pages, store.value_pages), scales, strict=True):
        rows = pool[pages, :, j % store.page_size].astype(np.float64)
        if scale is not None:
            rows = rows * scale[pages, :, j % store.page_size].astype(np.float64)[..., None]
        yield rows.swapaxes(0, 1)


class Padding:
    """Where the queries of a sequence stand by default: at its last tokens, unless an append was padded."""

    def __init__(self):
        self.gaps_end = 0  # no token from here on has a gap before it
        self.last = None  # where such an append began, and how many tokens it took, while it is the last change

    def append(self, length, count, tokens):
        if count < tokens:
            self.gaps_end, self.last = length + count, (length, tokens)
        elif count:
            self.last = None

    def cut(self, length, new):
        if new < length:
            self.gaps_end, self.last = min(self.gaps_end, new), None

    def offset(self, length, queries):
        """Where the first one stands; None where that is not known."""
        if self.last and self.last[1] == queries:
            return self.last[0]
        is_known = queries <= max(1, length - self.gaps_end) or self.gaps_end == 0
        return length - queries if is_known else None


def positions_matter(options):
    """Whether these options of attention look at them."""
    window = options.get("window") or (None, None)
    return options.keys() & {"alibi_slopes", "position_bias"} or options.get("is_causal") or window != (None, None)


# Of the largest value. The kernels for int8 may round the query to 8 bits, too.
TOLERANCES = {"float64": 1e-12, "int8": 0.05}


def assert_attends(attend, query, sequences, options, expected_options, dtype):
    """That `attend(query, **options)` is what the oracle says of the sequences' rows, each alone."""
    out, lse = attend(query, **options, return_lse=True)
    assert out.dtype == query.dtype
    tolerance = TOLERANCES.get(dtype, 2e-5)
    longest = max(k.shape[1] for k, _ in sequences)
    for b, (k, v) in enumerate(sequences):
        own = dict(expected_options)
        own.pop("num_threads", None)
        own |= {name: own[name][b] for name in ("q_offset", "alibi_slopes") if name in own}
        if "attn_mask" in own:
            assert own["attn_mask"].shape[-1] == longest
            own["attn_mask"] = own["attn_mask"][b, ..., : k.shape[1]]
        expected, expected_lse = reference.scaled_dot_product_attention(query[b], k, v, **own, return_lse=True)
        largest = np.abs(v).max(initial=1)
        with telling(sequence=b, read=getattr(attend, "__self__", "pages"), stored=dtype, query=query, **options):
            np.testing.assert_allclose(out[b], expected, rtol=0, atol=tolerance * largest)
            np.testing.assert_allclose(lse[b], expected_lse, rtol=0, atol=tolerance * 8)
    given = np.full_like(out, np.nan)
    assert attend(query, **options, out=given) is given
    np.testing.assert_array_equal(given, out)
