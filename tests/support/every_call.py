"""A small call of every operation, for what looks at the process rather than at results: failing allocations, leaks,
valgrind, a soak. Imports NumPy and fastattn alone, so that processes of those begin quickly."""

import numpy as np

import fastattn

_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.normal(size=shape).astype(np.float32)


_query, _key, _value = _normal(2, 4, 70, 24), _normal(2, 2, 300, 24), _normal(2, 2, 300, 16)
_rows, _other, _vector, _weight = _normal(70, 100), _normal(70, 100), _normal(100), _normal(33, 100)
_mask, _angles, _ends = _rng.random((2, 1, 70, 300)) < 0.7, _normal(70, 50), [0, 30, 70]
_sinks, _slopes, _bias = _normal(4), abs(_normal(4)), _normal(4, 41)
_int8 = np.ones((33, 100), np.int8), np.ones(33, np.float32)
_packed = [x.swapaxes(1, 2)[0, :70] for x in (_query, _key, _value)]
# More sequences than a call keeps on its stack, and keys for two parts, whose results are merged.
_many, _long = [_normal(6, 2, 5, 8) for _ in range(3)], [_normal(1, 2, rows, 24) for rows in (3, 1100, 1100)]


def nothing(*shape):
    """An array for a result: NaN, which no call here gives."""
    return np.full(shape, np.nan, np.float32)


def _attention(*masks, queries=_query, keys=_key, values=_value, **options):
    def call(out):
        return fastattn.scaled_dot_product_attention(queries, keys, values, *masks, out=out, **options)

    return call, (*queries.shape[:-1], values.shape[-1])


def _linear(weight, **options):
    return lambda out: fastattn.linear(_rows, weight, out=out, **options), (70, 33)


def _on_rows(function, *arguments, **options):
    return lambda out: function(_rows, *arguments, out=out, **options), _rows.shape


# Name -> (a function of the array for the result, that array's shape). Results depend on nothing else.
CALLS = {
    "attention": _attention(return_lse=True),
    "attention of strided queries": _attention(queries=_query[..., ::-1]),
    "attention with a mask": _attention(_mask, kv_lengths=[3, 300], is_causal=True, q_offset=np.array([5, 7])),
    "attention with biases": _attention(sinks=_sinks, alibi_slopes=_slopes, position_bias=_bias, window=(9, None)),
    "attention of one query": _attention(queries=_query[:, :, :1], num_threads=2),
    "attention in parts": _attention(queries=_long[0], keys=_long[1], values=_long[2]),
    "attention of many sequences": _attention(queries=_many[0], keys=_many[1], values=_many[2]),
    "weights": (lambda out: fastattn.attention_weights(_query, _key, out=out), (2, 4, 70, 300)),
    "packed sequences": (lambda out: fastattn.varlen_attention(*_packed, _ends, _ends, out=out), (70, 4, 16)),
    "softmax": _on_rows(fastattn.softmax),
    "softmax of columns": _on_rows(fastattn.softmax, axis=0, where=_other > 0),
    "log_softmax": _on_rows(fastattn.log_softmax),
    "layer_norm": _on_rows(fastattn.layer_norm, _vector, _vector[::-1]),
    "add_rms_norm": (lambda out: fastattn.add_rms_norm(_rows, _other, _vector, out=(out, None)), (70, 100)),
    "linear": _linear(_weight, activation="gelu", residual=_other[:, :33]),
    "linear with int8": _linear(_int8),
    "linear with a packed weight": _linear(fastattn.pack(_weight)),
    "linear with packed int8": _linear(fastattn.pack(_int8)),
    "pack": (lambda out: fastattn.pack(_weight).unpack(), ()),
    "rotary": (
        lambda out: fastattn.rotary_embedding(_rows[None], _angles, _angles, positions=range(70), out=out),
        (1, 70, 100),
    ),
}

# What NumPy's own functions do in part: these end the process when there is no memory for a broadcast.
IN_NUMPY = {
    "merge": (lambda out: fastattn.merge_states([_rows, _other], [_rows[:, 0], _other[:, 0]], out=out), (70, 100)),
    "quantise": (lambda out: fastattn.pack(_weight, dtype="int8").unpack().values, ()),
}


def _cache():
    cache = fastattn.KVCache(2, 2, 40, 24, value_dim=16)
    cache.append(_key[:, :, :30], _value[:, :, :30])
    cache.append(_key[:, :, :3], _value[:, :, :3], kv_lengths=[1, 3])
    cache.reorder([1, 0])
    return cache.attend(_query[:, :, :1])


def _pages():
    cache = fastattn.PagedKVCache(30, 4, 2, 24, value_dim=16, dtype="int8")
    ids = [cache.allocate(), cache.allocate()]
    cache.append(ids, _key[:, :, :30], _value[:, :, :30])
    cache.free(cache.fork(ids[0]))
    return cache.attend(ids, _query[:, :, :1])


def _refused():
    wrong = [
        lambda: fastattn.softmax(_rows, axis=5),
        lambda: fastattn.linear(_rows, _rows[:, :3]),
        lambda: fastattn.scaled_dot_product_attention(_query, _key[..., :3], _value),
        lambda: fastattn.varlen_attention(*_packed, [0, 3], [5, 1]),
        lambda: fastattn.rotary_embedding(_rows, None, _angles),
    ]
    for call in wrong:
        try:
            call()
        except (TypeError, ValueError):
            continue
        raise AssertionError("was not refused")


def run_odd_sizes():
    """Each in NumPy's types, with rows of one element, less than a vector, and a vector and some more.

    What is asked of the results shows a checker of memory whether all of them were written.
    """
    for dtype in ("float32", "float64", "float16"):
        for size in (1, 3, 17, 33):
            results = _of_size(np.dtype(dtype), size)
            assert all(np.isfinite(x).all() for result in results for x in result)


def _of_size(dtype, size):
    def array(*shape):
        return _rng.normal(size=shape).astype(dtype)

    query, key, value = array(1, 2, 3, size), array(1, 1, size + 2, size), array(1, 1, size + 2, size + 1)
    x, other, vector, angles = array(5, size), array(5, size)[:, ::-1], array(size), array(5, (size + 1) // 2)
    weight = array(size + 1, size)
    yield fastattn.scaled_dot_product_attention(query, key, value, is_causal=True, return_lse=True)
    yield fastattn.scaled_dot_product_attention(query[:, :, :1], key, value, alibi_slopes=abs(array(2)), softcap=9.0)
    yield fastattn.attention_weights(query, key, array(3, size + 2))
    yield fastattn.varlen_attention(x[:, None], x[:, None], other[:, None], [0, 2, 5], [0, 1, 5])
    for function in (fastattn.softmax, fastattn.log_softmax):
        yield function(x), function(other), function(x, axis=0)
    yield fastattn.layer_norm(x, vector, vector), fastattn.rms_norm(other, vector)
    yield fastattn.add_layer_norm(x, other, vector)
    yield fastattn.add_rms_norm(x, other, vector)
    for given in (weight, fastattn.pack(weight), (np.ones(weight.shape, np.int8), np.ones(len(weight), np.float32))):
        yield fastattn.linear(x, given, array(size + 1), activation="gelu")
        yield fastattn.linear(other[:1], given)
    for interleaved in (False, True):
        yield fastattn.rotary_embedding(array(2, 5, size + 1), angles, angles, interleaved=interleaved)
    for stored in (dtype, "int8"):
        cache = fastattn.KVCache(1, 1, 40, size, value_dim=size + 1, dtype=stored)
        cache.append(key, value)
        yield cache.attend(query)


def run_all():
    """Each once, and caches and refused calls."""
    for call, shape in (CALLS | IN_NUMPY).values():
        call(nothing(*shape))
    _cache(), _pages(), _refused()
