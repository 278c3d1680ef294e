"""fastattn over dask arrays: against fastattn and the oracle, whatever the chunks; on a cluster of two processes."""

import doctest
import functools
import importlib
import inspect
import os
import pkgutil
import signal
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn import reference
from support.dtypes import ALL, HALF, assert_equal, computed_in, eps, random, readable
from support.examples import MODELS
from support.problems import OPTIONS, Shape, assert_same_attention, options_of, problem
from support.processes import output

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from dask.core import flatten

from fastattn.integrations import dask as distributed_functions
from fastattn.integrations.dask import (
    encode,
    layer_norm,
    linear,
    log_softmax,
    rms_norm,
    scaled_dot_product_attention,
    softmax,
)
from fastattn.integrations.dask.chunks import threads as task_threads

SECONDS = 120  # that anything on a cluster may take


@pytest.fixture(autouse=True)
def synchronous(request):
    """Where a test has no cluster."""
    if "client" in request.fixturenames:
        yield
    else:
        with dask.config.set(scheduler="synchronous"):
            yield


def chunked(*shape, dtype=np.float32, chunks=2, seed=0):
    """(NumPy array, dask array) of random numbers."""
    x = random(np.random.default_rng(seed), np.dtype(dtype), *shape)
    return x, da.from_array(x, chunks=chunks)


def tasks(x, kind):
    """The indices of x's tasks of that kind that are needed to compute it."""
    graph = x.__dask_graph__().cull(set(flatten(x.__dask_keys__())))
    return {key[1:] for key in graph.to_dict() if isinstance(key, tuple) and key[0].startswith(f"{kind}-")}


# What is drawn

dtypes = st.sampled_from(ALL)


@st.composite
def chunks(draw, shape):
    """Chunks of each axis: borders anywhere, sometimes empty chunks."""

    def of(length):
        borders = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
        return tuple(b - a for a, b in zip([0, *borders], [*borders, length], strict=True))

    return tuple(map(of, shape))


@st.composite
def shapes(draw):
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Shape(
        batch=draw(st.integers(1, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        queries=draw(st.integers(1, 40)),
        keys=draw(st.integers(1, 60)),
        head_size=draw(st.integers(1, 20)),
        value_size=draw(st.integers(1, 20)),
    )


def cut(data, x):
    return da.from_array(x, chunks=data.draw(chunks(x.shape)))


# Attention


@hypothesis.given(dtypes, st.data())
def test_attention_is_what_fastattn_and_the_oracle_say(dtype, data):
    shape = data.draw(shapes())
    query, key, value = problem(shape, dtype)
    names = tuple(data.draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=5, unique=True)))
    options = options_of(names, shape, dtype)
    given_options = dict(options)
    if "attn_mask" in options and data.draw(st.booleans()):
        given_options["attn_mask"] = cut(data, options["attn_mask"])
    result = scaled_dot_product_attention(
        *(cut(data, x) for x in (query, key, value)), return_lse=True, **given_options
    )
    assert [x.dtype for x in result] == [dtype, computed_in(dtype)]
    assert [x.shape for x in result] == [shape.out, shape.out[:-1]]
    out, lse = dask.compute(*result)
    assert [out.dtype, lse.dtype] == [dtype, computed_in(dtype)]
    for module in (fastattn, reference):
        expected = module.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        assert_same_attention((out, lse), expected, query, key, value, **options)


@hypothesis.given(dtypes, st.data())
def test_sequences_in_different_chunks_have_the_same_bits(dtype, data):
    shape = data.draw(shapes())
    query, key, value = problem(shape, dtype)
    options = options_of(tuple(data.draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=3))), shape, dtype)
    own = data.draw(chunks((shape.batch,)))[0]
    arrays = [da.from_array(x, chunks=(own, -1, -1, -1)) for x in (query, key, value)]
    result = scaled_dot_product_attention(*arrays, **options).compute()
    assert_equal(result, fastattn.scaled_dot_product_attention(query, key, value, **options))


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((7, 4), (9, 4), (9, 3)),
        ((7, 4), (1, 9, 4), (1, 9, 3)),
        ((6, 7, 4), (2, 9, 4), (2, 9, 3)),
        ((3, 6, 7, 4), (2, 9, 4), (1, 2, 9, 3)),
        ((6, 7, 4), (3, 2, 9, 4), (3, 2, 9, 3)),
        ((2, 1, 6, 7, 4), (3, 2, 9, 4), (2, 3, 2, 9, 3)),
    ],
)
def test_leading_axes_broadcast(query, key, value):
    arrays = [chunked(*shape, seed=i) for i, shape in enumerate((query, key, value))]
    whole, parts = zip(*arrays, strict=True)
    result = scaled_dot_product_attention(*parts, is_causal=True, return_lse=True)
    expected = fastattn.scaled_dot_product_attention(*whole, is_causal=True, return_lse=True)
    for x, y in zip(result, expected, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x.compute(), y, atol=1e-5)


@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys", "value_size"])
def test_empty_arrays(empty):
    shape = Shape(2, 4, 2, 3, 5, 4, 4)._replace(**{empty: 0}, **({"kv_heads": 0} if empty == "heads" else {}))
    arrays = [np.ones(own, np.float32) for own in (shape.query, shape.key, shape.value)]
    result = scaled_dot_product_attention(*(da.from_array(x, chunks=2) for x in arrays), return_lse=True)
    expected = fastattn.scaled_dot_product_attention(*arrays, return_lse=True)
    for x, y in zip(dask.compute(*result), expected, strict=True):
        assert_equal(x, y)


def test_numpy_arrays_are_one_chunk():
    x = chunked(4, 9, 8)[0]
    result = scaled_dot_product_attention(x, x, x)
    assert result.numblocks == (1, 1, 1)
    assert_equal(result.compute(), fastattn.scaled_dot_product_attention(x, x, x))


def test_chunks_of_the_result():
    """Those of query, except where a border of key's heads or of a group lies within."""
    _, query = chunked(2, 8, 10, 4, chunks=(1, (2, 4, 2), 5, 2))
    _, key = chunked(2, 4, 12, 4, chunks=(2, (1, 3), 7, 4))
    result = scaled_dot_product_attention(query, key, key)
    assert result.chunks == ((1, 1), (2, 4, 2), (5, 5), (4,))
    _, query = chunked(2, 8, 10, 4, chunks=(1, (3, 5), 5, 2))
    assert scaled_dot_product_attention(query, key, key).chunks[1] == (2, 1, 1, 4)


# What is not scheduled: queries and keys in eight chunks of 10

PARTS = "attention-part"


def scheduled(**options):
    """Pairs of a chunk of queries and a chunk of keys."""
    _, x = chunked(1, 80, 4, chunks=(1, 10, 4))
    return {index[-2:] for index in tasks(scaled_dot_product_attention(x, x, x, **options), PARTS)}


EVERY = {(i, j) for i in range(8) for j in range(8)}
CAUSAL = {(i, j) for i, j in EVERY if j <= i}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, EVERY),
        ({"is_causal": True}, CAUSAL),
        ({"is_causal": True, "q_offset": 9}, {(i, j) for i, j in EVERY if j <= i + 1}),
        ({"is_causal": True, "q_offset": 10}, {(i, j) for i, j in EVERY if j <= i + 1}),
        ({"is_causal": True, "q_offset": 11}, {(i, j) for i, j in EVERY if j <= i + 2}),
        ({"is_causal": True, "q_offset": -10}, {(i, j) for i, j in EVERY if j <= i - 1}),
        ({"window": (10, 0)}, {(i, j) for i, j in EVERY if i - 1 <= j <= i}),
        ({"window": (11, 0)}, {(i, j) for i, j in EVERY if i - 2 <= j <= i}),
        ({"window": (0, 11)}, {(i, j) for i, j in EVERY if i <= j <= i + 2}),
        ({"window": (0, None)}, {(i, j) for i, j in EVERY if i <= j}),
        ({"window": (0, 11), "is_causal": True}, {(i, i) for i in range(8)}),
        ({"kv_lengths": 20}, {(i, j) for i, j in EVERY if j < 2}),
        ({"kv_lengths": 21}, {(i, j) for i, j in EVERY if j < 3}),
        ({"kv_lengths": 40, "is_causal": True, "q_offset": 0}, {(i, j) for i, j in CAUSAL if j < 4}),
        ({"attn_mask": np.arange(80) >= 70}, {(i, 7) for i in range(8)}),
        ({"attn_mask": np.where(np.arange(80) >= 70, 0, -np.inf).astype(np.float32)[None]}, {(i, 7) for i in range(8)}),
        ({"attn_mask": np.tri(80, dtype=bool)}, CAUSAL),
    ],
)
def test_excluded_pairs_have_no_task(options, expected):
    assert scheduled(**options) == expected


def test_pairs_that_one_sequence_needs():
    _, x = chunked(2, 1, 80, 4, chunks=(1, 1, 10, 4))
    lengths = [10, 20]
    apart = tasks(scaled_dot_product_attention(x, x, x, kv_lengths=lengths), PARTS)
    assert {index[0] for index in apart if index[-1] == 1} == {1}
    assert {index[-1] for index in apart} == {0, 1}
    together = tasks(scaled_dot_product_attention(*3 * [x.rechunk((2, 1, 10, 4))], kv_lengths=lengths), PARTS)
    assert {index[-1] for index in together} == {0, 1}


def test_excluded_chunks_are_not_computed():
    x, query = chunked(1, 80, 4, chunks=(1, 10, 4))

    def fail_beyond(chunk, block_info):
        assert block_info[0]["chunk-location"][1] < 3
        return chunk

    key = query.map_blocks(fail_beyond, dtype=query.dtype, meta=query)
    result = scaled_dot_product_attention(query[:, :30], key, key, is_causal=True, q_offset=0).compute()
    expected = fastattn.scaled_dot_product_attention(x[:, :30], x, x, is_causal=True, q_offset=0)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    with pytest.raises(AssertionError):
        scaled_dot_product_attention(query[:, :30], key, key).compute()


def test_merges_are_a_tree():
    _, query = chunked(1, 1, 4)
    _, key = chunked(1, 80, 4, chunks=(1, 1, 4))
    graph = scaled_dot_product_attention(query, key, key).__dask_graph__().to_dict()
    merges = [task for name, task in graph.items() if name[0].startswith("attention-merge-")]
    assert len(merges) == 20 + 5 + 1 + 1
    assert max(len(task.dependencies) for task in merges) == 4


def test_queries_that_see_nothing_get_the_sinks():
    x, query = chunked(4, 8, 4)
    sinks = np.arange(4, dtype=np.float32)
    out, lse = dask.compute(
        *scaled_dot_product_attention(query, query, query, kv_lengths=0, sinks=sinks, return_lse=True)
    )
    np.testing.assert_array_equal(out, np.zeros_like(x))
    np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], (4, 8)))


def test_nan_stays_in_rows_that_see_it():
    x, query = chunked(2, 40, 4, chunks=(2, 10, 4))
    value = x.copy()
    value[:, 25] = np.nan
    out = scaled_dot_product_attention(query, query, da.from_array(value, chunks=(2, 10, 4)), is_causal=True).compute()
    np.testing.assert_array_equal(np.isnan(out).all(axis=(0, 2)), np.arange(40) >= 25)
    np.testing.assert_array_equal(np.isnan(out).any(axis=(0, 2)), np.arange(40) >= 25)


@pytest.mark.parametrize("q_offset", [2**61, -(2**61)])
@pytest.mark.parametrize("window", [None, (2**63 - 1, None), (None, 2**63 - 1), (2**61, 2**61)])
def test_positions_far_away(q_offset, window):
    x, query = chunked(1, 6, 4)
    options = {"q_offset": q_offset, "window": window, "is_causal": q_offset > 0}
    expected = fastattn.scaled_dot_product_attention(x, x, x, **options)
    np.testing.assert_allclose(
        scaled_dot_product_attention(query, query, query, **options).compute(), expected, atol=1e-6
    )


# Arguments

X = np.ones((2, 4, 6, 8), np.float32)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": X.astype(int)},
        {"query": np.ones((2, 5, 6, 8), np.float32), "key": X[:, :2], "value": X[:, :2]},
        {"key": X[..., :7]},
        {"value": X[..., :5, :]},
        {"value": np.ones((3, 4, 6, 8), np.float32)},
        {"key": X.astype(np.float64)},
        {"attn_mask": np.ones((2, 6), bool)},
        {"attn_mask": np.ones((6, 6), int)},
        {"is_causal": 1},
        {"q_offset": 1.5},
        {"q_offset": np.zeros(3, int)},
        {"window": (1, -1)},
        {"window": 5},
        {"scale": np.inf},
        {"softcap": 0.0},
        {"sinks": np.ones(3, np.float32)},
        {"sinks": [1.0, 1.0, 1.0, 1.0]},
        {"alibi_slopes": np.ones((3, 4), np.float32)},
        {"position_bias": np.ones((4, 4), np.float32)},
        {"kv_lengths": 7},
        {"kv_lengths": [1, 2, 3]},
        {"return_lse": 1},
        {"num_threads": 0},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_errors_are_those_of_fastattn(arguments):
    arguments = {"query": X, "key": X, "value": X} | arguments
    with pytest.raises((TypeError, ValueError)) as expected:
        fastattn.scaled_dot_product_attention(**arguments)
    arrays = {name: da.from_array(x, chunks=2) for name, x in arguments.items() if name in ("query", "key", "value")}
    with pytest.raises(expected.type) as found:
        scaled_dot_product_attention(**arguments | arrays)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: scaled_dot_product_attention(x, x, [1.0]),
            TypeError,
            "value must be a dask.array.Array or a numpy.nd",
        ),
        (
            lambda x: scaled_dot_product_attention(x[x[:, 0] > 0], x, x),
            ValueError,
            r"query must have chunks of known siz",
        ),
        (
            lambda x: scaled_dot_product_attention(x, x, x, q_offset=2**62),
            ValueError,
            r"q_offset must lie between -2\*\*",
        ),
        (
            lambda x: scaled_dot_product_attention(x, x, x, q_offset=-(2**63)),
            ValueError,
            r"q_offset must lie between -2\*\*",
        ),
        (
            lambda x: scaled_dot_product_attention(x, x, x, kv_lengths=x[0, 0].astype(int)),
            TypeError,
            "kv_lengths must not be a dask",
        ),
        (lambda x: softmax(x, axis=2), ValueError, "axis must lie between -2 and 1"),
        (lambda x: softmax(x.astype(int)), TypeError, "x must have dtype float32"),
        (lambda x: softmax(x, where=x), TypeError, "where must have dtype bool"),
        (
            lambda x: softmax(x, where=x[:3] > 0),
            ValueError,
            r"where must broadcast to x's shape \(6, 4\), got shape \(3, 4\)",
        ),
        (lambda x: softmax(x, where=(x > 0)[None]), ValueError, r"where must broadcast to x's shape"),
        (lambda x: layer_norm(x, np.ones(3, np.float32)), ValueError, r"weight must have shape \(4,\)"),
        (lambda x: layer_norm(x, eps=-1.0), ValueError, "eps must not be negative"),
        (lambda x: rms_norm(x, x[0].astype(np.float64)), TypeError, "weight must not be wider"),
        (lambda x: linear(x, np.ones((3, 5), np.float32)), ValueError, r"weight must have shape \(out_features, 4\)"),
        (lambda x: linear(x, x, x[0]), ValueError, r"bias must have shape \(6,\)"),
        (lambda x: linear(x, x, activation="tanh"), ValueError, "activation must be None or one of"),
        (lambda x: linear(x, x, residual=x), ValueError, r"residual must have the result's shape \(6, 6\), got shape"),
        (lambda x: linear(x, "weight"), TypeError, "weight must be a"),
        (lambda x: encode(3, x), TypeError, "encoder must be an encoder or a function that returns one, got int"),
        (lambda x: encode(Encoder(), ["a"]), TypeError, "texts must be a dask Bag, Series or Array of str, got list"),
        (lambda x: encode(Encoder(), x, batch_size=0), ValueError, "batch_size must be at least 1"),
    ],
)
def test_errors(call, error, message):
    x = da.from_array(np.ones((6, 4), np.float32), chunks=(2, 4))
    with pytest.raises(error, match=message):
        call(x)


@pytest.mark.parametrize("name", sorted(set(distributed_functions.__all__) - {"encode"}))
def test_functions_have_the_arguments_of_fastattns(name):
    own, theirs = (inspect.signature(getattr(module, name)).parameters for module in (distributed_functions, fastattn))
    assert {key: (p.kind, p.default) for key, p in own.items()} == {
        key: (p.kind, p.default) for key, p in theirs.items() if key != "out"
    }


# Rows

TINY = 2.0**-24  # float16's smallest number; others' are smaller


@hypothesis.given(st.sampled_from([softmax, log_softmax]), dtypes, st.data())
def test_softmax_is_what_the_oracle_says(function, dtype, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random(rng, dtype, *shape, spread=data.draw(st.sampled_from([1, 30, 1000])))
    x[rng.random(shape) < data.draw(st.sampled_from([0, 0.5]))] = -np.inf
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    where = data.draw(
        st.sampled_from([None, rng.random(shape) < 0.6, rng.random(shape[-1:]) < 0.6, np.zeros(shape, bool)])
    )
    excluding = where if where is None or data.draw(st.booleans()) else cut(data, where)
    result = function(cut(data, x), axis, where=excluding)
    assert (result.shape, result.dtype) == (shape, dtype)
    result = result.compute()
    assert result.dtype == dtype
    expected = getattr(reference, function.__name__)(x, axis, where=where)
    rounding = 16 * eps(computed_in(dtype)) + (eps(dtype) if dtype in HALF else 0)
    largest = np.abs(expected, where=np.isfinite(expected), out=np.ones(shape)).max() if function is log_softmax else 0
    np.testing.assert_allclose(
        readable(result),
        expected,
        rtol=rounding,
        atol=max(rounding * largest, TINY if dtype == np.float16 else 2.0**-126),
    )


@pytest.mark.parametrize("function", [softmax, log_softmax])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_softmax_of_what_is_not_finite(function, bad):
    x = chunked(3, 12)[0]
    x[1, 5] = bad
    x[2] = -np.inf
    result = function(da.from_array(x, chunks=(2, 5))).compute()
    np.testing.assert_allclose(result, getattr(fastattn, function.__name__)(x), rtol=1e-5)


def test_softmax_of_one_chunk_has_fastattns_bits():
    x, parts = chunked(9, 40, chunks=(4, 40))
    assert_equal(softmax(parts).compute(), fastattn.softmax(x))
    assert_equal(log_softmax(parts, where=parts > 0).compute(), fastattn.log_softmax(x, where=x > 0))


@hypothesis.given(dtypes, st.data())
def test_norms_have_fastattns_bits(dtype, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)))
    rng = np.random.default_rng(0)
    x, weight, bias = random(rng, dtype, *shape), random(rng, dtype, shape[-1]), random(rng, dtype, shape[-1])
    given_weight = data.draw(st.sampled_from([weight, cut(data, weight), None]))
    own = None if given_weight is None else weight
    assert_equal(layer_norm(cut(data, x), given_weight, bias).compute(), fastattn.layer_norm(x, own, bias))
    assert_equal(rms_norm(cut(data, x), given_weight, eps=1e-3).compute(), fastattn.rms_norm(x, own, eps=1e-3))


WEIGHTS = {
    "array": lambda weight: weight,
    "packed": fastattn.pack,
    "int8": lambda weight: fastattn.nn.quantize(weight),
    "packed int8": lambda weight: fastattn.pack(weight, dtype="int8"),
    "gated": lambda weight: fastattn.pack(weight, gate=weight[::-1]),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("leading", [(), (9,), (2, 9)])
def test_linear_has_fastattns_bits(kind, leading):
    x, parts = chunked(*leading, 40, chunks=5)
    weight, bias = WEIGHTS[kind](chunked(24, 40)[0]), chunked(24, seed=1)[0]
    bias = np.stack([bias, bias]) if kind == "gated" else bias
    residual = chunked(*leading, 24, seed=2)[0]
    plain = linear(parts, weight)
    assert plain.shape == (*leading, 24)
    assert_equal(plain.compute(), fastattn.linear(x, weight))
    options = {"activation": "gelu", "residual": residual}
    result = linear(parts, weight, bias, **options).compute()
    assert_equal(result, fastattn.linear(x, weight, bias, **options))


def test_weights_chunked_along_outputs():
    (x, parts), (weight, weights) = chunked(9, 40, chunks=(4, 10)), chunked(24, 40, chunks=(7, 13))
    bias, residual = chunked(24, seed=1)[0], chunked(9, 24, seed=2)
    result = linear(parts, weights, bias, residual=residual[1], activation="relu")
    assert result.chunks == ((4, 4, 1), (7, 7, 7, 3))
    expected = fastattn.linear(x, weight, bias, residual=residual[0], activation="relu")
    np.testing.assert_allclose(result.compute(), expected, atol=1e-5)


# Texts


class Encoder:
    """Stands for a model: a text becomes its length, and the number of threads."""

    embedding_size = 2

    def encode(self, texts, *, batch_size=None, normalize=None, show_progress=None, num_threads=None):
        assert all(isinstance(text, str) for text in texts)
        assert show_progress is False
        rows = [(len(text), num_threads or 0) for text in texts]
        return np.array(rows, np.float32).reshape(-1, 2)


MADE = []


def make_encoder():
    MADE.append(Encoder())
    return MADE[-1]


TEXTS = ["a", "bb", "", "dddd", "eeeee"]


def collections():
    bag = pytest.importorskip("dask.bag")
    yield bag.from_sequence(TEXTS, npartitions=3)
    yield bag.from_sequence(TEXTS[::-1], npartitions=2).map(lambda text: text).filter(lambda text: True)
    yield da.from_array(np.array(TEXTS, object), chunks=2)


def test_encode():
    for texts in collections():
        for encoder in (Encoder(), Encoder):
            result = encode(encoder, texts)
            expected = [[len(text), 0] for text in texts.compute()]
            np.testing.assert_array_equal(result.compute(), expected)


def test_encode_a_series():
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    series = frames.from_pandas(pandas.Series(TEXTS), npartitions=2)
    np.testing.assert_array_equal(encode(Encoder(), series).compute()[:, 0], list(map(len, TEXTS)))


def test_a_function_is_called_once():
    MADE.clear()
    [texts, *_] = collections()
    for _ in range(2):
        assert encode(make_encoder, texts).compute(scheduler="threads").shape == (5, 2)
    assert len(MADE) == 1


# Threads of a task


@pytest.fixture
def limits(monkeypatch):
    """The num_threads of each call of attention."""
    found, attention = [], fastattn.scaled_dot_product_attention

    @functools.wraps(attention)
    def noting(query, *arguments, num_threads=None, **options):
        if query.size:
            found.append(num_threads)
        return attention(query, *arguments, num_threads=num_threads, **options)

    monkeypatch.setattr(fastattn, "scaled_dot_product_attention", noting)
    return found


@pytest.mark.parametrize(("scheduler", "expected"), [("synchronous", None), ("threads", 1)])
@pytest.mark.parametrize("num_threads", [None, 2])
def test_threads_of_a_task(limits, scheduler, expected, num_threads):
    _, x = chunked(4, 8, 4)
    result = scaled_dot_product_attention(x, x, x, num_threads=num_threads)
    limits.clear()
    result.compute(scheduler=scheduler)
    assert set(limits) == {num_threads or expected}
    assert len(limits) == 32


# A cluster: two processes on this machine


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster, timeout=SECONDS) as client,
    ):
        client.wait_for_workers(2, timeout=SECONDS)
        yield client


def computed(client, *collections):
    return [future.result(timeout=SECONDS) for future in client.compute(collections)]


def until(condition):
    """Wait for it."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_attention_on_a_cluster(client):
    query, key, value = problem(Shape(2, 4, 2, 60, 80, 16, 16), np.dtype(np.float32))
    options = options_of(
        ("causal", "lengths", "sinks", "softcap", "alibi", "position bias"), Shape(2, 4, 2, 60, 80, 16, 16), query.dtype
    )
    arrays = [da.from_array(x, chunks=(1, 1, 20, 16)) for x in (query, key, value)]
    result = computed(client, *scaled_dot_product_attention(*arrays, return_lse=True, **options))
    expected = fastattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    assert_same_attention(result, expected, query, key, value, **options)


def test_bfloat16_on_a_cluster(client):
    query, key, value = problem(Shape(1, 2, 2, 30, 40, 16, 16), np.dtype("bfloat16"))
    arrays = [da.from_array(x, chunks=(1, 1, 20, 16)) for x in (query, key, value)]
    result = computed(client, *scaled_dot_product_attention(*arrays, return_lse=True))
    expected = fastattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert_same_attention(result, expected, query, key, value)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_linear_on_a_cluster(client, kind):
    x, parts = chunked(9, 40, chunks=4)
    weight = WEIGHTS[kind](chunked(24, 40)[0])
    [result] = computed(client, linear(parts, weight, activation="silu"))
    assert_equal(result, fastattn.linear(x, weight, activation="silu"))


def test_softmax_on_a_cluster(client):
    x, parts = chunked(9, 40, chunks=4)
    for function in (softmax, log_softmax):
        [result] = computed(client, function(parts))
        np.testing.assert_allclose(result, getattr(fastattn, function.__name__)(x), rtol=1e-5)


@pytest.mark.parametrize("sent", [True, False])
def test_encode_on_a_cluster(client, sent):
    for package in MODELS:
        pytest.importorskip(package)
    from fastattn.models import SentenceEncoder

    model = SentenceEncoder.from_pretrained()
    texts = ["A man is playing a guitar.", "Rain.", "", "The market fell today."]
    parts = pytest.importorskip("dask.bag").from_sequence(texts, npartitions=2)
    [result] = computed(client, encode(model if sent else SentenceEncoder.from_pretrained, parts))
    np.testing.assert_allclose(result, model.encode(texts), atol=1e-6)


def test_a_task_on_a_worker_has_one_thread(client):
    assert client.submit(task_threads, None, pure=False).result(timeout=SECONDS) == 1
    assert client.submit(task_threads, 3, pure=False).result(timeout=SECONDS) == 3


def test_a_worker_is_killed(client):
    """While one worker waits for the last chunk of keys, the other, which holds results already, is killed."""
    import distributed

    def wait(chunk):
        distributed.Variable("the worker that waits").set(distributed.get_worker().address)
        assert distributed.Event("the other worker was killed").wait(SECONDS)
        return chunk

    x, parts = chunked(2, 400, 16, chunks=(2, 50, 16))
    gate = distributed.Event("the other worker was killed", client=client)
    last = parts[:, 350:].map_blocks(wait, dtype=parts.dtype, meta=parts)
    key = da.concatenate([parts[:, :350], last], axis=1)
    result = scaled_dot_product_attention(parts, key, key, is_causal=True).persist()
    rows = distributed.futures_of(result)
    assert len(rows) == 8

    pids = client.run(os.getpid)
    [victim] = pids.keys() - {distributed.Variable("the worker that waits", client=client).get(SECONDS)}
    until(lambda: any(victim in workers for workers in client.who_has(rows).values()))
    os.kill(pids[victim], signal.SIGKILL)
    until(lambda: pids[victim] not in client.run(os.getpid, on_error="ignore").values())  # the scheduler knows
    gate.set()

    [out] = computed(client, result)
    np.testing.assert_allclose(out, fastattn.scaled_dot_product_attention(x, x, x, is_causal=True), atol=1e-5)
    until(lambda: len(client.scheduler_info()["workers"]) == 2)
    assert pids[victim] not in client.run(os.getpid).values()


@pytest.mark.slow
def test_keys_and_values_beyond_the_memory_of_a_worker():
    distributed = pytest.importorskip("distributed")
    limit = 400 * 2**20
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0",
            memory_limit=limit, silence_logs=50,
        ) as cluster,
        distributed.Client(cluster, timeout=SECONDS) as client,
    ):  # fmt: skip
        shape = (2, 500_000, 64)
        key, value = (
            da.random.default_rng(seed).standard_normal(shape, chunks=(2, 20_000, 64), dtype=np.float32)
            for seed in (1, 2)
        )
        assert key.nbytes + value.nbytes > 1.2 * limit
        assert {worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()} == {limit}
        query = chunked(4, 100, 64)[0]
        result = scaled_dot_product_attention(query, *client.persist([key, value]), is_causal=True, return_lse=True)
        result = computed(client, *result)
    key, value = dask.compute(key, value, scheduler="threads")
    expected = fastattn.scaled_dot_product_attention(query, key, value, is_causal=True, return_lse=True)
    assert_same_attention(result, expected, query, key, value)


# The package

MODULES = [
    f"{distributed_functions.__name__}.{module.name}" for module in pkgutil.iter_modules(distributed_functions.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name):
    if name.endswith("texts"):
        for package in MODELS:
            pytest.importorskip(package)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", distributed_functions.__all__)
def test_every_function_has_an_example(name):
    assert ">>>" in getattr(distributed_functions, name).__doc__


def test_fastattn_does_not_import_dask():
    assert output("import sys, fastattn.integrations; print('dask' in sys.modules)") == "False"
