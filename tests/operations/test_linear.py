"""linear against the oracle."""

import numpy as np
import pytest

import fastattn
from fastattn import reference
from support.accuracy import assert_accurate, by_formula
from support.arrays import (
    LAYOUTS,
    SIZES,
    WRITABLE_LAYOUTS,
    assert_nothing_written_around,
    backwards_over,
    empty_laid_out,
    fenced,
    laid_out,
    placed,
)
from support.dtypes import ALL, HALF, assert_equal, eps, largest, readable, smallest
from support.layers import (
    ACTIVATIONS,
    INT8,
    assert_close_enough,
    assert_linear_accurate,
    each,
    layer,
    plain_and_int8,
)
from support.telling import telling

pytestmark = pytest.mark.usefixtures("target")

# Also around the blocks of rows, features and inputs that a kernel may take at a time.
MORE_SIZES = (*SIZES, 191, 192, 193, 255, 256, 511, 512, 513, 769)


# Sizes


@pytest.mark.parametrize("stored", [None, INT8], ids=["plain", "int8"])
def test_inputs(rng, dtype, stored):
    for inputs in (0, *MORE_SIZES, 4099):
        assert_linear_accurate(layer(rng, dtype, 40, inputs, 50, stored))


@pytest.mark.parametrize("stored", [None, INT8], ids=["plain", "int8"])
def test_outputs(rng, dtype, stored):
    for outputs in MORE_SIZES:
        assert_linear_accurate(layer(rng, dtype, 40, 30, max(outputs, 50), stored), outputs=outputs)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_few_rows(rng, dtype, rows):
    """NumPy makes their products by other means, more exactly."""
    for inputs in (20, 64, 129, 300, 768):
        for arrays in plain_and_int8(rng, dtype, rows, inputs, 150):
            assert_linear_accurate(arrays, activation="gelu")


@pytest.mark.parametrize("rows", range(1, 7))
def test_few_rows_and_few_outputs(rng, dtype, rows):
    """A vector of outputs that is not full, and any rest of inputs: the same to the bit as of a larger weight."""
    for inputs in (1, 2, 3, 4, 7, 18, 31, 33, 67, 130, 300, 515):
        arrays = layer(rng, dtype, rows, inputs, 40)
        result = assert_linear_accurate(arrays)
        for outputs in range(1, 20):
            some = {name: arrays[name][:outputs] for name in ("weight", "bias")}
            some["residual"] = arrays["residual"][:, :outputs]
            assert_equal(fastattn.linear(**arrays | some), result[:, :outputs])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("inputs", "outputs"), [(19, 40), (67, 70), (300, 33), (1030, 70)])
def test_rows(rng, dtype, inputs, outputs):
    """So many rows, from either end, are the same to the bit as among more of them."""
    for arrays in plain_and_int8(rng, dtype, 400, inputs, outputs):
        result = assert_linear_accurate(arrays)
        for count in (0, *SIZES, 191, 192, 193, 255, 257):
            for rows in (slice(count), slice(400 - count, None)):
                assert_equal(linear_of(arrays, rows), result[rows])


def linear_of(arrays, rows):
    return fastattn.linear(**arrays | {name: arrays[name][rows] for name in ("x", "residual")})


@pytest.mark.parametrize("rows", [(), (1,), (2, 7), (2, 3, 4, 5)], ids=str)
def test_dimensions(rng, dtype, rows):
    for arrays in plain_and_int8(rng, dtype, rows, 7, 300):
        assert_linear_accurate(arrays)


@pytest.mark.parametrize(("rows", "outputs"), [((0,), 5), ((3, 0), 5), ((3,), 0), ((), 0)], ids=str)
def test_no_results(rng, dtype, rows, outputs):
    for arrays in plain_and_int8(rng, dtype, rows, 4, outputs):
        result = fastattn.linear(**arrays)
        assert result.shape == (*rows, outputs)
        assert result.dtype == dtype


# More inputs than four times the 16384 products of 8-bit integers that 32 bits surely hold.
LONG = 4 * 16384 + 1037


def test_long_rows(rng, dtype):
    for arrays in plain_and_int8(rng, dtype, 20, LONG, 12):
        assert_linear_accurate(arrays)


def test_sums_of_integers_do_not_overflow(dtype):
    """The largest products there are, all of one sign: each is exact, and so are their sums but for a last rounding."""
    values = np.repeat(np.array([[127], [-127], [-128]], np.int8), LONG, axis=1)
    weight = values, np.full(3, 1 / LONG, np.float32)
    x = np.repeat(np.array([[3], [-3]], dtype), LONG, axis=1)
    expected = reference.linear(x, weight)
    result = fastattn.linear(x, weight)
    np.testing.assert_allclose(result.astype(float), expected, rtol=2 * eps(dtype) + 1e-6)


# Options


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_options(rng, dtype, activation):
    for arrays in plain_and_int8(rng, dtype, 40, 70, 65):
        arrays["x"] *= dtype.type(3)
        for given in (("x", "weight"), ("x", "weight", "bias"), ("x", "weight", "residual"), arrays):
            assert_linear_accurate({name: arrays[name] for name in given}, activation=activation)


@pytest.mark.parametrize("stored", ALL, ids=str)
def test_weight_and_bias_of_other_types(rng, dtype, stored):
    if stored == np.float64 and dtype != np.float64:
        pytest.skip("wider than what it is computed in")
    for inputs in (5, 300):
        arrays = layer(rng, dtype, 40, inputs, 65)
        for names in (("weight",), ("bias",), ("weight", "bias")):
            changed = {name: arrays[name].astype(stored) for name in names}
            assert assert_linear_accurate(arrays | changed, activation="gelu").dtype == dtype
        arrays = layer(rng, dtype, 40, inputs, 65, INT8)
        assert_linear_accurate(arrays | {"bias": arrays["bias"].astype(stored)})


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_weights_are_not_rounded_to_16_bits(rng, dtype):
    """The difference of neighbours in float32 shows."""
    one = rng.normal(size=40).astype(np.float32)
    weight = np.stack([one, np.nextafter(one, np.float32(9))], axis=1)
    result = fastattn.linear(np.array([[-1024, 1024]], dtype), weight)
    assert_equal(result, ((weight[:, 1] - weight[:, 0]) * np.float32(1024)).astype(dtype)[None])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_results_are_rounded_once(rng, dtype):
    """Bias and residual join the sum in float32: where that is 0, theirs is all there is to round."""
    arrays = layer(rng, dtype, 30, 7, 40) | {"bias": rng.normal(size=40).astype(np.float32)}
    arrays["x"][:] = 0
    assert_equal(fastattn.linear(**arrays), (arrays["bias"] + arrays["residual"].astype(np.float32)).astype(dtype))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
def test_activations(dtype, activation):
    """Over their whole range, part by part: each has a magnitude of its own."""
    one = np.ones((1, 1), dtype)
    for low, high in ((-30, -6), (-6, -2), (-2, -0.5), (-0.5, 0.5), (0.5, 6), (6, 30)):
        x = np.linspace(low, high, 999)[:, None].astype(dtype)
        result = fastattn.linear(x, one, activation=activation)
        formula = by_formula("linear", x, one, activation=activation)
        assert_accurate(result.T, formula.T, reference.linear(x, one, activation=activation).T)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
def test_activations_give_no_subnormal_numbers(dtype, activation):
    """The next layer would take a hundred times as long with them. float16, widened, has none in float32."""
    x = np.linspace(-800, 0, 200_000)[:, None].astype(dtype)
    result = readable(fastattn.linear(x, np.ones((1, 1), dtype), activation=activation))
    tiny = np.finfo(np.float64 if dtype == np.float64 else np.float32).tiny
    assert not ((result != 0) & (np.abs(result) < tiny)).any()


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_at_the_ends(dtype, activation):
    x = np.array([[largest(dtype)], [-largest(dtype)], [np.inf], [-np.inf], [np.nan], [0]], dtype)
    with np.errstate(all="ignore"):
        expected = reference.linear(x, np.ones((1, 1)), activation=activation).astype(dtype)
    assert_equal(fastattn.linear(x, np.ones((1, 1), dtype), activation=activation), expected)


# int8

ROWS_TO_QUANTISE = {
    "positive": np.abs,
    "negative": lambda x: -np.abs(x),
    "far from zero": lambda x: x + x.dtype.type(100),
    "constant": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "one outlier": lambda x: np.where(np.arange(x.shape[1]) == 5, x.dtype.type(3000), x),
    "subnormal": lambda x: x * x.dtype.type(2.0**-135),
    "very small": lambda x: x * x.dtype.type(2.0**-125),
    "small": lambda x: x * x.dtype.type(2.0**-115),
    "large": lambda x: x * x.dtype.type(min(2.0**100, largest(x.dtype) / 16)),
}


@pytest.mark.parametrize("kind", ROWS_TO_QUANTISE)
def test_rows_beside_int8(rng, dtype, kind):
    for inputs in (6, 64, 101):
        arrays = layer(rng, dtype, 40, inputs, 50, INT8)
        arrays = {"x": ROWS_TO_QUANTISE[kind](arrays["x"]), "weight": arrays["weight"]}
        assert_close_enough(fastattn.linear(**arrays), arrays)


@pytest.mark.parametrize("dtype", [dtype for dtype in ALL if dtype != np.float16], ids=str)
def test_the_largest_range_beside_int8(dtype):
    """It is twice as large as float32's largest number."""
    large = np.float32(0.99) * np.finfo(np.float32).max
    arrays = {"x": np.array([[large, -large]], dtype), "weight": (np.ones((3, 2), np.int8), np.ones(3, np.float32))}
    assert_close_enough(fastattn.linear(**arrays), arrays)


@pytest.mark.parametrize("rows", [1, 5, 40, 150])
def test_numbers_near_the_largest_beside_int8(rng, dtype, rows):
    """Products overflow before they are scaled, their results do not; the rows between do not change by a bit."""
    for inputs in (6, 64, 301) if rows > 1 else (6, 64, 301, 66_000):
        arrays = layer(rng, dtype, rows + 1, inputs, 50, INT8)
        del arrays["residual"]
        usual = fastattn.linear(**arrays)
        arrays["x"][::2] *= dtype.type(largest(dtype) / (16 if inputs < 1000 else 4096))
        result = fastattn.linear(**arrays)
        assert_equal(result[1::2], usual[1::2])
        large = arrays | {"x": arrays["x"][::2]}
        assert_close_enough(result[::2], large)


@pytest.mark.parametrize("sign", [1, -1])
def test_results_beyond_the_largest_beside_int8(sign):
    x = np.full((3, 70), sign * 1e38, np.float32)
    weight = np.full((20, 70), 100, np.int8), np.ones(20, np.float32)
    assert_equal(fastattn.linear(x, weight), np.full((3, 20), sign * np.inf, np.float32))
    spoiled = x.copy()
    spoiled[1, 3] = np.nan
    assert np.isnan(fastattn.linear(spoiled, weight)[1]).all()


def test_zeros_stay_zeros_beside_int8(rng, dtype):
    """However the other elements are rounded, those contribute nothing."""
    arrays = layer(rng, dtype, 40, 70, 50, INT8)
    arrays["x"][:, 7:] = 0
    arrays["weight"][0][:, :7] = 0
    assert_equal(fastattn.linear(arrays["x"], arrays["weight"]), np.zeros((40, 50), dtype))


# Values


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e-3, 1e3, 1e15])
def test_magnitudes(rng, dtype, factor):
    for arrays in plain_and_int8(rng, dtype, 40, 100, 60):
        for name in ("x", "residual"):
            arrays[name] *= dtype.type(min(factor, largest(dtype) / 32))
        assert_linear_accurate(arrays)


@pytest.mark.parametrize("of_x", [0, 0.5, 1])
def test_subnormal_numbers(rng, dtype, of_x):
    """Elements of x and of the weight whose products are about the smallest normal number, many below it."""
    for inputs in (1, 70):
        arrays = layer(rng, dtype, 40, inputs, 50)
        x = arrays["x"] * dtype.type(smallest(dtype) ** of_x)
        weight = arrays["weight"] * dtype.type(smallest(dtype) ** (1 - of_x))
        assert_linear_accurate({"x": x, "weight": weight})


@pytest.mark.parametrize("inputs", [1, 33, 70, 300])
def test_rows_of_zeros_among_subnormal_numbers(rng, dtype, inputs):
    """Their sums need no second look; the sums around them, and any number of outputs, are the same to the bit."""
    for rows in (7, 40, 70):
        arrays = layer(rng, dtype, rows, inputs, 50)
        x, weight = arrays["x"] * dtype.type(smallest(dtype) ** 0.9), arrays["weight"]
        x[1::3] = 0
        weight[2::4] = 0
        result = assert_linear_accurate({"x": x, "weight": weight})
        assert_equal(fastattn.linear(x[::3], weight), result[::3])
        for outputs in (3, 16, 21):
            assert_equal(fastattn.linear(x, weight[:outputs]), result[:, :outputs])
            assert_equal(fastattn.linear(x, fastattn.pack(weight[:outputs])), result[:, :outputs])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(rng, dtype, bad):
    for inputs in (1, 5, 64, 300):
        for arrays in plain_and_int8(rng, dtype, 40, inputs, 50):
            clean = fastattn.linear(**arrays)
            arrays["x"][4, inputs // 2] = bad
            spoiled = fastattn.linear(**arrays)
            assert not np.isfinite(spoiled[4]).any()
            assert_equal(np.delete(spoiled, 4, axis=0), np.delete(clean, 4, axis=0))


@pytest.mark.parametrize("name", ["weight", "bias", "residual"])
def test_nan_of_the_layer_stays_in_its_output(rng, dtype, name):
    arrays = layer(rng, dtype, 40, 70, 50)
    clean = fastattn.linear(**arrays, activation="gelu")
    place = {"weight": (7, 3), "bias": 7, "residual": (4, 7)}[name]
    arrays[name][place] = np.nan
    spoiled = fastattn.linear(**arrays, activation="gelu")
    rows = 4 if name == "residual" else slice(None)
    assert np.isnan(spoiled[rows, 7]).all()
    spoiled[rows, 7] = clean[rows, 7]
    assert_equal(spoiled, clean)


# To the bit: threads and company


# Rows, inputs and outputs with work for several threads: many rows, few rows of many outputs, one; few of both.
SHARED = [(300, 65, 70), (130, 300, 200), (17, 1000, 300), (1, 768, 1500), (3, 5000, 90), (1000, 9, 40), (100, 400, 30)]


@pytest.mark.parametrize("shape", SHARED, ids=str)
class TestToTheBit:
    def test_any_number_of_threads(self, rng, dtype, shape):
        for arrays in plain_and_int8(rng, dtype, *shape):
            expected = fastattn.linear(**arrays, activation="silu", num_threads=1)
            for num_threads in (2, 3, 7, 2, None):
                assert_equal(fastattn.linear(**arrays, activation="silu", num_threads=num_threads), expected)

    def test_any_company(self, rng, dtype, shape):
        """Alone, in another order, and beside rows of NaN, of infinities, of zeros and of hardly anything."""
        for arrays in plain_and_int8(rng, dtype, *shape):
            expected = fastattn.linear(**arrays)
            order = rng.permutation(shape[0])
            assert_equal(linear_of(arrays, order), expected[order])
            for row in {0, shape[0] // 3, shape[0] - 1}:
                assert_equal(linear_of(arrays, slice(row, row + 1)), expected[row : row + 1])
            kept = np.arange(shape[0]) % 7 == 0
            for other in (np.nan, np.inf, 0, smallest(dtype), largest(dtype)):
                x = np.where(kept[:, None], arrays["x"], dtype.type(other))
                assert_equal(fastattn.linear(**arrays | {"x": x})[kept], expected[kept])


# Memory order


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(rng, dtype, layout):
    for inputs in (13, 70):
        for arrays in plain_and_int8(rng, dtype, (4, 7), inputs, 50):
            # The rule needs rows that vary.
            names = ("bias",) if layout == "one_element_repeated" else arrays
            arrays |= {name: each(LAYOUTS[layout], arrays[name]) for name in names}
            before = {name: each(np.copy, array) for name, array in arrays.items()}
            assert_linear_accurate(arrays, activation="gelu")
            for name, array in arrays.items():
                assert_same(array, before[name])


def assert_same(array, other):
    for x, y in zip(*((a if isinstance(a, tuple) else (a,)) for a in (array, other)), strict=True):
        assert_equal(x, y)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_one_argument_in_another_layout(rng, dtype, name):
    for layout in ("swapped", "unaligned", "backwards"):
        for arrays in plain_and_int8(rng, dtype, (4, 7), 70, 50):
            assert_linear_accurate(arrays | {name: each(LAYOUTS[layout], arrays[name])})


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(rng, dtype, layout):
    """Also in the residual's own place."""
    for outputs in (13, 65):
        for arrays in plain_and_int8(rng, dtype, (4, 7), 70, outputs):
            expected = fastattn.linear(**arrays)
            residual = laid_out(arrays["residual"], layout)
            for given, out in (
                (arrays, empty_laid_out(expected.shape, dtype, layout)),
                (arrays | {"residual": residual}, residual),
            ):
                assert fastattn.linear(**given, out=out) is out
                assert_equal(out, expected)
                assert_nothing_written_around(out)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)], ids=str)
def test_results_keep_the_memory_order(rng, dtype, axes):
    arrays = layer(rng, dtype, (3, 4), 5, 6)
    arrays["x"] = np.ascontiguousarray(arrays["x"].transpose(axes)).transpose(np.argsort(axes))
    assert fastattn.linear(**arrays).transpose(axes).flags.c_contiguous


@pytest.mark.parametrize("name", ["x", "residual"])
def test_out_overlaps_rows(rng, dtype, name):
    for distance in (0, 1, 3, 64, -1, -64):
        for arrays in plain_and_int8(rng, dtype, 40, 50, 50):
            expected = fastattn.linear(**arrays)
            memory = np.zeros(2000 + 128, dtype)
            rows, out = (memory[start : start + 2000].reshape(40, 50) for start in (64, 64 + distance))
            rows[...] = arrays[name]
            assert_equal(fastattn.linear(**arrays | {name: rows}, out=out), expected)


@pytest.mark.parametrize("name", ["x", "residual"])
def test_out_runs_backwards_over_an_operand(rng, name):
    for arrays in plain_and_int8(rng, np.dtype(np.float32), 400, 30, 30):
        expected = fastattn.linear(**arrays)
        for where, operand, out in backwards_over(arrays[name]):
            with telling(out=where):
                assert_equal(fastattn.linear(**arrays | {name: operand}, out=out), expected)


def test_out_is_the_residual_in_another_order(rng, dtype):
    arrays = layer(rng, dtype, 50, 70, 50)
    expected = fastattn.linear(**arrays)
    assert_equal(fastattn.linear(**arrays, out=arrays["residual"].T), expected)


@pytest.mark.parametrize("name", ["weight", "bias", "values", "scales"])
def test_out_is_a_parameter(rng, name):
    dtype = np.dtype(np.float32)
    arrays = layer(rng, dtype, 1, 80, 80, INT8 if name in ("values", "scales") else None)
    expected = fastattn.linear(**arrays)
    parameters = {"weight": arrays["weight"], "bias": arrays["bias"]}
    parameters |= dict(zip(("values", "scales"), arrays["weight"], strict=False))
    out = parameters[name].reshape(-1).view(dtype)[None, :80]
    assert_equal(fastattn.linear(**arrays, out=out), expected)


@pytest.mark.parametrize("at", ["start", "end"])
def test_nothing_outside_is_touched(rng, dtype, at):
    for size in SIZES:
        for shape in ((1, size, 37), (2, 37, size), (size, 9, 10)):
            for arrays in plain_and_int8(rng, dtype, *shape):
                expected = fastattn.linear(**arrays, activation="relu", num_threads=1)
                out = fenced("out").place(expected.shape, dtype, at)
                beside = {name: placed(name, array, at) for name, array in arrays.items()}
                assert_equal(fastattn.linear(**beside, activation="relu", out=out, num_threads=1), expected)
