"""Results held to the accuracy rule of `fastattn.commands.measuring.accuracy`: what tests ask of it.

Inputs should have some hundreds of elements: then the formula's worst error is a property of the formula and not of one
lucky rounding. Formulas in 16 bits round after every step, as NumPy does; but sums and matrix products are made in
float32 and rounded then, as NumPy makes them for float16 and ml_dtypes only in part: the stricter yardstick.
"""

import numpy as np
import pytest

from fastattn import reference
from fastattn.commands.measuring import accuracy, formulas
from support.remembering import remembered
from support.targets import multiplies_and_adds_at_once


def assert_accurate(result, formula, expected):
    """Hold `result` to the rule; infinities, NaN and zeros of empty rows must be the expected ones exactly."""
    assert result.shape == expected.shape
    assert result.dtype == formula.dtype
    found = accuracy.check_rows([(result, formula, expected)])
    assert found.kept, (
        f"{found.share:.2f} of what the rule allows at {found.place} of shape {result.shape}: "
        f"an error of {found.error:.2g} where {found.allowed:.2g} is allowed"
    )


def assert_accurate_together(result, formula, expected):
    """The same for numbers that have no row of their own, which would set a magnitude: all of them are one."""
    assert result.shape == expected.shape
    assert_accurate(*accuracy.as_one_row([result], [formula], [expected]))


def place_of(x):
    """Where x is largest, or NaN: an index, whose last part is the place in the row."""
    return tuple(map(int, np.unravel_index(np.argmax(x), x.shape)))


@remembered
def by_oracle(operation, dtype, *arguments, **options):
    """What the oracle says of arrays of that type, in more digits."""
    if dtype == np.float64:
        arguments, options = wider(arguments), wider(options)
    return getattr(reference, operation)(*arguments, **options)


def wider(x):
    """Every array of float64 in long double: then the oracle computes in that."""
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("no type wider than float64 here")
    return accuracy.widened(x)


@remembered
@np.errstate(all="ignore")
def by_formula(operation, *arguments, **options):
    """What the straightforward formula makes of arrays, in the precision of the first.

    Where there is garbage beside what is attended to, it may give NaN and is not asked.
    """
    return getattr(formulas, operation)(*arguments, **options)


def matmul_of_target():
    """NumPy's takes what instructions the machine has; a target without them is measured by one without."""
    return np.matmul if multiplies_and_adds_at_once() else unfused_matmul


def unfused_matmul(a, b):
    """What matmul gives on a machine that rounds each product before adding it, with BLAS's order of the additions.

    NumPy's own loops do that rounding. Like BLAS they add along the reduction, in blocks, or for a single row in lanes.
    """
    if a.ndim == 1:
        return unfused_matmul(a[None], b)[0]
    if a.shape[-2] > 1:
        b = np.ascontiguousarray(b)
    starts = range(0, max(a.shape[-1], 1), 256)
    return sum(np.einsum("...ij,...jk->...ik", a[..., i : i + 256], b[..., i : i + 256, :]) for i in starts)
