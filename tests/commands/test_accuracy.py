"""The accuracy rule: errors by row, held to twice the formula's and a unit in the last place."""

import math

import ml_dtypes
import numpy as np
import pytest

from fastattn import reference
from fastattn.commands.measuring import accuracy

F32 = np.float32


def found(result, formula, oracle):
    return accuracy.check_rows([(result, formula, oracle)])


def test_a_small_row_does_not_hide_beside_a_large_one():
    oracle = np.array([[1000.0, 1], [1, 0.5]])
    exact = oracle.astype(F32)
    for row, kept in ((0, True), (1, False)):
        result = exact.copy()
        result[row, 1] += 2**-16  # less than an ulp of 1000, many of 1
        assert found(result, exact, oracle).kept == kept
    assert found(result, exact, oracle).place == (1, 1)


def test_the_formulas_worst_row_counts_relative_to_its_magnitude():
    oracle = np.array([[1024.0, 1], [1, 0.5]])
    formula = oracle.astype(F32)
    formula[0, 1] += 1  # 2^-10 of the row's largest
    allowed = [2 * 1024 * 2**-10 + np.spacing(F32(1024)), 2 * 2**-10 + np.spacing(F32(1))]
    for row in (0, 1):
        for part, kept in ((0.99, True), (1.01, False)):
            result = oracle.astype(F32)
            result[row, 0] += part * allowed[row]
            verdict = found(result, formula, oracle)
            assert verdict.kept == kept
            assert verdict.allowed == pytest.approx(allowed[row])


def test_parts_of_an_array_are_one_array():
    oracle = np.array([[1.0, 0.5]])
    exact, off = oracle.astype(F32), (oracle + 2**-10).astype(F32)
    assert not accuracy.check_rows([(exact, exact, oracle), (off, exact, oracle)]).kept
    assert accuracy.check_rows([(exact, off, oracle), (off, exact, oracle)]).kept


def test_numbers_without_a_row_of_their_own_are_one_row():
    """As an lse is, beside the output: by itself, each would be allowed its own ulp alone."""
    outs, lses = np.ones((2, 3)), np.array([8.0, 2**-20])
    result = outs.astype(F32), np.array([8, 2**-20 + 2**-22], F32)
    part = accuracy.Part(..., (outs, lses), (outs.astype(F32), lses.astype(F32)))
    assert accuracy.check(result, [part]).kept
    assert not found(result[1].reshape(2, 1), part.formula[1].reshape(2, 1), lses.reshape(2, 1)).kept


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_where_the_formula_has_no_number_it_is_not_asked(garbage):
    oracle = np.array([[1.0, 0.5], [1.0, 0.5]])
    formula = np.array([[1, 0.5], [garbage, garbage]], F32)
    verdict = found(oracle.astype(F32), formula, oracle)
    assert verdict.kept
    assert verdict.allowed == np.spacing(F32(1))


@pytest.mark.parametrize("right", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1.0])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_what_is_not_finite_must_be_the_oracles(dtype, wrong, right):
    oracle = np.array([[right, 0.5]])
    exact, result = oracle.astype(dtype), np.array([[wrong, 0.5]], dtype)
    assert found(exact, exact, oracle).kept
    if str(wrong) != str(right):
        verdict = found(result, exact, oracle)
        assert not verdict.kept
        assert verdict.share > 1
        assert math.isfinite(right + wrong) or verdict.share == math.inf


def test_rows_of_zeros_must_be_zeros():
    oracle = np.zeros((1, 3))
    assert found(oracle.astype(F32), oracle.astype(F32), oracle).kept
    assert not found(np.array([[0, 1e-30, 0]], F32), oracle.astype(F32), oracle).kept


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_largest_number_has_a_last_place(dtype):
    largest = ml_dtypes.finfo(dtype).max
    exact = np.array([[largest, 1]], dtype)
    below = np.nextafter(exact, np.array(0, dtype))
    second_below = np.nextafter(below, np.array(0, dtype))
    oracle = exact.astype(np.float64)
    assert found(below, exact, oracle).kept
    assert not found(second_below, exact, oracle).kept
    assert not found(exact, exact, np.array([[np.inf, 1]])).kept


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_what_the_type_cannot_hold_is_not_allowed_everything(dtype):
    oracle = np.array([[4 * float(ml_dtypes.finfo(dtype).max), 1]])
    result = np.array([[np.inf, 1]], dtype)
    assert not found(result, result, oracle).kept


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_nothing_is_right(shape):
    verdict = found(np.zeros(shape, F32), np.zeros(shape, F32), np.zeros(shape))
    assert verdict.kept
    assert verdict.share == 0


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="no type wider than float64 here")
def test_float64_is_held_to_more_digits():
    x = np.random.default_rng(0).normal(size=(3, 40))
    assert accuracy.oracle("softmax", "float64", x).dtype == np.longdouble
    assert accuracy.oracle("softmax", "float64", x=x, axis=0).dtype == np.longdouble
    assert accuracy.oracle("softmax", "float32", x.astype(F32)).dtype == np.float64
    assert accuracy.oracle("merge_states", "float64", [x, x], [x[:, 0], x[:, 0]])[0].dtype == np.longdouble
    assert reference.softmax(x).dtype == np.float64
