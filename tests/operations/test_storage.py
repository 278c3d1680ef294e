"""How 16-bit numbers are read and written: every one of them, and every way to be rounded to one."""

import numpy as np
import pytest

import fastattn
from support.arrays import WRITABLE_LAYOUTS, assert_nothing_written_around, empty_laid_out, laid_out
from support.dtypes import HALF, readable

# Signalling NaN are among the patterns; NumPy says so.
pytestmark = [pytest.mark.usefixtures("target"), pytest.mark.filterwarnings("ignore:invalid value")]

# Rows of an odd length: whole vectors and a part of one.
ROW = 77


@pytest.fixture(params=HALF, ids=str)
def half(request):
    return request.param


@pytest.fixture(params=WRITABLE_LAYOUTS)
def layout(request):
    return request.param


def everything(half):
    """All 65536 bit patterns, zeros behind them, in rows."""
    return in_rows(np.arange(1 << 16, dtype=np.uint16).view(half))


def in_rows(x):
    rows = -(-x.size // ROW)
    return np.concatenate([x, np.zeros(rows * ROW - x.size, x.dtype)]).reshape(rows, ROW)


def beside_zeros(x):
    """Rows of pairs whose second components are zero."""
    return np.concatenate([x, np.zeros_like(x)], axis=-1)


def assert_same_bits(x, y):
    """Equal in every bit; of NaN only that it is one."""
    nan = np.isnan(y)
    np.testing.assert_array_equal(np.isnan(x), nan)
    integer = {2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    np.testing.assert_array_equal(np.ascontiguousarray(x).view(integer)[~nan], y.view(integer)[~nan])


def numbers_around(half):
    """float32 numbers halfway between neighbours in 16 bits, just below and above that, and these neighbours."""
    finite = np.arange(1 << 15, dtype=np.uint16).view(half)
    finite = readable(finite[np.isfinite(finite)])
    # The last one lies beyond the largest number, where the next would be: the halfway mark to infinity.
    step = np.diff(finite).astype(np.float64)
    halfway = (finite + np.append(step, step[-1]) / 2).astype(np.float32)
    below, above = np.nextafter(halfway, np.float32(0)), np.nextafter(halfway, np.float32(np.inf))
    special = np.array([np.inf, np.nan, 0, 1e-45, 65519.996, 65520, 3.4e38], np.float32)
    positive = np.concatenate([finite, halfway, below, above, special])
    return np.concatenate([positive, -positive])


# Reading


def test_every_number_is_read_as_itself(half, layout):
    """One key's value, attended to by a float32 query, is the result: a sum, so there is no -0."""
    value = laid_out(everything(half)[:, None, None], layout)
    query, key = np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), half)
    out = fastattn.scaled_dot_product_attention(query, key, value)
    assert_same_bits(out[:, 0, 0], readable(everything(half)) + np.float32(0))


def test_every_number_is_read_as_itself_from_a_table(half, layout):
    cos = laid_out(everything(half), layout)
    x = beside_zeros(np.ones(cos.shape, np.float32))
    turned = fastattn.rotary_embedding(x, cos, np.zeros_like(cos))
    assert_same_bits(turned[:, :ROW], readable(everything(half)))


# Writing


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_every_number_goes_through_unchanged(half, layout, interleaved):
    values = everything(half)
    x = np.zeros((len(values), 2 * ROW), half)
    firsts = (slice(None), slice(None, None, 2) if interleaved else slice(ROW))
    x[firsts] = values
    out = empty_laid_out(x.shape, half, layout)
    cos, sin = np.ones(values.shape, np.float32), np.zeros(values.shape, np.float32)
    fastattn.rotary_embedding(laid_out(x, layout), cos, sin, interleaved=interleaved, out=out)
    assert_same_bits(out[firsts], values)
    assert_nothing_written_around(out)


def test_components_that_do_not_turn_keep_every_bit(half, layout):
    x = laid_out(everything(half), layout)
    none = np.zeros((len(x), 0), np.float32)
    out = fastattn.rotary_embedding(x, none, none, out=empty_laid_out(x.shape, half, layout))
    np.testing.assert_array_equal(np.ascontiguousarray(out).view(np.uint16), everything(half).view(np.uint16))


@pytest.mark.parametrize("operation", ["add_rms_norm", "add_layer_norm"])
def test_sums_are_rounded_as_elsewhere(half, layout, operation, rng):
    x = everything(half)
    others = [np.full_like(x, -0.0), np.ascontiguousarray(x[::-1, ::-1]), rng.permutation(x.ravel()).reshape(x.shape)]
    for other in others:
        out = empty_laid_out(x.shape, half, layout), empty_laid_out(x.shape, half, layout)
        _, total = getattr(fastattn, operation)(laid_out(x, layout), laid_out(other, layout), out=out)
        with np.errstate(all="ignore"):
            assert_same_bits(total, x + other)
        assert_nothing_written_around(total)


def test_numbers_are_rounded_to_even(half, layout):
    """By way of float32 tables, which turn pairs (1, 0) into themselves."""
    cos = in_rows(numbers_around(half))
    x = laid_out(beside_zeros(np.ones(cos.shape, half)), layout)
    out = fastattn.rotary_embedding(x, cos, np.zeros_like(cos), out=empty_laid_out(x.shape, half, layout))
    with np.errstate(over="ignore"):
        assert_same_bits(out[:, :ROW], cos.astype(half))


def test_weights_are_rounded_to_even(half, layout):
    """By way of a float32 weight for ones."""
    weight = numbers_around(half)[:30_000]
    out = empty_laid_out((2, weight.size), half, layout)
    fastattn.rms_norm(np.ones(out.shape, half), weight, eps=0.0, out=out)
    with np.errstate(over="ignore"):
        assert_same_bits(out, np.broadcast_to(weight.astype(half), out.shape).copy())


def test_any_float32_is_rounded_as_elsewhere(half, rng):
    bits = rng.integers(0, 1 << 32, 77 * 4000, dtype=np.uint32)
    cos = in_rows(bits.view(np.float32))
    out = fastattn.rotary_embedding(beside_zeros(np.ones(cos.shape, half)), cos, np.zeros_like(cos))
    with np.errstate(all="ignore"):
        assert_same_bits(out[:, :ROW], cos.astype(half))


def test_what_float16_cannot_hold_becomes_infinite():
    x = np.array([[65504, 65504, -65504, 30000]], np.float16)
    _, total = fastattn.add_rms_norm(x, np.array([[15, 16, -16, 0]], np.float16))
    np.testing.assert_array_equal(total, np.array([[65504, np.inf, -np.inf, 30000]], np.float16))
    y = fastattn.rms_norm(np.ones((1, 4), np.float16), np.array([65519, 65520, -65520, 1e9], np.float32), eps=0.0)
    np.testing.assert_array_equal(y, np.array([[65504, np.inf, -np.inf, np.inf]], np.float16))
