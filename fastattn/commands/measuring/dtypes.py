"""The types that cases come in, by name, and what each needs beside NumPy.

bfloat16 comes with ml_dtypes, which is optional: without it these cases are left out, and whoever leaves them out says
so. Nothing here imports it before a case asks for it.
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
    """Those of the types that can be had here."""
    return [name for name in names if not absent(name)]


def remarks(names):
    """A line about each of the types that cannot."""
    return [f"{name} is left out: {', '.join(absent(name))} not installed" for name in names if absent(name)]


def wide(dtype):
    """The type in which sums of such numbers are kept: float32 at least."""
    return np.result_type(dtype, np.float32)
