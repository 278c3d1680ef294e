"""The script of the largest errors."""

import numpy as np
import pytest

from support.scripts import script

accuracy = script("accuracy")


def test_the_largest_error_and_its_place():
    """In units of the exact result, wherever that is large enough to count, and as such."""
    double = accuracy.Function(
        "2 x", "nothing", lambda x: np.where(x == 3, x * 2 + 2.0**-20, 2 * x), lambda x: 2 * x, falls_to_zero=True
    )
    x = np.array([1, 3, 5, 1e-40, np.finfo(np.float32).max / 4], np.float32)
    found = accuracy.largest_errors(double, np.dtype(np.float32), x, double.exact(x.astype(np.float64)))
    assert found["last place"] == accuracy.Found(2.0, 3.0)
    assert str(found["last place"]) == "2.00 at 3"
    assert found["eps, below 1"].error == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_functions_in_16_bits(dtype):
    """All of their numbers: rounded once, but for the rougher GELU and what stays float32.

    On AMX a softcap is the logarithm of a rougher exponential, whose error does not become smaller with the result.
    """
    for (function, _, measure), by_target in accuracy.of_functions([dtype]).items():
        most = {"gelu": 8, "softcap": 8}.get(function.reached, 0.51)
        if function.reached == "softcap" and dtype == "bfloat16" and "amx" in by_target:
            on_amx = by_target.pop("amx")
            assert measure == "last place" or on_amx.error <= 8.6e-5 / np.finfo(np.float32).eps
        assert all(0 < found.error <= most for found in by_target.values()), function


def test_targets_that_agree_share_a_column(monkeypatch):
    monkeypatch.setattr(accuracy.fastattn, "targets", lambda: ("fast", "old", "plain"))
    found = {
        "float32": {("f",): {"fast": "1", "old": "1", "plain": "2"}, ("g",): {"fast": "3", "old": "3", "plain": "3"}}
    }
    assert accuracy.by_type(("function",), "l", found) == [
        "### float32",
        "| function | fast, old | plain |\n| --- | ---: | ---: |\n| f | 1 | 2 |\n| g | 3 | 3 |",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_range_of_arguments(dtype):
    x = accuracy.arguments(np.dtype(dtype))
    limits = np.finfo(dtype)
    assert np.isfinite(x).all()
    assert x.max() > 0.9 * limits.max or dtype == "float64"
    for part in (x > 1, x < -1, (x > 0) & (x < limits.tiny), (x > 80) & (x < 90)):
        assert part.any()
