"""varlen_attention: each sequence of a packed batch gets what it gets alone, to the bit."""

import functools
import itertools
import os

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn._runtime import on_target
from support.arrays import (
    LAYOUTS,
    WRITABLE_LAYOUTS,
    assert_nothing_written_around,
    empty_laid_out,
    fenced,
    laid_out,
)
from support.dtypes import ALL, computed_in, eps, stored_beside
from support.pairing import by_turns
from support.problems import assert_same_attention

attention = functools.partial(fastattn.scaled_dot_product_attention, return_lse=True)
varlen_attention = functools.partial(fastattn.varlen_attention, return_lse=True)

# Query and key length of each sequence.
BATCHES = {
    "even": [(20, 20)] * 4,
    "uneven": [(1, 1), (70, 70), (2, 2), (130, 130), (33, 33), (5, 5), (48, 48)],
    "rectangles": [(3, 40), (40, 3), (64, 129), (17, 300), (1, 131)],
    "decoding": [(1, 5), (1, 700), (1, 64), (1, 1)],
    "long among short": [(2, 2), (3, 3), (40, 1300), (2, 2), (1, 1100), (4, 4)],
    "empty ones": [(0, 0), (5, 5), (0, 7), (9, 0), (0, 0), (6, 6), (3, 0)],
    "one": [(37, 70)],
    "none": [],
    "nothing but empty ones": [(0, 0), (0, 0)],
    "no keys": [(3, 0), (2, 0)],
}
HEADS = [(4, 2, 16, 24), (3, 3, 20, 20), (8, 1, 33, 7)]  # heads, kv heads, head size, value size

OPTIONS = {
    "none": lambda lengths, heads, dtype, rng: {},
    "causal": lambda lengths, heads, dtype, rng: {"is_causal": True},
    "offset": lambda lengths, heads, dtype, rng: {"is_causal": True, "q_offset": 2},
    "offsets": lambda lengths, heads, dtype, rng: {"is_causal": True, "q_offset": rng.integers(-2, 40, len(lengths))},
    "window": lambda lengths, heads, dtype, rng: {"window": (9, 4)},
    "softcap": lambda lengths, heads, dtype, rng: {"softcap": 1.5, "scale": 0.5},
    "sinks": lambda lengths, heads, dtype, rng: {"sinks": rng.normal(size=heads).astype(dtype)},
    "alibi": lambda lengths, heads, dtype, rng: {"alibi_slopes": rng.random(heads).astype(dtype) / 8},
    "alibi of each": lambda lengths, heads, dtype, rng: {
        "alibi_slopes": rng.random((len(lengths), heads)).astype(dtype) / 8
    },
    "position bias": lambda lengths, heads, dtype, rng: {"position_bias": rng.normal(size=(heads, 25)).astype(dtype)},
    "length": lambda lengths, heads, dtype, rng: {"kv_lengths": min([k for _, k in lengths], default=0)},
    "lengths": lambda lengths, heads, dtype, rng: {
        "kv_lengths": np.array([rng.integers(0, k + 1) for _, k in lengths], np.int64)
    },
}


def everything(lengths, heads, dtype, rng):
    chosen = {}
    for kind in ("causal", "window", "softcap", "sinks", "alibi of each", "position bias", "lengths"):
        chosen |= OPTIONS[kind](lengths, heads, dtype, rng)
    return chosen


OPTIONS["everything"] = everything


def packed(lengths, sizes, dtype, seed=3):
    """Query, key, value, cu_seqlens_q, cu_seqlens_k."""
    heads, kv_heads, head_size, value_size = sizes
    rng = np.random.default_rng(seed)
    cu_seqlens_q, cu_seqlens_k = (np.cumsum([0, *(pair[side] for pair in lengths)]) for side in (0, 1))
    shapes = [
        (cu_seqlens_q[-1], heads, head_size),
        (cu_seqlens_k[-1], kv_heads, head_size),
        (cu_seqlens_k[-1], kv_heads, value_size),
    ]
    return *(rng.normal(size=shape).astype(dtype) for shape in shapes), cu_seqlens_q, cu_seqlens_k


PER_SEQUENCE = {"q_offset": 0, "kv_lengths": 0, "alibi_slopes": 1}  # and how many axes each sequence's own has


def of_sequence(options, n):
    return {
        name: option[n] if np.ndim(option) > PER_SEQUENCE.get(name, np.inf) else option
        for name, option in options.items()
    }


def each_alone(query, key, value, cu_seqlens_q, cu_seqlens_k, **options):
    """(out, lse) by scaled_dot_product_attention of each sequence, seen as (H, S, D)."""
    out = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    lse = np.zeros(query.shape[:2], computed_in(query.dtype))
    bounds = zip(itertools.pairwise(cu_seqlens_q), itertools.pairwise(cu_seqlens_k), strict=True)
    for n, ((q, q_end), (k, k_end)) in enumerate(bounds):
        arrays = (x.swapaxes(0, 1) for x in (query[q:q_end], key[k:k_end], value[k:k_end]))
        own_out, own_lse = attention(*arrays, **of_sequence(options, n))
        out[q:q_end], lse[q:q_end] = own_out.swapaxes(0, 1), own_lse.T
    return out, lse


def assert_identical(results, expected):
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(("kind", "batch", "sizes"), by_turns(OPTIONS, BATCHES, HEADS), ids=str)
def test_each_sequence_gets_what_it_gets_alone(kind, batch, sizes, dtype, rng):
    lengths = BATCHES[batch]
    arrays = packed(lengths, sizes, dtype)
    options = OPTIONS[kind](lengths, sizes[0], dtype, rng)
    out, lse = varlen_attention(*arrays, **options)
    assert type(out) is type(lse) is np.ndarray
    assert out.dtype == dtype
    assert lse.dtype == computed_in(dtype)
    assert out.shape == (len(arrays[0]), sizes[0], sizes[3])
    assert lse.shape == (len(arrays[0]), sizes[0])
    assert_identical((out, lse), each_alone(*arrays, **options))
    np.testing.assert_array_equal(fastattn.varlen_attention(*arrays, **options), out)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("batch", ["uneven", "long among short", "decoding"])
@pytest.mark.parametrize("kind", ["none", "causal", "everything"])
def test_any_number_of_threads_to_the_bit(kind, batch, dtype, rng):
    lengths = BATCHES[batch]
    arrays = packed(lengths, HEADS[0], dtype)
    options = OPTIONS[kind](lengths, HEADS[0][0], dtype, rng)
    expected = varlen_attention(*arrays, **options, num_threads=1)
    for num_threads in (2, 3, 7, None):
        assert_identical(varlen_attention(*arrays, **options, num_threads=num_threads), expected)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("kind", ["none", "causal", "everything"])
def test_any_company_to_the_bit(kind, dtype, rng):
    """A sequence's result does not change when the others do, be it to NaN."""
    lengths = BATCHES["uneven"]
    query, key, value, *bounds = packed(lengths, HEADS[0], dtype)
    options = OPTIONS[kind](lengths, HEADS[0][0], dtype, rng)
    together = varlen_attention(query, key, value, *bounds, **options)
    own = slice(*bounds[0][3:5])
    spoiled = [np.full_like(x, np.nan) for x in (query, key, value)]
    for x, clean in zip(spoiled, (query, key, value), strict=True):
        x[own] = clean[own]
    assert_identical([x[own] for x in varlen_attention(*spoiled, *bounds, **options)], [x[own] for x in together])


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["none", "everything"])
def test_is_what_the_oracle_says(kind, batch, dtype, rng):
    lengths = BATCHES[batch]
    arrays = packed(lengths, HEADS[0], dtype)
    options = OPTIONS[kind](lengths, HEADS[0][0], dtype, rng)
    expected = fastattn.reference.varlen_attention(*arrays, **options, return_lse=True)
    assert_same_attention(varlen_attention(*arrays, **options), expected, *arrays[:3], **options)


@pytest.mark.usefixtures("target")
def test_without_keys_there_are_zeros(dtype):
    query, key, value, *bounds = packed(BATCHES["empty ones"], HEADS[0], dtype)
    out, lse = varlen_attention(query, key, value, *bounds)
    empty = [5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 21, 22]
    assert (out[empty] == 0).all()
    assert np.isneginf(lse[empty]).all()
    assert np.isfinite(np.delete(lse, empty, axis=0)).all()
    sinks = np.arange(4, dtype=dtype)
    _, lse = varlen_attention(query, key, value, *bounds, sinks=sinks)
    np.testing.assert_allclose(lse[empty], np.broadcast_to(sinks, (12, 4)), rtol=4 * eps(computed_in(dtype)))


@pytest.mark.usefixtures("target")
def test_lengths_hide_garbage(dtype):
    """Room that a sequence does not use yet, as in a cache: keys beyond its length are not read."""
    query, key, value, *bounds = packed([(3, 40), (1, 70), (5, 33)], HEADS[0], dtype)
    kv_lengths = np.array([30, 0, 33])
    clean = varlen_attention(query, key, value, *bounds, kv_lengths=kv_lengths, is_causal=True)
    key, value = key.copy(), value.copy()
    key[30:110] = value[30:110] = np.nan
    assert_identical(varlen_attention(query, key, value, *bounds, kv_lengths=kv_lengths, is_causal=True), clean)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("integer", ["i1", "u1", "i2", "i4", "u4", "i8", "u8", ">i8"])
def test_bounds_of_any_integer_type(integer, dtype):
    query, key, value, *bounds = packed([(3, 40), (1, 20), (5, 33)], HEADS[0], dtype)
    expected = varlen_attention(query, key, value, *bounds, is_causal=True)
    for given in ([x.astype(integer) for x in bounds], [x.astype(integer).repeat(2)[::2] for x in bounds]):
        assert_identical(varlen_attention(query, key, value, *given, is_causal=True), expected)


@pytest.mark.usefixtures("target")
@pytest.mark.wide
def test_keys_and_values_in_a_narrower_type(dtype):
    query, key, value, *bounds = packed(BATCHES["uneven"], HEADS[0], dtype)
    for stored in stored_beside(dtype):
        key, value = key.astype(stored), value.astype(stored)
        result = varlen_attention(query, key, value, *bounds)
        assert_identical(result, varlen_attention(query, key.astype(dtype), value.astype(dtype), *bounds))


# Memory order


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("operand", ["query", "key", "value", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(layout, operand, dtype):
    query, key, value, *bounds = packed(BATCHES["rectangles"], HEADS[0], dtype)
    arrays = {"query": query, "key": key, "value": value}
    for name in arrays:
        if operand in (name, "all"):
            arrays[name] = LAYOUTS[layout](arrays[name])
    before = {name: x.copy() for name, x in arrays.items()}
    result = varlen_attention(*arrays.values(), *bounds, is_causal=True)
    assert_same_attention(result, varlen_attention(*before.values(), *bounds, is_causal=True), **before)
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, before[name])


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("batch", ["rectangles", "empty ones"])
def test_out_layouts(batch, layout, dtype):
    arrays = packed(BATCHES[batch], HEADS[0], dtype)
    out = empty_laid_out((len(arrays[0]), 4, 24), dtype, layout)
    result, _ = varlen_attention(*arrays, out=out)
    assert result is out
    np.testing.assert_array_equal(out, varlen_attention(*arrays)[0])
    assert_nothing_written_around(out)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_out_is_an_input(operand, dtype):
    arrays = [x.copy() for x in packed([(5, 5), (40, 40), (1, 1)], (3, 3, 16, 16), dtype)]
    expected = varlen_attention(*arrays, is_causal=True)
    result = varlen_attention(*arrays, is_causal=True, out=arrays[operand])
    assert result[0] is arrays[operand]
    assert_identical(result, expected)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_result_keeps_the_memory_order_of_query(axes, dtype):
    query, *others = packed(BATCHES["rectangles"], HEADS[0], dtype)
    query = np.ascontiguousarray(query.transpose(axes)).transpose(np.argsort(axes))
    out = fastattn.varlen_attention(query, *others)
    assert out.transpose(axes).flags.c_contiguous


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("batch", ["rectangles", "empty ones", "decoding"])
def test_nothing_outside_is_touched(batch, at, dtype):
    arrays = packed(BATCHES[batch], (4, 2, 9, 7), dtype)
    placed = [fenced(f"packed {n}").place(x.shape, x.dtype, at) for n, x in enumerate(arrays)]
    for x, to in zip(arrays, placed, strict=True):
        to[...] = x
    out = fenced("out").place((len(arrays[0]), 4, 7), dtype, at)
    varlen_attention(*placed, is_causal=True, out=out)
    np.testing.assert_array_equal(out, varlen_attention(*arrays, is_causal=True)[0])


# All options together


@st.composite
def batches(draw):
    """Packed arrays, bounds and options."""
    length = st.one_of(st.integers(0, 3), st.integers(0, 70))
    key_length = st.one_of(st.integers(0, 3), st.integers(0, 140), st.sampled_from([127, 128, 129, 512, 513]))
    lengths = draw(st.lists(st.tuples(length, key_length), max_size=6))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    sizes = (kv_heads * group, kv_heads, draw(st.integers(1, 36)), draw(st.integers(1, 36)))
    dtype = draw(st.sampled_from(ALL))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    *arrays, cu_seqlens_q, cu_seqlens_k = packed(lengths, sizes, dtype, seed)
    arrays = [laid_out(x, draw(st.sampled_from(list(WRITABLE_LAYOUTS)))) for x in arrays]
    options = {}
    for kind in draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=5)):
        options |= OPTIONS[kind](lengths, sizes[0], dtype, rng)
    return (*arrays, cu_seqlens_q, cu_seqlens_k), options


@hypothesis.settings(
    max_examples=int(os.environ.get("FASTATTN_EXAMPLES", hypothesis.settings().max_examples)),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(st.sampled_from(fastattn.targets()), batches(), st.sampled_from([1, 2, None]))
def test_all_options_together(target, batch, num_threads):
    """FASTATTN_EXAMPLES sets how many batches are drawn."""
    arrays, options = batch
    with on_target(target):
        result = varlen_attention(*arrays, **options, num_threads=num_threads)
        alone = each_alone(*arrays, **options)
    assert_identical(result, alone)
    expected = fastattn.reference.varlen_attention(*arrays, **options, return_lse=True)
    assert_same_attention(result, expected, *arrays[:3], **options)
