"""softmax and log_softmax against the oracle."""

import itertools

import numpy as np
import pytest

import fastattn
from support.accuracy import assert_accurate, by_formula, by_oracle
from support.arrays import (
    LAYOUTS,
    SIZES,
    WRITABLE_LAYOUTS,
    assert_nothing_written_around,
    backwards_over,
    empty_laid_out,
    fenced,
    laid_out,
    rows_at,
)
from support.dtypes import HALF, assert_equal, eps, largest, random
from support.telling import telling
from support.thresholds import results_stored_around_the_cache

pytestmark = pytest.mark.usefixtures("target")

# Rows up to a few vectors, a step, beyond the first-level cache, beyond what a three-pass row may hold.
LONG_SIZES = (511, 513, 1000, 4099, 65_537)


@pytest.fixture(params=["softmax", "log_softmax"])
def operation(request):
    return request.param


def assert_row_accurate(operation, x, axis=-1, *, out=None, num_threads=None, **options):
    """The operation on x, held to the accuracy rule; returns its result."""
    expected = by_oracle(operation, x.dtype, x, axis, **options)
    formula = by_formula(operation, x, axis, **options)
    result = getattr(fastattn, operation)(x, axis, out=out, num_threads=num_threads, **options)
    last = (np.moveaxis(a, axis, -1) for a in (result, formula, expected))
    assert_accurate(*last)
    return result


def rows(rng, dtype, *shape, spread=3):
    return random(rng, dtype, *shape, spread=spread)


# Sizes and axes


@pytest.mark.parametrize("size", [*SIZES, *LONG_SIZES])
def test_row_lengths(operation, rng, dtype, size):
    assert_row_accurate(operation, rows(rng, dtype, 3 if size > 1000 else 40, size))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000])
def test_row_counts(operation, rng, dtype, count):
    """Two halves of one row count: many rows before and behind the axis."""
    assert_row_accurate(operation, rows(rng, dtype, count, 33))
    assert_row_accurate(operation, rows(rng, dtype, 33, count), axis=0)


@pytest.mark.parametrize("shape", [(50,), (20, 30), (4, 5, 6), (2, 3, 4, 5, 6), (1, 1, 9), (3, 1, 70)], ids=str)
def test_every_axis(operation, rng, dtype, shape):
    x = rows(rng, dtype, *shape)
    for axis in range(-len(shape), len(shape)):
        assert_row_accurate(operation, x, axis)


@pytest.mark.parametrize("size", SIZES)
def test_axis_before_the_last(operation, rng, dtype, size):
    assert_row_accurate(operation, rows(rng, dtype, 2, size, 19), axis=1)
    assert_row_accurate(operation, rows(rng, dtype, 2, 19, size), axis=1)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 3)], ids=str)
def test_empty_axes(operation, dtype, shape):
    x = np.empty(shape, dtype)
    for axis in range(len(shape)):
        result = getattr(fastattn, operation)(x, axis)
        assert result.shape == shape
        assert result.dtype == dtype


# Few elements or few columns: several rows to a vector


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33])
def test_few_columns(operation, rng, dtype, columns):
    for length in (1, 2, 3, 5, 8, 17, 64, 131):
        x = rows(rng, dtype, length, columns)
        expected = assert_row_accurate(operation, x, axis=0)
        assert_equal(getattr(fastattn, operation)(x, 0, out=x), expected)
        wide = rows(rng, dtype, length, columns + 1)[:, :columns]  # with gaps
        assert_row_accurate(operation, wide, axis=0)
    assert_row_accurate(operation, rows(rng, dtype, 3, 70, columns), axis=1)


@pytest.mark.parametrize("columns", [2, 3, 8, 9, 20])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_column_does_not_affect_the_others(operation, rng, dtype, columns, bad):
    x = rows(rng, dtype, 100, columns)
    expected = getattr(fastattn, operation)(x, 0)
    for column in range(columns):
        spoilt = x.copy()
        spoilt[rng.integers(100) if bad > 0 or np.isnan(bad) else slice(None), column] = bad
        with np.errstate(invalid="ignore"):
            result = assert_row_accurate(operation, spoilt, axis=0)
        others = np.arange(columns) != column
        assert_equal(result[:, others], expected[:, others])


@pytest.mark.parametrize("size", range(1, 34))
def test_few_elements(operation, rng, dtype, size):
    x = rows(rng, dtype, 40, size)
    whole = assert_row_accurate(operation, x)
    for count in (1, 2, 7, 15, 16, 17, 33):
        assert_equal(getattr(fastattn, operation)(x[:count]), whole[:count])
    assert_row_accurate(operation, x, where=rng.random(x.shape) < 0.6)


@pytest.mark.parametrize("size", [3, 17, 40, 100])
def test_terms_too_small_for_the_type(operation, rng, dtype, size):
    """Terms that are subnormal, or 0, and elements that are -inf."""
    x = -abs(rows(rng, dtype, 30, size, spread=1)) * dtype.type(90)
    x[:, ::3] = -np.inf
    x[:, 1] = 0
    assert_row_accurate(operation, x)
    assert_row_accurate(operation, np.ascontiguousarray(x.T), axis=0)


def test_axis_may_be_a_numpy_integer(operation, rng, dtype):
    x = rows(rng, dtype, 4, 5)
    np.testing.assert_array_equal(getattr(fastattn, operation)(x, np.int8(0)), getattr(fastattn, operation)(x, 0))


# where


@pytest.mark.parametrize(
    "mask_shape", [(6, 7, 37), (1, 7, 37), (7, 37), (37,), (6, 1, 37), (6, 7, 1), (1,), (7, 1)], ids=str
)
def test_where_broadcasts(operation, rng, dtype, mask_shape):
    x = rows(rng, dtype, 6, 7, 37)
    where = rng.random(mask_shape) < 0.6
    for axis in (-1, 0, 1):
        assert_row_accurate(operation, x, axis, where=where)


@pytest.mark.parametrize("size", [*SIZES, 4099])
def test_where_over_row_lengths(operation, rng, dtype, size):
    x = rows(rng, dtype, 16, size)
    where = rng.random(x.shape) < 0.5
    where[3], where[4] = False, True
    assert_row_accurate(operation, x, where=where)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_layouts(operation, rng, dtype, layout):
    x = rows(rng, dtype, 6, 5, 34)
    where = LAYOUTS[layout](rng.random(x.shape) < 0.5)
    assert_row_accurate(operation, x, where=where)


def test_where_over_long_rows(operation, rng, dtype):
    """Rows that the kernel takes span by span, 32,768 elements at a time."""
    x = rows(rng, dtype, 3, 70_001)
    where = rng.random(x.shape) < 0.5
    result = getattr(fastattn, operation)(x, where=where)
    assert_equal(result, getattr(fastattn, operation)(np.where(where, x, dtype.type(-np.inf))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_where_takes_out_does_not_leak(operation, rng, dtype, bad):
    x = rows(rng, dtype, 20, 50)
    where = rng.random(x.shape) < 0.5
    expected = getattr(fastattn, operation)(x, where=where)
    x[~where] = bad
    result = getattr(fastattn, operation)(x, where=where)
    np.testing.assert_array_equal(result, expected)
    assert (result[~where] == (0 if operation == "softmax" else -np.inf)).all()


# Rows with something special in them


@pytest.mark.parametrize("size", [1, 3, 16, 17, 100, 5000])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_that_are_all_minus_infinity(rng, dtype, size, axis):
    x = rows(rng, dtype, 40, size)
    x[1], x[2, 1:] = -np.inf, -np.inf
    x = np.moveaxis(x, 1, axis).copy()
    nothing = np.moveaxis(assert_row_accurate("softmax", x, axis), axis, 1)[1]
    np.testing.assert_array_equal(nothing, 0)
    nothing = np.moveaxis(assert_row_accurate("log_softmax", x, axis), axis, 1)[1]
    np.testing.assert_array_equal(nothing, -np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [1, 2, 17, 64, 5000])
def test_nan_fills_its_row_and_no_other(operation, rng, dtype, bad, size):
    x = rows(rng, dtype, 5, size)
    clean = getattr(fastattn, operation)(x)
    for place in {0, size // 2, size - 1}:
        spoiled = x.copy()
        spoiled[2, place] = bad
        result = getattr(fastattn, operation)(spoiled)
        assert np.isnan(result[2]).all()
        np.testing.assert_array_equal(np.delete(result, 2, axis=0), np.delete(clean, 2, axis=0))
        columns = getattr(fastattn, operation)(spoiled.T.copy(), axis=0)
        assert np.isnan(columns[:, 2]).all()
        assert np.isnan(columns).sum() == size


@pytest.mark.parametrize("offset", [0, 1e4, -1e4, 3e38, -3e38])
def test_large_values_do_not_overflow(operation, rng, dtype, offset):
    x = random(rng, dtype, 20, 65, centre=np.clip(offset, -0.9 * largest(dtype), 0.9 * largest(dtype)), spread=3)
    assert_row_accurate(operation, x)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 30, 1000, 1e30])
def test_spreads(operation, rng, dtype, spread):
    assert_row_accurate(operation, rows(rng, dtype, 20, 65, spread=min(spread, largest(dtype) / 16)))


@pytest.mark.parametrize("size", [1, 2, 16, 100, 1024])
def test_equal_elements(dtype, size):
    x = np.full((3, size), 7.25, dtype)
    np.testing.assert_allclose(fastattn.softmax(x), 1 / size, rtol=eps(dtype))


@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_long_rows_in_order(operation, dtype, order):
    """The running maximum changes at every step, or never after the first."""
    x = np.linspace(0, 40 * order, 20_011, dtype=dtype)[None]
    assert_row_accurate(operation, x)


@pytest.mark.wide
def test_exponential_over_its_range(rng, dtype):
    """Element by element, from 1 down to the smallest normal float32.

    The second element of (m, m - t) is e^-t. Rounding t · log2(e) costs half an ulp for each unit of t, and as much
    again is left for the rounded log2(e) itself; the rest, polynomial, sum and division, costs a few.
    """
    top = rng.uniform(-100, 100, size=(20_000, 1))
    x = np.concatenate([top, top - rng.uniform(0, 87, size=top.shape)], axis=1).astype(dtype)
    expected = by_oracle("softmax", dtype, x)[:, 1]
    error = np.abs(fastattn.softmax(x)[:, 1] - expected) / expected
    assert (error <= (4 + np.abs(x[:, 0] - x[:, 1])) * eps(dtype)).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_every_weight_of_16_bits_is_rounded_once(dtype, axis):
    """Each number from 0 down, against 0: no more than half a unit, and what float32 has lost by then."""
    depth = np.arange(1 << 15, dtype=np.uint16).view(dtype)
    depth = -depth[np.isfinite(depth.astype(np.float32))]
    x = np.stack([np.zeros_like(depth), depth], axis=1)
    expected = fastattn.reference.softmax(x)
    result = fastattn.softmax(np.moveaxis(x, 1, axis).copy(), axis)
    unit = np.spacing(expected.astype(dtype)).astype(np.float64)
    error = np.abs(np.moveaxis(result, axis, 1) - expected)
    # Weights that float32 has no normal number for may be zero.
    assert (error <= 0.501 * unit + np.finfo(np.float32).tiny).all()


def test_exponential_falls_to_zero(dtype):
    """Far below the maximum: nothing negative, nothing NaN, never rising, zero in the end."""
    depth = np.linspace(0, 2000, 20_001, dtype=dtype)
    x = np.stack([np.zeros_like(depth), -depth], axis=1)
    weights = fastattn.softmax(x)[:, 1]
    assert (weights >= 0).all()
    assert (np.diff(weights) <= eps(dtype)).all()
    assert weights[-1] == 0


# Memory order


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(operation, rng, dtype, layout):
    x = LAYOUTS[layout](rows(rng, dtype, 5, 6, 35))
    before = x.copy()
    for axis in (-1, 0, 1):
        assert_row_accurate(operation, x, axis)
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(operation, rng, dtype, layout):
    x = rows(rng, dtype, 5, 6, 35)
    for axis in (-1, 0, 1):
        out = empty_laid_out(x.shape, dtype, layout)
        assert assert_row_accurate(operation, x, axis, out=out) is out
        assert_nothing_written_around(out)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)], ids=str)
def test_result_keeps_the_memory_order(operation, rng, dtype, axes):
    x = rows(rng, dtype, 3, 4, 5).transpose(np.argsort(axes))
    assert x.transpose(axes).flags.c_contiguous
    assert getattr(fastattn, operation)(x).transpose(axes).flags.c_contiguous


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_in_place(operation, rng, dtype, layout):
    given = rows(rng, dtype, 5, 6, 35)
    for axis in (-1, 0, 1):
        x = laid_out(given, layout)
        assert assert_row_accurate(operation, x, axis, out=x) is x
        assert_nothing_written_around(x)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("distance", [1, 3, 64, -1, -64])
def test_out_overlaps_the_input(operation, rng, dtype, distance, axis):
    memory = rows(rng, dtype, 40 * 50 + 128)
    x, out = (memory[start : start + 2000].reshape(40, 50) for start in (64, 64 + distance))
    assert_row_accurate(operation, x, axis, out=out)


@pytest.mark.parametrize("axis", [0, 1])
def test_out_is_the_input_transposed(operation, rng, dtype, axis):
    x = rows(rng, dtype, 37, 37)
    assert_row_accurate(operation, x, axis, out=x.T)


@pytest.mark.parametrize("axis", [0, 1])
def test_out_runs_backwards_over_the_input(operation, rng, axis):
    given = rows(rng, np.dtype(np.float32), 9, 21)
    expected = getattr(fastattn, operation)(given, axis)
    for where, x, out in backwards_over(given):
        with telling(out=where):
            assert_equal(getattr(fastattn, operation)(x, axis, out=out), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_out_holds_the_mask(operation, rng, dtype, axis):
    """All of the mask lies in the first rows of the result."""
    x = rows(rng, dtype, 40, 33)
    out = np.empty(x.shape, dtype)
    where = out.reshape(-1).view(bool)[: x.size].reshape(x.shape)
    where[...] = rng.random(x.shape) < 0.5
    expected = getattr(fastattn, operation)(x, axis, where=where.copy())
    result = getattr(fastattn, operation)(x, axis, where=where, out=out)
    assert result is out
    np.testing.assert_array_equal(result, expected)


@pytest.mark.wide
def test_results_stored_around_the_cache(operation, rng, dtype):
    """To the bit as through it, wherever rows begin and end, with gaps between them or none."""
    for size in (64, 65, 72, 79, 96, 127, 129, 257, 513, 1000, 1025, 1035, 32_771):
        for count, place, gap in ((1, 0, 0), (2, 1, 0), (5, 7, 0), (4, 15, 0), (3, 2, 1), (3, 9, 16)):
            x = rows(rng, dtype, min(count, 3) if size > 10_000 else count, size)
            expected = getattr(fastattn, operation)(x)
            out = rows_at(place, x.shape, gap, dtype)
            with results_stored_around_the_cache(), telling(x=x, place=place, gap=gap):
                getattr(fastattn, operation)(x, out=out)
                assert_equal(out, expected)
                assert_nothing_written_around(out)
                assert_equal(getattr(fastattn, operation)(x, out=x), expected)


@pytest.mark.wide
def test_results_stored_around_the_cache_by_several_threads(operation, rng, dtype):
    """Items end in the middle of a vector, where the next one begins."""
    x = rows(rng, dtype, 9000, 67)
    expected = getattr(fastattn, operation)(x)
    with results_stored_around_the_cache():
        for num_threads in (1, 2, 3):
            assert_equal(getattr(fastattn, operation)(x, num_threads=num_threads), expected)


@pytest.mark.parametrize("size", [*SIZES, 4099])
def test_nothing_outside_is_touched(operation, rng, dtype, size):
    for shape, at in itertools.product(((1, size), (2, size), (size, 2)), ("start", "end")):
        x, out = fenced("x").place(shape, dtype, at), fenced("out").place(shape, dtype, at)
        where = fenced("where").place(shape, bool, at)
        x[...], where[...] = rows(rng, dtype, *shape), rng.random(shape) < 0.8
        for axis in (0, 1):
            getattr(fastattn, operation)(x, axis, where=where, out=out)
            getattr(fastattn, operation)(x, axis, out=out)
            tolerance = 64 * eps(dtype)
            np.testing.assert_allclose(out, getattr(fastattn.reference, operation)(x, axis), tolerance, tolerance)
