"""Every option of attention, alone, in pairs and all at once: against the oracle, against one another, to the bit."""

import functools
import itertools
import os
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn import reference
from fastattn._runtime import on_target
from support.arrays import (
    LAYOUTS,
    WRITABLE_LAYOUTS,
    assert_nothing_written_around,
    empty_laid_out,
    fenced,
    laid_out,
)
from support.dtypes import ALL, computed_in, eps, largest, stored_beside
from support.pairing import alternate, by_turns
from support.problems import (
    EVERYTHING_ELSE,
    OPTIONS,
    Shape,
    answers,
    assert_accurate_with,
    assert_attention_accurate,
    assert_same_attention,
    assert_same_weights,
    assert_weights_accurate,
    attended,
    of_sequence,
    options_of,
    problem,
)

attention = functools.partial(fastattn.scaled_dot_product_attention, return_lse=True)
attention_weights = functools.partial(fastattn.attention_weights, return_lse=True)

ALONE = [(name,) for name in OPTIONS]
PAIRS = [
    ("causal", "window"),
    ("causal", "lengths"),
    ("causal", "bool mask"),
    ("causal", "float mask of pairs"),
    ("causal", "alibi"),
    ("offsets", "lengths"),
    ("offset", "sinks"),
    ("window", "lengths"),
    ("window", "bool mask of keys"),
    ("left window", "sinks"),
    ("softcap", "float mask of heads"),
    ("softcap", "alibi"),
    ("softcap", "scale"),
    ("softcap", "bool mask"),
    ("alibi", "bool mask"),
    ("sinks", "bool mask"),
    ("alibi per batch", "lengths"),
    ("position bias", "causal"),
    ("position bias", "float mask"),
    ("position bias", "float mask of pairs"),
    ("position bias", "bool mask of keys"),
    ("softcap", "position bias"),
    ("lengths", "float mask"),
]
MASKS = ("bool mask", "bool mask of keys", "float mask", "float mask of pairs")
EVERYTHING = [(*EVERYTHING_ELSE, mask) for mask in MASKS]

# Tiles of queries and steps of keys end and begin at these sizes, and so do the kernels for few and for many rows.
MANY_ROWS = Shape(batch=3, heads=4, kv_heads=2, queries=37, keys=70, head_size=20, value_size=24)
FEW_ROWS = Shape(batch=8, heads=8, kv_heads=2, queries=1, keys=140, head_size=64, value_size=72)
SHAPES = [
    MANY_ROWS,
    FEW_ROWS,
    Shape(2, 2, 1, queries=65, keys=129, head_size=64, value_size=67),
    Shape(2, 2, 2, queries=48, keys=257, head_size=9, value_size=16),
    Shape(2, 2, 2, queries=70, keys=33, head_size=8, value_size=8),
    Shape(4, 6, 2, queries=3, keys=131, head_size=33, value_size=31),
    Shape(2, 3, 1, queries=5, keys=1100, head_size=8, value_size=8),
    Shape(8, 8, 8, queries=7, keys=2, head_size=4, value_size=4),
    # A last row behind tiles, which its group does not fill: its head is not that of a first row.
    Shape(2, 5, 1, queries=77, keys=20, head_size=4, value_size=4),
]


def named(names):
    return names if isinstance(names, str) else " + ".join(map(str, names))


def sized(shape):
    return "x".join(map(str, shape))


def described(x):
    """The id of a parameter, whichever it is."""
    return sized(x) if isinstance(x, Shape) else named(x) if isinstance(x, (tuple, str)) else repr(x)


# 16-bit types, which only read, write and multiply otherwise than float32, are content with the first of the shapes.
OPTIONS_AT = [*SHAPES[:4], *(pytest.param(shape, marks=pytest.mark.wide) for shape in SHAPES[4:])]


def assert_identical(results, expected):
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right)


# Against the oracle, by the accuracy rule


@pytest.mark.usefixtures("target")
class TestAccuracy:
    @pytest.mark.parametrize("shape", OPTIONS_AT, ids=sized)
    @pytest.mark.parametrize("names", ALONE + EVERYTHING, ids=named)
    def test_attention(self, names, shape, dtype):
        assert_accurate_with(names, shape, dtype)

    @pytest.mark.parametrize("shape", SHAPES[:3], ids=sized)
    @pytest.mark.parametrize("names", PAIRS, ids=named)
    def test_pairs(self, names, shape, dtype):
        assert_accurate_with(names, shape, dtype)

    @pytest.mark.parametrize("shape", OPTIONS_AT, ids=sized)
    @pytest.mark.parametrize("names", [(), *ALONE, *EVERYTHING], ids=named)
    def test_weights(self, names, shape, dtype):
        weights, _ = assert_weights_accurate(names, shape, dtype)
        assert type(weights) is np.ndarray
        assert (weights[~np.broadcast_to(attended_by(names, shape, dtype), weights.shape)] == 0).all()

    @pytest.mark.parametrize(
        ("softcap", "factor", "shape"),
        by_turns([0.01, 0.5, 5, 50, 1e4, np.float32(2)], [1e-3, 1, 30], [MANY_ROWS, FEW_ROWS]),
        ids=described,
    )
    def test_softcaps(self, softcap, factor, shape, dtype):
        """From scores that the cap hardly bends to scores that it flattens."""
        query, key, value = problem(shape, dtype)
        assert_attention_accurate(query * dtype.type(factor), key, value, softcap=softcap)

    @pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
    @pytest.mark.parametrize("sink", [-1e4, -20.0, 0.0, 20.0, 80.0])
    def test_sinks_of_any_size(self, sink, shape, dtype):
        arrays = problem(shape, dtype)
        assert_attention_accurate(*arrays, sinks=np.full(shape.heads, sink, dtype))

    @pytest.mark.parametrize(
        ("slope", "q_offset", "shape"),
        by_turns([0.0, 1e-6, 0.5, 4.0, -0.5], [None, 0, 40], [MANY_ROWS, FEW_ROWS]),
        ids=described,
    )
    def test_slopes_of_any_size(self, slope, q_offset, shape, dtype):
        arrays = problem(shape, dtype)
        assert_attention_accurate(*arrays, alibi_slopes=np.full(shape.heads, slope, dtype), q_offset=q_offset)

    @pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
    @pytest.mark.parametrize("low", [-1e4, -1e9, -1e30, "min"])
    def test_masks_of_large_negative_numbers(self, low, shape, dtype, rng):
        """What frameworks write for -inf. It does not exclude: who sees nothing else sees all of these, and equally."""
        low = -largest(dtype) if low == "min" else max(low, -largest(dtype))
        mask = np.where(rng.random(shape.scores) < 0.5, low, 0).astype(dtype)
        mask[0] = low
        query, key, value = problem(shape, dtype)
        for values in (value, np.abs(value)):  # of one sign, what is infinite would not become NaN
            _, lse = assert_attention_accurate(query, key, values, attn_mask=mask)
            assert np.isfinite(lse).all()


def attended_by(names, shape, dtype):
    query, key, _ = problem(shape, dtype)
    return attended(query, key, **options_of(names, shape, dtype))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("names", [("float mask",), ("sinks",), ("position bias",), EVERYTHING[2]], ids=named)
@pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
def test_options_in_a_narrower_type(names, shape):
    """float32 masks, sinks, slopes and biases for a float64 query give what their float64 equals give."""
    arrays = problem(shape, np.dtype(np.float64))
    narrow = options_of(names, shape, np.dtype(np.float32))
    wide = {name: x.astype(np.float64) if is_float32(x) else x for name, x in narrow.items()}
    assert_identical(attention(*arrays, **narrow), attention(*arrays, **wide))
    assert_identical(attention_weights(*arrays[:2], **narrow), attention_weights(*arrays[:2], **wide))


def is_float32(x):
    return isinstance(x, np.ndarray) and x.dtype == np.float32


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
@pytest.mark.parametrize("option", ["q_offset", "kv_lengths"])
@pytest.mark.parametrize("integer", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4"])
def test_offsets_and_lengths_of_any_integer_type(integer, option, shape):
    """Unsigned ones, too: lengths minus queries may be negative. They are converted before any kernel sees them."""
    arrays = problem(shape, np.dtype(np.float32))
    numbers = np.arange(shape.batch) * 13
    expected = attention(*arrays, is_causal=True, **{option: numbers.astype(np.int64)})
    for given in (numbers.astype(integer), numbers.astype(integer).repeat(2)[::2]):
        assert_identical(attention(*arrays, is_causal=True, **{option: given}), expected)


# All options together, as hypothesis draws them


class Call(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    options: dict
    out: np.ndarray | None


def sizes(most, least=1):
    """Small sizes, tile sizes and their neighbours come up more often than others."""
    near = [size for n in (8, 16, 32, 48, 64, 128, 256) for size in (n - 1, n, n + 1) if size <= most]
    return st.one_of(st.integers(least, 4), st.sampled_from(near), st.integers(least, most))


# Hypothesis draws the sizes and which options there are, so that it can do without them when it explains a failure. The
# rest, of which there is much, comes from a seed that it draws.


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def somewhere(rng, x):
    """The same elements, laid out in some way."""
    return laid_out(x, pick(rng, list(WRITABLE_LAYOUTS))) if x.ndim else x


def broadcastable(rng, shape):
    """A shape that broadcasts to that one: often with all axes, some of them 1."""
    axes = [pick(rng, (n, n, n, 1)) for n in shape]
    return tuple(axes[pick(rng, (0, 0, 0, *range(len(shape) + 1))) :])


def some_allowed(rng, shape):
    """A bool mask with holes of a key or of whole tiles."""
    share = pick(rng, (0.0, 0.03, 0.5, 0.5, 0.97, 1.0))
    if len(shape) < 2 or rng.random() < 0.5:
        return np.asarray(rng.random(shape) < share)
    coarse = rng.random((*shape[:-2], -(-shape[-2] // 16), -(-shape[-1] // 64))) < share
    return coarse.repeat(16, axis=-2).repeat(64, axis=-1)[..., : shape[-2], : shape[-1]]


def some_mask(rng, scores, leading, dtype):
    allowed = some_allowed(rng, broadcastable(rng, scores))
    kind = pick(rng, ("bool", "bool by stride 0", "float", "float", "narrow float"))
    if kind == "bool by stride 0":
        return np.broadcast_to(somewhere(rng, allowed), scores)
    if kind == "bool":
        return somewhere(rng, allowed)
    mask = np.where(allowed, 2 * rng.normal(size=allowed.shape), -np.inf)
    if rng.random() < 0.3:
        mask[rng.random(mask.shape) < 0.02] = np.nan
    return somewhere(rng, mask.astype(np.float32 if kind == "narrow float" else dtype))


def some_integers(rng, low, high, leading):
    """An int, or an array that broadcasts to the leading axes."""
    if rng.random() < 0.3:
        return int(rng.integers(low, high + 1))
    x = rng.integers(low, high + 1, size=broadcastable(rng, leading))
    return np.asarray(x).astype(pick(rng, (np.int64, np.int32, np.int16)))


def some_reach(rng):
    return pick(rng, (None, 0, int(rng.integers(6)), int(rng.integers(300))))


def some_floats(rng, shape, dtype):
    return np.asarray(rng.normal(size=shape)).astype(pick(rng, (dtype, np.float32)))


def some_sinks(rng, scores, leading, dtype):
    sinks = 2 * some_floats(rng, heads_of(scores), dtype)
    sinks[rng.random(sinks.shape) < 0.2] = -np.inf
    return sinks


def some_biases(rng, heads, dtype):
    table = some_floats(rng, (*heads, 1 + 2 * pick(rng, (0, 1, 5, 40, 300))), dtype)
    table[rng.random(table.shape) < 0.2] = -np.inf
    return table


def heads_of(scores):
    return scores[-3:-2] or (1,)


SOME = {
    "attn_mask": some_mask,
    "is_causal": lambda rng, scores, leading, dtype: True,
    "q_offset": lambda rng, scores, leading, dtype: some_integers(rng, -scores[-2] - 1, scores[-1] + 1, leading),
    "window": lambda rng, scores, leading, dtype: (some_reach(rng), some_reach(rng)),
    "scale": lambda rng, scores, leading, dtype: pick(rng, (0.0, -0.5, 0.05, 1.0)),
    "softcap": lambda rng, scores, leading, dtype: pick(rng, (0.3, 2.0, 30.0)),
    "sinks": some_sinks,
    "alibi_slopes": lambda rng, scores, leading, dtype: (
        some_floats(rng, (*pick(rng, (leading, ())), *heads_of(scores)), dtype) / 16
    ),
    "position_bias": lambda rng, scores, leading, dtype: some_biases(rng, heads_of(scores), dtype),
    "kv_lengths": lambda rng, scores, leading, dtype: some_integers(rng, 0, scores[-1], leading),
}


def some_call(rng, chosen, queries, keys, head_size, value_size):
    dtype = pick(rng, ALL)
    leading = pick(rng, ((), (1,), (2,), (3,), (2, 2), (2, 1, 3)))
    kv_heads, group = pick(rng, ((1, 1), (1, 4), (1, 9), (2, 1), (2, 2), (2, 3), (3, 1)))
    scores = (*leading, kv_heads * group, queries, keys)

    # One of query and key has all leading axes, so that their weights have, too.
    axes = [leading, broadcastable(rng, leading)]
    rng.shuffle(axes)
    shapes = [
        (*axes[0], kv_heads * group, queries, head_size),
        (*axes[1], kv_heads, keys, head_size),
        (*broadcastable(rng, leading), kv_heads, keys, value_size),
    ]
    if scores[:-2] == (1,) and rng.random() < 0.5:
        shapes, scores = [shape[1:] for shape in shapes], scores[1:]
    query, key, value = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    key, value = (x.astype(pick(rng, (dtype, dtype, *stored_beside(dtype)))) for x in (key, value))
    if keys and rng.random() < 0.3:  # garbage, which shows to those who attend to it
        key[..., rng.integers(keys), :] = np.nan
        value[..., rng.integers(keys), rng.integers(value_size)] = np.nan

    options = {name: SOME[name](rng, scores, leading, dtype) for name in chosen}
    out = empty_laid_out((*scores[:-1], value_size), dtype, pick(rng, list(WRITABLE_LAYOUTS)))
    return Call(*(somewhere(rng, x) for x in (query, key, value)), options, pick(rng, (out, None)))


@hypothesis.settings(
    max_examples=int(os.environ.get("FASTATTN_EXAMPLES", hypothesis.settings().max_examples * 3 // 2)),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(
    target=st.sampled_from(fastattn.targets()),
    num_threads=st.sampled_from([1, 2, None]),
    chosen=st.tuples(*(st.booleans() for _ in SOME)),
    queries=sizes(70),
    keys=sizes(300, least=0),
    head_size=sizes(40),
    value_size=sizes(40),
    seed=st.integers(0, 2**64 - 1),
)
def test_all_options_together(target, num_threads, chosen, queries, keys, head_size, value_size, seed):
    """FASTATTN_EXAMPLES sets how many calls are drawn."""
    names = list(itertools.compress(SOME, chosen))
    call = some_call(np.random.default_rng(seed), names, queries, keys, head_size, value_size)
    query, key, value, options, out = call
    with on_target(target):
        result = attention(query, key, value, **options, out=out, num_threads=num_threads)
        weights = attention_weights(query, key, **options, num_threads=num_threads)
    expected = fastattn.reference.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    assert [x.dtype for x in (*result, *weights)] == [query.dtype, computed_in(query.dtype)] * 2
    assert_same_attention(result, expected, query, key, value, **options)
    assert_weights_as_expected(weights, query, key, **options)
    if out is not None:
        assert result[0] is out
        assert_nothing_written_around(out)


def assert_weights_as_expected(result, query, key, **options):
    weights, lse = result
    expected, expected_lse = fastattn.reference.attention_weights(query, key, **options, return_lse=True)
    # In the row of a NaN, whether keys that are excluded weigh 0 or NaN is left open.
    excluded = ~np.broadcast_to(attended(query, key, **options), expected.shape)
    assert (np.isnan(weights) | (weights == 0))[excluded].all()
    expected = np.where(excluded & np.isnan(expected), weights, expected)
    assert_same_weights((weights, lse), (expected, expected_lse), query, key, **options)


# Nothing to attend to

NOTHING_TO_ATTEND = {
    "bool mask": lambda shape: {"attn_mask": np.zeros((1, shape.keys), bool)},
    "whole bool mask": lambda shape: {"attn_mask": np.zeros(shape.scores, bool)},
    "bool scalar mask": lambda shape: {"attn_mask": np.array(False)},
    "float mask": lambda shape: {"attn_mask": np.full((shape.queries, shape.keys), -np.inf, np.float32)},
    "causal": lambda shape: {"is_causal": True, "q_offset": -shape.queries},
    "causal, far away": lambda shape: {"is_causal": True, "q_offset": -(2**40)},
    "causal, each far away": lambda shape: {"is_causal": True, "q_offset": np.full(shape.batch, -(2**40))},
    "window behind": lambda shape: {"window": (3, 3), "q_offset": shape.keys + 3},
    "window before": lambda shape: {"window": (3, 3), "q_offset": -shape.queries - 3},
    "length": lambda shape: {"kv_lengths": 0},
    "lengths": lambda shape: {"kv_lengths": np.zeros(shape.batch, np.int32)},
    "mask meets causal": lambda shape: {
        "is_causal": True,
        "q_offset": 0,
        "attn_mask": np.arange(shape.keys) >= shape.queries,
    },
    "mask meets length": lambda shape: {"kv_lengths": 5, "attn_mask": np.arange(shape.keys) >= 5},
}


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
@pytest.mark.parametrize("kind", NOTHING_TO_ATTEND)
class TestNothingToAttend:
    def test_without_sinks(self, kind, shape, dtype):
        query, key, value = problem(shape, dtype)
        options = NOTHING_TO_ATTEND[kind](shape)
        for spoiled in (False, True):
            bad = np.nan if spoiled else 1
            out, lse = attention(query, key * dtype.type(bad), value * dtype.type(bad), **options)
            assert (out == 0).all()
            assert np.isneginf(lse).all()
        weights, lse = attention_weights(query, key, **options)
        assert weights.shape == shape.scores
        assert (weights == 0).all()
        assert np.isneginf(lse).all()

    def test_with_sinks(self, kind, shape, dtype, rng):
        """The sink's logit is all that the lse has."""
        query, key, value = problem(shape, dtype)
        sinks = rng.normal(size=shape.heads).astype(dtype)
        sinks[0] = -np.inf
        options = NOTHING_TO_ATTEND[kind](shape) | {"sinks": sinks}
        expected = np.broadcast_to(sinks[:, None], shape.scores[:-1])
        out, lse = attention(query, key, value, **options)
        assert (out == 0).all()
        np.testing.assert_allclose(lse, expected, rtol=4 * eps(computed_in(dtype)))
        weights, lse = attention_weights(query, key, **options)
        assert (weights == 0).all()
        np.testing.assert_allclose(lse, expected, rtol=4 * eps(computed_in(dtype)))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("queries", [1, 40])
def test_no_keys(queries, dtype):
    shape = Shape(2, 4, 2, queries, 0, 8, 5)
    sinks = np.arange(4, dtype=dtype)
    options = {"attn_mask": np.ones((queries, 0), bool), "kv_lengths": 0, "alibi_slopes": sinks, "window": (1, 1)}
    out, lse = attention(*problem(shape, dtype), **options)
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    _, lse = attention(*problem(shape, dtype), **options, sinks=sinks)
    np.testing.assert_allclose(lse, np.broadcast_to(sinks[:, None], lse.shape), rtol=4 * eps(computed_in(dtype)))
    assert fastattn.attention_weights(*problem(shape, dtype)[:2], **options).shape == (2, 4, queries, 0)


# What is excluded, and what is attended to: garbage

EXCLUDING = [
    ("causal",),
    ("offsets",),
    ("window",),
    ("left window",),
    ("right window",),
    ("length",),
    ("lengths",),
    ("bool mask",),
    ("bool mask of keys",),
    ("bool mask of queries",),
    ("float mask",),
    ("float mask of pairs",),
    ("causal", "bool mask"),
    ("softcap", "float mask"),
    ("sinks", "alibi", "lengths"),
    ("position bias", "length"),
    *EVERYTHING,
]
GARBAGE_SHAPES = [  # of many rows, few, few, many: every other one is of either kind
    Shape(2, 4, 2, queries=40, keys=130, head_size=16, value_size=8),
    Shape(2, 4, 2, queries=1, keys=40, head_size=16, value_size=8),
    Shape(2, 4, 1, queries=3, keys=1100, head_size=16, value_size=8),
    Shape(2, 2, 2, queries=70, keys=30, head_size=5, value_size=3),
]


@pytest.mark.usefixtures("target")
class TestGarbage:
    @pytest.mark.parametrize(
        ("names", "shape", "bad"), by_turns(EXCLUDING, GARBAGE_SHAPES, [np.nan, np.inf, -np.inf]), ids=described
    )
    def test_does_not_leak(self, names, shape, bad, dtype):
        """Not a bit differs, whatever stands in keys and values that no query of theirs attends to."""
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        unseen = ~seen_by_any(attended(query, key, **options), shape)[..., None]
        clean, clean_weights = attention(query, key, value, **options), attention_weights(query, key, **options)
        key, value = np.where(unseen, dtype.type(bad), key), np.where(unseen, dtype.type(bad), value)
        assert_identical(attention(query, key, value, **options), clean)
        assert_identical(attention_weights(query, key, **options), clean_weights)

    @pytest.mark.parametrize(
        ("names", "shape", "where"), by_turns(EXCLUDING, GARBAGE_SHAPES, ["key", "value"]), ids=described
    )
    def test_shows_only_to_those_who_attend(self, names, shape, where, dtype):
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        clean = attention(query, key, value, **options)
        for j in {0, 1, shape.keys // 2, shape.keys - 1}:
            spoiled = {"key": key.copy(), "value": value.copy()}
            spoiled[where][..., j, 1] = np.nan
            out, lse = attention(query, **spoiled, **options)
            sees = np.broadcast_to(attended(query, key, **options), shape.scores)[..., j]
            assert_identical((out[~sees], lse[~sees]), [x[~sees] for x in clean])
            columns = slice(None) if where == "key" else 1
            assert np.isnan(out[sees][:, columns]).all()
            assert (np.isnan(lse[sees]) == (where == "key")).all()
            if where == "value":
                assert_same_attention(
                    (np.delete(out, 1, -1), lse), (np.delete(clean[0], 1, -1), clean[1]), query, key, value, **options
                )

    @pytest.mark.parametrize("shape", GARBAGE_SHAPES, ids=sized)
    @pytest.mark.parametrize("names", EXCLUDING, ids=named)
    def test_in_a_query_stays_in_its_row(self, names, shape, dtype):
        """And does not show even there, where the query attends to nothing."""
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        clean = attention(query, key, value, **options)
        query = query.copy()
        query[:, 1, :: shape.queries // 2 + 1, 2] = np.nan
        out, lse = attention(query, key, value, **options)
        sees = np.broadcast_to(attended(query, key, **options), shape.scores).any(axis=-1)
        shows = np.isnan(query).any(axis=-1) & sees
        assert_identical((out[~shows], lse[~shows]), [x[~shows] for x in clean])
        assert np.isnan(out[shows]).all()
        assert np.isnan(lse[shows]).all()


# Rows that are multiplied in pairs of 16-bit elements are whole numbers of vectors; and groups that share keys.
PAIRED_SHAPES = [
    Shape(2, 4, 1, queries=1, keys=300, head_size=64, value_size=64),
    Shape(1, 8, 1, queries=1, keys=700, head_size=128, value_size=128),
    Shape(1, 4, 2, queries=3, keys=1200, head_size=96, value_size=32),
    Shape(1, 4, 2, queries=20, keys=300, head_size=64, value_size=64),
]


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(
    ("names", "shape", "garbage"),
    by_turns(
        [("bool mask",), ("bool mask of keys",), ("float mask",), ("causal",), EVERYTHING[1]],
        PAIRED_SHAPES,
        [(np.nan, slice(None)), (np.inf, 3), (np.nan, 3)],
    ),
    ids=described,
)
class TestGarbageInWholeVectors:
    """To the bit, wherever products are made: what one row sees, or none, must not change how another is computed."""

    def test_that_nobody_sees(self, names, shape, garbage, dtype):
        bad, spoiled = garbage
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        unseen = ~seen_by_any(attended(query, key, **options), shape)
        clean = attention(query, key, value, **options)
        key, value = key.copy(), value.copy()
        key[unseen, spoiled], value[unseen, spoiled] = bad, bad
        assert_identical(attention(query, key, value, **options), clean)

    @pytest.mark.parametrize("where", ["key", "value"])
    def test_that_another_row_sees(self, names, shape, garbage, where, dtype):
        bad, spoiled = garbage
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        clean = attention(query, key, value, **options)
        sees = np.broadcast_to(attended(query, key, **options), shape.scores)
        for j in {1, shape.keys // 2, shape.keys - 3}:
            changed = {"key": key.copy(), "value": value.copy()}
            changed[where][..., j, spoiled] = bad
            out, lse = attention(query, **changed, **options)
            others = ~sees[..., j]
            assert_identical((out[others], lse[others]), [x[others] for x in clean])

    def test_in_the_query_of_another_row(self, names, shape, garbage, dtype):
        bad, spoiled = garbage
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        clean = attention(query, key, value, **options)
        query = query.copy()
        query[:, 1, -1, spoiled] = bad
        out, lse = attention(query, key, value, **options)
        others = np.ones(lse.shape, bool)
        others[:, 1, -1] = False
        assert_identical((out[others], lse[others]), [x[others] for x in clean])


def seen_by_any(sees, shape):
    """Which keys of each kv head (..., Hkv, Sk) any query attends to."""
    sees = np.broadcast_to(sees, shape.scores)
    return sees.reshape(shape.batch, shape.kv_heads, -1, shape.keys).any(axis=2)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(
    ("names", "shape", "bad"),
    by_turns(
        [("causal",), ("offsets",), ("window",), ("left window",), ("lengths",), EVERYTHING_ELSE],
        GARBAGE_SHAPES,
        [np.nan, np.inf],
    ),
    ids=described,
)
def test_a_mask_is_not_read_where_positions_exclude(names, shape, bad, dtype, rng):
    query, key, value = problem(shape, dtype)
    options = options_of(names, shape, dtype)
    mask = rng.normal(size=shape.scores).astype(dtype)
    spoiled = np.where(attended(query, key, **options), mask, dtype.type(bad))
    assert_identical(attention(query, key, value, spoiled, **options), attention(query, key, value, mask, **options))
    assert_identical(attention_weights(query, key, spoiled, **options), attention_weights(query, key, mask, **options))


# Where positions and bounds may stand: each end of the type and what else might be taken for infinite.
FAR = [-(2**63), -(2**63) + 3, -(2**62), -(2**48) - 1, -(2**48), -(2**31), -3, 0, 7, 2**31, 2**48, 2**62]
FAR += [2**63 - 6, 2**63 - 1]
REACHES = [None, 0, 3, 2**31, 2**48, 2**62, 2**63 - 20, 2**63 - 1]


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 2, 9, 4, 4), Shape(1, 2, 1, 37, 20, 4, 4)], ids=sized)
def test_positions_and_bounds_anywhere(shape):
    """By Python's integers, which do not wrap; by the oracle as well."""
    query, key = np.zeros(shape.query, np.float32), np.zeros(shape.key, np.float32)
    value = np.arange(shape.keys * 4).reshape(shape.value).astype(np.float32)
    i, j = np.arange(shape.queries)[:, None].astype(object), np.arange(shape.keys)
    for offset, left, right, is_causal in itertools.product(FAR, REACHES, REACHES, [False, True]):
        ahead = j - (i + offset)
        sees = np.ones(ahead.shape, bool)
        for reach, there in ((left, -ahead), (right, ahead), (0 if is_causal else None, ahead)):
            sees &= True if reach is None else (there <= reach).astype(bool)
        options = {"is_causal": is_causal, "window": (left, right), "q_offset": offset}
        weights, _ = attention_weights(query, key, **options)
        where = f"{options}"
        np.testing.assert_array_equal(weights > 0, np.broadcast_to(sees, shape.scores), where)
        out, lse = attention(query, key, value, **options)
        masked, masked_lse = attention(query, key, value, sees)
        np.testing.assert_allclose(out, masked, rtol=1e-6, err_msg=where)
        np.testing.assert_array_equal(lse, masked_lse, where)
        packed = [x[0].swapaxes(0, 1) for x in (query, key, value)]
        alone = fastattn.varlen_attention(*packed, [0, shape.queries], [0, shape.keys], **options)
        np.testing.assert_array_equal(alone.swapaxes(0, 1), out[0], where)


@pytest.mark.parametrize("offset", FAR)
def test_the_oracle_knows_positions_and_bounds_anywhere(offset):
    query, key = np.zeros((3, 1)), np.zeros((5, 1))
    i, j = np.arange(3)[:, None].astype(object), np.arange(5)
    for left, right in itertools.product(REACHES, REACHES):
        ahead = j - (i + offset)
        sees = np.ones(ahead.shape, bool)
        for reach, there in ((left, -ahead), (right, ahead)):
            sees &= True if reach is None else (there <= reach).astype(bool)
        for given in (offset, np.array(offset)):
            weights = reference.attention_weights(query, key, q_offset=given, window=(left, right))
            np.testing.assert_array_equal(weights > 0, sees, f"{left} {right}")


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("offset", FAR)
@pytest.mark.parametrize("queries", [2, 40])
def test_distances_from_positions_anywhere(offset, queries):
    """ALiBi takes them from the position itself, and so does the position bias."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(1, queries, 4)), rng.normal(size=(1, 9, 4))
    options = {"alibi_slopes": np.array([2.0**-60]), "position_bias": rng.normal(size=(1, 13)), "q_offset": offset}
    weights, lse = attention_weights(query, key, **options)
    right, right_lse = reference.attention_weights(query, key, **options, return_lse=True)
    np.testing.assert_allclose(weights, right, rtol=1e-9)
    np.testing.assert_allclose(lse, right_lse, rtol=1e-9)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", GARBAGE_SHAPES, ids=sized)
def test_nan_in_a_mask_shows_in_its_row(shape, dtype, rng):
    query, key, value = problem(shape, dtype)
    mask = rng.normal(size=shape.scores).astype(dtype)
    clean = attention(query, key, value, mask)
    i, j = shape.queries // 2, shape.keys // 3
    mask[1, 1, i, j] = np.nan
    out, lse = attention(query, key, value, mask)
    assert np.isnan(out[1, 1, i]).all()
    assert np.isnan(lse[1, 1, i])
    out[1, 1, i], lse[1, 1, i] = clean[0][1, 1, i], clean[1][1, 1, i]
    assert_identical((out, lse), clean)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", GARBAGE_SHAPES, ids=sized)
def test_nan_in_a_position_bias_shows_in_the_rows_that_meet_it(shape, bad, dtype, rng):
    arrays = problem(shape, dtype)
    table = rng.normal(size=(shape.heads, 2 * shape.keys + 1)).astype(dtype)
    clean = attention(*arrays, position_bias=table)
    distance = 1 - shape.keys // 2  # of the bias that is not finite, from the key to the query
    table[1, shape.keys + distance] = bad
    key = np.arange(shape.queries) + shape.keys - shape.queries + distance
    met = np.zeros((shape.heads, shape.queries), bool)
    met[1] = (key >= 0) & (key < shape.keys)
    assert met.any()
    out, lse = attention(*arrays, position_bias=table)
    assert np.isnan(out[:, met]).all()
    assert not np.isfinite(lse[:, met]).any()
    assert_identical((out[:, ~met], lse[:, ~met]), [x[:, ~met] for x in clean])


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", GARBAGE_SHAPES, ids=sized)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_a_position_bias_excludes_may_be_anything(shape, bad, dtype, rng):
    """Also where a mask adds NaN. The last key is ahead of all queries but the last, which excludes it, too."""
    query, key, value = problem(shape, dtype)
    table = rng.normal(size=(shape.heads, 2 * shape.keys + 1)).astype(dtype)
    table[:, shape.keys :] = -np.inf
    clean = attention(query, key, value, position_bias=table)
    key, value = key.copy(), value.copy()
    key[..., -1, :], value[..., -1, :] = bad, bad
    position, j = by_positions(shape)
    mask = np.where(j < position, 0, np.nan).astype(dtype)
    assert_identical(attention(query, key, value, mask, position_bias=table), clean)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", GARBAGE_SHAPES, ids=sized)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_minus_infinity_excludes_whatever_the_score(shape, bad, dtype):
    """A score of NaN or inf plus -inf would be NaN: it is excluded instead."""
    query, key, value = problem(shape, dtype)
    mask = np.zeros(shape.scores, dtype)
    mask[..., ::3] = -np.inf
    clean = attention(query, key, value, mask)
    key = key.copy()
    key[..., ::3, :] = bad
    assert_identical(attention(query, key, value, mask), clean)


# To the bit

SHARED = [
    Shape(3, 4, 4, 130, 130, 32, 32),
    Shape(3, 8, 2, 1, 1500, 16, 16),
    Shape(2, 1, 1, 1, 5000, 16, 12),
    Shape(2, 6, 2, 3, 1100, 33, 31),
    Shape(2, 1, 1, 64, 2100, 8, 8),
    Shape(3, 3, 3, 200, 40, 24, 24),
]
SEVERAL = [("bool mask of keys",), ("lengths",), ("offsets",), ("window", "sinks"), ("alibi", "causal"), *EVERYTHING]
SEVERAL += [("position bias",), ("far position bias", "lengths")]


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(("names", "shape"), alternate(SEVERAL, SHARED), ids=described)
class TestToTheBit:
    def test_any_number_of_threads(self, names, shape, dtype):
        arrays, options = problem(shape, dtype), options_of(names, shape, dtype)
        expected = attention(*arrays, **options, num_threads=1)
        for num_threads in (2, 3, 7, None):
            assert_identical(attention(*arrays, **options, num_threads=num_threads), expected)

    def test_any_number_of_threads_for_the_weights(self, names, shape, dtype):
        query, key, _ = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        expected = attention_weights(query, key, **options, num_threads=1)
        for num_threads in (2, 3, None):
            assert_identical(attention_weights(query, key, **options, num_threads=num_threads), expected)

    def test_any_company_in_the_batch(self, names, shape, dtype):
        arrays, options = problem(shape, dtype), options_of(names, shape, dtype)
        together = attention(*arrays, **options)
        together += attention_weights(*arrays[:2], **options)
        for i in range(shape.batch):
            own = of_sequence(options, i)
            alone = attention(*(x[i] for x in arrays), **own) + attention_weights(*(x[i] for x in arrays[:2]), **own)
            assert_identical(alone, [x[i] for x in together])
        spoiled = [x.copy() for x in arrays]
        for x in spoiled:
            x[1:] = np.nan
        assert_identical([x[0] for x in attention(*spoiled, **options)], [x[0] for x in together[:2]])


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", SHAPES[:6], ids=sized)
class TestMasks:
    def test_bool_and_float_twins_to_the_bit(self, shape, dtype):
        arrays = problem(shape, dtype)
        for kind in ("bool mask", "bool mask of keys", "bool mask of queries"):
            mask = options_of((kind,), shape, dtype)["attn_mask"]
            twin = np.where(mask, 0, -np.inf).astype(dtype)
            assert_identical(attention(*arrays, mask), attention(*arrays, twin))
            assert_identical(attention_weights(*arrays[:2], mask), attention_weights(*arrays[:2], twin))

    @pytest.mark.parametrize("kind", [name for name in OPTIONS if "mask" in name])
    def test_repeated_in_memory_or_by_stride_to_the_bit(self, kind, shape, dtype):
        arrays = problem(shape, dtype)
        mask = options_of((kind,), shape, dtype)["attn_mask"]
        expected = attention(*arrays, mask)
        repeated = np.broadcast_to(mask, shape.scores)
        for same in (repeated, repeated.copy(), mask.reshape((1,) * (4 - mask.ndim) + mask.shape)):
            assert_identical(attention(*arrays, same), expected)

    @pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
    @pytest.mark.parametrize("kind", ["bool mask", "float mask"])
    def test_layouts_to_the_bit(self, kind, layout, shape, dtype):
        arrays = problem(shape, dtype)
        mask = options_of((kind,), shape, dtype)["attn_mask"]
        expected = attention(*arrays, mask), attention_weights(*arrays[:2], mask)
        moved = LAYOUTS[layout](mask)
        before = moved.copy()
        assert_identical(attention(*arrays, moved), expected[0])
        assert_identical(attention_weights(*arrays[:2], moved), expected[1])
        np.testing.assert_array_equal(moved, before)

    def test_any_byte_but_zero_is_true(self, shape, dtype):
        """NumPy makes bools of 0 and 1; a view of other memory has others, and to NumPy they are true."""
        arrays = problem(shape, dtype)
        mask = options_of(("bool mask",), shape, dtype)["attn_mask"]
        others = np.where(mask, 1 + np.arange(shape.keys) % 255, 0).astype(np.uint8).view(bool)
        assert_identical(attention(*arrays, others), attention(*arrays, mask))

    def test_that_allow_all_are_no_masks(self, shape, dtype):
        arrays = problem(shape, dtype)
        expected = attention(*arrays)
        for mask in (np.ones(shape.scores, bool), np.array(True), np.zeros(shape.keys, dtype), np.zeros((), dtype)):
            assert_same_attention(attention(*arrays, mask), expected, *arrays)

    def test_is_the_same_call_without_the_excluded_keys(self, shape, dtype, rng):
        query, key, value = problem(shape, dtype)
        for block in (1, 64, 128):
            kept = (rng.random(-(-shape.keys // block)) < 0.5).repeat(block)[: shape.keys]
            kept[: max(shape.keys - 2 * block, 1)] |= not kept.any()
            expected = attention(query, key[..., kept, :], value[..., kept, :])
            for mask in (kept, np.where(kept, 0, -np.inf).astype(dtype)):
                assert_same_attention(attention(query, key, value, mask), expected, query, key, value)

    @pytest.mark.parametrize("kind", ["bool mask", "float mask"])
    def test_nothing_outside_is_read(self, kind, shape, dtype):
        arrays = problem(shape, dtype)
        mask = options_of((kind,), shape, dtype)["attn_mask"][:1, :1]
        expected = attention(*arrays, mask)
        for at in ("start", "end"):
            placed = fenced("mask").place(mask.shape, mask.dtype, at)
            placed[...] = mask
            assert_identical(attention(*arrays, placed), expected)


# What options mean, in terms of one another


def by_positions(shape, q_offset=None):
    """Positions (Sq, 1) and keys (Sk,)."""
    offset = shape.keys - shape.queries if q_offset is None else q_offset
    return np.arange(shape.queries)[:, None] + offset, np.arange(shape.keys)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", SHAPES[:5], ids=sized)
class TestEquivalences:
    @pytest.mark.parametrize("q_offset", [None, 0, 20])
    def test_causal(self, q_offset, shape, dtype):
        arrays = problem(shape, dtype)
        position, j = by_positions(shape, q_offset)
        expected = attention(*arrays, j <= position)
        for options in ({"is_causal": True}, {"window": (None, 0)}, {"is_causal": True, "window": (10**6, 10**6)}):
            assert_same_attention(attention(*arrays, **options, q_offset=q_offset), expected, *arrays)

    @pytest.mark.parametrize("window", [(0, 0), (5, 2), (None, 3), (3, None), [40, 70], (None, None), (10**12, 0)])
    def test_window(self, window, shape, dtype):
        arrays = problem(shape, dtype)
        left, right = (10**12 if reach is None else reach for reach in window)
        for q_offset in (None, 0, 20):
            position, j = by_positions(shape, q_offset)
            expected = attention(*arrays, (j >= position - left) & (j <= position + right))
            assert_same_attention(attention(*arrays, window=window, q_offset=q_offset), expected, *arrays)

    def test_lengths(self, shape, dtype):
        query, key, value = arrays = problem(shape, dtype)
        lengths = options_of(("lengths",), shape, dtype)["kv_lengths"]
        out, lse = attention(*arrays, kv_lengths=lengths, is_causal=True)
        for i, length in enumerate(lengths):
            expected = attention(query[i], key[i, :, :length], value[i, :, :length], is_causal=True)
            assert_same_attention((out[i], lse[i]), expected, query, key, value)

    @pytest.mark.parametrize("q_offset", [None, 0, 20])
    def test_alibi(self, q_offset, shape, dtype):
        arrays = problem(shape, dtype)
        position, j = by_positions(shape, q_offset)
        slopes = options_of(("alibi",), shape, dtype)["alibi_slopes"]
        mask = (-slopes[:, None, None] * np.abs(position - j)).astype(dtype)
        result, expected = attention(*arrays, alibi_slopes=slopes, q_offset=q_offset), attention(*arrays, mask)
        assert_same_attention(result, expected, *arrays, attn_mask=mask)

    @pytest.mark.parametrize(("q_offset", "reach"), [(None, 0), (None, 7), (0, 40), (20, 300), (-1000, 3), (10**18, 3)])
    def test_position_bias(self, q_offset, reach, shape, dtype, rng):
        arrays = problem(shape, dtype)
        position, j = by_positions(shape, q_offset)
        table = rng.normal(size=(shape.heads, 2 * reach + 1)).astype(dtype)
        table[rng.random(table.shape) < 0.1] = -np.inf
        mask = table[:, np.clip(j - position, -reach, reach) + reach]
        options = {"position_bias": table, "q_offset": q_offset}
        assert_same_attention(attention(*arrays, **options), attention(*arrays, mask), *arrays, attn_mask=mask)
        query, key, _ = arrays
        expected = attention_weights(query, key, mask)
        assert_same_weights(attention_weights(query, key, **options), expected, query, key, attn_mask=mask)

    def test_no_position_bias(self, shape, dtype):
        arrays = problem(shape, dtype)
        options = {"position_bias": np.zeros((shape.heads, 5), dtype)}
        assert_identical(attention(*arrays, **options), attention(*arrays))

    def test_a_sink_is_a_key_without_a_value(self, shape, dtype):
        query, key, value = problem(shape, dtype)
        sinks = options_of(("sinks",), shape, dtype)["sinks"]
        key, value = (np.concatenate([0 * x[..., :1, :], x], axis=-2) for x in (key, value))
        mask = np.zeros((shape.heads, 1, shape.keys + 1), dtype)
        mask[..., 0] = sinks[:, None]
        result = attention(query, key[..., 1:, :], value[..., 1:, :], sinks=sinks)
        assert_same_attention(result, attention(query, key, value, mask), query, key, value, sinks=sinks)

    def test_a_sink_of_minus_infinity_is_none(self, shape, dtype):
        arrays = problem(shape, dtype)
        result = attention(*arrays, sinks=np.full(shape.heads, -np.inf, dtype))
        assert_same_attention(result, attention(*arrays), *arrays)

    @pytest.mark.parametrize("names", [(), ("lengths",), *EVERYTHING], ids=named)
    def test_weights_times_values(self, names, shape, dtype):
        query, key, value = problem(shape, dtype)
        options = options_of(names, shape, dtype)
        weights, lse = attention_weights(query, key, **options)
        repeated = value.repeat(shape.heads // shape.kv_heads, axis=1)
        expected = attention(query, key, value, **options)
        assert_same_attention((weights @ repeated, lse), expected, query, key, value, **options)


# out, and the result's place


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(layout, shape, dtype):
    query, key, value = problem(shape, dtype)
    options = options_of(EVERYTHING[0], shape, dtype)
    out, weights = (empty_laid_out(x, dtype, layout) for x in (shape.out, shape.scores))
    expected, expected_weights = attention(query, key, value, **options), attention_weights(query, key, **options)
    result, result_weights = (
        attention(query, key, value, **options, out=out),
        attention_weights(query, key, **options, out=weights),
    )
    assert result[0] is out
    assert result_weights[0] is weights
    assert_identical((*result, *result_weights), (*expected, *expected_weights))
    assert_nothing_written_around(out)
    assert_nothing_written_around(weights)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("queries", [1, 40])
def test_out_is_the_mask(queries, dtype, rng):
    """The right result, or a refusal that leaves the mask alone."""
    shape = Shape(2, 4, 2, queries, 24, 16, 24)
    arrays = problem(shape, dtype)
    mask = rng.normal(size=shape.scores).astype(dtype)
    before, expected = mask.copy(), attention(*arrays, mask)
    try:
        result = attention(*arrays, mask, out=mask)
    except ValueError as error:
        assert "overlap" in str(error)  # noqa: PT017
        np.testing.assert_array_equal(mask, before)
    else:
        assert_identical(result, expected)


@pytest.mark.usefixtures("target")
def test_two_dimensions_have_no_head_axis(dtype, rng):
    query, key, value = (x[0, 0] for x in problem(MANY_ROWS, dtype))
    options = {"sinks": np.ones(1, dtype), "alibi_slopes": np.ones(1, dtype), "kv_lengths": 50, "q_offset": 12}
    options["position_bias"] = rng.normal(size=(1, 9)).astype(dtype)
    mask = rng.random((len(query), len(key))) < 0.5
    out, lse = attention(query, key, value, mask, **options)
    weights, weights_lse = attention_weights(query, key, mask, **options)
    assert out.shape == (37, 24)
    assert lse.shape == weights_lse.shape == (37,)
    assert weights.shape == (37, 70)
    expected = attention(query[None], key[None], value[None], mask, **options)
    assert_identical((out[None], lse[None]), expected)
    assert_identical((weights[None], weights_lse[None]), attention_weights(query[None], key[None], mask, **options))


@pytest.mark.usefixtures("target")
def test_defaults_change_nothing(dtype):
    """None means without: to the bit."""
    arrays = problem(MANY_ROWS, dtype)
    names = ["attn_mask", "q_offset", "window", "scale", "softcap", "sinks", "alibi_slopes", "position_bias"]
    assert_identical(attention(*arrays, **dict.fromkeys(names), kv_lengths=None), attention(*arrays))
    assert_identical(attention(*arrays, None), attention(*arrays))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("names", [("lengths",), ("bool mask of keys",), EVERYTHING[0]], ids=named)
def test_garbage_that_lengths_exclude_leaves_the_accuracy(names, dtype):
    """The rule once more, where the excluded keys are NaN: they may not blur their neighbours."""
    query, key, value = problem(MANY_ROWS, dtype)
    options = options_of(names, MANY_ROWS, dtype)
    clean = answers(query, key, value, **options)
    unseen = ~seen_by_any(attended(query, key, **options), MANY_ROWS)[..., None]
    key, value = np.where(unseen, dtype.type(np.nan), key), np.where(unseen, dtype.type(np.nan), value)
    assert_attention_accurate(query, key, value, known=clean, **options)
