"""The types of cases, by name, and the packages that each needs besides NumPy.

bfloat16 needs ml_dtypes, which is optional: without it these cases are skipped, and callers report that. It is imported
only when a case needs it.
"""

import functools
import importlib
from importlib import util

import numpy as np

from fastattn._dtypes import REALS

#: The packages that a type needs.
NEEDS = {row.name: (row.package,) if row.package else () for row in REALS}

HALF = tuple(row.name for row in REALS if row.itemsize == 2)


@functools.cache
def named(name):
    """The NumPy type of this name; NumPy knows bfloat16 once ml_dtypes is imported."""
    for package in NEEDS.get(name, ()):
        importlib.import_module(package)
    return np.dtype(name)


def absent(name):
    """The packages that a type needs and that are not installed."""
    return [package for package in NEEDS.get(name, ()) if util.find_spec(package) is None]


def present(names):
    """The types that are available here."""
    return [name for name in names if not absent(name)]


def remarks(names):
    """A line about each of the types that are not available."""
    return [f"{name} is skipped: {', '.join(absent(name))} not installed" for name in names if absent(name)]


def wide(dtype):
    """The type of sums of such numbers: float32 at least."""
    return np.result_type(dtype, np.float32)
