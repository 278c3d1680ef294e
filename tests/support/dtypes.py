"""The types that arrays may be stored in."""

import ml_dtypes
import numpy as np

from fastattn._dtypes import REALS

WIDE = tuple(np.dtype(row.name) for row in REALS if row.computed_in == row.name)
HALF = tuple(np.dtype(row.name) for row in REALS if row.computed_in != row.name)
ALL = WIDE + HALF


def eps(dtype):
    return float(ml_dtypes.finfo(dtype).eps)


def largest(dtype):
    return float(ml_dtypes.finfo(dtype).max)


def smallest(dtype):
    """The smallest normal number."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)


def computed_in(dtype):
    """The type of sums, and of what is not stored in the caller's own: float32, or float64 for float64."""
    return np.dtype(np.float32) if dtype in HALF else dtype


def stored_beside(dtype):
    """What keys and values may be stored in beside a query of that type."""
    return [other for other in ALL if other.itemsize < dtype.itemsize or other == dtype]


def random(rng, dtype, *shape, centre=0, spread=1):
    """Normally distributed numbers; what the type could not hold is its largest number."""
    x = rng.normal(centre, spread, size=shape)
    return np.clip(x, -largest(dtype), largest(dtype)).astype(dtype)


def readable(x):
    """x in a type that NumPy's own comparisons know: they do not see that bfloat16 has NaN."""
    return x.astype(computed_in(x.dtype))


def assert_equal(x, y):
    """Equal in type, shape and every element, NaN included."""
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(readable(x), readable(y))
