"""The usual decode: few queries over many keys, heads of whole vectors, every stored type, in arrays and in caches.

Kernels have ways of their own for it, and rows that share a kv head share blocks of keys, registers and scratch there:
the rows of a problem differ in all that could be mixed up, above all in how their scores rise and fall.
"""

import functools
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fastattn
from fastattn import reference
from support.accuracy import place_of
from support.caches import as_stored, numpy_type
from support.dtypes import readable
from support.problems import answers, assert_accurate_to, assert_same_attention
from support.remembering import remembered
from support.telling import telling

pytestmark = pytest.mark.usefixtures("target")

attention_in_float64 = remembered(reference.scaled_dot_product_attention)
attention_weights_in_float64 = remembered(reference.attention_weights)

BATCH, KV_HEADS = 2, 2

# What a query may be beside what is stored; the first is the usual one.
STORED = {
    "float32": ("float32",),
    "float64": ("float64",),
    "float16": ("float32", "float16"),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("float32", "bfloat16", "float32", "float16", "float32", "float64"),
}
SIZES = ((64, 64), (128, 128), (96, 32))
GROUPS = (2, 3, 4, 5, 6, 7, 8)
QUERIES = (1, 1, 2, 1, 3)
KEYS = (300, 33, 641, 130, 257, 1300, 128, 513)  # blocks of 128 keys, parts of 512, and what is left over
RISING = {"rising": 50, "steep": 400}  # over all keys: scores of rows that stand farthest apart
KINDS = ("rising", "plain", "steep", "rising", "tiny queries", "tiny values", "one tiny row")
OPTIONS = ("none", "sinks", "none", "window", "softcap", "slopes", "mask", "none", "whole mask")


class Case(NamedTuple):
    """A problem by its numbers; `seed` draws the rest."""

    stored: str
    query: str
    head_size: int
    value_size: int
    group: int
    queries: int
    keys: int
    kind: str
    options: str
    seed: int

    def __str__(self):
        return "-".join(map(str, self))


def cases(stored):
    """Pairs of size and group, all of them where products have their own way; the rest takes turns."""
    order = list(STORED).index(stored)

    def turn(choices, i):
        return choices[(i + 5 * order) % len(choices)]

    step = 1 if stored in ("bfloat16", "int8") else 2
    pairs = [(sizes, group) for i, sizes in enumerate(SIZES) for group in GROUPS[(i + order) % step :: step]]
    return [
        Case(
            stored,
            turn(STORED[stored], i),
            *sizes,
            group,
            turn(QUERIES, i),
            turn(KEYS, i),
            turn(KINDS, i // 3 + i),
            turn(OPTIONS, i),
            i,
        )
        for i, (sizes, group) in enumerate(pairs)
    ]


ALL = [case for stored in STORED for case in cases(stored)]
FLOATS = [case for case in ALL if case.stored != "int8"]


class Problem(NamedTuple):
    query: np.ndarray
    k: np.ndarray  # in float32 (float64), before they are stored
    v: np.ndarray
    lengths: np.ndarray  # keys of each sequence

    def stored_as(self, name):
        """Keys and values as a cache holds them: in their own type, or for int8 what its rows stand for."""
        if name == "int8":
            return [as_stored(x, name) for x in (self.k, self.v)]
        return [x.astype(numpy_type(name)) for x in (self.k, self.v)]


@functools.lru_cache(maxsize=8)
def drawn(case):
    """The problem of that case."""
    rng, wide = np.random.default_rng(case.seed), np.float64 if case.stored == "float64" else np.float32
    rows = case.group * case.queries
    query = rng.normal(size=(BATCH, KV_HEADS, rows, case.head_size))
    k = rng.normal(size=(BATCH, KV_HEADS, case.keys, case.head_size))
    v = rng.normal(size=(BATCH, KV_HEADS, case.keys, case.value_size))
    if case.kind in RISING:
        # One component's product rises from key to key, or falls, by what is the row's own.
        slopes = np.linspace(-RISING[case.kind], RISING[case.kind], rows)
        slopes = rng.permuted(np.broadcast_to(slopes, query.shape[:-1]), axis=-1)
        # Mostly the key's: beside int8 a query's largest component sets the steps that the others are rounded to.
        query[..., 40], k[..., 40] = slopes * np.sqrt(case.head_size) / 30, np.linspace(0, 30, case.keys)
    tiny = 1e-3 if "float16" in (case.stored, case.query) else 1e-33
    if case.kind == "tiny queries":
        query *= tiny
    if case.kind == "one tiny row":
        query[:, :, rows // 2] *= tiny
    if case.kind == "tiny values":
        v *= tiny
    query = query.reshape(BATCH, KV_HEADS * case.group, case.queries, case.head_size).astype(numpy_type(case.query))
    lengths = np.array([case.keys, case.keys - case.keys // 5])
    problem = Problem(query, k.astype(wide), v.astype(wide), lengths)
    for x in problem:
        x.flags.writeable = False
    return problem


def options_of(case):
    """Options of attention that arrays and caches both know."""
    rng, heads = np.random.default_rng(case.seed), KV_HEADS * case.group
    kind = np.float64 if case.query == "float64" else np.float32
    chosen = {
        "none": {},
        "sinks": {"sinks": rng.normal(size=heads).astype(kind)},
        "window": {"window": (case.keys // 2, None)},
        "softcap": {"softcap": 15.0},
        "slopes": {"alibi_slopes": (2.0 ** -rng.uniform(3, 9, size=heads)).astype(kind)},
        "mask": {"attn_mask": rng.random((BATCH, 1, 1, case.keys)) < 0.7},
        "whole mask": {"attn_mask": rng.random((BATCH, heads, case.queries, case.keys)) < 0.7},
    }[case.options]
    return chosen | {"is_causal": True} if case.queries > 1 else chosen


def arrays_of(case, problem):
    """Attention over arrays as they are stored."""
    k, v = problem.stored_as(case.stored)
    return lambda query, **options: fastattn.scaled_dot_product_attention(
        query, k, v, kv_lengths=problem.lengths, return_lse=True, **options
    )


def at_the_end(problem, query):
    """Said by name, since padded appends leave open where fewer queries than they had tokens stand."""
    return {"q_offset": problem.lengths - query.shape[2]}


def caches_of(case, problem):
    """(name, attention) of each kind of cache that holds the problem's keys."""
    k, v, lengths = problem.k, problem.v, problem.lengths
    sizes = {"head_dim": case.head_size, "value_dim": case.value_size, "dtype": case.stored}
    fixed = fastattn.KVCache(BATCH, KV_HEADS, case.keys + 3, **sizes)
    fixed.append(k, v, kv_lengths=lengths)
    yield (
        "KVCache",
        lambda query, **options: fixed.attend(query, return_lse=True, **at_the_end(problem, query) | options),
    )
    page_size = (16, 24)[case.seed % 2]
    paged = fastattn.PagedKVCache(2 * (case.keys // page_size + 1), page_size, KV_HEADS, **sizes)
    ids = [paged.allocate() for _ in range(BATCH)]
    for begin in range(0, case.keys, 50):  # by turns, so that the sequences' pages alternate
        new = np.clip(lengths - begin, 0, min(50, case.keys - begin))
        paged.append(ids, k[:, :, begin : begin + 50], v[:, :, begin : begin + 50], kv_lengths=new)
    yield (
        f"PagedKVCache, {page_size} rows a page",
        lambda query, **options: paged.attend(ids, query, return_lse=True, **at_the_end(problem, query) | options),
    )


def assert_identical(results, expected):
    """(out, lse) bit for bit; the message names the first row that differs."""
    for name, x, y in zip(("out", "lse"), results, expected, strict=True):
        assert x.dtype == y.dtype
        differs = ~((readable(x) == readable(y)) | (np.isnan(readable(x)) & np.isnan(readable(y))))
        assert not differs.any(), f"{name} differs at {place_of(differs)} of shape {x.shape}"


# What is right


@pytest.mark.parametrize("case", FLOATS, ids=str)
def test_arrays_and_caches(case):
    """Arrays as the oracle says and by the accuracy rule; caches of the same rows the same to the bit.

    The rule is for rows without a component that outweighs the others: where one does, a formula's error is luck.
    """
    problem, options = drawn(case), options_of(case)
    result = arrays_of(case, problem)(problem.query, **options)
    arrays = (problem.query, *problem.stored_as(case.stored))
    known = answers(*arrays, kv_lengths=problem.lengths, **options)
    with telling(read="arrays", case=case):
        if case.kind not in RISING:
            assert_accurate_to(known, problem.query, problem.v, result)
        assert_same_attention(result, known[1], *arrays, **options)
    for name, attend in caches_of(case, problem):
        with telling(read=name, case=case):
            assert_identical(attend(problem.query, **options), result)


@pytest.mark.parametrize("case", cases("int8"), ids=str)
def test_int8_caches(case):
    problem, options = drawn(case), options_of(case)
    k, v = problem.stored_as("int8")
    expected = attention_in_float64(problem.query, k, v, kv_lengths=problem.lengths, return_lse=True, **options)
    first = None
    for name, attend in caches_of(case, problem):
        result = attend(problem.query, **options)
        with telling(read=name, case=case):
            assert_right_beside_int8(result, expected, problem.query, k, v)
            assert_identical(result, first or result)
        first = first or result


def assert_right_beside_int8(result, expected, query, k, v):
    """Within what rounding queries and weights to 15 bits can do, row by row: multiplied with int8, they may be."""
    assert result[0].dtype == query.dtype
    group = query.shape[1] // k.shape[1]
    largest_query = np.abs(query.astype(float)).max(axis=-1)
    of_key = np.abs(k).sum(axis=-1).max(axis=-1).repeat(group, axis=1)[..., None] / np.sqrt(query.shape[-1])
    of_score = largest_query / 32767 * of_key + 1e-5 * (1 + np.abs(expected[1]))
    # A weight is off by its score's error and half a unit of the block's largest; the square root as signs differ.
    of_weight = 2 * of_score + 8 * np.sqrt(k.shape[-2]) / 32767
    kind = ml_dtypes.finfo(query.dtype)
    of_result = (
        of_weight[..., None] * np.abs(v).max() + float(kind.eps) * np.abs(expected[0]) + float(kind.smallest_subnormal)
    )
    for name, x, right, allowed in zip(("out", "lse"), result, expected, (of_result, of_weight), strict=True):
        excess = np.abs(readable(x) - right) / allowed
        assert (excess <= 1).all(), (
            f"{name} is off by {excess.max():.2f} of what is allowed at {place_of(excess)} of shape {x.shape}"
        )


@pytest.mark.parametrize("case", ALL[::4], ids=str)
def test_rings(case):
    """The last keys of a longer stream, wherever the ring began."""
    problem, window = drawn(case), min(200, case.keys)
    ring = fastattn.KVCache(
        BATCH, KV_HEADS, 1 << 20, case.head_size, value_dim=case.value_size, dtype=case.stored, window=window
    )
    for begin in range(0, case.keys, 41):
        new = np.clip(problem.lengths - begin, 0, min(41, case.keys - begin))
        ring.append(*(x[:, :, begin : begin + 41] for x in (problem.k, problem.v)), kv_lengths=new)
    options = {"is_causal": True, "softcap": 15.0} if case.options == "softcap" else {"is_causal": True}
    result = ring.attend(problem.query, return_lse=True, **at_the_end(problem, problem.query), **options)
    k, v = problem.stored_as(case.stored)
    expected = attention_in_float64(
        problem.query, k, v, kv_lengths=problem.lengths, window=(window - 1, None), return_lse=True, **options
    )
    with telling(read=ring, case=case):
        if case.stored == "int8":
            assert_right_beside_int8(result, expected, problem.query, k, v)
        else:
            assert_same_attention(result, expected, problem.query, k, v, **options)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("value_size", [8, 16, 24, 40, 48, 80])
@pytest.mark.parametrize("group", [1, 2, 5, 8])
def test_values_of_other_sizes_than_the_keys(stored, value_size, group):
    """Of whole vectors, too, which are an odd number of them beside keys of an even one."""
    case = Case(stored, STORED[stored][0], 64, value_size, group, 1, 300, "plain", "none", group)
    problem = drawn(case)
    k, v = problem.stored_as(stored)
    expected = attention_in_float64(problem.query, k, v, kv_lengths=problem.lengths, return_lse=True)
    for name, attend in all_ways(case, problem):
        result = attend(problem.query)
        with telling(read=name, case=case):
            if stored == "int8":
                assert_right_beside_int8(result, expected, problem.query, k, v)
            else:
                assert_same_attention(result, expected, problem.query, k, v)


# What is not finite, or tiny, stays where it is


def all_ways(case, problem):
    if case.stored != "int8":
        yield "arrays", arrays_of(case, problem)
    yield from caches_of(case, problem)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e-34])
@pytest.mark.parametrize("stored", STORED)
def test_a_row_that_is_taken_otherwise_changes_no_other(stored, bad):
    """Queries that are not finite, or so small that the kernel cannot take them as it takes their neighbours."""
    for case in cases(stored)[{np.inf: 1}.get(bad, 0) :: 3]:
        if bad == 1e-34 and case.query not in ("float32", "bfloat16"):
            continue
        problem, options = drawn(case._replace(kind="plain")), options_of(case)
        query, place = problem.query.copy(), (0, case.seed % case.group, 0)
        query[place] *= query.dtype.type(bad)
        for name, attend in all_ways(case, problem):
            clean, (out, lse) = attend(problem.query, **options), attend(query, **options)
            with telling(read=name, case=case, row=place):
                if np.isnan(bad):
                    assert np.isnan(out[place]).all()
                    assert np.isnan(lse[place])
                out[place], lse[place] = clean[0][place], clean[1][place]
                assert_identical((out, lse), clean)


@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("stored", [stored for stored in STORED if stored != "int8"])
def test_nan_shows_only_to_those_who_attend(stored, where):
    """Of two queries only the last sees the last key; heads see other keys than one another by a mask."""
    for case in cases(stored)[where == "key" :: 3]:
        case = case._replace(queries=2, keys=case.keys % 700 + 100)
        problem = drawn(case)
        mask = np.random.default_rng(case.seed).random((1, KV_HEADS * case.group, 2, case.keys)) < 0.8
        # A key of the last block, which not all see; and one of an earlier block, which all see but for a mask.
        for j, options in ((problem.lengths - 1, {}), (problem.lengths // 3, {"attn_mask": mask})):
            options["is_causal"] = True
            k, v = problem.k.copy(), problem.v.copy()
            spoiled = k if where == "key" else v
            spoiled[range(BATCH), :, j, 5] = np.nan
            sees = attention_weights_in_float64(
                np.zeros(problem.query.shape), np.zeros(k.shape), kv_lengths=problem.lengths, **options
            )
            attending = sees[range(BATCH), ..., j] > 0
            columns = slice(None) if where == "key" else slice(5, 6)
            ways = zip(all_ways(case, problem), all_ways(case, problem._replace(k=k, v=v)), strict=True)
            for (name, attend), (_, attend_spoiled) in ways:
                clean, (out, lse) = attend(problem.query, **options), attend_spoiled(problem.query, **options)
                with telling(read=name, case=case, key=j, **options):
                    assert np.isnan(out[attending][:, columns]).all()
                    assert (np.isnan(lse[attending]) == (where == "key")).all()
                    assert_identical((out[~attending], lse[~attending]), [x[~attending] for x in clean])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("stored", [stored for stored in STORED if stored != "int8"])
def test_what_a_window_has_left_behind_does_not_leak(stored, where, bad):
    """Queries whose windows begin at keys next to one another, and end beyond the block of keys that they begin in."""
    for case in cases(stored)[where == "key" :: 3]:
        case = case._replace(queries=2 + case.seed % 3, keys=case.keys % 700 + 300, kind="plain")
        problem = drawn(case)
        for window in ((150, None), (150, 0), (None, None)):
            for first in (0, 1, case.keys // 5):  # the first key of the first query's window
                options = {"window": window, "q_offset": np.full(BATCH, first + 150)}
                k, v = problem.k.copy(), problem.v.copy()
                (k if where == "key" else v)[:, :, first, 5] = bad
                attending = np.zeros(problem.query.shape[:-1], bool)
                attending[..., slice(1) if window[0] else slice(None)] = True
                ways = zip(all_ways(case, problem), all_ways(case, problem._replace(k=k, v=v)), strict=True)
                for (name, attend), (_, attend_spoiled) in ways:
                    clean, (out, lse) = attend(problem.query, **options), attend_spoiled(problem.query, **options)
                    with telling(read=name, case=case, key=first, **options):
                        if where == "value":
                            assert not np.isfinite(out[attending][:, 5]).any()
                        assert_identical((out[~attending], lse[~attending]), [x[~attending] for x in clean])
