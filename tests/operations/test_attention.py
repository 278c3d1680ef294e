"""scaled_dot_product_attention and merge_states: every kernel against the oracle."""

import functools
import itertools

import numpy as np
import pytest

import fastattn
from support.accuracy import assert_accurate, assert_accurate_together, by_formula, by_oracle
from support.arrays import (
    LAYOUTS,
    REVERSALS,
    SIZES,
    WRITABLE_LAYOUTS,
    assert_nothing_written_around,
    backwards_over,
    empty_laid_out,
    fenced,
    laid_out,
)
from support.dtypes import HALF, WIDE, assert_equal, computed_in, eps, largest, random, readable, stored_beside
from support.problems import (
    Shape,
    answers,
    assert_accurate_at,
    assert_attention_accurate,
    assert_same_attention,
    problem,
)
from support.telling import telling
from support.thresholds import waves_of

pytestmark = pytest.mark.usefixtures("target")

attention = functools.partial(fastattn.scaled_dot_product_attention, return_lse=True)

# The middle of the sweeps: many rows to a kv head, so that the tile kernel takes it.
MANY_ROWS = Shape(batch=6, heads=2, kv_heads=2, queries=37, keys=70, head_size=20, value_size=24)
# Few rows to a kv head, as in decoding; in small heads fewer of them go row by row. The batch is there for the
# accuracy rule, which wants some dozens of rows.
FEW_ROWS = Shape(batch=14, heads=8, kv_heads=2, queries=1, keys=70, head_size=72, value_size=57)

# Steps of 128 keys and parts of 512 end and begin here.
KEY_COUNTS = (1, 2, 3, 5, 7, 8, 9, 31, 127, 128, 129, 131, 255, 256, 257, 511, 512, 513, 641, 1023, 1024, 1025)


# Where a vector, or a step of keys, has just ended or begun: 16-bit types, whose kernels are those of float32 but for
# reading and writing, are content with these.
NEAR_VECTORS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65)
NEAR_STEPS = (127, 128, 129, 511, 513, 1025)


def sweep(base, axis, sizes):
    return [
        pytest.param(
            base._replace(**{axis: size}),
            id=f"{axis}={size}",
            marks=() if size in NEAR_VECTORS + NEAR_STEPS else pytest.mark.wide,
        )
        for size in sizes
    ]


# Sizes


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", [*sweep(MANY_ROWS, "queries", SIZES), *sweep(MANY_ROWS, "keys", KEY_COUNTS)])
def test_many_rows(shape, dtype, is_causal):
    assert_accurate_at(shape, dtype, is_causal=is_causal)


@pytest.mark.parametrize("shape", [*sweep(MANY_ROWS, "head_size", SIZES), *sweep(MANY_ROWS, "value_size", SIZES)])
def test_sizes_of_many_rows(shape, dtype):
    """Which keys are seen has no part in how long rows are taken: causal tiles are cut and whole ones, too."""
    assert_accurate_at(shape, dtype, is_causal=True)


@pytest.mark.parametrize(
    "shape",
    [
        *sweep(FEW_ROWS._replace(batch=8, head_size=20, value_size=24), "queries", (2, 3, 4, 5, 8)),
        *sweep(FEW_ROWS, "keys", KEY_COUNTS),
        *sweep(FEW_ROWS, "head_size", SIZES),
        *sweep(FEW_ROWS, "value_size", SIZES),
    ],
)
def test_few_rows(shape, dtype):
    assert_accurate_at(shape, dtype, is_causal=True)


@pytest.mark.parametrize("queries", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17])
def test_groups(group, queries, dtype):
    """Heads of a group beside one another: every number of rows up to the few-rows kernel's end and beyond."""
    shape = Shape(batch=6, heads=2 * group, kv_heads=2, queries=queries, keys=33, head_size=16, value_size=8)
    assert_accurate_at(shape, dtype, is_causal=True)


@pytest.mark.parametrize("head_size", [4, 7, 8, 14, 20, 40, 64, 72])
@pytest.mark.parametrize(
    ("queries", "group"), [(1, 3), (1, 4), (5, 1), (1, 6), (7, 1), (2, 4), (3, 3), (11, 1), (15, 1)]
)
def test_few_rows_of_small_heads(queries, group, head_size, dtype):
    """Row by row, and in a tile of one vector."""
    shape = Shape(8, 2 * group, 2, queries, keys=150, head_size=head_size, value_size=head_size)
    assert_accurate_at(shape, dtype, is_causal=True)


ROWS_THAT_PART = [(4, 1), (8, 1), (20, 1), (7, 1), (2, 3), (2, 2)]


@pytest.mark.parametrize(("queries", "group"), ROWS_THAT_PART)
@pytest.mark.parametrize("keys", [129, 257, 513])
def test_rows_that_part_where_a_block_begins(queries, group, keys, dtype):
    """Blocks have 128 keys. The last key, which the last query alone sees, has its largest score."""
    query, key, value = problem(Shape(1, 2 * group, 2, queries, keys, 64, 64), dtype)
    key = key.copy()
    key[..., -1, :] = (3 * query[:, ::group, -1].astype(float)).astype(dtype)
    assert_attention_accurate(query, key, value, is_causal=True)


@pytest.mark.parametrize(("queries", "group"), ROWS_THAT_PART)
def test_rows_that_part_where_a_window_begins(queries, group, dtype):
    """All queries but the last see the first key."""
    query, key, value = problem(Shape(1, 2 * group, 2, queries, 30, 64, 64), dtype)
    sinks = np.linspace(0, 3, 2 * group).astype(np.float64 if dtype == np.float64 else np.float32)
    spoiled = value.copy()
    spoiled[..., 0, 5] = np.nan
    assert_attention_accurate(query, key, value, window=(28, None), sinks=sinks)
    assert_attention_accurate(query, key, spoiled, window=(28, None))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("queries", "group"), [(1, 3), (2, 2), (3, 2), (2, 4), (7, 1), (1, 8)])
def test_a_value_that_some_rows_see(bad, queries, group, dtype):
    """Rows that see the same keys are multiplied by the values at once, those that do not are not."""
    query, key, value = problem(Shape(1, 2 * group, 2, queries, 40, 16, 24), dtype)
    for place in range(40 - queries, 40):
        spoiled = value.copy()
        spoiled[..., place, 3] = bad
        with telling(place=place):
            assert_attention_accurate(query, key, spoiled, is_causal=True)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 3, 1, 101, 211, 59, 61),
        Shape(2, 12, 12, 65, 65, 64, 64),
        Shape(1, 8, 2, 130, 130, 128, 128),
        Shape(3, 2, 2, 50, 30, 300, 2),
        Shape(1, 2, 1, 7, 19, 2, 600),
        Shape(1, 1, 1, 300, 1, 8, 8),
        Shape(2, 4, 1, 23, 29, 1, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_other_shapes(shape, dtype, is_causal):
    assert_accurate_at(shape, dtype, is_causal=is_causal)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, 1, 1024, 64, 64),
        Shape(1, 1, 1, 2, 1025, 16, 24),
        Shape(1, 4, 1, 1, 2053, 32, 16),
        Shape(1, 8, 2, 3, 4096, 16, 16),
        Shape(1, 1, 1, 64, 1537, 16, 16),
        Shape(1, 2, 1, 40, 3001, 8, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_many_keys_and_few_items(shape, dtype, num_threads):
    """Here the keys are split into parts, for the threads to share, and the parts merged."""
    assert_accurate_at(shape, dtype, num_threads=num_threads, is_causal=True)


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("parts", [1, 3, 7, 16])
def test_waves_of_parts(queries, parts, dtype):
    """However few parts are computed before they are merged; sequences have 1 to 5 of them."""
    arrays = problem(Shape(5, 4, 2, queries, 2600, 8, 12), dtype)
    options = {
        "is_causal": True,
        "kv_lengths": np.array([2600, 700, 1100, 0, 2600]),
        "sinks": np.arange(4, dtype=dtype),
    }
    expected = attention(*arrays, **options)
    with waves_of(parts):
        for num_threads in (1, 2):
            for x, right in zip(attention(*arrays, **options, num_threads=num_threads), expected, strict=True):
                assert_equal(x, right)


def test_more_parts_than_a_wave_has():
    """To the bit as the same sequences some at a time."""
    arrays = problem(Shape(700, 1, 1, 1, 1024, 1, 2), np.dtype(np.float32))
    expected = [attention(*(x[i : i + 100] for x in arrays)) for i in range(0, 700, 100)]
    for x, right in zip(attention(*arrays), map(np.concatenate, zip(*expected, strict=True)), strict=True):
        assert_equal(x, right)


@pytest.mark.parametrize(
    "shape", [Shape(8, 8, 2, 1, 4096, 8, 32), Shape(1, 2, 2, 37, 4096, 8, 32)], ids=["few rows", "many rows"]
)
def test_long_sums(shape, dtype):
    """Values of one sign: a sum over thousands of keys, taken in one chain, would lose more than the formula does."""
    query, key, value = problem(shape, dtype)
    assert_attention_accurate(query, key, np.abs(value))


@pytest.mark.parametrize(
    "shape",
    [
        Shape(2, 2, 1, 3, 0, 4, 5),
        Shape(2, 2, 1, 0, 3, 4, 5),
        Shape(0, 2, 1, 3, 6, 4, 5),
        Shape(2, 2, 1, 3, 6, 4, 0),
        Shape(2, 2, 1, 0, 0, 4, 0),
        Shape(2, 0, 1, 3, 6, 4, 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_empty_axes(shape, dtype, is_causal):
    out, lse = attention(*problem(shape, dtype), is_causal=is_causal)
    assert out.shape == shape.out
    assert lse.shape == shape.out[:-1]
    assert (out == 0).all()
    if shape.keys == 0:
        assert (lse == -np.inf).all()


# Options


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("q_offset", [None, 0, 1, 7, 128, 1000, -1, -3, -39, -1000, 2**40, -(2**40), np.int32(3)])
def test_q_offset(q_offset, queries, dtype):
    arrays = problem(MANY_ROWS._replace(queries=queries), dtype)
    options = {"is_causal": True, "q_offset": q_offset}
    expected = fastattn.reference.scaled_dot_product_attention(*arrays, **options, return_lse=True)
    assert_same_attention(attention(*arrays, **options), expected, *arrays)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("far", [2**47, 2**48, 2**48 + 1, 2**62, 2**63 - 1])
def test_positions_far_beyond_any_key(far, queries):
    """To the bit what less far ones give; a window that reaches as far is none."""
    arrays = problem(MANY_ROWS._replace(queries=queries), np.dtype(np.float32))
    for options in ({}, {"is_causal": True}, {"window": (3, None)}, {"window": (None, 3)}, {"window": (3, 3)}):
        for sign in (1, -1):
            expected = attention(*arrays, **options, q_offset=sign * 2**40)
            offsets = [sign * far, np.full(MANY_ROWS.batch, sign * far)] + [-(2**63)] * (sign < 0)
            for q_offset in offsets:
                with telling(q_offset=q_offset, **options):
                    for x, right in zip(attention(*arrays, **options, q_offset=q_offset), expected, strict=True):
                        assert_equal(x, right)
    expected = attention(*arrays, q_offset=5)
    for window in ((far, None), (None, far), (far, far)):
        with telling(window=window):
            for x, right in zip(attention(*arrays, window=window, q_offset=5), expected, strict=True):
                assert_equal(x, right)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (40, 7), (40, 39), (40, 40), (40, 41), (200, 130), (130, 700)])
def test_causal_rectangles(queries, keys, dtype):
    """The default offset lets the last query meet the last key; with more queries than keys the first see nothing."""
    shape = MANY_ROWS._replace(queries=queries, keys=keys)
    out, lse = assert_accurate_at(shape, dtype, is_causal=True)
    empty = max(queries - keys, 0)
    assert (out[..., :empty, :] == 0).all()
    assert np.isneginf(lse[..., :empty]).all()


@pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.5, 1e-3, 5.0, 2, np.float32(0.25), np.float64(0.25)], ids=repr)
def test_scale(scale, shape, dtype):
    assert_accurate_at(shape, dtype, scale=scale)


@pytest.mark.parametrize("shape", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
def test_without_lse_and_with_q_offset_but_not_causal(shape, dtype):
    """Neither option changes a bit of the result."""
    arrays = problem(shape, dtype)
    out, _ = attention(*arrays)
    np.testing.assert_array_equal(fastattn.scaled_dot_product_attention(*arrays), out)
    np.testing.assert_array_equal(fastattn.scaled_dot_product_attention(*arrays, q_offset=-5), out)


@pytest.mark.parametrize("queries", [1, 40])
def test_numpy_bools(queries, dtype):
    arrays = problem(MANY_ROWS._replace(queries=queries), dtype)
    result = attention(*arrays, is_causal=np.True_)
    for got, expected in zip(result, attention(*arrays, is_causal=True), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert isinstance(fastattn.scaled_dot_product_attention(*arrays, return_lse=np.False_), np.ndarray)


# Shapes and types


def test_two_dimensions_have_no_head_axis(dtype):
    query, key, value = (x[0, 0] for x in problem(MANY_ROWS, dtype))
    out, lse = attention(query, key, value)
    assert out.shape == (37, 24)
    assert lse.shape == (37,)
    with_heads, lse_with_heads = attention(query[None], key[None], value[None])
    np.testing.assert_array_equal(out, with_heads[0])
    np.testing.assert_array_equal(lse, lse_with_heads[0])


@pytest.mark.parametrize(
    ("query_axes", "key_axes", "value_axes"),
    [
        ((), (), ()),
        ((3,), (3,), (3,)),
        ((3,), (1,), (1,)),
        ((1,), (3,), (3,)),
        ((), (3,), ()),
        ((), (), (3,)),
        ((2, 1), (3,), (2, 3)),
        ((2, 3), (), (1, 1)),
        ((1, 2, 1, 3), (2, 1, 1, 1), (3,)),
        ((0,), (1,), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("queries", [1, 20])
def test_leading_axes_broadcast(rng, dtype, queries, query_axes, key_axes, value_axes):
    query = rng.normal(size=(*query_axes, 4, queries, 16)).astype(dtype)
    key = rng.normal(size=(*key_axes, 2, 19, 16)).astype(dtype)
    value = rng.normal(size=(*value_axes, 2, 19, 32)).astype(dtype)
    expected = fastattn.reference.scaled_dot_product_attention(query, key, value, is_causal=True, return_lse=True)
    result = attention(query, key, value, is_causal=True)
    assert_same_attention(result, expected, query, key, value)


@pytest.mark.parametrize("queries", [1, 2, 40])
@pytest.mark.parametrize(
    ("dtype", "key_type", "value_type"),
    [
        (dtype, *types)
        for dtype in WIDE
        for types in itertools.product(stored_beside(dtype), repeat=2)
        if types != (dtype, dtype)
    ],
    ids=str,
)
def test_keys_and_values_in_a_narrower_type(queries, dtype, key_type, value_type):
    shape = MANY_ROWS._replace(queries=queries, keys=300)
    query, _, value = problem(shape, dtype, value_type)
    key = problem(shape, dtype, key_type).key
    out, lse = assert_attention_accurate(query, key, value, is_causal=True)
    assert out.dtype == lse.dtype == dtype


@pytest.mark.parametrize("stored", HALF, ids=str)
@pytest.mark.parametrize("base", [MANY_ROWS, FEW_ROWS], ids=["many", "few"])
@pytest.mark.parametrize("size", NEAR_VECTORS)
def test_sizes_of_16_bit_keys_and_values(base, size, stored):
    """Beside a float32 query, which is what a cache does."""
    for axis in ("head_size", "value_size"):
        assert_accurate_at(base._replace(**{axis: size}), np.dtype(np.float32), stored, is_causal=True)


def test_result_types(dtype):
    out, lse = attention(*problem(MANY_ROWS, dtype))
    assert type(out) is type(lse) is np.ndarray
    assert out.dtype == dtype
    assert lse.dtype == computed_in(dtype)


# Memory order


@pytest.mark.parametrize("queries", [2, 37])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(layout, queries, dtype):
    given = problem(Shape(2, 4, 2, queries, 131, 20, 24), dtype)._asdict()
    for operands in (("query",), ("key",), ("value",), ("query", "key", "value")):
        arrays = given | {name: LAYOUTS[layout](given[name]) for name in operands}
        before = {name: x.copy() for name, x in arrays.items()}
        assert_same_attention(attention(**arrays, is_causal=True), attention(**before, is_causal=True), **before)
        for name, x in arrays.items():
            np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize("shape", [FEW_ROWS, MANY_ROWS, FEW_ROWS._replace(keys=1300, batch=1)], ids=str)
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(layout, shape, dtype):
    arrays = problem(shape, dtype)
    out = empty_laid_out(shape.out, dtype, layout)
    result, _ = attention(*arrays, out=out)
    assert result is out
    expected, _ = attention(*arrays)
    np.testing.assert_array_equal(out, expected)
    assert_nothing_written_around(out)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (1, 0, 2, 3), (2, 0, 3, 1)], ids=str)
@pytest.mark.parametrize("queries", [1, 20])
def test_result_keeps_the_memory_order_of_query(queries, axes, dtype):
    """`axes` lists the axes from the outermost in memory to the innermost."""
    query, key, value = problem(Shape(2, 6, 3, queries + 1, 12, 4, 5), dtype)
    query = np.ascontiguousarray(query.transpose(axes)).transpose(np.argsort(axes))
    out = fastattn.scaled_dot_product_attention(query, key, value)
    assert out.transpose(axes).flags.c_contiguous


def test_joining_heads_afterwards_is_free(dtype):
    batch, heads, queries, size = 2, 3, 20, 8
    x = np.ones((batch, queries, heads, size), dtype).swapaxes(1, 2)
    out = fastattn.scaled_dot_product_attention(x, x, x).swapaxes(1, 2)
    assert np.shares_memory(out.reshape(batch, queries, heads * size), out)


# out over an input


@pytest.mark.parametrize("operand", ["query", "key", "value"])
@pytest.mark.parametrize(("queries", "heads", "kv_heads"), [(2, 2, 2), (40, 2, 2), (40, 3, 3)])
def test_out_is_an_input(operand, queries, heads, kv_heads, dtype):
    arrays = problem(Shape(2, heads, kv_heads, queries, queries, 16, 16), dtype)
    expected, expected_lse = attention(*arrays, is_causal=True)
    arrays = {name: x.copy() for name, x in arrays._asdict().items()}
    out, lse = attention(**arrays, is_causal=True, out=arrays[operand])
    assert out is arrays[operand]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)


@pytest.mark.parametrize("distance", [1, 5, 16, 100, -1, -16])
def test_out_overlaps_an_input(distance, dtype):
    shape = Shape(1, 2, 2, 40, 40, 16, 16)
    query, key, value = problem(shape, dtype)
    expected, _ = attention(query, key, value)
    memory = np.zeros(query.size + 200, dtype)
    query_in_memory = memory[100 : 100 + query.size].reshape(shape.query)
    query_in_memory[...] = query
    out = memory[100 + distance : 100 + distance + query.size].reshape(shape.out)
    attention(query_in_memory, key, value, out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("operand", ["query", "key", "value"])
@pytest.mark.parametrize("queries", [2, 40])
def test_out_runs_backwards_over_an_input(operand, queries):
    given = problem(Shape(2, 3, 3, queries, queries, 16, 16), np.dtype(np.float32))._asdict()
    expected = attention(**given, is_causal=True)
    for where, x, out in backwards_over(given[operand], (*REVERSALS, np.s_[::-1], np.s_[:, ::-1])):
        result = attention(**given | {operand: x}, is_causal=True, out=out)
        with telling(out=where):
            for x, right in zip(result, expected, strict=True):
                assert_equal(x, right)


@pytest.mark.parametrize("operation", ["scaled_dot_product_attention", "attention_weights"])
@pytest.mark.parametrize("queries", [1, 40])
def test_out_is_the_mask(operation, queries):
    """Whole, or a part of out which broadcasts: other queries than those whose results replace it read it, too."""
    query, key, value = problem(Shape(3, 4, 2, queries, 24, 16, 24), np.dtype(np.float32))
    arrays = (query, key) if operation == "attention_weights" else (query, key, value)
    for which in (np.s_[:], np.s_[:1, :1], np.s_[-1:, -1:], np.s_[:1, :, :1], np.s_[-1:, :, -1:], np.s_[..., ::-1]):
        out = np.random.default_rng(queries).normal(size=(3, 4, queries, 24)).astype(np.float32)
        out[..., ::5] = -np.inf
        expected = getattr(fastattn, operation)(*arrays, out[which].copy(), num_threads=1)
        with telling(mask=f"out[{which}]"):
            assert_equal(getattr(fastattn, operation)(*arrays, out[which], out=out, num_threads=1), expected)


@pytest.mark.parametrize("queries", [2, 40])
def test_query_key_and_value_are_one_array(queries, dtype):
    x = problem(Shape(2, 3, 3, queries, queries, 16, 16), dtype).value
    assert_attention_accurate(x, x, x)


# What may not be read or written


@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, queries, keys, head_size, value_size)
        for queries in (1, 2, 17, 50)
        for keys, head_size, value_size in ((1, 1, 1), (3, 5, 7), (7, 3, 5), (17, 16, 16), (130, 33, 31), (1100, 9, 9))
    ],
    ids=str,
)
def test_nothing_outside_is_touched(shape, dtype):
    arrays = problem(shape, dtype)
    expected, _ = attention(*arrays, is_causal=True)
    for at in ("start", "end"):
        query, key, value = (fenced(name).place(x.shape, dtype, at) for name, x in arrays._asdict().items())
        out = fenced("out").place(shape.out, dtype, at)
        for x, to in zip(arrays, (query, key, value), strict=True):
            to[...] = x
        attention(query, key, value, out=out, is_causal=True)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("queries", "group", "keys"), [(1, 1, 40), (1, 4, 300), (3, 2, 1300), (40, 1, 40), (40, 2, 700)]
)
def test_garbage_beyond_the_causal_end_does_not_leak(bad, queries, group, keys, dtype):
    query, key, value = problem(Shape(1, 2 * group, 2, queries, keys, 16, 24), dtype)
    end = keys - 7
    clean = answers(query, key[..., :end, :], value[..., :end, :], is_causal=True)
    key, value = key.copy(), value.copy()
    key[..., end:, :] = value[..., end:, :] = bad
    assert_attention_accurate(query, key, value, is_causal=True, q_offset=end - queries, known=clean)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value", "both"])
def test_garbage_shows_only_to_those_who_attend(bad, where, dtype):
    """In a causal square, key `place` is seen by the queries from `place` on: tiles hold rows of both kinds."""
    clean = problem(Shape(1, 2, 1, 40, 40, 16, 24), dtype)
    for place in (0, 1, 5, 30, 39):
        query, key, value = (x.copy() for x in clean)
        if where != "value":
            key[..., place, :] = bad
        if where != "key":
            value[..., place, 3] = bad
        assert_attention_accurate(query, key, value, is_causal=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("queries", [1, 40])
def test_values_at_the_ends_of_steps_are_seen(bad, queries, dtype):
    """Steps of 16, 64 and 128 keys begin and end there. By a mask some heads see the key, others do not."""
    query, key, value = problem(Shape(1, 4, 2, queries, 300, 16, 24), dtype)
    for place in (0, 15, 16, 63, 64, 126, 127, 128, 255, 256, 299):
        mask = np.ones((4, 1, 300), bool)
        mask[1::2, :, place] = False
        clean, _ = attention(query, key, value, mask)
        spoiled = value.copy()
        spoiled[..., place, 3] = bad
        out, _ = attention(query, key, spoiled, mask)
        with telling(place=place):
            assert not np.isfinite(out[:, ::2, :, 3]).any()
            out[:, ::2, :, 3] = clean[:, ::2, :, 3]
            assert_equal(out, clean)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("size", [1, 3, 7, 9, 15, 17, 24, 33, 40])
@pytest.mark.parametrize("queries", [1, 20, 90])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_excluded_values_are_ignored_in_each_component(queries, size, bad, kind, dtype):
    query, key, value = problem(Shape(1, 2, 2, queries, 39, 16, size), dtype)
    for component in range(size):
        place = 38 - component % 5
        mask = np.ones((queries, 39), bool)
        mask[:, place] = False
        if kind == "float":
            mask = np.where(mask, 0, -np.inf).astype(dtype)
        clean, _ = attention(query, key, value, mask)
        spoiled = value.copy()
        spoiled[..., place, component] = bad
        out, _ = attention(query, key, spoiled, mask)
        with telling(component=component):
            assert_equal(out, clean)


@pytest.mark.parametrize("queries", [1, 2, 40])
@pytest.mark.parametrize("keys", [40, 1300])
def test_nan_in_a_query_stays_in_its_row(queries, keys, dtype):
    query, key, value = problem(Shape(1, 4, 2, queries, keys, 16, 24), dtype)
    clean, clean_lse = attention(query, key, value, is_causal=True)
    query = query.copy()
    query[0, 1, 0, 2] = np.nan
    out, lse = attention(query, key, value, is_causal=True)
    assert np.isnan(out[0, 1, 0]).all()
    assert np.isnan(lse[0, 1, 0])
    out[0, 1, 0], lse[0, 1, 0] = clean[0, 1, 0], clean_lse[0, 1, 0]
    np.testing.assert_array_equal(out, clean)
    np.testing.assert_array_equal(lse, clean_lse)


# Magnitudes


ONE_ROW = Shape(batch=8, heads=8, kv_heads=8, queries=1, keys=300, head_size=20, value_size=24)


@pytest.mark.parametrize("shape", [MANY_ROWS._replace(keys=300), ONE_ROW], ids=["many", "one"])
class TestMagnitudes:
    @pytest.mark.parametrize("factor", [1e-30, 1e-4, 10, 100, 1e4])
    def test_of_scores(self, shape, factor, dtype):
        query, key, value = problem(shape, dtype)
        assert_attention_accurate(query * dtype.type(min(factor, largest(dtype) / 16)), key, value)

    @pytest.mark.parametrize("factor", [1e-37, 1e-20, 1e20, 1e36])
    def test_of_values(self, shape, factor, dtype):
        query, key, value = problem(shape, dtype)
        assert_attention_accurate(query, key, value * dtype.type(min(factor, largest(dtype) / 16)))

    @pytest.mark.parametrize("offset", [-40, 40])
    def test_scores_far_from_zero(self, shape, offset, dtype):
        """All scores share a large summand, which softmax must not notice."""
        query, key, value = problem(shape, dtype)
        query, key = query.copy(), key.copy()
        query[..., 0], key[..., 0] = 4, offset
        assert_attention_accurate(query, key, value)

    @pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
    def test_scores_in_order(self, shape, order, dtype):
        """Rising scores make every step of keys raise the maximum and rescale what was summed before."""
        query, key, value = problem(shape, dtype)
        query, key = np.abs(query), key.copy()
        key += np.linspace(0, 8 * order, key.shape[-2], dtype=dtype)[:, None]
        assert_attention_accurate(query, key, value)

    def test_equal_scores_give_the_mean(self, shape, dtype):
        query, key, value = problem(shape, dtype)
        out, lse = assert_attention_accurate(np.zeros_like(query), key, value)
        mean = value.mean(axis=-2, dtype=np.float64)[:, :, None].repeat(shape.heads // shape.kv_heads, axis=1)
        mean = mean.reshape(shape.batch, shape.heads, 1, -1)
        tolerance = {"rtol": eps(dtype), "atol": eps(dtype) / 8} if dtype in HALF else {"rtol": 0, "atol": 1e-6}
        np.testing.assert_allclose(readable(out), np.broadcast_to(mean, out.shape), **tolerance)
        np.testing.assert_allclose(lse, np.log(shape.keys), rtol=1e-6)

    def test_subnormal_weights_are_zero(self, shape, dtype):
        """They would make the sums a hundred times as slow."""
        query, key, value = (np.zeros_like(x) for x in problem(shape, dtype))
        query[..., 0], value[..., 1:, :] = 1, largest(dtype) / 2
        key[..., 1:, 0] = -709.5 if dtype == np.float64 else -88.5  # e^-709.5 = 7.3e-309, e^-88.5 = 3.7e-39
        out, lse = fastattn.scaled_dot_product_attention(query, key, value, scale=1.0, return_lse=True)
        assert not readable(out).any()
        assert not lse.any()


# merge_states


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(1,), (65,), (2, 3, 17), (3, 0)], ids=str)
def test_merge_states(rng, dtype, parts, shape):
    for value_size in (1, 16, 33):
        outs = [np.abs(rng.normal(size=(*shape, value_size))).astype(dtype) for _ in range(parts)]
        lses = [rng.normal(0, 3, size=shape).astype(computed_in(dtype)) for _ in range(parts)]
        assert_merge_accurate(outs, lses)


def assert_merge_accurate(outs, lses):
    expected = by_oracle("merge_states", outs[0].dtype, outs, lses)
    formula = by_formula("merge_states", outs, lses)
    out, lse = fastattn.merge_states(outs, lses)
    assert out.dtype == outs[0].dtype
    assert lse.dtype == lses[0].dtype
    assert_accurate(out, formula[0], expected[0])
    assert_accurate_together(lse, formula[1], expected[1])
    return out, lse


def test_merge_states_where_parts_are_empty(rng, dtype):
    outs = [np.abs(rng.normal(size=(4, 5))).astype(dtype) for _ in range(2)]
    lses = [np.array(x, computed_in(dtype)) for x in ([0, 1, -np.inf, -np.inf], [0, -np.inf, 1, -np.inf])]
    outs[0][2:], outs[1][1::2] = np.nan, 7  # contribute nothing, whatever stands there
    out, lse = assert_merge_accurate(outs, lses)
    np.testing.assert_array_equal(out[1], outs[0][1])
    np.testing.assert_array_equal(out[2], outs[1][2])
    np.testing.assert_array_equal(out[3], 0)
    assert lse[3] == -np.inf


def test_merge_states_shows_nan_of_a_part_that_saw_keys(dtype):
    """However small its share: the NaN would show in the whole, too."""
    outs = [np.full((1, 2), np.nan, dtype), np.ones((1, 2), dtype)]
    out, lse = fastattn.merge_states(outs, [np.full(1, -1e4, computed_in(dtype)), np.zeros(1, computed_in(dtype))])
    assert np.isnan(out).all()
    assert lse == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merge_states_layouts(rng, dtype, layout):
    outs = [LAYOUTS[layout](np.abs(rng.normal(size=(2, 9, 8))).astype(dtype)) for _ in range(3)]
    lses = [LAYOUTS[layout](rng.normal(size=(2, 9)).astype(computed_in(dtype))) for _ in range(3)]
    assert_merge_accurate(outs, lses)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_merge_states_writes_to_out(rng, dtype, layout):
    """Also where it lies in what is merged."""
    outs, lses = random(rng, dtype, 3, 4, 5, 6), random(rng, computed_in(dtype), 3, 4, 5)
    expected = fastattn.merge_states(outs, lses)
    apart = WRITABLE_LAYOUTS[layout]((4, 5, 6), dtype)
    for place in (lambda _: apart, lambda outs: outs[1], lambda outs: outs[2, ::-1]):
        given = outs.copy()
        out = place(given)
        merged, lse = fastattn.merge_states(given, lses, out=out, num_threads=2)
        assert merged is out
        assert_equal(merged, expected[0])
        assert_equal(lse, expected[1])


def test_merge_states_takes_stacked_arrays(rng, dtype):
    outs, lses = random(rng, dtype, 3, 4, 5, 6), random(rng, computed_in(dtype), 3, 4, 5)
    for stacked, listed in zip(
        fastattn.merge_states(outs, lses), fastattn.merge_states(list(outs), list(lses)), strict=True
    ):
        np.testing.assert_array_equal(stacked, listed)


@pytest.mark.parametrize("cuts", [(0, 1, 600), (0, 300, 600), (0, 128, 129, 512, 600), (0, 0, 600)], ids=str)
@pytest.mark.parametrize("queries", [1, 40])
def test_merged_parts_of_the_keys_are_the_whole(cuts, queries, dtype):
    query, key, value = problem(MANY_ROWS._replace(queries=queries, keys=600), dtype)
    parts = [
        attention(query, key[..., a:b, :], value[..., a:b, :], is_causal=True, q_offset=600 - queries - a)
        for a, b in itertools.pairwise(cuts)
    ]
    merged = fastattn.merge_states(*zip(*parts, strict=True))
    assert_same_attention(merged, attention(query, key, value, is_causal=True), query, key, value)


def test_layout_helpers_agree(dtype):
    """A layout that changed the elements would test nothing."""
    x = problem(MANY_ROWS, dtype).query
    for layout in WRITABLE_LAYOUTS:
        np.testing.assert_array_equal(laid_out(x, layout), x)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_long_heads_over_few_keys(dtype, is_causal):
    assert_accurate_at(Shape(3, 2, 2, queries=50, keys=3, head_size=300, value_size=2), dtype, is_causal=is_causal)


@pytest.mark.wide
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("queries", [12, 24, 32, 48, 192])
def test_few_scores_are_summed_in_short_chains(queries, head_size, dtype):
    """In full tiles as well. A row's one score is its lse; NumPy with AVX-512 adds its products lane by lane."""
    shape = Shape(9600 // queries, 1, 1, queries=queries, keys=1, head_size=head_size, value_size=32)
    query, key, value = problem(shape, dtype)
    products = (query * key).reshape(-1, head_size // 16, 16)
    by_lanes = products.sum(1).sum(1).reshape(shape.query[:-1]) * dtype.type(head_size**-0.5)
    exact = by_oracle("scaled_dot_product_attention", dtype, query, key, value, return_lse=True)[1]
    errors = [np.sqrt(np.mean((x - exact) ** 2)) for x in (attention(query, key, value)[1], by_lanes)]
    assert errors[0] <= 1.4 * errors[1]  # long chains: 1.7 to 2.4 times


@pytest.mark.parametrize("offset", [-50, 50])
def test_scores_farther_from_zero(dtype, offset):
    query, key, value = problem(MANY_ROWS, dtype)
    query, key = query.copy(), key.copy()
    query[..., 0], key[..., 0] = 4, offset
    assert_attention_accurate(query, key, value)
