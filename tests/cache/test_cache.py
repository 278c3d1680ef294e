"""KVCache and PagedKVCache: what is stored and how exactly, rings, pages, files, bad input, memory.

Their histories at random are in test_cache_machine.py.
"""

import contextlib
import copy
import functools
import importlib
import itertools
import json
import os
import pickle
import re
import stat
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastattn
from fastattn import _array_file, _cache_file, reference
from fastattn._core import cache as _core
from support.arrays import LAYOUTS, SIZES, FencedPages
from support.caches import DTYPES, as_stored, assert_attends, held_rows, numpy_type, quantised
from support.processes import output, python
from support.telling import telling

FLOATS = ["float32", "float64", "float16", "bfloat16"]


@pytest.fixture(params=DTYPES)
def stored(request):
    """What a cache stores."""
    return request.param


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def normal(rng, *shape, dtype="float32"):
    return rng.normal(size=shape).astype(numpy_type(dtype))


def rows_of(cache, b=0):
    """Keys and values of a KVCache's sequence, in float64."""
    return list(held_rows(cache._store, [b], 0, cache.lengths[b]))


# Storing


@pytest.mark.parametrize("size", [*SIZES, 1000])
def test_rows_are_rounded_once(target, rng, stored, size):
    for given in FLOATS:
        cache = fastattn.KVCache(2, 3, 8, size, dtype=stored, value_dim=size + 1)
        k, v = normal(rng, 2, 3, 5, size, dtype=given), normal(rng, 2, 3, 5, size + 1, dtype=given)
        cache.append(k, v)
        for b in range(2):
            for x, rows in zip((k, v), rows_of(cache, b), strict=True):
                np.testing.assert_array_equal(rows, as_stored(x[b], stored))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_new_rows(target, rng, stored, layout):
    cache = fastattn.KVCache(2, 3, 8, 21, dtype=stored, value_dim=13)
    k, v = LAYOUTS[layout](normal(rng, 2, 3, 5, 21)), LAYOUTS[layout](normal(rng, 2, 3, 5, 13))
    cache.append(k, v)
    for x, rows in zip((k, v), rows_of(cache, 1), strict=True):
        np.testing.assert_array_equal(rows, as_stored(x[1], stored))


@pytest.mark.parametrize("given", FLOATS)
def test_values_that_are_not_finite_are_kept(target, stored, given):
    if stored == "int8":
        pytest.skip("refused: see below")
    k = np.array([np.inf, -np.inf, np.nan, 0, -0.0] * 5).astype(numpy_type(given)).reshape(1, 1, 1, 25)
    cache = fastattn.KVCache(1, 1, 1, 25, dtype=stored)
    cache.append(k, k)
    assert cache.keys.dtype == numpy_type(stored)
    kept = cache.keys.astype(np.float64).ravel()
    np.testing.assert_array_equal(kept, k.astype(np.float64).ravel())
    np.testing.assert_array_equal(np.signbit(kept[:2]), [False, True])


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_around_the_rows_is_touched(target, rng, stored, size, at):
    pens = [FencedPages(100_000) for _ in range(6)]
    sizes = {"batch": 1, "num_kv_heads": 2, "max_length": 5, "head_dim": size, "value_dim": None}
    make = functools.partial(_core.Fixed, **sizes, dtype=stored, window=None)
    shapes = make().pools()
    pools = [pen.place(*pool, at) for pen, pool in zip(pens, shapes, strict=False)]
    cache = make(pools=pools)
    for pool in pools:
        pool.view(np.uint8)[...] = 0xFF
    new = [pen.place((1, 2, 3, size), np.float32, at) for pen in pens[4:]]
    for x in new:
        x[...] = rng.normal(size=x.shape)
    rest = {"kv_lengths": None, "cos": None, "sin": None, "interleaved": False, "rotary_dim": None, "num_threads": None}
    cache.append(*new, **rest)
    for pool in pools:
        assert (pool[:, :, 3:].view(np.uint8) == 0xFF).all()


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("pairs", "rest"), [(1, 0), (7, 3), (8, 0), (16, 1), (17, 0), (33, 20), (64, 0)])
@pytest.mark.parametrize("table", ["float32", "bfloat16", "float64"])
def test_keys_turn_on_their_way(target, rng, stored, interleaved, pairs, rest, table):
    """By the row of their position: a second append goes on where the first one ended."""
    given = "float64" if table == "float64" else "float32"
    angles = rng.normal(size=(9, pairs))
    cos, sin = np.cos(angles).astype(numpy_type(table)), np.sin(angles).astype(numpy_type(table))
    cache = fastattn.KVCache(1, 2, 9, 2 * pairs + rest, dtype=stored)
    k = normal(rng, 1, 2, 9, 2 * pairs + rest, dtype=given)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        cache.append(k[:, :, part], k[:, :, part], cos=cos, sin=sin, interleaved=interleaved)
    keys, values = rows_of(cache)
    np.testing.assert_array_equal(values, as_stored(k[0], stored))
    wide = np.float64 if stored == "float64" else np.float32
    tables = (x.astype(wide).astype(np.float64) for x in (cos, sin))
    expected = reference.rotary_embedding(k[0].astype(wide), *tables, interleaved=interleaved)
    precision = {"float64": 1e-15, "float32": 3e-7, "float16": 1e-3, "bfloat16": 8e-3, "int8": 1 / 250}[stored]
    np.testing.assert_allclose(keys, expected, rtol=0, atol=precision * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["plain", "paged"])
@pytest.mark.parametrize("axis", [-1, -2], ids=["halves", "neighbours"])
def test_tables_that_hold_each_number_twice_are_refused(rng, kind, axis):
    """The rows of this call may say nothing; the table does."""
    cache = fastattn.PagedKVCache(9, 3, 2, 64) if kind == "paged" else fastattn.KVCache(1, 2, 9, 64)
    ids = [[cache.allocate()]] if kind == "paged" else []
    angles = np.arange(9)[:, None] / 100.0 ** np.arange(8)
    once = [f(angles).astype(np.float32) for f in (np.cos, np.sin)]
    cos, sin = (np.stack([x, x], axis).reshape(9, 16) if axis == -1 else np.concatenate([x, x], -1) for x in once)
    k = normal(rng, 1, 2, 1, 64)
    before = snapshot(cache)
    with pytest.raises(ValueError, match=r"cos must hold the number of each pair once, got shape \(9, 16\) with equal"):
        cache.append(*ids, k, k, cos=cos, sin=sin)
    assert_unchanged(cache, before)
    cache.append(*ids, k, k, cos=cos, sin=sin, rotary_dim=32)
    for wrong in (8, 15, 32):
        said = f"rotary_dim must be twice the number of columns of cos, 16, got {wrong}"
        with pytest.raises(ValueError, match=said):
            cache.append(*ids, k, k, cos=once[0], sin=once[1], rotary_dim=wrong)
    with pytest.raises(ValueError, match="rotary_dim must be None without cos and sin, got 16"):
        cache.append(*ids, k, k, rotary_dim=16)
    cache.append(*ids, k, k, cos=once[0], sin=once[1], rotary_dim=16)
    cache.append(*ids, k, k, cos=once[0], sin=once[1])


def test_a_table_row_of_another_position_is_not_read(rng):
    angles = np.arange(10)[:, None] / 3.0 ** np.arange(4)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    cos[[*range(3), *range(5, 10)]] = np.nan
    cache = fastattn.KVCache(1, 1, 20, 8)
    cache.append(*ones(2, 1, 1, 3, 8))
    cache.append(*ones(2, 1, 1, 2, 8), cos=cos, sin=sin)
    assert np.isfinite(cache.keys).all()


@pytest.mark.parametrize("tokens", [1, 100, 3000])
def test_any_number_of_threads(target, rng, stored, tokens):
    k, v = normal(rng, 2, 4, tokens, 40), normal(rng, 2, 4, tokens, 24)
    expected = None
    for num_threads in (1, 2, 5, None):
        cache = fastattn.KVCache(2, 4, tokens, 40, dtype=stored, value_dim=24)
        cache.append(k, v, num_threads=num_threads)
        expected = expected or cache
        for x, y in zip(cache._store.arrays(), expected._store.arrays(), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_cache_appended_to_itself(rng):
    cache = fastattn.KVCache(1, 2, 12, 4, window=12)
    k = normal(rng, 1, 2, 9, 4)
    cache.append(k, -k)
    cache.append(cache.keys[:, :, ::-1], cache.values[:, :, ::-1])
    whole = np.concatenate([k, k[:, :, ::-1]], axis=2)
    np.testing.assert_array_equal(cache._store.key_pages[0][:, np.arange(6, 18) % 12], whole[0, :, 6:])


# int8


@pytest.mark.parametrize("size", SIZES)
def test_quantised_rows(target, rng, size):
    cache = fastattn.KVCache(1, 2, 40, size, dtype="int8")
    k = (rng.normal(size=(1, 2, 40, size)) * 10.0 ** rng.integers(-44, 38, size=(1, 2, 40, 1))).astype(np.float32)
    k[:, :, 0] = 0
    k[:, :, 1] = np.finfo(np.float32).max
    k[:, :, 2] = np.finfo(np.float32).smallest_subnormal * rng.integers(-189, 190, size)
    k[:, :, 3] = np.resize([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127], size)  # ties, where the scale is 1
    cache.append(k, -k)
    integers, scales = quantised(k)
    np.testing.assert_array_equal(cache._store.key_pages, integers)
    np.testing.assert_array_equal(cache._store.value_pages, -integers)
    np.testing.assert_array_equal(cache._store.key_scales, scales)
    np.testing.assert_array_equal(cache._store.value_scales, scales)


@pytest.mark.parametrize("size", [1, 7, 16, 33])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("kind", ["plain", "ring", "paged"])
def test_rows_without_a_scale_are_refused(target, rng, size, bad, name, kind):
    good = rng.normal(size=(2, 3, 4, size))
    cache = {
        "plain": lambda: fastattn.KVCache(2, 3, 9, size, dtype="int8"),
        "ring": lambda: fastattn.KVCache(2, 3, 5, size, dtype="int8", window=5),
        "paged": lambda: fastattn.PagedKVCache(9, 3, 3, size, dtype="int8"),
    }[kind]()
    ids = [[cache.allocate(), cache.allocate()]] if kind == "paged" else []
    cache.append(*ids, good, good)
    before = snapshot(cache)
    arrays = {"key": good.copy(), "value": good.copy()}
    arrays[name][1, 2, 3, size // 2] = bad
    with pytest.raises(ValueError, match=rf"{name} must be finite .* got"):
        cache.append(*ids, **arrays)
    assert_unchanged(cache, before)
    cache.append(*ids, **arrays, kv_lengths=np.array([4, 3]))  # what is not stored is not judged


LARGEST = {"float16": 65519.0, "bfloat16": 3.39e38, "float32": 3.4028234e38}
TOO_LARGE = {"float16": 65536.0, "bfloat16": 3.3962e38, "float32": 3.41e38}


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("given", FLOATS)
@pytest.mark.parametrize("stored", LARGEST)
@pytest.mark.parametrize("kind", ["plain", "ring", "full ring", "paged"])
def test_no_finite_number_becomes_infinite(target, rng, kind, stored, given, turned):
    """In any place of any row, in k and in v; infinity and NaN are kept, what is not stored is not judged."""
    with np.errstate(over="ignore"):
        number = numpy_type(given).type(TOO_LARGE[stored])
        if np.isinf(float(number)) or float(number) < TOO_LARGE[stored]:
            pytest.skip("there is no such number")
    makes = {
        "plain": lambda: fastattn.KVCache(2, 3, 64, 33, dtype=stored),
        "ring": lambda: fastattn.KVCache(2, 3, 64, 33, dtype=stored, window=5),
        "full ring": lambda: fastattn.KVCache(2, 3, 5, 33, dtype=stored, window=5),
        "paged": lambda: fastattn.PagedKVCache(99, 3, 3, 33, dtype=stored),
    }
    table = np.zeros((64, 15), numpy_type("float64" if given == "float64" else "float32"))
    rotary = {"cos": table, "sin": table + 1, "rotary_dim": 30} if turned else {}  # components change places
    good = normal(rng, 2, 3, 4, 33, dtype=given)
    good[0, 1, 1, [2, 20, 31]] = [np.inf, np.nan, -np.inf]
    largest = LARGEST[stored] * (0.99 if given == "bfloat16" else 1)  # which rounds it up
    large = np.full((2, 3, 1, 33), largest).astype(numpy_type(given))
    tokens = itertools.cycle((3, 0, 2, 1))
    for (name, place, sign), token in zip(
        itertools.product(("key", "value"), (0, 17, 32), (1, -1)), tokens, strict=False
    ):
        cache = makes[kind]()
        ids = [[cache.allocate(), cache.allocate()]] if kind == "paged" else []
        cache.append(*ids, good, good, **rotary)
        before = snapshot(cache)
        bad = {"key": good.copy(), "value": good.copy()}
        bad[name][1, 2, token, place] = sign * number
        with pytest.raises(ValueError, match=rf"{name} must not exceed .* as {stored}, got .* dtype='(bfloat16|float)"):
            cache.append(*ids, **bad, **rotary)
        assert_unchanged(cache, before)
        cache.append(*ids, **bad, **rotary, kv_lengths=[4, token])
        cache.append(*ids, large, -large)


def snapshot(cache):
    """All that a cache is; what stands beyond the sequences' ends is not part of it."""
    store = cache._store
    state = store.state()
    parts = store.used_parts()
    if isinstance(cache, fastattn.PagedKVCache):
        state["free"] = np.array([cache.free_pages])
        parts = [
            (page, slice(None), slice(min(length - block * store.page_size, store.page_size)))
            for id, length in cache.lengths.items()
            for block, page in enumerate(cache.block_table(id))
        ]
    for n, x in enumerate(store.arrays()):
        held = [x[part].ravel().view(np.uint8) for part in parts]
        state[f"pool {n}"] = np.concatenate([np.zeros(0, np.uint8), *held])
    return {name: np.array(x) for name, x in state.items()}


def assert_unchanged(cache, before):
    now = snapshot(cache)
    assert now.keys() == before.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(now[name], x)


MOST_ERRORS = {"float32": (1e-5, 1e-5), "float16": (2e-3, 2e-3), "bfloat16": (0.01, 0.01), "int8": (0.04, 0.08)}


@pytest.mark.parametrize("dtype", MOST_ERRORS)
@pytest.mark.parametrize("n", [0, 1])
def test_errors_on_trained_like_data(cache_accuracy, dtype, n):
    """Twice what docs/performance/cache-accuracy.md says: without outliers, and with some of 5 times the size."""
    over_all, worst = cache_accuracy.error(dtype, cache_accuracy.OUTLIERS[n], draws=1)
    assert over_all < MOST_ERRORS[dtype][n]
    assert worst < 10 * MOST_ERRORS[dtype][n]


@pytest.fixture(scope="module")
def cache_accuracy():
    folder = Path(__file__).parents[2] / "benchmarks"
    if not folder.exists():
        pytest.skip("needs the checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return importlib.import_module("cache_accuracy")


# Attending


@pytest.mark.parametrize("group", [1, 4, 20])
@pytest.mark.parametrize("queries", [1, 3, 70])
def test_attends_as_the_oracle_does(target, rng, stored, group, queries):
    lengths = np.array([200, 70, 131])
    fixed = fastattn.KVCache(3, 2, 256, 33, dtype=stored, value_dim=20)
    paged = fastattn.PagedKVCache(40, 17, 2, 33, dtype=stored, value_dim=20)
    ids = [paged.allocate() for _ in range(3)]
    k, v = normal(rng, 3, 2, 200, 33), normal(rng, 3, 2, 200, 20)
    fixed.append(k, v, kv_lengths=lengths)
    paged.append(ids, k, v, kv_lengths=lengths)
    sequences = [[as_stored(x[b, :, :n], stored) for x in (k, v)] for b, n in enumerate(lengths)]
    query = normal(rng, 3, 2 * group, queries, 33, dtype="float64" if stored == "float64" else "float32")
    last = lengths - queries
    for options in ({}, {"is_causal": True, "softcap": 3.0, "q_offset": last}, {"window": (40, 3), "q_offset": 50}):
        own = options | ({"q_offset": np.broadcast_to(options["q_offset"], 3)} if "q_offset" in options else {})
        assert_attends(fixed.attend, query, sequences, options, own, stored)
        assert_attends(lambda q, **o: paged.attend(ids, q, **o), query, sequences, options, own, stored)


def test_float32_pages_give_what_whole_keys_give(target, rng):
    query, k, v = normal(rng, 2, 8, 1, 64), normal(rng, 2, 2, 700, 64), normal(rng, 2, 2, 700, 64)
    cache = fastattn.KVCache(2, 2, 1000, 64)
    cache.append(k, v)
    expected = fastattn.scaled_dot_product_attention(query, cache.keys, cache.values, return_lse=True)
    for result, right in zip(cache.attend(query, return_lse=True), expected, strict=True):
        np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("name", ["keys", "values"])
def test_out_is_what_the_cache_holds(target, rng, name, queries):
    cache = fastattn.KVCache(2, 4, 40, 16)
    cache.append(*normal(rng, 2, 2, 4, 40, 16))
    query = normal(rng, 2, 4, queries, 16)
    expected, out = cache.attend(query), getattr(cache, name)[:, :, 40 - queries :]
    np.testing.assert_array_equal(cache.attend(query, out=out), expected)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("queries", [1, 40])
def test_out_is_the_mask(target, rng, queries):
    """A part of out that broadcasts: it is read by more queries than those whose results replace it."""
    cache = fastattn.KVCache(3, 2, 24, 16, value_dim=24)
    cache.append(normal(rng, 3, 2, 24, 16), normal(rng, 3, 2, 24, 24))
    query = normal(rng, 3, 4, queries, 16)
    for which in (np.s_[:1, :1], np.s_[-1:, -1:], np.s_[..., ::-1]):
        out = normal(rng, 3, 4, queries, 24)
        expected = cache.attend(query, out[which].copy(), num_threads=1)
        np.testing.assert_array_equal(cache.attend(query, out[which], out=out, num_threads=1), expected)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("spoiled", [np.nan, np.inf, 1e-34], ids=str)
def test_a_row_is_computed_alike_whatever_its_neighbours_are(target, rng, stored, queries, spoiled):
    """To the bit: rows of a kv head are multiplied together, and not all of them can be had in 16 bits."""
    cache = fastattn.KVCache(1, 1, 600, 64, dtype=stored)
    cache.append(normal(rng, 1, 1, 600, 64), normal(rng, 1, 1, 600, 64))
    query = normal(rng, 1, 4, queries, 64, dtype=stored if stored in FLOATS else "float32")
    clean = cache.attend(query, return_lse=True)
    query[0, 1, -1] *= spoiled
    out, lse = cache.attend(query, return_lse=True)
    others = np.ones(lse.shape, bool)
    others[0, 1, -1] = False
    for result, right in zip((out, lse), clean, strict=True):
        np.testing.assert_array_equal(result[others], right[others])
    if not np.isfinite(spoiled):
        assert np.isnan(out[~others]).all()
        assert np.isnan(lse[~others]).all()


def test_an_empty_cache_attends_to_nothing(stored):
    kind = np.float64 if stored == "float64" else np.float32
    cache = fastattn.KVCache(1, 2, 5, 8, dtype=stored)
    out, lse = cache.attend(ones(1, 2, 3, 8, dtype=kind), return_lse=True)
    assert (out == 0).all()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("kind", ["plain", "ring", "paged", "loaded"])
@pytest.mark.parametrize("given", [[10, 7, 0], [7, 7, 7], [1, 10, 10]], ids=str)
def test_queries_of_padded_prompts(target, rng, tmp_path, stored, kind, given):
    """Each stands where its key does, also of the second prompt; what is not known is asked for."""
    if kind == "paged":
        cache = fastattn.PagedKVCache(30, 4, 2, 16, dtype=stored)
        ids = [[cache.allocate() for _ in range(3)]]
    else:
        cache = fastattn.KVCache(3, 2, 64, 16, dtype=stored, window=64 if kind == "ring" else None)
        ids = []
    counts, held = [given, [2, 0, 5], [3, 3, 3]], [np.zeros((2, 2, 0, 16))] * 3
    kind_of_query = "float64" if stored == "float64" else "float32"
    for tokens, new in zip((10, 5, 3), counts, strict=True):
        k, v, query = normal(rng, 3, 2, tokens, 16), normal(rng, 3, 2, tokens, 16), normal(rng, 3, 4, tokens, 16)
        query = query.astype(kind_of_query)
        cache.append(*ids, k, v, kv_lengths=new)
        if kind == "loaded":
            cache.save(tmp_path / "cache")
            cache = fastattn.KVCache.load(tmp_path / "cache")
        out = cache.attend(*ids, query, is_causal=True)
        for b, n in enumerate(new):
            rows = np.stack([as_stored(x[b, :, :n], stored) for x in (k, v)])
            held[b] = np.concatenate([held[b], rows], axis=2)
            right = reference.scaled_dot_product_attention(query[b, :, :n], *held[b], is_causal=True)
            np.testing.assert_allclose(out[b, :, :n], right, rtol=0, atol=0.05 if stored == "int8" else 1e-5)
        if tokens == 3:
            continue
        np.testing.assert_array_equal(  # one query is that of the last token, where there is one
            cache.attend(*ids, query[:, :, :1], is_causal=True),
            cache.attend(*ids, query[:, :, :1], is_causal=True, q_offset=[x.shape[2] - 1 for x in held]),
        )
        slopes, biases = (ones(*shape).astype(kind_of_query) / 8 for shape in ((4,), (4, 3)))
        by_position = {"is_causal": True}, {"window": (3, None)}, {"alibi_slopes": slopes}, {"position_bias": biases}
        for options in by_position:
            with pytest.raises(ValueError, match=r"q_offset must be given for 2 queries of sequence \d, .* got"):
                cache.attend(*ids, query[:, :, :2], **options)
            cache.attend(*ids, query[:, :, :2], **options, q_offset=0)
        if kind != "ring":  # whose window makes a difference
            cache.attend(*ids, query[:, :, :2], window=(None, None))
    if kind != "paged":
        cache.reset()
        cache.append(normal(rng, 3, 2, 4, 16), normal(rng, 3, 2, 4, 16))
        cache.attend(normal(rng, 3, 4, 9, 16, dtype=kind_of_query), is_causal=True)


def test_several_threads_attend_at_once(rng):
    cache = fastattn.PagedKVCache(64, 8, 2, 16)
    ids = [cache.allocate() for _ in range(8)]
    for n, id in enumerate(ids):
        cache.append([id], *normal(rng, 2, 1, 2, 5 * n + 1, 16))
    query = normal(rng, 8, 4, 1, 16)
    expected = cache.attend(ids, query)
    wrong = []

    def work(start):
        order = [(start + i) % 8 for i in range(8)]
        for _ in range(200):
            out = cache.attend([ids[i] for i in order], query[order])
            if not np.array_equal(out, expected[order]):
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["plain", "ring", "paged", "int8"])
def test_a_step_allocates_nothing(kind):
    options = {"ring": {"window": 16}, "int8": {"dtype": "int8"}}.get(kind, {})
    if kind == "paged":
        cache = fastattn.PagedKVCache(200, 4, 2, 8)
        ids = [[cache.allocate(), cache.allocate()]]
        cache.append(*ids, *ones(2, 2, 2, 300, 8))  # the tables are wide enough from here on
    else:
        cache, ids = fastattn.KVCache(2, 2, 1000, 8, **options), []
    k, q, out = ones(2, 2, 1, 8), ones(2, 4, 1, 8), ones(2, 4, 1, 8)

    def steps(count):
        for _ in range(count):
            cache.append(*ids, k, k)
            cache.attend(*ids, q, out=out)

    steps(10)
    tracemalloc.start()
    steps(10)
    start, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    steps(50)
    end, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert end - start < 500
    assert peak - start < 3000  # the interpreter's own: frames, tuples, views of nothing


# Rings


def test_a_stream_of_any_length_takes_the_same_memory(target, rng):
    cache = fastattn.KVCache(1, 2, 1 << 40, 8, window=100)
    assert cache.nbytes == 2 * 2 * 164 * 8 * 4
    assert cache.chunk == 65
    stream = [normal(rng, 2, 0, 8), normal(rng, 2, 0, 8)]
    for tokens in (65, 65, 1, 1, 40, 65, 7, 65, 65, 1):
        k, v = normal(rng, 1, 2, tokens, 8), normal(rng, 1, 2, tokens, 8)
        stream = [np.concatenate([x, new[0]], axis=1) for x, new in zip(stream, (k, v), strict=True)]
        cache.append(k, v)
        query = normal(rng, 1, 4, tokens, 8)
        expected = {"is_causal": True, "window": (99, None)}
        assert_attends(cache.attend, query, [stream], {"is_causal": True}, expected, "float32")
    np.testing.assert_array_equal(cache.lengths, [375])


def test_a_prompt_longer_than_the_ring(target, rng):
    """Its last keys are kept; only who needs earlier ones is refused."""
    k = normal(rng, 1, 1, 1000, 8)
    cache = fastattn.KVCache(1, 1, 90, 8, window=30)
    cache.append(k, k)
    query = normal(rng, 1, 1, 61, 8)
    assert_attends(
        cache.attend, query, [(k[0], k[0])], {"is_causal": True}, {"is_causal": True, "window": (29, None)}, ""
    )
    with pytest.raises(ValueError, match=r"query must be at position 939 or later in sequence 0, .* got 938; .* 61"):
        cache.attend(normal(rng, 1, 1, 62, 8), is_causal=True)
    cache.attend(normal(rng, 1, 1, 62, 8), is_causal=True, window=(28, 0))


@pytest.mark.parametrize("before", [0, 1, 40])
@pytest.mark.parametrize("more", [-1, 0, 1, 2])
@pytest.mark.parametrize(("window", "ring", "size"), [(30, 94, 8), (512, 640, 64)])
def test_prompts_about_as_long_as_the_ring(target, rng, before, more, window, ring, size):
    """The larger ring is a whole number of the items that a prompt is stored in."""
    k, v = normal(rng, 2, 1, 2, before + ring + more, size)
    cache = fastattn.KVCache(1, 2, 1 << 40, size, window=window)
    assert cache.nbytes == 2 * 2 * ring * size * 4
    cache.append(k[:, :, :before], v[:, :, :before])
    cache.append(k[:, :, before:], v[:, :, before:])
    query, expected = normal(rng, 1, 4, 61, size), {"is_causal": True, "window": (window - 1, None)}
    assert_attends(cache.attend, query, [(k[0], v[0])], {"is_causal": True}, expected, "float32")


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0], [2, 2, 0], [0, 0, 0], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("window", [None, 10])
def test_reordered_sequences_of_different_lengths(target, rng, stored, window, order):
    """As if each had been appended in its new place; rings have dropped none, some, and many of their rows."""
    k, v, lengths = normal(rng, 3, 2, 200, 8), normal(rng, 3, 2, 200, 12), np.array([5, 90, 200])
    cache, expected = (fastattn.KVCache(3, 2, 400, 8, dtype=stored, value_dim=12, window=window) for _ in range(2))
    cache.append(k, v, kv_lengths=lengths)
    cache.reorder(order)
    expected.append(k[order], v[order], kv_lengths=lengths[order])
    for _ in range(3):
        for name, x in expected._store.state().items():
            np.testing.assert_array_equal(cache._store.state()[name], x, name)
        query = normal(rng, 3, 4, 1, 8, dtype="float64" if stored == "float64" else "float32")
        for x, right in zip(*(c.attend(query, return_lse=True) for c in (cache, expected)), strict=True):
            np.testing.assert_array_equal(x, right)
        new = normal(rng, 3, 2, 40, 8), normal(rng, 3, 2, 40, 12)
        for c in (cache, expected):
            c.append(*new, kv_lengths=[40, 0, 1])
    for c in (cache, expected):
        c.truncate(c.lengths - 1)
    assert_unchanged(cache, snapshot(expected))


@pytest.mark.parametrize("offset", [-(1 << 63), -(1 << 62), -(1 << 50), -(1 << 48) - 1])
@pytest.mark.parametrize("each", [False, True], ids=["for all", "for each"])
def test_positions_far_before_a_ring(rng, offset, each):
    cache = fastattn.KVCache(1, 1, 90, 8, window=30)
    query, k = normal(rng, 1, 1, 2, 8), normal(rng, 1, 1, 40, 8)
    cache.append(k, k)
    told = np.array([offset]) if each else offset
    np.testing.assert_array_equal(cache.attend(query, q_offset=-100), cache.attend(query, q_offset=told))
    cache.append(normal(rng, 1, 1, 90, 8), normal(rng, 1, 1, 90, 8))
    with pytest.raises(ValueError, match=rf"query must be at position 69 or later .* got {offset};"):
        cache.attend(query, q_offset=told)


@pytest.mark.parametrize("offset", [(1 << 63) - 1, 1 << 62, 1 << 50])
def test_positions_far_behind_a_ring(rng, offset):
    cache = fastattn.KVCache(1, 1, 90, 8, window=30)
    for tokens in (40, 90):
        cache.append(*normal(rng, 2, 1, 1, tokens, 8))
        out, lse = cache.attend(normal(rng, 1, 1, 2, 8), q_offset=offset, return_lse=True)
        assert (out == 0).all()
        assert np.isneginf(lse).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_more_tokens_than_anybody_has(dtype):
    """Rows that repeat the same memory: only those that are kept are read, and none where they do not fit."""
    rows = np.broadcast_to(np.float32(1), (1, 1, 1 << 40, 8))
    cache = fastattn.KVCache(1, 1, 90, 8, window=30, dtype=dtype)
    for n in (1, 2):
        cache.append(rows, rows)
        np.testing.assert_array_equal(cache.lengths, [n << 40])
    np.testing.assert_array_equal(cache.attend(ones(1, 1, 1, 8)), ones(1, 1, 1, 8))
    longest = np.broadcast_to(np.float32(1), (1, 1, 1 << 57, 8))
    with pytest.raises(ValueError, match=r"key must hold at most \d+ tokens for sequence 0, .* got 144115188075855872"):
        cache.append(longest, longest)
    cache.append(longest, longest, kv_lengths=3)
    with pytest.raises(ValueError, match=r"q_offset must be given"):
        cache.attend(ones(1, 1, 2, 8))
    paged = fastattn.PagedKVCache(5, 4, 1, 8, dtype=dtype)
    ids = [paged.allocate()]
    for x in (rows, longest):
        with pytest.raises(fastattn.OutOfPages, match=r"num_pages must leave \d+ free pages"):
            paged.append(ids, x, x)
    paged.append(ids, longest, longest, kv_lengths=[3])


def test_sizes_whose_product_is_too_large():
    most = (1 << 63) - 1
    assert fastattn.KVCache(1, 1, most, 8, window=100).chunk == 65
    for make in (
        lambda: fastattn.KVCache(1 << 40, 1 << 40, 1 << 40, 1),
        lambda: fastattn.KVCache(1, 1, most, 1, window=most),
        lambda: fastattn.KVCache(1, 1, 1, most, value_dim=most),
        lambda: fastattn.PagedKVCache(most, most, 1, 1),
    ):
        with pytest.raises(MemoryError, match=r"cannot allocate a cache of \d+ bytes"):
            make()


@pytest.mark.parametrize("kind", ["plain", "ring", "paged"])
def test_lists_of_integers(rng, kind):
    cache = fastattn.PagedKVCache(9, 3, 2, 8) if kind == "paged" else fastattn.KVCache(2, 2, 9, 8)
    if kind == "ring":
        cache = fastattn.KVCache(2, 2, 9, 8, window=9)
    ids = [[cache.allocate(), cache.allocate()]] if kind == "paged" else []
    k, query = normal(rng, 2, 2, 4, 8), normal(rng, 2, 4, 1, 8)
    cache.append(*ids, k, k, kv_lengths=[4, 2])
    assert list(cache.lengths.values() if ids else cache.lengths) == [4, 2]
    right = cache.attend(*ids, query, is_causal=True, q_offset=np.array([1, 0]))
    np.testing.assert_array_equal(cache.attend(*ids, query, is_causal=True, q_offset=[1, 0]), right)
    values = [[1, 2, 3], [[1, 2]], [], [5, 1], [-1, 1], [[1], [1, 2]], [1 << 63, 1 << 63]]
    types = [[4.0, 2.0], ["4", "2"], [True, False]]
    for wrong, error in [*((x, ValueError) for x in values), *((x, TypeError) for x in types)]:
        with pytest.raises(error, match=r"kv_lengths must .*got"):
            cache.append(*ids, k, k, kv_lengths=wrong)
    if not ids:
        cache.truncate([3, 1])
        np.testing.assert_array_equal(cache.lengths, [3, 1])


def test_views(rng, stored):
    cache = fastattn.KVCache(2, 1, 6, 4, dtype=stored, value_dim=3)
    k, v = normal(rng, 2, 1, 5, 4), normal(rng, 2, 1, 5, 3)
    cache.append(k, v, kv_lengths=np.array([5, 2]))
    if stored == "int8":
        with pytest.raises(ValueError, match=r"dtype must not be int8 for keys .* got"):
            _ = cache.keys
        return
    assert cache.keys.shape == (2, 1, 5, 4)
    assert cache.values.shape == (2, 1, 5, 3)
    assert np.shares_memory(cache.keys, cache._store.key_pages)
    np.testing.assert_array_equal(cache.values[0], v[0].astype(numpy_type(stored)))
    ring = fastattn.KVCache(1, 1, 6, 4, window=3, dtype=stored)
    ring.append(*ones(2, 1, 1, 6, 4))
    assert ring.keys.shape == (1, 1, 6, 4)
    ring.append(*ones(2, 1, 1, 1, 4))
    with pytest.raises(ValueError, match=r"window must not have dropped tokens for values .* got"):
        _ = ring.values


# Pages


def test_a_shared_page_is_never_written(target, rng, stored):
    cache = fastattn.PagedKVCache(20, 4, 2, 8, dtype=stored)
    first = cache.allocate()
    cache.append([first], *normal(rng, 2, 1, 2, 10, 8))
    shared = cache.block_table(first)
    before = [x[shared].copy() for x in cache._store.arrays()]
    forks = [cache.fork(first) for _ in range(3)]
    cache.append(forks, *normal(rng, 2, 3, 2, 5, 8))
    cache.truncate(forks[0], 2)
    cache.append(forks[:1], *normal(rng, 2, 1, 2, 5, 8))
    assert cache.block_table(forks[0])[0] != shared[0]
    cache.truncate(forks[1], 8)
    cache.append([forks[1]], *normal(rng, 2, 1, 2, 1, 8))
    np.testing.assert_array_equal(cache.block_table(forks[1])[:2], shared[:2])
    cache.free(forks[2])
    for x, expected in zip(cache._store.arrays(), before, strict=True):
        np.testing.assert_array_equal(x[shared], expected)


def test_the_last_to_leave_a_page_keeps_it():
    cache = fastattn.PagedKVCache(3, 4, 1, 2)
    one = cache.allocate()
    cache.append([one], *ones(2, 1, 1, 3, 2))
    two, three = cache.fork(one), cache.fork(one)
    cache.append([one, two, three], *ones(2, 3, 1, 1, 2))  # two copies are all that there is room for
    assert sorted(cache.block_table(id)[0] for id in (one, two, three)) == [0, 1, 2]
    assert cache.free_pages == 0


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_out_of_pages_leaves_all_as_it_was(rng, page_size):
    cache = fastattn.PagedKVCache(10, page_size, 2, 8)
    one = cache.allocate()
    cache.append([one], *normal(rng, 2, 1, 2, 4 * page_size + (page_size > 1), 8))
    two, empty = cache.fork(one), cache.allocate()
    before = snapshot(cache)
    with pytest.raises(fastattn.OutOfPages, match=r"num_pages must leave \d+ free pages .* got \d free of 10"):
        cache.append([two, empty, one], *normal(rng, 2, 3, 2, 3 * page_size, 8))
    assert issubclass(fastattn.OutOfPages, MemoryError)
    assert_unchanged(cache, before)
    with pytest.raises(fastattn.OutOfPages):
        cache.append([empty], *np.broadcast_to(np.float32(0), (2, 1, 2, 1 << 40, 8)))
    assert_unchanged(cache, before)
    cache.append([two], *normal(rng, 2, 1, 2, 3, 8))


@pytest.mark.parametrize("page_size", [2, 3, 16])
def test_pages_are_still_shared_after_out_of_pages(rng, stored, page_size):
    """A refused append keeps no reference: otherwise the next one writes to a page that another sequence reads."""
    cache = fastattn.PagedKVCache(8, page_size, 2, 8, dtype=stored)
    first = cache.allocate()
    rows = {first: normal(rng, 2, 1, 2, 2 * page_size + 1, 8)}
    cache.append([first], *rows[first])
    for _ in range(3):
        fork = cache.fork(first)
        rows[fork] = rows[first]
    ids = list(rows)
    for refused in (ids[1:2], ids[::-1], ids[:2], ids):
        with pytest.raises(fastattn.OutOfPages):
            cache.append(refused, *normal(rng, 2, len(refused), 2, 9 * page_size, 8))
    for id in (ids[2], ids[0], ids[3], ids[1]):  # alone, so that what is left of references tells
        new = normal(rng, 2, 1, 2, 1, 8)
        cache.append([id], *new)
        rows[id] = np.concatenate([rows[id], new], axis=3)
        for other, expected in rows.items():
            with telling(page_size=page_size, appended_to=id, read=other):
                held = held_rows(cache._store, cache.block_table(other), 0, cache.lengths[other])
                for x, right in zip(held, expected, strict=True):
                    np.testing.assert_array_equal(x, as_stored(right[0], stored))
    for id in ids:
        cache.free(id)
    assert cache.free_pages == 8


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_refused_append_gives_pages_back(rng, dtype, order):
    """Also those of sequences that share a last page and end at different places in it."""
    cache = fastattn.PagedKVCache(20, 4, 2, 8, dtype=dtype)
    one = cache.allocate()
    cache.append([one], *normal(rng, 2, 1, 2, 11, 8))
    two, three = cache.fork(one), cache.fork(one)
    cache.truncate(two, 9)
    cache.truncate(three, 10)
    ids = [[one, two, three][n] for n in order]
    k = normal(rng, 3, 2, 9, 8)
    bad = k.copy()
    bad[1, 1, 8, 3] = np.inf if dtype == "int8" else 1e5
    before, tables = snapshot(cache), {id: cache.block_table(id) for id in ids}
    for pair in ((bad, k), (k, bad)):
        with pytest.raises(ValueError, match=r"(key|value) must (be finite|not exceed) .* got"):
            cache.append(ids, *pair)
        assert_unchanged(cache, before)
    other = copy.deepcopy(cache)
    for x in (cache, other):
        x.append(ids, k, -k)
        x.allocate()
    for id in ids:  # pages are taken in the order in which they would have been
        np.testing.assert_array_equal(cache.block_table(id), other.block_table(id))
        assert len(cache.block_table(id)) > len(tables[id])
        cache.free(id)
    assert cache.free_pages == 20


MEMORY = """
    import resource, threading, zlib
    import numpy as np
    import fastattn

    size = 1 << 21  # rows whose scratch is 8 MB and more

    def ones(tokens):
        return np.broadcast_to(np.float32(1), (2, 1, tokens, size))

    cache = {cache}
    ids = [[cache.allocate() for _ in range(2)]] if hasattr(cache, "allocate") else []

    def everything():
        parts = [x[part] for x in cache._store.arrays() for part in cache._store.used_parts()]
        state = [x.tolist() for x in cache._store.state().values()]
        return state, getattr(cache, "free_pages", 0), [zlib.crc32(x.view(np.uint8)) for x in parts]

    def in_a_thread(work):  # whose scratch ends with it
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def limit(room):
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, -1))

    fastattn.softmax(np.ones((4000, 1000)), num_threads=2)  # the threads are there
    in_a_thread(lambda: cache.append(*ids, ones(3), ones(3), kv_lengths=[3, 2]))
    before = everything()
    limit(4 << 20)
    try:
        {call}
        print("done")
    except MemoryError as error:
        print("MemoryError")
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert everything() == before, "not as it was"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS to mean something")
@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize(
    ("cache", "call"),
    [
        ("KVCache(2, 1, 4, size, dtype={dtype!r})", "cache.append(*ids, ones(1), ones(1))"),
        ("KVCache(2, 1, 3, size, dtype={dtype!r}, window=3)", "cache.append(*ids, ones(1), ones(1))"),
        ("KVCache(2, 1, 3, size, dtype={dtype!r})", "cache.reorder([1, 0])"),
        ("PagedKVCache(6, 2, 1, size, dtype={dtype!r})", "cache.append(*ids, ones(2), ones(2))"),
    ],
    ids=["plain", "ring", "reorder", "paged"],
)
def test_memory_that_ends_leaves_all_as_it_was(dtype, cache, call):
    """Scratch memory, or that of a sequence which changes places with another one."""
    code = MEMORY.format(cache="fastattn." + cache.format(dtype=dtype), call=call)
    frugal = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}  # no memory is kept for later
    assert output(code, OMP_NUM_THREADS="2", **frugal) == "MemoryError"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS to mean something")
def test_one_thread_has_memory_enough():
    """The one that calls takes the items of those that get none."""
    append = "cache.append(*ids, ones(1), ones(1), num_threads=2)"
    code = MEMORY.format(cache="fastattn.KVCache(2, 1, 9, size, dtype='float16')", call=append)
    code = code.replace("in_a_thread(lambda: ", "(lambda work: work())(lambda: ")
    found = "print(cache.lengths, np.unique(cache.keys[0]))"
    code = code.replace('assert everything() == before, "not as it was"', found)
    frugal = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    assert output(code, OMP_NUM_THREADS="2", **frugal).split("\n") == ["done", "[4 3] [1.]"]


def test_ids_and_tables_grow(rng):
    cache = fastattn.PagedKVCache(300, 1, 1, 2)
    ids = [cache.allocate() for _ in range(100)]
    k = normal(rng, 100, 1, 2, 2)
    cache.append(np.array(ids), k, k)
    cache.append(ids[50:51], *normal(rng, 2, 1, 1, 100, 2))
    assert cache.lengths == {id: 102 if id == 50 else 2 for id in ids}
    assert cache.free_pages == 0
    query = ones(100, 1, 1, 2)
    out = cache.attend(ids, query)
    expected = fastattn.scaled_dot_product_attention(query[:50], k[:50], k[:50])
    np.testing.assert_allclose(out[:50], expected, rtol=0, atol=1e-6)


# Files


def some_cache(kind, dtype="float32"):
    rng = np.random.default_rng(0)
    if kind == "PagedKVCache":
        cache = fastattn.PagedKVCache(9, 3, 2, 5, dtype=dtype, value_dim=7)
        ids = [cache.allocate() for _ in range(3)]
        cache.free(ids.pop(1))
        cache.append(ids, *(normal(rng, 2, 2, 4, size) for size in (5, 7)))
        cache.fork(ids[0])
        return cache
    cache = fastattn.KVCache(2, 2, 9, 5, dtype=dtype, value_dim=7, window=4 if kind == "ring" else None)
    cache.append(*(normal(rng, 2, 2, 7, size) for size in (5, 7)), kv_lengths=np.array([7, 3]))
    if kind == "ring":
        cache.append(*(normal(rng, 2, 2, 5, size) for size in (5, 7)))
    return cache


def attended(cache):
    kind = np.float64 if cache._store.dtype == np.float64 else np.float32
    if isinstance(cache, fastattn.PagedKVCache):
        return cache.attend(list(cache.lengths), ones(len(cache.lengths), 4, 1, 5, dtype=kind))
    return cache.attend(ones(2, 4, 1, 5, dtype=kind))


KINDS = ["plain", "ring", "PagedKVCache"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap_mode", [None, "r", "c"])
def test_saved_and_loaded(tmp_path, stored, kind, mmap_mode):
    cache, path = some_cache(kind, stored), tmp_path / "cache"
    cache.save(path)
    loaded = type(cache).load(str(path), mmap_mode)
    assert repr(loaded) == repr(cache)
    assert [x.name for x in tmp_path.iterdir()] == ["cache"]
    np.testing.assert_array_equal(attended(loaded), attended(cache))
    ids = [list(cache.lengths)] if kind == "PagedKVCache" else []
    new = [ones(len(cache.lengths), 2, 1, size) for size in (5, 7)]
    if mmap_mode == "r":
        before = snapshot(loaded)
        with pytest.raises(ValueError, match=r"mmap_mode must .* got 'r'"):
            loaded.append(*ids, *new)
        assert_unchanged(loaded, before)
        return
    written = path.read_bytes()
    for x in (cache, loaded):
        x.append(*ids, *new)
    np.testing.assert_array_equal(attended(loaded), attended(cache))
    assert path.read_bytes() == written
    if kind == "PagedKVCache":
        assert loaded.free_pages == cache.free_pages
        assert loaded.allocate() == cache.allocate()


def test_a_file_is_numpys_own(tmp_path):
    cache, path = some_cache("plain"), tmp_path / "cache"
    cache.save(path)
    arrays = []
    with open(path, "rb") as file:
        while file.peek(1):
            arrays.append(np.load(file))
            assert file.tell() % 64 == 0 or len(arrays) % 2
    assert json.loads(arrays[0].tobytes())["parameters"]["max_length"] == 9
    np.testing.assert_array_equal(arrays[2], [7, 3])
    np.testing.assert_array_equal(arrays[8][:, :, :7], np.where(arrays[8][:, :, :7] == 0, 0, cache.keys))


def test_a_mapped_file_may_be_replaced(tmp_path):
    cache, path = some_cache("plain"), tmp_path / "cache"
    cache.save(path)
    mapped = fastattn.KVCache.load(path, "r")
    expected = attended(mapped)
    mapped.save(path)
    some_cache("ring").save(path)
    np.testing.assert_array_equal(attended(mapped), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap_mode", [None, "r", "c"])
def test_a_file_cut_short_anywhere(tmp_path, kind, mmap_mode):
    cache, path = some_cache(kind, "int8"), tmp_path / "cache"
    cache.save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
            type(cache).load(path, mmap_mode)
    path.write_bytes(whole + b".")
    with pytest.raises(ValueError, match="data after its end"):
        type(cache).load(path, mmap_mode)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x93NUMPY", b"PK\x03\x04" + bytes(100), b"\x93NUMPY\x01\x00\xff\xff{"]
)
def test_foreign_files(tmp_path, content):
    path = tmp_path / "cache"
    path.write_bytes(content)
    for kind in (fastattn.KVCache, fastattn.PagedKVCache):
        with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
            kind.load(path)


@pytest.mark.parametrize(
    "x", [np.arange(5), np.array([{}], dtype=object), np.array(1.5), np.zeros((2, 3), "S4")], ids=repr
)
def test_foreign_arrays(tmp_path, x):
    path = tmp_path / "cache.npy"
    np.save(path, x)
    with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
        fastattn.KVCache.load(path)


def test_another_kind_of_cache(tmp_path):
    some_cache("plain").save(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"PagedKVCache.save wrote, got .* holds a KVCache"):
        fastattn.PagedKVCache.load(tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        fastattn.KVCache.load(tmp_path / "no cache")
    with pytest.raises(ValueError, match=r"mmap_mode must .* got 'r\+'"):
        fastattn.KVCache.load(tmp_path / "cache", "r+")


def whole_file(cache, tmp_path):
    cache.save(tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def _loaded(kind, path, mmap_mode):
    """(a cache, None), or (None, what the ValueError says)."""
    try:
        return kind.load(path, mmap_mode), None
    except ValueError as error:
        return None, str(error)


def changed(rng, content):
    """Bytes of a file, a few of them others: bits, numbers at the ends of their range, pieces left out or repeated."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(content)))
        kind = rng.integers(5)
        if kind == 0:
            content[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            content[at] = rng.choice(np.frombuffer(b"0123456789-{}[]()',.: \n\xff\x00LeE", np.uint8))
        elif kind == 2:
            number = rng.choice([-(1 << 63), -1, 0, 1, 1 << 31, 1 << 48, 1 << 62, (1 << 63) - 1])
            content[at // 8 * 8 : at // 8 * 8 + 8] = int(number).to_bytes(8, "little", signed=True)
        elif kind == 3:
            del content[at : at + int(rng.integers(1, 70))]
        else:
            content[at:at] = content[at : at + int(rng.integers(1, 70))]
    return bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_refused_or_taken_at_its_word(tmp_path, kind, dtype):
    """What is loaded works and, saved again, says what the file said; what the file need not say stands as it was."""
    cache, path, again = some_cache(kind, dtype), tmp_path / "cache", tmp_path / "again"
    whole = whole_file(cache, tmp_path)
    taken = 0
    for seed in range(int(os.environ.get("FASTATTN_EXAMPLES", 250))):
        rng = np.random.default_rng(seed)
        content = changed(rng, whole)
        path.write_bytes(content)
        loaded, refusal = _loaded(type(cache), path, rng.choice([None, "c"]))
        if loaded is None:
            assert re.match(r"path must be a complete file that .* wrote, got '.*cache'", refusal), f"seed {seed}"
            continue
        taken += 1
        loaded.save(again)
        saved = np.frombuffer(again.read_bytes(), np.uint8)
        assert len(saved) == len(content), f"seed {seed}"
        said, before = np.frombuffer(content, np.uint8), np.frombuffer(whole, np.uint8)
        assert ((saved == said) | (saved == before) | (saved == 0)).all(), f"seed {seed}"  # 0: no longer in use
        attended(loaded)
        with contextlib.suppress(fastattn.OutOfPages):
            some = [list(loaded.lengths)] if kind == "PagedKVCache" else []
            loaded.append(*some, *(ones(len(loaded.lengths), 2, 1, size) for size in (5, 7)))
    assert taken > 10


TEXTS = {
    "deep": "[" * 3000,
    "deep parameters": '{"format": "fastattn cache 1", "kind": "KVCache", "parameters": ' + "[" * 3000,
    "list": "[]",
    "text": '"format"',
    "not UTF-8": b"\xff\xfe",
    "nothing in it": "{}",
    "no kind": '{"format": "fastattn cache 1"}',
    "large number": '{"format": ' + "9" * 4000 + "}",
}


@pytest.mark.parametrize("text", TEXTS)
def test_foreign_texts(tmp_path, text):
    text = TEXTS[text] if isinstance(TEXTS[text], bytes) else TEXTS[text].encode()
    path = tmp_path / "cache"
    with open(path, "wb") as file:
        _array_file._write_arrays(file, [(np.frombuffer(text, np.uint8), None)], with_holes=False)
    for kind in (fastattn.KVCache, fastattn.PagedKVCache):
        with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
            kind.load(path)


HEADERS = [
    (b"'<i8'", b"'   '"),
    (b"'<i8'", b"''   "),
    (b"'<i8'", b"'|O8'"),
    (b"'<i8'", b"'>i8'"),
    (b"'<i8'", b"'<f8'"),
    (b"(2,)", b"(2.)"),
    (b"(2,)", b"(-2)"),
    (b"(2,)", b"('')"),
    (b"(2,)", b'"""a'),
    (b"(2,)", b"(((("),
    (b"(2,), } ", b"(2,2), }"),
    (b"(2,), }                     ", b"(4294967296,), }            "),
    (b"(2,), }                     ", b"(9223372036854775807,), }   "),
    (b"(2,), }                     ", b"(99999999999999999999,), }  "),
    (b"(2,), }                     ", b"(0, 4611686018427387904,), }"),
    (b"False", b"True "),
    (b"'shape'", b"'shapE'"),
    (b"NUMPY\x01", b"NUMPY\x02"),
]


@pytest.mark.parametrize(("right", "wrong"), HEADERS, ids=repr)
def test_headers_that_are_not_right(tmp_path, right, wrong):
    cache, path = some_cache("plain"), tmp_path / "cache"
    start, rest = whole_file(cache, tmp_path).split(b"\n", 1)  # the first array is a text
    assert right in rest
    path.write_bytes(start + b"\n" + rest.replace(right, wrong, 1))
    with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
        fastattn.KVCache.load(path)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize(
    ("kind", "parameters", "state"),
    [
        ("plain", {"max_length": 1 << 33}, {}),
        ("plain", {"batch": 1 << 33}, {}),
        ("plain", {"head_dim": 1 << 62}, {}),
        ("plain", {"num_kv_heads": (1 << 63) - 1}, {}),
        ("ring", {"max_length": (1 << 63) - 1, "window": (1 << 63) - 1}, {}),
        ("PagedKVCache", {"num_pages": 1 << 33}, {}),
        ("PagedKVCache", {"page_size": 1 << 33}, {}),
        ("PagedKVCache", {"page_size": (1 << 63) - 1}, {}),
        ("empty", {}, {"tables": np.zeros((0, 1 << 34), np.int64)}),
        ("empty", {}, {"tables": np.zeros((0, 1 << 59), np.int64)}),
    ],
    ids=str,
)
def test_a_small_file_asks_for_little_memory(tmp_path, kind, parameters, state, mmap_mode):
    cache = fastattn.PagedKVCache(2, 2, 1, 2) if kind == "empty" else some_cache(kind)
    spoiled = _Spoiled(cache._store, cache._store.state() | state, cache._store.arrays())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
            saved_and_loaded(cache, spoiled, tmp_path, mmap_mode, **parameters)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_threads_that_save_to_one_path(tmp_path):
    """At any time there is a whole file, one of those that are saved."""
    path, caches = tmp_path / "cache", [some_cache("plain"), some_cache("ring")]
    expected = [attended(cache) for cache in caches]
    caches[0].save(path)
    errors = []

    def work(cache):
        try:
            for _ in range(40):
                cache.save(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(caches[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = attended(fastattn.KVCache.load(path))
        assert any(np.array_equal(found, x) for x in expected)
    assert not errors
    assert [x.name for x in tmp_path.iterdir()] == ["cache"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_written_to(tmp_path):
    cache, path = some_cache("PagedKVCache"), tmp_path / "pipe"
    whole = whole_file(cache, tmp_path)
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        cache.save(path)
        assert os.read(end, len(whole) + 1) == whole  # zeros for holes
    finally:
        os.close(end)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["pipe", "whole"]


@pytest.mark.skipif(sys.platform == "win32", reason="links are not for everybody")
def test_links_folders_and_permissions(tmp_path):
    cache, folder = some_cache("plain"), tmp_path / "folder"
    folder.mkdir()
    link, plain = tmp_path / "link", tmp_path / "plain"
    for target in ("folder/cache", "folder/cache", "folder/other"):  # of which the last one is not there yet
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        cache.save(link)
        assert link.is_symlink()
        np.testing.assert_array_equal(attended(fastattn.KVCache.load(tmp_path / target)), attended(cache))
    plain.write_bytes(b"")
    assert (folder / "cache").stat().st_mode == plain.stat().st_mode
    with pytest.raises(IsADirectoryError):
        cache.save(folder)
    for load in (fastattn.KVCache.load, fastattn.PagedKVCache.load):
        with pytest.raises(IsADirectoryError):
            load(folder)
    longest = folder / ("x" * 255)
    cache.save(longest)
    assert sorted(x.name for x in folder.iterdir()) == ["cache", "other", longest.name]


def test_a_save_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    cache, path = some_cache("plain"), tmp_path / "cache"
    cache.save(path)
    before = path.read_bytes()
    cache.reset()
    monkeypatch.setattr(os, "replace", _no_room)
    with pytest.raises(OSError, match="no room"):
        cache.save(path)
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["cache"]


def _no_room(*arguments):
    raise OSError("no room")


STATES = [
    ("plain", "lengths", 10),
    ("plain", "lengths", -1),
    ("plain", "firsts", 1),
    ("ring", "lengths", 100),
    ("ring", "lengths", (1 << 63) - 1),
    ("ring", "lengths", -(1 << 63)),
    ("ring", "firsts", -1),
    ("ring", "firsts", 1 << 62),
    ("ring", "firsts", -(1 << 63)),
    ("plain", "padding", 1),
    ("plain", "padding", -1),
    ("ring", "padding", -(1 << 63)),
    ("ring", "padding", (1 << 63) - 1),
    ("PagedKVCache", "padding", 5),
    ("PagedKVCache", "lengths", (1 << 63) - 1),
    ("PagedKVCache", "lengths", -(1 << 63)),
    ("PagedKVCache", "next_id", (1 << 63) - 1),
    ("PagedKVCache", "next_id", -(1 << 63)),
    ("PagedKVCache", "tables", 9),
    ("PagedKVCache", "tables", -1),
    ("PagedKVCache", "tables", 1 << 62),
    ("PagedKVCache", "lengths", 100),
    ("PagedKVCache", "lengths", -1),
    ("PagedKVCache", "ids", -1),
    ("PagedKVCache", "next_id", 1),
]


@pytest.mark.parametrize(("kind", "name", "number"), STATES)
def test_tables_that_point_outside(tmp_path, kind, name, number):
    cache = some_cache(kind)
    state = cache._store.state()
    state[name] = state[name].copy()
    state[name].reshape(-1)[0] = number
    spoiled = _Spoiled(cache._store, state, cache._store.arrays())
    with pytest.raises(ValueError, match=r"tables do not match its pages"):
        saved_and_loaded(cache, spoiled, tmp_path)


@pytest.mark.parametrize("rows", [0, 3, 8])
@pytest.mark.parametrize("length", [(1 << 63) - 1, (1 << 62) + 1, (1 << 48) + 1])
def test_streams_that_are_longer_than_any(tmp_path, length, rows):
    """Whose next positions would not fit 64 bits."""
    cache = some_cache("ring")
    state = cache._store.state()
    state |= {"lengths": np.full(2, length), "firsts": np.full(2, length - rows)}
    with pytest.raises(ValueError, match=r"tables do not match its pages"):
        saved_and_loaded(cache, _Spoiled(cache._store, state, cache._store.arrays()), tmp_path)


def test_the_longest_stream(tmp_path, rng):
    """A ring at the end of its positions works, and then takes no more."""
    cache = some_cache("ring")
    most = 1 << 48
    state = cache._store.state() | {"lengths": np.full(2, most - 3), "firsts": np.full(2, most - 9)}
    state["padding"] = np.zeros((2, 3), np.int64)
    loaded = saved_and_loaded(cache, _Spoiled(cache._store, state, cache._store.arrays()), tmp_path)
    k, v = normal(rng, 2, 2, 3, 5), normal(rng, 2, 2, 3, 7)
    loaded.append(k, v)
    held = loaded._store.key_pages, loaded._store.value_pages
    for x, pages in zip((k, v), held, strict=True):
        np.testing.assert_array_equal(pages[:, :, np.arange(most - 3, most) % 9], x)
    before = snapshot(loaded)
    with pytest.raises(ValueError, match=rf"key must hold at most 0 tokens for sequence 0, .* {most} of the maximum"):
        loaded.append(k[:, :, :1], v[:, :, :1])
    assert_unchanged(loaded, before)
    query = normal(rng, 2, 4, 1, 5)
    own = np.arange(most - 4, most) % 9
    expected = fastattn.scaled_dot_product_attention(query, *(x[:, :, own] for x in held))
    np.testing.assert_allclose(loaded.attend(query), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [2, 3])
def test_scales_that_are_not_finite(tmp_path, kind, bad, which):
    cache = some_cache(kind, "int8")
    arrays = [x.copy() for x in cache._store.arrays()]
    arrays[which][0, 1, 0] = bad
    with pytest.raises(ValueError, match=r"scales that are not finite"):
        saved_and_loaded(cache, _Spoiled(cache._store, cache._store.state(), arrays), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("head_dim", 6), ("dtype", "float16"), ("max_length", 10), ("batch", 0), ("x", 1)]
)
def test_parameters_that_do_not_fit(tmp_path, name, value):
    cache = some_cache("plain")
    spoiled = _Spoiled(cache._store, cache._store.state(), cache._store.arrays())
    with pytest.raises(ValueError, match=r"path must be a complete file .* got"):
        saved_and_loaded(cache, spoiled, tmp_path, **{name: value})


class _Spoiled:
    """Stands in for a store when it is written."""

    def __init__(self, store, state, arrays):
        self.state, self.arrays, self.used_parts = lambda: state, lambda: arrays, store.used_parts


def saved_and_loaded(cache, spoiled, tmp_path, mmap_mode=None, **more):
    path = tmp_path / "cache"
    _cache_file.write(path, type(cache).__name__, cache._store.parameters() | more, spoiled)
    return type(cache).load(path, mmap_mode)


# Bad input


GOOD = {"batch": 2, "num_kv_heads": 2, "max_length": 9, "head_dim": 8}
GOOD_PAGES = {"num_pages": 5, "page_size": 3, "num_kv_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("name", [*GOOD, "window", "value_dim"])
@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_sizes(name, wrong, error):
    with pytest.raises(error, match=rf"{name} must be .*got"):
        fastattn.KVCache(**GOOD | {name: wrong})


@pytest.mark.parametrize("name", [*GOOD_PAGES, "value_dim"])
@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (None, TypeError)])
def test_sizes_of_pages(name, wrong, error):
    if name == "value_dim" and wrong is None:
        return
    with pytest.raises(error, match=rf"{name} must be .*got"):
        fastattn.PagedKVCache(**GOOD_PAGES | {name: wrong})


def test_a_window_that_cannot_be_held():
    with pytest.raises(ValueError, match="window must be at most max_length, 9, got 10"):
        fastattn.KVCache(**GOOD, window=10)


@pytest.mark.parametrize(
    "dtype", ["int16", "uint8", "bool", "complex64", "O", "V2", ">f4", "f4,f4", "nonsense", "", None, 3, object, int]
)
def test_dtypes_that_cannot_be_stored(dtype):
    with pytest.raises(TypeError, match=r"dtype must be float32, .* got"):
        fastattn.KVCache(**GOOD, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", np.float16, np.dtype(np.float64), "int8", np.int8, "f2", "half", float])
def test_dtypes_and_their_names(dtype):
    assert fastattn.KVCache(**GOOD, dtype=dtype)._store.dtype == np.dtype(dtype)


def test_bfloat16_by_name_and_type():
    import ml_dtypes

    for dtype in ("bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        assert fastattn.PagedKVCache(**GOOD_PAGES, dtype=dtype)._store.dtype == ml_dtypes.bfloat16


def test_bfloat16_without_its_package():
    code = """
    import sys
    import fastattn
    cache = fastattn.KVCache(1, 1, 1, 1, dtype="float16")
    assert "ml_dtypes" not in sys.modules

    class Uninstalled:
        def find_spec(name, path, target=None):
            if name == "ml_dtypes":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Uninstalled)
    try:
        fastattn.KVCache(1, 1, 1, 1, dtype="bfloat16")
    except ValueError as error:
        print(error)
    """
    assert "pip install 'fastattn[bfloat16]'" in output(code)


def test_bfloat16_imports_its_package_when_asked():
    code = "import fastattn; print(fastattn.KVCache(1, 1, 1, 1, dtype='bfloat16').keys.dtype)"
    assert output(code) == "bfloat16"


K = (2, 2, 3, 8)
APPENDS = [
    ("key", ones(2, 2, 3, 7), ValueError, r"key must have shape \(2, 2, tokens, 8\), got shape \(2, 2, 3, 7\)"),
    ("key", ones(2, 1, 3, 8), ValueError, "key must have shape"),
    ("key", ones(1, 2, 3, 8), ValueError, "key must have shape"),
    ("key", ones(2, 3, 8), ValueError, "key must have shape"),
    ("value", ones(2, 2, 4, 8), ValueError, r"value must have shape \(2, 2, 3, 8\), got"),
    ("value", ones(2, 2, 3, 7), ValueError, "value must have shape"),
    ("key", ones(*K, dtype=np.int8), TypeError, "key must have dtype float32, .* got dtype int8"),
    ("value", ones(*K, dtype=np.int64), TypeError, "value must have dtype .* got dtype int64"),
    ("value", ones(*K, dtype=">f4"), TypeError, "value must have dtype .* got dtype >f4"),
    ("value", ones(*K, dtype=complex), TypeError, "value must have dtype .* got dtype complex128"),
    ("key", ones(*K).tolist(), TypeError, "key must be a numpy.ndarray, got list"),
    ("kv_lengths", 4, ValueError, "kv_lengths must lie between 0 and the number of key's tokens, 3, got 4"),
    ("kv_lengths", -1, ValueError, "kv_lengths must lie .* got -1"),
    ("kv_lengths", np.array([1, 4]), ValueError, "kv_lengths must lie .* got 4"),
    ("kv_lengths", np.array([1, 2, 3]), ValueError, "kv_lengths must have a shape"),
    ("kv_lengths", np.array([1.0, 2.0]), TypeError, "kv_lengths must have an integer dtype"),
    ("kv_lengths", "two", TypeError, "kv_lengths must be"),
    ("cos", None, TypeError, "cos must be a numpy.ndarray, got NoneType"),
    ("sin", None, TypeError, "sin must be a numpy.ndarray, got NoneType"),
    ("cos", ones(4, 4), ValueError, "cos must have shape .* at least 5 positions"),
    ("cos", ones(9, 5), ValueError, "cos must have shape .* at most 4 pairs"),
    ("cos", ones(9), ValueError, "cos must have shape"),
    ("cos", ones(9, 4, dtype=np.float64), TypeError, "cos must not be wider than .*key"),
    ("sin", ones(9, 3), ValueError, "sin must have cos's shape"),
    ("sin", ones(9, 4, dtype=np.float16), TypeError, "sin must have dtype float32, like cos, got"),
    ("interleaved", 1, TypeError, "interleaved must be a bool, got int"),
    ("num_threads", 0, ValueError, "num_threads must be at least 1, got 0"),
]


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(("name", "wrong", "error", "message"), APPENDS)
def test_bad_appends(paged, name, wrong, error, message):
    cache = fastattn.PagedKVCache(9, 3, 2, 8) if paged else fastattn.KVCache(2, 2, 9, 8)
    ids = [[cache.allocate(), cache.allocate()]] if paged else []
    cache.append(*ids, ones(2, 2, 2, 8), ones(2, 2, 2, 8))
    before = snapshot(cache)
    table = np.arange(36, dtype=np.float32).reshape(9, 4)
    good = {"key": 2 * ones(*K), "value": 2 * ones(*K), "cos": table, "sin": table}
    with pytest.raises(error, match=message):
        cache.append(*ids, **good | {name: wrong})
    assert_unchanged(cache, before)
    cache.append(*ids, **good)


def test_appending_past_the_end():
    cache = fastattn.KVCache(2, 2, 9, 8)
    cache.append(*ones(2, 2, 2, 7, 8), kv_lengths=np.array([7, 2]))
    before = snapshot(cache)
    with pytest.raises(
        ValueError, match="key must hold at most 2 tokens for sequence 0, which has 7 of max_length 9, got 3"
    ):
        cache.append(*ones(2, 2, 2, 3, 8))
    assert_unchanged(cache, before)
    cache.append(*ones(2, 2, 2, 7, 8), kv_lengths=np.array([2, 7]))


QUERIES = [
    ({"query": ones(2, 3, 1, 8)}, ValueError, "query must have shape"),
    ({"query": ones(2, 4, 1, 7)}, ValueError, "query must have shape"),
    ({"query": ones(1, 4, 1, 8)}, ValueError, "query must have shape"),
    ({"query": ones(2, 4, 8)}, ValueError, "query must have shape"),
    ({"query": ones(2, 4, 1, 8, dtype=np.int32)}, TypeError, "query must have dtype"),
    ({"query": ones(2, 4, 1, 8, dtype=np.float16)}, TypeError, "query must not be narrower than the cache"),
    ({"attn_mask": np.ones((1, 4), bool)}, ValueError, "attn_mask must have a shape"),
    ({"window": 3}, TypeError, "window must be a pair"),
    ({"window": (-1, 0)}, ValueError, "window must be"),
    ({"q_offset": 1.5}, TypeError, "q_offset must be"),
    ({"softcap": 0.0}, ValueError, "softcap must be greater than 0"),
    ({"sinks": ones(3)}, ValueError, "sinks must have shape"),
    ({"out": ones(2, 4, 2, 8)}, ValueError, "out must have shape"),
    ({"is_causal": 1}, TypeError, "is_causal must be a bool"),
    ({"num_threads": "2"}, TypeError, "num_threads must be"),
]


@pytest.mark.parametrize("kind", ["plain", "ring", "paged"])
@pytest.mark.parametrize(("wrong", "error", "message"), QUERIES)
def test_bad_queries(kind, wrong, error, message):
    cache = fastattn.KVCache(2, 2, 9, 8, window=5 if kind == "ring" else None)
    ids = []
    if kind == "paged":
        cache = fastattn.PagedKVCache(9, 3, 2, 8)
        ids = [[cache.allocate(), cache.allocate()]]
    cache.append(*ids, *ones(2, *K))
    with pytest.raises(error, match=message):
        cache.attend(*ids, **{"query": ones(2, 4, 1, 8)} | wrong)


RINGS = [
    ({"window": (5, 0)}, "window must be narrower than the cache's own, 5, got 5"),
    ({"attn_mask": np.ones((1, 1), bool)}, "attn_mask must be None once the window has dropped tokens, got an array"),
    ({"q_offset": 0}, "query must be at position 7 or later in sequence 0, whose keys before 3 were dropped, got 0"),
]


@pytest.mark.parametrize(("wrong", "message"), RINGS)
def test_what_a_ring_cannot_do(wrong, message):
    cache = fastattn.KVCache(1, 1, 9, 4, window=5)
    cache.append(*ones(2, 1, 1, 12, 4))
    with pytest.raises(ValueError, match=message):
        cache.attend(ones(1, 1, 1, 4), **wrong)
    with pytest.raises(ValueError, match=r"length must be 0 or, for sequence 0, at least 7, got 6: earlier keys"):
        cache.truncate(6)
    cache.truncate(7)


LENGTHS = [(8, ValueError), (-1, ValueError), (np.array([7, 3]), ValueError), (np.array([1, 1, 1]), ValueError)]
LENGTHS += [(1.0, TypeError), (None, TypeError), ([1.0, 2.0], TypeError), ([7, 3], ValueError), ([7], ValueError)]


@pytest.mark.parametrize(("length", "error"), LENGTHS)
def test_bad_truncations(length, error):
    cache = fastattn.KVCache(2, 2, 9, 8)
    cache.append(*ones(2, 2, 2, 7, 8), kv_lengths=np.array([7, 2]))
    with pytest.raises(error, match=r"length must .*got"):
        cache.truncate(length)
    np.testing.assert_array_equal(cache.lengths, [7, 2])


@pytest.mark.parametrize(
    ("indices", "error"),
    [([0], ValueError), ([0, 2], ValueError), ([-1, 0], ValueError), ([0.0, 1.0], TypeError), (None, TypeError)],
)
def test_bad_orders(indices, error):
    cache = fastattn.KVCache(2, 2, 9, 8)
    with pytest.raises(error, match=r"indices must .*got"):
        cache.reorder(indices)


def test_bad_ids():
    cache = fastattn.PagedKVCache(9, 3, 2, 8)
    one, two = cache.allocate(), cache.allocate()
    cache.append([one, two], *ones(2, 2, 2, 4, 8))
    cache.free(two)
    before = snapshot(cache)
    k = ones(2, 2, 1, 8)
    for wrong in (two, 99, -1):
        for call in (
            lambda wrong: cache.free(wrong),
            lambda wrong: cache.fork(wrong),
            lambda wrong: cache.truncate(wrong, 0),
            lambda wrong: cache.block_table(wrong),
            lambda wrong: cache.append([one, wrong], k, k),
            lambda wrong: cache.attend([one, wrong], k),
        ):
            with pytest.raises(
                ValueError, match=rf"ids? must belong to a live sequence, got {wrong}, which is unknown"
            ):
                call(wrong)
    for wrong in ("0", 0.0, None, True):
        with pytest.raises(TypeError, match=r"id must be an int returned by allocate or fork, got"):
            cache.free(wrong)
    for wrong in (one, None, {one: 1}, np.array([[one]])):
        with pytest.raises(TypeError, match=r"ids must be a list of ints, got"):
            cache.attend(wrong, k)
    with pytest.raises(ValueError, match=r"ids must name each sequence once, got \[0, 0\]"):
        cache.append([one, one], k, k)
    for length in (5, -1):
        with pytest.raises(ValueError, match=rf"length must lie between 0 and the sequence's length, 4, got {length}"):
            cache.truncate(one, length)
    assert_unchanged(cache, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_its_own_way(stored, kind, copied):
    cache = some_cache(kind, stored)
    other, before = copied(cache), snapshot(cache)
    assert_unchanged(other, before)
    other.append(
        *[list(other.lengths)] * (kind == "PagedKVCache"), *(ones(len(cache.lengths), 2, 1, n) for n in (5, 7))
    )
    assert_unchanged(cache, before)
    assert not np.array_equal(attended(other), attended(cache))


def test_memory_that_is_not_there_is_an_error():
    done = python("import fastattn; fastattn.KVCache(1, 1, 1 << 60, 8)")
    assert done.returncode == 1
    assert "Error" in done.stderr.splitlines()[-1]
