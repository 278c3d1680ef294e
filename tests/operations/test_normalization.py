"""layer_norm, rms_norm and their residual forms against the oracle."""

import itertools

import numpy as np
import pytest

import fastattn
from support.accuracy import assert_accurate, by_formula, by_oracle
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
    rows_at,
)
from support.dtypes import ALL, HALF, assert_equal, computed_in, eps, largest, random, readable, smallest
from support.telling import telling
from support.thresholds import results_stored_around_the_cache

pytestmark = pytest.mark.usefixtures("target")

# Operation -> its array arguments: rows first, then vectors of a row's length.
ARRAYS = {
    "layer_norm": (("x",), ("weight", "bias")),
    "rms_norm": (("x",), ("weight",)),
    "add_layer_norm": (("x", "residual"), ("weight", "bias")),
    "add_rms_norm": (("x", "residual"), ("weight",)),
}
ADDING = ("add_layer_norm", "add_rms_norm")
LONG_SIZES = (384, 768, 1000, 4096, 4099, 33_001)
# Parts of a vector of 2 to 16 elements, up to four vectors, and more.
SHORT_SIZES = (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 22, 31, 32, 33, 48, 63, 64, 65, 96, 129)


@pytest.fixture(params=ARRAYS)
def operation(request):
    return request.param


@pytest.fixture(params=ADDING)
def adding(request):
    return request.param


def arguments(operation, rng, dtype, *shape):
    rows, vectors = ARRAYS[operation]
    return {name: rng.normal(size=shape).astype(dtype) for name in rows} | {
        name: rng.normal(size=shape[-1:]).astype(dtype) for name in vectors
    }


def results(module, operation, arrays, **options):
    """The results as a tuple, whether one or two."""
    result = getattr(module, operation)(**arrays, **options)
    return result if operation in ADDING else (result,)


def assert_norm_accurate(operation, arrays, *, out=None, num_threads=None, **options):
    """The operation on these arrays, held to the accuracy rule; returns a tuple of its results."""
    right = answers(operation, arrays, **options)
    ours = results(fastattn, operation, arrays, out=out, num_threads=num_threads, **options)
    for result, formula, expected in zip(ours, *right, strict=True):
        assert_accurate(result, formula, expected)
    return ours


def answers(operation, arrays, **options):
    """The results of the NumPy formula and of the oracle, each a tuple."""
    expected = by_oracle(operation, arrays["x"].dtype, **arrays, **options)
    formula = by_formula(operation, **arrays, **options)
    return (formula, expected) if operation in ADDING else ((formula,), (expected,))


# Sizes


@pytest.mark.parametrize("size", [*SIZES, *LONG_SIZES])
def test_row_lengths(operation, rng, dtype, size):
    assert_norm_accurate(operation, arguments(operation, rng, dtype, 3 if size > 4096 else 40, size))


@pytest.mark.parametrize(
    ("count", "size"),
    list(zip((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 1000), itertools.cycle((5, 64, 100)), strict=False)),
)
def test_row_counts(operation, rng, dtype, count, size):
    """Many calls of so many rows each, judged together."""
    calls = 2000 // (count * size) + 1
    arrays = arguments(operation, rng, dtype, calls, count, size)
    by_row = ARRAYS[operation][0]
    ours = [
        results(fastattn, operation, {name: x[i] if name in by_row else x for name, x in arrays.items()})
        for i in range(calls)
    ]
    for result, formula, expected in zip(zip(*ours, strict=True), *answers(operation, arrays), strict=True):
        assert_accurate(np.stack(result), formula, expected)


@pytest.mark.parametrize("size", SHORT_SIZES)
def test_bits_do_not_depend_on_the_rows_beside(operation, rng, dtype, size):
    """Short rows are computed in groups: each gives what it gives alone, in any place and layout."""
    arrays = arguments(operation, rng, dtype, 9, size)
    by_row = ARRAYS[operation][0]
    for absent in ((), ("weight",), ("bias",), ("weight", "bias")):
        given = {name: x for name, x in arrays.items() if name not in absent}

        def rows(which, given=given):
            return results(fastattn, operation, {name: x[which] if name in by_row else x for name, x in given.items()})

        alone = [rows(np.s_[i : i + 1]) for i in range(9)]
        expected = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
        for first, last in ((0, 9), (0, 2), (1, 4), (2, 6), (3, 8)):
            for got, right in zip(rows(np.s_[first:last]), expected, strict=True):
                assert_equal(got, right[first:last])
        strided = {name: laid_out(x, "fortran") if name in by_row else x for name, x in given.items()}
        for got, right in zip(results(fastattn, operation, strided), expected, strict=True):
            assert_equal(got, right)


@pytest.mark.parametrize("size", SHORT_SIZES)
def test_short_rows_of_any_magnitude(operation, rng, dtype, size):
    """Beside ordinary ones of the same group: NaN, infinity, zeros, and squares that overflow or vanish."""
    arrays = arguments(operation, rng, dtype, 10, size)
    clean = results(fastattn, operation, arrays, eps=0.0)
    rows = arrays["x"]
    rows[1], rows[2], rows[4, size // 2], rows[6, 0] = np.nan, np.inf, -np.inf, largest(dtype)
    rows[7], rows[9] = 0, smallest(dtype)
    spoiled = results(fastattn, operation, arrays, eps=0.0)
    for got, before in zip(spoiled, clean, strict=True):
        assert_equal(got[[0, 3, 5, 8]], before[[0, 3, 5, 8]])
    for i in range(10):
        row = {name: x[i : i + 1] if name in ARRAYS[operation][0] else x for name, x in arrays.items()}
        for got, right in zip(spoiled, results(fastattn, operation, row, eps=0.0), strict=True):
            assert_equal(got[i : i + 1], right)


@pytest.mark.parametrize("size", SHORT_SIZES)
def test_short_rows_in_place(operation, rng, dtype, size):
    for count in (1, 3, 4, 6, 9):
        arrays = arguments(operation, rng, dtype, count, size)
        expected = results(fastattn, operation, arrays)
        places = [("x",)] if operation not in ADDING else [("x", "residual"), ("residual", "x")]
        for names in places:
            copies = {name: x.copy() for name, x in arrays.items()}
            outs = tuple(copies[name] for name in names)
            results(fastattn, operation, copies, out=outs if operation in ADDING else outs[0])
            for out, right in zip(outs, expected, strict=True):
                assert_equal(out, right)


@pytest.mark.parametrize("shape", [(70,), (3, 4, 70), (2, 3, 4, 5, 6)], ids=str)
def test_dimensions(operation, rng, dtype, shape):
    assert_norm_accurate(operation, arguments(operation, rng, dtype, *shape))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)], ids=str)
def test_no_rows(operation, rng, dtype, shape):
    for result in results(fastattn, operation, arguments(operation, rng, dtype, *shape)):
        assert result.shape == shape
        assert result.dtype == dtype


# Options


@pytest.mark.parametrize("missing", ["weight", "bias", "both"])
def test_weight_and_bias_are_optional(operation, rng, dtype, missing):
    for size in (7, 64, 1000):
        arrays = arguments(operation, rng, dtype, 20, size)
        for name in ("weight", "bias"):
            if missing in (name, "both"):
                arrays.pop(name, None)
        assert_norm_accurate(operation, arrays)


@pytest.mark.parametrize("eps", [0, 0.0, 1e-12, 1e-5, 1.0, 100, np.float32(1e-3)], ids=repr)
def test_eps(operation, rng, dtype, eps):
    assert_norm_accurate(operation, arguments(operation, rng, dtype, 20, 70), eps=eps)


@pytest.mark.parametrize("stored", ALL, ids=str)
def test_weight_and_bias_of_another_type(operation, rng, dtype, stored):
    if stored == np.float64 and dtype != np.float64:
        pytest.skip("wider than what it is computed in")
    arrays = arguments(operation, rng, dtype, 20, 70)
    for name in ARRAYS[operation][1]:
        arrays[name] = arrays[name].astype(stored)
    for result in assert_norm_accurate(operation, arrays):
        assert result.dtype == dtype


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_weights_are_not_rounded_to_16_bits(rng, dtype):
    """A weight in float32 counts whole: only the result is rounded."""
    x, weight = np.ones((3, 1000), dtype), rng.normal(size=1000).astype(np.float32)
    expected = np.broadcast_to(weight.astype(dtype), x.shape)
    assert_equal(fastattn.rms_norm(x, weight, eps=0.0), expected)


# Values


@pytest.mark.parametrize("offset", [1, 100, 1e4])
def test_means_far_from_zero(operation, rng, dtype, offset):
    arrays = arguments(operation, rng, dtype, 40, 1000)
    arrays["x"] += dtype.type(offset)
    assert_norm_accurate(operation, arrays)


@pytest.mark.wide
@pytest.mark.parametrize("size", [1000, 4099])
def test_the_mean_is_corrected(rng, dtype, size):
    """Rounding leaves the first sum of a row some units off. Uncorrected, draws missed the rule by up to 8 times."""
    for offset in (100, 1e6):
        for draw in range(8):
            with telling(offset=offset, draw=draw):
                assert_norm_accurate("layer_norm", {"x": (rng.normal(size=(2, size)) + offset).astype(dtype)})


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e-3, 1e3, 1e15])
def test_magnitudes(operation, rng, dtype, factor):
    arrays = arguments(operation, rng, dtype, 40, 300)
    for name in ARRAYS[operation][0]:
        arrays[name] *= dtype.type(min(factor, largest(dtype) / 16))
    assert_norm_accurate(operation, arrays)


@pytest.mark.parametrize("size", [1, 3, 64, 1000])
def test_constant_rows(operation, dtype, size):
    """A row without variance has no direction: layer_norm gives zeros."""
    for value in (0.0, 1.0, -0.1, 1234.5):
        arrays = {name: np.full((3, size), value, dtype) for name in ARRAYS[operation][0]}
        if "rms" in operation:
            assert_norm_accurate(operation, arrays)
        else:
            # The mean of equal numbers may be an ulp off, which division by sqrt(eps) then makes larger.
            ulp = eps(dtype) * abs(sum(x[0, 0] for x in arrays.values()))
            assert np.abs(results(fastattn, operation, arrays)[0]).max() <= ulp / np.sqrt(1e-5)


@pytest.mark.parametrize("size", [1, 5, 64, 1000])
def test_nan_stays_in_its_row(operation, rng, dtype, size):
    arrays = arguments(operation, rng, dtype, 9, size)
    clean = results(fastattn, operation, arrays)
    for bad in (np.nan, np.inf, -np.inf):
        arrays["x"][4, size // 2] = bad
        spoiled = results(fastattn, operation, arrays)
        assert np.isnan(spoiled[0][4, size // 2])
        for got, expected in zip(spoiled, clean, strict=True):
            np.testing.assert_array_equal(np.delete(got, 4, axis=0), np.delete(expected, 4, axis=0))


@pytest.mark.parametrize("size", [5, 64, 1000])
@pytest.mark.parametrize("magnitude", ["overflow", "largest", "underflow", "smallest"])
def test_squares_that_the_type_does_not_hold(operation, rng, dtype, magnitude, size):
    """Of a few rows; the others do not change by a bit."""
    limits = np.finfo(computed_in(dtype))
    power = {"overflow": 0.6 * limits.maxexp, "underflow": 0.6 * limits.minexp, "smallest": 0.99 * limits.minexp}
    power = int(power.get(magnitude, np.log2(largest(dtype)) - 5))
    if not np.log2(smallest(dtype)) < power < np.log2(largest(dtype)):
        pytest.skip("its numbers reach neither")
    arrays = arguments(operation, rng, dtype, 12, size)
    clean = results(fastattn, operation, arrays, eps=0.0)
    for name in ARRAYS[operation][0]:
        rows = arrays[name][3:7].astype(computed_in(dtype))
        arrays[name][3:7] = np.ldexp(rows, power).astype(dtype)
    ours = results(fastattn, operation, arrays, eps=0.0)
    _, expected = answers(operation, arrays, eps=0.0)
    for result, right, before in zip(ours, expected, clean, strict=True):
        assert_equal(np.delete(result, slice(3, 7), 0), np.delete(before, slice(3, 7), 0))
        error = np.abs(result[3:7].astype(right.dtype) - right[3:7])
        assert (error < 8 * eps(dtype) * np.abs(right[3:7]).max(axis=-1, keepdims=True)).all()


@pytest.mark.wide
@pytest.mark.parametrize("power", [0.9, 0.6, 0, -0.6, -0.9])
def test_one_number_alone(operation, dtype, power):
    """Beside zeros, at any magnitude: the squares of the distances of all others from the mean are equal."""
    limits = np.finfo(dtype)
    for size in (2, 40, 5000):
        x = np.zeros((2, size), dtype)
        x[:, size // 2] = np.ldexp([1.1, -1.7], int(power * (limits.maxexp if power > 0 else -limits.minexp)))
        arrays = {name: x if name == "x" else np.zeros_like(x) for name in ARRAYS[operation][0]}
        result, *_ = results(fastattn, operation, arrays, eps=0.0)
        expected = by_oracle(operation, dtype, **arrays, eps=0.0)
        expected = expected[0] if operation in ADDING else expected
        error = np.abs(result - expected)
        assert (error <= 4 * eps(dtype) * np.abs(expected).max(axis=-1, keepdims=True)).all()


@pytest.mark.parametrize("number", [0, np.inf, -np.inf, np.nan])
def test_rows_that_have_no_magnitude(operation, dtype, number):
    rows = {name: np.full((2, 40), number if name == "x" else 0, dtype) for name in ARRAYS[operation][0]}
    y, *_ = results(fastattn, operation, rows, eps=0.0)
    assert np.isnan(readable(y)).all()


def test_large_numbers_among_many_rows(operation):
    """Results beyond the cache's size are stored around it, but those of rows that are made in another way."""
    rows, vectors = ARRAYS[operation]
    x = np.random.default_rng(0).normal(size=(11_000, 1003)).astype(np.float32)
    parameters = {name: x[1] for name in vectors}
    usual = results(fastattn, operation, {name: x for name in rows} | parameters)
    large = x.copy()
    large[::7] *= np.float32(1e30)
    ours = results(fastattn, operation, {name: large for name in rows} | parameters)
    alone = results(fastattn, operation, {name: large[:210:7] for name in rows} | parameters)
    for result, before, expected in zip(ours, usual, alone, strict=True):
        assert_equal(np.delete(result, slice(None, None, 7), 0), np.delete(before, slice(None, None, 7), 0))
        assert_equal(result[:210:7], expected)
        assert np.isfinite(result).all()


def test_one_outlier(operation, rng, dtype):
    """As in trained models: one channel a thousand times larger than the others."""
    arrays = arguments(operation, rng, dtype, 40, 768)
    arrays["x"][:, 5] = 3000
    assert_norm_accurate(operation, arrays)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_sums_are_normalised_before_they_are_rounded(adding, rng, dtype):
    """In float32 the sum of two such numbers is exact here, and so is its norm to half a unit."""
    arrays = {name: random(rng, dtype, 40, 300) for name in ARRAYS[adding][0]}
    y, total = results(fastattn, adding, arrays)
    exact = sum(x.astype(np.float32) for x in arrays.values())
    assert (total != exact).any()
    expected = getattr(fastattn, adding.removeprefix("add_"))(exact)
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=0.501 * eps(dtype), atol=1e-6)


def test_sum_is_that_of_numpy(adding, rng, dtype):
    arrays = arguments(adding, rng, dtype, 20, 70)
    _, total = results(fastattn, adding, arrays)
    np.testing.assert_array_equal(total, arrays["x"] + arrays["residual"])


# Memory order


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(operation, rng, dtype, layout):
    for size in (13, 70):
        arrays = arguments(operation, rng, dtype, 4, 7, size)
        # The rule needs rows that vary.
        if layout == "one_element_repeated":
            arrays["weight"] = LAYOUTS[layout](arrays["weight"])
        else:
            arrays = {name: LAYOUTS[layout](x) for name, x in arrays.items()}
        before = {name: x.copy() for name, x in arrays.items()}
        assert_norm_accurate(operation, arrays)
        for name, x in arrays.items():
            np.testing.assert_array_equal(x, before[name])


def test_residual_in_another_layout(adding, rng, dtype):
    arrays = arguments(adding, rng, dtype, 4, 7, 70)
    arrays["residual"] = laid_out(arrays["residual"], "fortran")
    assert_norm_accurate(adding, arrays)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(operation, rng, dtype, layout):
    arrays = arguments(operation, rng, dtype, 4, 7, 70)
    outs = tuple(empty_laid_out((4, 7, 70), dtype, layout) for _ in range(2 if operation in ADDING else 1))
    ours = assert_norm_accurate(operation, arrays, out=outs if operation in ADDING else outs[0])
    for result, out in zip(ours, outs, strict=True):
        assert result is out
        assert_nothing_written_around(out)


@pytest.mark.parametrize("place", [0, 1], ids=["y", "total"])
def test_results_in_different_layouts(adding, rng, dtype, place):
    """Each has strides of its own."""
    arrays = arguments(adding, rng, dtype, 4, 7, 70)
    outs = [np.empty((4, 7, 70), dtype) for _ in range(2)]
    outs[place] = empty_laid_out((4, 7, 70), dtype, "fortran")
    assert_norm_accurate(adding, arrays, out=tuple(outs))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)], ids=str)
def test_results_keep_the_memory_order(operation, rng, dtype, axes):
    arrays = arguments(operation, rng, dtype, 3, 4, 5)
    for name in ARRAYS[operation][0]:
        arrays[name] = np.ascontiguousarray(arrays[name].transpose(axes)).transpose(np.argsort(axes))
    for result in results(fastattn, operation, arrays):
        assert result.transpose(axes).flags.c_contiguous


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_in_place(operation, rng, dtype, layout):
    arrays = arguments(operation, rng, dtype, 4, 7, 70)
    arrays["x"] = laid_out(arrays["x"], layout)
    expected = getattr(fastattn, operation)(**arrays)
    assert getattr(fastattn, operation)(**arrays, out=arrays["x"]) is arrays["x"]
    np.testing.assert_array_equal(arrays["x"], expected)


@pytest.mark.parametrize("y_over_x", [True, False], ids=["y over x", "y over residual"])
def test_adding_in_place(adding, rng, dtype, y_over_x):
    """The usual step of a transformer: normalised rows replace x, the sum replaces the residual. Or the other way."""
    arrays = arguments(adding, rng, dtype, 20, 70)
    expected = getattr(fastattn, adding)(**arrays)
    out = (arrays["x"], arrays["residual"]) if y_over_x else (arrays["residual"], arrays["x"])
    result = getattr(fastattn, adding)(**arrays, out=out)
    for got, given, right in zip(result, out, expected, strict=True):
        assert got is given
        np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("distance", [1, 3, 64, -1, -64])
def test_out_overlaps_the_input(operation, rng, dtype, distance):
    arrays = arguments(operation, rng, dtype, 40, 50)
    expected = results(fastattn, operation, arrays)
    memory = np.zeros(2000 + 128, dtype)
    x, out = (memory[start : start + 2000].reshape(40, 50) for start in (64, 64 + distance))
    x[...] = arrays["x"]
    outs = (out, np.empty_like(out)) if operation in ADDING else out
    for got, right in zip(results(fastattn, operation, arrays | {"x": x}, out=outs), expected, strict=True):
        np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("place", [0, 1], ids=["y", "total"])
@pytest.mark.parametrize("name", ["x", "residual"])
def test_each_result_may_overlap_each_operand(adding, rng, place, name):
    """Shifted by elements or rows, or backwards: the other result has memory of its own."""
    dtype = np.dtype(np.float32)
    arrays = arguments(adding, rng, dtype, 40, 50)
    expected = results(fastattn, adding, arrays)
    for over, rows, out in backwards_over(arrays[name], (np.s_[:], *REVERSALS)):
        outs = [np.empty_like(rows), np.empty_like(rows)]
        outs[place] = out
        with telling(over=over):
            for got, right in zip(
                results(fastattn, adding, arrays | {name: rows}, out=tuple(outs)), expected, strict=True
            ):
                assert_equal(got, right)


@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_out_runs_backwards_over_the_input(operation, rng):
    arrays = arguments(operation, rng, np.dtype(np.float32), 9, 21)
    expected = getattr(fastattn, operation)(**arrays)
    for where, x, out in backwards_over(arrays["x"]):
        with telling(out=where):
            assert_equal(getattr(fastattn, operation)(**arrays | {"x": x}, out=out), expected)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("place", [0, 1], ids=["y", "total"])
def test_each_result_may_overlap_weight_and_bias(rng, place, name):
    arrays = arguments("add_layer_norm", rng, np.dtype(np.float32), 5, 70)
    expected = fastattn.add_layer_norm(**arrays)
    outs = [np.empty_like(arrays["x"]), np.empty_like(arrays["x"])]
    outs[place][0] = arrays[name]
    result = fastattn.add_layer_norm(**arrays | {name: outs[place][0]}, out=tuple(outs))
    for got, right in zip(result, expected, strict=True):
        assert_equal(got, right)


@pytest.mark.wide
def test_results_stored_around_the_cache(operation, rng, dtype):
    """To the bit as through it, wherever rows begin and end, with gaps between them or none."""
    for size in (64, 65, 72, 79, 96, 127, 129, 1000):
        for count, place, gap in ((1, 0, 0), (2, 1, 0), (5, 7, 0), (4, 15, 0), (3, 2, 1), (6, 9, 16)):
            arrays = arguments(operation, rng, dtype, count, size)
            for name in [("weight",), ("bias",), ("weight", "bias"), (), ()][count % 5]:
                arrays.pop(name, None)
            expected = results(fastattn, operation, arrays)
            outs = tuple(rows_at(place, (count, size), gap, dtype) for _ in expected)
            with results_stored_around_the_cache(), telling(**arrays, place=place, gap=gap):
                results(fastattn, operation, arrays, out=outs if operation in ADDING else outs[0])
                for out, right in zip(outs, expected, strict=True):
                    assert_equal(out, right)
                    assert_nothing_written_around(out)


@pytest.mark.wide
def test_results_stored_around_the_cache_by_several_threads(operation, rng, dtype):
    """Items end in the middle of a vector, where the next one begins."""
    arrays = arguments(operation, rng, dtype, 9000, 67)
    expected = results(fastattn, operation, arrays)
    with results_stored_around_the_cache():
        for num_threads in (1, 2, 3):
            ours = results(fastattn, operation, arrays, num_threads=num_threads)
            for got, right in zip(ours, expected, strict=True):
                assert_equal(got, right)


@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_out_is_the_weight(operation, rng, dtype):
    arrays = arguments(operation, rng, dtype, 1, 70)
    expected = getattr(fastattn, operation)(**arrays)
    result = getattr(fastattn, operation)(**arrays, out=arrays["weight"][None])
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size", [*SIZES, 4099])
def test_nothing_outside_is_touched(operation, rng, dtype, size):
    for count, at in itertools.product((1, 2), ("start", "end")):
        arrays = arguments(operation, rng, dtype, count, size)
        expected = results(fastattn, operation, arrays)
        for name, x in arrays.items():
            arrays[name] = fenced(name).place(x.shape, dtype, at)
            arrays[name][...] = x
        outs = tuple(fenced(i).place((count, size), dtype, at) for i in range(len(expected)))
        results(fastattn, operation, arrays, out=outs if operation in ADDING else outs[0])
        for got, right in zip(outs, expected, strict=True):
            np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("place", [0, 1])
def test_half_of_the_out_pair_may_be_left_out(dtype, place):
    x, residual = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(dtype)
    given = np.empty_like(x)
    results = fastattn.add_layer_norm(x, residual, out=(given, None) if place == 0 else (None, given))
    assert results[place] is given
    for got, expected in zip(results, fastattn.add_layer_norm(x, residual), strict=True):
        np.testing.assert_array_equal(got, expected)
